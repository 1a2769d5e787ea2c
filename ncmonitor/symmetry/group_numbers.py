"""Every number of one layer: under one group, along one flow, and as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.measurement.measure import measure_collapse
from ncmonitor.symmetry.equivariance import fit_equivariance
from ncmonitor.symmetry.groups.group import IDENTITY, Flow, Group
from ncmonitor.symmetry.invariance import FeatureInvariance, PredictionInvariance
from ncmonitor.symmetry.lie import LieError
from ncmonitor.symmetry.orbits import OrbitReport, measure_orbits
from ncmonitor.symmetry.rows import OF_ELEMENTS, OF_FLOWS

#: Numbers by element, then by name; those of the whole group under ``""``.
Values = dict[str, dict[str, float]]

_OF_FEATURES: Final = ("inv_error", "equiv_r2")
_OF_ORBITS: Final = ("orbit_share", "orbit_quot", "orbit_nc1", "between_nc1", "nc1_aug")
_OF_WHOLE_ORBITS: Final = ("acc_orbit_mean", "acc_orbit_worst")
_OF_LAW: Final = ("group_law", "group_law_scaled")


def group_values(
    group: Group, features: Tensor, logits: Tensor | None, labels: Tensor, num_classes: int
) -> tuple[Values, str | None]:
    """Return every number of one layer under one group.

    Args:
        group: Of m elements.
        features: ``(m, N, d)``, the identity first.
        logits: ``(m, N, K)``; ``None`` for an inner layer.
        labels: ``(N,)``.
        num_classes: K.

    Returns:
        The numbers by element, and of the group under ``""``, named as in the catalogue; and why
        linear equivariance is ``nan``, if it is.

    Raises:
        MeasurementError: If a feature or logit is not finite.
    """
    mask = torch.stack([group.keeps(name, labels) for name in group.names])
    for what, rows in (("features", features), ("logits", logits)):
        if rows is not None and not bool(rows.isfinite().all()):
            raise MeasurementError(f"{what} under {group.name} are not finite")
    table = group.table
    equivariance = fit_equivariance(features, mask, table)
    columns = {"inv_error": FeatureInvariance().update(features, mask).errors}
    of_group = {}
    if logits is not None:
        answers = PredictionInvariance().update(logits, labels, mask)
        columns |= {
            "inv_error_logits": answers.logit_errors,
            "pred_consistency": answers.consistency,
            "tv": answers.total_variation,
            "acc": answers.accuracy,
            "acc_drop": answers.accuracy_drop,
        }
        of_group = {"acc_orbit_mean": answers.orbit_mean, "acc_orbit_worst": answers.orbit_worst}
    columns["equiv_r2"] = equivariance.r2
    orbits = _orbits(group, features, labels, mask, num_classes)
    found = {name: _average(column[1:].tolist()) for name, column in columns.items()} | of_group
    found |= {name: getattr(orbits, name) for name in _OF_ORBITS}
    if table is not None:
        found["group_law"] = equivariance.group_law
        found["group_law_scaled"] = equivariance.group_law_scaled
    own = {
        name: {column: float(values[g]) for column, values in columns.items()}
        for g, name in enumerate(group.names)
        if name != IDENTITY
    }
    return {"": found, **own}, equivariance.reason


def _orbits(
    group: Group, features: Tensor, labels: Tensor, mask: Tensor, num_classes: int
) -> OrbitReport:
    if not group.drawn:
        return measure_orbits([(features, labels, mask)], num_classes)
    # The identity was not drawn.
    if len(group) < 3:
        raise InputError(
            f"group {group.name!r} is a random choice of one transform, which has no variance: "
            "draw at least two"
        )
    return measure_orbits([(features[1:], labels, mask[1:])], num_classes, "shared")


def flow_value(flow: Flow, ahead: Tensor, back: Tensor, plain: Tensor, *, centre: bool) -> float:
    """Return the Lie derivative's error from the outputs a step ahead and a step back.

    Args:
        flow: The flow.
        ahead: ``(N, d)``.
        back: ``(N, d)``.
        plain: ``(N, d)``, of the samples as they are.
        centre: Whether they are logits, of which softmax sees no more than differences.

    Raises:
        MeasurementError: If one is not finite.
    """
    if not bool(ahead.isfinite().all() and back.isfinite().all()):
        raise MeasurementError(f"outputs under {flow.name} are not finite")
    unit = FeatureInvariance(centre=centre).update(plain[None])
    if centre:
        ahead, back = (x - x.mean(1, keepdim=True) for x in (ahead.double(), back.double()))
    return LieError(flow.step).update(ahead, back).value(unit.total_variance)


def plain_values(
    features: Tensor, logits: Tensor | None, labels: Tensor, num_classes: int
) -> dict[str, float]:
    """Return class collapse and accuracy of the samples as they are; as :func:`group_values`."""
    report = measure_collapse(features, labels, num_classes=num_classes)
    found = {"nc1": report.nc1, "nc1_quotient": report.nc1_quotient}
    if logits is not None:
        found["acc"] = float((logits.argmax(1) == labels).double().mean())
    return found


def _average(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def nothing(each: Group | Flow | None, *, logits: bool) -> Values:
    """Return the same numbers, all ``nan``, as after a measurement that has failed.

    Args:
        each: Whose; ``None``: of the samples as they are.
        logits: Whether there are logits.
    """
    if each is None:
        return {"": dict.fromkeys(("nc1", "nc1_quotient", "acc")[: 2 + logits], math.nan)}
    if isinstance(each, Flow):
        return {"": dict.fromkeys(OF_FLOWS[: 1 + logits], math.nan)}
    own = OF_ELEMENTS if logits else _OF_FEATURES
    whole = (*own, *_OF_ORBITS, *(_OF_WHOLE_ORBITS if logits else ()))
    whole = (*whole, *(_OF_LAW if each.closed else ()))
    elements = {name: dict.fromkeys(own, math.nan) for name in each.names[1:]}
    return {"": dict.fromkeys(whole, math.nan), **elements}
