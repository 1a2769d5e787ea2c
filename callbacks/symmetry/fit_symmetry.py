"""One fit whose symmetries are watched: what is measured when asked, kept and written."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ncmonitor import __version__
from ncmonitor.callbacks.fit_measurements import excused
from ncmonitor.callbacks.run_log import TableLog, writable
from ncmonitor.callbacks.symmetry.parameter_watch import ParameterWatch
from ncmonitor.callbacks.symmetry.trainer_symmetry import Found, SymmetryMeasurement
from ncmonitor.callbacks.train_means import weights_key
from ncmonitor.callbacks.trainers.progress import Overhead
from ncmonitor.callbacks.trainers.sources import Source
from ncmonitor.errors import InputError, MeasurementError, said_once
from ncmonitor.monitor.history import Row, keep_previous
from ncmonitor.monitor.provenance import write_run
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.redact import reason_of, redacted_text
from ncmonitor.symmetry.rows import COLUMNS, FACTS_FILE, PARAMETERS, PLAIN
from ncmonitor.symmetry.transformed_outputs import ONE_CLASS

_Cell = float | int | str

#: What a line shows of a group: the first ones of the training set, the others of held-out data.
_TRAINED: Final = ("nc1_quotient", "orbit_quot", "lie_error")
_SHOWN: Final = (*_TRAINED, "acc", "acc_orbit_mean", "acc_orbit_worst")


class FitSymmetry:
    """Measures a trainer's splits under groups, and keeps and writes what comes out.

    Every rank takes every step; rank zero's rows are everybody's.

    Args:
        measurement: Of the trainer and module of this fit, probed.
        splits: Those to measure.
        rows: Kept; grows.
        watch: Of the parameters; ``None``: they are not watched.
        folder: Of the run; ``None``: nothing is written.

    Attributes:
        known: Epoch and step at which weights were measured, by their name.
    """

    def __init__(
        self,
        measurement: SymmetryMeasurement,
        splits: Sequence[str],
        rows: list[dict[str, _Cell]],
        watch: ParameterWatch | None,
        folder: Path | None,
    ) -> None:
        self.measurement, self.splits, self.rows = measurement, splits, rows
        self.watch = watch
        self._log = None if folder is None else TableLog(folder, SYMMETRY_FILE)
        self._said: set[str] = set()
        self._failures: set[tuple[str, str]] = set()
        self._reasons: dict[str, str] = {}
        self.known: dict[str, tuple[int, int]] = {}
        self._started = time.perf_counter()
        self._seconds = 0.0
        with measurement.ranks.together():  # only rank zero finds out that it cannot write
            self._open(folder)

    @property
    def overhead(self) -> Overhead:
        """What measuring has cost since the fit began."""
        return Overhead(self._seconds, self._seconds / (time.perf_counter() - self._started))

    def measure(self, epoch: int, *, raw: bool = True) -> list[dict[str, _Cell]]:
        """Measure every split after ``epoch`` completed epochs and return the rows.

        Args:
            epoch: Completed epochs.
            raw: Whether the module has the weights that the optimizer moves, whose law is known.
        """
        rows: list[dict[str, _Cell]] = []
        for split, source in self._sources(epoch).items():
            if self._asked(split):
                rows += self._rows(split, source, epoch)
        if self.watch is not None and raw:
            rows += self._own(epoch, "train", [("", PARAMETERS, self.watch.read())])
            self._note("w_mean_law_ratio", self.watch.reason)
        step = self.measurement.trainer.global_step
        self.known[weights_key(self.measurement.see())] = (epoch, step)
        return self._keep(rows)

    def to_come(self) -> list[dict[str, _Cell]]:
        """Return rows like those of every measurement of the fit, also of splits set up later."""
        measurement = self.measurement
        splits = [split for split in measurement.sources() if self._asked(split)]
        later = "val" in self.splits and not any(split != "train" for split in splits)
        if later and measurement.trainer.enable_validation:
            splits.append("val")
        rows = [row for split in splits for row in self._own(0, split, measurement.nothing())]
        if self.watch is not None:
            rows += self._own(0, "train", [("", PARAMETERS, self.watch.read())])
        return rows

    def _asked(self, split: str) -> bool:
        return split.rstrip("0123456789") in self.splits  # val0, val1 of several loaders

    def measure_held_out(self, epoch: int, step: int) -> list[dict[str, _Cell]]:
        """Measure what the trainer tests or validates and return the rows.

        They replace those of an earlier test. What a fit has measured of its own validation set
        stays as it is.

        Args:
            epoch: Completed epochs of the weights.
            step: Optimizer steps; those of the trainer that tests are others.
        """
        ranks = self.measurement.ranks
        with ranks.together():
            sources = self.measurement.sources()
        rows: list[dict[str, _Cell]] = []
        for split, source in sources.items():
            rows += self._rows(split, source, epoch)
        agreed: list[dict[str, _Cell]] = ranks.gather([row | {"step": step} for row in rows])[0]
        fitted = bool(self.known) and self.measurement.trainer.state.fn == "validate"
        there = {row["split"] for row in self.rows if row["epoch"] == epoch}
        self._insert(epoch, [r for r in agreed if not (fitted and r["split"] in there)])
        return agreed

    def _insert(self, epoch: int, rows: list[dict[str, _Cell]]) -> None:
        """Put rows in their place, instead of earlier ones of the same splits."""
        splits, before = {row["split"] for row in rows}, len(self.rows)
        kept = [r for r in self.rows if not (r["epoch"] == epoch and r["split"] in splits)]
        place = sum(int(row["epoch"]) <= epoch for row in kept)  # in the order of epochs
        self.rows[:] = [*kept[:place], *rows, *kept[place:]]
        if self._log is None:
            return
        if place == before:
            self._log.append(rows)
        else:
            self._log.rewrite()

    def finish(self) -> None:
        """Write what could not be written before."""
        if self._log is not None:
            self._log.catch_up()

    # -- the work ----------------------------------------------------------------------------------

    def _open(self, folder: Path | None) -> None:
        if folder is None or self._log is None:
            return
        with writable():
            folder.mkdir(parents=True, exist_ok=True)
            keep_previous(folder, self.rows, SYMMETRY_FILE)
            self._log.start(self.rows, COLUMNS)
            write_run(folder, self.facts, FACTS_FILE)

    @property
    def facts(self) -> dict[str, Any]:
        """How it is measured, for the run's record."""
        measurement = self.measurement
        options = measurement.options
        return {
            "ncmonitor": __version__,
            "samples": options.samples,
            "seed": options.samples_seed,
            "splits": list(self.splits),
            "classifier": measurement.name,
            "layers": list(measurement.layers),
            "precision": options.precision,
            "weights": measurement.held,
            "groups": [group.facts for group in measurement.groups],
            "flows": [flow.facts for flow in measurement.flows],
            "reasons": dict(self._reasons),
        }

    def _sources(self, epoch: int) -> dict[str, Source | None]:
        try:
            with self.measurement.ranks.together():
                return dict(self.measurement.sources())
        except Exception as error:
            self._excuse("train", epoch, error)
            return {"train": None}

    def _rows(self, split: str, source: Source | None, epoch: int) -> list[dict[str, _Cell]]:
        started = time.perf_counter()
        found: Found = []
        try:
            if source is not None:
                with said_once(self._said):
                    found = self.measurement.measure_groups(source, self.overhead.share)
        except Exception as error:
            self._excuse(split, epoch, error)
        for what, reason in self.measurement.reasons.items() if found else ():
            self._note(f"{what} ({split})", reason)
        found = found or self.measurement.nothing()
        seconds = time.perf_counter() - started
        self._seconds += seconds
        rows = self._own(epoch, split, found)
        rows[0]["seconds"] = seconds
        return rows

    def _own(self, epoch: int, split: str, found: Found) -> list[dict[str, _Cell]]:
        about: dict[str, _Cell] = {
            "epoch": epoch,
            "step": self.measurement.trainer.global_step,
            "split": split,
        }
        return [
            {**about, "layer": layer, "group": group, "element": element, **numbers}
            for layer, group, values in found
            for element, numbers in values.items()
        ]

    def _keep(self, rows: list[dict[str, _Cell]]) -> list[dict[str, _Cell]]:
        agreed: list[dict[str, _Cell]] = self.measurement.ranks.gather(rows)[0]
        self.rows += agreed
        if self._log is not None:
            self._log.append(agreed)
        return agreed

    def _note(self, what: str, reason: str | None) -> None:
        """Record why a number is ``nan``."""
        if reason is None or what in self._reasons:
            return
        self._reasons[what] = reason
        if reason == ONE_CLASS and self.measurement.trainer.is_global_zero:
            words = redacted_text(reason)
            warnings.warn(f"SymmetryMonitor: {what} is nan: {words}", stacklevel=2)
        if self._log is not None:
            with excused("symmetry.json is not written"):
                write_run(self._log.run_dir, self.facts, FACTS_FILE)

    def _excuse(self, split: str, epoch: int, error: Exception) -> None:
        """Turn a failed measurement into a warning, unless it is a mistake known from the start."""
        wrong_input = isinstance(error, InputError) and not isinstance(error, MeasurementError)
        if self.measurement.options.on_error == "raise" or (wrong_input and not self.rows):
            raise error
        words = reason_of(error)
        if (split, words) in self._failures or not self.measurement.trainer.is_global_zero:
            return
        self._failures.add((split, words))
        fitting = self.measurement.trainer.state.fn == "fit"
        when = f" after epoch {epoch} is nan, training goes on" if fitting else " is nan"
        warnings.warn(
            f"the symmetry of {split}{when}: {words}",
            RuntimeWarning,
            stacklevel=2,
        )


