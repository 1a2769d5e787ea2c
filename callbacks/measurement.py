"""One measurement of everything a trainer has: its splits, at the current weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch

from ncmonitor._checks import InputError
from ncmonitor._labels import clean_batch
from ncmonitor._tensors import check_floating
from ncmonitor.bank import DEFAULT_BANK_BYTES
from ncmonitor.callbacks.clean_pass import (
    BatchToXY,
    CleanPass,
    Forward,
    clean_loader,
    evaluating,
)
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.measure import measure_batches
from ncmonitor.moments import ClassMoments
from ncmonitor.report import CollapseReport
from ncmonitor.settings import Settings
from ncmonitor.tap import FeatureTap


@dataclass(frozen=True)
class Options:
    """What the user said about model and data; documented at ``NeuralCollapse``."""

    classifier: str | torch.nn.Module | None = None
    num_classes: int | None = None
    splits: tuple[str, ...] = ("train", "val")
    dataloader: Any = None
    batch_to_xy: BatchToXY | None = None
    forward: Forward | None = None
    bank_bytes: int = DEFAULT_BANK_BYTES
    settings: Settings = field(default_factory=Settings)
    null_seed: int | None = None


@dataclass
class Measurement:
    """Measures the splits of a trainer with one classifier.

    Attributes:
        trainer: The trainer in its fit or test loop.
        module: The module it trains.
        options: The user's.
        name: Name of the classifier; set by :meth:`probe`.
        dtype: Precision of its input.
        num_classes: Number of its outputs K.
        dim: Dimension of its input d.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    options: Options
    name: str = field(default="", init=False)
    dtype: str = field(default="", init=False)
    num_classes: int = field(default=0, init=False)
    dim: int = field(default=0, init=False)

    @property
    def parameter(self) -> torch.nn.Parameter | None:
        """The classifier's weight as the optimizer holds it; ``None`` if it is parametrised.

        Never computed: reading a parametrised weight in training mode may change it (spectral
        norm makes a step of its power iteration).
        """
        module = self.module.get_submodule(self.name)
        return module._parameters.get("weight")

    def classifier_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the classifier's state, which tells one set of weights from another."""
        prefix = f"{self.name}."
        state = self.module.state_dict()
        return {k: value.clone() for k, value in state.items() if k.startswith(prefix)}

    def loaders(self) -> dict[str, Any]:
        """Return clean loaders by split, the training set first.

        Validation loaders that Lightning has not set up yet are left out.

        Raises:
            InputError: If there are several training loaders, or one that may have no end.
        """
        given = self.options.dataloader
        source = given() if callable(given) else given
        source = self.trainer.train_dataloader if source is None else source
        if isinstance(source, (dict, list, tuple)):
            raise InputError(
                "the trainer has several training loaders; pass dataloader= the one to measure"
            )
        trainer = self.trainer
        limited = is_dry_run(trainer) or _overfits(trainer)
        batches = trainer.num_training_batches if given is None else math.inf
        if batches == math.inf and trainer.max_epochs == -1 and _has_no_length(source):
            raise InputError(
                "the training data has no length and the trainer no last epoch (max_steps alone), "
                "so the data may have no end; pass dataloader= a finite loader, or "
                "Trainer(limit_train_batches=...)"
            )
        loaders = {"train": clean_loader(source, batches, limited=limited and given is None)}
        if "val" in self.options.splits:
            found = _several(trainer.val_dataloaders)
            counts = _several(trainer.num_val_batches) or [math.inf] * len(found)
            for index, (loader, count) in enumerate(zip(found, counts, strict=False)):
                split = "val" if len(found) == 1 else f"val{index}"
                loaders[split] = clean_loader(loader, count, limited=is_dry_run(trainer))
        return loaders

    def probe(self) -> None:
        """Find the classifier by one training batch; whatever fails is a misconfiguration.

        Raises:
            InputError: With what to pass instead.
        """
        loader = self.loaders()["train"]
        with evaluating(self.trainer, self.module), self._tap() as tap:
            try:
                features, labels, logits = next(iter(self._pass(loader, tap)))
            except InputError:
                raise
            except StopIteration:
                raise InputError("the training loader gives no batch") from None
            except Exception as error:
                raise InputError(
                    f"the measuring pass cannot run the network on a training batch: "
                    f"{type(error).__name__}: {error}. It calls module(inputs) with the first "
                    "element of the batch; pass forward= or batch_to_xy= if yours needs more"
                ) from error
        self.name, self.dtype = tap.name, str(features.dtype).removeprefix("torch.")
        self.num_classes, self.dim = logits.shape[-1], features.shape[-1]
        self._check_classes()
        settings = self.options.settings
        settings.check_classes(self.num_classes)
        check_floating(features)
        clean_batch(features, labels, self.num_classes, settings.ignore_index, logits)

    def facts(self) -> dict[str, Any]:
        """Describe what is measured and how, for the run's record."""
        settings = self.options.settings
        sizes = {split: _size(loader) for split, loader in self.loaders().items()}
        return {
            "classifier": self.name,
            "num_classes": self.num_classes,
            "feature_dim": self.dim,
            "feature_dtype": self.dtype,
            "convention": settings.convention.name,
            "metrics": [name for name in settings.names if not CATALOGUE[name].default],
            "ridge": settings.ridge,
            "superclasses": None if settings.superclasses is None else list(settings.superclasses),
            "ignore_index": settings.ignore_index,
            "null_seed": self.options.null_seed,
            "splits": {split: size for split, size in sizes.items() if size is not None},
        }

    def measure(self, loader: Any, reference: ClassMoments | None = None) -> CollapseReport:
        """Run the network over a clean loader and return the report; of train with its null.

        Args:
            loader: One of :meth:`loaders`.
            reference: Moments of the training set, for every other split.
        """
        with evaluating(self.trainer, self.module), self._tap() as tap:
            classifier = self.module.get_submodule(self.name)
            return measure_batches(
                self._pass(loader, tap),
                classifier.weight,
                getattr(classifier, "bias", None),
                reference=reference,
                settings=self.options.settings,
                bank_bytes=self.options.bank_bytes,
                null_seed=self.options.null_seed if reference is None else None,
            )

    def _tap(self) -> FeatureTap:
        return FeatureTap(self.module, self.name or self.options.classifier)

    def _pass(self, loader: Any, tap: FeatureTap) -> CleanPass:
        options = self.options
        return CleanPass(
            self.trainer, self.module, loader, tap, options.batch_to_xy, options.forward
        )

    def _check_classes(self) -> None:
        outputs, asked = self.num_classes, self.options.num_classes
        if outputs < 2:
            raise InputError(
                f"the classifier {self.name!r} has {outputs} output; neural collapse needs one per "
                "class: use a two-output head with cross-entropy for two classes"
            )
        if asked not in (None, outputs):
            raise InputError(
                f"num_classes={asked}, but the classifier {self.name!r} has {outputs} outputs; "
                "pass classifier= the right layer, or leave num_classes out"
            )


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Tell whether the trainer only tries a few batches (``fast_dev_run``)."""
    return bool(getattr(trainer, "fast_dev_run", False))  # set outside of Trainer's own class


def _overfits(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "overfit_batches", False))


def clean_test_loader(trainer: pl.Trainer) -> Any:
    """Return a clean loader of the trainer's test set, the first if there are several."""
    return clean_loader(_several(trainer.test_dataloaders)[0])


def _size(loader: Any) -> int | None:
    """Return the number of samples a clean loader gives, where that is known beforehand."""
    try:
        return len(loader.sampler)
    except (AttributeError, TypeError):
        return None


def _has_no_length(loader: Any) -> bool:
    try:
        len(loader)
    except TypeError:
        return True
    return False


def _several(loaders: Any) -> list[Any]:
    if loaders is None:
        return []
    if isinstance(loaders, dict):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
