"""Online mode: the features of the training forward itself, at no extra pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import nn

from ncmonitor.callbacks.trainers.batches import BatchToXY, two_classes
from ncmonitor.callbacks.trainers.clean_pass import renew_weight
from ncmonitor.errors import InputError
from ncmonitor.features.heads.head import Head
from ncmonitor.features.kept_model import KeptModel
from ncmonitor.features.tap import FeatureTap
from ncmonitor.inputs.tensors import as_tensor
from ncmonitor.measurement.evaluation import first_report
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.passes import FirstPass
from ncmonitor.statistics.process_group import ProcessGroup

_ONE_FORWARD: Final = (
    "Online mode hears one forward of the labelled batch in each training step; where a step runs "
    "the network several times (LBFGS, SAM, two views), measure with online=False"
)


class Online:
    """Moments of the features that the training steps of one epoch see.

    Weights move between the batches, BatchNorm and dropout are in training mode, augmentation is
    on: another quantity than a measurement, and logged under another name.

    Args:
        module: The module under training.
        classifier: Its classifier.
        num_classes: K.
        settings: What to compute of what one pass can tell.
        batch_to_xy: Splits a batch into inputs and labels.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        classifier: Head,
        num_classes: int,
        settings: Settings,
        batch_to_xy: BatchToXY,
    ) -> None:
        self._module, self._num_classes, self._head = module, num_classes, classifier
        self._settings, self._batch_to_xy = settings, batch_to_xy
        self._tap = FeatureTap(module, head=classifier, compares=False)
        self._inside = contextlib.ExitStack()
        self._failure: Exception | None = None
        self._first = self._fresh()

    def before(self) -> None:
        """Listen to the training step that is about to be made."""
        self._inside.close()  # of a step that was begun and skipped
        self._inside.enter_context(self._tap)

    def after(self, batch: Any) -> None:
        """Take in what the training step has seen, unless an earlier one could not be."""
        with self._inside:
            if self._failure is not None or not self._tap.ran:  # a step may skip the network
                return
            try:
                activations = self._tap.take()
                labels = self._batch_to_xy(batch)[1]
                if self._head.one_logit:
                    labels = two_classes(labels)
                labels = as_tensor(labels).to(activations.features.device)
                with torch.no_grad():
                    self._first.update(activations.features, labels, activations.logits)
            except InputError as error:
                self._failure = InputError(f"{error}. {_ONE_FORWARD}")
            except Exception as error:  # nothing here may stop the training
                self._failure = error

    def stop(self) -> None:
        """Stop listening, after an exception in the training step too."""
        self._inside.close()

    def report(self, ranks: ProcessGroup) -> CollapseReport:
        """Return what the epoch's steps have seen, and begin the next epoch.

        Raises:
            Exception: What kept a step from being taken in; on every rank.
        """
        self.stop()  # a skipped step may have ended the epoch
        first, failure = self._first, self._failure
        self._first, self._failure = self._fresh(), None
        with ranks.together():
            if failure is not None:
                raise failure
        first = first.over(ranks)
        with ranks.together():
            classifier = self._tap.classifier
            assert classifier is not None  # named
            with _in_eval_mode(classifier):
                renew_weight(classifier)
                head = Classifier(self._tap.weight, self._tap.bias)
                return first_report(first, head, self._settings)

    def _fresh(self) -> FirstPass:
        return FirstPass(self._num_classes, None, self._settings.ignore_index)


@contextlib.contextmanager
def _in_eval_mode(classifier: nn.Module) -> Iterator[None]:
    """Let the weight that the classifier has in eval mode be read without a trace.

    A parametrised one may change when it is read in training mode: spectral norm makes a step of
    its power iteration. An adapter may be merged into it by ``eval()``.
    """
    kept = KeptModel(classifier)
    try:
        kept.evaluate()
        yield
    finally:
        kept.restore()


def check_online(module: pl.LightningModule, head: Head) -> None:
    """Refuse online mode where the classifier runs inside a compiled graph, which skips hooks.

    Raises:
        InputError: If the classifier, a module around it or the whole model is compiled, or if the
            model returns one position of what it gives.
    """
    classifier = head.module
    if head.link is not None and head.link.arrangement.chosen:
        raise InputError(
            f"online=True cannot tell which position of what {head.name!r} gives a training step "
            "uses: measure with online=False"
        )
    whole = getattr(module, "_compiler_ctx", None) is not None
    around = (m for m in module.modules() if any(each is classifier for each in m.modules()))
    if whole or any(_compiled(m) for m in around):
        raise InputError(
            "online=True cannot see into a compiled model: the hook on its classifier would never "
            "be called. Leave the classifier outside of torch.compile, or measure with online=False"
        )


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
