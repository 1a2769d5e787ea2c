"""Groups that act on point clouds (B, n, d): rotations, reflections, translations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import permutations, product
from typing import Any, Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, check_whole
from ncmonitor.symmetry.groups.group import Action, Flow, Group, table_of
from ncmonitor.symmetry.groups.resampling import number

# A signed permutation: coordinate i of the new point is sign[i] times coordinate axis[i].
_Signed = tuple[tuple[int, int], ...]
_AXES: Final = "xyz"


def cube_rotations(*, reflections: bool = False) -> Group:
    """The 24 rotations of the cube, which exchange and negate coordinates: exact, closed.

    An element is named by the new coordinates: ``-y+x+z`` turns by 90° about z.

    Args:
        reflections: Whether its 24 reflections are elements too.

    Returns:
        24 elements, or 48; exact, closed.
    """
    elements: list[_Signed] = [
        tuple(zip(axes, signs, strict=True))
        for axes in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    if not reflections:
        elements = [e for e in elements if torch.linalg.det(_matrix_of(e)) > 0]
    actions = [Action(_signed_name(e), partial(_exchange, signed=e)) for e in elements]
    return Group.of(
        "cube_symmetries" if reflections else "cube_rotations",
        actions[1:],  # the first has the axes in order and no sign
        kind="points",
        exact=True,
        table=table_of(elements, _compose),
    )


def orthogonal(count: int = 8, *, dim: int = 3, seed: int = 0, reflections: bool = True) -> Group:
    """Random elements of O(d), uniform: points ``(B, n, d)`` turned and reflected; a set.

    Args:
        count: Elements besides the identity.
        dim: Coordinates of a point.
        seed: Of the generator, which is its own.
        reflections: False takes them from SO(d).

    Returns:
        The identity and ``count`` drawn elements.
    """
    matrices = _orthogonal(count, dim, seed, reflections)
    actions = []
    for index, matrix in enumerate(matrices, 1):
        word = "rotation" if torch.linalg.det(matrix) > 0 else "reflection"
        actions.append(Action(f"{word}{index}", partial(_move, matrix=matrix, offset=None)))
    return Group.of(f"{'' if reflections else 'S'}O{dim}", actions, kind="points", drawn=True)


def euclidean(
    count: int = 8,
    *,
    dim: int = 3,
    seed: int = 0,
    reach: float = 1.0,
    reflections: bool = True,
) -> Group:
    """Random elements of E(d): an element of O(d), then a translation; a set.

    Args:
        count: Elements besides the identity.
        dim: Coordinates of a point.
        seed: Of the generator, which is its own.
        reach: Standard deviation of the translation in each coordinate, in the points' unit.
        reflections: False leaves reflections out: SE(d).

    Returns:
        The identity and ``count`` drawn elements.
    """
    matrices = _orthogonal(count, dim, seed, reflections)
    offsets = _offsets(count, dim, seed, reach)
    actions = [
        Action(f"isometry{i}", partial(_move, matrix=matrix, offset=offset))
        for i, (matrix, offset) in enumerate(zip(matrices, offsets, strict=True), 1)
    ]
    return Group.of(f"{'' if reflections else 'S'}E{dim}", actions, kind="points", drawn=True)


def translations(count: int = 8, *, dim: int = 3, seed: int = 0, reach: float = 1.0) -> Group:
    """Random translations of point clouds; a set.

    Args:
        count: Elements besides the identity.
        dim: Coordinates of a point.
        seed: Of the generator, which is its own.
        reach: Standard deviation in each coordinate, in the points' unit.

    Returns:
        The identity and ``count`` drawn translations.
    """
    actions = [
        Action(f"translation{i}", partial(_move, matrix=None, offset=offset))
        for i, offset in enumerate(_offsets(count, dim, seed, reach), 1)
    ]
    return Group.of("translations", actions, kind="points", drawn=True)


def point_rotation_flow(axis: Sequence[float] = (0.0, 0.0, 1.0)) -> Flow:
    """Turn points in space by t degrees about an axis through the origin (right-handed).

    Args:
        axis: Its direction, of any length but 0.

    Returns:
        The flow ``rotation``; t in degrees.

    Raises:
        InputError: If the axis has no direction, or not three coordinates.
    """
    direction = _direction(axis)
    if len(direction) != 3:
        raise InputError(f"axis must have three coordinates, got {len(direction)}")
    a, b, c = (direction / direction.norm()).tolist()
    generator = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64)
    function = partial(_turn, generator=generator)
    return Flow("rotation", function, "points", "degrees", "none", "none: exact", step=1.0)


def point_translation_flow(direction: Sequence[float] = (1.0, 0.0, 0.0)) -> Flow:
    """Move points by t times a vector.

    Args:
        direction: The vector, of any length but 0.

    Returns:
        The flow ``translation``; t in units of the vector.
    """
    function = partial(_slide, direction=_direction(direction))
    return Flow("translation", function, "points", "length", "none", "none: exact", step=0.01)


def _compose(a: _Signed, b: _Signed) -> _Signed:
    return tuple((b[axis][0], sign * b[axis][1]) for axis, sign in a)


def _matrix_of(signed: _Signed) -> Tensor:
    matrix = torch.zeros(3, 3)
    for row, (axis, sign) in enumerate(signed):
        matrix[row, axis] = sign
    return matrix


def _signed_name(signed: _Signed) -> str:
    return "".join(f"{'+' if sign > 0 else '-'}{_AXES[axis]}" for axis, sign in signed)


def _exchange(x: Tensor, *, signed: _Signed) -> Tensor:
    _check_points(x, 3)
    if x.dtype is torch.bool or x.dtype == torch.uint8:
        raise InputError(f"coordinates are negated, which {x.dtype} cannot hold; convert them")
    out: Tensor = x.index_select(-1, torch.tensor([axis for axis, _ in signed], device=x.device))
    return out * torch.tensor([sign for _, sign in signed], device=x.device, dtype=x.dtype)


def _move(x: Tensor, *, matrix: Tensor | None, offset: Tensor | None) -> Tensor:
    """Return ``Rx + v`` for each point, in the points' own precision."""
    given = matrix if matrix is not None else offset
    _check_points(x, len(given) if given is not None else 0)
    _check_floating(x)
    if matrix is not None:
        x = _times(matrix, x)
    return x if offset is None else x + offset.to(x)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    # No matmul: autocast would change its dtype, and TF32 its precision.
    return (x[..., None, :] * matrix.to(x)).sum(-1)


