"""What the orbit decomposition adds up: orbits of a block of samples, and variances per class."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ncmonitor.errors import InputError

Draws = Literal["full", "independent", "shared"]
DRAWS: Final[tuple[Draws, ...]] = get_args(Draws)


class Orbits(NamedTuple):
    """Orbits of a block of samples."""

    means: Tensor  # (B, d) float64
    residuals: Tensor  # (m, B, d) float64 about them, 0 where masked
    sizes: Tensor  # (B,) float64
    labels: Tensor  # (B,)
    kept: Tensor | None  # (m, B)


class OrbitScatter:
    """Per-class sums that give the two variances, of whole residuals or of projected ones."""

    def __init__(self, num_classes: int, draws: Draws) -> None:
        self.classes, self.draws = num_classes, draws
        # Over the samples of a class: 1, within-orbit variance, and what it adds to the means'.
        self.sums = torch.zeros(3, num_classes, dtype=torch.float64)
        self.common: Tensor | None = None  # Σ residuals per transform and class, (m, K, d)
        self.pairs: Tensor | None = None  # pairs per transform and class, (m, K)

    def add(self, orbits: Orbits, residuals: Tensor) -> None:
        """Add a block; ``residuals`` are ``(m, B, r)``."""
        squares = residuals.square().sum((0, 2))
        degrees = orbits.sizes - int(self.draws != "full")
        variance = squares / degrees
        rows = torch.stack([torch.ones_like(variance), variance, variance / orbits.sizes])
        self.sums = self.sums.to(rows.device).index_add_(1, orbits.labels, rows)
        if self.draws != "shared":
            return
        if self.common is None or self.pairs is None:
            shape = len(residuals), self.classes, residuals.shape[2]
            self.common = residuals.new_zeros(shape)
            self.pairs = residuals.new_zeros(shape[:2])
        self.common.index_add_(1, orbits.labels, residuals)
        kept = residuals.new_ones(residuals.shape[:2]) if orbits.kept is None else orbits.kept
        self.pairs.index_add_(1, orbits.labels, kept.to(residuals))

    def variances(self, of_means: Tensor, present: Tensor) -> tuple[float, float]:
        """Return tr Σ_orbit and tr Σ_between, averaged over classes.

        Args:
            of_means: Variance of the orbit means per present class, ``(K_S,)``.
            present: Indices of these classes.
        """
        counts, within, excess = self.sums.cpu()[:, present]
        orbit = within / counts
        if self.draws == "full":
            return float(orbit.mean()), float(of_means.mean())
        noise = excess / counts * (1 - 1 / counts)
        if self.common is not None and self.pairs is not None:
            # The same transforms for all: a class moves as one, which adds nothing to its spread.
            sizes = self._shared_sizes(counts, present)
            common = self.common[:, present.to(self.common.device)].square().sum((0, 2)).cpu()
            noise = (orbit - common / counts.square() / (sizes - 1)) / sizes
        return float(orbit.mean()), float((of_means - noise).mean())

    def _shared_sizes(self, counts: Tensor, present: Tensor) -> Tensor:
        assert self.pairs is not None
        pairs = self.pairs.cpu()[:, present]
        if bool(((pairs > 0) & (pairs < counts)).any()):
            raise InputError(
                'with draws="shared" a transform keeps the label of a whole class or of none of '
                'it, but the mask differs within a class; draw per sample and pass "independent"'
            )
        return (pairs > 0).sum(0).double()


def orbits_of(features: Tensor, labels: Tensor, kept: Tensor | None) -> Orbits:
    """Return orbit means and residuals about them, through residuals about one of the orbit."""
    wide = features.double()
    if kept is None:
        anchor = wide[0]
        residuals = wide - anchor
        sizes = torch.full_like(anchor[:, 0], len(wide))
    else:
        anchor = wide[kept.int().argmax(0), torch.arange(len(labels), device=labels.device)]
        residuals = (wide - anchor).masked_fill(~kept[..., None], 0)
        sizes = kept.sum(0).double()
    shift = residuals.sum(0) / sizes[:, None]
    residuals = residuals - shift
    if kept is not None:
        residuals = residuals.masked_fill(~kept[..., None], 0)
    return Orbits(anchor + shift, residuals, sizes, labels, kept)
