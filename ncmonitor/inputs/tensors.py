"""Tensors at the edge: conversion, and the few checks with one wording."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncmonitor.errors import InputError


def as_tensor(array: Any) -> Tensor:
    """Return a detached tensor that shares memory with a torch or numpy array where it can.

    Raises:
        InputError: If it is no array of numbers.
    """
    if isinstance(array, Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):  # torch takes neither negative strides nor foreign bytes
        array = array.astype(array.dtype.newbyteorder("="), copy=min(array.strides, default=0) < 0)
    try:
        with warnings.catch_warnings():
            # A read-only array (a memory map) is fine: nothing here writes to its input.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected a torch tensor or an array of numbers, got {type(array).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: no autocast, no TF32, no bfloat16 kernels; and no gradient.

    ``torch.set_float32_matmul_precision`` and its kin act on every product that follows, ours too.
    """
    common, single = _matmul_precision()
    torch.set_float32_matmul_precision("highest")  # sets the switches of the backends as well
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(common)
        for backend, value in single:
            backend.fp32_precision = value


def _matmul_precision() -> tuple[str, list[tuple[Any, str]]]:
    """Return the common switch, and since torch 2.9 one for each backend, with its owner."""
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    single = [(b, str(b.fp32_precision)) for b in backends if hasattr(b, "fp32_precision")]
    try:
        return torch.get_float32_matmul_precision(), single
    except RuntimeError:  # it refuses where a user has set the backends one by one
        return ("high" if single[0][1] == "tf32" else "highest"), single


def working_dtype(features: Tensor) -> torch.dtype:
    """Return the precision features are read in: float64 for float64, float32 for the rest."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def check_features(features: torch.Tensor) -> None:
    """Raise :class:`InputError` unless features are a floating-point ``(N, d)`` matrix."""
    if features.ndim != 2:
        raise InputError(
            f"features must have shape (N, d), but have shape {tuple(features.shape)}; flatten or "
            "pool them first, e.g. features.flatten(1)"
        )
    check_floating(features)


def check_floating(features: torch.Tensor) -> None:
    """Raise :class:`InputError` unless features are floating point and have columns."""
    if features.ndim > 1 and features.shape[-1] == 0:
        raise InputError(f"features must have at least one column, got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise InputError(
            f"features must be floating point, but have dtype {features.dtype}; "
            "pass features.float()"
        )


def waits_for_nothing(device: torch.device) -> bool:
    """Whether reading a number costs no synchronisation: true of the CPU alone."""
    return device.type == "cpu"


def home(device: torch.device) -> torch.device:
    """Return where sums of features on ``device`` are kept: there, or the CPU without float64."""
    return torch.device("cpu") if device.type == "mps" else device


class Scratch:
    """Buffers for the temporaries of a block, allocated once: fresh pages cost more than sums."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised buffer of this shape and dtype, on the device of ``like``."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = torch.empty(size, dtype=dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that is made at the first call."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


def block_rows(*widths: int) -> int:
    """Return how many rows to handle at once, so that temporaries stay in the processor's cache."""
    return max(64, BLOCK_ELEMENTS // max(widths))


#: Elements of a temporary: 4 MiB in float64. Measured: smaller costs calls, larger page faults.
BLOCK_ELEMENTS = 2**19
