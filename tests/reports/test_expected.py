"""A run against its recipe's expectation: every word of the verdict, in both directions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from histories import collapse, collapse_rows
from ncmonitor import InputError
from ncmonitor.monitor.history import start_history
from ncmonitor.monitor.provenance import CONFIG_FILE
from ncmonitor.reports.expect import ExpectedBounds, read_expectation
from ncmonitor.reports.expected import Finding, at_floor, cause_of, closing, findings, limits_of

FLOOR = 0.1
RUN: dict[str, Any] = {
    "measurement": {"limits": {"nc2_etf_means": FLOOR}, "limits_from": "class sizes"}
}


def history(epochs: int = 60, **values: float) -> pd.DataFrame:
    """Return a run whose last epoch has these values; ``val__error``: of another split."""
    table = collapse(range(epochs + 1), exits=(), failed=())
    for key, value in values.items():
        split, _, name = key.rpartition("__")
        table.loc[table["epoch"].eq(epochs) & table["split"].eq(split or "train"), name] = value
    return table


def find(expect: dict[str, Any], table: pd.DataFrame, run: dict[str, Any] | None = None) -> Finding:
    """Return the finding of the one metric that is expected."""
    expectation = ExpectedBounds.of({"epoch": 60, **expect})
    [found] = [f for f in findings(table, run or {}, expectation) if f.bounds]
    return found


def words(expect: dict[str, Any], run: dict[str, Any] | None = None, **values: float) -> str:
    return find(expect, history(60, **values), run).words


# -- the vocabulary --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.0034, "collapsed as expected"),
        (0.0035, "collapsed as expected"),
        (0.0036, "not as far as expected"),
        (math.inf, "not as far as expected"),
        (math.nan, "undefined (nan)"),
    ],
)
def test_a_metric_of_collapse_is_held_against_its_bound(value: float, verdict: str) -> None:
    assert words({"nc1": 0.0035}, nc1=value) == verdict
    assert words({"nc1": [None, 0.0035]}, nc1=value) == verdict
    assert words({"val/nc1": 0.0035}, val__nc1=value) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.9, "collapsed as expected"), (0.8, "not as far as expected")],
)
def test_where_collapse_is_one_the_bound_is_the_least(value: float, verdict: str) -> None:
    assert words({"nc3_cos_mean": [0.85, None]}, nc3_cos_mean=value) == verdict


@pytest.mark.parametrize(
    ("expect", "value", "verdict"),
    [
        ({"val/error": 0.05}, 0.05, "as expected"),
        ({"val/error": 0.05}, 0.06, "outside the expected range"),
        ({"val/error": [0.01, 0.02]}, 0.015, "as expected"),
        ({"val/error": [0.01, 0.02]}, 0.009, "outside the expected range"),
    ],
)
def test_an_error_is_no_collapse(expect: dict[str, Any], value: float, verdict: str) -> None:
    assert words(expect, val__error=value) == verdict


@pytest.mark.parametrize(
    ("expect", "value", "verdict"),
    [
        ([0.1, None], 0.3, "as expected"),
        ([0.1, None], 0.01, "outside the expected range"),
        ([0.1, 0.4], 0.3, "as expected"),
        ([0.1, 0.4], 0.5, "outside the expected range"),
    ],
)
def test_what_is_expected_not_to_collapse_is_a_range(
    expect: list[float | None], value: float, verdict: str
) -> None:
    assert words({"nc1": expect}, nc1=value) == verdict


def test_shuffled_labels_do_not_collapse_even_within_a_bound() -> None:
    table = pd.concat([history(), history().query("split == 'train'").assign(split="null")])
    assert find({"null/nc1": 1.0}, table).words == "as expected"


def test_before_the_expected_epoch_it_is_too_early_whatever_the_value() -> None:
    for value in (0.0001, 5.0):
        found = find({"nc1": 0.0035}, history(3, nc1=value))
        assert found.words == "too early to say (epoch 3 of 60)"
        assert (found.epoch, found.value, found.trouble) == (3, value, False)


def test_a_longer_run_is_judged_at_the_expected_epoch() -> None:
    table = history(80, nc1=5.0)
    table.loc[table["epoch"].eq(60) & table["split"].eq("train"), "nc1"] = 0.003
    found = find({"nc1": 0.0035}, table)
    assert (found.epoch, found.value, found.words) == (60, 0.003, "collapsed as expected")


def test_an_epoch_that_was_not_measured_is_judged_by_the_one_before() -> None:
    table = history(80, nc1=5.0).query("epoch not in (59, 60)")
    found = find({"nc1": 100.0}, table)
    assert (found.epoch, found.words) == (58, "collapsed as expected")


@pytest.mark.parametrize("key", ["test/error", "minority_cos", "val/nc2_etf_w", "val/tpt_exits"])
def test_what_was_never_measured_is_said_to_be_so(key: str) -> None:
    found = find({key: [0, 1]}, history())
    assert (found.words, found.epoch, found.text) == ("not measured", None, "–")
    assert found.trouble


@pytest.mark.parametrize(
    ("cause", "named"),
    [("class sizes", "these class sizes"), ("feature dimension", "this feature dimension")],
)
def test_at_the_floor_what_was_expected_comes_second(cause: str, named: str) -> None:
    run = {"measurement": RUN["measurement"] | {"limits_from": cause}}
    verdict = f"collapsed to the limit of {named}"
    for most in (0.05, 0.5):  # expected less than can be had, and more
        assert words({"nc2_etf_means": most}, run, nc2_etf_means=1.2 * FLOOR) == verdict
    assert words({"nc2_etf_means": 0.5}, run, nc2_etf_means=1.3 * FLOOR) == "collapsed as expected"
    assert (
        words({"nc2_etf_means": 0.05}, run, nc2_etf_means=1.3 * FLOOR) == "not as far as expected"
    )


def test_the_floor_is_one_of_the_training_set() -> None:
    found = find({"val/nc2_etf_means": 0.05}, history(val__nc2_etf_means=FLOOR), RUN)
    assert found.words == "not as far as expected"
    assert math.isnan(found.floor)


@pytest.mark.parametrize(
    ("value", "floor", "start", "there"),
    [
        (0.125, 0.1, 0.75, True),
        (0.126, 0.1, 0.75, False),
        (0.05, 0.1, 0.75, True),  # it is no lower bound
        (1.20, 1.17, 1.30, True),
        (1.21, 1.17, 1.30, False),  # 3 % above, yet not three quarters of the way
        (0.1, 0.1, 0.09, False),  # it began below
        (0.1, 0.1, math.nan, False),  # where it began is not known
        (0.0, 0.0, 0.75, False),  # no floor
        (0.1, math.nan, 0.75, False),
    ],
)
def test_at_the_floor_is_near_it_and_far_from_the_start(
    value: float, floor: float, start: float, there: bool
) -> None:
    assert at_floor(value, floor, start) is there


def test_each_property_has_a_finding_in_order_and_the_rest_follows() -> None:
    expectation = ExpectedBounds.of(
        {"epoch": 60, "val/error": 0.05, "nc4_disagreement": 0, "nc2_etf_w": 0.1, "val/nc1": 1}
    )
    found = findings(history(), RUN, expectation)
    keys = [each.bounds.key for each in found]
    assert keys == [
        *("val/nc1", "nc1", "nc2_etf_w", "nc3_self_duality", "nc4_disagreement", "val/error")
    ]
    assert found[1].words == found[3].words == "nothing expected"
    assert not found[1].trouble


def test_a_finding_shows_the_start_and_what_shuffled_labels_give() -> None:
    null = history().query("split == 'train'").assign(split="null", nc1=7.0)
    table = pd.concat([history(nc1=0.001), null])
    found = find({"nc1": 0.0035}, table)
    start = float(table.query("epoch == 0 and split == 'train'")["nc1"].iloc[0])
    assert (found.value, found.start, found.null) == (0.001, start, 7.0)
    assert math.isnan(find({"nc1": 0.0035}, history()).null)
    assert math.isnan(find({"nc1": 0.0035}, table.query("epoch > 0")).start)
    assert find({"nc1": 0.0035}, table).left == 0.0  # whatever the class sizes
    assert math.isnan(find({"nc2_etf_w": 0.0035}, table).left)


def test_floors_that_are_no_numbers_are_not_there() -> None:
    odd = {"nc1": "x", "nc2_etf_w": math.nan, "nc2_etf_means": True, "nc3_self_duality": 0.2}
    assert limits_of({"measurement": {"limits": odd}}) == {"nc3_self_duality": 0.2}
    for run in ({}, {"measurement": 3}, {"measurement": {"limits": [1]}}):
        assert limits_of(run) == {}
    assert cause_of({}) == "these class sizes"


# -- the option ------------------------------------------------------------------------------------


def test_the_option_is_read_by_split_and_metric() -> None:
    option = {"epoch": 60, "nc1": 0.1, "val/error": [0, 1], "train/layer/b.3/nc1": [0.5, None]}
    expectation = ExpectedBounds.of(option | {"val/nc1_per_class/3": 2})
    assert expectation.epoch == 60
    assert [tuple(each) for each in expectation.bounds] == [
        ("train", "nc1", None, 0.1),
        ("val", "error", 0.0, 1.0),
        ("train/layer/b.3", "nc1", 0.5, None),
        ("val", "nc1_per_class/3", None, 2.0),
    ]
    assert [str(each) for each in expectation.bounds[:3]] == ["≤ 0.1", "0 to 1", "≥ 0.5"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (3, "must be a dict"),
        ({"nc1": 1}, "expect.epoch must be a number of completed epochs, but it is missing"),
        ({"epoch": -1, "nc1": 1}, "got -1"),
        ({"epoch": True, "nc1": 1}, "got True"),
        ({"epoch": 60.0, "nc1": 1}, "got 60.0"),
        ({"epoch": 60}, "names no metric"),
        ({"epoch": 60, "nc1x": 1}, "there is no metric 'nc1x'; did you mean 'nc1'"),
        ({"epoch": 60, 7: 1}, "there is no metric '7'"),
        ({"epoch": 60, "nc1": "0.1"}, "expect.nc1 must be a number"),
        ({"epoch": 60, "nc1": True}, "must be a number"),
        ({"epoch": 60, "nc1": math.nan}, "must be a number"),
        ({"epoch": 60, "nc1": math.inf}, "must be a number"),
        ({"epoch": 60, "nc1": 10**400}, "must be a number"),
        ({"epoch": 60, "nc1": [1]}, "must be a number"),
        ({"epoch": 60, "nc1": [1, 2, 3]}, "must be a number"),
        ({"epoch": 60, "nc1": None}, "has no bound"),
        ({"epoch": 60, "nc1": [None, None]}, "has no bound"),
        ({"epoch": 60, "nc1": [2, 1]}, "leaves nothing: 2 is above 1"),
        ({"epoch": 60, "nc1_per_class": 1}, "there is no metric"),
    ],
)
def test_a_mistake_in_the_option_is_said(option: object, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        ExpectedBounds.of(option)


def config(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "text",
    ["", "seed: 1\n", "expect: null\n", "expect: {}\n", "- 1\n", "just words\n"],
)
def test_a_run_without_an_expectation_has_none_and_no_caution(tmp_path: Path, text: str) -> None:
    assert read_expectation(config(tmp_path, text)) == (None, [])


def test_a_run_without_a_config_has_none(tmp_path: Path) -> None:
    assert read_expectation(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: !!python/object/apply:os.getcwd []\n", "\x00", "[" * 5000, "a: 2024-13-45\n"],
)
def test_a_config_that_cannot_be_read_is_one_caution(tmp_path: Path, text: str) -> None:
    expectation, cautions = read_expectation(config(tmp_path, text))
    assert expectation is None
    assert len(cautions) == 1
    assert "\n" not in cautions[0]


def test_a_config_of_foreign_bytes_is_one_caution(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(b"expect: \xff\xfe")
    assert len(read_expectation(tmp_path)[1]) == 1


def test_a_wrong_entry_is_one_caution_and_leaves_the_others(tmp_path: Path) -> None:
    option = {"epoch": 60, "nc1": 0.1, "nc1x": 1, "error": ".1"}
    expectation, cautions = read_expectation(config(tmp_path, yaml.safe_dump({"expect": option})))
    assert expectation == ExpectedBounds.of({"epoch": 60, "nc1": 0.1})
    [caution] = cautions
    assert "2 expectations" in caution
    assert "'nc1x'; did you mean 'nc1'" in caution


# -- the closing lines -----------------------------------------------------------------------------


def run_folder(folder: Path, option: object, run: object = RUN, epochs: int = 60) -> Path:
    config(folder, yaml.safe_dump({"expect": option}, sort_keys=False))
    start_history(folder, collapse_rows(range(epochs + 1), exits=(), failed=()))
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def test_the_closing_lines_are_aligned(tmp_path: Path) -> None:
    option = {"epoch": 60, "nc1": 0.5, "val/error": 0.001, "minority_cos": [0.1, None]}
    lines = closing(run_folder(tmp_path, option))
    assert lines[0] == "Expected at epoch 60:"
    assert [line.split()[0] for line in lines[1:]] == ["nc1", "val/error", "minority_cos"]
    assert lines[1].endswith("collapsed as expected")
    assert lines[2].endswith("outside the expected range")
    assert lines[3].endswith("not measured")
    starts = (lines[1].index("≤ 0.5"), lines[2].index("≤ 0.001"), lines[3].index("≥ 0.1"))
    assert len(set(starts)) == 1
    verdicts = ("collapsed", "outside", "not measured")
    ends = {line.index(word) for line, word in zip(lines[1:], verdicts, strict=True)}
    assert len(ends) == 1


def test_of_many_expectations_what_went_wrong_is_among_the_six_lines(tmp_path: Path) -> None:
    names = ["nc1", "nc1_quotient", "nc2_etf_w", "nc2_equinorm_w", "nc3_self_duality"]
    option = {"epoch": 60, **dict.fromkeys(names, 5.0), "error": 1, "val/error": 0.0}
    lines = closing(run_folder(tmp_path, option))
    assert len(lines) == 6
    assert "val/error" in lines[1]
    assert lines[-1] == "  and 3 more in the report"
    del option["nc1"], option["nc2_etf_w"]
    lines = closing(run_folder(tmp_path, option))
    assert len(lines) == 6
    assert "more" not in lines[-1]


def test_without_an_expectation_only_a_floor_above_zero_is_said(tmp_path: Path) -> None:
    assert closing(run_folder(tmp_path, None)) == [
        "Theory leaves nc2_etf_means 0.1 for these class sizes."
    ]
    assert closing(run_folder(tmp_path, None, {"measurement": {"limits": {}}})) == []
    zero = {"measurement": {"limits": {"nc2_etf_means": 0.0}}}
    assert closing(run_folder(tmp_path, None, zero)) == []


def test_a_folder_without_a_run_has_no_closing_lines(tmp_path: Path) -> None:
    assert closing(tmp_path) == []
    assert closing(tmp_path / "nowhere") == []
    assert len(closing(config(tmp_path, "a: ["))) == 1
