"""Per-class counts, means and variances of features that stream past."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from ncmonitor import _tensors
from ncmonitor._checks import InputError
from ncmonitor._labels import IGNORE_INDEX, Batch, check_range, clean_batch
from ncmonitor._tensors import (
    Scratch,
    as_tensor,
    check_floating,
    exact_arithmetic,
    home,
    working_dtype,
)

#: Elements up to which the class means are tabulated in float64: 64 MiB.
TABLE_ELEMENTS = 2**23


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
        if num_classes < 2:
            raise InputError(f"num_classes must be at least 2, but is {num_classes}")
        self.num_classes = num_classes
        self.scatter = scatter
        self.ignore_index = ignore_index
        self.feature_dtype: torch.dtype | None = None
        # One row more than classes: where samples to leave out go if dropping them would wait for
        # the device.
        rows = num_classes + 1
        self._counts = torch.zeros(rows, dtype=torch.int64)
        self._references = torch.zeros(rows, 0)
        self._shifts = torch.zeros(rows, 0, dtype=torch.float64)  # sum of h - reference
        self._squares = torch.zeros(rows, dtype=torch.float64)  # sum of |h - reference|^2
        self._lengths = torch.zeros(rows, dtype=torch.float64)  # sum of |h|
        self._extremes = torch.zeros(2, dtype=torch.int64)  # smallest and largest label
        self._outer: Tensor | None = None  # sum of (h - reference)(h - reference)^T

    # -- reading ---------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Feature dimension d; 0 before the first update."""
        return self._references.shape[1]

    @property
    def counts(self) -> Tensor:
        """Samples per class, ``(K,)`` int64.

        Raises:
            InputError: If a label taken in on an accelerator was out of range.
        """
        low, high = self._extremes.tolist()
        check_range(low, high, self.num_classes)
        return self._counts[:-1].clone()

    @property
    def references(self) -> Tensor:
        """A point near each class mean, ``(K, d)``, in the precision features are read in."""
        return self._references[:-1]

    @property
    def offsets(self) -> Tensor:
        """Class means minus :attr:`references`, ``(K, d)`` float64; 0 for a class never seen."""
        return self._offsets_of(slice(-1))

    def _offsets_of(self, rows: slice | Tensor) -> Tensor:
        return self._shifts[rows] / self._counts[rows].clamp(min=1)[:, None]

    def means_about(self, origin: Tensor, classes: Tensor) -> Tensor:
        """Return means of some classes less ``origin``, ``(n, d)`` float64 on the CPU."""
        classes = classes.to(self._counts.device)
        references = self._references[classes].double().cpu()
        return (references - origin) + self._offsets_of(classes).cpu()

    @property
    def class_means(self) -> Tensor:
        """Class means, ``(K, d)`` float64; ``nan`` for a class never seen."""
        means = self.references.double() + self.offsets
        means[self._counts[:-1] == 0] = torch.nan
        return means

    @property
    def class_variances(self) -> Tensor:
        """``Ave ‖h − μ_c‖²`` per class (population), ``(K,)`` float64; ``nan`` if never seen."""
        return self._raw_variances().clamp(min=0.0)

    @property
    def feature_norms(self) -> Tensor:
        """``Ave ‖h‖`` per class, ``(K,)`` float64; ``nan`` if never seen."""
        return (self._lengths / self._counts)[:-1]

    @property
    def finite(self) -> bool:
        """Whether every feature is: a sum is finite only if its terms are."""
        return bool(self._shifts.sum().isfinite())

    @property
    def neg_clips(self) -> int:
        """Classes whose variance came out negative by rounding and was clipped to 0."""
        return int((self._raw_variances() < 0).sum())

    @property
    def within(self) -> Tensor:
        """Pooled within-class covariance ``1/N Σ_i (h_i − μ_y)(h_i − μ_y)ᵀ``, ``(d, d)`` float64.

        Every sample weighs the same; for unequal class counts this differs from the
        class-balanced Σ_W of the metrics.

        Raises:
            InputError: If the moments were made without ``scatter=True``.
        """
        if self._outer is None:
            raise InputError("within needs ClassMoments(..., scatter=True) and one update")
        weighted = self.offsets * self._counts[:-1, None]
        return (self._outer - self.offsets.T @ weighted) / self.counts.sum().clamp(min=1)

    def _raw_variances(self) -> Tensor:
        squares = torch.cat([self._offsets_of(part).square().sum(1) for part in self._parts()])
        mean_square = self._squares / self._counts  # 0/0 is nan: a class never seen
        return (mean_square - squares)[:-1]

    def _parts(self) -> list[slice]:
        """Return blocks of classes: for many, a second array of the means' size is too much."""
        size = _tensors.block_rows(max(1, self.dim))
        return [slice(start, start + size) for start in range(0, len(self._counts), size)]

    def residuals(self, features: Tensor, labels: Tensor, scratch: Scratch) -> Tensor:
        """Return features minus the means of their classes, ``(n, d)`` float64.

        Exact: a mean rounded to float32 first would cost 7e-4 at spread 1e-5.

        Args:
            features: A block of features.
            labels: Their classes, ``(n,)``; of classes that have samples.
            scratch: Where the result lives, until the next call.
        """
        wide = scratch.get("wide", features, *features.shape, dtype=torch.float64)
        means = scratch.get("means", features, *features.shape, dtype=torch.float64)
        if self.num_classes * self.dim <= TABLE_ELEMENTS:
            torch.index_select(
                scratch.once("table", lambda: self.class_means), 0, labels, out=means
            )
        else:  # a table of float64 means would be too much beside the sums
            torch.index_select(self._shifts, 0, labels, out=means)
            means.div_(self._counts[labels].double()[:, None])
            means.add_(self._wide_references(labels, scratch))
        return wide.copy_(features).sub_(means)

    def _wide_references(self, labels: Tensor, scratch: Scratch) -> Tensor:
        """Return the samples' references in float64: mixed sums would make a copy of each."""
        shape = (len(labels), self.dim)
        narrow = scratch.get("references", self._references, *shape, dtype=self._dtype)
        wide = scratch.get("wide references", self._references, *shape, dtype=torch.float64)
        return wide.copy_(torch.index_select(self._references, 0, labels, out=narrow))

    @property
    def _dtype(self) -> torch.dtype:
        return self._references.dtype

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
        place = home(features.device)
        if features.device != place:
            features, labels = features.to(place), labels.to(place)
        self._prepare(features)
        if batch.extremes is not None:
            both = torch.stack([self._extremes, batch.extremes.to(place)])
            self._extremes = torch.stack([both[:, 0].amin(), both[:, 1].amax()])
        size, scratch = _tensors.block_rows(features.shape[1]), Scratch()
        with exact_arithmetic(place):
            for rows, own in zip(
                torch.split(features, size), torch.split(labels, size), strict=True
            ):
                self._absorb(rows, own, scratch)

    def _prepare(self, features: Tensor) -> None:
        if self.feature_dtype is None:
            self.feature_dtype = features.dtype
            self._allocate(features.shape[1], working_dtype(features), features.device)
        if features.shape[1] != self.dim:
            raise InputError(
                f"expected features of dimension {self.dim} as before, got {features.shape[1]}"
            )
        if features.dtype != self.feature_dtype:
            raise InputError(
                f"expected {self.feature_dtype} features as before, got {features.dtype}"
            )

    def _allocate(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        rows = self.num_classes + 1
        self._references = torch.zeros(rows, dim, dtype=dtype, device=device)
        self._shifts = torch.zeros(rows, dim, dtype=torch.float64, device=device)
        for name in ("_counts", "_squares", "_lengths", "_extremes"):
            setattr(self, name, getattr(self, name).to(device))
        if self.scatter:
            self._outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def _absorb(self, features: Tensor, labels: Tensor, scratch: Scratch) -> None:
        # In float64 the residuals are exact, and their squares stay in range for tiny features.
        wide = scratch.get("wide", features, *features.shape, dtype=torch.float64)
        wide.copy_(features)
        self._lengths.index_add_(0, labels, torch.linalg.vector_norm(wide, dim=1))
        self._adopt(features, labels)
        wide.sub_(self._wide_references(labels, scratch))
        self._counts.index_add_(0, labels, torch.ones_like(labels))
        self._shifts.index_add_(0, labels, wide)
        if self._outer is not None:
            kept = wide * (labels < self.num_classes)[:, None]
            self._outer += kept.T @ kept
        self._squares.index_add_(0, labels, wide.square_().sum(1))

    def _adopt(self, features: Tensor, labels: Tensor) -> None:
        """Make a class's first sample its reference, where there is none yet."""
        fresh = self._counts == 0
        if labels.device.type == "cpu" and not bool(fresh[labels].any()):
            return
        order = torch.arange(len(labels), device=labels.device)
        first = torch.full_like(self._counts, len(labels))
        first.scatter_reduce_(0, labels, order, "amin")
        rows = features[first[labels]].to(self._references)
        rows = torch.where(fresh[labels][:, None], rows, self._references[labels])
        self._references[labels] = rows  # samples of one class write the same row

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
            return self.to(self._counts.device)
        if self.feature_dtype is None:
            return other.to(other._counts.device)
        if (self.dim, self.feature_dtype) != (other.dim, other.feature_dtype):
            raise InputError(
                f"expected {self.feature_dtype} features of dimension {self.dim}, "
                f"got {other.feature_dtype} of dimension {other.dim}"
            )
        total, other = self.to(self._counts.device), other.to(self._counts.device)
        other._rebase(
            torch.where((total._counts == 0)[:, None], other._references, total._references)
        )
        total._rebase(other._references)
        for name in ("_counts", "_shifts", "_squares", "_lengths"):
            getattr(total, name).add_(getattr(other, name))
        both = torch.stack([total._extremes, other._extremes])
        total._extremes = torch.stack([both[:, 0].amin(), both[:, 1].amax()])
        if total._outer is not None and other._outer is not None:
            total._outer += other._outer
        return total

    def _rebase(self, references: Tensor) -> None:
        """Move every sum to new reference points."""
        step = self._references.double() - references.double()  # (K, d)
        count = self._counts[:, None]
        step = torch.where(count > 0, step, 0.0)
        if self._outer is not None:
            crossed = step[:-1].T @ self._shifts[:-1]
            self._outer += crossed + crossed.T + step[:-1].T @ (step * count)[:-1]
        self._squares += (2 * step * self._shifts + count * step.square()).sum(1)
        self._shifts += count * step
        self._references = references.clone()

    # -- carrying --------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> ClassMoments:
        """Return an independent copy on ``device``."""
        clone = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(clone, name, value.to(device, copy=True))
        return clone

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors that load with ``weights_only=True``."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(self).items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ClassMoments:
        """Rebuild moments from :meth:`state_dict`."""
        moments = cls(cast(int, state["num_classes"]), scatter=cast(bool, state["scatter"]))
        vars(moments).update(
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        )
        return moments
