"""A snapshot taken in the measuring pass itself: an accumulator of the second pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ncmonitor.errors import MeasurementError
from ncmonitor.monitor.snapshots.numbers import SHOWN_VALUES
from ncmonitor.monitor.snapshots.snapshot import Snapshot, SnapshotBuilder
from ncmonitor.statistics.accumulators import Block
from ncmonitor.statistics.class_means import ClassMeans
from ncmonitor.statistics.process_group import ProcessGroup

if TYPE_CHECKING:
    from ncmonitor.statistics.passes import FirstPass


class Sketch:
    """Gathers what pictures are drawn from; what fails in it fails nothing else.

    The class means are those of all ranks; the points are the first of each corner class in the
    order of the data, on whichever rank they are.

    Args:
        first: The first pass, complete.
        own: Its centres.
        corners: Classes of the simplex picture; ``None``: the first three that have samples.
        points_per_class: How many features of each to keep.

    Attributes:
        snapshot: On rank zero once the second pass is complete, of epoch 0; else ``None``.
        failure: Why there is none. What the user can set right is an
            :class:`~ncmonitor.errors.InputError` on every rank.
    """

    def __init__(
        self,
        first: FirstPass,
        own: ClassMeans,
        corners: Sequence[int] | None = None,
        points_per_class: int = 50,
    ) -> None:
        self.snapshot: Snapshot | None = None
        self.failure: Exception | None = None
        self._first, self._own = first, own
        self._corners, self._points = corners, points_per_class
        self._builder: SnapshotBuilder | None = None
        self._scatter = self._roots = torch.empty(0)

    def absorb(self, block: Block) -> None:
        """Take in a block."""
        if self.failure is None:
            with self._excused():
                self._begin().update(block.features, block.labels)
                rows = block.projected[:, : len(self._scatter)]
                rows = rows * self._roots[block.labels][:, None]
                self._scatter += rows.T @ rows

    def meet(self, ranks: ProcessGroup) -> None:
        """Join what all ranks have, and take the snapshot on rank zero."""
        sizes = [0]
        with self._excused():
            kept = self._begin().kept[1]
            sizes = [int((kept == corner).sum()) for corner in self._begin().corners]
        told = ranks.gather((None if self.failure is None else str(self.failure), sizes))
        for rank, (words, _) in enumerate(told):
            if words is not None:
                self.failure = self.failure or MeasurementError(f"on rank {rank}: {words}")
        if self.failure is None:
            builder = self._joined(ranks, np.array([each for _, each in told]))
            self._scatter = ranks.sum(self._scatter)
            if ranks.rank == 0:
                with self._excused():
                    self.snapshot = self._finished(builder)
        self._builder = None
        del self._first, self._own  # large, and not needed any longer

    @contextlib.contextmanager
    def _excused(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error

    def _begin(self) -> SnapshotBuilder:
        """Prepare the sums, once; on every rank alike, since the first pass is that of all."""
        if self._builder is not None:
            return self._builder
        own, counts = self._own, self._first.moments.counts.cpu()
        present = (counts > 0).nonzero().squeeze(1)
        corners = present[:3].tolist() if self._corners is None else self._corners
        builder = SnapshotBuilder(corners=corners, points_per_class=self._points)
        builder.check_present(present.numpy(), "train")
        weights = torch.where(counts > 0, 1 / (len(present) * counts.double()), 0.0)
        left_out = weights.new_zeros(1)
        self._roots = torch.cat([weights, left_out]).sqrt().to(own.basis)
        rank = min(own.basis.shape[1], SHOWN_VALUES)
        self._scatter = torch.zeros(rank, rank, dtype=torch.float64, device=own.device)
        self._builder = builder
        return builder

    def _joined(self, ranks: ProcessGroup, sizes: np.ndarray) -> SnapshotBuilder:
        """Return a builder that has seen the first features of all ranks, in their order.

        Args:
            ranks: All.
            sizes: Features that each rank has kept of each corner, ``(ranks, corners)``.
        """
        mine = self._begin()
        corners = mine.corners
        totals = np.minimum(sizes.sum(axis=0), self._points)
        if ranks.size == 1 or not totals.any():
            return mine
        before = sizes[: ranks.rank].sum(axis=0)
        dim, (rows, labels) = self._first.moments.dim, mine.kept
        table = np.zeros((len(corners), self._points, dim))
        for i, corner in enumerate(corners):
            own = rows[labels == corner][: max(0, self._points - before[i])]
            table[i, before[i] : before[i] + len(own)] = own.reshape(-1, dim)
        # Where one rank has a row, the others have zeros.
        table = ranks.sum(torch.from_numpy(table)).numpy()
        whole = SnapshotBuilder(corners=corners, points_per_class=self._points)
        for i, corner in enumerate(corners):
            whole.update(table[i, : totals[i]], np.full(totals[i], corner))
        return whole

    def _finished(self, builder: SnapshotBuilder) -> Snapshot:
        moments, classifier = self._first.moments, self._first.classifier
        return builder.finish(
            moments.class_means,
            moments.counts,
            None if classifier is None else classifier.weight,
            within_spectrum=self._spectrum(self._scatter),
        )

    def _spectrum(self, scatter: Tensor) -> Tensor | None:
        """Return the eigenvalues of Σ_W in the span of the class means, descending."""
        if not len(scatter):
            return None
        values: Tensor = torch.linalg.eigvalsh(scatter.cpu()).flip(0).clamp(min=0)
        return values.mul(self._own.unit**2)
