"""The pictures of one fit: kept on disk, drawn while there is time, sent to the loggers."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl

from ncmonitor.callbacks.figures.drawing import ANIMATION, DrawnFigure, animate, draw, has_layers
from ncmonitor.callbacks.figures.figure_loggers import send, senders
from ncmonitor.callbacks.figures.time_share import Allowance
from ncmonitor.monitor.history import history_frame
from ncmonitor.monitor.history_rows import Row
from ncmonitor.monitor.snapshots.snapshot import Snapshot, append_snapshot
from ncmonitor.redact import reason_of


class Gallery:
    """Draws and sends; whatever fails is a warning, once a kind.

    Args:
        figures: Which.
        names: What to call the classes; else their numbers.
        share: Share of the fit's time that drawing may take.
        prefix: First part of the monitor's log keys.

    Attributes:
        allowance: The clock of the drawings.
        shown: Epoch that was drawn last.
    """

    def __init__(
        self, figures: Sequence[str], names: Sequence[str] | None, share: float, prefix: str = "nc"
    ) -> None:
        self.allowance = Allowance(share)
        self.shown: int | None = None
        self._figures, self._names, self._prefix = figures, names, prefix
        self._said: set[str] = set()
        self._first: Snapshot | None = None

    def keep(self, folder: Path, snapshot: Snapshot) -> None:
        """Append a snapshot to the file in the run's folder."""
        with self._excused("file", "a snapshot is not written"):
            append_snapshot(folder, snapshot)

    def offer(
        self, trainer: pl.Trainer, folder: Path, snapshot: Snapshot, rows: Sequence[Row]
    ) -> None:
        """Draw an epoch if there is time, the first one before any other.

        Arguments are those of :meth:`show`.
        """
        self._first = self._first or snapshot
        if self.allowance.covers():
            early = self.shown is None and self._first is not snapshot
            self.show(trainer, folder, self._first if early else snapshot, rows)

    def show(
        self, trainer: pl.Trainer, folder: Path, snapshot: Snapshot, rows: Sequence[Row]
    ) -> None:
        """Draw the pictures of an epoch and send them.

        Args:
            trainer: Whose loggers get them.
            folder: Of the run.
            snapshot: Of the epoch.
            rows: The history; later epochs are left out.
        """
        if not set(self._figures) - {ANIMATION}:
            return
        pictures: list[DrawnFigure] = []
        with self.allowance.drawing(), _no_collection():
            history = history_frame([r for r in rows if int(r["epoch"]) <= snapshot.epoch])
            for name in self._figures:
                if name == ANIMATION or (name == "layers" and not has_layers(history)):
                    continue
                with self._excused(name, f"the figure {name!r} is not drawn"):
                    pictures.append(draw(name, folder, snapshot, history, self._names))
            self._send(trainer, pictures, snapshot.epoch)
        self.shown = snapshot.epoch

    def close(self, trainer: pl.Trainer, folder: Path, last: Snapshot) -> None:
        """Make the animation, if it is wanted.

        Args:
            trainer: Whose loggers get it.
            folder: Of the run.
            last: The last snapshot.
        """
        if ANIMATION in self._figures:
            with self._excused(ANIMATION, "the animation is not made"):
                self._send(trainer, [animate(folder, last, self._names)], last.epoch)

    def warn(self, kind: str, message: str) -> None:
        """Warn, once a kind."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _send(self, trainer: pl.Trainer, pictures: Sequence[DrawnFigure], epoch: int) -> None:
        for kind, logger in senders(trainer.loggers) if pictures else ():
            with self._excused(kind, f"{kind} gets no pictures"):
                send(kind, logger, self._prefix, pictures, epoch, trainer.global_step)

    @contextmanager
    def _excused(self, kind: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.warn(kind, f"{what}, training goes on: {reason_of(error)}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Put garbage collection off: every drawing would set off some of all that torch holds.

    They would take a quarter of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
