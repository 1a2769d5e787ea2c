"""Labels at the edge: what counts as one, which samples are left out, and when to complain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.inputs import tensors
from ncmonitor.inputs.conventions import IGNORE_INDEX


def check_labels(labels: Tensor, samples: int, num_classes: int | None = None) -> None:
    """Raise :class:`InputError` unless labels are class indices, one per sample.

    Args:
        labels: What is meant to be ``(samples,)`` integers in ``[0, num_classes)``.
        samples: Number of feature rows beside them.
        num_classes: Number of classes; ``None`` skips the upper limit.

    Raises:
        InputError: For real-valued, multi-label, one-hot, misshaped or out-of-range labels.
    """
    check_kind(labels, samples)
    if samples:
        labels = labels.long()  # torch has no minimum of wide unsigned integers
        check_range(int(labels.min()), int(labels.max()), num_classes)


def check_kind(labels: Tensor, samples: int) -> None:
    """Raise :class:`InputError` unless labels are ``(samples,)`` integers, of any value."""
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


def check_range(low: int, high: int, num_classes: int | None) -> None:
    """Raise :class:`InputError` unless labels from ``low`` to ``high`` are classes."""
    if low < 0:
        raise InputError(
            f"labels must not be negative, but one is {low}; pass ignore_index={low} if it marks "
            "samples to leave out"
        )
    if num_classes is not None and high >= num_classes:
        raise InputError(
            f"labels must lie in [0, {num_classes}), but one is {high}; pass "
            f"num_classes={high + 1} if the data has that many classes, and give the classifier "
            "as many outputs"
        )


@dataclass(frozen=True)
class Batch:
    """A batch as the sums take it in.

    Attributes:
        features: ``(N, d)``, on a device that has float64.
        labels: ``(N,)`` int64 in [0, K]; K marks a sample to leave out.
        logits: ``(N, K)`` or ``None``.
        extremes: Smallest and largest label, ``(2,)`` int64, to be checked when the device is
            waited for anyway; ``None`` if they have been.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor | None
    extremes: Tensor | None


def check_device(features: Tensor, labels: Tensor) -> None:
    """Raise :class:`InputError` unless features and labels are in one place."""
    if labels.device != features.device:
        raise InputError(
            f"features are on {features.device}, labels on {labels.device}: "
            "pass both on one device, e.g. labels.to(features.device)"
        )


def flatten_tokens(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(B, T, d)`` features with ``(B, T)`` labels as ``(B T, d)`` and ``(B T,)``."""
    if features.ndim > 2 and labels.ndim > 1 and features.shape[:-1] == labels.shape:
        return features.flatten(0, -2), labels.flatten()
    return features, labels


def clean_batch(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
    logits: Tensor | None = None,
) -> Batch:
    """Flatten tokens, leave out ignored samples and check the labels.

    On the CPU ignored samples are dropped and a label out of range raises here. Elsewhere either
    would wait for the device, once per batch: there they go to class K, and the extremes are
    returned.

    Raises:
        InputError: As :func:`check_labels`; also if features and labels are on different devices.
    """
    tokens = features.ndim > 2
    features, labels = flatten_tokens(features, labels)
    if logits is not None and tokens and features.ndim == 2:
        logits = logits.flatten(0, -2)
    if features.ndim != 2:
        raise InputError(
            f"features must have shape (N, d), but have shape {tuple(features.shape)}; flatten or "
            "pool them first, e.g. features.flatten(1); token features (B, T, d) need labels "
            f"(B, T), got {tuple(labels.shape)}"
        )
    check_kind(labels, features.shape[0])
    check_device(features, labels)
    place = tensors.home(features.device)
    features, labels = features.to(place), labels.to(place).long()
    logits = None if logits is None else logits.to(place)
    ignored = labels == ignore_index
    if tensors.waits_for_nothing(labels.device):
        if bool(ignored.any()):
            kept = ~ignored
            features, labels = features[kept], labels[kept]
            logits = None if logits is None else logits[kept]
        check_labels(labels, len(labels), num_classes)
        return Batch(features, labels, logits, None)
    extremes = torch.stack(labels.masked_fill(ignored, 0).aminmax()) if len(labels) else None
    outside = ignored | (labels < 0) | (labels >= num_classes)
    features = features.masked_fill(outside[:, None], 0)  # padding may hold anything, nan too
    logits = None if logits is None else logits.masked_fill(outside[:, None], 0)
    return Batch(features, labels.masked_fill(outside, num_classes), logits, extremes)
