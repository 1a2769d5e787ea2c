"""Early stopping and checkpoints that monitor a number of ``SymmetryMonitor``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import pytorch_lightning as pl
import torch

from ncmonitor.callbacks.trainers.monitored_keys import check_monitors, monitors_of


class SymmetryMonitors:
    """Who looks at our keys, and what they find where an epoch has no value.

    Args:
        prefix: First part of every log key.

    Attributes:
        owed: Keys that must have a value at the end of the first epoch.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last: dict[str, float] = {}
        self.owed: list[str] = []

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse those that would look before there is a value; as :func:`check_monitors`."""
        check_monitors(trainer, self._prefix, symmetry=True)

    def know(self, trainer: pl.Trainer, keys: Collection[str]) -> None:
        """Refuse those of a key that never comes.

        Args:
            trainer: With its schedulers.
            keys: That will be logged.

        Raises:
            InputError: With the nearest key.
        """
        check_monitors(trainer, self._prefix, {*keys, f"{self._prefix}/epoch"}, symmetry=True)
        self.owed = monitors_of(trainer, self._prefix, symmetry=True)
        self._last = {}

    def remember(self, values: Mapping[str, float]) -> None:
        """Keep what the untrained network has."""
        self._last = dict(values)

    def settle(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Give monitors what they need in the first epoch: if that failed, the value before it.

        Without one it is ``nan``, which ends the run in order where early stopping looks at it.
        """
        for key in self.owed:
            if key not in values:
                trainer.callback_metrics[key] = torch.tensor(self._last.get(key, math.nan))
        self.owed = [key for key in self.owed if key not in values]
