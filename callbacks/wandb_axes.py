"""W&B only: completed epochs as the x-axis of every chart, and the measurement in the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ncmonitor.catalogue import quantity_of


def is_wandb(logger: object) -> bool:
    """Tell a W&B logger of either Lightning distribution by its class name."""
    return any(cls.__name__ == "WandbLogger" for cls in type(logger).__mro__)


def define_axes(loggers: Iterable[Any], epoch_key: str, keys: Mapping[str, str]) -> None:
    """Give every logged key the epoch as its x-axis, by exact name.

    Globs would compete with the one that Lightning's logger defines, and which wins is random.
    Quantities that fall to 0 at collapse get their minimum into the run summary beside the last.

    Args:
        loggers: The trainer's; others than W&B's are passed over.
        epoch_key: Key of the x-axis.
        keys: Every key that will be logged, with the name of its quantity.
    """
    for logger in filter(is_wandb, loggers):
        run = logger.experiment
        run.define_metric(epoch_key)
        for key, name in keys.items():
            quantity = quantity_of(name)
            falls = quantity is not None and (quantity.collapse == 0 or quantity.group == "fit")
            run.define_metric(key, step_metric=epoch_key, summary="min,last" if falls else "last")


def record_measurement(loggers: Iterable[Any], facts: Mapping[str, Any]) -> None:
    """Write how the run is measured into its W&B config, under ``ncmonitor``."""
    for logger in filter(is_wandb, loggers):
        logger.experiment.config.update({"ncmonitor": dict(facts)}, allow_val_change=True)
