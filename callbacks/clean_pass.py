"""A pass over data at fixed weights that leaves no trace in the training around it."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset

from ncmonitor._checks import InputError
from ncmonitor._tensors import as_tensor
from ncmonitor.tap import FeatureTap, Tapped

BatchToXY = Callable[[Any], tuple[Any, Any]]
Forward = Callable[[pl.LightningModule, Any], Any]

_INPUT_KEYS = ("x", "input", "inputs", "image", "images", "img", "pixel_values", "data", "features")
_LABEL_KEYS = ("y", "label", "labels", "target", "targets", "class", "classes")
_SEED = 0  # of the pass's own generators: two readings of one loader give the same data


def default_batch_to_xy(batch: Any) -> tuple[Any, Any]:
    """Return inputs and labels of a batch: the first two of a tuple, or by usual keys of a mapping.

    Raises:
        InputError: If neither can be told.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        x = [key for key in _INPUT_KEYS if key in batch]
        y = [key for key in _LABEL_KEYS if key in batch]
        if x and y:
            return batch[x[0]], batch[y[0]]
        got = f"a mapping with the keys {', '.join(map(str, batch))}"
    else:
        length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        got = f"a {type(batch).__name__}{length}"
    raise InputError(
        f"cannot tell inputs and labels in a batch that is {got}; expected (inputs, labels): pass "
        "batch_to_xy=, a function from a batch to that pair"
    )


class FirstBatches:
    """The first batches of a loader, as often as asked.

    Args:
        loader: Anything that can be iterated again.
        count: How many batches.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first batches."""
        return itertools.islice(iter(self.loader), self.count)


def clean_loader(loader: Any, batches: float = math.inf, *, limited: bool = False) -> Any:
    """Return a loader of the same data without shuffling or dropped samples.

    A subset sampler's subset is kept; weighted and batch samplers are replaced, so that every
    sample counts once. To be iterated inside :func:`evaluating`: even without shuffling, a
    ``DataLoader`` draws from the global generator, which would change the training.

    Args:
        loader: The user's loader; anything that is no ``DataLoader`` is read as it is.
        batches: Batches that the trainer takes from it; an iterable data set may have no end.
        limited: Whether to measure only so many batches of an ordinary data set, too.
    """
    endless = not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)
    clean = _without_sampling(loader) if isinstance(loader, DataLoader) else loader
    if math.isfinite(batches) and (endless or limited):
        return FirstBatches(clean, int(batches))
    return clean


def _without_sampling(loader: DataLoader[Any]) -> DataLoader[Any]:
    data: Any = loader.dataset
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:  # a batch sampler of the user's
        size = getattr(loader.batch_sampler, "batch_size", None) or 64
    inner = getattr(loader.batch_sampler, "sampler", loader.sampler)
    subset = getattr(inner, "indices", None)  # SubsetRandomSampler: a split of the data set
    order: dict[str, Any] = {"shuffle": False} if subset is None else {"sampler": list(subset)}
    return DataLoader(
        data,
        batch_size=size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        multiprocessing_context=loader.multiprocessing_context,
        **order,
    )


@contextlib.contextmanager
def evaluating(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Evaluate inside, and put everything back: modes per module, random states, trainer stage.

    Modes are restored module by module, so that a frozen BatchNorm stays frozen. The trainer is in
    its validating stage, so that augmentation behind ``if self.trainer.training`` stays off.
    ``no_grad`` rather than ``inference_mode``: a tensor cached by the model in the pass must
    remain usable in training.
    """
    modes, stage = {m: m.training for m in module.modules()}, trainer.state.stage
    eager: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules:  # compiled graphs would skip hooks placed after them
        eager = torch.compiler.set_stance("force_eager")
    failure: BaseException | None = None
    with isolate_rng(), torch.no_grad(), eager:
        module.eval()
        trainer.validating = True
        try:
            yield
        except BaseException as error:  # isolate_rng restores only if nothing passes through it
            failure = error
        finally:
            trainer.state.stage = stage
            for each, training in modes.items():
                each.training = training
    if failure is not None:
        raise failure


class CleanPass:
    """Re-iterable of ``(features, labels, logits)``: the network over a loader, batch by batch.

    To be iterated inside :func:`evaluating` and the tap's context.

    Args:
        trainer: Gives device, precision and batch transfer as in its own loops.
        module: The module under training.
        loader: From :func:`clean_loader`.
        tap: On ``module``.
        batch_to_xy: Splits a batch into inputs and labels.
        forward: Runs the network on the inputs; ``None`` calls ``module(x)``.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        loader: Any,
        tap: FeatureTap,
        batch_to_xy: BatchToXY | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.trainer, self.module, self.loader, self.tap = trainer, module, loader, tap
        self.batch_to_xy = batch_to_xy or default_batch_to_xy
        self.forward = forward

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Run the network over the loader."""
        _seed()
        for batch in self.loader:
            inputs, labels = self.batch_to_xy(self._transfer(batch))
            tapped = self._run(inputs)
            labels = as_tensor(labels).to(tapped.features.device)
            yield tapped.features, labels, tapped.logits

    def _transfer(self, batch: Any) -> Any:
        """Do the three steps that Lightning's own loops do before a step."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _run(self, inputs: Any) -> Tapped:
        with self.trainer.precision_plugin.forward_context():
            if self.forward is not None:
                return self.tap.take(self.forward(self.module, inputs))
            return self.tap.take(self.module(inputs))


def _seed() -> None:
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - the global state is what data sets draw from
    random.seed(_SEED)
