"""How streams of features are measured: a pass, agreement, a second pass, agreement, a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ncmonitor.errors import InputError
from ncmonitor.inputs.tensors import as_tensor
from ncmonitor.measurement.evaluation import Evaluation
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.measurement.shuffled_labels import only_for, permuted, relabelled
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.feature_cache import Entry, FeatureCache
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.passes import AccumulatorFactory, FirstPass
from ncmonitor.statistics.process_group import SINGLE_PROCESS, ProcessGroup
from ncmonitor.statistics.source_checks import check_first, check_rereadable, check_same

Batch = Sequence[Any]


@dataclass
class Study:
    """One stream of features and labels on its way to a report.

    Attributes:
        num_classes: Number of classes K.
        classifier: The last linear layer; ``None`` for features alone.
        settings: What to compute.
        cache: Keeps the features between the passes.
        reference: Moments whose class means decide the nearest class; ``None``: the stream's own.
        factories: Of what else is to see every feature, beside the metrics; not of shuffled labels.
        first: The first pass: of this rank's share, and of all once they have met.
    """

    num_classes: int
    classifier: Classifier | None
    settings: Settings
    cache: FeatureCache
    reference: ClassMoments | None = None
    factories: Sequence[AccumulatorFactory] = ()
    first: FirstPass = field(init=False)

    def __post_init__(self) -> None:
        """Start the first pass."""
        self.first = self.first_pass()
        self._share = self.first

    def first_pass(self) -> FirstPass:
        """Return a fresh first pass."""
        return FirstPass(self.num_classes, self.classifier, self.settings.ignore_index)

    def take(self, batch: Batch) -> None:
        """Take a batch into the first pass, and keep it while there is room."""
        self.cache.add(*_seen(batch, self.first))

    def meet(self, ranks: ProcessGroup) -> None:
        """Join the first passes of all ranks."""
        self.first = self._share.over(ranks)

    def evaluate(
        self, first: FirstPass, factories: Sequence[AccumulatorFactory] = ()
    ) -> Evaluation:
        """Return what is left to do, after a first pass."""
        check_first(first, self.reference)
        return Evaluation(first, self.reference, self.settings, factories)

    def check_same(self, again: FirstPass) -> None:
        """Raise unless a second reading gave what the first one did."""
        check_same(self._share, again, self.cache.budget.needed)


def run(
    studies: Sequence[Study],
    batches: Iterable[Sequence[Batch]],
    ranks: ProcessGroup = SINGLE_PROCESS,
    null_seed: int | None = None,
) -> list[CollapseReport]:
    """Measure several streams that come side by side, such as the layers of one network.

    Args:
        studies: One for each stream, with one budget of memory.
        batches: Re-iterable; gives a batch for each of the streams at a time.
        ranks: Those that measure together, each its own share of the samples.
        null_seed: Also measure the first stream with labels shuffled by this seed.

    Returns:
        A report for each stream, the same on every rank.

    Raises:
        InputError: If the streams cannot be measured; on every rank, if one of them fails.
    """
    with ranks.together():
        for parts in batches:
            for study, part in zip(studies, parts, strict=True):
                study.take(part)
    for study in studies:
        study.meet(ranks)
    budget = studies[0].cache.budget
    with ranks.together():
        after = [study.evaluate(study.first, study.factories) for study in studies]
        if not budget.enough:
            check_rereadable(batches, budget, times=2 if null_seed is None else 4)
        for entries in _again(studies, batches):
            for evaluation, entry in zip(after, entries, strict=True):
                evaluation.second.update(*entry)
    for evaluation in after:
        evaluation.second.meet(ranks)
    reports = [evaluation.report() for evaluation in after]
    if null_seed is not None:
        null = _null(studies[0], batches, ranks, null_seed)
        reports[0] = replace(reports[0], shuffle=only_for(null_seed, null))
    return reports


def _again(
    studies: Sequence[Study], batches: Iterable[Sequence[Batch]]
) -> Iterator[Sequence[Entry]]:
    """Iterate over the streams once more: from memory, or by reading them again."""
    if studies[0].cache.budget.enough:
        yield from zip(*(study.cache for study in studies), strict=True)
        return
    passes = [study.first_pass() for study in studies]
    for parts in batches:
        # Streams that are not asked for come after those that are.
        yield [_seen(part, each) for part, each in zip(parts, passes, strict=False)]
    for study, each in zip(studies, passes, strict=True):
        study.check_same(each)


def _null(
    study: Study, batches: Iterable[Sequence[Batch]], ranks: ProcessGroup, seed: int
) -> CollapseReport | Exception:
    """Return the report of shuffled labels; a null that fails must not take the rest with it."""

    def entries() -> Iterator[Entry]:
        for [entry] in _again([study], batches):
            yield entry

    labels = study.cache.labels
    try:
        shuffled = permuted(labels, study.num_classes, seed, ranks)
        with ranks.together():
            first, again = relabelled(study.first_pass(), entries, labels, shuffled)
        first = first.over(ranks)
        with ranks.together():
            evaluation = study.evaluate(first)
            for entry in again:
                evaluation.second.update(*entry)
        evaluation.second.meet(ranks)
        return evaluation.report()
    except Exception as error:
        return error


def _seen(batch: Batch, first: FirstPass) -> Entry:
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        kind = type(batch).__name__
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise InputError(
            "expected batches of (features, labels) or (features, labels, logits), "
            f"got a {kind}{size}"
        )
    features, labels, *logits = map(as_tensor, batch)
    return first.update(features, labels, *logits)


class Single:
    """Batches of one stream, as a stream side by side with no other.

    Args:
        batches: Re-iterable, or to be read once.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    @property
    def once(self) -> bool:
        """Whether they can be read only once."""
        return isinstance(self.batches, Iterator)

    def __iter__(self) -> Iterator[tuple[Batch]]:
        """Iterate over the batches."""
        for batch in self.batches:
            yield (batch,)
