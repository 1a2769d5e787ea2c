"""Tensors at the edge: conversion, and the few checks with one wording."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncmonitor._checks import InputError


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


def check_labels(labels: torch.Tensor, samples: int, num_classes: int | None = None) -> None:
    """Raise :class:`InputError` unless labels are class indices, one per sample.

    Args:
        labels: What is meant to be ``(samples,)`` integers in ``[0, num_classes)``.
        samples: Number of feature rows beside them.
        num_classes: Number of classes; ``None`` skips the upper limit.

    Raises:
        InputError: For real-valued, multi-label, one-hot, misshaped or out-of-range labels.
    """
    shape = tuple(labels.shape)
    if labels.ndim != 1:
        raise InputError(
            f"labels must be class indices of shape (N,), but have shape {shape}; multi-label, "
            "one-hot and soft labels have no single class: pass labels.argmax(1) if that is meant"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(
            f"labels must be integers, but have dtype {labels.dtype}; neural collapse is defined "
            "for classification: pass class indices (labels.long()) if these are classes"
        )
    if shape[0] != samples:
        raise InputError(
            f"expected one label per feature row, got {samples} rows, {shape[0]} labels"
        )
    if not samples:
        return
    labels = labels.long()  # torch has no minimum of wide unsigned integers
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise InputError(f"labels must not be negative, but one is {low}")
    if num_classes is not None and high >= num_classes:
        raise InputError(
            f"labels must lie in [0, {num_classes}), but one is {high}; pass "
            f"num_classes={high + 1} if the data has that many classes, and give the classifier "
            "as many outputs"
        )


def check_features(features: torch.Tensor) -> None:
    """Raise :class:`InputError` unless features are a floating-point ``(N, d)`` matrix."""
    if features.ndim != 2:
        raise InputError(
            f"features must have shape (N, d), but have shape {tuple(features.shape)}; flatten or "
            "pool them first, e.g. features.flatten(1)"
        )
    if not features.is_floating_point():
        raise InputError(f"features must be floating point, but have dtype {features.dtype}")
