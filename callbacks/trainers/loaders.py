"""Loaders as a measurement reads them: the same data, each sample once, shared out over ranks."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from ncmonitor.errors import InputError, nearest

_ORDER_SEED = 0  # of the order of samples, which is the same in every measurement
_UNTOLD_BATCH_SIZE = 64  # where a batch sampler does not say how large its batches are
_SETTINGS = (
    *("collate_fn", "num_workers", "worker_init_fn", "pin_memory", "pin_memory_device"),
    *("timeout", "multiprocessing_context", "prefetch_factor"),
)
_DEPTH = 8  # of a nested item; objects can refer to one another in circles


class FirstBatches:
    """The first batches of a loader, as often as asked.

    Args:
        loader: Anything that can be iterated again.
        count: How many batches.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first batches."""
        return itertools.islice(iter(self.loader), self.count)


def clean_loader(
    loader: Any,
    batches: float = math.inf,
    *,
    limited: bool = False,
    rank: int = 0,
    ranks: int = 1,
    batch_size: int | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Any:
    """Return a loader of the same data without dropped samples, each sample once, in fixed order.

    Every ``DataLoader`` becomes a plain one with its collate function and worker settings; what a
    subclass does in its own ``__iter__`` is not done. Of its samplers, those that only select keep
    their selection: explicit lists, ``SubsetRandomSampler`` and others with an ``indices``
    attribute, also inside Lightning's ``DistributedSamplerWrapper``. Any other is replaced by the
    whole data set: shuffling, weighted, distributed, batch and custom samplers.

    The samples come in one shuffled order, the same each time. Data sets are often sorted by class,
    and a batch of one class is no batch that a network with statistics of the batch (BatchNorm
    without running ones) is trained on. Rank r of R reads the samples from nr/R to n(r + 1)/R of
    that order. Batches that the data set itself makes, and lists or tuples of batches, stay as they
    are and are shared out likewise. Streams (iterable data sets, other iterables) are read as they
    are by every rank.

    To be iterated with the random states put aside: even without shuffling, a ``DataLoader`` draws
    from the global generator, which would change the training.

    Args:
        loader: The user's loader.
        batches: Batches that the trainer takes from it on each rank; a stream may have no end.
        limited: Whether to measure only so many batches of a data set with a length, too.
        rank: This process among the ``ranks``.
        ranks: Number of processes that share the data.
        batch_size: Samples per batch instead of the loader's own; ignored where the data set
            itself makes the batches (``batch_size=None`` without a batch sampler).
        samples: So many of a data set's samples, the same ones each time; ``None``: all. Of
            streams and lists of batches the reader takes the first.
        seed: Of that choice.

    Raises:
        InputError: If the data set has no length and no sampler lists its keys.
    """
    if reads_stream(loader):
        clean, scale = loader, 1.0
        if isinstance(loader, DataLoader):
            own = loader.batch_size
            clean = rebuilt(loader, batch_size=own and (batch_size or own))
            scale = own / (batch_size or own) if own else 1.0
        return FirstBatches(clean, math.ceil(batches * scale)) if batches < math.inf else clean
    if isinstance(loader, DataLoader):
        keys, size = sample_keys(loader), _samples_per_batch(loader)
        keys = keys[: int(batches) * size * ranks] if limited and batches < math.inf else keys
        keys, fetched = _some(keys, samples, seed), fetches_lists(loader)
        if loader.batch_sampler is None and not fetched:
            return rebuilt(loader, batch_size=None, sampler=_part(keys, rank, ranks))
        part = _part(_shuffled(keys), rank, ranks)
        if fetched:
            order = BatchSampler(part, batch_size or size, drop_last=False)
            return rebuilt(loader, batch_size=None, sampler=order)
        return rebuilt(loader, batch_size=batch_size or size, sampler=part)
    # The trainer gives every rank the whole list: no factor for the ranks.
    every = loader[: int(batches)] if limited and batches < math.inf else loader
    return _part(every, rank, ranks)


def reads_stream(loader: Any) -> bool:
    """Tell whether a loader can only be read from its beginning, so that ranks cannot share it."""
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, IterableDataset)
    return not isinstance(loader, (list, tuple))


def warn_streams_per_rank(loaders: Mapping[str, Any], ranks: int) -> None:
    """Warn, in one warning, of streams that every rank reads; to be called once, on rank zero.

    Args:
        loaders: The users' loaders or the clean ones, by split.
        ranks: Number of processes.
    """
    names = [name for name, loader in loaders.items() if reads_stream(loader)]
    if ranks > 1 and names:
        warnings.warn(
            f"the data of {', '.join(names)} is a stream: each of the {ranks} ranks measures what "
            "its own gives. Samples that several ranks read count as often; let the data set give "
            "every rank its own part",
            stacklevel=2,
        )


def several(loaders: Any) -> list[Any]:
    """Return the loaders of a ``CombinedLoader`` or of nested dicts and lists as one list."""
    if loaders is None:
        return []
    entries = _entries(loaders)
    if entries is None:
        return [loaders]
    return [each for entry in entries.values() for each in several(entry)]


def choose(source: Any, key: str | int | None = None) -> Any:
    """Pick the one loader to measure from what a trainer reads.

    Args:
        source: A loader, or a ``CombinedLoader``, dict or list of loaders.
        key: Key or position of the loader; ``None`` if there is only one. A list whose elements
            are batches is one loader.

    Raises:
        InputError: If there are several loaders and no key, no loader, or no such key.
    """
    entries = _entries(source)
    if entries is None:
        if key is None:
            return source
        raise InputError(
            f"dataloader={key!r} picks one of several training loaders, but there is only one: "
            "leave dataloader= out"
        )
    names = ", ".join(map(repr, entries)) or "none"
    if key is not None:
        if key not in entries or isinstance(key, bool):
            hint = nearest(key, map(str, entries)) if isinstance(key, str) else ""
            raise InputError(f"there is no training loader {key!r}{hint}; there are: {names}")
        return choose(entries[key])
    loaders = several(source)
    if len(loaders) != 1:
        raise InputError(
            f"expected one training loader, got {len(loaders)} (keys: {names}): pass "
            "dataloader= the key of the one to measure, or a loader"
        )
    return loaders[0]


def size_of(loader: Any) -> int | None:
    """Return the number of samples that a clean loader gives on this rank, if known beforehand."""
    if not isinstance(loader, DataLoader) or reads_stream(loader):
        return None
    order = loader.sampler
    if isinstance(order, BatchSampler):
        order = order.sampler
    elif loader.batch_sampler is None:  # items of the data set are batches of any size
        return None
    return len(order)  # type: ignore[arg-type]


def rebuilt(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return a plain loader of the same data set and settings, but for some."""
    # Not kept: persistent_workers (every measurement's workers would live on beside the training's
    # and carry their random states from one look at the data into the next), in_order=False
    # (two passes must give one order) and the generator (iterating would move it on).
    kept = {name: getattr(loader, name) for name in _SETTINGS}
    return DataLoader(loader.dataset, **(kept | changes))


