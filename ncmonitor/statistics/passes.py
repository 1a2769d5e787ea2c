"""The two passes over every feature: moments and errors first, then what needs class means."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ncmonitor.errors import InputError
from ncmonitor.inputs import tensors
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.inputs.labels import Batch, clean_batch
from ncmonitor.inputs.tensors import Scratch, check_floating, exact_arithmetic, working_dtype
from ncmonitor.statistics.accumulators import Accumulator, Block, Margin
from ncmonitor.statistics.class_means import ClassMeans
from ncmonitor.statistics.classifier import Classifier, Scorer
from ncmonitor.statistics.feature_cache import Entry
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.process_group import ProcessGroup

#: Elements of a block of logits or distances: wide enough for a matrix product at full speed.
SCORE_ELEMENTS: Final = 2**22


def score_rows(num_classes: int, dim: int) -> int:
    """Return how many samples to score at once."""
    return min(tensors.block_rows(dim), max(64, SCORE_ELEMENTS // num_classes))


def decide_(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions, cross-entropies and where logits are ``nan``, ``(N,)``; spends them.

    ``−log softmax(z)_y = softplus(logsumexp_{j≠y} z_j − z_y)`` has full relative precision near 0:
    deep in the terminal phase the usual form ends in ``1 − 1`` and reads 0 or a multiple of the
    rounding unit.
    """
    own = logits.gather(1, labels[:, None])
    logits.scatter_(1, labels[:, None], -torch.inf)
    top, other = logits.max(1, keepdim=True)
    tied = (own == top).squeeze(1) & (labels < other.squeeze(1))  # the first of equals, as argmax
    right = (own > top).squeeze(1) | tied
    predicted = torch.where(right, labels, other.squeeze(1))
    # Nothing beside exp(0) = 1; but denormal numbers, the other name of nothing, take far longer.
    rest = logits.sub_(top).clamp_(min=-80).exp_().sum(1).double().log_()
    gap = top.double() - own.double()
    broken = (own.isnan() | top.isnan()).squeeze(1)  # a maximum passes nan on
    return predicted, functional.softplus(rest.add_(gap.squeeze(1))), broken


