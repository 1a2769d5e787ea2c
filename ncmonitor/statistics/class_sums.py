"""Per-class sums of residuals about a reference point: what class moments are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ncmonitor.inputs import tensors
from ncmonitor.inputs.tensors import Scratch
from ncmonitor.statistics.process_group import ProcessGroup

#: Elements up to which the class means are tabulated in float64: 64 MiB.
TABLE_ELEMENTS = 2**23


@dataclass(eq=False)
class Sums:
    """Sums over the samples of each class, and over the samples to leave out in the last row.

    Leaving samples out by dropping them would wait for an accelerator, once per batch.

    Attributes:
        counts: Number of samples, ``(K + 1,)`` int64.
        references: A class's first sample r, ``(K + 1, d)``, in the precision features are read in.
        shifts: ``Σ (h − r)``, ``(K + 1, d)`` float64.
        squares: ``Σ ‖h − r‖²``, ``(K + 1,)`` float64.
        lengths: ``Σ ‖h‖``, ``(K + 1,)`` float64.
        outer: ``Σ (h − r)(h − r)ᵀ`` over all classes, ``(d, d)`` float64, where asked for.
    """

    counts: Tensor
    references: Tensor
    shifts: Tensor
    squares: Tensor
    lengths: Tensor
    outer: Tensor | None = None

    @classmethod
    def empty(
        cls,
        num_classes: int,
        dim: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        scatter: bool = False,
    ) -> Sums:
        """Return the sums of no sample."""
        rows, wide = num_classes + 1, torch.float64
        return cls(
            counts=torch.zeros(rows, dtype=torch.int64, device=device),
            references=torch.zeros(rows, dim, dtype=dtype, device=device),
            shifts=torch.zeros(rows, dim, dtype=wide, device=device),
            squares=torch.zeros(rows, dtype=wide, device=device),
            lengths=torch.zeros(rows, dtype=wide, device=device),
            outer=torch.zeros(dim, dim, dtype=wide, device=device) if scatter else None,
        )

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.references.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self.counts.device

    # -- adding ------------------------------------------------------------------------------------

    def absorb(self, features: Tensor, labels: Tensor, scratch: Scratch) -> None:
        """Add a block of samples with labels in [0, K]."""
        # In float64 the residuals are exact, and their squares stay in range for tiny features.
        wide = scratch.get("wide", features, *features.shape, dtype=torch.float64)
        wide.copy_(features)
        self.lengths.index_add_(0, labels, torch.linalg.vector_norm(wide, dim=1))
        self._adopt(features, labels)
        wide.sub_(self._wide_references(labels, scratch))
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        self.shifts.index_add_(0, labels, wide)
        if self.outer is not None:
            kept = wide * (labels < len(self.counts) - 1)[:, None]
            self.outer += kept.T @ kept
        self.squares.index_add_(0, labels, wide.square_().sum(1))

    def _adopt(self, features: Tensor, labels: Tensor) -> None:
        """Make a class's first sample its reference, where there is none yet."""
        fresh = self.counts == 0
        if tensors.waits_for_nothing(labels.device) and not bool(fresh[labels].any()):
            return
        order = torch.arange(len(labels), device=labels.device)
        first = torch.full_like(self.counts, len(labels))
        first.scatter_reduce_(0, labels, order, "amin")
        rows = features[first[labels]].to(self.references)
        rows = torch.where(fresh[labels][:, None], rows, self.references[labels])
        self.references[labels] = rows  # samples of one class write the same row

    def _wide_references(self, labels: Tensor, scratch: Scratch) -> Tensor:
        """Return the samples' references in float64: mixed sums would make a copy of each."""
        shape, dtype = (len(labels), self.dim), self.references.dtype
        narrow = scratch.get("references", self.references, *shape, dtype=dtype)
        wide = scratch.get("wide references", self.references, *shape, dtype=torch.float64)
        return wide.copy_(torch.index_select(self.references, 0, labels, out=narrow))

    # -- reading -----------------------------------------------------------------------------------

    def offsets(self, rows: slice | Tensor) -> Tensor:
        """Return class means minus references, ``(n, d)`` float64; 0 for a class never seen."""
        return self.shifts[rows] / self.counts[rows].clamp(min=1)[:, None]

    def variances(self) -> Tensor:
        """Return ``Ave ‖h − μ_c‖²``, ``(K,)``, as it comes out; ``nan`` for a class never seen."""
        size = tensors.block_rows(max(1, self.dim))  # for many classes, not all means at once
        starts = range(0, len(self.counts), size)
        squares = [self.offsets(slice(start, start + size)).square().sum(1) for start in starts]
        return (self.squares / self.counts - torch.cat(squares))[:-1]  # 0/0 is nan

    def means_about(self, origin: Tensor, classes: Tensor) -> Tensor:
        """Return means of some classes less ``origin``, ``(n, d)`` float64 on the CPU."""
        classes = classes.to(self.device)
        references = self.references[classes].double().cpu()
        return (references - origin) + self.offsets(classes).cpu()

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
        if self.shifts.numel() <= TABLE_ELEMENTS:
            table = scratch.once("table", self._means)
            torch.index_select(table, 0, labels, out=means)
        else:  # a table of float64 means would be too much beside the sums
            torch.index_select(self.shifts, 0, labels, out=means)
            means.div_(self.counts[labels].double()[:, None])
            means.add_(self._wide_references(labels, scratch))
        return wide.copy_(features).sub_(means)

    def _means(self) -> Tensor:
        return self.offsets(slice(None)).add_(self.references)

    # -- combining and carrying ------------------------------------------------------------------

    def plus(self, other: Sums) -> Sums:
        """Return the sums of both, about common references; neither changes or is shared."""
        total, other = self.to(self.device), other.to(self.device)
        first = torch.where((total.counts == 0)[:, None], other.references, total.references)
        other._rebase(first)
        total._rebase(first)
        for name in ("counts", "shifts", "squares", "lengths"):
            getattr(total, name).add_(getattr(other, name))
        if total.outer is not None and other.outer is not None:
            total.outer += other.outer
        return total

    def over(self, ranks: ProcessGroup) -> Sums:
        """Return the sums of all ranks, about the references of the first rank that has each."""
        total = self.to(self.device)
        seen = total.counts > 0
        owner = ranks.smallest(torch.where(seen, ranks.rank, ranks.size))
        mine = (owner == ranks.rank)[:, None]
        total._rebase(ranks.sum(torch.where(mine, total.references, 0.0)))
        for name in ("counts", "shifts", "squares", "lengths"):
            setattr(total, name, ranks.sum(getattr(total, name)))
        if total.outer is not None:
            total.outer = ranks.sum(total.outer)
        return total

    def _rebase(self, references: Tensor) -> None:
        """Move every sum to new reference points."""
        step = self.references.double() - references.double()  # (K + 1, d)
        count = self.counts[:, None]
        step = torch.where(count > 0, step, 0.0)
        if self.outer is not None:
            crossed = step[:-1].T @ self.shifts[:-1]
            self.outer += crossed + crossed.T + step[:-1].T @ (step * count)[:-1]
        self.squares += (2 * step * self.shifts + count * step.square()).sum(1)
        self.shifts += count * step
        self.references = references.clone()

    def to(self, device: torch.device | str) -> Sums:
        """Return an independent copy on ``device``."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self,
            **{k: v.to(device, copy=True) for k, v in moved.items() if isinstance(v, Tensor)},
        )
