"""Before the first measurement: what will come, how it is measured, and who is told."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from ncmonitor.callbacks.loggers.tensorboard_layout import lay_out
from ncmonitor.callbacks.loggers.wandb_runs import WandbRuns
from ncmonitor.callbacks.trainer_measurement import Measurement
from ncmonitor.callbacks.trainers import loaders
from ncmonitor.callbacks.trainers.variation import varies
from ncmonitor.monitor.history import NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.monitor.history_rows import layer_split, log_keys
from ncmonitor.statistics.process_group import SINGLE_PROCESS


def grows_later(module: pl.LightningModule) -> bool:
    """Tell whether a module may make layers in hooks of its own that run after our ``setup``."""
    hooks = (getattr(type(module), name) for name in ("setup", "configure_model"))
    return any(
        h.__module__.partition(".")[0] not in ("pytorch_lightning", "lightning") for h in hooks
    )


def keys_to_come(measurement: Measurement, prefix: str, metrics: Sequence[str]) -> dict[str, str]:
    """Return every key that the fit may log, with its quantity; also of splits set up later."""
    options = measurement.options
    splits = [*measurement.sources()]
    if splits == ["train"] and "val" in options.splits and measurement.trainer.enable_validation:
        splits.append("val")
    splits += [layer_split(split, layer) for split in splits for layer in measurement.layers]
    splits += [] if options.null_seed is None else [NULL_SPLIT]
    splits += [ONLINE_SPLIT] if options.online else []
    return log_keys(prefix, splits, metrics)


def monitorable(keys: Mapping[str, str], prefix: str) -> set[str]:
    """Return the keys that have a value in the first epoch: no onset before there is one."""
    soon = {key for key, name in keys.items() if not name.startswith("tpt_start")}
    return {*soon, f"{prefix}/epoch"}


def tell_loggers(
    trainer: pl.Trainer, prefix: str, keys: Mapping[str, str], how: Mapping[str, Any]
) -> WandbRuns:
    """Set up the charts of those that have some and record how the run is measured.

    Returns:
        The trainer's W&B runs, to be told of what is found.
    """
    runs = WandbRuns(trainer.loggers, prefix, active=trainer.is_global_zero)
    runs.start(keys, how)
    lay_out(trainer, keys)
    return runs


def facts(measurement: Measurement) -> dict[str, Any]:
    """Describe what is measured and how, for the run's record."""
    options, ranks = measurement.options, measurement.ranks
    settings = options.settings
    made = {split: source(None, SINGLE_PROCESS) for split, source in measurement.sources().items()}
    sizes = {split: loaders.size_of(loader) for split, loader in made.items()}
    random: bool | None = None
    if ranks.rank == 0:
        loaders.warn_streams_per_rank(made, ranks.size)
        random = varies(made["train"])
    if random:
        warnings.warn(
            "a training sample read twice differs (random augmentation): it is measured as it "
            "comes; pass dataloader= a loader without augmentation to measure the clean data",
            stacklevel=2,
        )
    return {
        "classifier": measurement.name,
        "one_logit": measurement.classifier.one_logit,
        "logits": measurement.logits,
        "num_classes": measurement.num_classes,
        "feature_dim": measurement.dim,
        "feature_dtype": measurement.dtype,
        "layers": list(measurement.layers),
        "reduce": getattr(options.reduce, "__name__", str(options.reduce)),
        "convention": settings.convention.name,
        "metrics": list(settings.extra),
        "ridge": settings.ridge,
        "superclasses": None if settings.superclasses is None else list(settings.superclasses),
        "ignore_index": settings.ignore_index,
        "null_seed": None if options.null_seed is None else int(options.null_seed),
        "precision": options.precision,
        "trainer_precision": str(measurement.trainer.precision),
        "weights": measurement.held,
        "online": options.online,
        "ranks": ranks.size,
        "data_deterministic": None if random is None else int(not random),
        "splits": {split: size for split, size in sizes.items() if size is not None},
    }
