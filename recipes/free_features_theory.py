"""What the unconstrained-features model can reach with classes of unequal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ncmonitor.measurement.measure import measure_collapse
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.theory import seli_grams


def lower_bound(
    weight: Tensor,
    features: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    loss: Literal["ce", "mse"],
    weight_decay_w: float,
    weight_decay_h: float,
    weight_decay_b: float = 0.0,
) -> float:
    """A number that no point of the model can fall below, for any class sizes and dimension.

    The decays cost at least ``μ ‖Z‖_*`` with ``μ = √(λ_W λ_H)``, Z the logits without bias; that
    makes the model a convex problem, and every Y with ``‖Y‖ ≤ μ`` gives a bound by Fenchel's
    inequality. Y is the gradient of the loss by the logits at the point given, shrunk to that norm,
    so that the bound is the optimum itself where the point is optimal.

    Args:
        weight: ``(K, d)``.
        features: ``(N, d)``.
        bias: ``(K,)`` or ``None``.
        labels: ``(N,)`` int64.
        loss: ``"ce"``, or ``"mse"`` for ``½ ‖z − e_y‖²``.
        weight_decay_w: λ_W.
        weight_decay_h: λ_H.
        weight_decay_b: λ_b.

    Returns:
        The bound; ``−inf``, which says nothing, for cross-entropy with an unregularised bias and
        for parameters that are not finite.

    Source: Fenchel duality for the nuclear-norm form of the model; derived for ncmonitor.
    """
    targets = F.one_hot(labels, len(weight)).double()
    logits = features.double() @ weight.double().T
    samples = len(labels)
    if bias is not None:
        if weight_decay_b == 0:
            if loss == "ce":
                return -math.inf
            bias = (targets - logits).mean(0)  # the best one: Y must sum to 0 over the samples
        logits = logits + bias.double()
    residual = (logits.softmax(1) if loss == "ce" else logits) - targets  # N times the gradient
    if not bool(residual.isfinite().all()):
        return -math.inf
    strength = float(torch.linalg.matrix_norm(residual.T @ residual, 2)) ** 0.5 / samples
    shrink = min(1.0, math.sqrt(weight_decay_w * weight_decay_h) / max(strength, 1e-300))
    residual = shrink * residual
    if loss == "ce":
        bound = float(torch.special.entr(targets + residual).sum()) / samples
    else:
        bound = -float(residual.square().sum() / 2 + (residual * targets).sum()) / samples
    if bias is not None and weight_decay_b > 0:
        bound -= float(residual.mean(0).square().sum()) / (2 * weight_decay_b)
    return bound


def seli_limit(counts: Sequence[int], metrics: Sequence[str] = ()) -> CollapseReport:
    """Measure the SELI geometry: what full collapse of unequal classes looks like to the metrics.

    The limit of cross-entropy for decays that vanish, approached as slowly as their logarithm. The
    geometry at decays that do not is what ``ncmonitor fit ufm`` finds.

    Args:
        counts: Samples per class, all positive.
        metrics: As in :func:`~ncmonitor.measurement.measure.measure_collapse`, such as
            ``minority_cos``.

    Returns:
        The report of features and classifier at that geometry.
    """
    values, vectors = torch.linalg.eigh(seli_grams(counts)[0])
    values, vectors = values[1:], vectors[:, 1:]  # the first is 0: rank K − 1
    labels = torch.arange(len(counts)).repeat_interleave(torch.as_tensor(counts))
    means = vectors / values.sqrt()  # WWᵀ = VΛVᵀ, W M = P
    weight = vectors * values.sqrt()
    return measure_collapse(means[labels], labels, weight, metrics=list(metrics) or "default")
