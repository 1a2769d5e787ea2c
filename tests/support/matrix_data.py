"""Raw tensors, batches and loaders of the matrix of settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
)

from cases import seeded
from toys import CLASSES, blobs, val_blobs

BATCH, WIDTH, SHUFFLE = 16, 8, 3


class Data(NamedTuple):
    """Raw tensors, in the order of the data set; inputs may be a dictionary of tensors."""

    train: tuple[Any, Tensor]
    val: tuple[Any, Tensor]


def points() -> Data:
    return Data(blobs(), val_blobs())


def _pictures(samples: int, seed: int, side: int) -> tuple[Tensor, Tensor]:
    inputs, labels = blobs(samples, seed=seed)
    noise = torch.randn(samples, 3, side, side, generator=seeded(seed + 10))
    return noise + inputs[:, :3, None, None], labels


def pictures(side: int = 6) -> Data:
    return Data(_pictures(45, 0, side), _pictures(30, 4, side))


def _words(samples: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = seeded(seed)
    labels = torch.arange(samples) % CLASSES
    words = torch.randint(0, 5, (samples, 7), generator=generator) + 2 * labels[:, None]
    lengths = torch.randint(3, 8, (samples, 1), generator=generator)
    return {"input_ids": words, "attention_mask": (torch.arange(7) < lengths).long()}, labels


def sentences() -> Data:
    return Data(_words(45, 0), _words(30, 4))


def _tagged(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, labels = blobs(7 * samples, seed=seed)
    labels[::5] = -100  # tokens without a class
    return inputs.view(samples, 7, 6), labels.view(samples, 7)


def tagged() -> Data:
    return Data(_tagged(45, 0), _tagged(30, 4))


def segmented() -> Data:
    """A class for every position."""
    parts = []
    for samples, seed in ((45, 0), (30, 4)):
        inputs, labels = blobs(36 * samples, seed=seed, noise=2.5)
        maps = inputs[:, :3].view(samples, 6, 6, 3).movedim(-1, 1).contiguous()
        parts.append((maps, labels.view(samples, 6, 6)))
    return Data(*parts)


def at(inputs: Any, where: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: value[where] for key, value in inputs.items()}
    return inputs[where]


class Items(Dataset[Any]):
    """Samples in any shape, perhaps with noise from every global generator."""

    def __init__(self, data: tuple[Any, Tensor], form: Any = None, *, noise: float = 0.0) -> None:
        (self.inputs, self.labels), self.form, self.noise = data, form, noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        inputs, label = at(self.inputs, index), self.labels[index]
        if self.noise:
            drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
            inputs = inputs + self.noise * drawn
        return (inputs, label) if self.form is None else self.form(inputs, label)


class Stream(IterableDataset[Any]):
    def __init__(self, data: tuple[Any, Tensor]) -> None:
        self.items = Items(data)

    def __iter__(self) -> Iterator[Any]:
        return (self.items[i] for i in range(len(self.items)))


class Pairs:
    """A batch sampler of the user's own: shuffled, in batches of ten."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([part.tolist() for part in torch.randperm(45).split(10)])

    def __len__(self) -> int:
        return 5


@dataclass
class Sample:
    image: Tensor
    target: Tensor


class Named(NamedTuple):
    image: Tensor
    label: Tensor


def stacked(samples: list[tuple[Tensor, Tensor]]) -> Sample:
    return Sample(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))


def loaders(data: Data, form: Any = None, **changes: Any) -> dict[str, Any]:
    """Arguments of ``fit``: a shuffling training loader and a validation loader."""
    settings = {"batch_size": BATCH, "shuffle": True} | changes
    workers = {k: v for k, v in changes.items() if k in ("num_workers", "collate_fn")}
    val = DataLoader(Items(data.val, form), batch_size=BATCH, **workers)
    return {
        "train_dataloaders": DataLoader(Items(data.train, form), **settings),
        "val_dataloaders": val,
    }


def with_train(make: Callable[[Data], Any]) -> Callable[[Data], dict[str, Any]]:
    return lambda data: loaders(data) | {"train_dataloaders": make(data)}


class Augmenting(pl.LightningDataModule):
    """Scales every batch on the device, and adds noise in training alone."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.loaders = loaders(data)

    def train_dataloader(self) -> Any:
        return self.loaders["train_dataloaders"]

    def val_dataloader(self) -> Any:
        return self.loaders["val_dataloaders"]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        inputs, labels = batch
        assert self.trainer is not None
        noise = 0.1 * torch.randn_like(inputs) if self.trainer.training else 0.0
        return inputs / 2 + noise, labels
