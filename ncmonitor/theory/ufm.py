"""The unconstrained-features model: its objective, and its minimisers in closed form.

Features are free parameters, one vector per sample, decayed like the classifier. Training is then
a convex problem in the class-mean logits, with minimisers that are matrices one can write down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, one_hot

from ncmonitor.errors import InputError
from ncmonitor.inputs.labels import check_labels
from ncmonitor.inputs.tensors import check_features
from ncmonitor.theory.frames import axes, class_basis, whole

Loss = Literal["ce", "mse"]


@dataclass(frozen=True, eq=False)
class UfmOptimum:
    """A global minimiser of the unconstrained-features model, with matrices that attain it.

    The minimiser is unique up to a rotation of R^d (and, for cross-entropy with an unregularised
    bias, up to a constant in the bias, which is given as 0).

    Attributes:
        c: ``K √(n λ_W λ_H)``, the one number that decides the phase.
        nontrivial: Whether c < 1. Else weight and features are zero.
        loss_term: The loss without the decays; training error is 0 when ``nontrivial``.
        objective: Loss and decays.
        logit_gap: ``z_cc − z_cj``, the same for all c ≠ j.
        weight_norm: ``‖w_c‖``, the same for all classes.
        feature_norm: ``‖h_i‖``, the same for all samples.
        weight: ``(K, d)`` float64.
        means: The class means ``(K, d)``; every sample sits at its mean.
        bias: ``(K,)``, or ``None`` for a classifier without.
        samples_per_class: n.
    """

    c: float
    nontrivial: bool
    loss_term: float
    objective: float
    logit_gap: float
    weight_norm: float
    feature_norm: float
    weight: Tensor
    means: Tensor
    bias: Tensor | None
    samples_per_class: int

    @property
    def features(self) -> Tensor:
        """All samples, class after class, ``(N, d)``."""
        return self.means.repeat_interleave(self.samples_per_class, dim=0)

    @property
    def labels(self) -> Tensor:
        """Their labels, ``(N,)`` int64."""
        return torch.arange(len(self.means)).repeat_interleave(self.samples_per_class)


class _Solution(NamedTuple):
    """Class-mean logits ``Z = gap P + common 11ᵀ/K`` and ``b = shift 1``, with their loss."""

    gap: float
    common: float
    shift: float
    loss_term: float


def ufm_optimum(
    loss: Loss,
    num_classes: int,
    dim: int,
    samples_per_class: int,
    weight_decay_w: float,
    weight_decay_h: float,
    *,
    weight_decay_b: float | None = None,
    generator: Generator | None = None,
) -> UfmOptimum:
    """Global minimiser of the unconstrained-features model with balanced classes.

    ``min (1/N) Σ ℓ(W h_i + b, y_i) + λ_W/2 ‖W‖² + λ_H/2 ‖H‖² + λ_b/2 ‖b‖²``. With Z = WM and
    c = K√(nλ_Wλ_H) the decays cost at least ``(c/K) ‖Z‖_*``, which makes the problem convex in
    (Z, b) and symmetric in the classes. Its solutions, with P = I − 11ᵀ/K, for c < 1:

    - ``"ce"``: Z = t P, t = log(K/c − K + 1), b = 0: weight and means a simplex ETF.
    - ``"mse"`` without bias: Z = (1 − c) I: an orthogonal frame, whose centred means are an ETF.
    - ``"mse"`` with λ_b = 0: Z = (1 − c) P, b = 1/K: a simplex ETF.
    - ``"mse"`` with λ_b > 0: Z = (1 − c) P + s 11ᵀ/K, s = max(0, 1 − c − c/λ_b), between the two.

    For c ≥ 1 the decays win and Z = 0.

    Args:
        loss: ``"ce"`` for cross-entropy, ``"mse"`` for ``½ ‖z − e_y‖²``, summed over the classes.
            ``torch.nn.MSELoss`` is 2/K times that: multiply the decays by K/2.
        num_classes: K ≥ 2.
        dim: d, at least the rank of Z: K − 1, or K for MSE without bias.
        samples_per_class: n.
        weight_decay_w: λ_W > 0; what torch optimisers call ``weight_decay``.
        weight_decay_h: λ_H > 0.
        weight_decay_b: λ_b ≥ 0, 0 for an unregularised bias; ``None`` for no bias.
        generator: Source of a random position in R^d; without it nothing is drawn.

    Returns:
        The minimum, and a minimiser: classifier ``(K, d)``, class means ``(K, d)``, bias ``(K,)``.

    Raises:
        InputError: For an unknown loss, a decay out of range or a d too small.

    Source: Zhu et al. 2021 (cross-entropy); Tirer & Bruna 2022 and Zhou et al. 2022 (MSE).

    Example:
        >>> optimum = ufm_optimum("ce", 4, 6, 5, 1e-2, 1e-3)
        >>> round(optimum.objective, 10), round(optimum.weight_norm, 5)
        (0.1260289434, 1.617)
    """
    _check_loss(loss)
    count = whole("num_classes", num_classes, 2)
    per_class = whole("samples_per_class", samples_per_class, 1)
    _check_decay("weight_decay_w", weight_decay_w, positive=True)
    _check_decay("weight_decay_h", weight_decay_h, positive=True)
    if weight_decay_b is not None:
        _check_decay("weight_decay_b", weight_decay_b, positive=False)
    c = count * math.sqrt(per_class * weight_decay_w * weight_decay_h)
    z = (_solve_ce if loss == "ce" else _solve_mse)(count, c, weight_decay_b)
    half = _square_root(z, count, whole("dim", dim, 1), generator)
    # ‖W‖² λ_W = n ‖M‖² λ_H at every stationary point
    stretch = (per_class * weight_decay_h / weight_decay_w) ** 0.25
    norm = math.sqrt((z.gap * (count - 1) + z.common) / count)
    decays = c / count * (z.gap * (count - 1) + z.common)
    decays += (weight_decay_b or 0.0) / 2 * count * z.shift**2
    return UfmOptimum(
        c=c,
        nontrivial=c < 1,
        loss_term=z.loss_term,
        objective=z.loss_term + decays,
        logit_gap=z.gap,
        weight_norm=norm * stretch,
        feature_norm=norm / stretch,
        weight=half * stretch,
        means=half / stretch,
        bias=None if weight_decay_b is None else torch.full((count,), z.shift, dtype=half.dtype),
        samples_per_class=per_class,
    )


def ufm_objective(
    weight: Tensor,
    features: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    loss: Loss,
    weight_decay_w: float,
    weight_decay_h: float,
    weight_decay_b: float = 0.0,
) -> Tensor:
    """The objective that :func:`ufm_optimum` minimises, at any point, with any class sizes.

    ``(1/N) Σ ℓ(W h_i + b, y_i) + λ_W/2 ‖W‖² + λ_H/2 ‖H‖² + λ_b/2 ‖b‖²``, differentiable.

    Args:
        weight: ``(K, d)``.
        features: ``(N, d)``, one row per sample.
        bias: ``(K,)`` or ``None``.
        labels: ``(N,)`` int64.
        loss: ``"ce"``, or ``"mse"`` for ``½ ‖z − e_y‖²``.
        weight_decay_w: λ_W.
        weight_decay_h: λ_H.
        weight_decay_b: λ_b.

    Returns:
        A scalar in the dtype of the features; log K (CE) or ½ (MSE) when all parameters are zero.

    Raises:
        InputError: If the shapes do not fit together or the loss is unknown.
    """
    _check_loss(loss)
    _check_shapes(weight, features, bias, labels)
    logits = features @ weight.T  # (N, K)
    decays = weight_decay_w * weight.square().sum() + weight_decay_h * features.square().sum()
    if bias is not None:
        logits = logits + bias
        decays = decays + weight_decay_b * bias.square().sum()
    if loss == "ce":
        return cross_entropy(logits, labels.long()) + decays / 2
    misfit = logits - one_hot(labels.long(), len(weight))
    return misfit.square().sum(1).mean() / 2 + decays / 2


def _solve_ce(count: int, c: float, decay_b: float | None) -> _Solution:
    # Stationarity: 1/(e^t + K − 1) = c/K. log1p keeps the digits of a small t, where c is near 1.
    del decay_b  # softmax does not see a common shift, so 0 is optimal for every λ_b
    gap = math.log1p(count * (1 - c) / c) if c < 1 else 0.0
    return _Solution(gap, 0.0, 0.0, math.log1p((count - 1) * math.exp(-gap)))


def _solve_mse(count: int, c: float, decay_b: float | None) -> _Solution:
    # Soft thresholding of I by c, eigenvalue by eigenvalue; bias and `common` share direction 1.
    # `misfit` is 1 − common − K shift, written so that a small c keeps its digits.
    gap = max(0.0, 1 - c)
    if decay_b is None:
        common, shift, misfit = gap, 0.0, min(1.0, c)
    elif decay_b > 0 and 1 - c - c / decay_b > 0:
        # Unit by unit, a logit costs c and a bias λ_b: where both are used, their prices agree.
        common, shift, misfit = 1 - c - c / decay_b, c / (decay_b * count), c
    else:
        common, shift, misfit = 0.0, 1 / (count * (1 + decay_b)), decay_b / (1 + decay_b)
    return _Solution(gap, common, shift, ((count - 1) * min(1.0, c) ** 2 + misfit**2) / (2 * count))


def _square_root(z: _Solution, count: int, dim: int, generator: Generator | None) -> Tensor:
    """Return ``(K, d)`` with Gram matrix Z."""
    scales = torch.full((count,), z.gap, dtype=torch.float64).sqrt()
    scales[0] = math.sqrt(z.common)
    used = scales > 0
    rank = int(used.sum())
    if dim < rank:
        raise InputError(
            f"the optimum of {count} classes has rank {rank}, so dim must be at least {rank}, "
            f"got {dim}; with fewer dimensions no closed form is known"
        )
    return (class_basis(count) * scales)[:, used] @ axes(rank, dim, generator)


def _check_loss(loss: str) -> None:
    if loss not in ("ce", "mse"):
        raise InputError(f"loss must be 'ce' or 'mse', got {loss!r}")


def _check_decay(name: str, value: float, *, positive: bool) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        reason = "without decay there is no minimiser" if positive else "None means no bias"
        bound = "positive" if positive else "at least 0"
        raise InputError(f"{name} must be {bound} and finite, got {value}; {reason}")


def _check_shapes(weight: Tensor, features: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    check_features(features)
    dim = features.shape[1]
    if weight.ndim != 2 or weight.shape[1] != dim:
        raise InputError(
            f"weight must have shape (K, {dim}), one row per class and as wide as the features, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"bias must have shape ({len(weight)},), one entry per row of weight, "
            f"got {tuple(bias.shape)}; pass None for a classifier without"
        )
    check_labels(labels, len(features), len(weight))
