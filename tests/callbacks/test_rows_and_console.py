"""From reports to rows, log keys, W&B axes and the line in the terminal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cases import BY_NAME
from ncmonitor import CollapseReport, measure_collapse
from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, METRICS, PHASE_NAMES
from ncmonitor.monitor.console import HEADER, console_lines
from ncmonitor.monitor.history import COLUMNS, history_frame
from ncmonitor.monitor.history_rows import history_row, log_key, log_values, names_of
from ncmonitor.wandb_tools.axes import define_axes, is_wandb, record_measurement

ONLY_TRAIN = {q.name for q in METRICS if q.once} | set(PHASE_NAMES)
PHASE = {name: float(i) for i, name in enumerate(PHASE_NAMES)}


@pytest.fixture(scope="module")
def report() -> CollapseReport:
    case = BY_NAME["noisy"]
    return measure_collapse(case.features, case.labels, case.weight, case.bias)


# -- rows and keys ---------------------------------------------------------------------------------


def test_train_has_everything_and_other_splits_all_but_classifier_and_clock() -> None:
    assert names_of("train") == [*FIT_NAMES, *METRIC_NAMES, *PHASE_NAMES]
    for split in ("val", "val0", "test"):
        assert names_of(split) == [n for n in names_of("train") if n not in ONLY_TRAIN]


def test_a_train_row_fills_every_column(report: CollapseReport) -> None:
    row = history_row(3, 42, "train", report, PHASE, 0.5)
    assert set(row) == set(COLUMNS)
    assert (row["epoch"], row["step"], row["split"], row["seconds"]) == (3, 42, "train", 0.5)
    expected = report.as_dict() | PHASE
    expected |= {"error": report.error, "cross_entropy": report.cross_entropy}
    assert {name: row[name] for name in expected} == expected


def test_a_validation_row_leaves_out_what_does_not_apply(report: CollapseReport) -> None:
    row = history_row(3, 42, "val", report, PHASE, 0.5)
    assert set(row) == set(COLUMNS) - ONLY_TRAIN
    assert row["nc3_self_duality"] == report.nc3_self_duality


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_failed_measurement_is_nan_throughout_and_logs_only_the_epoch(split: str) -> None:
    row = history_row(3, 42, split, None, {}, 0.5)
    undefined = {name for name, v in row.items() if isinstance(v, float) and math.isnan(v)}
    assert undefined == set(names_of(split))
    assert log_values([row], "nc") == {"nc/epoch": 3.0}


def test_what_the_report_lacks_is_nan_in_the_row() -> None:
    case = BY_NAME["no_classifier"]
    row = history_row(1, 2, "train", measure_collapse(case.features, case.labels), PHASE, 0.1)
    assert math.isnan(float(row["nc2_etf_w"]))
    assert math.isnan(float(row["error"]))
    assert row["tpt_exits"] == PHASE["tpt_exits"]


def test_log_keys_are_those_of_the_design(report: CollapseReport) -> None:
    rows = [history_row(3, 42, split, report, PHASE, 0.5) for split in ("train", "val")]
    values = log_values(rows, "nc")
    expected = {"nc/epoch"} | {f"nc/tpt/{name}" for name in PHASE_NAMES}
    expected |= {f"nc/train/{name}" for name in (*FIT_NAMES, *METRIC_NAMES)}
    expected |= {f"nc/val/{name}" for name in names_of("val")}
    assert set(values) == expected
    assert values["nc/epoch"] == 3
    assert values["nc/train/nc1"] == report.nc1
    assert {type(value) for value in values.values()} == {float}
    assert log_key("my/nc", "val0", "nc1") == "my/nc/val0/nc1"


def test_undefined_numbers_are_not_logged() -> None:
    case = BY_NAME["all_singletons"]
    report = measure_collapse(case.features, case.labels, case.weight, case.bias)
    row = history_row(1, 2, "train", report, PHASE | {"wd_time": math.nan}, 0.1)
    values = log_values([row], "nc")
    assert "nc/train/nc1" not in values
    assert "nc/tpt/wd_time" not in values
    assert values["nc/train/n_singleton_classes"] == 10
    assert not any(math.isnan(value) for value in values.values())


def test_rows_make_a_typed_table(report: CollapseReport) -> None:
    rows = [history_row(1, 5, "train", report, PHASE, 0.5), history_row(1, 5, "val", None, {}, 0.1)]
    frame = history_frame(rows)
    assert tuple(frame.columns) == COLUMNS
    assert frame["nc1"][0] == report.nc1
    assert math.isnan(frame["nc1"][1])


# -- the terminal ----------------------------------------------------------------------------------


def shown(**changes: Any) -> str:
    row = dict.fromkeys([*FIT_NAMES, *METRIC_NAMES, *PHASE_NAMES], 0.125)
    row |= {"epoch": 12, "cross_entropy": 3.21e-5, "error": 0.0417, "nc4_disagreement": 0.0009}
    row |= {"tpt_start_exact": math.nan, "tpt_active": 0.0, "tpt_exits": 0.0, "epochs_in_tpt": 0.0}
    (line,) = console_lines(row | changes, position=1)
    return line


def test_a_line_shows_the_numbers_below_their_names() -> None:
    cells = [cell.strip() for cell in shown(nc1=4.5e-4, nc2_etf_means=0.07).split("|")]
    assert cells == [
        "12", "3.21e-05", "4.17%", "4.50e-04", "0.0700", "0.1250", "0.09%", "not yet"
    ]  # fmt: skip
    heads = [head.strip() for head in HEADER.split("|")]
    assert heads[:4] == ["epoch", "loss", "error", "nc1"]
    assert len(heads) == len(cells)


@pytest.mark.parametrize("epoch", [0, 7, 99999])
def test_columns_stay_under_their_heads(epoch: int) -> None:
    line = shown(epoch=epoch)
    bars = [i for i, letter in enumerate(HEADER) if letter == "|"]
    assert [i for i, letter in enumerate(line) if letter == "|"] == bars


def test_the_header_comes_first_and_every_twenty_five_lines() -> None:
    row = {"epoch": 1}
    with_header = [i for i in range(60) if len(console_lines(row, i)) == 2]
    assert with_header == [0, 25, 50]
    assert console_lines(row, 0)[0] == HEADER


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "not yet"),
        ({"tpt_start_exact": 9, "tpt_active": 1, "epochs_in_tpt": 3}, "3 epochs in"),
        (
            {"tpt_start_exact": 9, "tpt_active": 1, "epochs_in_tpt": 3, "tpt_exits": 2},
            "3 epochs in, left 2x",
        ),
        ({"tpt_start_exact": 9, "tpt_exits": 1}, "began at 9, left 1x, not in it now"),
    ],
    ids=["before", "inside", "again", "left"],
)
def test_the_terminal_phase_is_told_in_words(changes: dict[str, float], expected: str) -> None:
    assert shown(**changes).endswith(f"| {expected}")


def test_a_failed_measurement_shows_nan() -> None:
    (line,) = console_lines(history_row(3, 9, "train", None, {}, 0.1), 1)
    assert line.count("nan") == 6
    assert line.endswith("not yet")


# -- W&B -------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a W&B run."""

    def __init__(self) -> None:
        self.defined: dict[str, dict[str, str]] = {}
        self.updates: list[tuple[dict[str, Any], bool]] = []
        self.config = self

    def define_metric(self, name: str, **options: str) -> None:
        self.defined[name] = options

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
        self.updates.append((values, allow_val_change))


