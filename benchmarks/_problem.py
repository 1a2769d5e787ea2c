"""The problems that ``benchmarks.numbers`` measures, and the products none of them can avoid."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Rows built at once: small, so that building leaves no peak of memory behind.
_BUILD_ROWS = 1024
#: Largest block of logits that :func:`unavoidable_products` holds, in bytes.
_BLOCK_BYTES = 2**28
_NOISE = 0.3


class Size(NamedTuple):
    """N samples of dimension d in K classes."""

    samples: int
    dim: int
    classes: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``"N,d,K"``.

        Raises:
            argparse.ArgumentTypeError: If it is not three integers with d ≥ 1 and 2 ≤ K ≤ N.
        """
        with contextlib.suppress(ValueError):
            samples, dim, classes = (int(part) for part in text.split(","))
            if dim >= 1 and 2 <= classes <= samples:
                return cls(samples, dim, classes)
        raise argparse.ArgumentTypeError(f"expected N,d,K, d >= 1 and 2 <= K <= N, got {text!r}")

    @property
    def rank(self) -> int:
        """Dimension of the span of the centred class means."""
        return min(self.classes - 1, self.dim)

    def __str__(self) -> str:
        return f"{self.samples},{self.dim},{self.classes}"


@dataclass(frozen=True)
class Problem:
    """Seeded features around class means, and a classifier near those means.

    Attributes:
        size: N, d and K.
        features: ``(N, d)`` float32.
        labels: ``(N,)``; every class has ⌊N/K⌋ or ⌈N/K⌉ samples.
        weight: ``(K, d)`` float32.
        bias: ``(K,)`` float32.
    """

    size: Size
    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def build(cls, size: Size, seed: int = 0) -> Problem:
        """Build it in place: hardly more memory is used on the way than the problem keeps."""
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(size.samples) % size.classes
        labels = labels[torch.randperm(size.samples, generator=random)]
        means = torch.randn(size.classes, size.dim, generator=random)
        features = torch.randn(size.samples, size.dim, generator=random).mul_(_NOISE)
        for rows, own in zip(features.split(_BUILD_ROWS), labels.split(_BUILD_ROWS), strict=True):
            rows += means[own]
        means -= means.mean(0)  # from here on it is the classifier's weight
        for rows in means.split(_BUILD_ROWS):
            rows += _NOISE * torch.randn(rows.shape, generator=random)
        bias = _NOISE * torch.randn(size.classes, generator=random)
        return cls(size, features, labels, means, bias)


def unavoidable_products(problem: Problem) -> Callable[[], None]:
    """Return a function that does the float32 products of any exact measurement, and only those.

    Logits ``N x d x K``, projection on the span of the means ``N x d x r``, distances inside the
    span ``N x r x K``. Rows go by blocks into buffers that are made here, once: a fresh output for
    each product would add the cost of its page faults.
    """
    size = problem.size
    rows = min(size.samples, 8192, max(512, _BLOCK_BYTES // (4 * size.classes)))
    random = torch.Generator().manual_seed(1)
    basis = torch.randn(size.dim, size.rank, generator=random).div_(size.dim**0.5)
    coordinates = torch.randn(size.classes, size.rank, generator=random)
    scores = torch.empty(rows, size.classes)
    projected = torch.empty(rows, size.rank)

    def run() -> None:
        for block in problem.features.split(rows):
            inside = projected[: len(block)]
            torch.mm(block, problem.weight.T, out=scores[: len(block)])
            torch.mm(block, basis, out=inside)
            torch.mm(inside, coordinates.T, out=scores[: len(block)])

    return run
