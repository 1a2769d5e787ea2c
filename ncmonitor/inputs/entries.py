"""What a batch, or a part of one, holds: its entries by name, and how to describe it."""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

INPUT_KEYS: Final = (
    "x", "input", "inputs", "image", "images", "img", "imgs", "pixel_values", "input_values",
    "input_features", "data", "features",
)  # fmt: skip
LABEL_KEYS: Final = (
    "y", "label", "labels", "target", "targets", "class", "classes", "cls", "class_id",
    "fine_label", "coarse_label",
)  # fmt: skip
#: Text: the network's other inputs (a mask, positions) come under names of their own.
TEXT_KEYS: Final = ("input_ids", "inputs_embeds")
TO_XY: Final = "batch_to_xy=, a function from a batch to (inputs, labels)"
#: About a sample, and never for the network, even where they are tensors.
_ABOUT: Final = frozenset(
    {
        *("idx", "index", "indices", "id", "ids", "uid", "key", "url", "meta", "metadata"),
        *("path", "paths", "file", "files", "filename", "filenames", "file_name", "name", "names"),
        *("weight", "weights", "sample_weight", "sample_weights", "sample_id", "sample_idx"),
        *("sample_index", "image_id", "image_path", "example_id"),
    }
)


def named_entries(batch: Any) -> dict[str, Any] | None:
    """Return the entries of a batch by name, or ``None`` if it has no names."""
    if batch is None or isinstance(
        batch, (Tensor, np.ndarray, str, bytes, int, float, PackedSequence)
    ):
        return None
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if isinstance(key, str)}
    if is_namedtuple(batch):
        return dict(zip(batch._fields, batch, strict=True))
    if isinstance(batch, (tuple, list)):
        return None
    if dataclasses.is_dataclass(batch):
        return {each.name: getattr(batch, each.name) for each in dataclasses.fields(batch)}
    return _attributes(batch)


def _attributes(batch: Any) -> dict[str, Any] | None:
    """Return an object's attributes; those of a graph are behind ``to_dict``."""
    try:
        found = dict(batch.to_dict())
    except Exception:  # it has none, or one that means something else
        found = {k: v for k, v in getattr(batch, "__dict__", {}).items() if k[:1] != "_"}
        for name in (*INPUT_KEYS, *LABEL_KEYS):  # slots and properties
            value = inspect.getattr_static(batch, name, None)
            if value is not None and not callable(value):
                found.setdefault(name, getattr(batch, name, None))
    named = {k: v for k, v in found.items() if isinstance(k, str) and v is not None}
    return named or None


def label_key(named: Mapping[str, Any]) -> str | None:
    """Return the name of the labels, as the batch spells it."""
    spelt = {key.lower(): key for key in named}
    found = [spelt[key] for key in LABEL_KEYS if key in spelt]
    # Class names may come along as strings.
    usable = [key for key in found if not isinstance(named[key], str | None)]
    numbers = [key for key in usable if not holds_words(named[key])]
    return next(iter(numbers or found), None)


def may_be_input(key: str, value: Any) -> bool:
    """Tell whether an entry of a batch, by name and value, may be what the network takes."""
    name = key.lower()
    if name in LABEL_KEYS or name in _ABOUT or name.startswith("__"):
        return False
    return holds_tensors(value) or (is_input(key) and not holds_words(value))


def is_input(key: str) -> bool:
    """Tell whether an entry has a name that inputs have."""
    return key.lower() in INPUT_KEYS


def is_namedtuple(batch: Any) -> bool:
    """Tell whether a batch is a named tuple."""
    return isinstance(batch, tuple) and hasattr(batch, "_fields")


def holds_tensors(value: Any) -> bool:
    """Tell whether a value is or contains a tensor or a numeric array."""
    if isinstance(value, Mapping):
        return any(holds_tensors(each) for each in value.values())
    if isinstance(value, (tuple, list)):
        return any(holds_tensors(each) for each in value)
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    )


def holds_words(value: Any) -> bool:
    """Tell whether a value is text, or a list or array of it."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "USO"
    return isinstance(value, str) or (
        isinstance(value, (tuple, list)) and any(isinstance(each, str) for each in value)
    )


def described(value: Any) -> str:
    """Say what a batch is: its type, length or names, and its first few parts."""
    named = named_entries(value)
    if named is not None:
        parts = [f"{key}: {_brief(each)}" for key, each in [*named.items()][:6]]
        more = ", ..." if len(named) > 6 else ""
        kind = "a mapping" if isinstance(value, Mapping) else "an object"
        return f"a {type(value).__name__}, {kind} with {', '.join(parts) or 'nothing'}{more}"
    if isinstance(value, (tuple, list)):
        parts = [_brief(each) for each in value[:4]]
        more = ", ..." if len(value) > 4 else ""
        return f"a {type(value).__name__} of length {len(value)} ({', '.join(parts)}{more})"
    return f"a {_brief(value)}"


def _brief(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {kind}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of length {len(value)}"
    return reprlib.repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