class WandbLogger:
    def __init__(self) -> None:
        self.experiment = Recorder()


class OwnLogger(WandbLogger):
    pass


class OtherLogger:
    @property
    def experiment(self) -> Recorder:
        raise AssertionError("a logger that is not W&B's must be left alone")


def test_a_wandb_logger_is_known_by_its_name_in_either_distribution() -> None:
    assert is_wandb(WandbLogger())
    assert is_wandb(OwnLogger())
    assert not is_wandb(OtherLogger())


def test_every_key_gets_the_epoch_axis_by_its_exact_name() -> None:
    logger = OwnLogger()
    keys = {log_key("nc", split, n): n for split in ("train", "val") for n in names_of(split)}
    define_axes([OtherLogger(), logger], "nc/epoch", keys)
    defined = logger.experiment.defined
    assert next(iter(defined)) == "nc/epoch"
    assert set(defined) == {"nc/epoch", *keys}
    assert not any("*" in name for name in defined)
    assert {options.get("step_metric") for name, options in defined.items() if name in keys} == {
        "nc/epoch"
    }
    summaries = {name: options.get("summary") for name, options in defined.items()}
    assert summaries["nc/train/nc1"] == summaries["nc/val/error"] == "min,last"
    assert summaries["nc/train/ncc_accuracy"] == summaries["nc/tpt/tpt_active"] == "last"
    assert CATALOGUE["s_min_ratio"].collapse == 1
    assert summaries["nc/train/s_min_ratio"] == "last"


def test_how_it_was_measured_goes_into_the_config() -> None:
    logger = WandbLogger()
    record_measurement([OtherLogger(), logger], {"classifier": "head"})
    assert logger.experiment.updates == [({"ncmonitor": {"classifier": "head"}}, True)]