def _turn(x: Tensor, t: float | Tensor, *, generator: Tensor) -> Tensor:
    """Rodrigues' formula: exp(θA) = 1 + sin θ A + (1 − cos θ) A² for a unit axis."""
    _check_points(x, 3)
    _check_floating(x)
    angle = number(t) * (math.pi / 180)
    matrix = generator * angle.sin() + generator @ generator * (1 - angle.cos())
    return x + _times(matrix, x)


def _slide(x: Tensor, t: float | Tensor, *, direction: Tensor) -> Tensor:
    _check_points(x, len(direction))
    _check_floating(x)
    return x + (direction * number(t)).to(x)


def _orthogonal(count: int, dim: int, seed: int, reflections: bool) -> list[Tensor]:
    _check_counts(count, dim)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    factor = torch.linalg.qr(drawn)
    # The signs make it uniform (Mezzadri 2007).
    matrices = factor.Q * factor.R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    if not reflections:
        matrices[:, :, 0] *= torch.linalg.det(matrices).sign()[:, None]
    return list(matrices)


def _offsets(count: int, dim: int, seed: int, reach: float) -> list[Tensor]:
    _check_counts(count, dim)
    if isinstance(reach, bool) or not isinstance(reach, int | float) or not 0 < reach < math.inf:
        raise InputError(f"reach must be a finite length above 0, got {reach!r}")
    # Not the seed of the matrices, whose draws these would repeat.
    generator = torch.Generator().manual_seed(seed + 1)
    return list(reach * torch.randn(count, dim, generator=generator, dtype=torch.float64))


def _check_counts(count: int, dim: int) -> None:
    for name, value, least in (("count", count, 1), ("dim", dim, 2)):
        check_whole(name, value)
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def _direction(values: Sequence[float]) -> Tensor:
    direction = torch.as_tensor(values, dtype=torch.float64)
    if direction.dim() != 1 or not direction.isfinite().all() or not direction.any():
        raise InputError(f"a direction is a list of finite numbers, not all 0, got {values!r}")
    return direction


def _check_points(x: Any, dim: int) -> None:
    if not isinstance(x, Tensor):
        raise InputError(
            f"the action is on a tensor of points (B, n, {dim}), got {type(x).__name__}; "
            "group.on(0) or group.on('points') acts on that part of a batch"
        )
    if x.dim() < 2 or x.shape[-1] != dim:
        raise InputError(
            f"expected points with {dim} coordinates on the last axis, got the shape "
            f"{tuple(x.shape)}; give dim=, or wrap the action to transpose them"
        )


def _check_floating(x: Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise InputError(f"points are turned in floating point, got {x.dtype}; convert them")
