"""What more classes than dimensions leave of NC2: limits and the softmax code."""

from __future__ import annotations

import math

from ncmonitor.theory.frames import room


def etf_distance_floor(num_classes: int, dim: int) -> float:
    """Smallest distance of K vectors in R^d to the simplex ETF: ``√(2 − 2√(d/(K−1)))``.

    A Gram matrix of rank d meets P/√(K−1) at no smaller angle. Attained by centred tight frames.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.

    Returns:
        In [0, √2): 0 for d ≥ K − 1. Compare with ``nc2_etf_means`` and ``nc2_etf_w``.

    Source: Cauchy-Schwarz on the d eigenvalues; derived for ncmonitor.
    """
    others, missing = room(num_classes, dim)
    # 1 − x = (1 − x²)/(1 + x): all digits near d = K − 1
    return math.sqrt(2 * (missing / others) / (1 + math.sqrt(1 - missing / others)))


def cosine_std_floor(num_classes: int, dim: int) -> float:
    """Smallest spread of the pairwise cosines of K centred vectors of one length in R^d.

    ``√[(K−d)/(d(K−1)) − 1/(K−1)²] = √(K (K−1−d)/d) / (K−1)``: the Welch bound on the mean squared
    cosine, less the square of the mean, which centring fixes at −1/(K−1). Attained by centred tight
    frames. Vectors of unequal length, or not centred (the extreme: all equal), can lie below.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.

    Returns:
        0 for d ≥ K − 1. Compare with ``nc2_equiangular_std_means``.

    Source: Welch 1974.
    """
    others, missing = room(num_classes, dim)
    return math.sqrt((others + 1) * missing / dim) / others


def softmax_code_distance(num_classes: int, dim: int) -> float:
    """Largest one-vs-rest distance of K unit vectors in R^d, where it is known.

    ``max_V min_k dist(v_k, conv{v_j : j ≠ k})``, attained by a softmax code: ``K/(K−1)`` for
    K ≤ d + 1 (simplex ETF), 1 for d + 1 < K ≤ 2d, ``1 − cos(2π/K)`` for d = 2 (regular polygon),
    0 for more than two vectors on a line.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.

    Returns:
        The distance; ``nan`` for K > 2d > 4, where no closed form is known.

    Source: Jiang et al. 2024, generalised neural collapse.
    """
    others, missing = room(num_classes, dim)
    if missing == 0:
        return (others + 1) / others
    if dim == 1:
        return 0.0
    if others + 1 <= 2 * dim:
        return 1.0
    return 2 * math.sin(math.pi / (others + 1)) ** 2 if dim == 2 else math.nan
