"""Labels that name no single class per sample, explained as loaders give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.inputs.entries import TO_XY, described, holds_tensors, holds_words, label_key
from ncmonitor.inputs.labels import check_kind, flatten_tokens
from ncmonitor.inputs.tensors import as_tensor

_MIXUP: Final = (
    "soft labels or mixup: no single class per sample; pass {one} if the hard class is meant, or "
    "a dataloader= without mixup"
)


def check_labels_usable(labels: Any, features: Tensor, num_classes: int) -> None:
    """Explain labels that name no single class per sample, as loaders give them.

    Whether the classes are in range, and which samples to ignore, is checked with every batch.

    Args:
        labels: As split from a batch, before they are made a tensor.
        features: ``(B, d)``, or ``(B, T, d)`` for tokens.
        num_classes: K, the classifier's outputs.

    Raises:
        InputError: For soft, one-hot, multi-label, floating, paired or missing labels, for words
            and for mappings, with what to pass instead.
    """
    if labels is None:
        raise InputError(f"the batch's labels are None; pass {TO_XY}, or a labelled dataloader=")
    if isinstance(labels, (str, Mapping)) or holds_words(labels):
        raise _words_or_mapping(labels)
    if isinstance(labels, (tuple, list)) and any(holds_tensors(part) for part in labels):
        raise _several_labels(labels)
    labels = as_tensor(labels)
    flat, classes = flatten_tokens(features, labels)
    if classes.is_floating_point() and classes.ndim > 0:
        raise _floating(classes, num_classes)
    if classes.ndim == 2 and classes.shape[1] <= max(2, num_classes):
        _refuse_columns(classes)
    check_kind(classes, len(flat))


def two_classes(labels: Any) -> Any:
    """Return the labels 0 and 1 of a head with one logit as class indices.

    Args:
        labels: Floats, booleans or integers, ``(B,)`` or with an axis of one like the logit's.

    Raises:
        InputError: If one is neither 0 nor 1.
    """
    if not isinstance(labels, (Tensor, np.ndarray, list, tuple, int, float)) or holds_words(labels):
        return labels
    if isinstance(labels, (list, tuple)) and any(holds_tensors(part) for part in labels):
        return labels
    found = as_tensor(labels)
    for axis in (1, -1):
        if found.ndim > 1 and found.shape[axis] == 1:
            found = found.squeeze(axis)
            break
    if found.is_complex():
        return found
    if not bool(((found == 0) | (found == 1) | (found == IGNORE_INDEX)).all()):
        raise InputError(
            "the classifier has one output, a logit for class 1 against class 0, so labels must be "
            f"0 or 1, but they are {described(labels)} with other values between "
            f"{float(found.min()):g} and {float(found.max()):g}: regression and soft labels have "
            "no classes. For regression see ncmonitor.measure_regression; for labels -1 and 1 pass "
            "batch_to_xy= with (labels > 0)"
        )
    return found.long()


def refuse_flat_mixup(batch: Any) -> None:
    """Refuse (inputs, labels, other labels, weight): the labels alone would pass for classes."""
    if len(batch) != 4 or not all(isinstance(each, Tensor) for each in batch[1:3]):
        return
    weight = batch[3]
    one = isinstance(weight, (float, np.floating)) or (
        isinstance(weight, Tensor) and weight.ndim == 0 and weight.is_floating_point()
    )
    pair = batch[1].shape == batch[2].shape and not batch[1].is_floating_point()
    if one and pair and not batch[2].is_floating_point():
        raise InputError(
            f"the batch is {described(batch)}, two labels per sample and a weight: "
            + _MIXUP.format(one=_lambda("batch[1]"))
        )


def _lambda(label: str) -> str:
    return f"batch_to_xy=lambda batch: (batch[0], {label})"


def _words_or_mapping(labels: Any) -> InputError:
    if isinstance(labels, Mapping):
        key = label_key(labels) or next(iter(labels), "label")
        fix = _lambda(f"batch[1][{key!r}]")
        return InputError(f"the batch's labels are {described(labels)}; pass one of them: {fix}")
    fix = _lambda("torch.tensor([names.index(name) for name in batch[1]])")
    return InputError(
        f"the batch's labels are words, {described(labels)}; expected class indices: pass {fix}"
    )


def _several_labels(labels: Any) -> InputError:
    got = f"the batch's labels are {described(labels)}"
    scalar = labels[-1].numel() == 1 if isinstance(labels[-1], Tensor) else True
    if len(labels) == 3 and scalar and not isinstance(labels[-1], (tuple, list, Mapping)):
        return InputError(
            f"{got}, a pair of labels with a weight: " + _MIXUP.format(one=_lambda("batch[1][0]"))
        )
    return InputError(
        f"{got}; expected one tensor of class indices (B,): pass {_lambda('batch[1][0]')} for the "
        "first, or, if the loader gives a list of samples or several batches, a function that "
        "makes one pair of them"
    )


def _floating(labels: Tensor, num_classes: int) -> InputError:
    shape, whole = tuple(labels.shape), bool((labels == labels.round()).all())
    got = f"the batch's labels have shape {shape} and dtype {labels.dtype}"
    if labels.ndim > 2:
        return InputError(f"{got}: another input, or no classification? Pass {TO_XY}")
    if labels.ndim == 1 or shape[1] == 1:
        fix = _lambda("batch[1].long()" if labels.ndim == 1 else "batch[1].long().squeeze(1)")
        if whole:
            return InputError(f"{got}, but classes are integers: pass {fix} if these are classes")
        return InputError(f"{got}, which name no classes: neural collapse needs class indices (B,)")
    one = _lambda("batch[1].argmax(1)")
    if not _sums_to_one(labels):
        return InputError(
            f"{got}: several labels, real targets or another input; pass {one} if one "
            f"class is meant, or else {TO_XY}"
        )
    if whole:
        return InputError(f"{got}, one-hot: expected class indices (B,); pass {one}")
    other = "" if shape[1] == num_classes else f" (over {shape[1]}, not {num_classes} classes)"
    return InputError(f"{got}{other}, " + _MIXUP.format(one=one))


def _refuse_columns(labels: Tensor) -> None:
    """Refuse integers (B, K) that indicate classes, and (B, 1) from a function of the user's."""
    got = f"the batch's labels have shape {tuple(labels.shape)}"
    if labels.shape[1] == 1:
        raise InputError(f"{got}; expected (B,): pass {_lambda('batch[1].squeeze(1)')}")
    if not bool(((labels == 0) | (labels == 1)).all()):
        return
    if _sums_to_one(labels):
        raise InputError(f"{got}, one-hot; expected (B,): pass {_lambda('batch[1].argmax(1)')}")
    raise InputError(
        f"{got} and mark several classes per sample (multi-label), but neural collapse needs one: "
        f"pass batch_to_xy= with the class that is meant, or dataloader= such data"
    )


def _sums_to_one(labels: Tensor) -> bool:
    rows = labels.double().sum(1)
    return bool((labels >= 0).all()) and torch.allclose(rows, torch.ones_like(rows), atol=1e-2)
