"""Measure neural collapse: of features in memory, or of batches of any total size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ncmonitor.catalogue import MetricChoice
from ncmonitor.errors import InputError, check_whole
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.inputs.labels import check_device, check_kind, flatten_tokens
from ncmonitor.inputs.tensors import as_tensor, check_floating
from ncmonitor.measurement.pipeline import Batch, Single, Study, run
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.measurement.shuffled_labels import while_alive
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.feature_cache import DEFAULT_CACHE_BYTES, Budget, FeatureCache
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.source_checks import num_classes_of


def measure_collapse(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    logits: Any = None,
    num_classes: int | None = None,
    reference: ClassMoments | None = None,
    metrics: MetricChoice = "default",
    convention: str = "per_class",
    superclasses: Sequence[int] | None = None,
    ridge: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    null_seed: int | None = None,
) -> CollapseReport:
    """Measure neural collapse of features in memory.

    Args:
        features: ``(N, d)`` floating point, torch or numpy: the input of the last linear layer.
            ``(B, T, d)`` with labels ``(B, T)`` is taken token by token. Half precision is read
            as float32.
        labels: ``(N,)`` class indices in ``[0, K)``.
        weight: Rows of the last linear layer, ``(K, d)``. Without it every classifier metric is
            absent from the report.
        bias: Its bias, ``(K,)``.
        logits: ``(N, K)``, the network's own; else ``features @ weight.T + bias``.
        num_classes: K; found from ``weight``, ``logits``, ``reference`` or the largest label.
        reference: Moments whose class means decide the nearest class (NC4, NCC): those of the
            training set when this is another split. ``None`` uses the split's own.
        metrics: What to compute beside the default: ``"all"``, or names of metrics and groups, as
            in ``["imbalance", "vci"]``; ``ncmonitor metrics`` lists them.
        convention: For NC1, NC2 of the means and NC3 self-duality (``ncmonitor metrics NAME`` says
            so): ``"per_class"``, every class weighs the same; ``"per_sample"``, every sample does;
            ``"papyan_code"``, as in the notebook of Papyan, Han & Donoho (NC1 without 1/K and with
            sample-weighted Σ_W, sample standard deviation in equinorm, squared NC3). The others
            weigh classes equally whatever it says.
        superclasses: Block of each class, ``(K,)``: asks for ``sk_residual_block``.
        ridge: λ of the squared loss's decomposition (``mse_l_*``): half the weight decay for a
            loss summed over the classes.
        ignore_index: Samples with this label are left out.
        null_seed: Also measure with labels shuffled by this seed at once, for ``report.null()``.

    Returns:
        The report; undefined metrics are ``nan``. Its :meth:`~CollapseReport.null` measures the
        same features with shuffled labels while they are in memory.

    Raises:
        InputError: If shapes, dtypes, devices or labels do not fit, or a feature is not finite.

    Example:
        >>> import torch
        >>> from ncmonitor import measure_collapse
        >>> means = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
        >>> report = measure_collapse(means.repeat(4, 1), torch.arange(3).repeat(4), weight=means)
        >>> report.nc1, report.nc4_disagreement, round(report.nc3_self_duality, 6)
        (0.0, 0.0, 0.0)
    """
    settings = Settings.of(metrics, convention, superclasses, ridge, ignore_index)
    batch = _batch_of(features, labels, logits)
    if num_classes is None and weight is None and reference is None:
        num_classes = _classes_of(batch, ignore_index)

    def measure(*arrays: Any, null_seed: int | None = None) -> CollapseReport:
        features, labels, weight, bias, logits = arrays
        batch = [_batch_of(features, labels, logits)]
        return measure_checked(
            batch, weight, bias, num_classes, reference, settings, null_seed=null_seed
        )

    arrays = (features, labels, weight, bias, logits)
    if null_seed is not None:
        return measure(*arrays, null_seed=null_seed)
    return replace(measure(*arrays), shuffle=while_alive(arrays, (0, 4), measure))


def measure_batches(
    batches: Iterable[Batch],
    weight: Any = None,
    bias: Any = None,
    *,
    num_classes: int | None = None,
    reference: ClassMoments | None = None,
    metrics: MetricChoice = "default",
    convention: str = "per_class",
    superclasses: Sequence[int] | None = None,
    ridge: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    null_seed: int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> CollapseReport:
    """Measure neural collapse of features that come in batches, of any total size.

    Every feature is looked at twice: for the class means, then for what needs them. In between,
    up to ``cache_bytes`` of features are kept (a list or tuple of batches is in memory anyway);
    past the budget the iterable is read a second time and must give the same data.

    Args:
        batches: Re-iterable of ``(features, labels)`` or ``(features, labels, logits)`` with
            shapes ``(B, d)``, ``(B,)`` and ``(B, K)``; or ``(B, T, d)``, ``(B, T)``, ``(B, T, K)``.
        weight: As in :func:`measure_collapse`.
        bias: As in :func:`measure_collapse`.
        num_classes: K; found from ``weight`` or ``reference`` if not given.
        reference: As in :func:`measure_collapse`.
        metrics: As in :func:`measure_collapse`.
        convention: As in :func:`measure_collapse`.
        superclasses: As in :func:`measure_collapse`.
        ridge: As in :func:`measure_collapse`.
        ignore_index: As in :func:`measure_collapse`.
        null_seed: Also measure with labels shuffled by this seed, for ``report.null()``: two more
            passes.
        cache_bytes: Budget for keeping features between the passes.

    Returns:
        The report; undefined metrics are ``nan``.

    Raises:
        InputError: As :func:`measure_collapse`; also if there is no sample, if the budget is
            exceeded by a source that can be read only once, or if two readings differ.
    """
    settings = Settings.of(metrics, convention, superclasses, ridge, ignore_index)
    return measure_checked(
        batches, weight, bias, num_classes, reference, settings, cache_bytes, null_seed
    )


def measure_checked(
    batches: Iterable[Batch],
    weight: Any,
    bias: Any,
    num_classes: int | None = None,
    reference: ClassMoments | None = None,
    settings: Settings | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    null_seed: int | None = None,
) -> CollapseReport:
    """Look twice at every feature; twice more with shuffled labels if there is a seed.

    As :func:`measure_batches`, with choices that have been checked.
    """
    settings = settings or Settings()
    check_whole("cache_bytes", cache_bytes)
    if null_seed is not None:
        check_whole("null_seed", null_seed)
    if weight is None and bias is not None:
        raise InputError("bias= alone gives no logits: pass weight= with it, or logits=")
    classifier = None if weight is None else Classifier(weight, bias)
    count = num_classes_of(num_classes, classifier, reference)
    settings.check_classes(count)
    budget = Budget(cache_bytes, in_memory=isinstance(batches, (list, tuple)))
    study = Study(count, classifier, settings, FeatureCache(budget), reference)
    [report] = run([study], Single(batches), null_seed=null_seed)
    return report


def _batch_of(features: Any, labels: Any, logits: Any) -> Batch:
    features, labels = as_tensor(features), as_tensor(labels)
    check_floating(features)
    return (features, labels) if logits is None else (features, labels, as_tensor(logits))


def _classes_of(batch: Batch, ignore_index: int) -> int:
    """Return K from the logits, else from the largest label."""
    if len(batch) == 3 and batch[2].ndim > 1:
        return int(batch[2].shape[-1])
    features, labels = flatten_tokens(*batch[:2])
    check_device(features, labels)
    check_kind(labels, len(features))
    labels = labels.long()
    counted = labels[labels != ignore_index]
    if len(counted) and int(counted.max()) == 0:
        raise InputError(
            "every label is 0, and neural collapse compares classes: pass num_classes= if there "
            "are others, without samples here"
        )
    return int(counted.max()) + 1 if len(counted) else 2