class FirstPass:
    """Counts, means, variances, errors and loss of a stream of features.

    Args:
        num_classes: Number of classes K.
        classifier: Gives the logits where the stream has none; ``None`` for features alone.
        ignore_index: Samples with this label are left out.
    """

    def __init__(
        self,
        num_classes: int,
        classifier: Classifier | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        self.moments = ClassMoments(num_classes, ignore_index=ignore_index)
        self.classifier = classifier
        self.decides = True
        self._scorer: Scorer | None = None
        self._wrong = torch.zeros((), dtype=torch.int64)
        self._broken = torch.zeros((), dtype=torch.int64)
        self._loss = torch.zeros((), dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor, logits: Tensor | None = None) -> Entry:
        """Take in a batch; return its features, labels and what the network predicts.

        The features come back as ``(N, d)`` without ignored samples; ``None`` for predictions
        without logits or classifier.
        """
        check_floating(features)
        moments = self.moments
        batch = clean_batch(features, labels, moments.num_classes, moments.ignore_index, logits)
        if self.classifier is not None:
            self.classifier.check(batch.features)
        moments.take(batch)
        with exact_arithmetic(batch.features.device):
            return batch.features, batch.labels, self._decide(batch)

    def replay(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        """Take in an entry of :meth:`update` under other labels; the loss is not known then."""
        self.moments.take(Batch(features, labels, None, None))
        self.decides = predicted is not None
        if predicted is not None:
            wrong = (predicted != labels) & (labels < self.moments.num_classes)
            self._wrong = self._wrong.to(predicted.device) + wrong.sum()
        self._loss = self._loss + torch.nan

    def over(self, ranks: ProcessGroup) -> FirstPass:
        """Return the pass of all ranks together; this one stays as it is."""
        if ranks.size == 1:
            return self
        total = copy.copy(self)
        total.moments = self.moments.over(ranks)
        total.decides = all(ranks.gather(self.decides or not self.samples))
        for name in ("_wrong", "_broken", "_loss"):
            setattr(total, name, ranks.sum(getattr(self, name)))
        return total

    def _decide(self, batch: Batch) -> Tensor | None:
        count, samples = self.moments.num_classes, len(batch.labels)
        logits = batch.logits
        if logits is None and self.classifier is None:
            self.decides = False
            return None
        if logits is not None and logits.shape != (samples, count):
            raise InputError(
                f"expected logits of shape {(samples, count)}, got {tuple(logits.shape)}"
            )
        scratch, predicted = Scratch(), []
        rows = score_rows(count, batch.features.shape[1])
        for start in range(0, samples, rows):
            part = slice(start, start + rows)
            given = None if logits is None else logits[part]
            scores = self._scores(batch.features[part], given, scratch)
            predicted.append(self._count(scores, batch.labels[part]))
        return torch.cat(predicted) if predicted else batch.labels

    def _count(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Count errors and loss of a block of logits, which is spent; return the predictions."""
        device, counted = scores.device, labels < self.moments.num_classes
        predicted, loss, broken = decide_(scores, labels.clamp(max=scores.shape[1] - 1))
        wrong = (predicted != labels) & counted
        # Sums stay where the data is: no synchronisation per batch.
        self._wrong = self._wrong.to(device) + wrong.sum()
        self._broken = self._broken.to(device) + (broken & counted).sum()
        loss = torch.where(counted, loss, 0.0)
        self._loss = self._loss.to(device) + loss.sum()
        return predicted

    def _scores(self, features: Tensor, logits: Tensor | None, scratch: Scratch) -> Tensor:
        """Return a block of logits in a buffer."""
        source = features if logits is None else logits
        shape, dtype = (len(features), self.moments.num_classes), working_dtype(source)
        scores = scratch.get("scores", source, *shape, dtype=dtype)
        if logits is not None:
            return scores.copy_(logits)
        if self._scorer is None:
            assert self.classifier is not None
            self._scorer = Scorer(self.classifier, features.to(dtype).mean(0))
        return self._scorer.logits(features, scratch, scores)

    @property
    def samples(self) -> int:
        """Number of samples, ignored ones left out."""
        return int(self.moments.counts.sum())

    @property
    def nan_logits(self) -> int:
        """Number of samples with a logit that is ``nan``."""
        return int(self._broken)

    @property
    def error(self) -> float:
        """Share of samples predicted wrongly; ``nan`` if a logit is."""
        return math.nan if self.nan_logits else int(self._wrong) / self.samples

    @property
    def cross_entropy(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self._loss) / self.samples


class SecondPass:
    """What needs the final means: NC1 per class, nearest class centres, agreement.

    Args:
        num_classes: Number of classes K.
        own: This split's centres.
        train: Class means that decide the nearest class.
        accumulators: What else is computed on the way.
        margin: Where the margins between the two nearest centres go, if asked for.
    """

    def __init__(
        self,
        num_classes: int,
        own: ClassMeans,
        train: ClassMeans,
        accumulators: Sequence[Accumulator] = (),
        margin: Margin | None = None,
    ) -> None:
        device = own.device
        self.num_classes, self.own, self.train = num_classes, own, train
        self.accumulators, self.margin = accumulators, margin
        self._whitened = torch.zeros(num_classes + 1, dtype=torch.float64, device=device)
        self._in_span = torch.zeros(num_classes + 1, dtype=torch.float64, device=device)
        self._disagreements = torch.zeros((), dtype=torch.int64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        """Take in an entry of :meth:`FirstPass.update`."""
        device, width = self.own.device, features.shape[1]
        rows = score_rows(len(self.train.present), width)
        with exact_arithmetic(device):
            for start in range(0, len(labels), rows):
                part = slice(start, start + rows)
                self._absorb(
                    features[part].to(device),
                    labels[part].to(device),
                    None if predicted is None else predicted[part].to(device),
                )

    def _absorb(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        residuals, position = self.own.residuals(features, labels)
        projected = self.own.project(residuals)
        self._in_span.index_add_(0, labels, _square_norms(projected))
        for accumulator in self.accumulators:
            accumulator.absorb(Block(features, labels, residuals, projected))
        nearest = self._nearest(features, labels, projected, position)
        self._correct += (nearest == labels).sum()
        if predicted is not None:
            wrong = (nearest != predicted) & (labels < self.num_classes)
            self._disagreements += wrong.sum()
        self._whitened.index_add_(0, labels, _square_norms(projected.mul_(self.own.inverse)))

    def meet(self, ranks: ProcessGroup) -> None:
        """Make the sums those of all ranks; accumulators learn that the pass is complete."""
        for accumulator in self.accumulators:
            accumulator.meet(ranks)
        if ranks.size == 1:
            return
        for name in ("_whitened", "_in_span", "_disagreements", "_correct"):
            setattr(self, name, ranks.sum(getattr(self, name)))
        if self.margin is not None:
            self.margin.meet(ranks)

    def _nearest(
        self, features: Tensor, labels: Tensor, projected: Tensor, position: Tensor
    ) -> Tensor:
        if self.train is not self.own:
            residuals, position = self.train.residuals(features, labels)
            projected = self.train.project(residuals)
        scores = self.train.scores(projected, position)
        if self.margin is not None:
            self.margin.absorb(features, labels, scores)
        return self.train.present[scores.argmax(1)]

    @property
    def whitened(self) -> Tensor:
        """Sum of ``‖Ṁ⁺(h − μ_c)‖²`` per class, ``(K,)``."""
        return self._whitened[:-1].cpu()

    @property
    def in_span(self) -> Tensor:
        """Sum of ``‖Uᵀ(h − μ_c)‖²`` per class, ``(K,)``."""
        return self._in_span[:-1].cpu() * self.own.unit**2

    @property
    def disagreement(self) -> float:
        """Share of samples on which the network and the nearest class mean differ (NC4)."""
        return self._share(self._disagreements)

    @property
    def accuracy(self) -> float:
        """Share of samples whose nearest class mean is that of their own class (NCC)."""
        return self._share(self._correct)

    def _share(self, count: Tensor) -> float:
        """Return a share of all samples; ``nan`` if there is no second mean to choose."""
        samples = int(self.own.moments.counts.sum())
        return int(count) / samples if len(self.train.present) > 1 else math.nan


def _square_norms(rows: Tensor) -> Tensor:
    return (rows * rows).sum(1, dtype=torch.float64)


#: Makes an accumulator from the first pass over a split, complete, and from its class means.
AccumulatorFactory = Callable[[FirstPass, ClassMeans], Accumulator]
