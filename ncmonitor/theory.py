"""Ground truth you can run: what full collapse is, what no structure looks like, what can be had.

Pure functions in closed form, in float64: constructors of the limiting geometries, the exact
optima of the unconstrained-features model, the geometry of imbalanced classes, the floors where
K > d + 1, and the expectations for features without class signal. Nothing is drawn unless a
generator is passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import betainc
from torch import Generator, Tensor

from ncmonitor._checks import InputError
from ncmonitor._ufm import UfmOptimum as UfmOptimum
from ncmonitor._ufm import axes, class_basis, whole
from ncmonitor._ufm import ufm_objective as ufm_objective
from ncmonitor._ufm import ufm_optimum as ufm_optimum

# -- frames ----------------------------------------------------------------------------------------


def simplex_etf(num_classes: int, dim: int, *, generator: Generator | None = None) -> Tensor:
    """K unit vectors at the largest common angle: ``VVᵀ = K/(K−1) (I − 11ᵀ/K)``.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ K − 1.
        generator: Source of a uniformly random position; without it the vectors lie in the first
            K − 1 coordinates and nothing is drawn.

    Returns:
        ``(K, d)`` float64; the rows sum to zero and have cosines ``−1/(K−1)``.

    Raises:
        InputError: If d < K − 1: K vectors of that Gram matrix have rank K − 1.

    Source: Papyan, Han & Donoho 2020, definition of the simplex ETF.
    """
    rank = whole("num_classes", num_classes, 2) - 1
    if whole("dim", dim, 1) < rank:
        raise InputError(
            f"a simplex ETF of {num_classes} vectors needs dim >= {rank}, got {dim}; "
            f"give more dimensions, or see etf_distance_floor for what is possible in {dim}"
        )
    corners = class_basis(num_classes)[:, 1:] * math.sqrt(num_classes / rank)
    return corners @ axes(rank, dim, generator)


def orthogonal_frame(num_classes: int, dim: int, *, generator: Generator | None = None) -> Tensor:
    """K orthonormal vectors; centring them leaves a simplex ETF.

    Args:
        num_classes: K ≥ 2.
        dim: d ≥ K.
        generator: Source of a uniformly random position; without it they are the first K unit
            vectors and nothing is drawn.

    Returns:
        ``(K, d)`` float64 with ``VVᵀ = I``.

    Raises:
        InputError: If d < K.
    """
    whole("num_classes", num_classes, 2)
    if whole("dim", dim, 1) < num_classes:
        raise InputError(
            f"{num_classes} orthonormal vectors need dim >= {num_classes}, got {dim}; "
            "give more dimensions, or use simplex_etf, which needs one less"
        )
    return axes(num_classes, dim, generator)


# -- imbalanced classes ----------------------------------------------------------------------------


def seli_grams(counts: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices of classifier and class means at the SELI geometry of imbalanced classes.

    ``WWᵀ = (P D P)^{1/2}`` and ``MᵀM = (P D P)^{†/2}`` with ``D = diag(n_c)``, ``P = I − 11ᵀ/K``:
    what the singular vectors of the centred one-hot labels ``Ẑ = P Y`` prescribe, at the scale
    where ``W M = P``. Up to scale it is the limit of cross-entropy with unconstrained features as
    the weight decay vanishes, approached only as slowly as its logarithm.

    Args:
        counts: Samples per class, ``(K,)``, all positive, K ≥ 2. Cost K³.

    Returns:
        ``(gram_w, gram_m)``, each ``(K, K)`` float64 of rank K − 1; for balanced classes ``√n P``
        and ``P/√n``, the simplex ETF.

    Raises:
        InputError: If a class is empty: leave it out, as the metrics do.

    Source: Thrampoulidis, Kini, Vakilian & Behnia 2022, SELI geometry; closed form from ẐẐᵀ = PDP.
    """
    vectors, values = _seli(_positive(counts))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


class ImbalanceFloors(NamedTuple):
    """NC2 of one set of vectors at the geometry that its class sizes prescribe.

    Attributes:
        cov_norm: ``Std‖v_c‖ / Avg‖v_c‖``, what ``nc2_equinorm_*`` tends to.
        etf_distance: Distance to the simplex ETF, what ``nc2_etf_*`` tends to.
    """

    cov_norm: float
    etf_distance: float


