"""How far features and predictions move when the inputs are transformed.

Both accumulators take one batch of a fixed set at a time: transform by transform, the identity
first. A mask says which pairs of transform and sample keep the label (a 6 turned by 180° does not);
the others are left out, whatever they hold.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.inputs import tensors
from ncmonitor.inputs.labels import check_labels
from ncmonitor.inputs.tensors import as_tensor, exact_arithmetic
from ncmonitor.symmetry.feature_pairs import average_beyond_identity, check_pairs


class FeatureInvariance:
    """Mean squared move of features under each transform, in units of their total variance.

    Differences and sums are float64, about the first sample, so that a large common offset costs
    no digits. Any split into batches gives the same answer up to rounding.

    Args:
        centre: Subtract each sample's mean over its entries first: for logits, of which softmax
            sees no more.

    Example:
        >>> import torch
        >>> from ncmonitor.symmetry.invariance import FeatureInvariance
        >>> plain = torch.tensor([[0.0], [2.0]])
        >>> FeatureInvariance().update(torch.stack([plain, -plain])).errors.tolist()
        [0.0, 4.0]
    """

    def __init__(self, *, centre: bool = False) -> None:
        self.centre = centre
        self.counts = torch.zeros(0, dtype=torch.float64)  # pairs per transform
        self.moves = torch.zeros(0, dtype=torch.float64)  # Σ ‖h(gx) − h(x)‖² per transform
        self._samples = 0
        self._dtype = torch.float32

    def update(self, features: Any, mask: Any = None) -> Self:
        """Add a batch.

        Args:
            features: ``(m, B, d)`` floating point: under each transform, the identity first.
            mask: ``(m, B)`` bool, pairs that count; ``None``: all.

        Raises:
            InputError: If shapes or dtypes are not as above, or differ from the first batch's.
        """
        features, mask = check_pairs(features, mask)
        if not self._samples:
            self._start(features)
        if (len(features), features.shape[2]) != (len(self.moves), len(self._reference)):
            raise InputError(
                f"expected {len(self.moves)} transforms of {len(self._reference)} features as "
                f"before, got {len(features)} of {features.shape[2]}"
            )
        with exact_arithmetic(features.device):
            size = tensors.block_rows(features.shape[2])
            for start in range(0, features.shape[1], size):
                part = slice(start, start + size)
                self._absorb(features[:, part], None if mask is None else mask[:, part])
        return self

    def _start(self, features: Tensor) -> None:
        like: dict[str, Any] = {"dtype": torch.float64, "device": features.device}
        self.counts, self.moves = torch.zeros(2, len(features), **like)
        self._reference = self._wide(features[0, :1])[0]
        self._sum = torch.zeros_like(self._reference)
        self._squares, self._lengths = torch.zeros(2, **like)
        self._dtype = features.dtype

    def _absorb(self, features: Tensor, mask: Tensor | None) -> None:
        plain = self._wide(features[0])
        centred = plain - self._reference
        self._samples += len(plain)
        self._sum += centred.sum(0)
        self._squares += centred.square().sum()
        self._lengths += features[0].double().square().sum()
        for g, rows in enumerate(features):
            moves = (self._wide(rows) - plain).square().sum(1)
            if mask is not None:
                moves = moves.masked_fill(~mask[g], 0)
            self.moves[g] += moves.sum()
            self.counts[g] += len(rows) if mask is None else mask[g].sum()

    def _wide(self, rows: Tensor) -> Tensor:
        rows = rows.double()
        return rows - rows.mean(1, keepdim=True) if self.centre else rows

    @property
    def total_variance(self) -> float:
        """``tr Σ_T`` of the untransformed features over all samples (population).

        ``nan`` before the first batch and where it is within the rounding of the features.
        """
        if not self._samples:
            return math.nan
        mean = self._sum / self._samples
        variance = float(self._squares / self._samples - mean.square().sum())
        floor = torch.finfo(self._dtype).eps ** 2 * float(self._lengths) / self._samples
        return variance if variance > floor else math.nan

    @property
    def errors(self) -> Tensor:
        """``inv_error_g = Ave ‖h(gx) − h(x)‖² / (2 tr Σ_T)`` per transform, ``(m,)`` float64.

        The average is over the pairs that count, Σ_T is of all samples: one unit for all
        transforms. No labels enter. 0 for an invariant network and for the identity; 1 where h(gx)
        is an independent copy of h(x), as for two samples drawn at random. ``nan`` for a transform
        without pairs, and if the features do not vary.

        Source: ncmonitor.
        """
        return (self.moves / self.counts).cpu() / (2 * self.total_variance)

    @property
    def error(self) -> float:
        """Mean of :attr:`errors` over the transforms besides the identity that have pairs."""
        return average_beyond_identity(self.errors)


class PredictionInvariance:
    """What transforms do to logits and predictions: consistency, accuracy, total variation.

    For multi-class classifiers. Ties of logits go to the first class, as ``argmax`` does.
    """

    def __init__(self) -> None:
        self._logits = FeatureInvariance(centre=True)
        self._sums = torch.zeros(0)
        self._orbit = torch.zeros(0)

    def update(self, logits: Any, labels: Any, mask: Any = None) -> Self:
        """Add a batch.

        Args:
            logits: ``(m, B, K)`` floating point, K ≥ 2: under each transform, the identity first.
            labels: ``(B,)`` integers in ``[0, K)``.
            mask: ``(m, B)`` bool, pairs that keep the label; ``None``: all.

        Raises:
            InputError: If shapes, dtypes or labels are not as above.
        """
        logits, mask = check_pairs(logits, mask)
        if logits.shape[2] < 2:
            raise InputError(f"logits must have at least two classes, got {tuple(logits.shape)}")
        labels = as_tensor(labels)
        check_labels(labels, logits.shape[1], logits.shape[2])
        self._logits.update(logits, mask)
        with exact_arithmetic(logits.device):
            self._absorb(logits, labels.to(logits.device), mask)
        return self

    def _absorb(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> None:
        kept = torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask
        choice = logits.argmax(2)
        correct = choice == labels
        probabilities = logits[0].double().softmax(1)
        apart = torch.stack(
            [(rows.double().softmax(1) - probabilities).abs().sum(1) / 2 for rows in logits]
        ).masked_fill(~kept, 0)
        terms = [kept, kept & (choice == choice[0]), kept & correct, kept & correct[0], apart]
        sums = torch.stack([term.sum(1).double() for term in terms])
        sizes = kept.sum(0).double()
        # The identity alone is no orbit, but for a group of one.
        counted = (sizes >= min(2, len(kept))).double()
        right = counted * (kept & correct).sum(0) / sizes  # a sample's share
        worst = counted * (correct | ~kept).all(0)
        orbit = torch.stack([right.sum(), worst.sum(), counted.sum()])
        self._sums = sums if not len(self._sums) else self._sums + sums
        self._orbit = orbit if not len(self._orbit) else self._orbit + orbit

    @property
    def logit_errors(self) -> Tensor:
        """``inv_error_g`` of the centred logits, ``(m,)``; see :attr:`FeatureInvariance.errors`."""
        return self._logits.errors

    @property
    def logit_variance(self) -> float:
        """``tr Σ_T`` of the centred logits, the unit of :attr:`logit_errors`."""
        return self._logits.total_variance

    @property
    def consistency(self) -> Tensor:
        """``pred_consistency_g``: share of samples with the same prediction, ``(m,)`` in [0, 1].

        1 for an invariant network and for the identity; ``Σ_k p_k²`` (p the frequencies of the
        predictions; 1/K if they are equal) where gX is independent of X; ``nan`` without pairs.

        Source: Zhang 2019 (classification consistency under shifts).
        """
        return self._share(1)

    @property
    def total_variation(self) -> Tensor:
        """``tv_g = Ave ½ Σ_k |p_k(gx) − p_k(x)|`` of softmax probabilities, ``(m,)`` in [0, 1].

        0 for an invariant network; ``1 − Σ_k p_k²`` for confident predictions where gX is
        independent of X; ``nan`` without pairs. It fades by itself while the network is unsure
        everywhere, so read it beside :attr:`logit_errors`.

        Source: ncmonitor.
        """
        return self._share(4)

    @property
    def accuracy(self) -> Tensor:
        """``acc_g``: accuracy on the transformed samples, ``(m,)``; the plain one comes first.

        Equal for all g if the network is invariant; about 1/K where gX is independent of X;
        ``nan`` without pairs.
        """
        return self._share(2)

    @property
    def accuracy_drop(self) -> Tensor:
        """``acc_drop_g = acc_e − acc_g``, over samples whose label g keeps, ``(m,)``.

        0 for an invariant network; about ``acc_e − 1/K`` where gX is independent of X; ``nan``
        without pairs.
        """
        return self._share(3) - self._share(2)

    @property
    def orbit_mean(self) -> float:
        """``acc_orbit_mean``: accuracy over a sample's transforms, averaged over samples.

        Over samples of which at least 2 transforms (m = 1: 1) keep the label: the plain accuracy
        of these for an invariant network; ``nan`` without any.
        """
        return float(self._orbit[0] / self._orbit[2]) if len(self._orbit) else math.nan

    @property
    def orbit_worst(self) -> float:
        """``acc_orbit_worst``: share of samples that are right under all their transforms.

        Over the samples of :attr:`orbit_mean`, and at most that: the plain accuracy of these for an
        invariant network; about ``acc K^−(m−1)`` where predictions are independent of those of the
        identity, which counts; ``nan`` without any.
        """
        return float(self._orbit[1] / self._orbit[2]) if len(self._orbit) else math.nan

    def _share(self, row: int) -> Tensor:
        return (self._sums[row] / self._sums[0]).cpu() if len(self._sums) else torch.zeros(0)


def inv_error(features: Any, mask: Any = None) -> Tensor:
    """Return :attr:`FeatureInvariance.errors` of features held in memory, ``(m,)``.

    Args:
        features: ``(m, N, d)``, the identity first, or one ``(N, d)`` per transform.
        mask: ``(m, N)`` bool; ``None``: all pairs count.

    Returns:
        ``inv_error_g`` per transform, float64; 0 for the identity.
    """
    return FeatureInvariance().update(features, mask).errors
