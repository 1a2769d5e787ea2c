"""What a run has measured so far, and the clocks that run beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from ncmonitor.callbacks.trainers.progress import Overhead
from ncmonitor.catalogue import METRIC_NAMES
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.monitor.history import known_columns
from ncmonitor.monitor.history_rows import Row, history_row
from ncmonitor.monitor.phase_clock import PhaseClock, decay_time


class RunState:
    """Rows of the history, the clock of the terminal phase, and weight-decay time.

    Args:
        tpt_accuracy: Train accuracy that marks the effective start of the terminal phase.

    Attributes:
        metrics: The run's metrics, by column.
        rows: One per measured epoch and split.
        others: Rows of what was tested or validated that are not of this run's measurements: at
            other weights, or against other than train means. In no file and no checkpoint.
        seconds: Time spent measuring in this process.
        started: When the fit began, on the clock of ``time.perf_counter``.
    """

    def __init__(self, tpt_accuracy: float) -> None:
        self.metrics: tuple[str, ...] = METRIC_NAMES
        self.rows: list[Row] = []
        self.others: list[Row] = []
        self.seconds = 0.0
        self.started: float | None = None
        self._ended: float | None = None
        self._clock = PhaseClock(tpt_accuracy)
        self._wd_time = 0.0

    def begin(self, epoch: int, *, resumed: bool) -> None:
        """Start at ``epoch``: a new run from nothing, a resumed one from what is known of it."""
        self.started, self._ended, self.seconds = time.perf_counter(), None, 0.0
        if not resumed:
            self.rows, self.others, self._wd_time = [], [], 0.0
            self._clock = PhaseClock(self._clock.accuracy)
        self.rows = [row for row in self.rows if int(row["epoch"]) <= epoch]

    def end(self) -> None:
        """Stop the clock of the fit."""
        self._ended = time.perf_counter()

    @property
    def overhead(self) -> Overhead:
        """What measuring has cost since the fit began."""
        if self.started is None:
            return Overhead()
        passed = (self._ended or time.perf_counter()) - self.started
        return Overhead(self.seconds, self.seconds / passed)

    @property
    def epochs(self) -> list[int]:
        """The measured epochs, ascending; online rows are no measurement."""
        return sorted({int(row["epoch"]) for row in self.rows if row["split"] == "train"})

    def step(self, optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter | None) -> None:
        """Count a step of the optimizer that is about to be made.

        A parametrised weight is no parameter of any optimizer: no decay law is known for it.
        """
        try:
            self._wd_time += math.nan if weight is None else decay_time(optimizer, weight)
        except Exception:  # an optimizer unlike any known must not stop the training
            self._wd_time = math.nan

    def row(
        self, epoch: int, step: int, split: str, report: CollapseReport | None, seconds: float
    ) -> Row:
        """Make the row of a split, advancing the clock by the training set's error."""
        if split == "train" and report is not None:
            self._clock.update(epoch, report.error)
        self.seconds += seconds
        phase = {**self._clock.as_dict(), "wd_time": self._wd_time}
        return history_row(epoch, step, split, report, phase, seconds, self.metrics)

    def insert(self, rows: Sequence[Row]) -> bool:
        """Add rows of held-out data at an epoch of this run, instead of earlier ones of their kind.

        Args:
            rows: Of one epoch.

        Returns:
            Whether they are simply the last ones now.
        """
        before = len(self.rows)
        new = {(row["epoch"], row["split"]) for row in rows}
        kept = [row for row in self.rows if (row["epoch"], row["split"]) not in new]
        epoch = int(rows[0]["epoch"])
        place = sum(int(row["epoch"]) <= epoch for row in kept)  # the rows are in order of epochs
        self.rows[:] = [*kept[:place], *rows, *kept[place:]]  # in place: the file's writer has it
        return place == before

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values, which load with ``weights_only=True``."""
        return {
            "rows": [dict(row) for row in self.rows],
            "clock": self._clock.state_dict(),
            "wd_time": self._wd_time,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; columns of another version are dropped."""
        self.rows = [{k: row[k] for k in known_columns(row)} for row in state["rows"]]
        self.others = []
        self._clock = PhaseClock(**state["clock"])
        self._wd_time = state["wd_time"]

    def last_value(self, split: str, name: str) -> float:
        """Return the last defined value of a quantity; ``nan`` if there is none."""
        for row in reversed(self.rows):
            if row["split"] == split and not math.isnan(float(row.get(name, math.nan))):
                return float(row[name])
        return math.nan
