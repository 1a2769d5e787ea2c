"""Whether a data set gives the same sample twice."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from ncmonitor.callbacks.trainers.loaders import fetches_lists, reads_stream, rebuilt, sample_keys

# In each pair the first three draws of torch, numpy and random lie on opposite sides of 1/2, and
# the first ones beyond 0.1 and 0.9: a flip with probability 1/2 comes out differently for sure.
_SEEDS: Final = ((85685, 62272), (113568, 192907), (149116, 343120))
_DEPTH: Final = 8  # of a nested item; objects can refer to one another in circles


def varies(loader: Any) -> bool | None:
    """Tell whether a sample read twice differs, as with random augmentation.

    Reads the first, the middle and the last sample twice each, with the global CPU generators in
    different states, and collates them twice. It reads where the loader reads: in one worker with
    the loader's start method and ``worker_init_fn`` if it has workers, so that a file that the data
    set opens at its first item is never opened in this process. All global generators are put
    back; without workers a data set with a counter or a generator of its own is moved on.

    Args:
        loader: The user's loader, or one of :func:`clean_loader`.

    Returns:
        ``None`` if it cannot be told: a stream, an empty data set, or one that cannot be read.
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
    if not chosen:
        return None
    seeds = [seed for pair in _SEEDS[: len(chosen)] for seed in pair]
    twice = [[key] if lists else key for key in chosen for _ in range(2)]
    workers, batched = loader.num_workers > 0, loader.batch_sampler is not None
    settings: dict[str, Any] = {
        "sampler": twice,
        "batch_size": 1 if batched else None,
        "collate_fn": _Comparison(seeds, loader.collate_fn, batched),
        "pin_memory": False,
        "num_workers": int(workers),
    }
    if workers:
        settings["worker_init_fn"] = _Start(loader.worker_init_fn, seeds[0])
    answers = iter(rebuilt(loader, **settings))
    if not workers:
        _seed(seeds[0])  # after the iterator has drawn its own
    return any(list(answers))


class _Start:
    """Prepares the worker as the user does, then for the first sample."""

    def __init__(self, prepare: Callable[[int], None] | None, seed: int) -> None:
        self.prepare, self.seed = prepare, seed

    def __call__(self, worker: int) -> None:
        if self.prepare is not None:
            self.prepare(worker)
        _seed(self.seed)


class _Comparison:
    """In place of a collate function: says whether two readings of a sample differ.

    Called once for each reading, where the data set is read; seeds for the next one. What leaves
    the worker is an answer, never a sample.
    """

    def __init__(self, seeds: list[int], collate: Callable[[Any], Any], batched: bool) -> None:
        self.seeds, self.collate, self.batched = seeds, collate, batched
        self.readings: list[Any] = []

    def __call__(self, reading: Any) -> bool:
        self.readings.append(reading)
        count = len(self.readings)
        differs = count % 2 == 0 and not _same(self.readings[-2], reading)
        if count < len(self.seeds):
            _seed(self.seeds[count])
            return differs
        return differs or self._collating_varies()

    def _collating_varies(self) -> bool:
        """Collate the readings of either half; a function that needs other batches tells nothing.

        Each reading goes in once, since collate functions may take their items apart.
        """
        made = []
        for half, seed in enumerate(self.seeds[:2]):
            readings = self.readings[half::2]
            _seed(seed)
            with contextlib.suppress(Exception):
                listed = self.batched and all(isinstance(each, list) for each in readings)
                together = [each for reading in readings for each in reading] if listed else None
                made.append(self.collate(readings[0] if together is None else together))
        return len(made) == 2 and not _same(*made)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators, too
    np.random.seed(seed)  # noqa: NPY002 - the global state is what data sets draw from
    random.seed(seed)


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
