"""The geometry of class means and classifier, from the sums of the first pass."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ncmonitor.geometry import vectors as geometry
from ncmonitor.geometry.vectors import GramSpectrum, Span, Vectors
from ncmonitor.measurement.settings import Settings
from ncmonitor.metrics.arguments import ClassGeometry
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.passes import FirstPass


def shape_of(first: FirstPass, settings: Settings) -> ClassGeometry:
    """Return the geometry of the present classes."""
    moments, classifier = first.moments, first.classifier
    present = present_classes(moments)
    means, span, origin = mean_frame(moments, present)
    counts = moments.counts.cpu()[present].double()
    centred = means.centred
    if settings.convention.sample_between:
        shares = counts / counts.sum()
        centred = means.vectors.minus(weighted_sum(means.vectors, shares))
        span = weighted_span(centred, counts, means.resolution)
    rows = constant = bias = blocks = None
    if classifier is not None:
        rows = GramSpectrum.of(_rows_of(classifier, present))
        constant = classifier.at(origin + means.mean)[present]
        bias = classifier.bias[present]
    if settings.superclasses is not None:
        settings.check_classes(moments.num_classes)
        blocks = torch.tensor(settings.superclasses)[present]
    assert moments.feature_dtype is not None  # set by the first sample
    return ClassGeometry(
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


def mean_frame(moments: ClassMoments, present: Tensor) -> tuple[GramSpectrum, Span, Tensor]:
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
        rows[part] = moments.sums.means_about(origin, present[part])
        square_norms[part] += (rows[part] + origin).square().sum(1)
    # Not divided by the root of a class's count: samples that have collapsed to the rounding step
    # all round alike, so the rounding of their mean does not average out.
    unit = torch.finfo(moments.feature_dtype).eps
    resolution = unit * math.sqrt(float(square_norms.mean()))
    mean = Vectors(rows).sum / len(rows)
    centred = Vectors(rows.sub_(mean))  # in place: what reads them most needs no copy
    span = Span.of(centred, resolution)
    vectors = centred.minus(-mean)
    return GramSpectrum(vectors, mean, centred, span.singular_values, resolution), span, origin


def weighted_sum(vectors: Vectors, weights: Tensor) -> Tensor:
    """Return ``Σ w_c v_c``, ``(d,)``."""
    return torch.stack([weights[part] @ block for part, block in vectors.blocks()]).sum(0)


def weighted_span(centred: Vectors, counts: Tensor, resolution: float) -> Span:
    """Return the span of means about the sample mean, class c weighing n_c/N in Σ_B."""
    span = Span.of(centred.scaled((len(counts) * counts / counts.sum()).sqrt()), resolution)
    return replace(span, coordinates=None)  # they are of the weighted means
