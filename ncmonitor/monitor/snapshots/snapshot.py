"""Snapshots: the geometry of one split at one epoch, small enough to keep for every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np

from ncmonitor.errors import InputError, MeasurementError, check_whole
from ncmonitor.monitor.snapshots import numbers
from ncmonitor.monitor.snapshots.corners import CornerFrame
from ncmonitor.monitor.snapshots.file import SNAPSHOT_FILE as SNAPSHOT_FILE
from ncmonitor.monitor.snapshots.file import Snapshot as Snapshot
from ncmonitor.monitor.snapshots.file import append_snapshot as append_snapshot
from ncmonitor.monitor.snapshots.file import read_snapshots as read_snapshots
from ncmonitor.monitor.snapshots.file import readable_snapshots as readable_snapshots
from ncmonitor.monitor.snapshots.numbers import FloatArray, IntArray

#: Gram matrices show so many classes at most; a larger one is grey to the eye.
SHOWN_CLASSES: Final = 32
#: Features that are not finite show as nan in the pictures; a warning for each sum adds nothing.
_QUIET: Final[dict[str, Any]] = {"invalid": "ignore", "over": "ignore"}


def take_snapshot(
    features: Any,
    labels: Any,
    weight: Any = None,
    *,
    epoch: int = 0,
    split: str = "train",
    corners: Sequence[int] | None = None,
    points_per_class: int = 50,
) -> Snapshot:
    """Take the snapshot of features in memory.

    Args:
        features: ``(N, d)``, torch or numpy: the input of the last linear layer. ``(B, T, d)`` with
            labels ``(B, T)`` is taken token by token.
        labels: ``(N,)`` class indices; −100 is left out.
        weight: Rows of the last linear layer, ``(K, d)``, one for every class.
        epoch: Completed epochs.
        split: Name of the split.
        corners: Two to four classes for the simplex picture; the first three present if ``None``.
        points_per_class: How many features of each corner class to keep, the first ones.

    Returns:
        The snapshot, with the spectrum of Σ_W.

    Raises:
        InputError: If shapes do not fit, or a corner class has no sample.
        MeasurementError: If there is no sample.
    """
    rows, classes = numbers.samples_of(features, labels)
    builder = SnapshotBuilder(corners=corners, points_per_class=points_per_class)
    builder.update(rows, classes)
    with np.errstate(**_QUIET):
        means, counts, groups = numbers.class_means(rows, classes)
        filled = np.flatnonzero(counts)
        spectrum = None
        if len(filled):
            spectrum = numbers.within_spectrum(rows, [groups[c] for c in filled], means[filled])
    return builder.finish(means, counts, weight, epoch=epoch, split=split, within_spectrum=spectrum)


class SnapshotBuilder:
    """Collects the points of a snapshot while features stream past; the rest comes at the end.

    Args:
        corners: Two to four classes; ``None`` takes the first three that turn up.
        points_per_class: How many features of each to keep, the first ones; 0 for none.

    Raises:
        InputError: If a setting is impossible.
    """

    def __init__(self, *, corners: Sequence[int] | None = None, points_per_class: int = 50) -> None:
        check_whole("points_per_class", points_per_class)
        if points_per_class < 0:
            raise InputError(f"points_per_class= must be at least 0, but is {points_per_class}")
        self._chosen = None if corners is None else numbers.checked_corners(corners)
        self._wanted = points_per_class
        self._kept: dict[int, list[FloatArray]] = {c: [] for c in self._chosen or ()}

    @property
    def corners(self) -> tuple[int, ...]:
        """The corner classes, as far as they are known."""
        return self._chosen or tuple(sorted(self._kept))

    @property
    def kept(self) -> tuple[FloatArray, IntArray]:
        """The features kept so far, ``(n, d)`` class by class, and their classes, ``(n,)``."""
        rows = [row for c in self.corners for row in self._kept[c]]
        sizes = [len(self._kept[c]) for c in self.corners]
        return np.array(rows), np.repeat(np.array(self.corners, dtype=np.int64), sizes)

    @property
    def complete(self) -> bool:
        """Whether nothing that may follow can change the points."""
        settled = self._chosen is not None or self.corners == (0, 1, 2)
        return settled and all(len(kept) >= self._wanted for kept in self._kept.values())

    def update(self, features: Any, labels: Any) -> Self:
        """Keep what is wanted of a batch; once :attr:`complete`, nothing is even looked at.

        Args:
            features: ``(n, d)``, torch or numpy, on any device: only kept rows are copied.
            labels: ``(n,)``; negative ones (−100) are left out.
        """
        if self.complete:
            return self
        classes = numbers.array_of(labels)
        if self._chosen is None:
            # A smaller class that turns up late displaces the largest; none of its samples is lost.
            seen = {int(c) for c in np.unique(classes) if c >= 0} | set(self._kept)
            self._kept = {c: self._kept.get(c, []) for c in sorted(seen)[:3]}
        for c, kept in self._kept.items():
            places = np.flatnonzero(classes == c)[: self._wanted - len(kept)]
            if len(places):
                kept.extend(numbers.floats_of(features[places.tolist()]))
        return self

    @np.errstate(**_QUIET)
    def finish(
        self,
        class_means: Any,
        counts: Any,
        weight: Any = None,
        *,
        epoch: int = 0,
        split: str = "train",
        within_spectrum: Any = None,
    ) -> Snapshot:
        """Put the snapshot together.

        Args:
            class_means: ``(K₀, d)`` of all classes; those without samples are not read.
            counts: Samples per class, ``(K₀,)``.
            weight: Rows of the classifier, ``(K₀, d)``: row c belongs to class c.
            epoch: Completed epochs.
            split: Name of the split.
            within_spectrum: Eigenvalues of Σ_W in the span of the means, descending, if known.

        Raises:
            InputError: If shapes do not fit, or a chosen corner class has no sample.
            MeasurementError: If there is no sample.
        """
        means = numbers.floats_of(class_means)
        present = np.flatnonzero(numbers.array_of(counts) > 0)
        self.check_present(present, split)
        rows = None if weight is None else numbers.checked_rows(weight, means)
        shown = numbers.evenly_spaced(present, SHOWN_CLASSES)
        centre = means[present].mean(axis=0)
        centred, some = means[present] - centre, means[shown] - centre
        values = numbers.singular_values(centred)[: len(present) - 1]
        about_weight: dict[str, Any] = dict.fromkeys(("weight_gram", "cross", "singular_weight"))
        if rows is not None:
            about_weight = {
                "weight_gram": numbers.scaled_gram(rows[present], rows[shown]),
                "cross": numbers.cosines(rows[shown], some),
                "singular_weight": numbers.singular_values(rows[present])[: numbers.SHOWN_VALUES],
            }
        if within_spectrum is not None:
            within_spectrum = numbers.floats_of(within_spectrum)[: numbers.SHOWN_VALUES]
        return Snapshot(
            epoch=int(epoch),
            split=split,
            num_classes=len(present),
            classes=tuple(shown.tolist()),
            means_gram=numbers.scaled_gram(centred, some),
            singular_means=values[: numbers.SHOWN_VALUES],
            within_spectrum=within_spectrum,
            **about_weight,
            **self._picture(means, rows),
        )

    def check_present(self, present: IntArray, split: str) -> None:
        """Raise unless there are classes with samples, and the chosen corners among them.

        Args:
            present: The classes that have samples.
            split: Name of the split.

        Raises:
            InputError: If a chosen corner class has no sample.
            MeasurementError: If no class has one.
        """
        if not len(present):
            raise MeasurementError(f"a snapshot of {split} needs samples, but no class has one")
        missing = sorted(set(self._chosen or ()) - set(present.tolist()))
        if missing:
            some = ", ".join(map(str, present[:12].tolist()))
            raise InputError(
                f"corners= must be classes with samples, but class {missing[0]} has none in "
                f"{split}; choose among {some}{', ...' if len(present) > 12 else ''}"
            )

    def _picture(self, means: FloatArray, rows: FloatArray | None) -> dict[str, Any]:
        corners, width = list(self.corners), max(1, len(self.corners) - 1)
        kept = [np.reshape(self._kept[c], (-1, means.shape[1])) for c in corners]
        points = np.full((sum(map(len, kept)), width), np.nan)
        corner_means = np.full((len(corners), width), np.nan)
        corner_weights = None if rows is None else corner_means
        if len(corners) > 1:  # one class has no direction of its own
            frame = CornerFrame.of(means[corners])
            points, corner_means = frame.place(np.concatenate(kept)), frame.place(means[corners])
            corner_weights = None if rows is None else frame.place_rows(rows[corners])
        return {
            "corners": tuple(corners),
            "points": points,
            "point_labels": np.repeat(np.array(corners, dtype=np.int64), [len(k) for k in kept]),
            "corner_means": corner_means,
            "corner_weights": corner_weights,
        }
