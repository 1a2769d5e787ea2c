"""Opt-in accumulators beside the second pass: what else is computed from the same residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ncmonitor.geometry.pairs import sampled_columns
from ncmonitor.geometry.vectors import Span, Vectors
from ncmonitor.inputs.tensors import Scratch
from ncmonitor.statistics.class_means import ClassMeans
from ncmonitor.statistics.process_group import ProcessGroup


@dataclass(frozen=True)
class Block:
    """A block of samples as the second pass sees it.

    Attributes:
        features: ``(n, d)``.
        labels: ``(n,)``; K for a sample to leave out.
        residuals: Features minus the means of their classes, ``(n, d)`` float64.
        projected: The same in the span of the means, ``(n, r)``, in the unit of the centres.
    """

    features: Tensor
    labels: Tensor
    residuals: Tensor
    projected: Tensor


class Accumulator(Protocol):
    """Something that takes in every block of the second pass."""

    def absorb(self, block: Block) -> None:
        """Take in a block."""

    def meet(self, ranks: ProcessGroup) -> None:
        """Make the sums those of all ranks, once each has taken in its last block."""


class WithinClassScatter:
    """Class-balanced within-class covariance, d × d.

    Args:
        counts: Samples per class, ``(K,)``; classes without samples do not count.
        dim: d.
        device: Where the features are.
    """

    def __init__(self, counts: Tensor, dim: int, device: torch.device) -> None:
        present = counts > 0
        weights = torch.where(present, 1 / (present.sum() * counts.double()), 0.0)
        self._roots = torch.cat([weights, weights.new_zeros(1)]).sqrt().to(device)
        self._sum = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def absorb(self, block: Block) -> None:
        """Take in a block."""
        rows = block.residuals * self._roots[block.labels][:, None]
        self._sum.addmm_(rows.T, rows)

    def meet(self, ranks: ProcessGroup) -> None:
        """Make the sums those of all ranks."""
        self._sum = ranks.sum(self._sum)

    @property
    def covariance(self) -> Tensor:
        """Σ_W, ``(d, d)`` float64 on the CPU."""
        return self._sum.cpu()


class Fuzziness:
    """``tr(SS_w SS_b⁺)`` with every sample of weight one.

    Args:
        centres: Of the split.
        span: Of the class means, in the basis of which residuals are projected.
        weighted: Span of ``√(K n_c/N) (μ_c − μ̄)``, the same directions under sample weights.
        samples: N.
    """

    def __init__(self, centres: ClassMeans, span: Span, weighted: Span, samples: int) -> None:
        turn = span.basis.T @ weighted.basis / (weighted.resolved / centres.unit)
        self._turn = turn.to(centres.basis)
        self._scale = len(centres.present) / samples
        self._classes = centres.moments.num_classes
        self._sum = torch.zeros((), dtype=torch.float64, device=centres.device)

    def absorb(self, block: Block) -> None:
        """Take in a block."""
        squares = (block.projected @ self._turn).square_().sum(1, dtype=torch.float64)
        self._sum += torch.where(block.labels < self._classes, squares, 0.0).sum()

    def meet(self, ranks: ProcessGroup) -> None:
        """Make the sums those of all ranks."""
        self._sum = ranks.sum(self._sum)

    @property
    def value(self) -> float:
        """The separation fuzziness."""
        return float(self._sum) * self._scale


class Directional:
    """Variance of each class along the lines to the other class means, over ‖δ‖⁴.

    In float64: with means that nearly coincide, ‖δ‖⁻⁴ asks for it.

    Args:
        centres: Of the split.
        means: Its class means about the global mean.
        span: Their span.
        resolution: Distance at which two means coincide.
    """

    def __init__(self, centres: ClassMeans, means: Vectors, span: Span, resolution: float) -> None:
        count, device = len(means), centres.device
        self._position = centres.position
        self._counts = centres.moments.counts[centres.present].double()
        self._basis = (span.basis / centres.unit).to(device)
        self._own = torch.cat([block.to(device) @ self._basis for _, block in means.blocks()])
        columns = sampled_columns(count)
        self._others = self._own[columns.to(device)]
        exact = "donot_use_mm_for_euclid_dist"  # by differences: means may nearly coincide
        distances = torch.cdist(self._own, self._others, compute_mode=exact).square()  # (K, m)
        self._weights = distances.masked_fill(
            distances <= (resolution / centres.unit) ** 2, math.nan
        ).pow_(-2)
        same = columns.to(device) == torch.arange(count, device=device)[:, None]
        self._weights.masked_fill_(same, 0.0).div_((~same).sum(1, keepdim=True))
        self._sums = torch.zeros(count, dtype=torch.float64, device=device)

    def absorb(self, block: Block) -> None:
        """Take in a block."""
        position = self._position[block.labels]
        inside = block.residuals @ self._basis
        along = inside @ self._others.T - (inside * self._own[position]).sum(1, keepdim=True)
        values = (along.square_() * self._weights[position]).sum(1)
        kept = torch.where(block.labels < len(self._position) - 1, values, 0.0)
        self._sums.index_add_(0, position, kept)

    def meet(self, ranks: ProcessGroup) -> None:
        """Make the sums those of all ranks."""
        self._sums = ranks.sum(self._sums)

    @property
    def per_class(self) -> Tensor:
        """Average over samples and other classes, ``(K_S,)`` float64 on the CPU."""
        return (self._sums / self._counts).cpu()


class Margin:
    """Margins between the two nearest class means, sample by sample.

    Args:
        centres: Those that decide.
    """

    def __init__(self, centres: ClassMeans) -> None:
        self._centres = centres
        self._scratch = Scratch()
        self._values: list[Tensor] = []

    def absorb(self, features: Tensor, labels: Tensor, scores: Tensor) -> None:
        """Take in a block; distances are taken as differences from the two best of ``scores``."""
        centres = self._centres
        if scores.shape[1] < 2:
            return
        pair = centres.present[scores.topk(2).indices]
        one, two = (
            centres.moments.sums.residuals(features, side, self._scratch).norm(dim=1)
            for side in pair.unbind(1)
        )
        margin = ((two - one).abs() / (two + one)).nan_to_num(nan=0.0)  # 0/0: both at the sample
        counted = labels < centres.moments.num_classes
        self._values.append(torch.where(counted, margin, torch.nan))

    def meet(self, ranks: ProcessGroup) -> None:
        """Take in the margins of all ranks."""
        mine = torch.cat(self._values).cpu() if self._values else torch.empty(0)
        self._values = [values for values in ranks.gather(mine) if len(values)]

    @property
    def median(self) -> float:
        """The median; ``nan`` without a second class mean."""
        if not self._values:
            return math.nan
        values = torch.cat(self._values)
        values = values[~values.isnan()].sort().values
        return float(values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
