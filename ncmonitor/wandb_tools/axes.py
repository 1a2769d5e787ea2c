"""W&B only: completed epochs as the x-axis of every chart, and the measurement in the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ncmonitor.wandb_tools import run_record


def is_wandb(logger: object) -> bool:
    """Tell a W&B logger of either Lightning distribution by its class name."""
    return any(cls.__name__ == "WandbLogger" for cls in type(logger).__mro__)


def define_axes(loggers: Iterable[Any], epoch_key: str, keys: Mapping[str, str]) -> None:
    """Give every logged key the epoch as its x-axis, by exact name.

    Args:
        loggers: The trainer's; others than W&B's are passed over.
        epoch_key: Key of the x-axis.
        keys: Every key that will be logged, with the name of its quantity.
    """
    for logger in filter(is_wandb, loggers):
        run_record.define_axes(logger.experiment, epoch_key, keys)


def record_measurement(
    loggers: Iterable[Any], facts: Mapping[str, Any], name: str = "ncmonitor"
) -> None:
    """Write how the run is measured into its W&B config, under a name."""
    for logger in filter(is_wandb, loggers):
        run_record.fill_config(logger.experiment, facts, name)
