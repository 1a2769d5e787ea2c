"""Inputs and labels from the batches that people's loaders give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ncmonitor.callbacks.trainers.network_call import run_network
from ncmonitor.errors import InputError
from ncmonitor.inputs.entries import (
    TEXT_KEYS,
    TO_XY,
    described,
    is_namedtuple,
    label_key,
    may_be_input,
    named_entries,
)
from ncmonitor.inputs.soft_labels import check_labels_usable, refuse_flat_mixup, two_classes
from ncmonitor.inputs.tensors import as_tensor

__all__ = [
    "BatchToXY",
    "Forward",
    "check_labels_usable",
    "default_batch_to_xy",
    "run_network",
    "two_classes",
]

BatchToXY = Callable[[Any], tuple[Any, Any]]
Forward = Callable[[pl.LightningModule, Any], Any]


def default_batch_to_xy(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and labels of a batch.

    A tuple or list is read by position: the first two. Everything else by names: mappings (also
    ``BatchEncoding`` and its kin), dataclasses, objects with attributes such as a batch of graphs,
    and named tuples if one of their names is a label's.

    * Labels are the first of the usual names that is there (``y``, ``label``, ``labels``,
      ``target``, ...).
    * Of the rest, what holds tensors may be meant for the network, except indices, paths, sample
      weights and other notes about a sample. One such entry is the inputs.
    * With several entries, or text (``input_ids``), the inputs are all of them: a dictionary
      without the labels, or the object itself. :func:`run_network` passes them on by name.

    Integer labels of shape (B, 1) become (B,), except beside ``input_ids`` of that shape.

    Raises:
        InputError: If there are no labels, or inputs and labels cannot be told.
    """
    named = named_entries(batch)
    if named is not None and not (is_namedtuple(batch) and label_key(named) is None):
        return _by_name(batch, named)
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        refuse_flat_mixup(batch)
        return batch[0], _squeezed(batch[1], batch[0])
    bare = isinstance(batch, (tuple, list, Tensor, np.ndarray))
    raise _unlabelled(batch) if bare else _unclear(batch)


def _by_name(batch: Any, named: dict[str, Any]) -> tuple[Any, Any]:
    label = label_key(named)
    if label is None:
        raise _unlabelled(batch)
    inputs = {key: value for key, value in named.items() if may_be_input(key, value)}
    if not inputs:
        raise _unclear(batch)
    if len(inputs) == 1 and not any(key in TEXT_KEYS for key in inputs):
        (only,) = inputs.values()
        return only, _squeezed(named[label], only)
    whole = inputs if isinstance(batch, (Mapping, tuple)) else batch
    return whole, _squeezed(named[label], named.get("input_ids"))


def _squeezed(labels: Any, inputs: Any) -> Any:
    """Return (B, 1) integer labels as (B,), unless they belong to tokens of that shape."""
    if not isinstance(labels, (Tensor, np.ndarray)) or labels.ndim != 2 or labels.shape[1] != 1:
        return labels
    whole = as_tensor(labels)
    if whole.is_floating_point() or whole.is_complex() or whole.dtype == torch.bool:
        return labels
    tokens = isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point()
    return labels if tokens and inputs.shape == labels.shape else labels[:, 0]


def _unlabelled(batch: Any) -> InputError:
    return InputError(
        f"the batch holds no labels that can be told: it is {described(batch)}. Neural collapse "
        f"needs the class of every sample: pass {TO_XY}, or dataloader= a labelled loader"
    )


def _unclear(batch: Any) -> InputError:
    return InputError(
        f"cannot tell inputs and labels in a batch that is {described(batch)}; expected "
        f"(inputs, labels): pass {TO_XY}"
    )
