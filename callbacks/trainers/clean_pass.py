"""A pass over data at fixed weights that leaves no trace in the training around it."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
import weakref
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

from ncmonitor.callbacks.trainers.batches import (
    BatchToXY,
    Forward,
    check_labels_usable,
    default_batch_to_xy,
    run_network,
    two_classes,
)
from ncmonitor.callbacks.trainers.precision import PassPrecision
from ncmonitor.features.kept_model import KeptModel, current
from ncmonitor.features.tap import Activations, FeatureTap
from ncmonitor.inputs.tensors import as_tensor

_LOGGING: Final[tuple[str, ...]] = ("log", "log_dict")
#: What has been said to be lost, by trainer.
_SAID: weakref.WeakKeyDictionary[pl.Trainer, set[str]] = weakref.WeakKeyDictionary()
_SEED: Final = 0  # of the pass's own generators: two readings of one loader give the same data


@contextlib.contextmanager
def evaluating(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Evaluate inside, and put everything back: the model, random states, trainer stage.

    Modes are restored module by module, so that a frozen BatchNorm stays frozen; for what else of
    the model is, see :class:`~ncmonitor.features.kept_model.KeptModel`. The trainer is in its
    validating stage, so that augmentation behind ``if self.trainer.training`` stays off.
    ``no_grad`` rather than ``inference_mode``, which forbids some of what models do.

    Raises:
        InputError: If the model's ``eval()`` adds, removes or reshapes parameters.
    """
    stage = trainer.state.stage
    eager: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules:  # compiled graphs would skip hooks placed after them
        eager = torch.compiler.set_stance("force_eager")
    failure: BaseException | None = None
    with isolate_rng(), torch.no_grad(), eager:
        kept, lost = KeptModel(module), list[str]()
        try:
            kept.evaluate()
            trainer.validating = True
            for each in module.modules():
                if hasattr(each, "log_dict"):  # a forward may log what it sees
                    vars(each).update(dict.fromkeys(_LOGGING, _nothing))
            with kept.current():
                yield
        except BaseException as error:  # isolate_rng restores only if nothing passes through it
            failure = error
        finally:
            trainer.state.stage = stage
            try:
                lost = kept.restore()
            except BaseException as error:
                failure = failure or error
    _say_lost(trainer, lost)
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
        loader: From :func:`~ncmonitor.callbacks.trainers.loaders.clean_loader`.
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
        self._first = True

    def __iter__(self) -> Iterator[list[tuple[Tensor, ...]]]:
        """Run the network over the loader."""
        for number, (inputs, labels) in enumerate(self.batches()):
            yield self.entry(inputs, labels, first=number == 0)
            self.advance()
        self.tap.check()

    def entry(self, inputs: Any, labels: Any, *, first: bool) -> list[tuple[Tensor, ...]]:
        """Run the network on a batch, and return it with its labels; in the first they are checked.

        Raises:
            InputError: If the classifier cannot be told, or the labels name no classes.
        """
        activations, labels = self.run(inputs), self._classes(labels)
        if first:  # in the words of somebody who knows what loaders give
            check_labels_usable(labels, activations.features, activations.logits.shape[-1])
        labels = as_tensor(labels).to(activations.features.device)
        inner = [(features, labels) for features in activations.layers.values()]
        return [(activations.features, labels, activations.logits), *inner]

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over inputs and labels, as the network gets them."""
        _seed()
        for number, batch in enumerate(self.loader):
            self._first = number == 0
            with self._watching():
                moved = self._transfer(batch)
            inputs, labels = self.batch_to_xy(moved)
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

    def run(self, inputs: Any) -> Activations:
        """Run the network on a batch of inputs."""
        with self.precision.forward():

            def again() -> Any:
                return self.forward(self.module, inputs)

            with self._watching():
                return self.tap.take(again(), again)

    def _watching(self) -> contextlib.AbstractContextManager[Any]:
        """See what is written on in the first batch; later ones are not slowed down by it."""
        kept = current()
        return kept.tensors.watching() if kept and self._first else contextlib.nullcontext()


def _say_lost(trainer: pl.Trainer, names: list[str]) -> None:
    """Say once in a trainer's life which parts of the model the pass has changed for good."""
    said = _SAID.setdefault(trainer, set())
    new = [name for name in names if name not in said]
    if not new or not trainer.is_global_zero:
        return
    said.update(new)
    warnings.warn(
        f"the measuring pass has changed {', '.join(map(repr, new))} of the model, which cannot be "
        "put back: training may not be what it is without the monitor. Change it in training mode "
        "alone (if self.training), or keep it in a buffer",
        RuntimeWarning,
        stacklevel=2,
    )


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _seed() -> None:
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - the global state is what data sets draw from
    random.seed(_SEED)
