"""How numbers reach the loggers, within an epoch's end and outside of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch

from ncmonitor.callbacks.fit_measurements import excused


def log_in_epoch(module: pl.LightningModule, values: Mapping[str, float]) -> None:
    """Log in ``on_train_epoch_end``, where monitors see the values too."""
    # As float64 tensors: Lightning would round a float to float32. MPS has no float64.
    dtype = torch.float32 if module.device.type == "mps" else torch.float64
    tensors = {key: torch.tensor(value, dtype=dtype) for key, value in values.items()}
    module.log_dict(tensors, on_step=False, on_epoch=True, batch_size=1)


def log_outside(trainer: pl.Trainer, values: Mapping[str, float], epoch: int) -> None:
    """Log outside an epoch, where ``log_dict`` drops what it gets; a logger may fail."""
    for logger in trainer.loggers if values else ():
        with excused(f"epoch {epoch} is missing from {type(logger).__name__}"):
            logger.log_metrics(dict(values), step=trainer.global_step)
