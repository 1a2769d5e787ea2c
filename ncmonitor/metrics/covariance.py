"""What needs the d × d within-class covariance: VCI, ranks, and the parts of the squared loss.

Class-balanced throughout. With U the resolved span of the class means and V the directions of
within-class variance orthogonal to it, ``Σ_T = [[B + W_uu, W_uv], [W_vu, Λ]]``, and everything
here follows from ``C = W_uu − W_uv Λ⁻¹ W_vu``, the within-class variance in the span that a linear
map cannot predict from outside of it. That C is of the size of Σ_W, not of Σ_T, is what keeps the
digits once features collapse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ncmonitor.geometry.vectors import Span, Vectors


@dataclass(frozen=True)
class WithinCovariance:
    """Within-class covariance beside the class means, class-balanced.

    Attributes:
        within: Σ_W, ``(d, d)`` float64.
        means: Class means about the global mean, K vectors.
        span: Their span; its squared singular values over K are the eigenvalues of Σ_B.
        resolution: Directions with less standard deviation are rounding of the features.
    """

    within: Tensor
    means: Vectors
    span: Span
    resolution: float

    @property
    def count(self) -> int:
        """K."""
        return len(self.means)

    @cached_property
    def deviations(self) -> Tensor:
        """Standard deviation of the class means along U, the square roots of B: ``(r,)``."""
        return self.span.resolved / math.sqrt(self.count)

    @cached_property
    def _outside(self) -> tuple[Tensor, Tensor]:
        """Directions V of within-class variance outside the span, ``(d, q)``, and variances Λ."""
        basis = self.span.basis
        rest = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
        values, turns = torch.linalg.eigh(rest.T @ self.within @ rest)
        if not len(values):
            return rest, values
        rounding = max(self.count, len(basis)) * torch.finfo(values.dtype).eps * values[-1]
        kept = values > torch.clamp(rounding, min=self.resolution**2)
        return (rest @ turns)[:, kept], values[kept]

    @cached_property
    def basis(self) -> Tensor:
        """Directions the data resolves, U first, then V: ``(d, r + q)``."""
        return torch.cat([self.span.basis, self._outside[0]], dim=1)

    @cached_property
    def prediction(self) -> Tensor:
        """``W_uv Λ⁻¹``, ``(r, q)``: how residuals in the span follow from those outside."""
        directions, values = self._outside
        return self.span.basis.T @ self.within @ directions / values

    @cached_property
    def whitened(self) -> Tensor:
        """``B^{−½} C B^{−½}``, ``(r, r)``: unpredictable within-class over between-class."""
        basis, (directions, _) = self.span.basis, self._outside
        inside = basis.T @ self.within @ basis
        rest = inside - self.prediction @ (directions.T @ self.within @ basis)
        rest = (rest + rest.T) / 2
        return rest / self.deviations / self.deviations[:, None]

    @cached_property
    def ratios(self) -> Tensor:
        """Eigenvalues of :attr:`whitened`, ``(r,)``: 0 at collapse."""
        values: Tensor = torch.linalg.eigvalsh(self.whitened)
        return values.clamp(min=0)

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of Σ_T, ``(d,)``, descending."""
        total = self.within.clone()
        for _, block in self.means.blocks():
            total.addmm_(block.T, block, alpha=1 / self.count)
        values: Tensor = torch.linalg.eigvalsh(total)
        return values.flip(0).clamp(min=0)

    @property
    def empty(self) -> bool:
        """Whether all features coincide within rounding."""
        return float(self.spectrum.sum()) <= self.resolution**2


def vci(total: WithinCovariance) -> float:
    """Variability collapse index, ``1 − tr(Σ_T⁺ Σ_B)/rank Σ_B``, as ``Ave_r c_r/(1 + c_r)``.

    Cost: N d² and d³ in float64.

    Args:
        total: Total and between-class covariance, ``(d, d)``, in their spectra.

    Returns:
        In [0, 1]: 0 at collapse; ``1 − d/(N−1)`` without class structure. Invariant to invertible
        linear maps of the features. The best affine probe of the one-hot labels has squared error
        ``(K−1)/K`` times this. ``nan`` if the class means have rank 0.

    Source: Xu & Liu 2023, variability collapse index.
    """
    return float((total.ratios / (1 + total.ratios)).mean()) if total.span.rank else math.nan


def entropy_rank(total: WithinCovariance) -> float:
    """Effective number of directions of all features, ``exp(−Σ p log p)``. Cost: N d² and d³.

    Args:
        total: Total covariance, ``(d, d)``, by its spectrum.

    Returns:
        In [1, d]: K−1 at collapse, near d for isotropic features; ``nan`` if all coincide.

    Source: Roy & Vetterli 2007, effective rank, on the eigenvalues of Σ_T.
    """
    if total.empty:
        return math.nan
    shares = total.spectrum / total.spectrum.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def numerical_rank(total: WithinCovariance, *, threshold: float = 1e-3) -> float:
    """Number of eigenvalues of Σ_T above ``threshold`` times the largest. Cost: N d² and d³.

    Args:
        total: Total covariance, ``(d, d)``, by its spectrum.
        threshold: Share of the largest eigenvalue below which one is negligible.

    Returns:
        K−1 at collapse, d for isotropic features; ``nan`` if all features coincide.

    Source: Masarczyk et al. 2023, tunnel effect.
    """
    if total.empty:
        return math.nan
    return float((total.spectrum > threshold * total.spectrum[0]).sum())