def lines(rows: Sequence[Row]) -> list[str]:
    """Return a line for each group, of what one measurement of it comes to."""
    held_out = next((row["split"] for row in rows if row["split"] != "train"), "train")
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["element"] or row["layer"] or row["group"] == PARAMETERS:
            continue
        for name in _SHOWN:
            if name in row and row["split"] == ("train" if name in _TRAINED else held_out):
                found.setdefault(str(row["group"]), {})[name] = float(row[name])
    plain = found.pop(PLAIN, {})
    epoch = rows[0]["epoch"] if rows else 0
    return [
        f"{epoch:>5} | {group}: {_words(values | plain, str(held_out))}"
        for group, values in found.items()
    ]


def _words(values: dict[str, float], split: str) -> str:
    parts = []
    if "orbit_quot" in values:
        own = f"{values.get('nc1_quotient', math.nan):.1e}"
        parts.append(f"scatter along orbits {values['orbit_quot']:.1e}, within classes {own}")
    if "lie_error" in values:
        parts.append(f"Lie error {values['lie_error']:.1e}")
    if "acc_orbit_mean" in values:
        parts.append(
            f"{split} accuracy {values.get('acc', math.nan):.1%}, on orbits "
            f"{values['acc_orbit_mean']:.1%}, all of an orbit {values['acc_orbit_worst']:.1%}"
        )
    return "; ".join(parts)
