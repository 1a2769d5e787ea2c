"""Groups that act on images (B, C, H, W): flips, quarter turns, shifts; small turns, scalings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import TypeVar

import torch

from ncmonitor.errors import InputError, check_whole
from ncmonitor.symmetry.groups.group import IDENTITY, Action, Group, table_of
from ncmonitor.symmetry.groups.image_moves import (
    SQUARE,
    interpolation_of,
    reflect,
    scaled,
    shift,
    slid,
    turned,
)
from ncmonitor.symmetry.groups.resampling import Boundary, border

_Number = TypeVar("_Number", int, float)


def flips(*, horizontal: bool = True, vertical: bool = False) -> Group:
    """Mirror images left-right (``flip_h``), top-bottom (``flip_v``), or both and ``rot180``.

    Args:
        horizontal: Whether left and right are exchanged.
        vertical: Whether top and bottom are.

    Returns:
        Two elements, or four; exact, closed.

    Raises:
        InputError: If neither direction is asked for.
    """
    if not (horizontal or vertical):
        raise InputError("flips() needs horizontal=True, vertical=True or both")
    if horizontal and vertical:
        return _square("flips", (IDENTITY, "flip_h", "flip_v", "rot180"))
    return _square("flips", (IDENTITY, "flip_h" if horizontal else "flip_v"))


def rotations90() -> Group:
    """Quarter turns of square images, anticlockwise as one looks at them: the group C4.

    Returns:
        Four elements; exact, closed.
    """
    return _square("rotations90", tuple(SQUARE)[:4])


def dihedral() -> Group:
    """Quarter turns and reflections of square images: the group D4, eight elements.

    Returns:
        Eight elements; exact, closed.
    """
    return _square("dihedral", tuple(SQUARE))


def shifts(
    offsets: int | Iterable[tuple[int, int]] = 1,
    *,
    boundary: Boundary = "constant",
    fill: float = 0.0,
) -> Group:
    """Shift images by whole pixels; a set, not a group: see :func:`circular_shifts` for one.

    Args:
        offsets: Pairs (down, right) in pixels, or n for the eight neighbours at ±n pixels.
        boundary: "constant" (zero-padded at ``fill=0``), "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant"; of normalised images that of black.

    Returns:
        The identity and the shifts, named by their offsets (``shift+1+0``); exact, not closed.
    """
    edge = border(boundary, fill)
    pairs = _neighbours(offsets) if isinstance(offsets, int) else _pairs(offsets)
    for offset in (offset for pair in pairs for offset in pair):
        check_whole("offsets", offset)
    actions = [
        Action(_offset_name(pair), partial(shift, by=pair, **edge))
        for pair in pairs
        if pair != (0, 0)
    ]
    note = f"{boundary} boundary, whole pixels"
    return Group.of("shifts", actions, kind="images", exact=True, note=note)


def circular_shifts(size: int | tuple[int, int], step: int = 1) -> Group:
    """All circular shifts by multiples of ``step`` pixels: a closed group.

    Args:
        size: Height and width of the images, or one number for both.
        step: Divides both; (height / step) · (width / step) elements.

    Returns:
        All of them, with their table; exact.

    Raises:
        InputError: If ``step`` does not divide both sizes.
    """
    height, width = (size, size) if isinstance(size, int) else size
    for name, value in (("size", height), ("size", width), ("step", step)):
        check_whole(name, value)
    if step < 1 or min(height, width) < 1 or height % step or width % step:
        raise InputError(
            f"step must divide the size of the images, got step={step} for {height} × {width}: "
            "other shifts are no group"
        )
    down, right = torch.meshgrid(
        torch.arange(height // step), torch.arange(width // step), indexing="ij"
    )
    cells = torch.stack([down, right], dim=-1).flatten(0, 1)  # (n, 2), row by row
    sums = (cells[:, None] + cells) % torch.tensor([height // step, width // step])
    pairs = [(step * a, step * b) for a, b in cells.tolist()]
    move = partial(shift, boundary="circular", fill=0.0, size=(height, width))
    return Group.of(
        "circular_shifts",
        [Action(_offset_name(pair), partial(move, by=pair)) for pair in pairs[1:]],
        kind="images",
        exact=True,
        table=sums[..., 0] * (width // step) + sums[..., 1],
        note="circular boundary, whole pixels",
    )


def rotations(
    degrees: Iterable[float] = (-15, -10, -5, 5, 10, 15),
    *,
    boundary: Boundary = "replicate",
    fill: float = 0.0,
) -> Group:
    """Turn images about their centre by any angles, anticlockwise; a set, interpolated.

    Cubic convolution (Keys 1981). The default boundary repeats the border pixel: where the
    background is constant it goes on, whatever the images were normalised to.

    Args:
        degrees: The angles.
        boundary: "constant", "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant".

    Returns:
        The identity and the turns, named by their angles (``rot15``); not closed.
    """
    edge = border(boundary, fill)
    actions = [
        Action(f"rot{d:g}", partial(turned, degrees=d, **edge))
        for d in _finite("degrees", degrees)
        if d != 0
    ]
    note = f"{boundary} boundary, cubic convolution"
    return Group.of("rotations", actions, kind="images", note=note)


def subpixel_shifts(
    offsets: Iterable[tuple[float, float]] = ((0, 0.5), (0, -0.5), (0.5, 0), (-0.5, 0)),
    *,
    boundary: Boundary = "replicate",
    fill: float = 0.0,
) -> Group:
    """Shift images by parts of a pixel; a set, interpolated.

    Circular: by Fourier shift, exact for band-limited images. Otherwise cubic convolution.

    Args:
        offsets: Pairs (down, right) in pixels.
        boundary: "constant", "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant".

    Returns:
        The identity and the shifts; not closed.
    """
    edge = border(boundary, fill)
    values = [(a, b) for a, b in (_finite("offsets", pair) for pair in _pairs(offsets))]
    actions = [
        Action(_offset_name(pair), partial(slid, by=pair, **edge))
        for pair in values
        if pair != (0, 0)
    ]
    note = f"{boundary} boundary, {interpolation_of(boundary)}"
    return Group.of("subpixel_shifts", actions, kind="images", note=note)


def scalings(
    factors: Iterable[float] = (0.9, 0.95, 1.05, 1.1),
    *,
    boundary: Boundary = "replicate",
    fill: float = 0.0,
) -> Group:
    """Enlarge (factor > 1) or shrink images about their centre; a set, interpolated.

    Cubic convolution without a low-pass filter: below about 0.7 fine detail aliases.

    Args:
        factors: Above 0.
        boundary: "constant", "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant".

    Returns:
        The identity and the scalings (``scale0.9``); not closed.

    Raises:
        InputError: If a factor is not above 0.
    """
    edge = border(boundary, fill)
    values = _finite("factors", factors)
    if min(values, default=1.0) <= 0:
        raise InputError(f"factors must be above 0, got {min(values)}")
    actions = [
        Action(f"scale{s:g}", partial(scaled, log=math.log(s), **edge)) for s in values if s != 1
    ]
    note = f"{boundary} boundary, cubic convolution"
    return Group.of("scalings", actions, kind="images", note=note)


def _square(name: str, elements: tuple[str, ...]) -> Group:
    """Return the subgroup of D4 of these elements."""
    actions = [Action(e, partial(reflect, element=e)) for e in elements if e != IDENTITY]
    probe = torch.arange(9).view(1, 3, 3)  # no two elements of D4 agree on it
    named = {tuple(reflect(probe, element=e).flatten().tolist()): e for e in elements}

    def compose(a: str, b: str) -> str | None:
        both = reflect(reflect(probe, element=b), element=a)
        return named.get(tuple(both.flatten().tolist()))

    table = table_of(elements, compose)
    return Group.of(name, actions, kind="images", exact=True, table=table)


def _offset_name(pair: tuple[float, float]) -> str:
    return f"shift{pair[0]:+g}{pair[1]:+g}"


def _neighbours(offset: int) -> list[tuple[int, int]]:
    check_whole("offsets", offset)
    if offset < 1:
        raise InputError(f"offsets must be at least 1 pixel, or pairs (down, right), got {offset}")
    return [(a, b) for a in (-offset, 0, offset) for b in (-offset, 0, offset)]


def _pairs(offsets: Iterable[tuple[_Number, _Number]]) -> list[tuple[_Number, _Number]]:
    given = list(offsets)
    for pair in given:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"offsets must be pairs (down, right) in pixels, got {pair!r}")
    return [(down, right) for down, right in given]


def _finite(name: str, values: Iterable[float]) -> list[float]:
    out = []
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(f"{name} must be finite numbers, got {value!r}")
        out.append(float(value))
    return out
