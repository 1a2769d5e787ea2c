"""One measurement of everything a trainer has: its splits and layers, at the current weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as _Norm

from ncmonitor.callbacks.options import Options
from ncmonitor.callbacks.trainers.averaging import measured_weights
from ncmonitor.callbacks.trainers.batch_dependence import check_batch_dependence
from ncmonitor.callbacks.trainers.clean_pass import CleanPass, evaluating, renew_weight
from ncmonitor.callbacks.trainers.precision import PassPrecision
from ncmonitor.callbacks.trainers.progress import measuring
from ncmonitor.callbacks.trainers.sources import (
    Source,
    fit_sources,
    held_out_sources,
    kind_of,
    length_of,
)
from ncmonitor.callbacks.trainers.strategies import one_network, ranks_of
from ncmonitor.errors import InputError
from ncmonitor.features.heads.head import Head
from ncmonitor.features.tap import FeatureTap
from ncmonitor.inputs.labels import clean_batch
from ncmonitor.inputs.tensors import check_floating
from ncmonitor.measurement.pipeline import Study, run
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.feature_cache import Budget, FeatureCache
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.passes import AccumulatorFactory
from ncmonitor.statistics.process_group import SINGLE_PROCESS, ProcessGroup

_T = TypeVar("_T")
#: Reports by layer; the classifier's own under ``""``.
Reports = dict[str, CollapseReport]


@dataclass
class Measurement:
    """Measures the splits of a trainer with one classifier.

    Attributes:
        trainer: The trainer in its fit or test loop.
        module: The module it trains.
        options: The user's.
        found: The classifier; set by :meth:`probe`.
        layers: Names of the inner layers.
        dtype: Precision of the classifier's input.
        num_classes: Number of its outputs K.
        dim: Dimension of its input d.
        batch_size: What fits into memory, once more did not.
        held: Which weights the last measurement saw: ``"raw"`` or ``"averaged"``.
        seen: Fingerprint of the weights in the last measurement of the training set.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    options: Options
    found: Head | None = field(default=None, init=False)
    layers: tuple[str, ...] = field(default=(), init=False)
    dtype: str = field(default="", init=False)
    num_classes: int = field(default=0, init=False)
    dim: int = field(default=0, init=False)
    batch_size: int | None = field(default=None, init=False)
    held: str = field(default="raw", init=False)
    seen: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Remember how positions of a map are reduced; token labels keep them."""
        self._reduce = self.options.reduce
        self._precision = PassPrecision(self.trainer, self.module, self.options.precision)

    @property
    def classifier(self) -> Head:
        """The classifier, once it has been found."""
        assert self.found is not None  # probed
        return self.found

    @property
    def name(self) -> str:
        """Name of the classifier."""
        return self.classifier.described

    @property
    def logits(self) -> str:
        """What the model makes of its head's output: see :mod:`ncmonitor.features.heads.links`."""
        link = self.classifier.link
        assert link is not None  # probed
        return f"{link.kind} of a position" if link.arrangement.chosen else link.kind

    @property
    def head(self) -> nn.Module:
        """Module of the classifier."""
        return self.classifier.module

    @property
    def ranks(self) -> ProcessGroup:
        """The processes that measure together."""
        return ranks_of(self.trainer, self.module)

    @property
    def parameter(self) -> nn.Parameter | None:
        """The classifier's weight as the optimizer holds it; ``None`` if it is parametrised.

        Never computed: reading a parametrised weight in training mode may change it (spectral
        norm makes a step of its power iteration).
        """
        return self.classifier.parameter

    def move(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure another trainer's module from now on, of the same architecture."""
        self.trainer, self.module = trainer, module
        self._precision = PassPrecision(trainer, module, self.options.precision)
        self.found = self.classifier.bound(module)

    def release(self) -> None:
        """Let go of trainer and module, which may be large, until :meth:`move`."""
        self.trainer = self.module = self._precision = None  # type: ignore[assignment]
        self.found = self.found and self.found.bound(None)

    def sources(self) -> dict[str, Source]:
        """Return what makes clean loaders of the splits of a fit, or of a test or validation.

        The first is the one that :meth:`probe` looks at; see :mod:`.sources`.
        """
        fitting = self.trainer.state.fn == "fit"
        return (fit_sources if fitting else held_out_sources)(self.trainer, self.options)

    @property
    def kind(self) -> str:
        """What the trainer's data are called in messages: training, validation or test."""
        return kind_of(self.trainer)

    # -- before the first step ---------------------------------------------------------------------

    def probe(self) -> None:
        """Find the classifier by one batch; whatever fails is a misconfiguration.

        In a fit it is a training batch, else one of what is tested or validated.

        Raises:
            InputError: With what to pass instead.
        """
        self._try(self._probe)

    def _try(self, look: Callable[[Any], None]) -> None:
        """Look at the first split; if that fails on one rank, it does on all."""
        with self.ranks.together():
            source = next(iter(self.sources().values()), None)
            if source is None:
                raise InputError(f"the trainer has no {self.kind} loader")

        def work() -> None:
            with self.ranks.together():  # a share of the data may be empty: everybody's first batch
                look(source(self.batch_size, SINGLE_PROCESS))

        self._while_it_fits(work, lambda: source(None, SINGLE_PROCESS))

    def _probe(self, loader: Any) -> None:
        lazy = _lazy_tensors(self.module)
        with self._prepared(), self._tap() as tap:
            reading = self._pass(loader, tap)
            try:
                inputs, labels = next(iter(reading.batches()))
                first = reading.entry(inputs, labels, first=True)
                tap.check()
            except (InputError, torch.OutOfMemoryError):
                raise
            except StopIteration:
                raise InputError(f"the {self.kind} loader gives no batch") from None
            except Exception as error:
                raise InputError(
                    f"the measuring pass cannot run the network on a {self.kind} batch: "
                    f"{type(error).__name__}: {error}. It calls module(inputs) with the first "
                    "element of the batch; pass forward= or batch_to_xy= if yours needs more"
                ) from error
            reduced = self._reduce
            self._settle(tap, first)
            if self._reduce != reduced:  # its layers were reduced before the labels were known
                with self._tap() as tap:
                    first = self._pass(loader, tap).entry(inputs, labels, first=False)
            self._measure_one(tap, first)
            said = check_batch_dependence(reading, inputs)
        if said is not None and self.trainer.is_global_zero:
            warnings.warn(said, stacklevel=2)
        _refuse_filled(lazy - _lazy_tensors(self.module))

    def _settle(self, tap: FeatureTap, batch: Sequence[tuple[Tensor, ...]]) -> None:
        """Note what the first batch shows, and refuse what cannot be measured."""
        features, labels, logits = batch[0]
        self.found, self.layers = tap.head, tap.layer_names
        self.dtype = str(features.dtype).removeprefix("torch.")
        self.num_classes, self.dim = logits.shape[-1], features.shape[-1]
        self._check_classes()
        settings = self.options.settings
        settings.check_classes(self.num_classes)
        check_floating(features)
        if labels.ndim > 1 and self._reduce == "gap":
            self._reduce = "tokens"
        clean_batch(features, labels, self.num_classes, settings.ignore_index, logits)

    def _measure_one(self, tap: FeatureTap, batch: Sequence[tuple[Tensor, ...]]) -> None:
        """Measure one batch alone: what fails here would fail in every epoch.

        Raises:
            InputError: If it fails for another reason than memory.
        """
        if not bool((batch[0][1] != self.options.settings.ignore_index).any()):
            return  # nothing in it is labelled
        try:
            renew_weight(self.head)
            head = Classifier(tap.weight, tap.bias)
            studies = self._studies(head, {}, (), in_memory=True)
            run(studies, [batch], SINGLE_PROCESS, self.options.null_seed)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"one training batch cannot be measured: {type(error).__name__}: {error}. Every "
                "measurement would fail; pass classifier= or layers= that can be, or leave "
                "NeuralCollapse out"
            ) from error

    def _check_classes(self) -> None:
        outputs, asked = self.num_classes, self.options.num_classes
        if asked not in (None, outputs):
            raise InputError(
                f"num_classes={asked}, but the classifier {self.name!r} has {outputs} outputs; "
                "pass classifier= the right layer, or leave num_classes out"
            )

    # -- the measurement ---------------------------------------------------------------------------

    def measure(
        self,
        source: Source,
        references: Mapping[str, ClassMoments] | None = None,
        share: float | None = None,
        factories: Sequence[AccumulatorFactory] = (),
    ) -> Reports:
        """Run the network over a split and return the reports; of train with its null.

        Out of memory, the batches are halved until they fit.

        Args:
            source: One of :meth:`sources`.
            references: For every other split, moments of the training set by layer; a layer
                without any is measured against its own. ``None`` for the training set itself.
            share: Expected share of the fit's time, for the progress bar.
            factories: Of what else is to see the features of the classifier.
        """

        def work() -> Reports:
            loader = source(self.batch_size, self.ranks)
            return self._measure(loader, references, share, factories)

        return self._while_it_fits(work, lambda: source(None, SINGLE_PROCESS))

    def _while_it_fits(self, work: Callable[[], _T], loader: Callable[[], Any]) -> _T:
        """Do the work, in batches of half the size whenever memory runs out."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                size = self.batch_size or getattr(loader(), "batch_size", None)
                if not isinstance(size, int) or size < 2:
                    self.batch_size = None  # somebody else's memory, perhaps: begin anew next time
                    raise
                self.batch_size = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.trainer.is_global_zero:
                warnings.warn(
                    f"out of memory while measuring with batches of {size}: trying "
                    f"{self.batch_size} from here on",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _measure(
        self,
        loader: Any,
        references: Mapping[str, ClassMoments] | None,
        share: float | None,
        factories: Sequence[AccumulatorFactory],
    ) -> Reports:
        options, train = self.options, references is None
        with (
            self._prepared(remember=train),
            self._tap() as tap,
            measuring(self.trainer, length_of(loader), share) as advance,
        ):
            with self.ranks.together():
                renew_weight(self.head)
                head = Classifier(tap.weight, tap.bias)
            studies = self._studies(head, references or {}, factories)
            seed = options.null_seed if train else None
            reports = run(studies, self._pass(loader, tap, advance), self.ranks, seed)
        return dict(zip(("", *self.layers), reports, strict=True))

    def _studies(
        self,
        head: Classifier,
        references: Mapping[str, ClassMoments],
        factories: Sequence[AccumulatorFactory],
        *,
        in_memory: bool = False,
    ) -> list[Study]:
        """Return a study of the classifier's features, and one of each layer."""
        budget = Budget(self.options.cache_bytes, in_memory=in_memory)
        return [
            Study(
                self.num_classes,
                None if layer else head,
                self.options.settings,
                FeatureCache(budget),
                references.get(layer),
                () if layer else factories,
            )
            for layer in ("", *self.layers)
        ]

    @contextlib.contextmanager
    def _prepared(self, *, remember: bool = False) -> Iterator[None]:
        """Evaluate the chosen weights, the same on every rank, in the chosen precision.

        Args:
            remember: Whether to keep the fingerprint of these weights as :attr:`seen`.
        """
        trainer, module = self.trainer, self.module
        ranks = self.ranks
        with contextlib.ExitStack() as inside:
            with ranks.together():  # the user's weights=, or memory, may fail on one rank only
                inside.enter_context(evaluating(trainer, module))
                weights = measured_weights(trainer, module, self.options.weights)
                self.held = inside.enter_context(weights)
            inside.enter_context(one_network(module, ranks))
            if remember:
                self.seen = self.fingerprint()
            with ranks.together():  # float32 copies of half-precision weights take memory
                inside.enter_context(self._precision.whole())
            yield

    def see(self) -> dict[str, int]:
        """Return the :meth:`fingerprint` of the weights that a measurement would see now."""
        with self._prepared(remember=True):
            return self.seen

    def fingerprint(self) -> dict[str, int]:
        """Return sums over the bits of all that training changes: the same on each rank and device.

        These are the parameters, and the running statistics of normalisation. Other buffers may
        change when the network runs in eval mode.
        """
        named: dict[str, torch.Tensor] = dict(self.module.named_parameters())
        norms = [(k, m) for k, m in self.module.named_modules() if isinstance(m, _Norm)]
        named |= {f"{k}.{name}": b for k, m in norms for name, b in m.named_buffers(recurse=False)}
        made = {k: p for k, p in named.items() if not nn.parameter.is_lazy(p)}
        bits = {k: p.detach().contiguous().view(-1).view(torch.uint8) for k, p in made.items()}
        return {k: int(each.sum()) for k, each in bits.items()}

    @property
    def about(self) -> dict[str, str | int]:
        """What decides which features are seen: class means of others are no reference."""
        reduce = self.options.reduce
        return {
            "classifier": self.name,
            "reduce": getattr(reduce, "__name__", str(reduce)),
            "ignore_index": self.options.settings.ignore_index,
        }

    def _tap(self) -> FeatureTap:
        return FeatureTap(
            self.module,
            None if self.found else self.options.classifier,
            layers=self.layers if self.found else self.options.layers,
            reduce=self._reduce,
            head=self.found,
        )

    def _pass(
        self, loader: Any, tap: FeatureTap, advance: Callable[[], None] | None = None
    ) -> CleanPass:
        return CleanPass(
            self.trainer,
            self.module,
            loader,
            tap,
            self._precision,
            batch_to_xy=self.options.batch_to_xy,
            forward=self.options.forward,
            advance=advance,
        )


def _lazy_tensors(module: nn.Module) -> set[str]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name for name, tensor in named if nn.parameter.is_lazy(tensor)}


def _refuse_filled(names: set[str]) -> None:
    """Refuse a model whose weights the measuring pass was the first to draw."""
    if names:
        raise InputError(
            f"the model has lazy layers that no batch has gone through yet ({min(names)!r}): the "
            "measuring pass would draw their first weights from its own random state, and the "
            "training would not be what it is without NeuralCollapse. Run the model on a batch "
            "before fit, or let Lightning's sanity check do it (num_sanity_val_steps=2)"
        )