def imbalance_floors(counts: Sequence[int] | Tensor) -> ImbalanceFloors:
    """What mild imbalance leaves of NC2 at full collapse, to first order in ``v = CoV(n_c)``.

    ``CoV‖w_c‖ ≈ (K−2)/(4(K−1)) v`` and ``ETF distance ≈ ½ v √((K−2)/(K−1))``, for the classifier
    and for the means alike. The relative error is of the order of v: see :func:`seli_floors`.

    Args:
        counts: Samples per class, ``(K,)``, all positive, K ≥ 2. Cost K.

    Returns:
        Both 0 for balanced classes and for K = 2.

    Raises:
        InputError: If a class is empty.

    Source: first-order expansion of the SELI Gram (Thrampoulidis et al. 2022).

    Example:
        >>> mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        >>> [round(floor, 4) for floor in imbalance_floors(mnist)]
        [0.0119, 0.0253]
    """
    sizes = _positive(counts)
    others = len(sizes) - 1
    variation = _variation(sizes)
    flat = (others - 1) / others
    return ImbalanceFloors(flat * variation / 4, math.sqrt(flat) * variation / 2)


def seli_floors(counts: Sequence[int] | Tensor) -> tuple[ImbalanceFloors, ImbalanceFloors]:
    """What imbalance leaves of NC2 at the SELI geometry, exactly: for the classifier, the means.

    Args:
        counts: Samples per class, ``(K,)``, all positive, K ≥ 2. Cost K³.

    Returns:
        ``(floors_w, floors_means)``; all 0 for balanced classes and for K = 2.

    Raises:
        InputError: If a class is empty.

    Source: the Gram matrices of :func:`seli_grams`.
    """
    vectors, values = _seli(_positive(counts))
    return _nc2_of(vectors, values), _nc2_of(vectors, 1 / values)