def _some(keys: Sequence[Any], samples: int | None, seed: int) -> Sequence[Any]:
    """Return so many keys at random, in their order; the global generators are not touched."""
    if samples is None or samples >= len(keys):
        return keys
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(keys), generator=generator)[:samples].sort().values
    return [keys[index] for index in chosen.tolist()]


def _shuffled(keys: Sequence[Any]) -> Sequence[Any]:
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(_ORDER_SEED))
    return [keys[index] for index in order.tolist()]


def _part(data: Sequence[Any], rank: int, ranks: int) -> Sequence[Any]:
    return data[len(data) * rank // ranks : len(data) * (rank + 1) // ranks]


def sample_keys(loader: DataLoader[Any]) -> Sequence[Any]:
    """Return what to ask the data set for: a selecting sampler's keys, or every index."""
    for sampler in _samplers(loader):
        if (keys := _selected(sampler, batches=sampler is loader.batch_sampler)) is not None:
            return keys
    try:
        return range(len(loader.dataset))  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        raise InputError(
            f"the data set {type(loader.dataset).__name__} has no length, so its samples cannot be "
            "read one after the other; give it __len__, or pass dataloader= a DataLoader with "
            "sampler= a list of the keys to measure"
        ) from None


def _selected(sampler: Any, *, batches: bool) -> list[Any] | None:
    """Return the keys of a sampler that lists them, each once; ``None`` for any other."""
    explicit = (list, tuple, range, torch.Tensor, np.ndarray)
    distributed = isinstance(sampler, DistributedSampler)  # its indices may be one rank's
    listed = None if distributed else getattr(sampler, "indices", None)
    listed = sampler if isinstance(sampler, explicit) else listed
    if not isinstance(listed, explicit):
        return None
    listed = listed.tolist() if isinstance(listed, (torch.Tensor, np.ndarray)) else listed
    nested = (list, tuple) if batches else list  # a tuple can be a key
    keys = (key for entry in listed for key in (entry if isinstance(entry, nested) else [entry]))
    return list(dict.fromkeys(keys))


def _samplers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Walk from the outermost sampler inwards, through Lightning's and other wrappers."""
    inner: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    for _ in range(_DEPTH):
        yield inner
        data = getattr(inner, "dataset", None)
        wraps = "_DatasetSamplerWrapper" in (each.__name__ for each in type(data).__mro__)
        inner = data._sampler if wraps else getattr(inner, "sampler", None)  # type: ignore[union-attr]
        if inner is None:
            return


def fetches_lists(loader: DataLoader[Any]) -> bool:
    """Tell whether the data set is asked for lists of indices: a batch sampler as the sampler."""
    return loader.batch_sampler is None and any(
        isinstance(sampler, BatchSampler) for sampler in _samplers(loader)
    )


def _samples_per_batch(loader: DataLoader[Any]) -> int:
    if loader.batch_size is not None:
        return loader.batch_size
    if loader.batch_sampler is None and not fetches_lists(loader):
        return 1  # an item of the data set is a batch
    for sampler in _samplers(loader):
        size = getattr(sampler, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return _UNTOLD_BATCH_SIZE


def _entries(source: Any) -> dict[Any, Any] | None:
    """Return the loaders of a collection by key or position; ``None`` if it is one loader."""
    if "CombinedLoader" in (each.__name__ for each in type(source).__mro__):
        inner = _entries(source.iterables)
        return {0: source.iterables} if inner is None else inner
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, (list, tuple)) and all(map(_may_be_loader, source)):
        return dict(enumerate(source))
    return None


def _may_be_loader(entry: Any) -> bool:
    """Tell loaders from batches, which are nests of tensors or have ``.to(device)``."""
    if isinstance(entry, DataLoader):
        return True
    if isinstance(entry, (list, tuple)):
        return bool(entry) and all(map(_may_be_loader, entry))
    if isinstance(entry, Mapping):
        return bool(entry) and all(map(_may_be_loader, entry.values()))
    if isinstance(entry, (str, bytes, np.ndarray)) or hasattr(entry, "to"):
        return False
    return isinstance(entry, Iterable)
