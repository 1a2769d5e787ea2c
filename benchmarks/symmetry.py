"""What ``SymmetryMonitor`` costs beside a bare pass of the network over the same images.

    python -m benchmarks.symmetry [--pairs 6] [--network resnet18|convnet] [--device auto]

A measurement is the callback's whole hook at the end of an epoch, files and logging included. It
stands between two bare passes: the same network in eval mode under ``no_grad`` over the same
images, nothing else. The floor is a pass for the images as they are and one for each element of the
group but the identity; how many there were is counted at the network. Everything is timed inside
one process and in turn, with one thread, so that a change of the machine's speed hits both sides.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._machine import OthersClock, machine
from benchmarks._resnet import ResNet, Seconds, bare_pass, images, timed
from benchmarks._worker import say
from ncmonitor.callbacks import SymmetryMonitor
from ncmonitor.recipes.networks.image_networks import ConvNet

BATCH: Final = 128
GROUPS: Final = ("flips", "rotations90")


class SmallNet(ResNet):
    """The ConvNet of the recipes that run on a CPU, on the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = ConvNet(channels=3, image_size=32)


class Case(NamedTuple):
    """A network, and how many images it sees: enough for a pass of half a second or more."""

    name: str
    network: type[ResNet]
    count: int


CASES: Final = {
    "resnet18": Case("ResNet-18 (3x3 stem)", ResNet, 256),
    "convnet": Case("ConvNet", SmallNet, 4096),
}


class Paired(SymmetryMonitor):
    """Times its own measurement between two bare passes, and counts what the network runs over."""

    def __init__(self, group: str, loader: DataLoader[Any], folder: str) -> None:
        super().__init__(
            group, samples=None, schedule=1, splits=("train",), run_dir=folder, verbose=False
        )
        self.loader = loader
        self.bare: list[tuple[Seconds, Seconds]] = []
        self.measured: list[Seconds] = []
        self.forwards = 0.0  # passes over the images

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measure, device = super().on_train_epoch_end, pl_module.device
        if trainer.current_epoch == 0:  # warms up, and counts
            self._count(pl_module, lambda: measure(trainer, pl_module))
            return
        before = timed(device, bare_pass, trainer, pl_module, self.loader)
        self.measured.append(timed(device, measure, trainer, pl_module))
        self.bare.append((before, timed(device, bare_pass, trainer, pl_module, self.loader)))
        say(f"pair {len(self.bare)}: bare {before.wall:.3g} s, {self.measured[-1].wall:.3g} s")

    def _count(self, module: pl.LightningModule, measure: Any) -> None:
        seen = 0

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal seen
            seen += len(inputs[0])

        handle = module.register_forward_pre_hook(add)
        measure()
        handle.remove()
        self.forwards = seen / len(self.loader.dataset)  # type: ignore[arg-type]


def measured(case: Case, group: str, data: TensorDataset, pairs: int, device: str) -> Paired:
    """Train for as many epochs of one step as there are pairs, and one to warm up."""
    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        monitor = Paired(group, DataLoader(data, BATCH), folder)
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            callbacks=[monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=pairs + 1,
            limit_train_batches=1,
        )
        trainer.fit(case.network(), DataLoader(data, BATCH, shuffle=True))
    return monitor


def ratios(monitor: Paired, clock: str) -> tuple[list[float], list[float]]:
    """Return measurement over bare pass, and bare over bare pass, for each pair."""
    bare = [[getattr(each, clock) for each in pair] for pair in monitor.bare]
    whole = [getattr(each, clock) for each in monitor.measured]
    costs = [w / statistics.mean(pair) for w, pair in zip(whole, bare, strict=True)]
    return costs, [two / one for one, two in bare]


def row(case: Case, group: str, monitor: Paired, clock: str) -> str:
    """Return a row of the table: the ratio, its share of the floor, and the spread of both."""
    costs, noise = ratios(monitor, clock)
    middle, floor = statistics.median(costs), monitor.forwards
    cells = [
        *(case.name, str(case.count), group, clock, f"{floor:g}", f"{middle:.2f}"),
        *(f"{middle / floor:.3f}", spread(costs), spread(noise)),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Return the median with the smallest and the largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Print the table: every network under every group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--network", choices=tuple(CASES))
    parser.add_argument("--images", type=int, help="instead of 256 and 4096")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print("\n".join(f"- {fact}" for fact in machine()), "\n")
    head = ["network", "images", "group", "clock", "forwards m", "measurement / bare pass"]
    head += ["/ m", "its pairs", "bare / bare, the noise"]
    print(f"| {' | '.join(head)} |\n|---|--:|---|---|--:|--:|--:|---|---|")
    others = OthersClock()
    clocks = Seconds._fields[::-1] if options.device == "cpu" else Seconds._fields[:1]
    for name in [options.network] if options.network else CASES:
        case = CASES[name]._replace(count=options.images or CASES[name].count)
        data = images(case.count)
        for group in GROUPS:
            monitor = measured(case, group, data, options.pairs, options.device)
            for clock in clocks:
                print(row(case, group, monitor, clock), flush=True)
    share = others.share()
    print(f"\nothers took {'?' if share is None else f'{share:.0%}'} of the processors")


if __name__ == "__main__":
    main()
