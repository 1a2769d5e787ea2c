"""The result of one measurement: named numbers, immutable, readable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ncmonitor.catalogue import CATALOGUE, METRICS

if TYPE_CHECKING:
    import pandas as pd

    from ncmonitor.moments import ClassMoments

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
        convention: How classes are weighted.
    """

    values: Mapping[str, float]
    moments: ClassMoments = field(compare=False)
    error: float = math.nan
    cross_entropy: float = math.nan
    samples: int = 0
    convention: str = "class-balanced"

    def __post_init__(self) -> None:
        """Freeze the values too."""
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __getattr__(self, name: str) -> float:
        """Return a metric by name.

        Raises:
            AttributeError: If it is unknown, or was not measured; the message says which.
        """
        values: Mapping[str, float] = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        if name in CATALOGUE:
            raise AttributeError(
                f"{name} was not measured here; classifier metrics need weight (and bias), "
                f"NC4 needs weight or logits. Measured: {', '.join(values)}"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        """List the metrics beside the ordinary attributes."""
        return sorted({*super().__dir__(), *self.values})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through plain values: a read-only mapping does not pickle."""
        state = (self.error, self.cross_entropy, self.samples, self.convention)
        return type(self), (dict(self.values), self.moments, *state)

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """Return the metrics as ``{prefix + name: value}``, ready for ``log_dict``."""
        return {prefix + name: value for name, value in self.values.items()}

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


def _shown(name: str, value: float) -> str:
    if name == "feature_dtype" and not math.isnan(value):
        return _DTYPE_OF_BITS.get(int(value), f"{value:g}")
    return f"{value:.6g}"
