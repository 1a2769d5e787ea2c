"""The result of one measurement: named numbers, immutable, readable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ncmonitor.catalogue import CATALOGUE, METRICS, MONITORED
from ncmonitor.errors import InputError, check_whole

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from ncmonitor.statistics.moments import ClassMoments

#: Up to so many classes :meth:`CollapseReport.as_dict` spells numbers per class out.
PER_CLASS_KEYS = 100

_DTYPE_OF_BITS = {53: "float64", 24: "float32", 11: "float16", 8: "bfloat16"}


@dataclass(frozen=True, repr=False)
class CollapseReport:
    """Every metric of one split at fixed weights.

    Metrics are attributes under their catalogue names (``report.nc1``). A metric that is
    undefined is ``nan``; one that does not apply, such as a classifier metric without classifier
    weights, is absent.

    Attributes:
        values: Metric name to value, in catalogue order.
        moments: Counts, means and variances of the split: the ``reference`` for another split.
        error: Share of samples the network gets wrong; ``nan`` without logits or classifier.
        cross_entropy: Mean cross-entropy of the logits in nats; ``nan`` likewise.
        samples: Number of samples measured.
        convention: How classes are weighted: ``"per_class"``, ``"per_sample"``, ``"papyan_code"``.
        vectors: Metrics that have one number per class, ``(K,)`` float64, ``nan`` without samples.
        shuffle: From a seed to the null; see :meth:`null`.
    """

    values: Mapping[str, float]
    moments: ClassMoments = field(compare=False)
    error: float = math.nan
    cross_entropy: float = math.nan
    samples: int = 0
    convention: str = "per_class"
    vectors: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    shuffle: Callable[[int], CollapseReport] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Freeze the values too."""
        for name in ("values", "vectors"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __getattr__(self, name: str) -> Any:
        """Return a metric by name: a number, or a ``(K,)`` tensor for one per class.

        Raises:
            AttributeError: If it is unknown, or was not measured; the message says which.
        """
        for measured in (self.__dict__.get("values", {}), self.__dict__.get("vectors", {})):
            if name in measured:
                return measured[name]
        if name in CATALOGUE:
            raise AttributeError(f"{name} was not measured here: {_reason(name)}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        """List the metrics beside the ordinary attributes."""
        return sorted({*super().__dir__(), *self.values, *self.vectors})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through plain values: a read-only mapping does not pickle."""
        state = (self.error, self.cross_entropy, self.samples, self.convention)
        return type(self), (dict(self.values), self.moments, *state, dict(self.vectors))

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """Return the metrics as ``{prefix + name: value}``, ready for ``log_dict``.

        One number per class is spelled out as ``name/0``, ``name/1``, ... up to 100 classes;
        beyond, it is in :attr:`vectors` only.
        """
        values = dict(self.values)
        for name, numbers in self.vectors.items():
            if len(numbers) <= PER_CLASS_KEYS:
                values |= {f"{name}/{c}": value for c, value in enumerate(numbers.tolist())}
        return {prefix + name: value for name, value in values.items()}

    def null(self, seed: int = 0) -> CollapseReport:
        """Measure the same features with shuffled labels: what no class structure looks like here.

        Counts, features, classifier and predictions stay; the cross-entropy is ``nan``. For what
        has a closed form, see :func:`ncmonitor.theory.null_expectations`.

        Args:
            seed: Of the permutation; no global generator is touched.

        Returns:
            The report of the shuffled labels, with the same metrics.

        Raises:
            InputError: If the features are no longer in memory, or came in batches without
                ``null_seed=``.
        """
        check_whole("seed", seed)
        if self.shuffle is None:
            raise InputError(
                "this report cannot be measured again: pass null_seed= to measure_batches, or "
                "null_seed= to the callback"
            )
        return self.shuffle(int(seed))

    def to_frame(self) -> pd.DataFrame:
        """Return a table: metric, value, value at collapse, group, definition, meaning, source."""
        import pandas as pd

        rows = [
            (q.name, self.values[q.name], q.collapse, q.group, q.definition, q.meaning, q.source)
            for q in METRICS
            if q.name in self.values
        ]
        columns = ["metric", "value", "collapse", "group", "definition", "meaning", "source"]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        """Return a table of the metrics, with their values at collapse."""
        head = f"Neural collapse of {self.samples} samples ({self.convention})"
        if not math.isnan(self.error):
            head += f", error {self.error:.4%}, cross-entropy {self.cross_entropy:.4g}"
        lines = [head, f"{'metric':<26} {'value':>12}  {'collapse':>8}  meaning"]
        for quantity in METRICS:
            if quantity.name in self.values:
                target = "" if quantity.collapse is None else f"{quantity.collapse:g}"
                value = _shown(quantity.name, self.values[quantity.name])
                lines.append(f"{quantity.name:<26} {value:>12}  {target:>8}  {quantity.meaning}")
        return "\n".join(lines)

    __repr__ = __str__


def _reason(name: str) -> str:
    quantity = CATALOGUE[name]
    if quantity.group in ("fit", "phase"):
        return "it belongs to the history of a run"
    if quantity.group in MONITORED:
        return "SymmetryMonitor measures it"
    if quantity.needs == "targets":
        return "it is for regression, see ncmonitor.measure_regression"
    if not quantity.default:
        return f'ask for it with metrics=["{name}"]'
    return "it needs weight (and bias)" if quantity.needs == "classifier" else "it needs logits"


def _shown(name: str, value: float) -> str:
    if name == "feature_dtype" and not math.isnan(value):
        return _DTYPE_OF_BITS.get(int(value), f"{value:g}")
    return f"{value:.6g}"
