"""Whether a fit goes on with an earlier one, and what a loaded checkpoint is for."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

import pytorch_lightning as pl

#: Key of the mark in every state.
MARK: Final = "run"
#: Completed epochs, or optimizer steps, of weights whose past is not known.
UNKNOWN: Final = -1


class Purpose(Enum):
    """What a state is loaded for."""

    RESUME = "the fit goes on from it, or somebody has loaded it by hand"
    LOOK = "its weights are tested, validated or used to predict"
    UNDO = "a trial within this run is over, and what was saved before it is put back"


class Continuation:
    """Tells what Lightning does not say: why it loads a state, and whether a fit goes on.

    Lightning calls ``load_state_dict`` for ``fit(ckpt_path=)``, for ``test(ckpt_path=)`` and its
    like, and when ``LearningRateFinder``, ``BatchSizeFinder`` or the ``Tuner`` put back what they
    saved a moment before. Only the first is a resume. Each run of a trainer has a mark, which is
    part of every state saved meanwhile: a state with the mark of this very run is put back.

    Attributes:
        resumed: Whether this fit goes on from a checkpoint.
        at: Completed epochs and optimizer steps of the weights in the checkpoint.
    """

    def __init__(self) -> None:
        self.resumed = False
        self.at = (UNKNOWN, UNKNOWN)
        self._mark = self._stage = ""
        self._reached = 0  # epochs that the last fit completed
        self._trainer: Callable[[], object] = _nobody
        self._module: Callable[[], object] = _nobody

    def enter(self, trainer: pl.Trainer, stage: str) -> None:
        """Start a run of the trainer; to be called in every ``setup``, on every rank."""
        self._stage, self.resumed, self.at = stage, False, (UNKNOWN, UNKNOWN)
        # Rank zero saves what all load. uuid4 draws from no generator of the training's.
        self._mark = trainer.strategy.broadcast(uuid.uuid4().hex)

    def leave(self, trainer: pl.Trainer) -> None:
        """End the run: in ``teardown``, and in ``on_exception``, as then there is no teardown."""
        if self._stage == "fit" and self._trainer() is trainer:
            self._reached = trainer.current_epoch
        self._stage = ""

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember who trains, once it is decided whether this fit goes on."""
        self._trainer, self._module = weakref.ref(trainer), weakref.ref(module)
        self._reached = trainer.current_epoch

    def repeats(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Tell whether the same trainer trains the same model on, from where it stopped."""
        same = self._trainer() is trainer and self._module() is module
        return same and trainer.global_step > 0 and trainer.current_epoch >= self._reached

    def goes_on(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Tell whether the training that starts continues; to be asked before :meth:`begin`."""
        return (self.resumed and not self.lost(trainer)) or self.repeats(trainer, module)

    def lost(self, trainer: pl.Trainer) -> bool:
        """Tell, when the training starts, whether it has only the weights of the checkpoint.

        A finder that runs at the start of a fit makes Lightning forget the checkpoint's progress.
        """
        return self.resumed and self.at[1] > 0 and trainer.global_step == 0

    # -- states ------------------------------------------------------------------------------------

    def marked(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with the mark of this run."""
        return state | {MARK: self._mark}

    def purpose(self, state: Mapping[str, Any]) -> Purpose:
        """Tell what a state is loaded for, and remember a resume."""
        if self._mark and state.get(MARK) == self._mark and self._stage:
            return Purpose.UNDO
        if self._stage not in ("", "fit"):
            return Purpose.LOOK
        self.resumed = True  # outside of any run it is forgotten when one begins
        return Purpose.RESUME

    def note(self, checkpoint: Mapping[str, Any], state_key: str) -> None:
        """Note how far the weights of a checkpoint have been trained.

        Args:
            checkpoint: As ``on_load_checkpoint`` gets it.
            state_key: Of the callback's own state in it.
        """
        own = (checkpoint.get("callbacks") or {}).get(state_key) or {}
        if self._stage and not (self._mark and own.get(MARK) == self._mark):
            self.at = (_completed(checkpoint), int(checkpoint.get("global_step", UNKNOWN)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out who trains: weak references are of one process."""
        return vars(self) | {"_trainer": _nobody, "_module": _nobody}


def _nobody() -> None:
    return None


def _completed(checkpoint: Mapping[str, Any]) -> int:
    """Return the completed epochs of a checkpoint's weights.

    Lightning counts an epoch as completed after its checkpoints are saved, which are of its end all
    the same.
    """
    try:
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_progress"]["current"]
        completed = int(progress["completed"])
        if progress["ready"] == completed:
            return completed
        over = loop["epoch_loop.batch_progress"]["is_last_batch"]
        return completed + (progress["processed"] > completed or bool(over))
    except (KeyError, TypeError):
        return UNKNOWN
