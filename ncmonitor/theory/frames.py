"""The limiting geometries: the simplex equiangular tight frame and the orthogonal frame."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Generator, Tensor

from ncmonitor.errors import InputError


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


def whole(name: str, value: object, least: int) -> int:
    """Return ``value`` if it is a whole number not below ``least``; raise InputError otherwise."""
    if not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} must be a whole number and at least {least}, got {value!r}")
    return int(value)


def class_basis(num_classes: int) -> Tensor:
    """Orthonormal basis of R^K, ``(K, K)``: column 0 is constant, the others sum to zero."""
    columns = torch.eye(num_classes, dtype=torch.float64).roll(1, dims=1)
    columns[:, 0] = 1
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def axes(count: int, dim: int, generator: Generator | None) -> Tensor:
    """Orthonormal rows ``(count, dim)``: the first unit vectors, or a uniformly random position."""
    if generator is None:
        return torch.eye(count, dim, dtype=torch.float64)
    draw = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    factor = torch.linalg.qr(draw)
    # The signs make it uniform (Mezzadri 2007).
    columns: Tensor = factor.Q * factor.R.diagonal().sign()  # (dim, count)
    return columns.T


def room(num_classes: int, dim: int) -> tuple[int, int]:
    """Return K − 1, and how many of these dimensions are missing."""
    others = whole("num_classes", num_classes, 2) - 1
    return others, max(0, others - whole("dim", dim, 1))
