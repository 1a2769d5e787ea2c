"""Pages with code in them: their blocks, and the world in which these run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ncmonitor.callbacks import NeuralCollapse
from toys import Toy, train_loader, val_loader


class PageModel(Toy):
    """A toy whose layers have the names that pages use, and which brings its own data."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layer3, self.backbone.layer4 = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.backbone.layer4(self.backbone.layer3(x)))  # type: ignore[operator]

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader()


class PageData(pl.LightningDataModule):
    """The toy's loaders, for pages that say ``trainer.fit(model, datamodule)``."""

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return val_loader()


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what pages take for granted; a ``Trainer`` they make runs one epoch on the CPU."""
    monkeypatch.setattr(pl, "Trainer", partial(_small, pl.Trainer))
    data = train_loader().dataset
    known = {"model": PageModel(), "datamodule": PageData(), "dataset": data}
    imported = {"Trainer": pl.Trainer, "WandbLogger": WandbLogger, "NeuralCollapse": NeuralCollapse}
    return {**known, **imported}


def _small(trainer: type[pl.Trainer], **options: Any) -> pl.Trainer:
    fixed = {"accelerator": "cpu", "max_epochs": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return trainer(**{"logger": False, **options, **fixed, **quiet})


def run(page: Path, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Run the Python blocks of a page one after another in one namespace.

    What ``print(...)  # text`` prints must be that text, whatever the white space.
    """
    for block in blocks(page, "python"):
        capsys.readouterr()
        exec(compile(block, page.name, "exec"), names)
        promised = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.M)
        if promised:
            assert capsys.readouterr().out.split() == " ".join(promised).split()


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each ``ncmonitor`` command on a page, in a block or between backticks."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:    )?ncmonitor ([^#\n]*)", text, re.M)
    shown += re.findall(r"`ncmonitor ([^`\n]*)`", text)
    for words in shown:
        yield shlex.split(re.sub(r"[\[\]|…]", " ", words))
