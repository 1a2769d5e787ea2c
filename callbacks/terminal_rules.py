"""When a run has gone far enough into the terminal phase: the rules, over rows of the history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Final

from ncmonitor.catalogue import CATALOGUE, METRICS
from ncmonitor.errors import InputError, check_whole, nearest
from ncmonitor.monitor.history_rows import Row

_STARTS: Final = {"exact": "tpt_start_exact", "effective": "tpt_start_effective"}
#: What comes to rest: one number that collapse drives to a known value, of classification.
_USABLE: Final = tuple(
    q.name
    for q in METRICS
    if q.collapse is not None and not q.vector and q.needs != "targets" and q.group != "diagnostics"
)


@dataclass(frozen=True)
class PhaseRules:
    """Rules that end a run; parameters as in ``TerminalPhase``.

    Raises:
        InputError: For wrong values.
    """

    epochs: int | None
    times: float | None
    plateau: str | None
    patience: int
    min_change: float
    start: str

    def __post_init__(self) -> None:
        epochs = 1 if self.epochs is None else self.epochs
        for name, value in (("epochs", epochs), ("patience", self.patience)):
            check_whole(name, value)
            if value < 1:
                raise InputError(f"{name}= must be at least 1 epoch, but is {value}")
        if self.times is not None and not (_is_finite(self.times) and self.times > 1):
            raise InputError(
                f"times= multiplies the epoch of the onset and must be above 1, got {self.times!r}"
            )
        if not (_is_finite(self.min_change) and 0 <= self.min_change < 1):
            raise InputError(f"min_change= must be a share in [0, 1), but is {self.min_change!r}")
        if self.start not in _STARTS:
            hint = nearest(str(self.start), _STARTS)
            raise InputError(f"start= must be one of {tuple(_STARTS)}, but is {self.start!r}{hint}")
        if self.plateau is not None and self.plateau not in _USABLE:
            raise InputError(_no_plateau(self.plateau))

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return not (self.epochs is None and self.times is None and self.plateau is None)

    def onset(self, rows: Sequence[Row]) -> int | None:
        """Return the first measured epoch of the phase, or ``None`` before it.

        Args:
            rows: Of the history, the oldest first.
        """
        newest = _newest(rows)
        start = math.nan if newest is None else float(newest[_STARTS[self.start]])
        return None if math.isnan(start) else int(start)

    def due(self, rows: Sequence[Row], epoch: int) -> str | None:
        """Return the rule that holds after ``epoch`` completed epochs, in words.

        Args:
            rows: Of the history, the oldest first; the newest may be older than ``epoch``.
            epoch: Completed epochs.
        """
        newest, onset = _newest(rows), self.onset(rows)
        if newest is None or onset is None:
            return None
        exits = int(float(newest["tpt_exits"]))
        since = f"the terminal phase began at epoch {onset}"
        since += f" and was left {exits}x" if exits else ""
        if self.epochs is not None and epoch - onset >= self.epochs:
            return f"{since}, {epoch - onset} epochs ago"
        # An onset at epoch 0 (fine-tuning) has no multiples.
        if self.times is not None and epoch >= self.times * max(onset, 1):
            return f"{since}; this is {self.times:g} times as many epochs"
        flat = None if self.plateau is None else self._flat(self.plateau, rows, onset)
        return None if flat is None else f"{flat}; {since}"

    def _flat(self, name: str, rows: Sequence[Row], onset: int) -> str | None:
        """Return that the metric has come to rest, in words, or ``None`` if it has not."""
        goal = CATALOGUE[name].collapse or 0.0
        best, best_epoch, epoch = math.inf, onset, onset
        for row in rows:
            if row["split"] != "train" or int(row["epoch"]) < onset:
                continue
            # A run that goes on from a checkpoint may have begun without this metric.
            distance = abs(float(row.get(name, math.nan)) - goal)
            if math.isnan(distance):
                continue
            epoch = int(row["epoch"])
            if distance < best * (1 - self.min_change):
                best, best_epoch = distance, epoch
        if math.isinf(best) or epoch - best_epoch < self.patience:
            return None
        return (
            f"{name} has not come {self.min_change:.3g} (relative) closer to {goal:g} in "
            f"{epoch - best_epoch} epochs, best distance {best:.3g} at epoch {best_epoch}"
        )


def _newest(rows: Sequence[Row]) -> Row | None:
    return next((row for row in reversed(rows) if row["split"] == "train"), None)


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _no_plateau(name: object) -> str:
    if isinstance(name, str) and name in CATALOGUE:
        return (
            f"plateau={name!r} has no single number that collapse drives to a known value; "
            "nc1, nc2_etf_means and nc3_self_duality have"
        )
    hint = nearest(str(name), _USABLE) or "; `ncmonitor metrics` lists them"
    return f"plateau= must be the name of a metric, but is {name!r}{hint}"
