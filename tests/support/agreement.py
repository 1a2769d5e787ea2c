"""The fast code and its naive twin on the same case, and what counts as agreement."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cases import Case
from ncmonitor import CollapseReport, measure_collapse
from ncmonitor.catalogue import FIT_NAMES, METRIC_NAMES
from reference import ambiguous_share, reference_metrics
from reference_optional import optional_metrics

#: Shares of samples: rounding may flip a sample between two near-equal candidates, nothing else.
DECISIONS = {"nc4_disagreement", "ncc_accuracy", "error"}

#: float32: the promise that it is exact (docs/design.md). float64: the twin's own hard cases lose
#: seven digits.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-9}

#: NC1 falls with the square of the spread, 1e-20 at spread 1e-10, so that an absolute tolerance
#: fit for distances would accept anything there. 1e-28 is the square of float64 rounding.
QUADRATIC = (
    *("nc1", "nc1_quotient", "nc1_cdnv", "nc1_cdnv_directional", "vci", "separation_fuzziness"),
    *("mse_l_nc1", "mse_l_nc23"),
)
ABSOLUTE = dict.fromkeys(QUADRATIC, 1e-28)
ABSOLUTE_ELSEWHERE = 1e-12


def array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()


def flat(report: CollapseReport) -> dict[str, float]:
    """Metrics and, where something decides, error and cross-entropy, as the twin returns them."""
    values = {name: value for name, value in report.as_dict().items() if "/" not in name}
    if not math.isnan(report.error):
        values |= {"error": report.error, "cross_entropy": report.cross_entropy}
    return values


def fast(case: Case, **changes: Any) -> dict[str, float]:
    given: dict[str, Any] = {"features": case.features, "labels": case.labels}
    given |= {"weight": case.weight, "bias": case.bias, "num_classes": case.num_classes}
    return flat(measure_collapse(**(given | changes)))


def naive(case: Case, *, metrics: str = "default", **changes: Any) -> dict[str, float]:
    given = {"features": array(case.features), "labels": array(case.labels)}
    given |= {"weight": array(case.weight), "bias": array(case.bias)} | changes
    values = reference_metrics(**given)
    given.pop("logits", None)
    values |= optional_metrics(**given)
    kept = {*METRIC_NAMES, *FIT_NAMES} if metrics == "default" else set(values)
    return {name: value for name, value in values.items() if name in kept}


def unsure(case: Case, **changes: Any) -> float:
    given = {"features": array(case.features), "labels": array(case.labels)}
    given |= {"weight": array(case.weight), "bias": array(case.bias)}
    return ambiguous_share(**(given | changes))


def assert_agree(
    got: Mapping[str, float],
    want: Mapping[str, float],
    *,
    rtol: float,
    unsure: float = 0.0,
    loose: Mapping[str, float] | None = None,
) -> None:
    """Same names, nan at the same places, numbers within tolerance.

    Args:
        got: From the fast code.
        want: From the twin.
        rtol: Relative tolerance.
        unsure: Share of samples on which rounding may decide.
        loose: Relative tolerances of single names, each explained by the caller.
    """
    assert set(got) == set(want)
    undefined = {name for name, value in want.items() if math.isnan(value)}
    assert {name for name, value in got.items() if math.isnan(value)} == undefined
    below_rank = want["nc1_rank"] < want["n_classes_present"] - 1
    for name in set(want) - undefined:
        if name in DECISIONS:
            assert abs(got[name] - want[name]) <= unsure + 1e-15, name
            continue
        atol = ABSOLUTE.get(name, ABSOLUTE_ELSEWHERE)
        if name == "s_min_ratio" and below_rank:
            atol = 1e-9  # a direction below the rank is rounding of the features: 1e-10 here
        torch.testing.assert_close(
            torch.tensor(got[name], dtype=torch.float64),
            torch.tensor(want[name], dtype=torch.float64),
            rtol=(loose or {}).get(name, rtol),
            atol=atol,
            msg=functools.partial("{}: {}".format, name),
        )
