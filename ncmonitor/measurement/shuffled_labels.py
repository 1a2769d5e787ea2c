"""What no structure looks like: the same features, measured with shuffled labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.statistics.feature_cache import Entry
from ncmonitor.statistics.passes import FirstPass
from ncmonitor.statistics.process_group import ProcessGroup

if TYPE_CHECKING:
    from ncmonitor.measurement.report import CollapseReport

Source = Callable[[], Iterable[Entry]]


def relabelled(
    first: FirstPass, source: Source, labels: Sequence[Tensor], shuffled: Tensor
) -> tuple[FirstPass, Iterator[Entry]]:
    """Make a first pass over a stream with shuffled labels, and prepare the second.

    Counts per class stay as they are; features and predictions too.

    Args:
        first: A fresh one.
        source: Returns the entries of the stream, from the start.
        labels: Of all entries, in order.
        shuffled: The labels instead, from :func:`permuted`.

    Returns:
        The first pass, and the entries for the second.
    """
    parts = torch.split(shuffled, [len(part) for part in labels])

    def entries() -> Iterator[Entry]:
        for (features, own, predicted), before, part in zip(source(), labels, parts, strict=False):
            if not torch.equal(own, before):  # of every sample one label, at every reading
                raise InputError(
                    "the source gives its samples in another order at each reading, so that no "
                    "null can be measured: pass a loader that does not shuffle, or a larger "
                    "cache_bytes="
                )
            yield features, part, predicted

    for entry in entries():
        first.replay(*entry)
    return first, entries()


def permuted(labels: Sequence[Tensor], num_classes: int, seed: int, ranks: ProcessGroup) -> Tensor:
    """Return this rank's share of all ranks' labels in another order; a collective.

    Args:
        labels: Of all entries on this rank, in order; others than classes keep their places.
        num_classes: K.
        seed: Of the permutation; no global generator is touched.
        ranks: Those whose labels are shuffled together.

    Returns:
        ``(N,)`` int64 for the N samples of this rank.
    """
    own = torch.cat([torch.empty(0, dtype=torch.int64), *(part.cpu() for part in labels)])
    shares = ranks.gather(own)
    every = torch.cat(shares)
    kept = (every < num_classes).nonzero().squeeze(1)  # the others are left out
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(int(seed)))
    every[kept] = every[kept[order]]
    share = torch.split(every, [len(share) for share in shares])[ranks.rank]
    return share.to(labels[0].device) if len(labels) else share


def while_alive(
    arrays: Sequence[Any], large: Sequence[int], measure: Callable[..., CollapseReport]
) -> Callable[[int], CollapseReport]:
    """Return what measures the arrays again, with shuffled labels, while somebody holds them.

    A report must not keep its features in memory: a history of reports would hold a data set each.

    Args:
        arrays: What was measured.
        large: Which of them to remember weakly; the others are small beside the report's own
            moments.
        measure: Measures them, with ``null_seed=``.
    """
    remembered = [
        _weakly(array) if i in large and array is not None else _strongly(array)
        for i, array in enumerate(arrays)
    ]
    absent = [array is None for array in arrays]
    before = [_version(array) for array in arrays]

    def shuffle(seed: int) -> CollapseReport:
        found = [recall() for recall in remembered]
        if [array is None for array in found] != absent:
            raise InputError(
                "the features of this report are gone, and a report does not keep them: call "
                "null() while they are in memory, or measure with null_seed=0"
            )
        if [_version(array) for array in found] != before:
            raise InputError(
                "the arrays of this report have changed since (training goes on in place): call "
                "null() before, or measure with null_seed="
            )
        return measure(*found, null_seed=seed).null(seed)

    return shuffle


def _weakly(array: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(array)
    except TypeError:  # no torch or numpy array
        return _strongly(array)


def _version(array: Any) -> int | None:
    """Return how often a tensor has been changed in place; ``None`` where nobody counts."""
    if not isinstance(array, Tensor) or array.is_inference():
        return None
    return array._version


def _strongly(array: Any) -> Callable[[], Any]:
    return lambda: array


def only_for(measured: int, null: CollapseReport | Exception) -> Callable[[int], CollapseReport]:
    """Return what gives the one null that was measured on the way, or says why there is none."""

    def shuffle(seed: int) -> CollapseReport:
        if seed != measured:
            raise InputError(
                f"the null of this report was measured with seed {measured}, not {seed}: ask for "
                f"null({measured}), or measure with null_seed={seed}"
            )
        if isinstance(null, Exception):
            raise null
        return null

    return shuffle
