"""What a run leaves on disk: the history, and where it comes from."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ncmonitor._checks import InputError
from ncmonitor.history import COLUMNS, Row, append_history, columns_of, keep_previous, start_history
from ncmonitor.provenance import describe_environment, write_run


def default_run_dir(trainer: pl.Trainer, prefix: str = "nc") -> Path:
    """Return the run's folder: where Lightning puts the run's checkpoints, one level up.

    Without a logger every run would share ``default_root_dir``, so the time is added. A second
    monitor, under another prefix, has a folder of its own inside.
    """
    folder = _folder_of(trainer)
    return folder if prefix == "nc" else folder / prefix


def _folder_of(trainer: pl.Trainer) -> Path:
    if not trainer.loggers:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")  # local time: for people, in a name
        return Path(trainer.default_root_dir) / "ncmonitor" / stamp
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
        self._rows: Sequence[Row] = ()
        self._columns: Sequence[str] = COLUMNS
        self._behind = False
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
        self._rows = rows
        self._columns = columns_of([*rows, dict.fromkeys(metrics, 0.0)])
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
        self._facts = {
            **describe_environment(),
            "finished": None,
            "seed": int(seed) if seed else None,
            "max_epochs": max_epochs,
            "measurement": dict(measurement),
        }
        try:
            keep_previous(self.run_dir, rows)
            start_history(self.run_dir, rows, self._columns)
            write_run(self.run_dir, self._facts)
        except OSError as error:
            raise InputError(
                f"the run's folder cannot be written: {error}; pass run_dir= another one"
            ) from error

    def append(self, rows: Sequence[Row]) -> None:
        """Add one epoch's rows; a disk that fails costs a warning, and the next epoch catches up.

        Args:
            rows: The newest of the rows given to :meth:`start`.
        """
        if not self.active:
            return
        try:
            if self._behind:
                start_history(self.run_dir, self._rows, self._columns)
            else:
                append_history(self.run_dir, rows, self._columns)
            self._behind = False
        except OSError as error:
            self._behind = True
            warnings.warn(
                f"{self.run_dir} could not be written, training goes on: {error}. The numbers are "
                "kept in memory, in checkpoints and by the loggers; the next epoch tries again",
                RuntimeWarning,
                stacklevel=2,
            )

    def finish(self, monitor_seconds: float) -> None:
        """Record the end of the fit and how long it and the measuring took."""
        if not self.active:
            return
        self._facts["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._facts["timing"] = {
            "fit_seconds": time.perf_counter() - self._started,
            "monitor_seconds": monitor_seconds,
        }
        if self._behind:
            self.append(())
        with contextlib.suppress(OSError):  # said by append; what is lost is when the run ended
            write_run(self.run_dir, self._facts)
