"""From features to a report: two looks at the same numbers, one pass of the network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ncmonitor._checks import InputError, MeasurementError
from ncmonitor._tensors import as_tensor, check_features, check_labels
from ncmonitor.bank import DEFAULT_BANK_BYTES, Entry, FeatureBank
from ncmonitor.geometry import Frame
from ncmonitor.looks import Centres, Classifier, FirstLook, SecondLook
from ncmonitor.metrics import Snapshot, applicable, mantissa_bits, measured_values
from ncmonitor.moments import ClassMoments
from ncmonitor.report import CollapseReport

Batch = Sequence[Any]


def measure_collapse(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    logits: Any = None,
    num_classes: int | None = None,
    reference: ClassMoments | None = None,
) -> CollapseReport:
    """Measure neural collapse of features in memory.

    Args:
        features: ``(N, d)`` floating point, torch or numpy: the input of the last linear layer.
        labels: ``(N,)`` class indices in ``[0, K)``.
        weight: Rows of the last linear layer, ``(K, d)``. Without it every classifier metric is
            absent from the report.
        bias: Its bias, ``(K,)``.
        logits: ``(N, K)``, the network's own; else ``features @ weight.T + bias``.
        num_classes: K; found from ``weight``, ``logits``, ``reference`` or the largest label.
        reference: Moments whose class means decide the nearest class (NC4, NCC): those of the
            training set when this is another split. ``None`` uses the split's own.

    Returns:
        The report; undefined metrics are ``nan``.

    Raises:
        InputError: If shapes, dtypes or labels do not fit, or a feature is not finite.

    Example:
        >>> import torch
        >>> from ncmonitor import measure_collapse
        >>> means = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
        >>> report = measure_collapse(means.repeat(4, 1), torch.arange(3).repeat(4), weight=means)
        >>> report.nc1, report.nc4_disagreement, round(report.nc3_self_duality, 6)
        (0.0, 0.0, 0.0)
    """
    features, labels = as_tensor(features), as_tensor(labels)
    check_features(features)
    check_labels(labels, len(features))
    batch: Batch = (features, labels) if logits is None else (features, labels, as_tensor(logits))
    if num_classes is None and weight is None and logits is not None and batch[2].ndim == 2:
        num_classes = batch[2].shape[1]
    if num_classes is None and weight is None and reference is None:
        num_classes = max(2, int(labels.long().max()) + 1) if len(labels) else 2
    return collapse_report([batch], weight, bias, num_classes=num_classes, reference=reference)


def collapse_report(
    batches: Iterable[Batch],
    weight: Any = None,
    bias: Any = None,
    *,
    num_classes: int | None = None,
    reference: ClassMoments | None = None,
    bank_bytes: int = DEFAULT_BANK_BYTES,
) -> CollapseReport:
    """Measure neural collapse of features that come in batches, of any total size.

    Every feature is looked at twice: for the class means, then for what needs them. In between,
    up to ``bank_bytes`` of features are kept (a list or tuple of batches is in memory anyway);
    past the budget the iterable is read a second time and must give the same data.

    Args:
        batches: Re-iterable of ``(features, labels)`` or ``(features, labels, logits)`` with
            shapes ``(B, d)``, ``(B,)`` and ``(B, K)``.
        weight: As in :func:`measure_collapse`.
        bias: As in :func:`measure_collapse`.
        num_classes: K; found from ``weight`` or ``reference`` if not given.
        reference: As in :func:`measure_collapse`.
        bank_bytes: Budget for keeping features between the looks.

    Returns:
        The report; undefined metrics are ``nan``.

    Raises:
        InputError: As :func:`measure_collapse`; also if there is no sample, if the budget is
            exceeded by a source that can be read only once, or if two readings differ.
    """
    classifier = None if weight is None else Classifier(weight, bias)
    num_classes = _num_classes(num_classes, classifier, reference)
    bank = FeatureBank(bank_bytes, in_memory=isinstance(batches, (list, tuple)))
    first = FirstLook(num_classes, classifier)
    for entry in _entries(batches, first):
        bank.add(*entry)
    _check_first(first, reference)
    entries = iter(bank)
    again = None
    if not bank.complete:
        again = FirstLook(num_classes, classifier)
        entries = _entries(_reread(batches, bank), again)
    report = _finish(first, entries, classifier, reference)
    if again is not None:
        _check_same(first, again, bank.needed)
    return report


def _entries(batches: Iterable[Batch], look: FirstLook) -> Iterator[Entry]:
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            kind = type(batch).__name__
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise InputError(
                "expected batches of (features, labels) or (features, labels, logits), "
                f"got a {kind}{size}"
            )
        features, labels, *logits = map(as_tensor, batch)
        yield features, labels, look.update(features, labels, *logits)


def _finish(
    first: FirstLook,
    entries: Iterable[Entry],
    classifier: Classifier | None,
    reference: ClassMoments | None,
) -> CollapseReport:
    moments = first.moments
    present = (moments.counts > 0).nonzero().squeeze(1).cpu()
    means = mean_frame(moments, present)
    second = _second_look(first, means, present, entries, reference)
    snapshot = Snapshot(
        counts=moments.counts.cpu()[present].double(),
        variances=moments.class_variances.cpu()[present],
        means=means,
        whitened=second.whitened.cpu()[present],
        in_span=second.in_span.cpu()[present],
        classifier=None if classifier is None else Frame.of(classifier.weight.cpu()[present]),
        disagreement=second.disagreement if first.decides else None,
        accuracy=second.accuracy,
        neg_clips=moments.neg_clips,
        feature_dtype=_feature_dtype(moments),
    )
    values = measured_values(snapshot) if len(present) > 1 else _without_geometry(snapshot)
    return CollapseReport(
        values,
        moments,
        error=first.error if first.decides else math.nan,
        cross_entropy=first.cross_entropy if first.decides else math.nan,
        samples=first.samples,
    )


def _second_look(
    first: FirstLook,
    means: Frame,
    present: Tensor,
    entries: Iterable[Entry],
    reference: ClassMoments | None,
) -> SecondLook:
    moments = first.moments
    own = train = Centres(moments, means, present)
    if reference is not None:
        seen = (reference.counts > 0).nonzero().squeeze(1).cpu()
        reference = reference.to(moments.references.device)
        train = Centres(reference, mean_frame(reference, seen), seen)
    second = SecondLook(moments.num_classes, own, 1 / means.singular_values[: means.rank], train)
    for entry in entries:
        second.update(*entry)
    return second


def _without_geometry(one: Snapshot) -> dict[str, float]:
    """Return the values for a single class: ``nan`` for all that needs the means of two."""
    names = applicable(
        classifier=one.classifier is not None, decisions=one.disagreement is not None
    )
    decisions = {"nc4_disagreement": one.disagreement, "ncc_accuracy": one.accuracy}
    known = {name: value for name, value in decisions.items() if value is not None} | {
        "n_classes_present": 1.0,
        "min_class_count": float(one.counts[0]),
        "n_singleton_classes": float(one.counts[0] == 1),
        "degenerate_classes": 1.0,
        "nc1_rank": 0.0,
        "neg_clips": float(one.neg_clips),
        "feature_dtype": mantissa_bits(one.feature_dtype),
    }
    return {name: known.get(name, math.nan) for name in names}


def mean_frame(moments: ClassMoments, present: Tensor) -> Frame:
    """Return the frame of the present classes' means.

    Means are given relative to the first class's reference point, which takes a large common
    offset out exactly: references are numbers of the features' own precision.

    Args:
        moments: Of any split.
        present: Indices of the classes that have samples, ``(K_S,)``.
    """
    references = moments.references.cpu()[present].double()
    rows = (references - references[0]) + moments.offsets.cpu()[present]
    square_norms = moments.class_variances.cpu()[present] + (rows + references[0]).square().sum(1)
    # Not divided by the root of a class's count: samples that have collapsed to the rounding step
    # all round alike, so the rounding of their mean does not average out.
    unit = torch.finfo(_feature_dtype(moments)).eps
    return Frame.of(rows, resolution=unit * math.sqrt(float(square_norms.mean())))


def _feature_dtype(moments: ClassMoments) -> torch.dtype:
    assert moments.feature_dtype is not None  # set by the first sample
    return moments.feature_dtype


def _num_classes(
    given: int | None, classifier: Classifier | None, reference: ClassMoments | None
) -> int:
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


def _check_first(first: FirstLook, reference: ClassMoments | None) -> None:
    if not first.samples:
        raise InputError("there is nothing to measure: expected at least one sample, got none")
    if not bool(torch.isfinite(first.moments.offsets).all()):
        raise MeasurementError(
            "the features are not finite (nan or inf): the network has diverged, or the data "
            "holds such values"
        )
    if reference is None:
        return
    if not bool(reference.counts.any()):
        raise InputError("reference holds no sample: update it with the training features first")
    expected = (reference.num_classes, reference.dim)
    got = (first.moments.num_classes, first.moments.dim)
    if expected != got:
        raise InputError(
            f"reference has {expected[0]} classes of dimension {expected[1]}, "
            f"the features have {got[0]} of dimension {got[1]}"
        )


def _reread(batches: Iterable[Batch], bank: FeatureBank) -> Iterable[Batch]:
    if iter(batches) is batches:
        raise InputError(
            f"the features take {bank.needed:,} bytes, more than bank_bytes={bank.budget:,}, and "
            "the source can be read only once: pass a re-iterable such as a DataLoader, or "
            f"bank_bytes={bank.needed}"
        )
    warnings.warn(
        f"features take {bank.needed:,} bytes, more than bank_bytes={bank.budget:,}: the network "
        f"runs a second time; bank_bytes={bank.needed} avoids it",
        stacklevel=3,
    )
    return batches


def _check_same(first: FirstLook, again: FirstLook, needed: int) -> None:
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
        f"bank_bytes={needed} to read once"
    )
