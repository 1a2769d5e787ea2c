"""NC1: how much of the features' variance lies within the classes.

All three are class-balanced: every present class weighs the same, so that the simplex ETF stays
the target under imbalance (for equal counts all conventions agree).
"""

from __future__ import annotations

import math

from torch import Tensor

from ncmonitor.geometry import Frame


def nc1(whitened: Tensor, counts: Tensor, frame: Frame) -> float:
    """Within-class variability in the span of the class means, ``tr(Σ_W Σ_B⁺)/K``.

    Equal to ``Ave ‖Ṁ⁺(h − μ_y)‖²`` over classes and their samples: no d × d matrix, no
    pseudo-inverse of a covariance. Blind to variance outside the span and to directions the
    class means have lost: read it beside ``within_in_span_frac`` and ``nc1_rank``.

    Args:
        whitened: Per class, the sum of ``‖Ṁ⁺(h − μ_c)‖²``, ``(K,)``.
        counts: Samples per class, ``(K,)``.
        frame: The class means.

    Returns:
        In [0, ∞): 0 at collapse; about ``(n−1)(K−1)/(d−K)`` for n samples a class without class
        structure, d > K. ``nan`` if the means have rank 0 or every class has a single sample.

    Source: Papyan, Han & Donoho 2020, NC1 and Fig. 6. The authors' notebook omits the 1/K.
    """
    if frame.rank == 0 or float(counts.max()) <= 1:
        return math.nan
    return float((whitened / counts).mean())


def nc1_quotient(variances: Tensor, counts: Tensor, frame: Frame) -> float:
    """Within-class over between-class variance, ``tr Σ_W / tr Σ_B``.

    Args:
        variances: ``Ave ‖h − μ_c‖²`` per class, ``(K,)``.
        counts: Samples per class, ``(K,)``.
        frame: The class means.

    Returns:
        In [0, ∞): 0 at collapse; about ``n`` for n samples a class without class structure.
        ``nan`` if all class means coincide within rounding or every class has a single sample.

    Source: Tirer, Huang & Niles-Weed 2023.
    """
    if frame.degenerate == len(frame.rows) or float(counts.max()) <= 1:
        return math.nan
    between = float(frame.singular_values.square().sum()) / len(frame.rows)
    return float(variances.mean()) / between


def within_in_span_frac(in_span: Tensor, counts: Tensor, variances: Tensor, frame: Frame) -> float:
    """Share of the within-class variance inside the span of the class means.

    ``tr(Uᵀ Σ_W U) / tr Σ_W`` with U an orthonormal basis of the span: what NC1 can see.

    Args:
        in_span: Per class, the sum of ``‖Uᵀ(h − μ_c)‖²``, ``(K,)``.
        counts: Samples per class, ``(K,)``.
        variances: ``Ave ‖h − μ_c‖²`` per class, ``(K,)``.
        frame: The class means.

    Returns:
        In [0, 1]: not fixed by collapse; (K−1)/d for random directions. ``nan`` without any
        within-class variance, or if the means have rank 0.

    Source: ncmonitor, companion of NC1.
    """
    total = float(variances.mean())
    if total == 0 or frame.rank == 0:
        return math.nan
    return float((in_span / counts).mean()) / total
