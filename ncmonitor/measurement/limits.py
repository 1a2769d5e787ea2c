"""What theory leaves of NC2 and NC3 at full collapse, for these class sizes in this dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.geometry.vectors import GramSpectrum, Span
from ncmonitor.inputs.conventions import Convention, convention_named
from ncmonitor.measurement.class_geometry import weighted_sum
from ncmonitor.measurement.report import PER_CLASS_KEYS, CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.metrics import SHAPE
from ncmonitor.metrics.arguments import ClassGeometry, class_weights
from ncmonitor.metrics.minority import SELI_CLASSES
from ncmonitor.theory import cosine_std_floor, etf_distance_floor, seli_grams

#: The geometry of class means and classifier alone decides these.
_NAMES: Final = tuple(
    q.name
    for q in CATALOGUE.values()
    if q.group in ("nc2", "nc3") and q.name in SHAPE and q.name != "nc_bias"
)


#: Of these K vectors reach the value of a simplex ETF in every dimension.
_ATTAINED: Final = ("nc2_equinorm_", "nc3_self_duality", "nc3_cos_mean", "gnc3_align")


class Limits(NamedTuple):
    """Where collapse ends.

    Attributes:
        values: By metric; a metric of which theory knows nothing here is left out.
        cause: What keeps some of them from their value at a simplex ETF: ``"class sizes"`` or
            ``"feature dimension"``; ``None`` if nothing does.
    """

    values: dict[str, float]
    cause: Literal["class sizes", "feature dimension"] | None


def collapse_limits(
    counts: Sequence[int] | Tensor,
    dim: int,
    convention: str = "per_class",
    metrics: Iterable[str] | None = None,
) -> Limits:
    """Return what NC2 and NC3 tend to under cross-entropy, rather than 0, for these classes.

    Unequal class sizes, K ≤ d + 1: the values at the SELI geometry, the limit of cross-entropy with
    unconstrained features as the weight decay vanishes. It is what full collapse looks like, not a
    lower bound: a network on its way, or under strong decay, may lie below one of them.

    K > d + 1: lower bounds. That of the distance to the ETF holds for any vectors; the spread of
    the cosines is that of centred vectors of one length (Welch) and is given for equal sizes only.
    Nothing is known of the maximal angle.

    Args:
        counts: Samples per class, ``(K,)``; classes without any are left out, as the metrics do.
        dim: Feature dimension d.
        convention: As in :func:`~ncmonitor.measurement.measure.measure_collapse`.
        metrics: Those wanted; ``None``: every default one of NC2 and NC3.

    Returns:
        Nothing for fewer than two classes, or unequal sizes of more than 2048. Cost K³ for unequal
        sizes.

    Source: Thrampoulidis, Kini, Vakilian & Behnia 2022; see :mod:`ncmonitor.theory`.
    """
    sizes = torch.as_tensor(counts).detach().cpu().double()
    sizes = sizes[sizes > 0]
    names = [name for name in _NAMES if (metrics is None and CATALOGUE[name].default)]
    if metrics is not None:
        names = [name for name in _NAMES if name in set(metrics)]
    classes = len(sizes)
    if classes < 2:
        return Limits({}, None)
    equal = bool((sizes == sizes[0]).all())
    if classes > dim + 1:
        bounds = _bounds(names, classes, dim, equal=equal)
        return Limits(bounds, "feature dimension" if bounds else None)
    if equal:
        return Limits(_ideal(names), None)
    if classes > SELI_CLASSES:
        return Limits({}, None)
    return Limits(_at_seli(names, sizes, convention_named(convention)), "class sizes")


def _ideal(names: Iterable[str]) -> dict[str, float]:
    found = {name: CATALOGUE[name].collapse for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _bounds(names: Iterable[str], classes: int, dim: int, *, equal: bool) -> dict[str, float]:
    found = _ideal(n for n in names if equal and n.startswith(_ATTAINED))
    for name in names:
        if name.startswith("nc2_etf_"):
            found[name] = etf_distance_floor(classes, dim)
        elif name.startswith("nc2_equiangular_std_") and equal:
            found[name] = cosine_std_floor(classes, dim)
    return found


def _at_seli(names: Iterable[str], sizes: Tensor, convention: Convention) -> dict[str, float]:
    """Measure the SELI geometry itself, as a network's would be."""
    values, vectors = torch.linalg.eigh(seli_grams(sizes)[0])
    values, vectors = values[1:].sqrt(), vectors[:, 1:]  # the first is 0, along 1
    rows, means = GramSpectrum.of(vectors * values), GramSpectrum.of(vectors / values)
    shares = class_weights(sizes, samples=convention.sample_between)
    centred = means.vectors.minus(weighted_sum(means.vectors, shares))
    nothing = torch.zeros(len(sizes), dtype=torch.float64)
    shape = ClassGeometry(
        convention=convention,
        counts=sizes,
        variances=nothing,
        feature_norms=means.vectors.norms,
        means=means,
        centred=centred,
        span=Span.of(centred, 0.0),
        classifier=rows,
        constant=nothing,
        bias=nothing,
        origin=torch.zeros(means.vectors.dim, dtype=torch.float64),
        blocks=None,
        neg_clips=0,
        feature_dtype=torch.float64,
    )
    return {name: SHAPE[name](shape) for name in names}


def class_facts(train: CollapseReport, settings: Settings) -> dict[str, Any]:
    """Describe the classes of the training set, and what theory leaves of NC2 and NC3 for them.

    Args:
        train: Any report of the training set: its class sizes are those of all ranks.
        settings: The run's.

    Returns:
        ``class_sizes``, above 100 classes the smallest and the largest one alone; ``limits`` by
        metric and ``limits_from``, as in :class:`Limits`.
    """
    counts = train.moments.counts.tolist()
    limits = collapse_limits(counts, train.moments.dim, settings.convention.name, settings.names)
    ends = {"min": min(counts), "max": max(counts)}
    return {
        "class_sizes": counts if len(counts) <= PER_CLASS_KEYS else ends,
        "limits": limits.values,
        "limits_from": limits.cause,
    }
