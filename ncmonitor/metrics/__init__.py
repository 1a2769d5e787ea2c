"""Pure functions from moments and geometry to numbers, one file per property of the collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ncmonitor.geometry import Frame
from ncmonitor.metrics import duality, frames, variability


@dataclass(frozen=True)
class Snapshot:
    """All that the metrics read: one split, restricted to its present classes, at fixed weights.

    Attributes:
        counts: Samples per present class, ``(K_S,)`` float64.
        variances: ``Ave ‖h − μ_c‖²`` per present class, ``(K_S,)``.
        means: Frame of the class means.
        whitened: Sum of ``‖Ṁ⁺(h − μ_c)‖²`` per present class, ``(K_S,)``.
        in_span: Sum of ``‖Uᵀ(h − μ_c)‖²`` per present class, ``(K_S,)``.
        classifier: Frame of the classifier's rows of the present classes.
        disagreement: Share of samples where network and nearest class mean differ.
        accuracy: Accuracy of the nearest class mean.
        neg_clips: Variances clipped at 0.
        feature_dtype: Precision of the features.
    """

    counts: Tensor
    variances: Tensor
    means: Frame
    whitened: Tensor
    in_span: Tensor
    classifier: Frame | None
    disagreement: float | None
    accuracy: float
    neg_clips: int
    feature_dtype: torch.dtype

    @cached_property
    def mean_angles(self) -> tuple[float, float]:
        """Spread and distance of the cosines of the centred means; undefined if one vanishes."""
        undefined = self.means.degenerate > 0
        return (math.nan, math.nan) if undefined else frames.angles(self.means.centred)

    @cached_property
    def row_angles(self) -> tuple[float, float]:
        """The same for the rows of the classifier."""
        return frames.angles(self.rows.rows)

    @property
    def rows(self) -> Frame:
        """The classifier, for metrics that are computed only where there is one."""
        assert self.classifier is not None
        return self.classifier

    @property
    def flat(self) -> bool:
        """Whether the class means coincide within the rounding of the features."""
        return self.means.degenerate == len(self.means.rows)


Compute = Callable[[Snapshot], float]


def _duality(s: Snapshot, *, centred: bool = False) -> float:
    if s.flat:
        return math.nan
    rows = s.rows.centred if centred else s.rows.rows
    # Equal rows leave rounding behind when they are centred; that is not a direction.
    if centred and rows.norm() <= len(rows) * torch.finfo(rows.dtype).eps * s.rows.rows.norm():
        return math.nan
    return duality.self_duality(rows, s.means.centred)


def _s_min_ratio(s: Snapshot) -> float:
    values = s.means.singular_values
    return math.nan if s.means.rank == 0 else float(values[-1] / values[0])


def mantissa_bits(dtype: torch.dtype) -> float:
    """Return the significand bits of a floating-point type: 53, 24, 11 or 8."""
    return 1 - math.log2(torch.finfo(dtype).eps)


#: How each default metric is computed; names as in the catalogue.
COMPUTE: dict[str, Compute] = {
    "nc1": lambda s: variability.nc1(s.whitened, s.counts, s.means),
    "nc1_quotient": lambda s: variability.nc1_quotient(s.variances, s.counts, s.means),
    "within_in_span_frac": lambda s: variability.within_in_span_frac(
        s.in_span, s.counts, s.variances, s.means
    ),
    "nc2_equinorm_means": lambda s: math.nan if s.flat else frames.equinorm(s.means.centred),
    "nc2_equinorm_w": lambda s: frames.equinorm(s.rows.rows),
    "nc2_equiangular_std_means": lambda s: s.mean_angles[0],
    "nc2_equiangular_std_w": lambda s: s.row_angles[0],
    "nc2_max_angle_means": lambda s: s.mean_angles[1],
    "nc2_max_angle_w": lambda s: s.row_angles[1],
    "nc2_etf_means": lambda s: math.nan if s.flat else frames.etf_distance(s.means, centred=True),
    "nc2_etf_w": lambda s: frames.etf_distance(s.rows, centred=False),
    "nc3_self_duality": _duality,
    "nc3_self_duality_sq": lambda s: _duality(s) ** 2,
    "nc3_self_duality_centered": lambda s: _duality(s, centred=True),
    "nc4_disagreement": lambda s: math.nan if s.disagreement is None else s.disagreement,
    "ncc_accuracy": lambda s: s.accuracy,
    "w_mean_ratio": lambda s: duality.row_mean_ratio(s.rows.rows),
    "n_classes_present": lambda s: float(len(s.counts)),
    "min_class_count": lambda s: float(s.counts.min()),
    "n_singleton_classes": lambda s: float((s.counts == 1).sum()),
    "degenerate_classes": lambda s: float(s.means.degenerate),
    "nc1_rank": lambda s: float(s.means.rank),
    "s_min_ratio": _s_min_ratio,
    "neg_clips": lambda s: float(s.neg_clips),
    "feature_dtype": lambda s: mantissa_bits(s.feature_dtype),
}

_NEED_CLASSIFIER = {name for name in COMPUTE if name.endswith("_w") or name.startswith("nc3_")}
_NEED_CLASSIFIER.add("w_mean_ratio")


def applicable(*, classifier: bool, decisions: bool) -> list[str]:
    """Return the default metrics that apply, in catalogue order.

    Args:
        classifier: Whether there are classifier weights.
        decisions: Whether every sample has logits.
    """
    absent = set() if classifier else set(_NEED_CLASSIFIER)
    if not decisions:
        absent.add("nc4_disagreement")
    return [name for name in COMPUTE if name not in absent]


def measured_values(snapshot: Snapshot) -> dict[str, float]:
    """Compute every default metric that applies to a snapshot, in catalogue order."""
    names = applicable(
        classifier=snapshot.classifier is not None, decisions=snapshot.disagreement is not None
    )
    return {name: COMPUTE[name](snapshot) for name in names}
