"""The LightningModule of every recipe: a network, cross-entropy, SGD and a cosine schedule."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.nn import functional as F

from ncmonitor._checks import InputError

Batch = tuple[torch.Tensor, torch.Tensor]


class ImageClassifier(pl.LightningModule):
    """Train a network to classify images with SGD; the learning rate falls to 0 along a cosine.

    Args:
        network: From images to logits; its last linear layer is what collapse is measured at.
        lr: Learning rate at the start.
        momentum: Of SGD.
        weight_decay: On every parameter. Collapse needs it: the clock of the terminal phase is the
            sum of lr · weight_decay over the steps.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if value < 0:
                raise InputError(f"ImageClassifier: {name} must not be negative, but is {value}")
        if not 0 <= momentum < 1:
            raise InputError(f"ImageClassifier: momentum must lie in [0, 1), but is {momentum}")
        # No save_hyperparameters: the run's config.yaml and its loggers have the whole config, and
        # on resuming LightningCLI would put a checkpoint's values over those of the command line.
        self.network = network
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay

    @property
    def classifier(self) -> nn.Linear:
        """The network's last layer, where it has the name that ours have."""
        layer = self.network.get_submodule("classifier")
        assert isinstance(layer, nn.Linear)  # the networks of ncmonitor.recipes.models
        return layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self._loss(batch, "train_loss")

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self._loss(batch, "val_loss")

    def _loss(self, batch: Batch, name: str) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        sgd = torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            raise InputError(
                "the cosine schedule needs to know the last epoch; set --trainer.max_epochs"
            )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=max(1, epochs))
        return {"optimizer": sgd, "lr_scheduler": cosine}
