"""What it costs to compare, at every batch, what a model returns with what its head gives.

    python -m benchmarks.comparison [--images 1000] [--repeats 5]

One pass with and one without the comparison, in turn, in one process: of ResNet-18 over images of
3x32x32, and of a language model's head alone, the worst case: nothing else runs. Then the search
for the head, on one batch, in forward passes of that batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._machine import machine
from benchmarks._resnet import ResNet, images
from benchmarks._worker import say
from ncmonitor import FeatureTap


def seconds(model: nn.Module, batches: list[Tensor], *, compares: bool, head: object) -> float:
    """Return the processor's seconds of a tapped pass."""
    started = time.process_time()
    with torch.no_grad(), FeatureTap(model, head=head, compares=compares) as tap:  # type: ignore[arg-type]
        for batch in batches:
            model(batch)
            tap.take()
    return time.process_time() - started


def compare(name: str, model: nn.Module, batches: list[Tensor], repeats: int) -> None:
    """Print the ratio of passes with and without the comparison, and the cost of the search."""
    model.eval()
    forward = _timed(lambda: model(batches[0]))
    with torch.no_grad(), FeatureTap(model) as tap:
        model(batches[0])
        search = _timed(tap.take)
        head = tap.head
    seconds(model, batches, compares=True, head=head)  # warm
    ratios = [
        seconds(model, batches, compares=True, head=head)
        / seconds(model, batches, compares=False, head=head)
        for _ in range(repeats)
    ]
    say(
        f"{name}: with / without the comparison {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}); the search takes {search / forward:.1f} "
        "forward passes of one batch"
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    with torch.no_grad():
        work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print("\n".join(machine()))
    pictures = list(images(options.images).tensors[0].split(128))
    compare("ResNet-18, 10 classes", ResNet().net, pictures, options.repeats)
    tokens = list(torch.randn(1024, 768).split(256))
    head = nn.Sequential(nn.Linear(768, 50_257, bias=False))
    compare("a head of 50,257 classes alone, d = 768", head, tokens, options.repeats)


if __name__ == "__main__":
    main()
