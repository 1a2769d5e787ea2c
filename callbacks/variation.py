"""Whether a data set gives the same sample twice."""

from __future__ import annotations

import dataclasses
import math
import random
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from ncmonitor.callbacks.loaders import fetches_lists, reads_stream, sample_keys

# In each pair the first three draws of torch, numpy and random lie on opposite sides of 1/2, and
# the first ones beyond 0.1 and 0.9: a flip with probability 1/2 comes out differently for sure.
_SEEDS = ((85685, 62272), (113568, 192907), (149116, 343120))
_DEPTH = 8  # of a nested item; objects can refer to one another in circles


def varies(loader: Any) -> bool | None:
    """Tell whether a sample read twice differs, as with random augmentation.

    Reads the first, the middle and the last sample twice each, in this process, with the global
    CPU generators in different states, and puts all generators back. A data set with a counter or
    a generator of its own is moved on by those reads.

    Args:
        loader: The user's loader, or one of :func:`clean_loader`.

    Returns:
        ``None`` if it cannot be told: a stream, an empty data set, or one that cannot be read here.
    """
    if not isinstance(loader, DataLoader) or reads_stream(loader):
        return None
    with isolate_rng():
        try:  # inside: isolate_rng puts nothing back if an exception passes through it
            return _some_sample_varies(loader)
        except Exception:
            return None


def _some_sample_varies(loader: DataLoader[Any]) -> bool | None:
    keys, lists = sample_keys(loader), fetches_lists(loader)
    chosen = [keys[i] for i in sorted({0, len(keys) // 2, len(keys) - 1})] if keys else []
    for key, seeds in zip(chosen, _SEEDS, strict=False):
        first, second = (_read(loader.dataset, [key] if lists else key, seed) for seed in seeds)
        if not _same(first, second):
            return True
    return False if chosen else None


def _read(data: Any, key: Any, seed: int) -> Any:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators, too
    np.random.seed(seed)  # noqa: NPY002 - the global state is what data sets draw from
    random.seed(seed)
    return data[key]


def _same(a: Any, b: Any, depth: int = _DEPTH) -> bool:
    """Compare two nests; what has no notion of equality counts as equal."""
    if a is b or depth == 0 or isinstance(a, weakref.ref):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and _all_equal(a, b)
    if hasattr(a, "__array__") or hasattr(a, "__array_interface__"):  # the latter: PIL
        left, right = np.asarray(a), np.asarray(b)
        return left.shape == right.shape and left.dtype == right.dtype and _all_equal(left, right)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[key], b[key], depth - 1) for key in a)
    if isinstance(a, (list, tuple)):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_same(x, y, depth - 1) for x, y in pairs)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return all(_same(getattr(a, name), getattr(b, name), depth - 1) for name in names)
    kind: Any = type(a)
    if kind.__eq__ is object.__eq__:  # would compare identities
        return _same(getattr(a, "__dict__", None), getattr(b, "__dict__", None), depth - 1)
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    equal = a == b
    return equal if isinstance(equal, bool) else True


def _all_equal(a: Any, b: Any) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())  # nan equals nan here
