"""Tensors at the edge: conversion, and the few checks with one wording."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncmonitor._checks import InputError


def as_tensor(array: Any) -> Tensor:
    """Return a detached tensor that shares memory with a torch or numpy array where it can."""
    return array.detach() if isinstance(array, Tensor) else torch.as_tensor(array)


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
        raise InputError(f"expected one label per feature row, got {samples} rows, {shape[0]} labels")
    if not samples:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise InputError(f"labels must not be negative, but one is {low}")
    if num_classes is not None and high >= num_classes:
        raise InputError(
            f"labels must lie in [0, {num_classes}), but one is {high}; pass num_classes={high + 1} "
            "if the data has that many classes, and give the classifier as many outputs"
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
