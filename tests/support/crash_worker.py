"""Monitored fits that are killed (SIGKILL) where they are told to be, and then resumed.

    python crash_worker.py FOLDER KIND:EPOCH ...

Each fit is a process of its own, forked after the imports, which take longer than all fits. For
each KIND:EPOCH, ``FOLDER/KIND:EPOCH/`` then holds what the kill left in ``killed/``, what the
resumed run made of it in ``resumed/``, and both exit codes in ``codes.json``.

EPOCH counts completed epochs. KIND is ``batch`` (in the middle of the epoch after EPOCH), ``pass``
(in the measuring pass after EPOCH), ``append`` (when EPOCH is in history.csv, before its
checkpoint) or ``torn`` (while EPOCH's last line is written).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from ncmonitor.callbacks import NeuralCollapse
from toys import Toy, train_loader, trainer, val_loader

EPOCHS, BATCH = 6, 16
#: Epoch 4 is left out: a resumed run that measured it would have lost its schedule.
SCHEDULE = [1, 2, 3, 5, 6]
MEASURED = [0, *SCHEDULE]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Toy):
    """Draws the same dropout in an epoch whether or not the run was resumed; dies where told."""

    def __init__(self, kind: str = "", epoch: int = -1) -> None:
        super().__init__(lr=0.05)
        self.kind, self.epoch = kind, epoch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 * self.current_epoch + batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.kind == "batch" and (self.current_epoch, batch_idx) == (self.epoch, 1):
            die()
        return super().training_step(batch, batch_idx)

    def forward(self, x: Tensor) -> Tensor:
        # Lightning's validation comes earlier, in other batches; nothing else runs in eval mode.
        measuring = self.kind == "pass" and not self.training and len(x) == BATCH
        if (
            measuring
            and self.current_epoch + 1 == self.epoch
            and self.global_step == 3 * self.epoch
        ):
            die()
        return super().forward(x)


def dying_fsync(epoch: int, *, torn: bool) -> Callable[[Any], None]:
    """Return an ``os.fsync`` that ends the process when an epoch's rows reach the disk."""
    real, left = os.fsync, MEASURED.index(epoch)

    def fsync(file: Any) -> None:
        nonlocal left
        real(file)
        if left == 0:
            if torn:
                os.ftruncate(file, os.fstat(file).st_size - 9)
            die()
        left -= 1

    return fsync


def fit(folder: Path, kind: str = "", epoch: int = -1, *, resume: bool = False) -> NeuralCollapse:
    """Fit in ``folder``, in the same way each time."""
    torch.manual_seed(0)
    module = Mortal(kind, epoch)
    monitor = NeuralCollapse(run_dir=folder / "run", schedule=SCHEDULE, verbose=False)
    saver = ModelCheckpoint(dirpath=folder, save_last=True)
    run = trainer(monitor, saver, max_epochs=EPOCHS, enable_checkpointing=True)
    last = folder / "last.ckpt"
    if kind in ("append", "torn"):
        mock.patch.object(os, "fsync", dying_fsync(epoch, torn=kind == "torn")).start()
    run.fit(
        module,
        train_loader(shuffle=False, batch_size=BATCH),
        val_loader(),
        ckpt_path=last if resume and last.exists() else None,
    )
    return monitor


def forked(*arguments: Any, **options: Any) -> int:
    """Fit in a process of its own and return its exit code; minus the signal if it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        fit(*arguments, **options)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)  # not back into the loop of the parent


def main(folder: Path, kills: list[str]) -> None:
    for kill in kills:
        kind, _, epoch = kill.partition(":")
        killed, resumed = folder / kill / "killed", folder / kill / "resumed"
        codes = [forked(killed, kind, int(epoch))]
        shutil.copytree(killed, resumed)
        codes.append(forked(resumed, resume=True))
        (folder / kill / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
