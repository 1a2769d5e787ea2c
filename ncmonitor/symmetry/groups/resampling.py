"""Images read at other places: entries moved, cubic convolution, Fourier shift."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from ncmonitor.errors import InputError

#: What lies beyond the border, by the names of ``torch.nn.functional.pad``.
Boundary = Literal["constant", "replicate", "reflect", "circular"]

# Keys 1981: the one value at which cubic convolution reproduces quadratics. torch's own bicubic
# takes -0.75, at which the derivative of a shift at t = 0 is one and a half times too large (1.45
# on a sine of period 16), and torchvision offers tensors no bicubic for rotations at all.
_KEYS: Final = -0.5


def border(boundary: str, fill: float) -> dict[str, Any]:
    """Check what lies beyond the border and return it as keyword arguments."""
    if boundary not in get_args(Boundary):
        raise InputError(
            f"boundary must be {', '.join(map(repr, get_args(Boundary)))}, got {boundary!r}"
        )
    if isinstance(fill, bool) or not isinstance(fill, int | float) or not math.isfinite(fill):
        raise InputError(f"fill must be a finite number, got {fill!r}")
    if fill != 0 and boundary != "constant":
        raise InputError(f"fill={fill} is used with boundary='constant' only, got {boundary!r}")
    return {"boundary": boundary, "fill": float(fill)}


def number(t: float | Tensor) -> Tensor:
    """Return a float or a tensor without dimensions in float64 on the CPU, differentiable."""
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=torch.float64)
    return t.to("cpu").to(torch.float64)  # in two steps: not every device can hold float64


def image_size(x: object) -> tuple[int, int]:
    """Return height and width of a batch of images, or raise :class:`InputError`."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"the action is on a tensor of images, got {type(x).__name__}; "
            "group.on(0) or group.on('image') acts on that part of a batch"
        )
    if x.dim() < 3 or 0 in x.shape[-2:]:
        raise InputError(f"expected images (B, C, H, W), got the shape {tuple(x.shape)}")
    return x.shape[-2], x.shape[-1]


def inside(places: Tensor, length: int, boundary: str) -> tuple[Tensor, Tensor]:
    """Map places anywhere on the line into ``[0, length)``.

    Returns:
        The mapped places, and whether each is a true entry (False only with "constant").
    """
    true = torch.ones_like(places, dtype=torch.bool)
    if boundary == "circular":
        return places % length, true
    if boundary == "reflect":  # about the centre of the border pixel, which is not repeated
        period = max(2 * (length - 1), 1)
        folded = places % period
        return torch.minimum(folded, period - folded).clamp(0, length - 1), true
    if boundary == "constant":
        true = (places >= 0) & (places < length)
    return places.clamp(0, length - 1), true


def moved(x: Tensor, offset: int, dim: int, boundary: str, fill: float) -> Tensor:
    """Shift by whole entries along ``dim``, towards higher indices; nothing is computed."""
    if offset == 0:
        return x
    _check_holds(x, fill)
    places, true = inside(torch.arange(x.shape[dim]) - offset, x.shape[dim], boundary)
    out = x.index_select(dim, places.to(x.device))
    if not true.all():
        out.index_fill_(dim, (~true).nonzero().flatten().to(x.device), fill)
    return out


def cubic(x: Tensor, rows: Tensor, columns: Tensor, boundary: str, fill: float = 0.0) -> Tensor:
    """Read images at places between the pixels: cubic convolution, differentiable in the places.

    Args:
        x: ``(..., H, W)``.
        rows: ``(H, W)`` float64: the row at which each new pixel is read, in pixels.
        columns: ``(H, W)`` float64, likewise.
        boundary: What lies beyond the border.
        fill: Value there, with "constant".

    Returns:
        Like ``x``; whole-number images are rounded and kept in range.
    """
    height, width = image_size(x)
    # Pixels first: a gather of whole rows, four times as fast on the CPU.
    pixels = (working(x) - fill).reshape(-1, height * width).T.contiguous()
    out = torch.zeros_like(pixels)
    along_rows, along_columns = _taps(rows, height, boundary), _taps(columns, width, boundary)
    for row, row_weight in along_rows:
        for column, column_weight in along_columns:
            places = (row * width + column).flatten().to(x.device)
            weight = (row_weight * column_weight).view(-1, 1).to(pixels)
            out = torch.addcmul(out, pixels.index_select(0, places), weight)
    return back(out.T.reshape(x.shape) + fill, x)


def _taps(places: Tensor, length: int, boundary: str) -> list[tuple[Tensor, Tensor]]:
    """Return the four pixels around each place, and their weights (0 beyond a constant border)."""
    first = places.detach().floor()
    part = places - first
    out = []
    for step in (-1, 0, 1, 2):
        index, true = inside(first.long() + step, length, boundary)
        out.append((index, _kernel((part - step).abs()) * true))
    return out


def _kernel(distance: Tensor) -> Tensor:
    a = _KEYS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def fourier_shift(x: Tensor, offset: float | Tensor, dim: int) -> Tensor:
    """Circular shift by any number of entries, exact for band-limited signals.

    Source: the shift theorem. At even lengths the Nyquist frequency is multiplied by cos(π·offset),
    the one real choice; a shift and its reverse therefore lose some of that frequency.
    """
    values = working(x)
    length = values.shape[dim]
    # MKL of torch 2.6 refuses expanded tensors.
    spectrum = torch.fft.rfft(values.contiguous(), dim=dim)
    angle = torch.arange(spectrum.shape[dim]) * (number(offset) * (-2 * math.pi / length))
    turn = torch.complex(angle.cos(), angle.sin()).to(spectrum)
    shape = [1] * values.dim()
    shape[dim] = -1
    return back(torch.fft.irfft(spectrum * turn.view(shape), n=length, dim=dim), x)


def _check_holds(x: Tensor, fill: float) -> None:
    if x.dtype.is_floating_point or x.dtype.is_complex or fill == 0:
        return
    low, high = (
        (0, 1) if x.dtype is torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
    )
    if fill != int(fill) or not low <= fill <= high:
        raise InputError(f"fill={fill:g} is no value of {x.dtype}, the dtype of the batch")


def working(x: Tensor) -> Tensor:
    """Return values to compute with: float32, or float64 where that is too narrow."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    if x.dtype is torch.bool or x.is_complex():
        raise InputError(f"interpolation needs real numbers, got {x.dtype}; convert the images")
    return x.to(torch.float32 if x.dtype.itemsize < 4 else torch.float64)


def back(values: Tensor, like: Tensor) -> Tensor:
    """Return values in the dtype of ``like``; whole numbers are rounded and kept in range."""
    if like.dtype.is_floating_point:
        return values.to(like.dtype)
    limits = torch.iinfo(like.dtype)
    return values.round().clamp(limits.min, limits.max).to(like.dtype)
