"""The random generators in checkpoints: a resumed run draws what the unbroken one does."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ncmonitor.callbacks.trainers.continuation import Continuation, Purpose


class Randomness(pl.Callback):
    """Keeps the state of the random generators in checkpoints, and takes it up on resuming.

    Without it the epochs after a resume would see the training set in another order. Attached as
    the first callback: what the others draw at the beginning of an epoch comes after.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None
        self._fits = Continuation()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._fits.enter(trainer, stage)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._fits.leave(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._fits.leave(trainer)

    def state_dict(self) -> dict[str, Any]:
        drawn = np.random.get_state(legacy=False)  # noqa: NPY002 - what others draw from
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            # With a tensor for the array: it loads with weights_only=True.
            "numpy": drawn | {"state": _tensors(drawn["state"])},
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state()
        return self._fits.marked(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Not what is tested, nor what a finder of learning rates puts back: it draws apart.
        if self._fits.purpose(state_dict) is Purpose.RESUME:
            self._kept = state_dict

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kept, self._kept = self._kept, None
        if kept is None:
            return
        torch.set_rng_state(kept["torch"].cpu())
        version, words, gauss = kept["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(kept["numpy"] | {"state": _arrays(kept["numpy"]["state"])})  # noqa: NPY002
        if "cuda" in kept and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_rng_state(kept["cuda"].cpu())
        # Lightning's loop asks the loader for its order once an epoch, but on resuming it has done
        # so before this hook: ask again, with the right generators.
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is not None:
            iter(fetcher)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._kept = None  # resumed in the middle of an epoch: there is no order to give back


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"key": torch.from_numpy(state["key"].astype(np.int64))}  # torch lacks uint32


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"key": state["key"].numpy().astype(np.uint32)}
