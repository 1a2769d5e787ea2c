"""From the first look to a report: geometry, the second look, and every metric asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ncmonitor import geometry
from ncmonitor.bank import Entry
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.centres import Centres
from ncmonitor.classifier import Classifier
from ncmonitor.companions import Companion, Directional, Fuzziness, Margin, Scatter
from ncmonitor.geometry import Frame, Span, Vectors
from ncmonitor.looks import FirstLook, SecondLook
from ncmonitor.metrics import SHAPE, SPREAD, Shape, Spread, applicable, class_weights
from ncmonitor.metrics.total import SquaredLoss, Total, squared_loss
from ncmonitor.moments import ClassMoments
from ncmonitor.report import CollapseReport
from ncmonitor.settings import Settings

_LOSS = ("mse_l_nc1", "mse_l_nc23", "mse_l_perp", "central_path_dist")
_SECOND_MOMENTS = ("vci", "entropy_rank_total", "numerical_rank", *_LOSS)


def evaluate(
    first: FirstLook,
    entries: Iterable[Entry],
    reference: ClassMoments | None,
    settings: Settings,
) -> CollapseReport:
    """Compute the report of a stream that the first look has seen.

    Args:
        first: That look.
        entries: The same stream again, as :meth:`FirstLook.update` returned it.
        reference: Moments whose class means decide the nearest class; ``None``: the split's own.
        settings: What to compute.
    """
    classifier = first.classifier is not None
    names = applicable(settings.names, classifier=classifier, decisions=first.decides)
    shape = shape_of(first, settings)
    alone = len(shape.counts) < 2
    values = dict.fromkeys(names, math.nan)
    values |= {n: SHAPE[n](shape) for n in names if n in SHAPE and _defined(n, alone=alone)}
    companions, second = _prepare(first, shape, reference, settings)
    spread = _Spreads(shape, settings)
    del shape  # many classes leave no room for it beside the second look
    for entry in entries:
        second.update(*entry)
    result = spread.of(second, companions, decides=first.decides)
    values |= {n: SPREAD[n](result) for n in names if n in SPREAD and _defined(n, alone=alone)}
    per_class = torch.full((first.moments.num_classes,), torch.nan, dtype=torch.float64)
    if not result.undefined:
        per_class[second.own.present.cpu()] = result.whitened
    return CollapseReport(
        {name: value for name, value in values.items() if not CATALOGUE[name].vector},
        first.moments,
        error=first.error if first.decides else math.nan,
        cross_entropy=first.cross_entropy if first.decides else math.nan,
        samples=first.samples,
        convention=settings.convention.name,
        vectors={"nc1_per_class": per_class} if "nc1_per_class" in names else {},
    )


def _defined(name: str, *, alone: bool) -> bool:
    """Whether a metric is defined for the classes there are; of a single one hardly any is."""
    return (
        not alone or CATALOGUE[name].group in ("nc4", "diagnostics") or name == "feature_norm_mean"
    )


# -- the geometry ----------------------------------------------------------------------------------


def shape_of(first: FirstLook, settings: Settings) -> Shape:
    """Return the geometry of the present classes."""
    moments, classifier = first.moments, first.classifier
    present = present_classes(moments)
    means, span, origin = mean_frame(moments, present)
    counts = moments.counts.cpu()[present].double()
    centred = means.centred
    if settings.convention.sample_between:
        shares = counts / counts.sum()
        centred = means.vectors.minus(_weighted_sum(means.vectors, shares))
        span = _weighted_span(centred, counts, means.resolution)
    rows = constant = bias = blocks = None
    if classifier is not None:
        rows = Frame.of(_rows_of(classifier, present))
        constant = classifier.at(origin + means.mean)[present]
        bias = classifier.bias[present]
    if settings.superclasses is not None:
        settings.check_classes(moments.num_classes)
        blocks = torch.tensor(settings.superclasses)[present]
    assert moments.feature_dtype is not None  # set by the first sample
    return Shape(
        convention=settings.convention,
        counts=counts,
        variances=moments.class_variances.cpu()[present],
        feature_norms=moments.feature_norms.cpu()[present],
        means=means,
        centred=centred,
        span=span,
        classifier=rows,
        constant=constant,
        bias=bias,
        origin=origin,
        blocks=blocks,
        neg_clips=moments.neg_clips,
        feature_dtype=moments.feature_dtype,
    )


def present_classes(moments: ClassMoments) -> Tensor:
    """Return the indices of the classes that have samples, on the CPU."""
    return (moments.counts > 0).nonzero().squeeze(1).cpu()


def _rows_of(classifier: Classifier, present: Tensor) -> Tensor:
    weight = classifier.weight.cpu()
    return weight if len(present) == len(weight) else weight[present]


def mean_frame(moments: ClassMoments, present: Tensor) -> tuple[Frame, Span, Tensor]:
    """Return the frame of the present classes' means, their span, and what they are relative to.

    Means are given relative to the first class's reference point, which takes a large common
    offset out exactly: references are numbers of the features' own precision.

    Args:
        moments: Of any split.
        present: Indices of the classes that have samples, ``(K_S,)``.
    """
    assert moments.feature_dtype is not None  # set by the first sample
    origin = moments.references[int(present[0])].cpu().double()
    rows = torch.empty(len(present), moments.dim, dtype=torch.float64)
    square_norms = moments.class_variances.cpu()[present]
    for start in range(0, len(present), geometry.BLOCK_ROWS):
        part = slice(start, start + geometry.BLOCK_ROWS)
        rows[part] = moments.means_about(origin, present[part])
        square_norms[part] += (rows[part] + origin).square().sum(1)
    # Not divided by the root of a class's count: samples that have collapsed to the rounding step
    # all round alike, so the rounding of their mean does not average out.
    unit = torch.finfo(moments.feature_dtype).eps
    resolution = unit * math.sqrt(float(square_norms.mean()))
    vectors = Vectors(rows)
    mean = vectors.sum / len(vectors)
    span = Span.of(vectors.minus(mean), resolution)
    return Frame(vectors, mean, span.singular_values, resolution), span, origin


def _weighted_sum(vectors: Vectors, weights: Tensor) -> Tensor:
    return torch.stack([weights[part] @ block for part, block in vectors.blocks()]).sum(0)


def _weighted_span(centred: Vectors, counts: Tensor, resolution: float) -> Span:
    """Return the span of means about the sample mean, class c weighing n_c/N in Σ_B."""
    return Span.of(centred.scaled((len(counts) * counts / counts.sum()).sqrt()), resolution)


# -- the second look -------------------------------------------------------------------------------


@dataclass
class _Companions:
    """What was asked for beyond the default, or ``None``."""

    scatter: Scatter | None = None
    directional: Directional | None = None
    fuzziness: Fuzziness | None = None
    margin: Margin | None = None

    @property
    def absorbing(self) -> list[Companion]:
        """Those that take in residuals."""
        every = (self.scatter, self.directional, self.fuzziness)
        return [companion for companion in every if companion is not None]


def _prepare(
    first: FirstLook, shape: Shape, reference: ClassMoments | None, settings: Settings
) -> tuple[_Companions, SecondLook]:
    moments = first.moments
    own = train = Centres(moments, shape.means, shape.span, present_classes(moments))
    if reference is not None:
        reference, seen = reference.to(own.device), present_classes(reference)
        means, span, _ = mean_frame(reference, seen)
        train = Centres(reference, means, span, seen)
        train_flat = means.flat
    else:
        train_flat = shape.flat
    found = _Companions()
    if settings.asks(*_SECOND_MOMENTS):
        found.scatter = Scatter(moments.counts, moments.dim, own.device)
    several = len(shape.counts) > 1 and not shape.flat
    if settings.asks("nc1_cdnv_directional") and several:
        found.directional = Directional(
            own, shape.means.centred, shape.span, shape.means.resolution
        )
    if settings.asks("separation_fuzziness") and several:
        average = _weighted_sum(shape.means.vectors, class_weights(shape.counts, samples=True))
        centred = shape.means.vectors.minus(average)
        weighted = _weighted_span(centred, shape.counts, shape.means.resolution)
        found.fuzziness = Fuzziness(own, shape.span, weighted, first.samples)
    if settings.asks("ncc_margin") and not train_flat:
        found.margin = Margin(train)
    look = SecondLook(moments.num_classes, own, train, found.absorbing, found.margin)
    return found, look


class _Spreads:
    """What a :class:`Spread` takes from the geometry; without the class means where it can be.

    Args:
        shape: The geometry.
        settings: What to compute.
    """

    def __init__(self, shape: Shape, settings: Settings) -> None:
        self._convention, self._counts = shape.convention, shape.counts
        self._variances, self._rank = shape.variances, shape.span.rank
        self._shape = shape if settings.asks(*_SECOND_MOMENTS) else None
        self._loss, self._ridge = settings.asks(*_LOSS), settings.ridge

    def of(self, second: SecondLook, companions: _Companions, *, decides: bool) -> Spread:
        """Return what the second look has found."""
        present = second.own.present.cpu()
        moments = self._moments(companions.scatter)
        directional, fuzziness = companions.directional, companions.fuzziness
        margin = companions.margin
        return Spread(
            convention=self._convention,
            counts=self._counts,
            variances=self._variances,
            rank=self._rank,
            whitened=second.whitened[present] / self._counts,
            in_span=second.in_span[present] / self._counts,
            accuracy=second.accuracy,
            disagreement=second.disagreement if decides else math.nan,
            margin=math.nan if margin is None else margin.median,
            directional=None if directional is None else directional.per_class,
            fuzziness=math.nan if fuzziness is None else fuzziness.value,
            second_moments=moments,
            loss=self._squared_loss(moments),
        )

    def _moments(self, scatter: Scatter | None) -> Total | None:
        shape = self._shape
        if scatter is None or shape is None:
            return None
        centred, resolution = shape.means.centred, shape.means.resolution
        weighted = shape.convention.sample_between
        span = Span.of(centred, resolution) if weighted else shape.span
        return Total(scatter.covariance, centred, span, resolution)

    def _squared_loss(self, moments: Total | None) -> SquaredLoss | None:
        shape = self._shape
        if not self._loss or moments is None or shape is None or shape.flat:
            return None
        if shape.classifier is None or shape.constant is None or shape.bias is None:
            return None
        mean = shape.origin + shape.means.mean
        weight = shape.rows.vectors.all()
        return squared_loss(moments, weight, shape.constant, shape.bias, mean, self._ridge)
