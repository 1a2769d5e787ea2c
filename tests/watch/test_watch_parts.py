"""What ``ncmonitor watch`` is made of: charts as text, a table that grows, a clock."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from histories import collapse_rows
from ncmonitor.monitor.history import read_history, start_history
from ncmonitor.watch.chart import Curve, chart, tick
from ncmonitor.watch.followed_history import HistoryTail
from ncmonitor.watch.frame import DEFAULT
from ncmonitor.watch.watched_run import Pace

NAMES = DEFAULT
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


def drawn(values: Sequence[float], scale: Any = "log", **more: Any) -> list[str]:
    curve = Curve(list(enumerate(values)), 0)
    options = {"epochs": (0, len(values) - 1), "onset": None, "width": 27, "height": 6} | more
    return chart([curve], scale=scale, **options)


def test_zeros_stand_below_everything_positive_on_a_log_axis() -> None:
    lines = drawn([1, 1e-1, 1e-2, 0, 0, 0])
    assert [line[:7].strip() for line in lines[:5]] == ["1", "", "0.1", "", "0"]
    assert "⣀⣀⣀⣀" in lines[4]
    assert lines[5].split() == ["0", "5"]


def test_the_smallest_positive_value_is_not_taken_for_zero() -> None:
    lines = drawn([1, 1e-2, 1e-2, 1e-2, 0, 0])
    columns = range(12, 18)  # of the plateau
    assert all(lines[3][i] != " " and lines[4][i] == " " for i in columns)


def test_a_gap_is_not_bridged() -> None:
    whole, broken = (drawn([1, 2, middle, 2, 1])[:-1] for middle in (2, math.nan))
    columns = range(13, 21)  # between the second and the fourth of five points
    assert any(line[i] != " " for line in whole for i in columns)
    assert not any(line[i] != " " for line in broken for i in columns)


def test_a_single_epoch_is_a_point_in_the_middle() -> None:
    lines = drawn([0.25])
    assert sum(char > "⠀" for line in lines for char in line) == 1
    assert any("0.25" in line for line in lines)
    assert lines[-1].split() == ["0"]


@pytest.mark.parametrize(
    ("values", "said"),
    [([math.nan] * 3, "nan so far"), ([math.inf], "nan so far"), ([], "not measured")],
)
def test_without_a_number_a_chart_says_so(values: list[float], said: str) -> None:
    assert any(said in line for line in drawn(values, epochs=(0, 3)))


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-300, 1e300], [-5.0, 3.0], [5e-324, 0.0]])
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_any_numbers_are_drawn_in_the_room_there_is(values: list[float], scale: str) -> None:
    lines = drawn(values, scale)
    assert {len(line) for line in lines} == {27}
    assert len(lines) == 6
    assert any(char > "⠀" for line in lines for char in line[7:])


def test_the_onset_is_a_line_over_its_epoch() -> None:
    lines = drawn([1.0] * 41, onset=20, height=8)
    assert all(line[17] > "⠀" for line in lines[:-1])  # 7 + 20 · 20 / 40
    assert 17 in range(lines[-1].index("TPT 20"), lines[-1].index("TPT 20") + 6)
    without = drawn([1.0] * 41, height=8)
    assert sum(line[17] == " " for line in without[:-1]) == 6


def test_val_is_dashed_where_train_is_solid() -> None:
    points = [(0, 1.0), (100, 1.0)]
    train, val = (
        chart([Curve(points, style)], epochs=(0, 100), onset=None, width=47, height=4)
        for style in (0, 1)
    )
    row = next(i for i, line in enumerate(train[:-1]) if line[7:].strip())
    assert len(set(train[row][7:])) == 1
    assert len(set(val[row][7:])) > 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-5, "1e-5"), (0.00241, "0.0024"), (2.3, "2.3"), (1234.0, "1234")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick(value) == text


def values_of(tail: HistoryTail, split: str, name: str) -> list[float]:
    return [value for _, value in tail.series(split, name)]


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    start_history(tmp_path, collapse_rows(range(3)))
    whole = (tmp_path / "history.csv").read_bytes()
    tail = HistoryTail(tmp_path, NAMES)
    for cut in range(len(whole) - 200, len(whole), 40):
        (tmp_path / "history.csv").write_bytes(whole[:cut])
        tail.read()
        assert len(values_of(tail, "val", "nc1")) == 2
    (tmp_path / "history.csv").write_bytes(whole)
    tail.read()
    assert len(values_of(tail, "val", "nc1")) == 3
    assert tail.damaged == 0


def test_a_resume_that_rewrites_the_table_is_followed(tmp_path: Path) -> None:
    rows = collapse_rows(range(21))
    start_history(tmp_path, rows)
    tail = HistoryTail(tmp_path, NAMES)
    tail.read()
    start_history(tmp_path, rows[:10])  # shorter
    tail.read()
    assert max(tail.epochs()) == 4
    again = [row | {"nc1": 7.0} for row in rows]
    start_history(tmp_path, again)  # longer than what was read, with other numbers
    tail.read()
    assert set(values_of(tail, "train", "nc1")) == {7.0}


def test_a_file_that_was_replaced_is_read_anew_though_its_end_is_the_same(tmp_path: Path) -> None:
    rows = collapse_rows(range(9))
    start_history(tmp_path, rows)
    tail = HistoryTail(tmp_path, NAMES)
    tail.read()
    rows[0]["error"] = float(f"0.7{str(rows[0]['error'])[3:]}")  # as many digits
    start_history(tmp_path, rows)
    tail.read()
    assert values_of(tail, "train", "error")[0] == rows[0]["error"]


def test_a_file_rewritten_in_place_is_read_anew(tmp_path: Path) -> None:
    rows = collapse_rows(range(5))
    start_history(tmp_path, rows)
    tail = HistoryTail(tmp_path, NAMES)
    tail.read()
    start_history(tmp_path / "other", collapse_rows(range(9), seed=1, splits=("train", "test")))
    other = (tmp_path / "other" / "history.csv").read_text()
    (tmp_path / "history.csv").write_text(other)  # the same inode, and longer
    tail.read()
    assert tail.splits() == ["train", "test"]
    assert tail.damaged == 0


def test_a_fast_writer_is_followed_without_losing_a_row(tmp_path: Path) -> None:
    rows = collapse_rows(range(300))
    start_history(tmp_path)
    done = threading.Event()

    def grow() -> None:  # 600 rows in about a second, each written in two pieces
        lines = rows_text.splitlines(keepends=True)
        with (tmp_path / "history.csv").open("a") as file:
            for line in lines:
                for piece in (line[:100], line[100:]):
                    file.write(piece)
                    file.flush()
                time.sleep(0.001)
        done.set()

    start_history(tmp_path / "other", rows)
    rows_text = (tmp_path / "other" / "history.csv").read_text().partition("\n")[2]
    tail, looks = HistoryTail(tmp_path, NAMES), 0
    writer = threading.Thread(target=grow)
    writer.start()
    while not done.is_set():
        tail.read()
        looks += 1
        time.sleep(0.005)
    writer.join()
    tail.read()
    expected = read_history(tmp_path / "other")
    assert looks > 20
    assert tail.damaged == 0
    for split in ("train", "val"):
        known = expected[expected["split"] == split]["nc1"].tolist()
        assert values_of(tail, split, "nc1") == pytest.approx(known, nan_ok=True)


def test_the_pace_is_that_of_the_rows_that_came_in_once_there_are_enough() -> None:
    pace, began = Pace(), datetime.fromtimestamp(1000.0, UTC).isoformat()
    assert math.isnan(pace.seconds({"created": began}))
    pace.observe(2, 1020.0)
    assert pace.seconds({"created": began}) == 10.0
    assert math.isnan(pace.seconds({"created": began, "resumed": [{}]}))
    for i in range(1, 5):
        pace.observe(2 + i, 1020.0 + i)
    assert pace.seconds({"created": began}) == 1.0
    pace.observe(1, 1030.0)  # a resume
    assert math.isnan(pace.seconds({"resumed": [{}]}))
