"""Whether a source of features can be measured: checks between the passes, each with its words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ncmonitor.errors import InputError, MeasurementError, warn
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.feature_cache import Budget
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.passes import FirstPass


def num_classes_of(
    given: int | None, classifier: Classifier | None, reference: ClassMoments | None
) -> int:
    """Return K as given, or as the classifier and the reference have it; refuse others."""
    if reference is not None and not isinstance(reference, ClassMoments):
        raise InputError(
            f"reference= must be the ClassMoments of another split (report.moments), "
            f"got a {type(reference).__name__}"
        )
    if classifier is not None:
        rows = int(classifier.weight.shape[0])
        if given not in (None, rows):
            raise InputError(f"num_classes={given}, but weight has {rows} rows, one per class")
        return rows
    if given is not None:
        return given
    if reference is not None:
        return reference.num_classes
    raise InputError("the number of classes is unknown: pass num_classes= or weight=")


def check_first(first: FirstPass, reference: ClassMoments | None) -> None:
    """Refuse a first pass without samples, or with values that are not finite."""
    if not first.samples:
        raise InputError(
            "there is nothing to measure: expected at least one sample, got none (samples whose "
            f"label is ignore_index={first.moments.ignore_index} are left out)"
        )
    if not first.moments.finite:
        raise MeasurementError(
            "the features are not finite (nan or inf): the network has diverged, or the data "
            "holds such values"
        )
    if reference is None:
        return
    if not bool(reference.counts.any()):
        raise InputError("reference holds no sample: update it with the training features first")
    if not reference.finite:
        raise MeasurementError("the class means of reference= are not finite (nan or inf)")
    expected = (reference.num_classes, reference.dim)
    got = (first.moments.num_classes, first.moments.dim)
    if expected != got:
        raise InputError(
            f"reference has {expected[0]} classes of dimension {expected[1]}, "
            f"the features have {got[0]} of dimension {got[1]}"
        )


def check_rereadable(batches: Iterable[Any], budget: Budget, times: int) -> None:
    """Refuse a source that can be read once only, if it has to be read again; else say so."""
    if getattr(batches, "once", False):
        raise InputError(
            f"the features take {budget.needed:,} bytes, more than cache_bytes={budget.limit:,}, "
            "and the source can be read only once: pass a re-iterable such as a DataLoader, or "
            f"cache_bytes={budget.needed}"
        )
    warn(
        f"features take {budget.needed:,} bytes, more than cache_bytes={budget.limit:,}: the "
        f"network runs {'a second time' if times == 2 else f'{times} times'}; "
        f"cache_bytes={budget.needed} avoids it",
        stacklevel=5,
    )


def check_same(first: FirstPass, again: FirstPass, needed: int) -> None:
    """Compare two readings; equal data differs by rounding only, augmented data by far more."""
    one, two = first.moments, again.moments
    if one.counts.equal(two.counts):
        spread = one.class_variances.nanmean()
        drift = (one.class_means - two.class_means).nan_to_num().square().sum(1)
        change = (one.class_variances - two.class_variances).nan_to_num().abs()
        if bool((drift + change <= 1e-4 * spread).all()):
            return
    raise MeasurementError(
        "the data changed between two readings (random augmentation or sampling?), so nothing "
        "exact can be said: pass a loader without randomness as dataloader=, or "
        f"cache_bytes={needed} to read once"
    )
