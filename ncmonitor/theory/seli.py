"""The geometry of imbalanced classes (SELI), and what it leaves of NC2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.theory.frames import class_basis


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


class ImbalanceLimits(NamedTuple):
    """NC2 of one set of vectors at the geometry that its class sizes prescribe.

    Attributes:
        cov_norm: ``Std‖v_c‖ / Avg‖v_c‖``, what ``nc2_equinorm_*`` tends to.
        etf_distance: Distance to the simplex ETF, what ``nc2_etf_*`` tends to.
    """

    cov_norm: float
    etf_distance: float


def imbalance_limits(counts: Sequence[int] | Tensor) -> ImbalanceLimits:
    """What mild imbalance leaves of NC2 at full collapse, to first order in ``v = CoV(n_c)``.

    ``CoV‖w_c‖ ≈ (K−2)/(4(K−1)) v`` and ``ETF distance ≈ ½ v √((K−2)/(K−1))``, for the classifier
    and for the means alike. The relative error is of the order of v: see :func:`seli_limits`.

    Args:
        counts: Samples per class, ``(K,)``, all positive, K ≥ 2. Cost K.

    Returns:
        Both 0 for balanced classes and for K = 2.

    Raises:
        InputError: If a class is empty.

    Source: first-order expansion of the SELI Gram (Thrampoulidis et al. 2022).

    Example:
        >>> mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        >>> [round(floor, 4) for floor in imbalance_limits(mnist)]
        [0.0119, 0.0253]
    """
    sizes = _positive(counts)
    others = len(sizes) - 1
    variation = _variation(sizes)
    flat = (others - 1) / others
    return ImbalanceLimits(flat * variation / 4, math.sqrt(flat) * variation / 2)


def seli_limits(counts: Sequence[int] | Tensor) -> tuple[ImbalanceLimits, ImbalanceLimits]:
    """What imbalance leaves of NC2 at the SELI geometry, exactly: for the classifier, the means.

    Args:
        counts: Samples per class, ``(K,)``, all positive, K ≥ 2. Cost K³.

    Returns:
        ``(limits_w, limits_means)``; all 0 for balanced classes and for K = 2.

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


def _nc2_of(vectors: Tensor, eigenvalues: Tensor) -> ImbalanceLimits:
    norms = (vectors.square() @ eigenvalues).sqrt()
    spread = _variation(eigenvalues) ** 2
    # √(2 − 2x) with x = 1/√(1 + spread), without the cancellation
    etf = math.sqrt(2 * spread / (1 + spread + math.sqrt(1 + spread)))
    return ImbalanceLimits(_variation(norms), etf)


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