class SquaredLoss(NamedTuple):
    """Parts of ``½ Ave‖Wh + b − e_y‖² + (λ/2)(‖W‖² + ‖b‖²)``.

    Attributes:
        l_nc1: What within-class variability causes at the best linear classifier.
        l_nc23: What that classifier leaves at the class means.
        l_perp: What the actual classifier adds.
    """

    l_nc1: float
    l_nc23: float
    l_perp: float

    def central_path_distance(self, count: int) -> float:
        """Share of :attr:`l_perp`, for K classes; ``nan`` if the loss is zero within rounding."""
        loss = sum(self)
        return (
            self.l_perp / loss if loss > (count * torch.finfo(torch.float64).eps) ** 2 else math.nan
        )


def squared_loss(
    total: WithinCovariance,
    weight: Tensor,
    at_mean: Tensor,
    bias: Tensor,
    mean: Tensor,
    ridge: float = 0.0,
) -> SquaredLoss:
    """Decompose the class-balanced squared loss of a linear classifier.

    The best classifier for these features is ``[W_LS, b_LS] = [M/K, 1/K] A⁻¹`` with A the second
    moments of [h, 1] plus λ. Cost: d³ + K d² and K² d by blocks.

    Args:
        total: Second moments of the features.
        weight: Rows of the classifier, ``(K, d)`` float64.
        at_mean: ``Wμ_G + b``, ``(K,)``.
        bias: ``(K,)``.
        mean: Global mean μ_G, ``(d,)``.
        ridge: λ, half the optimiser's weight decay for a loss summed over the classes; K/2 times
            that for ``torch.nn.MSELoss``. 0 gives plain least squares, on the directions that the
            data resolves.

    Returns:
        The three parts, which sum to the loss; each 0 at the collapsed optimum with λ = 0.

    Source: Han, Papyan & Donoho 2022, decomposition of the MSE loss.
    """
    if ridge > 0:
        return _ridge_loss(total, weight, at_mean, bias, mean, ridge)
    ratios, count, rank = total.ratios, total.count, total.span.rank
    shares = ratios / (1 + ratios)
    nc1 = float((shares / (1 + ratios)).sum()) / (2 * count)
    nc23 = (float(shares.square().sum()) + (count - 1 - rank)) / (2 * count)
    return SquaredLoss(nc1, nc23, _off_least_squares(total, weight, at_mean))


def _off_least_squares(total: WithinCovariance, weight: Tensor, at_mean: Tensor) -> float:
    """``½ tr(Δ_W Σ_T Δ_Wᵀ) + ½‖Wμ_G + b − 1/K‖²``: W_LS goes through (μ_G, 1/K)."""
    count, rank = total.count, total.span.rank
    coordinates = total.means.all() @ total.span.basis / total.deviations / count  # (K, r)
    inverse = torch.linalg.inv(torch.eye(rank, dtype=torch.float64) + total.whitened)
    inside = coordinates @ inverse / total.deviations
    best = torch.cat([inside, -inside @ total.prediction], dim=1)
    difference = weight @ total.basis - best
    within = total.basis.T @ total.within @ total.basis
    spread = ((difference @ within) * difference).sum()
    between = (difference[:, :rank] * total.deviations).square().sum()
    return float(spread + between + (at_mean - 1 / count).square().sum()) / 2


def _ridge_loss(
    total: WithinCovariance,
    weight: Tensor,
    at_mean: Tensor,
    bias: Tensor,
    mean: Tensor,
    ridge: float,
) -> SquaredLoss:
    count, centred = total.count, total.means.all()
    eye = torch.eye(len(mean), dtype=torch.float64)
    moment = total.within + centred.T @ centred / count
    kept = ridge / (1 + ridge)
    system = moment + kept * torch.outer(mean, mean) + ridge * eye
    factor = torch.linalg.cholesky(system)
    best = torch.cholesky_solve(((centred + kept * mean) / count).T, factor).T  # (K, d)
    best_bias = (1 / count - best @ mean) / (1 + ridge)
    best_at_mean = best @ mean + best_bias
    nc1 = (best @ (total.within + ridge * eye) * best).sum() + ridge * best_bias.square().sum()
    nc23 = 0.0
    for part, block in total.means.blocks():
        residual = block @ best.T + best_at_mean
        residual.diagonal(part.start).sub_(1)
        nc23 += float(residual.square().sum())
    difference, shift = weight - best, at_mean - best_at_mean
    perp = (difference @ moment * difference).sum() + shift.square().sum()
    perp += ridge * (difference.square().sum() + (bias - best_bias).square().sum())
    return SquaredLoss(float(nc1) / 2, nc23 / (2 * count), float(perp) / 2)
