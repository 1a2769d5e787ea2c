"""One-parameter families of transforms of images, for Lie derivatives."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch import Tensor

from ncmonitor.errors import InputError, check_whole
from ncmonitor.symmetry.groups.group import Flow
from ncmonitor.symmetry.groups.image_moves import interpolation_of, scaled, slid, turned
from ncmonitor.symmetry.groups.resampling import Boundary, border, image_size


def translation_flow(
    direction: Literal["right", "down"] = "right",
    *,
    boundary: Boundary = "circular",
    fill: float = 0.0,
) -> Flow:
    """Shift images by t pixels, any real number.

    Args:
        direction: "right" or "down".
        boundary: "circular" is a Fourier shift, exact for band-limited images; "constant",
            "replicate" and "reflect" are cubic convolutions (Keys 1981).
        fill: Value beyond the border, with "constant".

    Returns:
        The flow ``shift_right`` or ``shift_down``; t in pixels, step ½.

    Raises:
        InputError: If the direction is none of the two.
    """
    if direction not in ("right", "down"):
        raise InputError(f"direction must be 'right' or 'down', got {direction!r}")
    edge = border(boundary, fill)
    return Flow(
        f"shift_{direction}",
        partial(_slide, direction=direction, **edge),
        kind="images",
        unit="pixels",
        boundary=boundary,
        interpolation=interpolation_of(boundary),
        step=0.5,
    )


def rotation_flow(*, boundary: Boundary = "replicate", fill: float = 0.0, size: int = 28) -> Flow:
    """Turn images by t degrees about their centre, anticlockwise as seen; cubic convolution.

    Args:
        boundary: "constant", "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant".
        size: Side of the images, which sets the step: half a pixel at the border.

    Returns:
        The flow ``rotation``; t in degrees.
    """
    edge = border(boundary, fill)
    return Flow(
        "rotation",
        partial(_turn, **edge),
        kind="images",
        unit="degrees",
        boundary=boundary,
        interpolation="cubic convolution",
        step=math.degrees(_half_pixel(size)),
    )


def scale_flow(*, boundary: Boundary = "replicate", fill: float = 0.0, size: int = 28) -> Flow:
    """Enlarge images by exp(t) about their centre; cubic convolution, no low-pass filter.

    Args:
        boundary: "constant", "replicate", "reflect" or "circular".
        fill: Value beyond the border, with "constant".
        size: Side of the images, which sets the step: half a pixel at the border.

    Returns:
        The flow ``scale``; t the logarithm of the factor.
    """
    edge = border(boundary, fill)
    return Flow(
        "scale",
        partial(_scale, **edge),
        kind="images",
        unit="log scale",
        boundary=boundary,
        interpolation="cubic convolution",
        step=_half_pixel(size),
    )


def _slide(x: Tensor, t: float | Tensor, *, direction: str, boundary: str, fill: float) -> Tensor:
    _check_floating(x)
    by = (0.0, t) if direction == "right" else (t, 0.0)
    return slid(x, by=by, boundary=boundary, fill=fill)


def _turn(x: Tensor, t: float | Tensor, *, boundary: str, fill: float) -> Tensor:
    _check_floating(x)
    return turned(x, degrees=t, boundary=boundary, fill=fill)


def _scale(x: Tensor, t: float | Tensor, *, boundary: str, fill: float) -> Tensor:
    _check_floating(x)
    return scaled(x, log=t, boundary=boundary, fill=fill)


def _half_pixel(size: int) -> float:
    """Angle in radians, or log scale, that moves the middle of an edge by half a pixel."""
    check_whole("size", size)
    if size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    return 0.5 / (size / 2)


def _check_floating(x: Tensor) -> None:
    image_size(x)
    if not x.dtype.is_floating_point:
        raise InputError(
            f"a flow is differentiated, and {x.dtype} images would be rounded to whole numbers; "
            "convert them to floating point"
        )