def _seli(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return left singular vectors ``(K, K−1)`` and singular values of Ẑ that are not zero.

    ``Ẑ`` has the same ones as ``P D^{1/2}``, one column per class. In a basis of the vectors that
    sum to zero it has full rank, so that no root of a rounding error (1e-8) can come in.
    """
    centred = class_basis(len(sizes))[:, 1:]
    left, values, _ = torch.linalg.svd(centred.T * sizes.sqrt(), full_matrices=False)
    return centred @ left, values


def _nc2_of(vectors: Tensor, eigenvalues: Tensor) -> ImbalanceFloors:
    norms = (vectors.square() @ eigenvalues).sqrt()
    spread = _variation(eigenvalues) ** 2
    # √(2 − 2x) with x = 1/√(1 + spread), without the cancellation
    etf = math.sqrt(2 * spread / (1 + spread + math.sqrt(1 + spread)))
    return ImbalanceFloors(_variation(norms), etf)


def _variation(values: Tensor) -> float:
    return float(values.std(correction=0) / values.mean())


def _positive(counts: Sequence[int] | Tensor) -> Tensor:
    sizes = torch.as_tensor(counts).detach().to("cpu", torch.float64)
    if sizes.ndim != 1 or len(sizes) < 2:
        raise InputError(
            f"counts must be one size per class, at least two, got shape {tuple(sizes.shape)}"
        )
    wrong = ~((sizes > 0) & sizes.isfinite())
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise InputError(
            f"counts must be positive, but counts[{place}] is {float(sizes[place]):g}; "
            "leave absent classes out"
        )
    return sizes


# -- more classes than dimensions ------------------------------------------------------------------


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
    others, missing = _room(num_classes, dim)
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
    others, missing = _room(num_classes, dim)
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
    others, missing = _room(num_classes, dim)
    if missing == 0:
        return (others + 1) / others
    if dim == 1:
        return 0.0
    if others + 1 <= 2 * dim:
        return 1.0
    return 2 * math.sin(math.pi / (others + 1)) ** 2 if dim == 2 else math.nan


def _room(num_classes: int, dim: int) -> tuple[int, int]:
    """Return K − 1, and how many of these dimensions are missing."""
    others = whole("num_classes", num_classes, 2) - 1
    return others, max(0, others - whole("dim", dim, 1))


# -- no structure ----------------------------------------------------------------------------------
#
# Isotropic Gaussian features, n per class, labels that say nothing about them, W independent.


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
    others, _ = _room(num_classes, dim)
    within = whole("samples_per_class", samples_per_class, 1) - 1
    if within == 0:
        return 0.0  # nothing to spread
    small, large = sorted((others, dim))
    return within * small / (large - small - 1) if large > small + 1 else math.inf


def null_nc1_quotient(num_classes: int, dim: int, samples_per_class: int) -> float:
    """Expected tr Σ_W / tr Σ_B without class signal: ``(n−1) K d / (d(K−1) − 2)``, exactly.

    Source: mean of an inverse χ² with d(K−1) degrees of freedom; derived for ncmonitor. Infinite
    for d(K−1) ≤ 2; ``(n−1) K/(K−1)`` for large d.
    """
    others, _ = _room(num_classes, dim)
    within = whole("samples_per_class", samples_per_class, 1) - 1
    freedom = dim * others - 2
    if within == 0:
        return 0.0
    return within * (others + 1) * dim / freedom if freedom > 0 else math.inf


def null_nc1_cdnv(dim: int, samples_per_class: int) -> float:
    """Expected CDNV without class signal: ``(n−1) d / (2(d−2))``, exactly, for any K.

    Source: mean of an inverse χ² with d degrees of freedom; derived for ncmonitor. Infinite for
    d ≤ 2.
    """
    within, freedom = whole("samples_per_class", samples_per_class, 1) - 1, whole("dim", dim, 1) - 2
    if within == 0:
        return 0.0
    return within * dim / (2 * freedom) if freedom > 0 else math.inf


def null_vci(num_classes: int, dim: int, samples_per_class: int) -> float:
    """Expected VCI without class signal: ``1 − max(d, K−1)/(N−1)``, exactly, N = nK; 0 for d ≥ N−1.

    tr(Σ_T⁺Σ_B) is how much of a random d-dimensional subspace of R^{N−1} lies in the K − 1
    dimensions that the labels span, on average d(K−1)/(N−1).

    Source: derived for ncmonitor; the metric is that of Xu & Liu 2023.
    """
    others, _ = _room(num_classes, dim)
    samples = whole("samples_per_class", samples_per_class, 1) * (others + 1)
    return max(0.0, 1 - max(dim, others) / (samples - 1))


def null_abs_cosine(dim: int) -> float:
    """Expected |cos| of two independent random directions: ``Γ(d/2) / (√π Γ((d+1)/2))``.

    About √(2/(πd)); the root mean square is ``1/√d`` exactly.

    Source: first absolute moment of a coordinate on the unit sphere.
    """
    half = whole("dim", dim, 1) / 2
    return math.exp(math.lgamma(half) - math.lgamma(half + 0.5)) / math.sqrt(math.pi)


def null_max_angle(num_classes: int, dim: int) -> float:
    """Expected ``|cos + 1/(K−1)|`` of independent random directions, as ``nc2_max_angle_w`` has it.

    ``a (1 − I_{1−a²}((d−1)/2, ½)) + A (1−a²)^{(d−1)/2}`` with a = 1/(K−1), the regularised
    incomplete beta function I and A = :func:`null_abs_cosine`. Tends to A for K ≫ √d and to a for
    K ≪ √d.

    Source: density ∝ (1 − x²)^{(d−3)/2} of the cosine; derived for ncmonitor.
    """
    others, _ = _room(num_classes, dim)
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
    """
    others, _ = _room(num_classes, dim)
    return {
        "nc1": null_nc1(num_classes, dim, samples_per_class),
        "nc1_quotient": null_nc1_quotient(num_classes, dim, samples_per_class),
        "within_in_span_frac": min(others, dim) / dim,
        "nc1_cdnv": null_nc1_cdnv(dim, samples_per_class),
        "vci": null_vci(num_classes, dim, samples_per_class),
        "nc2_max_angle_w": null_max_angle(num_classes, dim),
        "nc3_self_duality_sq": 2.0,
    }
