"""Per-class counts, means and variances of features that stream past."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from ncmonitor._checks import InputError
from ncmonitor._tensors import (
    as_tensor,
    check_features,
    check_labels,
    exact_arithmetic,
    working_dtype,
)

#: Rows handled at once: the temporaries of a block stay in the processor's cache.
BLOCK_ROWS = 4096


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

    def __init__(self, num_classes: int, *, scatter: bool = False) -> None:
        if num_classes < 2:
            raise InputError(f"num_classes must be at least 2, but is {num_classes}")
        self.num_classes = num_classes
        self.scatter = scatter
        self.feature_dtype: torch.dtype | None = None
        self._counts = torch.zeros(num_classes, dtype=torch.int64)
        self._references = torch.zeros(num_classes, 0)
        self._shifts = torch.zeros(num_classes, 0, dtype=torch.float64)  # sum of h - reference
        self._squares = torch.zeros(num_classes, dtype=torch.float64)  # sum of |h - reference|^2
        self._outer: Tensor | None = None  # sum of (h - reference)(h - reference)^T

    # -- reading ---------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Feature dimension d; 0 before the first update."""
        return self._references.shape[1]

    @property
    def counts(self) -> Tensor:
        """Samples per class, ``(K,)`` int64."""
        return self._counts.clone()

    @property
    def references(self) -> Tensor:
        """A point near each class mean, ``(K, d)``, in the precision features are read in."""
        return self._references

    @property
    def offsets(self) -> Tensor:
        """Class means minus :attr:`references`, ``(K, d)`` float64; 0 for a class never seen."""
        return self._shifts / self._counts.clamp(min=1)[:, None]

    @property
    def class_means(self) -> Tensor:
        """Class means, ``(K, d)`` float64; ``nan`` for a class never seen."""
        means = self._references.double() + self.offsets
        means[self._counts == 0] = torch.nan
        return means

    @property
    def class_variances(self) -> Tensor:
        """``Ave ‖h − μ_c‖²`` per class (population), ``(K,)`` float64; ``nan`` if never seen."""
        return self._raw_variances().clamp(min=0.0)

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
        weighted = self.offsets * self._counts[:, None]
        return (self._outer - self.offsets.T @ weighted) / self._counts.sum().clamp(min=1)

    def _raw_variances(self) -> Tensor:
        mean_square = self._squares / self._counts  # 0/0 is nan: a class never seen
        return mean_square - self.offsets.square().sum(1)

    # -- collecting ------------------------------------------------------------------------------

    def update(self, features: Any, labels: Any) -> ClassMoments:
        """Add samples.

        Args:
            features: ``(N, d)`` floating point, torch or numpy; half precision is read as float32.
            labels: ``(N,)`` integers in ``[0, K)``.

        Returns:
            The same object, so that calls chain.

        Raises:
            InputError: If shapes, dtypes or labels are not as above, or d has changed.
        """
        features, labels = as_tensor(features), as_tensor(labels)
        check_features(features)
        check_labels(labels, features.shape[0], self.num_classes)
        self._prepare(features)
        labels = labels.long()
        with exact_arithmetic(features.device):
            for start in range(0, features.shape[0], BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                self._absorb(features[block].to(self._references.dtype), labels[block])
        return self

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
        self._references = torch.zeros(self.num_classes, dim, dtype=dtype, device=device)
        self._shifts = torch.zeros(self.num_classes, dim, dtype=torch.float64, device=device)
        self._counts, self._squares = self._counts.to(device), self._squares.to(device)
        if self.scatter:
            self._outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def _absorb(self, features: Tensor, labels: Tensor) -> None:
        # Residuals are taken in the features' precision, where they are nearly exact, and widened
        # before they are squared, where float32 would underflow for tiny features.
        residuals = (features - self._reference_rows(features, labels)).double()
        self._counts.index_add_(0, labels, torch.ones_like(labels))
        self._shifts.index_add_(0, labels, residuals)
        self._squares.index_add_(0, labels, residuals.square().sum(1))
        if self._outer is not None:
            self._outer += residuals.T @ residuals

    def _reference_rows(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return each sample's reference, adopting a class's first sample where there is none."""
        rows, fresh = self._references[labels], self._counts[labels] == 0
        if labels.device.type == "cpu" and not bool(fresh.any()):
            return rows
        order = torch.arange(len(labels), device=labels.device)
        first = torch.full_like(self._counts, len(labels))
        first.scatter_reduce_(0, labels, order, "amin")
        rows = torch.where(fresh[:, None], features[first[labels]], rows)
        self._references[labels] = rows  # samples of one class write the same row
        return rows

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
        total._counts += other._counts
        total._shifts += other._shifts
        total._squares += other._squares
        if total._outer is not None and other._outer is not None:
            total._outer += other._outer
        return total

    def _rebase(self, references: Tensor) -> None:
        """Move every sum to new reference points."""
        step = self._references.double() - references.double()  # (K, d)
        count = self._counts[:, None]
        step = torch.where(count > 0, step, 0.0)
        if self._outer is not None:
            crossed = step.T @ self._shifts
            self._outer += crossed + crossed.T + step.T @ (step * count)
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
