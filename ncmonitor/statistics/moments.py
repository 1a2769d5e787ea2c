"""Per-class counts, means and variances of features that stream past."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from ncmonitor.errors import InputError, check_whole, is_whole
from ncmonitor.inputs import tensors as _tensors
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.inputs.labels import Batch, check_range, clean_batch
from ncmonitor.inputs.tensors import (
    Scratch,
    as_tensor,
    check_floating,
    exact_arithmetic,
    working_dtype,
)
from ncmonitor.statistics.class_sums import Sums
from ncmonitor.statistics.process_group import ProcessGroup


class ClassMoments:
    """Counts, means and within-class variances per class, exact under strong collapse.

    Every sum is taken of residuals about a reference point of the class, its first sample: once
    features collapse, raw moments lose the variance to cancellation, residuals do not. Sums are
    float64; the features themselves are read in float32 (float64 if they are). Any split of the
    data into batches, ranks or orders gives the same answer up to rounding, and a class whose
    samples are all equal has variance exactly 0.

    Args:
        num_classes: Number of classes K, at least 2. Labels lie in ``[0, K)``.
        scatter: Also keep the pooled ``(d, d)`` within-class scatter, read as :attr:`within`.
        ignore_index: Samples with this label are left out.

    Raises:
        InputError: If ``num_classes`` is below 2.

    Example:
        >>> import torch
        >>> from ncmonitor import ClassMoments
        >>> moments = ClassMoments(num_classes=2)
        >>> _ = moments.update(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1]))
        >>> moments.class_means.tolist(), moments.class_variances.tolist()
        ([[2.0], [7.0]], [1.0, 0.0])
    """

    def __init__(
        self, num_classes: int, *, scatter: bool = False, ignore_index: int = IGNORE_INDEX
    ) -> None:
        if not is_whole(num_classes):
            raise InputError(f"num_classes must be a whole number, but is {num_classes!r}")
        if num_classes < 2:
            raise InputError(
                f"num_classes must be at least 2, but is {num_classes}: neural collapse compares "
                "classes"
            )
        check_whole("ignore_index", ignore_index)
        self.num_classes = int(num_classes)
        self.scatter = scatter
        self.ignore_index = int(ignore_index)
        self.feature_dtype: torch.dtype | None = None
        self.sums = Sums.empty(num_classes)
        self._extremes = torch.zeros(2, dtype=torch.int64)  # smallest and largest label

    # -- reading ---------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Feature dimension d; 0 before the first update."""
        return self.sums.dim

    @property
    def counts(self) -> Tensor:
        """Samples per class, ``(K,)`` int64.

        Raises:
            InputError: If a label taken in on an accelerator was out of range.
        """
        self._check()
        return self.sums.counts[:-1].clone()

    @property
    def references(self) -> Tensor:
        """A point near each class mean, ``(K, d)``, in the precision features are read in."""
        return self.sums.references[:-1]

    @property
    def offsets(self) -> Tensor:
        """Class means minus :attr:`references`, ``(K, d)`` float64; 0 for a class never seen."""
        return self.sums.offsets(slice(-1))

    @property
    def class_means(self) -> Tensor:
        """Class means, ``(K, d)`` float64; ``nan`` for a class never seen."""
        means = self.references.double() + self.offsets
        means[self.counts == 0] = torch.nan
        return means

    @property
    def class_variances(self) -> Tensor:
        """``Ave ‖h − μ_c‖²`` per class (population), ``(K,)`` float64; ``nan`` if never seen."""
        self._check()
        return self.sums.variances().clamp(min=0.0)

    @property
    def feature_norms(self) -> Tensor:
        """``Ave ‖h‖`` per class, ``(K,)`` float64; ``nan`` if never seen."""
        self._check()
        return (self.sums.lengths / self.sums.counts)[:-1]

    @property
    def finite(self) -> bool:
        """Whether every feature is: a sum is finite only if its terms are."""
        return bool(self.sums.shifts.sum().isfinite())

    @property
    def neg_clips(self) -> int:
        """Classes whose variance came out negative by rounding and was clipped to 0."""
        return int((self.sums.variances() < 0).sum())

    @property
    def within(self) -> Tensor:
        """Pooled within-class covariance ``1/N Σ_i (h_i − μ_y)(h_i − μ_y)ᵀ``, ``(d, d)`` float64.

        Every sample weighs the same; for unequal class counts this differs from the
        class-balanced Σ_W of the metrics.

        Raises:
            InputError: If the moments were made without ``scatter=True``.
        """
        if self.sums.outer is None:
            raise InputError("within needs ClassMoments(..., scatter=True) and one update")
        offsets, counts = self.offsets, self.counts
        weighted = offsets * counts[:, None]
        return (self.sums.outer - offsets.T @ weighted) / counts.sum().clamp(min=1)

    def _check(self) -> None:
        """Complain about a label that was out of range where looking would have meant waiting."""
        low, high = self._extremes.tolist()
        check_range(low, high, self.num_classes)

    # -- collecting ------------------------------------------------------------------------------

    def update(self, features: Any, labels: Any) -> ClassMoments:
        """Add samples.

        Args:
            features: ``(N, d)`` floating point, torch or numpy; half precision is read as float32.
                ``(B, T, d)`` with labels ``(B, T)`` is taken token by token.
            labels: ``(N,)`` integers in ``[0, K)``, or :attr:`ignore_index`.

        Returns:
            The same object, so that calls chain.

        Raises:
            InputError: If shapes, dtypes or labels are not as above, or d has changed. A label out
                of range on an accelerator is found when the moments are read.
        """
        features, labels = as_tensor(features), as_tensor(labels)
        check_floating(features)
        self.take(clean_batch(features, labels, self.num_classes, self.ignore_index))
        return self

    def take(self, batch: Batch) -> None:
        """Add a batch that has been checked; see :meth:`update`."""
        features, labels = batch.features, batch.labels
        self._prepare(features)
        if batch.extremes is not None:
            self._extremes = _widened(self._extremes, batch.extremes)
        size, scratch = _tensors.block_rows(features.shape[1]), Scratch()
        parts = zip(torch.split(features, size), torch.split(labels, size), strict=True)
        with exact_arithmetic(features.device):
            for rows, own in parts:
                self.sums.absorb(rows, own, scratch)

    def _prepare(self, features: Tensor) -> None:
        if self.feature_dtype is None:
            self.feature_dtype = features.dtype
            dim, dtype, device = features.shape[1], working_dtype(features), features.device
            self.sums = Sums.empty(self.num_classes, dim, dtype, device, scatter=self.scatter)
            self._extremes = self._extremes.to(device)
        if features.shape[1] != self.dim:
            raise InputError(
                f"expected features of dimension {self.dim} as before, got {features.shape[1]}"
            )
        if features.dtype != self.feature_dtype:
            raise InputError(
                f"expected {self.feature_dtype} features as before, got {features.dtype}"
            )

    # -- combining -------------------------------------------------------------------------------

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both data sets together; neither operand changes or is shared.

        Sums are first moved to common reference points, so merged and single-pass moments agree
        to rounding.

        Raises:
            InputError: If classes, dimension, precision or ``scatter`` differ.
        """
        if (self.num_classes, self.scatter) != (other.num_classes, other.scatter):
            raise InputError(
                f"expected moments of {self.num_classes} classes with scatter={self.scatter}, "
                f"got {other.num_classes} classes with scatter={other.scatter}"
            )
        if other.feature_dtype is None:
            return self.to(self.sums.device)
        if self.feature_dtype is None:
            return other.to(other.sums.device)
        if (self.dim, self.feature_dtype) != (other.dim, other.feature_dtype):
            raise InputError(
                f"expected {self.feature_dtype} features of dimension {self.dim}, "
                f"got {other.feature_dtype} of dimension {other.dim}"
            )
        total = copy.copy(self)
        total.sums = self.sums.plus(other.sums)
        total._extremes = _widened(self._extremes, other._extremes.to(self.sums.device))
        return total

    def over(self, ranks: ProcessGroup) -> ClassMoments:
        """Return the moments of all ranks' data together; neither changes the own nor shares it.

        Raises:
            InputError: On every rank, if dimension or precision differ between ranks.
        """
        total = copy.copy(self)
        mine = None if self.feature_dtype is None else (self.dim, self.feature_dtype)
        kinds = {kind for kind in ranks.gather(mine) if kind is not None}
        if len(kinds) > 1:
            raise InputError(f"ranks have features of different dimension or precision: {kinds}")
        if not kinds:
            return total
        [(dim, total.feature_dtype)] = kinds
        sums = self.sums
        if mine is None:  # no sample came to this rank
            dtype = working_dtype(torch.empty(0, dtype=total.feature_dtype))
            sums = Sums.empty(self.num_classes, dim, dtype, ranks.device, scatter=self.scatter)
        total.sums = sums.over(ranks)
        low, high = self._extremes.to(sums.device) * torch.tensor([1, -1], device=sums.device)
        extremes = ranks.smallest(torch.stack([low, high]))
        total._extremes = torch.stack([extremes[0], -extremes[1]])
        return total

    # -- carrying --------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> ClassMoments:
        """Return an independent copy on ``device``."""
        clone = copy.copy(self)
        clone.sums = self.sums.to(device)
        clone._extremes = self._extremes.to(device, copy=True)
        return clone

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors that load with ``weights_only=True``."""
        state = vars(self) | {"sums": dict(vars(self.sums.to(self.sums.device)))}
        return state | {"_extremes": self._extremes.clone()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ClassMoments:
        """Rebuild moments from :meth:`state_dict`."""
        moments = cls(cast(int, state["num_classes"]), scatter=cast(bool, state["scatter"]))
        sums = Sums(**state["sums"])
        vars(moments).update(state | {"sums": sums.to(sums.device)})
        moments._extremes = state["_extremes"].clone()
        return moments


def _widened(one: Tensor, two: Tensor) -> Tensor:
    """Return the smaller of the first and the larger of the second entries, ``(2,)``."""
    return torch.stack([torch.minimum(one[0], two[0]), torch.maximum(one[1], two[1])])
