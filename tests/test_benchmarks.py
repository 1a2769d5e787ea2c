"""The benchmark runs, says what it has to, and compares with a textbook that is right."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # bare `pytest`, unlike `python -m pytest`, leaves it out
    sys.path.append(str(ROOT))

from benchmarks import _stages, _tables, numbers  # noqa: E402 - after the path is set
from benchmarks._problem import Problem, Size  # noqa: E402
from benchmarks._textbook import textbook, why_skipped  # noqa: E402
from ncmonitor import measure_collapse  # noqa: E402


@pytest.mark.slow
def test_quick_run_prints_every_table() -> None:
    command = [sys.executable, "-m", "benchmarks.numbers", "--quick", "--only", "900,16,12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert titles[1:] == ["## Ratios", "## Seconds", "## Stages, share of the best measurement"]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if "900 |" in line]
    assert [len(row) for row in rows] == [9, 9, 8]
    assert not any(cell.strip() == "-" for row in rows for cell in row), done.stdout
    assert "ncmonitor has no" not in done.stdout, "a stage was renamed: see _stages.STAGES"
    assert "900,16,12: measure" in done.stderr  # progress


@pytest.mark.parametrize("size", [Size(1200, 24, 8), Size(900, 12, 40)], ids=str)
def test_textbook_agrees(size: Size) -> None:
    problem = Problem.build(size)
    report = measure_collapse(
        problem.features, problem.labels, problem.weight, problem.bias, num_classes=size.classes
    )
    ours = dict(report.values) | {"error": report.error, "cross_entropy": report.cross_entropy}
    theirs = textbook(problem)
    assert len(theirs) == 13
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)


def test_problems_are_seeded_and_cover_the_classes() -> None:
    one, two = Problem.build(Size(50, 4, 20)), Problem.build(Size(50, 4, 20))
    assert one.features.equal(two.features)
    assert one.weight.equal(two.weight)
    assert set(one.labels.bincount(minlength=20).tolist()) == {2, 3}


@pytest.mark.parametrize("text", ["50,4", "50,4,60", "50,4,1", "50,0,4", "a,b,c"])
def test_impossible_sizes_are_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        numbers.main(["--only", text])


def test_textbook_is_left_out_where_it_cannot_be_run() -> None:
    fast, slow = 1e11, 1e8
    assert [size for size in numbers.SIZES if why_skipped(size, fast)] == [numbers.SIZES[-1]]
    assert "GiB" in str(why_skipped(numbers.SIZES[-1], fast))
    assert "min" in str(why_skipped(numbers.SIZES[2], slow))


def test_renamed_functions_are_named() -> None:
    stages = {"a": ("math:no_such",), "b": ("no_such_module:f", "textwrap:dedent")}
    with _stages.StageClock(stages) as clock:
        textwrap.dedent("")
    assert clock.missing == ["math:no_such", "no_such_module:f"]
    assert clock.shares(1.0) == {}, "a stage that misses a part would be shown too small"


def test_nested_calls_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = iter([0.0, 1.0, 4.0, 9.0])  # outer begins, inner begins, inner ends, outer ends
    toy = types.ModuleType("toy")
    vars(toy).update(inner=lambda: None, outer=lambda: toy.inner())
    monkeypatch.setitem(sys.modules, "toy", toy)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clicks))
    with _stages.StageClock({"a": ("toy:outer",), "b": ("toy:inner",)}) as clock:
        toy.outer()
    monkeypatch.undo()
    assert clock.seconds == {"a": 6.0, "b": 3.0}
    assert clock.shares(10.0) == pytest.approx({"a": 0.6, "b": 0.3, "other": 0.1})


def test_budgets_stand_beside_the_ratios() -> None:
    size = Size(50000, 512, 10)
    missed = _tables.Row(size, {"measure": 2.0, "gram": 1.0})
    kept = _tables.Row(size, {"measure": 0.5, "gram": 1.0})
    table = _tables.ratio_table([missed, kept]).splitlines()
    assert "2.00 (≤ 0.75) MISSED" in table[2]
    assert "0.50 (≤ 0.75) |" in table[3]
    assert {len(line) for line in table} == {len(table[0])}
    assert {budgeted for _, budgeted in _tables.BUDGETS} <= set(numbers.SIZES)


def test_results_are_written_as_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    monkeypatch.setattr(numbers, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(numbers, "work", _fail)
    with pytest.raises(SystemExit, match="could not be timed"):
        numbers.main(["--write", "--only", "50,4,10"])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out
    assert "- 50,4,10: no times: it was killed" in text


def _fail(*_: object) -> dict[str, object]:
    raise numbers.WorkerError("it was killed")
