"""Principal components of features under all transforms together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Generator, Tensor

#: Standard deviation, relative to the largest, below which a direction is left out.
CUTOFF: Final = 1e-4
#: Up to so many features the principal directions come from their covariance, exactly.
EXACT_DIM: Final = 1024


@dataclass(frozen=True)
class Transformed:
    """Features under transforms, and which samples maps are fitted on.

    Attributes:
        features: ``(m, N, d)``.
        kept: ``(m, N)`` bool, pairs that count.
        fit: Indices of the fitted samples.
        test: Indices of the others.
    """

    features: Tensor
    kept: Tensor
    fit: Tensor
    test: Tensor

    @cached_property
    def means(self) -> Tensor:
        """Of the fitted samples under each transform, ``(m, d)`` float64; 0 without any."""
        return torch.stack([self._mean(g, self.learned(g)) for g in range(len(self.features))])

    def _mean(self, g: int, samples: Tensor) -> Tensor:
        rows = self.features[g, samples].double()
        if not len(rows):
            return self.features.new_zeros(self.dim, dtype=torch.float64)
        return rows[0] + (rows - rows[0]).mean(0)  # about one of them, for the digits

    @property
    def dim(self) -> int:
        """Number of features d."""
        return self.features.shape[2]

    def learned(self, g: int) -> Tensor:
        """Return the indices of the fitted samples that count under a transform."""
        return self.fit[self.kept[g, self.fit]]

    def judged(self, g: int) -> Tensor:
        """Return the indices of the held-out samples that count under a transform."""
        return self.test[self.kept[g, self.test]]

    def centred(self, g: int, samples: Tensor) -> Tensor:
        """Return features of some samples about their transform's mean, ``(n, d)`` float64."""
        return self.features[g, samples].double() - self.means[g]

    def plain(self, g: int, samples: Tensor) -> Tensor:
        """Return untransformed features about the mean of those that are fitted to transform g."""
        return self.features[0, samples].double() - self._mean(0, self.learned(g))

    def blocks(self) -> Iterator[Tensor]:
        """Iterate over the centred fitted samples of each transform."""
        for g in range(len(self.features)):
            yield self.centred(g, self.learned(g))


class Components(NamedTuple):
    """Principal components: directions ``(d, r)`` float64, and deviations along them ``(r,)``."""

    basis: Tensor
    deviations: Tensor
    share: float  # of the variance, that they hold

    @classmethod
    def of(cls, data: Transformed, limit: int, generator: Generator) -> Components:
        """Decompose; directions within rounding are left out, down to none at all.

        Args:
            data: The features.
            limit: Most components.
            generator: For more than :data:`EXACT_DIM` features: draws where the range is looked
                for (Halko, Martinsson & Tropp 2011).
        """
        place = data.features.device
        if data.dim <= EXACT_DIM:
            axes = torch.eye(data.dim, dtype=torch.float64, device=place)
        else:
            size = data.dim, min(data.dim, limit + 16)
            axes = torch.randn(size, dtype=torch.float64, generator=generator).to(place)
            for _ in range(3):
                axes = torch.linalg.qr(_sum(block.T @ (block @ axes) for block in data.blocks())).Q
        pairs = sum(len(block) for block in data.blocks())
        inside = _sum((block @ axes).T @ (block @ axes) for block in data.blocks()) / pairs
        values, turn = torch.linalg.eigh(inside)
        deviations = values.clamp(min=0).sqrt().flip(0)
        variance = float(_sum(block.square().sum() for block in data.blocks())) / pairs
        size_squared = variance + float(data.means.square().sum(1).max())
        rounding = torch.finfo(data.features.dtype).eps * math.sqrt(size_squared)
        above = deviations > max(CUTOFF * float(deviations[0]), rounding)
        r = min(limit, int(above.sum()))
        share = float(deviations[:r].square().sum()) / variance if r else 0.0
        return cls(axes @ turn.flip(1)[:, :r], deviations[:r], min(share, 1.0))


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return X of least ``‖inputs X − targets‖``; directions inputs hardly take are left out."""
    left, values, right = torch.linalg.svd(inputs, full_matrices=False)
    inverse = torch.where(values > CUTOFF * values[0], 1 / values, 0)
    solution: Tensor = (right.T * inverse) @ (left.T @ targets)
    return solution


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
