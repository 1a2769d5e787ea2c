"""All pairs of K classes, by tiles: exact for moderate K, a seeded sample of pairs beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from ncmonitor.geometry import vectors as geometry
from ncmonitor.geometry.vectors import Vectors

#: Up to so many classes every pair is visited; above, averages run over a sample.
PAIR_CLASSES: Final = 4096
#: Size of that sample. The standard error of an average is a thousandth of the pairs' spread.
SAMPLED_PAIRS: Final = 2**20
#: Distances below this share of the vectors' lengths are recomputed as differences.
_CLOSE: Final = 1e-6


def pair_count(num_classes: int) -> int:
    """Return how many ordered pairs averages run over."""
    exact = num_classes * (num_classes - 1)
    return exact if num_classes <= PAIR_CLASSES else SAMPLED_PAIRS


@dataclass(frozen=True)
class Tile:
    """Some pairs of vectors: a block of rows against all of them, or a list of pairs.

    Attributes:
        vectors: All K vectors.
        first: Class of the first of each pair, ``(n, 1)``, or ``(n,)`` for a list.
        second: Class of the second, ``(1, K)``, or ``(n,)``.
        inner: Inner products, ``(n, K)`` or ``(n,)`` float64.
    """

    vectors: Vectors
    first: Tensor
    second: Tensor
    inner: Tensor

    @cached_property
    def distinct(self) -> Tensor:
        """Where the two are different classes."""
        return self.first != self.second

    @cached_property
    def square_distances(self) -> Tensor:
        """``‖v_i − v_j‖²`` of each pair, to full precision for vectors that nearly coincide."""
        squares = self.vectors.norms.square()
        lengths = squares[self.first] + squares[self.second]
        distances = lengths - 2 * self.inner
        # The difference has lost its digits where little is left of it: subtract first there.
        close = (distances < _CLOSE * lengths) & self.distinct
        one, two = (side.expand(close.shape)[close] for side in (self.first, self.second))
        parts = zip(
            torch.split(one, geometry.BLOCK_ROWS),
            torch.split(two, geometry.BLOCK_ROWS),
            strict=True,
        )
        exact = [(self.vectors.take(a) - self.vectors.take(b)).square().sum(1) for a, b in parts]
        distances[close] = torch.cat(exact) if exact else distances.new_zeros(0)
        return distances.masked_fill_(~self.distinct, 0.0)


def tiles(vectors: Vectors) -> Iterator[Tile]:
    """Iterate over all ordered pairs, or a seeded sample for K > :data:`PAIR_CLASSES`."""
    count = len(vectors)
    if count > PAIR_CLASSES:
        yield from _sampled(vectors)
        return
    labels, known = torch.arange(count), count <= geometry.GRAM_CLASSES
    whole = None if known else vectors.all()
    for start in range(0, count, geometry.BLOCK_ROWS):
        part = slice(start, start + geometry.BLOCK_ROWS)
        inner = vectors.gram[part] if whole is None else whole[part] @ whole.T
        yield Tile(vectors, labels[part, None], labels[None], inner)


def _sampled(vectors: Vectors) -> Iterator[Tile]:
    generator = torch.Generator().manual_seed(0)  # its own: the same pairs at every measurement
    count = len(vectors)
    first = torch.randint(count, (SAMPLED_PAIRS,), generator=generator)
    step = torch.randint(1, count, (SAMPLED_PAIRS,), generator=generator)
    second = (first + step) % count  # never the same class
    size = 4 * geometry.BLOCK_ROWS
    for one, two in zip(torch.split(first, size), torch.split(second, size), strict=True):
        inner = (vectors.take(one) * vectors.take(two)).sum(1)
        yield Tile(vectors, one, two, inner)


def square_distances(vectors: Vectors) -> Tensor:
    """Return ``‖v_i − v_j‖²`` of all pairs, ``(K, K)`` float64; for moderate K."""
    labels = torch.arange(len(vectors))
    return Tile(vectors, labels[:, None], labels, vectors.gram).square_distances


def sampled_columns(num_classes: int) -> Tensor:
    """Return all classes, or a seeded sample of ``PAIR_CLASSES²/K`` of them for many."""
    if num_classes <= PAIR_CLASSES:
        return torch.arange(num_classes)
    draw = torch.Generator().manual_seed(0)  # its own: the same at every measurement
    return torch.randperm(num_classes, generator=draw)[: PAIR_CLASSES**2 // num_classes]


def pair_average(vectors: Vectors, of: Callable[[Tile], Tensor]) -> float:
    """Average a function of two different classes over all ordered pairs, or over the sample.

    Args:
        vectors: K ≥ 2 vectors.
        of: From a tile to one number per pair, in the tile's shape.
    """
    total = 0.0
    for tile in tiles(vectors):
        total += float(of(tile)[tile.distinct].sum())
    return total / pair_count(len(vectors))
