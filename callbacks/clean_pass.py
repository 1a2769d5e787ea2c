"""A pass over data at fixed weights that leaves no trace in the training around it."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ncmonitor._tensors import as_tensor
from ncmonitor.callbacks.batches import (
    BatchToXY,
    Forward,
    check_labels_usable,
    default_batch_to_xy,
    run_network,
    two_classes,
)
from ncmonitor.callbacks.precision import PassPrecision
from ncmonitor.tap import FeatureTap, Tapped

_LOGGING: Final[tuple[str, ...]] = ("log", "log_dict")
_SEED: Final = 0  # of the pass's own generators: two readings of one loader give the same data


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
        loggers = [m for m in modes if hasattr(m, "log_dict")]  # a forward may log what it sees
        own = [{k: vars(m)[k] for k in _LOGGING if k in vars(m)} for m in loggers]
        for each in loggers:
            vars(each).update(dict.fromkeys(_LOGGING, _nothing))
        try:
            yield
        except BaseException as error:  # isolate_rng restores only if nothing passes through it
            failure = error
        finally:
            for each, before in zip(loggers, own, strict=True):
                for name in _LOGGING:
                    del vars(each)[name]
                vars(each).update(before)
            trainer.state.stage = stage
            for each, training in modes.items():
                each.training = training
    if failure is not None:
        raise failure


def renew_weight(classifier: nn.Module) -> None:
    """Compute a weight anew that a forward pre-hook makes of other tensors.

    ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune`` keep it as a plain attribute,
    which after an optimizer step is that of the forward before. Modules with parametrisations
    compute theirs whenever it is read. To be called in eval mode: in training mode spectral norm
    would make a step of its power iteration.
    """
    for hook in classifier._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
            with torch.no_grad():
                hook(classifier, ())


class CleanPass:
    """Re-iterable over what the network leaves at the classifier and at inner layers.

    Gives, batch by batch, ``(features, labels, logits)`` of the classifier followed by
    ``(features, labels)`` of every layer. To be iterated inside :func:`evaluating` and the tap's
    context.

    Args:
        trainer: Gives device and batch transfer as in its own loops.
        module: The module under training.
        loader: From :func:`~ncmonitor.callbacks.loaders.clean_loader`.
        tap: On ``module``.
        precision: Of the forward.
        batch_to_xy: Splits a batch into inputs and labels.
        forward: Runs the network on the inputs; ``None`` guesses from its signature.
        advance: Called after every batch, for a progress bar.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        loader: Any,
        tap: FeatureTap,
        precision: PassPrecision,
        *,
        batch_to_xy: BatchToXY | None = None,
        forward: Forward | None = None,
        advance: Callable[[], None] | None = None,
    ) -> None:
        self.trainer, self.module, self.loader, self.tap = trainer, module, loader, tap
        self.precision = precision
        self.batch_to_xy = batch_to_xy or default_batch_to_xy
        self.forward = forward or run_network
        self.advance = advance or _nothing

    def __iter__(self) -> Iterator[list[tuple[Tensor, ...]]]:
        """Run the network over the loader."""
        for number, (inputs, labels) in enumerate(self.batches()):
            tapped, labels = self.run(inputs), self._classes(labels)
            if number == 0:  # in the words of somebody who knows what loaders give
                check_labels_usable(labels, tapped.features, tapped.logits.shape[-1])
            labels = as_tensor(labels).to(tapped.features.device)
            inner = [(features, labels) for features in tapped.layers.values()]
            yield [(tapped.features, labels, tapped.logits), *inner]
            self.advance()
        self.tap.check()

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over inputs and labels, as the network gets them."""
        _seed()
        for batch in self.loader:
            inputs, labels = self.batch_to_xy(self._transfer(batch))
            yield inputs, self._classes(labels)

    def _classes(self, labels: Any) -> Any:
        """Return labels 0.0 and 1.0 of a head with one logit as classes; others as they are."""
        head = self.tap.head
        return two_classes(labels) if head is not None and head.one_logit else labels

    def _transfer(self, batch: Any) -> Any:
        """Do the three steps that Lightning's own loops do before a step."""
        batch = self.precision.convert(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def run(self, inputs: Any) -> Tapped:
        """Run the network on a batch of inputs."""
        with self.precision.forward():

            def again() -> Any:
                return self.forward(self.module, inputs)

            return self.tap.take(again(), again)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _seed() -> None:
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - the global state is what data sets draw from
    random.seed(_SEED)
