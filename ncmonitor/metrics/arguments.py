"""What the metrics read: the geometry that the first pass tells, and the spread of the second."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ncmonitor.geometry.vectors import GramSpectrum, Span, Vectors
from ncmonitor.inputs.conventions import Convention
from ncmonitor.metrics import covariance, duality, equiangularity


@dataclass(frozen=True)
class ClassGeometry:
    """What the first pass tells of one split: its present classes, at fixed weights.

    Attributes:
        convention: How classes are weighted.
        counts: Samples per present class, ``(K_S,)`` float64.
        variances: ``Ave ‖h − μ_c‖²`` per present class, ``(K_S,)``.
        feature_norms: ``Ave ‖h‖`` per present class, ``(K_S,)``.
        means: Frame of the class means about their plain mean.
        centred: Class means about the global mean of the convention.
        span: Their span under the convention.
        classifier: Frame of the classifier's rows of the present classes.
        constant: ``b + Wμ_G`` of the present classes, ``(K_S,)``.
        bias: b of the present classes, ``(K_S,)``; 0 where there is none.
        origin: The point that the rows of :attr:`means` are relative to, ``(d,)``.
        blocks: Super-class of each present class, ``(K_S,)``; ``None``: minority and majority.
        neg_clips: Variances clipped at 0.
        feature_dtype: Precision of the features.
    """

    convention: Convention
    counts: Tensor
    variances: Tensor
    feature_norms: Tensor
    means: GramSpectrum
    centred: Vectors
    span: Span
    classifier: GramSpectrum | None
    constant: Tensor | None
    bias: Tensor | None
    origin: Tensor
    blocks: Tensor | None
    neg_clips: int
    feature_dtype: torch.dtype

    @property
    def rows(self) -> GramSpectrum:
        """The classifier, for metrics that are computed only where there is one."""
        assert self.classifier is not None
        return self.classifier

    @property
    def flat(self) -> bool:
        """Whether the class means coincide within the rounding of the features."""
        return self.means.flat

    @property
    def weights(self) -> Tensor:
        """What each class counts in averages over samples, ``(K_S,)``."""
        return class_weights(self.counts, samples=self.convention.sample_within)

    @cached_property
    def resolved(self) -> bool:
        """Whether every class mean differs from the global mean."""
        return not bool((self.centred.norms <= self.means.resolution).any())

    @cached_property
    def angles(self) -> tuple[float, float]:
        """Spread and distance of the cosines of the centred means; undefined if one vanishes."""
        return equiangularity.angles(self.centred) if self.resolved else (math.nan, math.nan)

    @cached_property
    def row_angles(self) -> tuple[float, float]:
        """The same for the rows of the classifier."""
        return equiangularity.angles(self.rows.vectors)

    @cached_property
    def equal_rows(self) -> bool:
        """Whether the classifier's rows are equal: centred, they leave rounding behind."""
        size, count = self.rows.vectors.norm, len(self.counts)
        return self.rows.centred.norm <= count * torch.finfo(torch.float64).eps * size

    @cached_property
    def alignment(self) -> tuple[float, float]:
        """Mean cosine of rows and class means, and one minus it."""
        if self.means.degenerate or bool((self.rows.vectors.norms == 0).any()):
            return math.nan, math.nan
        return duality.cosines(self.rows.vectors, self.means.centred)


def class_weights(counts: Tensor, *, samples: bool) -> Tensor:
    """Return what each class counts in an average: its share of the samples, or 1/K."""
    return counts / counts.sum() if samples else torch.full_like(counts, 1 / len(counts))


@dataclass(frozen=True)
class WithinClassStatistics:
    """What the second pass tells; holds no class mean, which many classes make large.

    Attributes:
        convention: How classes are weighted.
        counts: Samples per present class, ``(K_S,)`` float64.
        variances: ``Ave ‖h − μ_c‖²`` per present class, ``(K_S,)``.
        rank: Of the class means.
        whitened: ``Ave ‖Ṁ⁺(h − μ_c)‖²`` per present class, ``(K_S,)``.
        in_span: ``Ave ‖Uᵀ(h − μ_c)‖²`` per present class, ``(K_S,)``.
        accuracy: Of the nearest class mean.
        disagreement: Share of samples where network and nearest class mean differ.
        margin: Median margin between the two nearest class means.
        directional: Directional CDNV per present class.
        fuzziness: ``tr(SS_w SS_b⁺)``.
        second_moments: Σ_W beside the class means, where a metric asks for it.
        loss: Parts of the squared loss.
    """

    convention: Convention
    counts: Tensor
    variances: Tensor
    rank: int
    whitened: Tensor
    in_span: Tensor
    accuracy: float
    disagreement: float = math.nan
    margin: float = math.nan
    directional: Tensor | None = None
    fuzziness: float = math.nan
    second_moments: covariance.WithinCovariance | None = None
    loss: covariance.SquaredLoss | None = None

    @property
    def weights(self) -> Tensor:
        """What each class counts in averages over samples, ``(K_S,)``."""
        return class_weights(self.counts, samples=self.convention.sample_within)

    @property
    def undefined(self) -> bool:
        """Whether NC1 is: no resolved direction, or no class with two samples."""
        return self.rank == 0 or float(self.counts.max()) <= 1

    @property
    def moments(self) -> covariance.WithinCovariance:
        """The second moments, for metrics that asked for them."""
        assert self.second_moments is not None
        return self.second_moments

    @property
    def parts(self) -> covariance.SquaredLoss:
        """The squared loss; ``nan`` where all class means coincide."""
        return self.loss or covariance.SquaredLoss(math.nan, math.nan, math.nan)
