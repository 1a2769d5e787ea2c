"""What the metrics are without structure.

Isotropic Gaussian features, n per class, labels that say nothing about them, W independent.
"""

from __future__ import annotations

import math

from scipy.special import betainc

from ncmonitor.theory.frames import room, whole


def null_nc1(num_classes: int, dim: int, samples_per_class: int) -> float:
    """Expected NC1 without class signal: ``(n−1)(K−1)/(d−K)`` for d > K, exactly.

    Σ_W (divided by n) and Ṁ are independent, E Σ_W = (1 − 1/n) I, and n MᵀM is a Wishart matrix on
    K − 1 dimensions with d degrees of freedom: E tr of its inverse is (K−1)/(d−K). For d < K − 2
    the roles change, ``(n−1) d/(K−2−d)``.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.
        samples_per_class: n ≥ 1.

    Returns:
        The expectation; infinite for K − 2 ≤ d ≤ K, where nearly flat means are too likely.

    Source: mean of the inverse Wishart distribution; derived for ncmonitor.
    """
    others, _ = room(num_classes, dim)
    within = whole("samples_per_class", samples_per_class, 1) - 1
    if within == 0:
        return 0.0  # nothing to spread
    small, large = sorted((others, dim))
    return within * small / (large - small - 1) if large > small + 1 else math.inf


def null_nc1_quotient(num_classes: int, dim: int, samples_per_class: int) -> float:
    """Expected tr Σ_W / tr Σ_B without class signal: ``(n−1) K d / (d(K−1) − 2)``, exactly.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.
        samples_per_class: n ≥ 1.

    Returns:
        Infinite for d(K−1) ≤ 2; ``(n−1) K/(K−1)`` for large d.

    Raises:
        InputError: For a K, d or n that is no such number.

    Source: mean of an inverse χ² with d(K−1) degrees of freedom; derived for ncmonitor.
    """
    others, _ = room(num_classes, dim)
    within = whole("samples_per_class", samples_per_class, 1) - 1
    freedom = dim * others - 2
    if within == 0:
        return 0.0
    return within * (others + 1) * dim / freedom if freedom > 0 else math.inf


def null_nc1_cdnv(dim: int, samples_per_class: int) -> float:
    """Expected CDNV without class signal: ``(n−1) d / (2(d−2))``, exactly, for any K.

    Args:
        dim: d ≥ 1.
        samples_per_class: n ≥ 1.

    Returns:
        Infinite for d ≤ 2.

    Raises:
        InputError: For a d or n that is no such number.

    Source: mean of an inverse χ² with d degrees of freedom; derived for ncmonitor.
    """
    within, freedom = whole("samples_per_class", samples_per_class, 1) - 1, whole("dim", dim, 1) - 2
    if within == 0:
        return 0.0
    return within * dim / (2 * freedom) if freedom > 0 else math.inf


def null_vci(num_classes: int, dim: int, samples_per_class: int) -> float:
    """Expected VCI without class signal: ``1 − max(d, K−1)/(N−1)``, exactly, N = nK; 0 for d ≥ N−1.

    tr(Σ_T⁺Σ_B) is how much of a random d-dimensional subspace of R^{N−1} lies in the K − 1
    dimensions that the labels span, on average d(K−1)/(N−1).

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.
        samples_per_class: n ≥ 1.

    Returns:
        In [0, 1].

    Raises:
        InputError: For a K, d or n that is no such number.

    Source: derived for ncmonitor; the metric is that of Xu & Liu 2023.
    """
    others, _ = room(num_classes, dim)
    samples = whole("samples_per_class", samples_per_class, 1) * (others + 1)
    return max(0.0, 1 - max(dim, others) / (samples - 1))


def null_abs_cosine(dim: int) -> float:
    """Expected |cos| of two independent random directions: ``Γ(d/2) / (√π Γ((d+1)/2))``.

    Args:
        dim: d ≥ 1.

    Returns:
        About √(2/(πd)); the root mean square is ``1/√d`` exactly.

    Raises:
        InputError: For a d that is no such number.

    Source: first absolute moment of a coordinate on the unit sphere.
    """
    half = whole("dim", dim, 1) / 2
    return math.exp(math.lgamma(half) - math.lgamma(half + 0.5)) / math.sqrt(math.pi)


def null_max_angle(num_classes: int, dim: int) -> float:
    """Expected ``|cos + 1/(K−1)|`` of independent random directions, as ``nc2_max_angle_w`` has it.

    ``a (1 − I_{1−a²}((d−1)/2, ½)) + A (1−a²)^{(d−1)/2}`` with a = 1/(K−1), the regularised
    incomplete beta function I and A = :func:`null_abs_cosine`.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.

    Returns:
        Tends to A for K ≫ √d and to a for K ≪ √d.

    Raises:
        InputError: For a K or d that is no such number.

    Source: density ∝ (1 − x²)^{(d−3)/2} of the cosine; derived for ncmonitor.
    """
    others, _ = room(num_classes, dim)
    if dim == 1:
        return 1.0  # the cosine is 1 or −1
    ideal, power = 1 / others, (dim - 1) / 2
    inside = 1 - float(betainc(power, 0.5, 1 - ideal**2))
    return ideal * inside + null_abs_cosine(dim) * math.pow(1 - ideal**2, power)


def null_expectations(num_classes: int, dim: int, samples_per_class: int) -> dict[str, float]:
    """The metrics whose expectation without class signal is exact, by their catalogue names.

    Features are isotropic Gaussian, n per class; W has random rows, independent of them. For
    metrics with no closed form, shuffle the labels and measure.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ 1.
        samples_per_class: n ≥ 1.

    Returns:
        Name to expectation.

    Raises:
        InputError: For a K, d or n that is no such number.

    Source: the functions of this module.
    """
    others, _ = room(num_classes, dim)
    return {
        "nc1": null_nc1(num_classes, dim, samples_per_class),
        "nc1_quotient": null_nc1_quotient(num_classes, dim, samples_per_class),
        "within_in_span_frac": min(others, dim) / dim,
        "nc1_cdnv": null_nc1_cdnv(dim, samples_per_class),
        "vci": null_vci(num_classes, dim, samples_per_class),
        "nc2_max_angle_w": null_max_angle(num_classes, dim),
        "nc3_self_duality_sq": 2.0,
    }
