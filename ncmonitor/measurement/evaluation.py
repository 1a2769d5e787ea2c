"""From the first pass to a report: geometry, the second pass, and every metric asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import warn
from ncmonitor.geometry.vectors import Span
from ncmonitor.measurement.class_geometry import (
    mean_frame,
    present_classes,
    shape_of,
    weighted_span,
    weighted_sum,
)
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.metrics import SHAPE, SPREAD, applicable
from ncmonitor.metrics.arguments import ClassGeometry, WithinClassStatistics, class_weights
from ncmonitor.metrics.covariance import SquaredLoss, WithinCovariance, squared_loss
from ncmonitor.statistics.accumulators import (
    Accumulator,
    Directional,
    Fuzziness,
    Margin,
    WithinClassScatter,
)
from ncmonitor.statistics.class_means import ClassMeans, GlobalMean
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.passes import AccumulatorFactory, FirstPass, SecondPass
from ncmonitor.statistics.source_checks import check_first

#: NC1 below which it is the rounding of the features, for features with common mean and signal.
NC1_FLOORS: Final = {torch.bfloat16: 1e-6, torch.float16: 1e-8}
_LOSS = ("mse_l_nc1", "mse_l_nc23", "mse_l_perp", "central_path_dist")
_SECOND_MOMENTS = ("vci", "entropy_rank_total", "numerical_rank", *_LOSS)
_NEED_MEANS = (*_SECOND_MOMENTS, "nc1_cdnv_directional", "separation_fuzziness")


class Evaluation:
    """What follows the first pass: the geometry, a second pass to be fed, and the report.

    Args:
        first: The first pass, complete.
        reference: Moments whose class means decide the nearest class; ``None``: the split's own.
        settings: What to compute.
        factories: Of what else is to see the second pass.

    Attributes:
        second: The second pass; it takes the same stream again.
    """

    def __init__(
        self,
        first: FirstPass,
        reference: ClassMoments | None,
        settings: Settings,
        factories: Sequence[AccumulatorFactory] = (),
    ) -> None:
        classifier = first.classifier is not None
        self._names = applicable(settings.names, classifier=classifier, decisions=first.decides)
        shape = shape_of(first, settings)
        alone = len(shape.counts) < 2
        self._defined = [name for name in self._names if _defined(name, alone=alone)]
        self._values = shape_values(self._defined, shape)
        self._first, self._settings = first, settings
        self._convention, self._counts = shape.convention, shape.counts
        self._variances, self._span = shape.variances, shape.span
        self._flat = self._train_flat = shape.flat
        self._centre = GlobalMean(shape.origin, shape.means.mean)
        # Many classes leave no room for the geometry beside the second pass.
        self._shape = shape if settings.asks(*_NEED_MEANS) else None
        self._scatter: WithinClassScatter | None = None
        self._directional: Directional | None = None
        self._fuzziness: Fuzziness | None = None
        self._margin: Margin | None = None
        del shape
        self.second = self._second_pass(reference, factories)

    def report(self) -> CollapseReport:
        """Return the report, once the second pass is complete."""
        first, second, settings = self._first, self.second, self._settings
        result = self._spread(second)
        values = dict.fromkeys(self._names, math.nan) | self._values
        values |= {name: SPREAD[name](result) for name in self._defined if name in SPREAD}
        _warn_below_floor(values.get("nc1", math.nan), first.moments.feature_dtype)
        per_class = torch.full((first.moments.num_classes,), torch.nan, dtype=torch.float64)
        if not result.undefined:
            factor = len(result.counts) if settings.convention.nc1_times_k else 1
            per_class[second.own.present.cpu()] = result.whitened * factor
        return CollapseReport(
            {name: value for name, value in values.items() if not CATALOGUE[name].vector},
            first.moments,
            error=first.error if first.decides else math.nan,
            cross_entropy=first.cross_entropy if first.decides else math.nan,
            samples=first.samples,
            convention=settings.convention.name,
            vectors={"nc1_per_class": per_class} if "nc1_per_class" in self._names else {},
        )

    def _second_pass(
        self, reference: ClassMoments | None, factories: Sequence[AccumulatorFactory]
    ) -> SecondPass:
        """Return the second pass, ready for the stream."""
        moments, asks = self._first.moments, self._settings.asks
        own = train = ClassMeans(moments, self._centre, self._span, present_classes(moments))
        if reference is not None:
            reference = reference.to(own.device)
            seen = present_classes(reference)
            means, span, origin = mean_frame(reference, seen)
            self._train_flat = means.flat
            train = ClassMeans(reference, GlobalMean(origin, means.mean), span, seen)
        if asks(*_SECOND_MOMENTS):
            self._scatter = WithinClassScatter(moments.counts, moments.dim, own.device)
        if asks("ncc_margin") and not self._train_flat:
            self._margin = Margin(train)
        if self._shape is not None and not self._flat:
            self._ask_pairs(own, self._shape)
        every = (self._scatter, self._directional, self._fuzziness)
        accumulators: list[Accumulator] = [each for each in every if each is not None]
        accumulators += [make(self._first, own) for make in factories]
        return SecondPass(moments.num_classes, own, train, accumulators, self._margin)

    def _ask_pairs(self, own: ClassMeans, shape: ClassGeometry) -> None:
        means, resolution = shape.means.vectors, shape.means.resolution
        if self._settings.asks("nc1_cdnv_directional"):
            self._directional = Directional(own, shape.means.centred, shape.span, resolution)
        if self._settings.asks("separation_fuzziness"):
            average = weighted_sum(means, class_weights(shape.counts, samples=True))
            weighted = weighted_span(means.minus(average), shape.counts, resolution)
            self._fuzziness = Fuzziness(own, shape.span, weighted, self._first.samples)

    def _spread(self, second: SecondPass) -> WithinClassStatistics:
        """Return what the second pass has found."""
        present = second.own.present.cpu()
        moments = self._second_moments()
        decides = self._first.decides and not (self._train_flat or self._first.nan_logits)
        directional, fuzziness, margin = self._directional, self._fuzziness, self._margin
        return WithinClassStatistics(
            convention=self._convention,
            counts=self._counts,
            variances=self._variances,
            rank=self._span.rank,
            whitened=second.whitened[present] / self._counts,
            in_span=second.in_span[present] / self._counts,
            accuracy=math.nan if self._train_flat else second.accuracy,
            disagreement=second.disagreement if decides else math.nan,
            margin=math.nan if margin is None else margin.median,
            directional=None if directional is None else directional.per_class,
            fuzziness=math.nan if fuzziness is None else fuzziness.value,
            second_moments=moments,
            loss=self._squared_loss(moments),
        )

    def _second_moments(self) -> WithinCovariance | None:
        shape, scatter = self._shape, self._scatter
        if scatter is None or shape is None:
            return None
        centred, resolution = shape.means.centred, shape.means.resolution
        weighted = shape.convention.sample_between
        span = Span.of(centred, resolution) if weighted else shape.span
        return WithinCovariance(scatter.covariance, centred, span, resolution)

    def _squared_loss(self, moments: WithinCovariance | None) -> SquaredLoss | None:
        shape = self._shape
        if not self._settings.asks(*_LOSS) or moments is None or shape is None or shape.flat:
            return None
        if shape.classifier is None or shape.constant is None or shape.bias is None:
            return None
        mean = shape.origin + shape.means.mean
        weight = shape.rows.vectors.all()
        return squared_loss(moments, weight, shape.constant, shape.bias, mean, self._settings.ridge)


def first_report(
    first: FirstPass, classifier: Classifier | None, settings: Settings
) -> CollapseReport:
    """Compute what one pass alone tells: counts, means, variances and what follows from them.

    Args:
        first: The pass, complete; it need not know the classifier.
        classifier: The last linear layer as it is now.
        settings: What to compute; metrics that need a second pass are left out.
    """
    check_first(first, None)
    first = copy.copy(first)
    first.classifier = classifier
    shape = shape_of(first, settings)
    alone = len(shape.counts) < 2
    names = applicable(settings.names, classifier=classifier is not None, decisions=first.decides)
    names = [name for name in names if name in SHAPE]
    defined = [name for name in names if _defined(name, alone=alone)]
    return CollapseReport(
        dict.fromkeys(names, math.nan) | shape_values(defined, shape),
        first.moments,
        error=first.error if first.decides else math.nan,
        cross_entropy=first.cross_entropy if first.decides else math.nan,
        samples=first.samples,
        convention=settings.convention.name,
    )


def _warn_below_floor(nc1: float, dtype: torch.dtype | None) -> None:
    floor = NC1_FLOORS.get(dtype, 0.0) if dtype is not None else 0.0
    if 0 <= nc1 < floor:
        name = str(dtype).removeprefix("torch.")
        warn(
            f"nc1 has fallen below {floor:g}, where the rounding of {name} features decides it: "
            "give float32 features, or train with precision='32-true', to see further down",
            stacklevel=2,
        )


def shape_values(names: Iterable[str], shape: ClassGeometry) -> dict[str, float]:
    """Compute those of the metrics that the geometry decides."""
    return {name: SHAPE[name](shape) for name in names if name in SHAPE}


def _defined(name: str, *, alone: bool) -> bool:
    """Whether a metric is defined for the classes there are; of a single one hardly any is."""
    return (
        not alone or CATALOGUE[name].group in ("nc4", "diagnostics") or name == "feature_norm_mean"
    )
