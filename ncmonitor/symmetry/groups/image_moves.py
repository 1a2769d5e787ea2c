"""How an image is moved: reflected, shifted by whole pixels, slid, turned, scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.symmetry.groups.group import IDENTITY
from ncmonitor.symmetry.groups.resampling import cubic, fourier_shift, image_size, moved, number

#: Elements of D4 as (transpose, flip rows, flip columns), in this order of doing.
SQUARE: Final = {
    IDENTITY: (False, False, False),
    "rot90": (True, True, False),
    "rot180": (False, True, True),
    "rot270": (True, False, True),
    "flip_h": (False, False, True),
    "flip_v": (False, True, False),
    "transpose": (True, False, False),
    "antitranspose": (True, True, True),
}


def reflect(x: Tensor, *, element: str) -> Tensor:
    """Apply an element of D4, by its name."""
    transpose, rows, columns = SQUARE[element]
    height, width = image_size(x)
    if transpose and height != width:
        raise InputError(
            f"{element} needs square images, got {height} × {width} (height × width); "
            "crop or pad them, or use flips(horizontal=True, vertical=True)"
        )
    out = x.transpose(-2, -1) if transpose else x
    dims = [dim for dim, flip in ((-2, rows), (-1, columns)) if flip]
    # Contiguous: a network that flattens by view() takes the image before and must take it after.
    return (out.flip(dims) if dims else out).contiguous()


def shift(
    x: Tensor,
    *,
    by: tuple[int, int],
    boundary: str,
    fill: float,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Shift by (down, right) whole pixels."""
    have = image_size(x)
    if size is not None and size != have:
        raise InputError(
            f"circular_shifts was made for images {size[0]} × {size[1]}, got {have[0]} × {have[1]}"
        )
    for offset, length, side in zip(by, have, ("high", "wide"), strict=True):
        if abs(offset) >= length:
            raise InputError(
                f"a shift by {abs(offset)} pixels leaves nothing of images {length} pixels {side}; "
                f"shift by {length - 1} at most"
            )
    out = x
    for dim, offset in zip((-2, -1), by, strict=True):
        out = moved(out, offset, dim, boundary, fill)
    return out


def turned(x: Tensor, *, degrees: float | Tensor, boundary: str, fill: float) -> Tensor:
    """Turn about the centre, anticlockwise as seen; by 90 degrees as ``torch.rot90`` does."""
    angle = number(degrees) * (math.pi / 180)
    down, right, middle = _from_centre(x)
    cos, sin = angle.cos(), angle.sin()
    rows, columns = cos * down + sin * right, cos * right - sin * down
    return cubic(x, rows + middle[0], columns + middle[1], boundary, fill)


def scaled(x: Tensor, *, log: float | Tensor, boundary: str, fill: float) -> Tensor:
    """Enlarge by ``exp(log)`` about the centre."""
    factor = number(log).neg().exp()
    down, right, middle = _from_centre(x)
    return cubic(x, factor * down + middle[0], factor * right + middle[1], boundary, fill)


def slid(x: Tensor, *, by: Sequence[float | Tensor], boundary: str, fill: float) -> Tensor:
    """Shift by (down, right) pixels: by Fourier where it is circular, else by convolution."""
    image_size(x)
    if boundary == "circular":
        for dim, offset in zip((-2, -1), by, strict=True):
            if isinstance(offset, Tensor) or offset:
                x = fourier_shift(x, offset, dim)
        return x
    down, right, middle = _from_centre(x)
    rows, columns = down + middle[0] - number(by[0]), right + middle[1] - number(by[1])
    return cubic(x, rows, columns, boundary, fill)


def interpolation_of(boundary: str) -> str:
    """Return how :func:`slid` finds values between the pixels."""
    return "Fourier" if boundary == "circular" else "cubic convolution"


def _from_centre(x: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Return rows and columns ``(H, W)`` from the centre, in pixels, and the centre."""
    height, width = image_size(x)
    middle = (height - 1) / 2, (width - 1) / 2
    down, right = (
        torch.arange(length, dtype=torch.float64) - m
        for length, m in zip((height, width), middle, strict=True)
    )
    # Pixels, not the [-1, 1] of affine_grid, in which a rotation shears images that are not square.
    rows, columns = torch.meshgrid(down, right, indexing="ij")
    return rows, columns, middle
