"""NC1 under collapse, beside the `neural-collapse` package: ``python -m benchmarks.peers CLONE``.

    git clone https://github.com/rhubarbwu/neural-collapse.git
    python -m benchmarks.peers neural-collapse

Float32 features, 10 classes of 500 around a random simplex with centred means of length one, in 512
dimensions; the other package is used as its README shows, in batches of 128, in float32 (its
default) and in float64. Errors are relative to float64 arithmetic on the same float32 numbers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncmonitor import measure_collapse
from ncmonitor.theory import simplex_etf

CLASSES, DIM, SAMPLES, BATCH = 10, 512, 500, 128
CASES = tuple((spread, offset) for offset in (0.0, 100.0) for spread in (1e-1, 1e-3, 1e-4, 1e-5))


def cloud(spread: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return features (N, d) and labels (N,): noise of length ``spread`` about each class mean."""
    generator = torch.Generator().manual_seed(0)
    means = simplex_etf(CLASSES, DIM, generator=generator)
    labels = torch.arange(CLASSES * SAMPLES) % CLASSES
    noise = torch.randn(len(labels), DIM, generator=generator, dtype=torch.float64)
    direction = torch.randn(DIM, generator=generator, dtype=torch.float64)
    common = offset * direction / direction.norm()
    return (means[labels] + common + spread / DIM**0.5 * noise).float(), labels


def exact(features: Tensor, labels: Tensor) -> float:
    """Return tr(Σ_W Σ_B⁺)/K in float64, by the singular vectors of the centred means."""
    samples = features.double()
    means = torch.stack([samples[labels == c].mean(0) for c in range(CLASSES)])
    centred = means - means.mean(0)
    _, values, right = torch.linalg.svd(centred, full_matrices=False)
    inverse = right[: CLASSES - 1] / values[: CLASSES - 1, None]  # (K - 1, d)
    return float(((samples - means[labels]) @ inverse.T).square().sum(1).mean())


def peer(package: Any, features: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    """Return NC1 as the other package's README computes it, in two passes."""
    samples = features.to(dtype)
    batches = list(zip(samples.split(BATCH), labels.split(BATCH), strict=True))
    mean = package.accumulate.MeanAccumulator(CLASSES, DIM, "cpu", dtype)
    for batch in batches:
        mean.accumulate(*batch)
    means, middle = mean.compute()
    within = package.accumulate.CovarAccumulator(CLASSES, DIM, "cpu", dtype, M=means)
    for batch in batches:
        within.accumulate(*batch, means)
    return float(package.measure.covariance_ratio(within.compute(), means, middle))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Return a result, and the median seconds of three calls."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    return value, statistics.median(seconds)


def main() -> None:
    """Print relative errors and times of NC1, a line for each cloud."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clone", type=Path, help="folder of a clone of neural-collapse")
    sys.path.insert(0, str(parser.parse_args().clone))
    import neural_collapse.accumulate
    import neural_collapse.measure

    columns: dict[str, Callable[[Tensor, Tensor], float]] = {
        "ncmonitor": lambda h, y: float(measure_collapse(h, y).nc1),
        "neural-collapse": lambda h, y: peer(neural_collapse, h, y, torch.float32),
        "neural-collapse, float64": lambda h, y: peer(neural_collapse, h, y, torch.float64),
    }
    print("| spread | offset | " + " | ".join(columns) + " |\n|--:|--:|" + "--:|" * len(columns))
    for spread, offset in CASES:
        features, labels = cloud(spread, offset)
        truth = exact(features, labels)
        cells = []
        for measure in columns.values():
            value, seconds = timed(partial(measure, features, labels))
            cells.append(f"{abs(value / truth - 1):.0e} ({seconds * 1e3:.0f} ms)")
        print(f"| {spread:g} | {offset:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
