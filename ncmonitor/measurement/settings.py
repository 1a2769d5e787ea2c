"""What to compute and how: the choices of a user, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ncmonitor.catalogue import CATALOGUE, METRIC_NAMES, MetricChoice, chosen
from ncmonitor.errors import InputError, check_whole
from ncmonitor.inputs.conventions import CONVENTIONS, IGNORE_INDEX, Convention, convention_named


@dataclass(frozen=True)
class Settings:
    """The choices of one measurement; see :func:`~ncmonitor.measurement.measure.measure_collapse`.

    Attributes:
        names: Metrics to compute, in catalogue order.
        convention: How classes are weighted.
        superclasses: Block of each of the K classes, for ``sk_residual_block``.
        ridge: λ of the squared loss's decomposition.
        ignore_index: Samples with this label are left out.
    """

    names: tuple[str, ...] = METRIC_NAMES
    convention: Convention = CONVENTIONS["per_class"]
    superclasses: tuple[int, ...] | None = None
    ridge: float = 0.0
    ignore_index: int = IGNORE_INDEX

    @classmethod
    def of(
        cls,
        metrics: MetricChoice = "default",
        convention: str = "per_class",
        superclasses: Sequence[int] | None = None,
        ridge: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
    ) -> Settings:
        """Check the choices.

        Raises:
            InputError: If one of them is none.
        """
        number: object = ridge  # whatever it is said to be
        if not isinstance(number, Real) or not 0 <= float(number) < math.inf:
            raise InputError(
                f"ridge= must be a number and at least 0, got {ridge!r}: it is λ of the squared "
                "loss, half the weight decay of the last layer"
            )
        check_whole("ignore_index", ignore_index)
        blocks = None if superclasses is None else _whole_numbers(superclasses)
        names, how = chosen(metrics), convention_named(convention)
        if blocks is not None:  # that is what they are for
            names = chosen([*names, "sk_residual_block"])
        return cls(names, how, blocks, float(ridge), int(ignore_index))

    def check_classes(self, num_classes: int) -> None:
        """Raise :class:`InputError` unless every class has a super-class, if there are any."""
        if self.superclasses is not None and len(self.superclasses) != num_classes:
            raise InputError(
                f"superclasses= must name one block for each of the {num_classes} classes, "
                f"got {len(self.superclasses)}"
            )

    @property
    def extra(self) -> tuple[str, ...]:
        """What is measured beside the default."""
        return tuple(name for name in self.names if not CATALOGUE[name].default)

    def asks(self, *names: str) -> bool:
        """Whether one of these metrics is wanted."""
        return any(name in self.names for name in names)


def _whole_numbers(values: Sequence[Any]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(value) for value in values)
        whole = all(n == v and abs(n) < 2**63 for n, v in zip(numbers, values, strict=True))
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(f"superclasses= must be one whole number per class, got {values!r}")
    return numbers
