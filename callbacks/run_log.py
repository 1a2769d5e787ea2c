"""What a run leaves on disk: the history, and where it comes from."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import pytorch_lightning as pl

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import (
    HISTORY_FILE,
    Row,
    append_history,
    columns_of,
    keep_previous,
    start_history,
)
from ncmonitor.monitor.provenance import describe_environment, read_run, write_run
from ncmonitor.monitor.snapshots.file import begin_snapshots

#: What the first measurement of the training set finds out.
FOUND: Final = ("class_sizes", "limits", "limits_from")


#: Of trainers that fit: the optimizer steps made when the folder was asked for, and the folder.
_FOLDERS: Final[WeakKeyDictionary[pl.Trainer, tuple[int, Path]]] = WeakKeyDictionary()


def default_run_dir(trainer: pl.Trainer, prefix: str = "nc") -> Path:
    """Return the run's folder: where Lightning puts the run's checkpoints, one level up.

    Without a logger every run would share ``default_root_dir``, so the time is added: that of the
    first callback to ask at this step. A second monitor, under another prefix, has a folder of its
    own inside.
    """
    known = _FOLDERS.get(trainer)
    folder = known[1] if known and known[0] == trainer.global_step else _folder_of(trainer)
    _FOLDERS[trainer] = (trainer.global_step, folder)
    return folder if prefix == "nc" else folder / prefix


def _folder_of(trainer: pl.Trainer) -> Path:
    if not trainer.loggers:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")  # local time: for people, in a name
        return Path(trainer.default_root_dir) / "nc_runs" / stamp
    logger = trainer.loggers[0]
    version = logger.version
    folder = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / folder


class RunLog:
    """Writer of ``history.csv`` and ``run.json``; does nothing off rank zero or in a dry run.

    Args:
        run_dir: Folder of the run.
        active: Whether this process writes.
    """

    def __init__(self, run_dir: Path, *, active: bool) -> None:
        self.run_dir = run_dir
        self.active = active
        self._facts: dict[str, Any] = {}
        self._table = TableLog(run_dir, HISTORY_FILE)
        self._started = time.perf_counter()

    def start(
        self,
        rows: Sequence[Row],
        measurement: Mapping[str, Any],
        max_epochs: int,
        metrics: Sequence[str] = (),
    ) -> None:
        """Begin the files; rows from before a resume are kept, rows beyond it are dropped.

        Args:
            rows: The run's rows, a list that grows.
            measurement: How it is measured.
            max_epochs: Planned length; −1 if open.
            metrics: Columns of the metrics that will be measured.

        Raises:
            InputError: If the folder cannot be written.
        """
        if not self.active:
            return
        columns = columns_of([*rows, dict.fromkeys(metrics, 0.0)])
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
        self._facts = {
            **describe_environment(),
            "finished": None,
            "seed": int(seed) if seed else None,
            "max_epochs": max_epochs,
            "measurement": dict(measurement),
        }
        self._facts |= _earlier(self.run_dir, self._facts) if rows else {}
        with writable():
            aside = keep_previous(self.run_dir, rows)
            begin_snapshots(self.run_dir, {int(row["epoch"]) for row in rows}, aside)
            self._facts["measurement"] |= _found_before(self.run_dir)
            self._table.start(rows, columns)
            write_run(self.run_dir, self._facts)

    def note(self, found: Mapping[str, Any]) -> None:
        """Record what the first measurement has found out about how it measures.

        Args:
            found: What is named in :data:`FOUND`.
        """
        if not self.active:
            return
        self._facts["measurement"] |= found
        with contextlib.suppress(OSError):  # said by append; the end of the fit tries again
            write_run(self.run_dir, self._facts)

    def append(self, rows: Sequence[Row]) -> None:
        """Add one epoch's rows; a disk that fails costs a warning, and the next epoch catches up.

        Args:
            rows: The newest of the rows given to :meth:`start`.
        """
        if self.active:
            self._table.append(rows)

    def rewrite(self) -> None:
        """Write the whole table anew: a row has changed that is not the last."""
        if self.active:
            self._table.rewrite()

    def finish(self, monitor_seconds: float) -> None:
        """Record the end of the fit and how long it and the measuring took."""
        if not self.active:
            return
        self._facts["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        before = self._facts.get("timing") or {}
        taken = {
            "fit_seconds": time.perf_counter() - self._started,
            "monitor_seconds": monitor_seconds,
        }
        self._facts["timing"] = {k: v + before.get(k, 0.0) for k, v in taken.items()}
        self._table.catch_up()
        with contextlib.suppress(OSError):  # said by append; what is lost is when the run ended
            write_run(self.run_dir, self._facts)


class TableLog:
    """Writer of one table of a run, epoch by epoch.

    Args:
        run_dir: Folder of the run.
        file: Name of the table.
    """

    def __init__(self, run_dir: Path, file: str) -> None:
        self.run_dir, self.file = run_dir, file
        self._rows: Sequence[Row] = ()
        self._columns: Sequence[str] = ()
        self._behind = False

    def start(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Begin the file with the rows there are.

        Args:
            rows: The run's, a list that grows.
            columns: Of the table.

        Raises:
            OSError: If it cannot be written.
        """
        self._rows, self._columns = rows, columns
        start_history(self.run_dir, rows, columns, self.file)

    def append(self, rows: Sequence[Row]) -> None:
        """Add the newest rows; a disk that fails costs a warning, and the next time catches up."""
        try:
            if self._behind:
                start_history(self.run_dir, self._rows, self._columns, self.file)
            else:
                append_history(self.run_dir, rows, self._columns, self.file)
            self._behind = False
        except OSError as error:
            self._behind = True
            warnings.warn(
                f"{self.run_dir} could not be written, training goes on: {error}. The numbers are "
                "kept in memory, in checkpoints and by the loggers; the next epoch tries again",
                RuntimeWarning,
                stacklevel=2,
            )

    def rewrite(self) -> None:
        """Write the whole table anew, with the same care as :meth:`append`."""
        self._behind = True
        self.append(())

    def catch_up(self) -> None:
        """Write what could not be written before."""
        if self._behind:
            self.append(())


@contextlib.contextmanager
def writable() -> Iterator[None]:
    """Say what to do if a folder cannot be written.

    Raises:
        InputError: Then.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the run's folder cannot be written: {error}; pass run_dir= another one"
        ) from error


def _earlier(run_dir: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stays of a run's record when it is resumed: how it began, and its time so far.

    A part that was killed has left no time.
    """
    before = read_run(run_dir)
    if not before.get("created"):
        return {}
    resumed = {key: now[key] for key in ("created", "command", "commit")}
    kept: dict[str, Any] = {k: before[k] for k in ("created", "command", "timing") if k in before}
    resumed["time_lost"] = "timing" not in before or before.get("finished") is None
    return {**kept, "resumed": [*before.get("resumed", []), resumed]}


def _found_before(run_dir: Path) -> dict[str, Any]:
    """Return what the run had found out before it was resumed, until it is found anew."""
    if not (run_dir / HISTORY_FILE).exists():
        return {}  # a new run: the history of another one has been set aside
    before = read_run(run_dir).get("measurement")
    return {k: before[k] for k in FOUND if k in before} if isinstance(before, dict) else {}
