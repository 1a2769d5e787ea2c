"""The smallest trainer that has everything a measurement could disturb."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cases import seeded

CLASSES, DIM = 3, 8


def blobs(samples: int = 45, *, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Three separable classes, ``(samples, 6)``, in a fixed order."""
    generator = seeded(seed)
    labels = torch.arange(samples) % CLASSES
    means = 2 * torch.randn(CLASSES, 6, generator=seeded(0))
    return means[labels] + noise * torch.randn(samples, 6, generator=generator), labels


def measured_order(samples: int) -> Tensor:
    """Return the order in which a measurement reads the samples of a data set."""
    return torch.randperm(samples, generator=seeded(0))


def blobs_read_by_class() -> tuple[Tensor, Tensor]:
    """The blobs, placed so that a measurement reads one class after the other."""
    inputs, labels = blobs()
    order = torch.empty(len(labels), dtype=torch.long)
    order[measured_order(len(labels))] = labels.argsort(stable=True)
    return inputs[order], labels[order]


def val_blobs() -> tuple[Tensor, Tensor]:
    """Overlapping classes: their own means and the training set's decide differently."""
    return blobs(30, seed=4, noise=2.5)


class Recording(Dataset[tuple[Tensor, Tensor]]):
    """Keeps the order in which it is read, and can augment from every global generator."""

    def __init__(self, samples: int = 45, *, augment: bool = False) -> None:
        self.inputs, self.labels = blobs(samples)
        self.augment = augment
        self.order: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.order.append(index)
        noise = 0.0
        if self.augment:
            noise = 0.01 * (random.random() + float(np.random.rand()) + float(torch.rand(())))  # noqa: NPY002
        return self.inputs[index] + noise, self.labels[index]


class Toy(pl.LightningModule):
    """BatchNorm, Dropout and a frozen BatchNorm: modes and buffers that a pass could disturb."""

    def __init__(self, *, lr: float = 0.05) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(DIM)
        )
        self.head = nn.Linear(DIM, CLASSES)
        self.lr = lr
        self.losses: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.body[4].eval()  # frozen by the user, epoch after epoch

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


class TrainOnly(Toy):
    """Without a validation loop."""

    validation_step = pl.LightningModule.validation_step  # type: ignore[assignment]


def train_loader(dataset: Dataset[Any] | None = None, **changes: Any) -> DataLoader[Any]:
    settings = {"batch_size": 16, "shuffle": True, **changes}
    return DataLoader(Recording() if dataset is None else dataset, **settings)


def val_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*val_blobs()), batch_size=8)


def trainer(*callbacks: pl.Callback, max_epochs: int = 3, **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(max_epochs=max_epochs, callbacks=list(callbacks), **(settings | changes))
