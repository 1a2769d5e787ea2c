"""NC1: how much of the features' variance lies within the classes.

All but the separation fuzziness are averages over classes of averages over samples; ``weights``
says what a class counts in the outer one: 1/K by default, so that the simplex ETF stays the target
under imbalance (for equal counts all conventions agree).
"""

from __future__ import annotations

import math

from torch import Tensor

from ncmonitor.geometry.pairs import Tile, pair_average
from ncmonitor.geometry.vectors import Vectors


def nc1(whitened: Tensor, weights: Tensor) -> float:
    """Within-class variability in the span of the class means, ``tr(Σ_W Σ_B⁺)/K``.

    Equal to ``Ave ‖Ṁ⁺(h − μ_y)‖²`` over classes and their samples: no d × d matrix, no
    pseudo-inverse of a covariance. Blind to variance outside the span and to directions the
    class means have lost: read it beside ``within_in_span_frac`` and ``nc1_rank``.

    Args:
        whitened: ``Ave ‖Ṁ⁺(h − μ_c)‖²`` per class, ``(K,)``: NC1 of that class. Cost N d K.
        weights: What each class counts, ``(K,)``, summing to 1.

    Returns:
        In [0, ∞): 0 at collapse; about ``(n−1)(K−1)/(d−K)`` for n samples a class without class
        structure, d > K. ``nan`` if the means have rank 0 or every class has a single sample.

    Source: Papyan, Han & Donoho 2020, NC1 and Fig. 6. The authors' notebook omits the 1/K.
    """
    return float((whitened * weights).sum())


def nc1_quotient(variances: Tensor, weights: Tensor, singular_values: Tensor) -> float:
    """Within-class over between-class variance, ``tr Σ_W / tr Σ_B``.

    Args:
        variances: ``Ave ‖h − μ_c‖²`` per class, ``(K,)``.
        weights: What each class counts, ``(K,)``, summing to 1.
        singular_values: Of the centred means, ``(K − 1,)``.

    Returns:
        In [0, ∞): 0 at collapse; about ``n`` for n samples a class without class structure.
        ``nan`` if all class means coincide within rounding or every class has a single sample.

    Source: Tirer, Huang & Niles-Weed 2023.
    """
    between = float(singular_values.square().sum()) / len(variances)
    return float((variances * weights).sum()) / between


def within_in_span_frac(in_span: Tensor, variances: Tensor, weights: Tensor) -> float:
    """Share of the within-class variance inside the span of the class means.

    ``tr(Uᵀ Σ_W U) / tr Σ_W`` with U an orthonormal basis of the span: what NC1 can see.

    Args:
        in_span: ``Ave ‖Uᵀ(h − μ_c)‖²`` per class, ``(K,)``.
        variances: ``Ave ‖h − μ_c‖²`` per class, ``(K,)``.
        weights: What each class counts, ``(K,)``, summing to 1.

    Returns:
        In [0, 1]: not fixed by collapse; (K−1)/d for random directions. ``nan`` without any
        within-class variance, or if the means have rank 0.

    Source: ncmonitor, companion of NC1.
    """
    total = float((variances * weights).sum())
    return float((in_span * weights).sum()) / total if total > 0 else math.nan


def nc1_cdnv(centred: Vectors, variances: Tensor, resolution: float) -> float:
    """Class-distance normalised variance, ``Avg (v_c + v_c′)/(2‖μ_c − μ_c′‖²)`` over pairs.

    Args:
        centred: The class means. Cost K²d; above 4096 classes a sample of pairs.
        variances: ``Ave ‖h − μ_c‖²`` per class, ``(K,)``.
        resolution: Distance at which two means coincide.

    Returns:
        In [0, ∞): 0 at collapse; ``(n−1)d/(2(d−2))`` without class structure. ``nan`` if two class
        means coincide within rounding.

    Source: Galanti, György & Hutter 2022, CDNV.
    """

    def value(tile: Tile) -> Tensor:
        distances = tile.square_distances
        distances = distances.masked_fill(distances <= resolution**2, math.nan)
        return (variances[tile.first] + variances[tile.second]) / (2 * distances)

    return pair_average(centred, value)


def nc1_cdnv_directional(directional: Tensor) -> float:
    """CDNV with the variance along the line between two means, ``Avg δᵀΣ_cδ/‖δ‖⁴``.

    Over ordered pairs that is the average of ``(δᵀΣ_cδ + δᵀΣ_c′δ)/(2‖δ‖⁴)``.

    Args:
        directional: Per class c, the average over samples and over classes c′ ≠ c of
            ``((h − μ_c)·δ)²/‖δ‖⁴``, ``(K,)``. Cost N K r in float64; above 4096 classes c′ runs
            over a seeded sample.

    Returns:
        In [0, ∞): 0 at collapse; ``(n−1)/(2(d−2))`` without class structure.

    Source: directional CDNV of few-shot bounds, 2025; the factor ½ varies between papers.
    """
    return float(directional.mean())
