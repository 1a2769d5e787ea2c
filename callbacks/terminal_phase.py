"""Ends a run some way into the terminal phase of training, and keeps the weights of its onset."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.callbacks.after_measurement import AfterMeasurement, monitor_of
from ncmonitor.callbacks.terminal_rules import PhaseRules
from ncmonitor.callbacks.trainers.sources import is_dry_run
from ncmonitor.errors import InputError
from ncmonitor.redact import reason_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

_FILE: Final = "tpt-onset"


class TerminalPhase(AfterMeasurement):
    """Stop training some way into the terminal phase, and save a checkpoint at its onset.

    Needs a :class:`~ncmonitor.callbacks.NeuralCollapse` in the same trainer (the first, if there
    are several), anywhere in the list, and prints if that one is ``verbose``. Any rule that holds
    stops; with none there is only the checkpoint. ``min_epochs`` and ``min_steps`` of the trainer
    are respected.

    The onset is the first *measured* epoch without a training error, so it is as fine as the
    schedule. All rules count from this first onset: errors that come back later do not restart
    them but are counted in :attr:`reason`. An untrained network without errors (fine-tuning) has
    its onset at epoch 0, which ``times`` counts as 1. ``epochs`` and ``times`` also stop at an
    epoch that the schedule leaves out; it is then measured as the last one. ``plateau`` looks at
    measured epochs only, and a ``nan`` says nothing.

    Args:
        epochs: Stop this many epochs after the onset.
        times: Stop when the completed epochs reach this multiple of the onset epoch; above 1.
        plateau: Stop when this metric of the training set no longer approaches its value at
            collapse. Names as in ``ncmonitor metrics``.
        patience: Epochs (not measurements) that ``plateau`` waits for progress.
        min_change: Share by which the distance from collapse must fall within ``patience`` epochs
            to count as progress.
        start: What begins the phase: ``"exact"``, no training error, or ``"effective"``, the
            accuracy in ``NeuralCollapse(tpt_accuracy=)``.
        checkpoint: Save ``tpt-onset.ckpt`` at the onset, for ``fit(ckpt_path=)``; a file of that
            name is never overwritten (``tpt-onset-v1.ckpt`` and so on). Callbacks that come later
            in the epoch, such as ``EarlyStopping``, are in it as before that epoch's end.
        dirpath: Folder for it; ``None`` is that of the run's ``ModelCheckpoint``, else the folder
            of the run's history.

    Attributes:
        onset_checkpoint: The checkpoint of the onset, if it was saved.
        reason: The rule that ended the run, in words; ``None`` if none did.
        stopped_epoch: Completed epochs when it did.

    Raises:
        InputError: For wrong values, and before training if the onset cannot be known.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from ncmonitor.callbacks import NeuralCollapse, TerminalPhase
        >>> trainer = Trainer(callbacks=[NeuralCollapse(), TerminalPhase(epochs=50)], logger=False)
    """

    def __init__(
        self,
        epochs: int | None = None,
        *,
        times: float | None = None,
        plateau: str | None = None,
        patience: int = 20,
        min_change: float = 0.01,
        start: str = "exact",
        checkpoint: bool = True,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._rules = PhaseRules(epochs, times, plateau, patience, min_change, start)
        if not checkpoint and dirpath is not None:
            raise InputError("dirpath= is the folder of the checkpoint, but checkpoint= is False")
        if not checkpoint and not self._rules.any:
            raise InputError(
                "TerminalPhase would do nothing: pass epochs=, times= or plateau= to stop, or "
                "leave checkpoint= on"
            )
        if dirpath is not None and "://" in str(dirpath):
            raise InputError(f"dirpath= must be a local folder, but is {dirpath!r}")
        self._checkpoint = checkpoint
        self._dirpath = None if dirpath is None else Path(dirpath)
        self.onset_checkpoint: Path | None = None
        self.reason: str | None = None
        self.stopped_epoch: int | None = None

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the monitor and listen to it, wherever in the list of callbacks it is."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._unsubscribe()
        monitor = monitor_of(trainer, "TerminalPhase learns of the terminal phase from")
        plateau = self._rules.plateau
        if plateau is not None and plateau not in monitor._options.settings.names:
            raise InputError(
                f"plateau={plateau!r} is not measured by default: ask for it with "
                f"NeuralCollapse(metrics=[{plateau!r}])"
            )
        self._listen(monitor)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget how the last fit ended; a fit that goes on keeps its onset."""
        super().on_fit_start(trainer, pl_module)
        self.reason = self.stopped_epoch = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not train on from a checkpoint at which a rule holds already."""
        # Else the monitor may still hold the history of an earlier fit.
        goes_on = trainer.global_step > 0 and self._fits.goes_on(trainer, pl_module)
        super().on_train_start(trainer, pl_module)
        if goes_on:
            self._stop_if_due(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where due; an epoch that is not measured needs this, the onset being known."""
        self._stop_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return where the onset was saved; all else follows from the monitor's history."""
        path = self.onset_checkpoint
        return self._fits.marked({"onset_checkpoint": None if path is None else str(path)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, if a fit does: an onset that was saved is not saved again."""
        if self._resumes(state_dict):
            path = state_dict["onset_checkpoint"]
            self.onset_checkpoint = None if path is None else Path(path)

    def _start_anew(self) -> None:
        self.onset_checkpoint = None

    # -- the work ----------------------------------------------------------------------------------

    def _on_measured(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        saves = self._checkpoint and self.onset_checkpoint is None and not is_dry_run(trainer)
        if saves and self._rules.onset(self._rows) == epoch:
            self._save(trainer, module, epoch)
        if epoch > trainer.current_epoch:  # else before the first epoch, or after the last
            self._stop_if_due(trainer, module, epoch)

    def _stop_if_due(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        reason = self._rules.due(self._rows, epoch)
        # The rows are the same on every rank; if ever they were not, all must stop together.
        if not trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            return
        trainer.should_stop = True
        self.stopped_epoch = epoch  # again while min_epochs= holds the run
        if self.reason is None:
            self.reason = reason or "another process stopped"
            self._say(trainer, module, epoch, f"stopping after epoch {epoch}: {self.reason}")

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        """Save the checkpoint of the onset, on every rank; a failure costs only the checkpoint."""
        own = None if self._monitor is None else self._monitor.run_dir
        folder = self._dirpath or _checkpoint_folder(trainer) or own or Path()
        path = Path(trainer.strategy.broadcast(str(_free(folder))))  # one name on all ranks
        self.onset_checkpoint = path  # before: it belongs to the state that is saved
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except Exception as error:  # remote and sharded writers raise what they like
            self.onset_checkpoint = None
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
            warnings.warn(
                f"the checkpoint of the terminal phase's onset could not be saved as {path}, "
                f"training goes on: {reason_of(error)}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self._say(trainer, module, epoch, f"onset at epoch {epoch}, saved as {path}")

    def _say(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int, text: str) -> None:
        silent = self._monitor is None or not self._monitor.verbose
        if trainer.is_global_zero and not silent:
            # The bar's ``print`` drops what it gets outside of an epoch.
            say = module.print if epoch > trainer.current_epoch else print
            say(f"TerminalPhase: {text}")


def _checkpoint_folder(trainer: pl.Trainer) -> Path | None:
    """Return the folder of the run's first ``ModelCheckpoint``; a remote one is no ``Path``."""
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder is not None and "://" not in str(folder):
            return Path(folder)
    return None


def _free(folder: Path) -> Path:
    path, version = folder / f"{_FILE}.ckpt", 0
    while os.path.exists(path):  # noqa: PTH110 - false, not an error, where one may not look
        version += 1
        path = folder / f"{_FILE}-v{version}.ckpt"
    return path
