"""Within-class variability split into scatter along orbits and scatter between them.

On the data set augmented by a group, ``Σ_W = Σ_orbit + Σ_between``: the covariance of h(gx) over g,
averaged over samples, and the covariance over samples of the orbits' means. Half the mean squared
distance of two transforms of a sample is tr Σ_orbit, hence at most tr Σ_W: collapse on the
augmented set makes the network invariant on its orbits. Collapse on the plain set says nothing.

Two passes, as for NC1: class means first, then residuals projected on their span, so that no d × d
matrix is formed. Residuals are float64, of a sample's transforms about one of them and of orbit
means about their class's first: neither strong collapse nor a large offset costs digits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.geometry.vectors import Span
from ncmonitor.inputs import tensors
from ncmonitor.inputs.labels import check_labels
from ncmonitor.inputs.tensors import Scratch, as_tensor, exact_arithmetic
from ncmonitor.measurement.class_geometry import mean_frame, present_classes
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.symmetry.feature_pairs import check_pairs
from ncmonitor.symmetry.orbit_sums import DRAWS, Draws, Orbits, OrbitScatter, orbits_of


@dataclass(frozen=True)
class OrbitReport:
    """Orbit decomposition of one layer; classes weigh equally, population estimators.

    All numbers but counts are 0 for an invariant network that has collapsed, and ``nan`` where
    their divisor vanishes or every sample is left out. Of drawn transforms, tr Σ_orbit and tr Σ_W
    are unbiased over the draws; the class means are not corrected for theirs, which add at most
    ``tr Σ_orbit/(m n_c)`` to tr Σ_B (shared: ``tr Σ_orbit/m``).

    Attributes:
        orbit_share: ``tr Σ_orbit / tr Σ_W``: 0 for an invariant network, ``1 − 1/m`` for m
            independent features per sample (gX ~ X); 0/0 at full collapse, so read it beside
            ``orbit_quot``.
        orbit_quot: ``tr Σ_orbit / tr Σ_B``: 0 for an invariant network.
        orbit_nc1: ``tr(Σ_orbit (ṀṀᵀ)⁺)``: the part of NC1 along orbits, 0 for an invariant one.
        between_nc1: ``tr(Σ_between (ṀṀᵀ)⁺)``: the part between orbits; drawn transforms can make
            this unbiased estimate negative.
        nc1_aug: NC1 of the augmented set, ``orbit_nc1 + between_nc1``.
        orbit_variance: ``tr Σ_orbit``.
        within_variance: ``tr Σ_W`` of the augmented set.
        between_class_variance: ``tr Σ_B`` of the augmented class means.
        rank: Of those means.
        left_out: Samples with fewer than 2 transforms that keep their label (m = 1: none); the
            other numbers are of the rest, and of the classes that have any.

    Source: ncmonitor; one-way random effects for drawn transforms.
    """

    orbit_share: float
    orbit_quot: float
    orbit_nc1: float
    between_nc1: float
    nc1_aug: float
    orbit_variance: float
    within_variance: float
    between_class_variance: float
    rank: int
    left_out: int


class OrbitMoments:
    """First pass: class means of the augmented set, and the traces.

    Args:
        num_classes: Number of classes K.
        draws: What the m transforms are. ``"full"``: a finite group, every element once (exact).
            ``"independent"``: m ≥ 2 uniform draws, anew for every sample. ``"shared"``: m ≥ 2
            uniform draws, the same for all samples. The identity is one of the draws only if drawn.

    Raises:
        InputError: If ``draws`` is none of these.
    """

    def __init__(self, num_classes: int, draws: Draws = "full") -> None:
        if draws not in DRAWS:
            raise InputError(f"draws= must be one of {', '.join(DRAWS)}, got {draws!r}")
        self.draws, self.left_out = draws, 0
        self.means = ClassMoments(num_classes)
        self.parts = OrbitScatter(num_classes, draws)
        self.transforms, self.dim, self.dtype = 0, 0, torch.float32
        self._dropped = 0  # of the latest batch

    def update(self, features: Any, labels: Any, mask: Any = None) -> Self:
        """Add a batch.

        Args:
            features: ``(m, B, d)`` floating point, one ``(B, d)`` per transform.
            labels: ``(B,)`` integers in ``[0, K)``.
            mask: ``(m, B)`` bool, pairs that keep the label; ``None``: all. A sample with fewer
                than 2 (m = 1: 1) is left out, and its class with it where it has no other; the rest
                count the same, whatever is left of their orbits.

        Raises:
            InputError: If shapes, dtypes or labels are not as above.
        """
        for orbits in self.orbits(features, labels, mask):
            self.means.update(orbits.means, orbits.labels)
            with exact_arithmetic(orbits.means.device):
                self.parts.add(orbits, orbits.residuals)
        self.left_out += self._dropped
        return self

    def orbits(self, features: Any, labels: Any, mask: Any) -> Iterator[Orbits]:
        """Check a batch and iterate over its orbits by blocks of samples."""
        # Of drawn transforms, the first is like any other.
        features, kept = check_pairs(features, mask, identity=self.draws == "full")
        labels = as_tensor(labels)
        check_labels(labels, features.shape[1], self.means.num_classes)
        labels = labels.to(features.device).long()
        if self.draws != "full" and len(features) < 2:
            raise InputError(f'draws="{self.draws}" needs at least 2 transforms, got 1')
        if self.transforms and (len(features), features.shape[2]) != (self.transforms, self.dim):
            raise InputError(
                f"expected {self.transforms} transforms of {self.dim} features as before, got "
                f"{len(features)} of {features.shape[2]}"
            )
        self.transforms, self.dim = len(features), features.shape[2]
        self.dtype = features.dtype
        self._dropped = 0
        if kept is not None:
            # The identity alone would pass for an invariant sample; a group of one has no more.
            enough = kept.sum(0) >= min(2, len(features))
            self._dropped = int((~enough).sum())
            features, labels, kept = features[:, enough], labels[enough], kept[:, enough]
        size = tensors.block_rows(self.transforms * self.dim)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            some = None if kept is None else kept[:, part]
            yield orbits_of(features[:, part], labels[part], some)

    def finish(self) -> OrbitSpread:
        """Return the second pass, which takes the same batches again.

        Raises:
            InputError: If no sample came.
            MeasurementError: If a feature is not finite.
        """
        return OrbitSpread(self)


class OrbitSpread:
    """Second pass: the two parts of the within-class scatter in the span of the class means.

    Args:
        moments: The first pass, which has seen every batch.

    Raises:
        InputError: If it saw no sample.
        MeasurementError: If a feature is not finite.
    """

    def __init__(self, moments: OrbitMoments) -> None:
        self.moments = moments
        if not moments.transforms:
            raise InputError("orbits need samples under transforms, but none came")
        if not moments.means.finite:
            raise MeasurementError("features under transforms are not finite")
        self._present = present_classes(moments.means)
        self._span = self._whitening = None
        if len(self._present) > 1:
            # Orbit means are float64, but resolve no more than the features they are means of.
            rounded = copy.copy(moments.means)
            rounded.feature_dtype = moments.dtype
            frame, self._span, _ = mean_frame(rounded, self._present)
            self._flat = frame.flat
            self._whitening = self._span.basis / self._span.resolved
        self._parts = OrbitScatter(moments.means.num_classes, moments.draws)
        self._squares = torch.zeros(moments.means.num_classes, dtype=torch.float64)
        self._scratch = Scratch()

    def update(self, features: Any, labels: Any, mask: Any = None) -> Self:
        """Add a batch of the first pass again; see :meth:`OrbitMoments.update`."""
        for orbits in self.moments.orbits(features, labels, mask):
            if self._whitening is None:
                continue
            with exact_arithmetic(orbits.means.device):
                whitening = self._whitening.to(orbits.means.device)
                self._parts.add(orbits, orbits.residuals @ whitening)
                sums = self.moments.means.sums
                apart = sums.residuals(orbits.means, orbits.labels, self._scratch) @ whitening
                squares = apart.square().sum(1)
                self._squares = self._squares.to(squares.device)
                self._squares.index_add_(0, orbits.labels, squares)
        return self

    def report(self) -> OrbitReport:
        """Return the decomposition.

        Raises:
            InputError: With shared draws, if the mask differs within a class.
        """
        present, means = self._present, self.moments.means
        counts = means.counts.cpu()[present].double()
        orbit, between = self.moments.parts.variances(means.class_variances.cpu()[present], present)
        within = orbit + between
        class_variance = orbit_nc1 = between_nc1 = math.nan
        span: Span | None = self._span
        if span is not None and not self._flat:
            class_variance = float(span.singular_values.square().sum()) / len(present)
        if span is not None and span.rank:
            spread = self._squares.cpu()[present] / counts
            orbit_nc1, between_nc1 = self._parts.variances(spread, present)
        return OrbitReport(
            orbit_share=orbit / within if within > 0 else math.nan,
            orbit_quot=orbit / class_variance,
            orbit_nc1=orbit_nc1,
            between_nc1=between_nc1,
            nc1_aug=orbit_nc1 + between_nc1,
            orbit_variance=orbit,
            within_variance=within,
            between_class_variance=class_variance,
            rank=0 if span is None else span.rank,
            left_out=self.moments.left_out,
        )


def measure_orbits(
    batches: Iterable[Sequence[Any]], num_classes: int, draws: Draws = "full"
) -> OrbitReport:
    """Measure orbits in two passes over batches of ``(features, labels)`` or with a mask.

    Args:
        batches: Re-iterable, the same both times; see :meth:`OrbitMoments.update`.
        num_classes: Number of classes K.
        draws: What the transforms are; see :class:`OrbitMoments`.

    Returns:
        The decomposition of all batches together.

    Raises:
        InputError: If the batches can be read only once, or one does not fit.
    """
    if isinstance(batches, Iterator):
        raise InputError("orbits are measured in two passes: pass a list of batches, no iterator")
    moments = OrbitMoments(num_classes, draws)
    for batch in batches:
        moments.update(*batch)
    spread = moments.finish()
    for batch in batches:
        spread.update(*batch)
    return spread.report()
