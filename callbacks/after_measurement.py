"""Base of the callbacks that act after each measurement of the monitor in the same trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from ncmonitor.callbacks.base import Base
from ncmonitor.callbacks.neural_collapse import NeuralCollapse
from ncmonitor.callbacks.trainers.continuation import Continuation, Purpose
from ncmonitor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ncmonitor.monitor.history_rows import Row


class AfterMeasurement(Base):
    """Hears of each measurement from when ``_listen`` is called until the fit ends, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self._monitor: NeuralCollapse | None = None
        self._fits = Continuation()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note that a run begins; to be called by every ``setup``."""
        self._fits.enter(trainer, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier fit, unless this one goes on with it or with a checkpoint."""
        if not (self._fits.resumed or self._fits.repeats(trainer, pl_module)):
            self._start_anew()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the fit has begun."""
        if self._fits.lost(trainer):
            self._start_anew()
        self._fits.begin(trainer, pl_module)

    def _start_anew(self) -> None:
        """Forget what is known of an earlier fit."""
        raise NotImplementedError

    def _resumes(self, state: Mapping[str, Any]) -> bool:
        """Tell whether a state is loaded to go on from it."""
        return self._fits.purpose(state) is Purpose.RESUME

    def _on_measured(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        """Act on the measurement after ``epoch`` completed epochs."""
        raise NotImplementedError

    def _listen(self, monitor: NeuralCollapse) -> None:
        self._monitor = monitor
        monitor.after_measurement.append(self._on_measured)

    def _unsubscribe(self) -> None:
        if self._monitor is not None and self._on_measured in self._monitor.after_measurement:
            self._monitor.after_measurement.remove(self._on_measured)

    @property
    def _rows(self) -> Sequence[Row]:
        assert self._monitor is not None  # found by setup
        # Not its ``history``: a table made every epoch would cost more the longer the run.
        return self._monitor._run_state.rows

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening: Lightning calls no ``teardown`` after an exception."""
        self._fits.leave(trainer)
        self._unsubscribe()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._fits.leave(trainer)
        if stage == "fit":
            self._unsubscribe()


def monitor_of(trainer: pl.Trainer, needs: str, prefix: str | None = None) -> NeuralCollapse:
    """Return the monitor with a prefix, or the first, wherever in the list of callbacks it is.

    Args:
        trainer: The trainer.
        needs: What the callback needs it for, as the subject of a message: ``"TerminalPhase
            learns of the terminal phase from"``.
        prefix: That of the monitor, where there are several; ``None``: the first.

    Raises:
        InputError: If there is none.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = [c for c in callbacks if isinstance(c, NeuralCollapse)]
    if not monitors:
        name = needs.split()[0]
        raise InputError(
            f"{needs} NeuralCollapse, which this trainer lacks: add it, "
            f"Trainer(callbacks=[NeuralCollapse(), {name}(...)])"
        )
    for monitor in monitors:
        if prefix in (None, monitor.prefix):
            return monitor
    known = ", ".join(repr(monitor.prefix) for monitor in monitors)
    raise InputError(
        f"prefix= must be that of a NeuralCollapse in this trainer ({known}), but is {prefix!r}"
    )
