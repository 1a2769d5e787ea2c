"""Early stopping, checkpoints and schedulers that monitor our keys, and would look too early."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import pytorch_lightning as pl

from ncmonitor.catalogue import quantity_of
from ncmonitor.errors import InputError, nearest

#: Where Lightning's monitoring callbacks keep the choice, and the parameter that makes it. ``None``
#: until the callback's own ``setup``, which may come after ours.
_STOPPING: Final = ("_check_on_train_epoch_end", "check_on_train_epoch_end")
_SAVING: Final = ("_save_on_train_epoch_end", "save_on_train_epoch_end")
#: Lightning calls these after all other callbacks at the end of an epoch, and tells them by type.
_LAST: Final = ("EarlyStopping", "Checkpoint")


def monitors_of(trainer: pl.Trainer, prefix: str, *, symmetry: bool = False) -> list[str]:
    """Return our keys that something in the trainer monitors, each once.

    Monitors are strict: there must be a value at the end of the first epoch of a process. On an
    epoch that is not measured they see the value of the last that was.

    Args:
        trainer: With its callbacks; schedulers are known from ``on_train_start`` on.
        prefix: First part of our log keys.
        symmetry: Whether we are ``SymmetryMonitor``; else ``NeuralCollapse``.
    """
    ours = _Ours(trainer, prefix, symmetry)
    callbacks = [callback.monitor for callback in _callbacks(trainer, ours)]
    return [*dict.fromkeys([*callbacks, *(each.monitor for each in _schedulers(trainer, ours))])]


def check_monitors(
    trainer: pl.Trainer,
    prefix: str,
    keys: Collection[str] | None = None,
    *,
    symmetry: bool = False,
) -> None:
    """Refuse monitors that would look before there is a value, or for one that never comes.

    Values come at the end of the training epoch, after its validation. A monitor that looks within
    the epoch finds nothing in the first and the value of the epoch before in the others.

    Args:
        trainer: With its callbacks.
        prefix: First part of our log keys.
        keys: Every key that is logged at each measured epoch of this run. Given once training
            starts, where the schedulers are known, too; ``None`` before.
        symmetry: Whether we are ``SymmetryMonitor``; else ``NeuralCollapse``.

    Raises:
        InputError: With what to set.
    """
    ours = _Ours(trainer, prefix, symmetry)
    for callback in _callbacks(trainer, ours):
        name = f"{type(callback).__name__}(monitor={callback.monitor!r})"
        _check_type(trainer, callback, name)
        _check_time(trainer, callback, name)
        if keys is not None:
            _check_key(name, callback.monitor, prefix, keys)
    if keys is None:
        return
    for scheduler in _schedulers(trainer, ours):
        name = f"{type(scheduler.scheduler).__name__} (monitor {scheduler.monitor!r})"
        if scheduler.interval != "epoch":
            raise InputError(
                f"{name} would look after training steps, before this epoch's value is there: "
                'set "interval": "epoch" in what configure_optimizers returns'
            )
        _check_key(name, scheduler.monitor, prefix, keys)


class _Ours:
    """Which keys are those of the callback that asks."""

    def __init__(self, trainer: Any, prefix: str, symmetry: bool) -> None:
        self._prefix, self._symmetry = prefix, symmetry
        classes = (cls.__name__ for c in trainer.callbacks for cls in type(c).__mro__)
        # Without one, NeuralCollapse refuses its keys too.
        self._shared = "SymmetryMonitor" in classes

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not key.startswith(f"{self._prefix}/"):
            return False
        theirs = "/symmetry/" in key or key.startswith(f"{self._prefix}/parameters/")
        return theirs if self._symmetry else not (theirs and self._shared)


def _callbacks(trainer: Any, ours: _Ours) -> Iterator[Any]:
    for callback in trainer.callbacks:
        if getattr(callback, "monitor", None) in ours:
            yield callback


def _schedulers(trainer: Any, ours: _Ours) -> Iterator[Any]:
    """Return the plateau schedulers that Lightning steps with a value of ours; none by hand."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor in ours:
            yield config


def _check_type(trainer: pl.Trainer, callback: Any, name: str) -> None:
    """Refuse a monitor of the other distribution: what it sees depends on its place in the list."""
    if not any(hasattr(callback, attribute) for attribute, _ in (_STOPPING, _SAVING)):
        return
    packages = [c.__module__ for c in type(trainer).__mro__ if c.__name__ == "Trainer"]
    ours = packages[-1].removesuffix(".trainer.trainer")  # the last is Lightning's own
    known = (c.__module__ for c in type(callback).__mro__ if c.__name__ in _LAST)
    if not any(module.startswith(f"{ours}.") for module in known):
        raise InputError(
            f"{name} is none of {ours}, whose Trainer would let it look before this epoch's value "
            f"is there: import it from {ours}.callbacks"
        )


def _check_time(trainer: Any, callback: Any, name: str) -> None:
    """Refuse a callback that looks within the epoch, whatever it looks after."""
    steps = getattr(callback, "_every_n_train_steps", 0)
    if steps or getattr(callback, "_train_time_interval", None) is not None:
        given = f"every_n_train_steps={steps}" if steps else "train_time_interval"
        raise InputError(
            f"{name} would look after training steps ({given}), before this epoch's value is "
            "there: set every_n_epochs=1 instead"
        )
    for attribute, parameter in (_STOPPING, _SAVING):
        if not hasattr(callback, attribute):
            continue
        why = _within(trainer, parameter)
        choice = getattr(callback, attribute)
        if choice or (choice is None and not why):
            continue
        raise InputError(
            f"{name} would look after validation ({why or f'{parameter}=False'}), before this "
            f"epoch's value is there: set {parameter}=True"
        )


def _within(trainer: Any, parameter: str) -> str:
    """Say which setting makes Lightning's default a look after validation; empty if none does."""
    every = trainer.check_val_every_n_epoch
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return "a val_check_interval in time"
    if every != 1:
        return f"check_val_every_n_epoch={every}"
    if trainer.val_check_interval == 1.0:
        return ""
    if parameter == _SAVING[1] and not trainer.enable_validation:
        return ""
    return f"val_check_interval={trainer.val_check_interval}"


def _check_key(name: str, key: str, prefix: str, keys: Collection[str]) -> None:
    if key in keys:
        return
    split, _, metric = key.removeprefix(f"{prefix}/").partition("/")
    quantity = quantity_of(metric)
    elsewhere = [each for each in keys if each.endswith(f"/{metric}")]
    if quantity is not None and elsewhere:
        there = any(each.startswith(f"{prefix}/{split}/") for each in keys)
        why = "" if there else f"; this run measures no {split!r}"
        hint = f"{why}; did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
    elif quantity is not None and quantity.group not in ("fit", "phase"):
        hint = f"; pass metrics={[quantity.name]!r} to NeuralCollapse to have it measured"
    else:
        hint = nearest(key, keys) or f"; the keys are {prefix}/<split>/<metric>"
    raise InputError(f"{name} would wait for a value that is never logged{hint}")
