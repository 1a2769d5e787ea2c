"""Callbacks that monitor our keys and would look before there is a value."""

from __future__ import annotations

import pytorch_lightning as pl

from ncmonitor._checks import InputError

#: Where Lightning's monitoring callbacks keep the choice, and the parameter that makes it.
_CHOICES = {
    "_check_on_train_epoch_end": "check_on_train_epoch_end=True",
    "_save_on_train_epoch_end": "save_on_train_epoch_end=True",
}


def check_monitors(trainer: pl.Trainer, prefix: str) -> None:
    """Refuse monitors that Lightning would check in the middle of an epoch.

    Values come at the end of an epoch; with validation inside it, ``EarlyStopping`` and
    ``ModelCheckpoint`` would look for them at the first validation and stop the run.

    Args:
        trainer: With its callbacks.
        prefix: First part of our log keys.

    Raises:
        InputError: With the parameter to set.
    """
    if getattr(trainer, "val_check_interval", 1.0) == 1.0:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or not monitor.startswith(f"{prefix}/"):
            continue
        for attribute, parameter in _CHOICES.items():
            if hasattr(callback, attribute) and not getattr(callback, attribute):
                raise InputError(
                    f"{type(callback).__name__}(monitor={monitor!r}) would look in the middle of "
                    f"an epoch (val_check_interval), before there is a value: set {parameter}"
                )
