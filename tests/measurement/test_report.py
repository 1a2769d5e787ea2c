"""The report: its names, what is absent, and that nobody changes it."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cases import BY_NAME, Case
from ncmonitor import CollapseReport, measure_collapse
from ncmonitor.catalogue import METRIC_NAMES, METRICS


def report_of(case: Case, **changes: Any) -> CollapseReport:
    given = {"weight": case.weight, "bias": case.bias, "num_classes": case.num_classes} | changes
    return measure_collapse(case.features, case.labels, **given)


@pytest.fixture(scope="module")
def report() -> CollapseReport:
    return report_of(BY_NAME["noisy"])


@pytest.mark.parametrize("name", ["noisy", "one_present", "all_equal"])
def test_with_a_classifier_the_keys_are_the_catalogue_in_its_order(name: str) -> None:
    assert tuple(report_of(BY_NAME[name]).as_dict()) == METRIC_NAMES


@pytest.mark.parametrize("name", ["noisy", "one_present"])
def test_without_a_classifier_the_order_is_still_that_of_the_catalogue(name: str) -> None:
    case = BY_NAME[name]
    logits = torch.zeros(len(case.labels), case.num_classes)
    absent = {q.name for q in METRICS if q.needs == "classifier"}
    got = report_of(case, weight=None, bias=None, logits=logits)
    assert tuple(got.as_dict()) == tuple(n for n in METRIC_NAMES if n not in absent)


def test_a_prefix_goes_before_every_name(report: CollapseReport) -> None:
    assert report.as_dict("nc/train/") == {
        f"nc/train/{name}": getattr(report, name) for name in METRIC_NAMES
    }


def test_the_dict_is_the_callers_own(report: CollapseReport) -> None:
    report.as_dict()["nc1"] = 7.0
    assert report.nc1 != 7
    given = {"nc1": 0.5}
    own = CollapseReport(given, report.moments)
    given["nc1"] = 0.7
    assert own.nc1 == 0.5


def test_what_was_not_measured_says_what_it_needs() -> None:
    bare = report_of(BY_NAME["no_classifier"])
    with pytest.raises(AttributeError, match=r"nc3_self_duality was not measured here.*weight"):
        _ = bare.nc3_self_duality
    with pytest.raises(AttributeError, match="'CollapseReport' object has no attribute 'nc5'"):
        _ = bare.nc5
    assert not hasattr(bare, "w_mean_ratio")


def test_nothing_in_it_can_be_changed(report: CollapseReport) -> None:
    for name in ("error", "values", "nc1", "new"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(report, name, 0.0)
    with pytest.raises(TypeError):
        report.values["nc1"] = 0.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del report.error


@pytest.mark.parametrize(
    "carry",
    [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy, dataclasses.replace],
    ids=["pickle", "copy", "deepcopy", "replace"],
)
def test_copies_hold_the_same_and_stay_frozen(
    carry: Callable[[CollapseReport], CollapseReport], report: CollapseReport
) -> None:
    copied = carry(report)
    assert copied == report
    assert copied.moments.class_means.equal(report.moments.class_means)
    with pytest.raises(TypeError):
        copied.values["nc1"] = 0.0  # type: ignore[index]


def test_reports_differ_when_a_number_does(report: CollapseReport) -> None:
    assert dataclasses.replace(report, error=0.25) != report
    assert dataclasses.replace(report, values={**report.values, "nc1": 9.0}) != report


def test_the_table_has_a_row_per_metric_and_what_it_means(report: CollapseReport) -> None:
    frame = report.to_frame()
    assert list(frame.columns) == [
        "metric", "value", "collapse", "group", "definition", "meaning", "source",
    ]  # fmt: skip
    assert tuple(frame["metric"]) == METRIC_NAMES
    assert frame["value"].tolist() == list(report.as_dict().values())
    assert frame.set_index("metric")["collapse"]["s_min_ratio"] == 1
    assert math.isnan(frame.set_index("metric")["collapse"]["nc1_rank"])


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [(torch.float64, "float64"), (torch.float32, "float32"), (torch.bfloat16, "bfloat16"),
     (torch.float16, "float16")],
)  # fmt: skip
def test_in_print_it_is_a_table_that_names_the_precision(dtype: torch.dtype, shown: str) -> None:
    case = BY_NAME["noisy"]
    text = str(measure_collapse(case.features.to(dtype), case.labels, case.weight, case.bias))
    lines = text.splitlines()
    assert lines[0].startswith("Neural collapse of 500 samples (per_class), error ")
    assert [line.split()[0] for line in lines[2:]] == list(METRIC_NAMES)
    assert ["feature_dtype", shown] in [line.split()[:2] for line in lines]


def test_undefined_is_printed_as_nan_and_the_fit_only_where_there_is_one() -> None:
    text = str(report_of(BY_NAME["no_classifier"], num_classes=6))
    assert "error" not in text.splitlines()[0]
    singletons = repr(report_of(BY_NAME["all_singletons"]))
    assert singletons.splitlines()[2].split()[:2] == ["nc1", "nan"]


def test_metrics_show_in_completion(report: CollapseReport) -> None:
    assert {*METRIC_NAMES, "as_dict", "to_frame", "moments", "error"} <= set(dir(report))
    assert "nc3_self_duality" not in dir(report_of(BY_NAME["no_classifier"]))
