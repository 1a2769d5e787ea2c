"""Fits under DDP, started by ``test_ddp.py``.

``python ddp_worker.py FOLDER 2 3`` fits on 2 and then on 3 ranks. Every rank writes what it knows
to ``FOLDER/<ranks>/<fit>.<rank>.json`` and its weights beside it. The ranks are forked after the
imports, which take longer than all fits, and have the environment that torchrun would give them.

``python ddp_worker.py FOLDER ddp_notebook`` lets Lightning fork two.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor, TerminalPhase
from ncmonitor.symmetry import Action, Group
from toys import (
    DIM,
    Toy,
    TrainOnly,
    blobs,
    blobs_read_by_class,
    train_loader,
    trainer,
    val_loader,
)


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class FailsOnOne(TrainOnly):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.trainer.global_rank == 1 and self.trainer.current_epoch == 1:
            raise RuntimeError("boom on one rank")
        return super().forward(x)


class RunsOutOnOne(TrainOnly):
    """Has memory for batches of 8 on rank one."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.trainer.global_rank == 1 and len(x) > 8:
            raise torch.OutOfMemoryError("no memory left")
        return super().forward(x)


class Plain(Toy):
    """Trains on single samples, which BatchNorm cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, DIM), nn.ReLU())

    def on_train_epoch_start(self) -> None: ...


class Own(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that gives every rank its own half."""

    def __iter__(self) -> Any:
        inputs, labels = blobs()
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        me = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        yield from zip(inputs[me::ranks], labels[me::ranks], strict=True)


def sorted_loader() -> DataLoader[Any]:
    """No rank reads every class."""
    return DataLoader(TensorDataset(*blobs_read_by_class()), batch_size=8, shuffle=True)


class Fits:
    def __init__(self, folder: Path, strategy: str, devices: int) -> None:
        self.folder, self.strategy, self.devices = folder, strategy, devices

    def run(
        self,
        name: str,
        *callbacks: pl.Callback,
        module: type[Toy] = Toy,
        loader: Any = None,
        val: Any = None,
        **changes: Any,
    ) -> None:
        pl.seed_everything(3, verbose=False)
        network = module()
        settings: dict[str, Any] = {"max_epochs": 3, "devices": self.devices}
        settings |= {"strategy": self.strategy} | changes
        fit, said = trainer(*callbacks, **settings), ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                held_out = (
                    None
                    if isinstance(network, TrainOnly)
                    else (val_loader() if val is None else val)
                )
                fit.fit(network, train_loader() if loader is None else loader, held_out)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        monitor = next((c for c in callbacks if isinstance(c, NeuralCollapse)), None)
        phase = next((c for c in callbacks if isinstance(c, TerminalPhase)), None)
        symmetry = next((c for c in callbacks if isinstance(c, SymmetryMonitor)), None)
        told = {
            "rows": [] if monitor is None else exact(monitor),
            "symmetry": [] if symmetry is None else exact(symmetry),
            "losses": network.losses,
            "error": said,
            "epochs": fit.current_epoch,
            "warnings": [str(w.message) for w in caught if "nan" in str(w.message)],
            "all_warnings": [str(w.message) for w in caught],
            "reason": None if phase is None else phase.reason,
            "onset": None if phase is None else str(phase.onset_checkpoint),
            "nc1": float(fit.callback_metrics.get("nc/train/nc1", torch.tensor(torch.nan))),
        }
        (self.folder / f"{name}.{rank()}.json").write_text(json.dumps(told))
        torch.save(network.state_dict(), self.folder / f"{name}.{rank()}.pt")

    def monitor(self, name: str, **options: Any) -> NeuralCollapse:
        return NeuralCollapse(run_dir=self.folder / name, verbose=False, **options)

    def symmetry(self, name: str) -> SymmetryMonitor:
        folder = self.folder / name
        return SymmetryMonitor(
            signs(), samples=40, schedule="every_epoch", run_dir=folder, verbose=False
        )


def signs() -> Group:
    """A closed group on the toy's inputs."""
    table = torch.tensor([[0, 1], [1, 0]])
    return Group.of("sign", [Action("minus", torch.neg)], kind="vectors", exact=True, table=table)


def exact(monitor: NeuralCollapse | SymmetryMonitor) -> list[dict[str, Any]]:
    """Return the history without losing digits, and without times."""
    rows = monitor.history.drop(columns="seconds").to_dict("records")
    return [{str(k): v for k, v in row.items()} for row in rows]


def everything(fits: Fits) -> None:
    layers: dict[str, Any] = {"layers": ("body.2",), "null_seed": 0}
    fits.run("plain", fits.monitor("plain", **layers))
    fits.run("alone")
    double = fits.monitor("double", metrics="all")
    fits.run("double", double, loader=sorted_loader(), precision="64-true")
    fits.run("fails", fits.monitor("fails", splits=("train",)), module=FailsOnOne)
    fits.run("memory", fits.monitor("memory", splits=("train",)), module=RunsOutOnOne)
    fits.run("online", fits.monitor("online", online=True))
    count = 3 if fits.devices == 2 else 2  # on three ranks, one has nothing to measure
    few = DataLoader(TensorDataset(*(part[:count] for part in blobs())), batch_size=2)
    fits.run("few", fits.monitor("few"), module=Plain, loader=few, val=few)
    stream = DataLoader(Own(), batch_size=8)
    fits.run("stream", fits.monitor("stream", splits=("train",)), loader=stream)
    fits.run("symmetry", fits.symmetry("symmetry"), loader=sorted_loader())
    fits.run("symmetry_fails", fits.symmetry("symmetry_fails"), module=FailsOnOne)
    stop = EarlyStopping("nc/train/nc1", patience=1, min_delta=10.0)
    keep = ModelCheckpoint(fits.folder / "keep", monitor="nc/val/nc1", filename="best")
    settings: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 9}
    fits.run("monitors", fits.monitor("monitors"), stop, keep, **settings)
    phase = TerminalPhase(epochs=2, dirpath=fits.folder / "onset")
    fits.run("phase", phase, fits.monitor("phase"), max_epochs=40)
    fits.run("weights", fits.monitor("weights", weights=NoWeightsOnOne()))
    wrong: Callable[[Any], Any] = WrongOnOne()
    fits.run("refused", fits.monitor("refused", batch_to_xy=wrong))


class WrongOnOne:
    """A ``batch_to_xy`` that works on all ranks but one."""

    def __call__(self, batch: Any) -> Any:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise ValueError("no such key on this machine")
        return batch[0], batch[1]


class NoWeightsOnOne:
    """A ``weights=`` that fails on one rank in the second epoch."""

    @contextlib.contextmanager
    def __call__(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            raise RuntimeError("no weights on one rank")
        yield


# -- processes -------------------------------------------------------------------------------------


def work(rank: int, folder: Path, devices: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    everything(Fits(folder, "ddp", devices))


def on_ranks(folder: Path, devices: int) -> None:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(work, (folder, devices, port), devices, start_method="fork")


if __name__ == "__main__":
    torch.set_num_threads(1)
    home, words = Path(sys.argv[1]), sys.argv[2:]
    if words == ["ddp_notebook"]:
        started = Fits(home, words[0], 2)
        started.run("started", started.monitor("started"))
    else:
        for word in words:
            on_ranks(home / word, int(word))
