"""The geometry of K vectors in R^d: class means or classifier rows, reduced to what NC2 reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Blocks of the tall QR and of the all-pairs cosines; K x K is never formed.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Frame:
    """K vectors with their mean and the spectrum of the centred system, in float64 on the CPU.

    Attributes:
        rows: The vectors, ``(K, d)``; class means are given relative to some common origin.
        mean: Their mean, ``(d,)``: for class means the class-balanced global mean.
        singular_values: Of the centred rows, descending, ``(K − 1,)``, zeros included.
        directions: Right singular vectors that belong to them, ``(d, m)``, m ≤ min(K, d).
        resolution: Length below which a centred vector is rounding of the data.
    """

    rows: Tensor
    mean: Tensor
    singular_values: Tensor
    directions: Tensor
    resolution: float = 0.0

    @classmethod
    def of(cls, rows: Tensor, resolution: float = 0.0) -> Frame:
        """Build the frame of ``(K, d)`` rows, K ≥ 2."""
        rows = rows.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        values, directions = _spectrum(rows - mean)
        spectrum = torch.zeros(len(rows) - 1, dtype=torch.float64)
        kept = min(len(values), len(spectrum))  # a K-th value is rounding: centred rows sum to 0
        spectrum[:kept] = values[:kept]
        return cls(rows, mean, spectrum, directions, resolution)

    @property
    def centred(self) -> Tensor:
        """Rows minus their mean, ``(K, d)``."""
        return self.rows - self.mean

    @cached_property
    def rank(self) -> int:
        """Directions that the data resolves, at most min(K − 1, d).

        A singular value counts when it exceeds both the rounding of the float64 SVD and the
        rounding of the features that the rows are means of (:attr:`resolution`): inverting one
        below it would turn rounding noise into a huge NC1.
        """
        if not len(self.singular_values):
            return 0
        floor = max(self.rows.shape) * torch.finfo(torch.float64).eps * self.singular_values[0]
        resolved = (self.singular_values > floor) & (self.singular_values > self.resolution)
        return min(int(resolved.sum()), self.rows.shape[1])

    @cached_property
    def basis(self) -> Tensor:
        """Orthonormal directions of the resolved span, ``(d, rank)``."""
        return self.directions[:, : self.rank]

    @cached_property
    def coordinates(self) -> Tensor:
        """Centred rows in :attr:`basis`, ``(K, rank)``."""
        return self.centred @ self.basis

    @cached_property
    def degenerate(self) -> int:
        """Number of centred rows whose length is not above :attr:`resolution`."""
        return int((self.centred.norm(dim=1) <= self.resolution).sum())


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and right singular vectors ``(d, m)`` of ``(K, d)`` rows.

    The rows are decomposed themselves, never their Gram matrix, which would halve the digits. For
    K far above d a QR by blocks of rows goes first: the factor R has the same right vectors.
    """
    if len(rows) > 4 * rows.shape[1]:
        factor = rows[:0]
        for block in torch.split(rows, max(BLOCK_ROWS, rows.shape[1])):
            factor = torch.linalg.qr(torch.cat([factor, block]), mode="r").R
        rows = factor
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    return values, right.T
