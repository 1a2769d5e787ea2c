"""``ncmonitor watch``: the frame, how far the run is, and which run it is."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from histories import collapse_rows
from ncmonitor.cli import main
from ncmonitor.monitor.history import append_history, read_history, start_history
from ncmonitor.monitor.provenance import write_run
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.monitor.words import duration
from ncmonitor.reports.verdict import headline, number
from ncmonitor.symmetry.rows import COLUMNS
from ncmonitor.watch.frame import DEFAULT
from ncmonitor.watch.symmetry_line import symmetry_line
from symmetries import symmetry_rows
from watched import facts, make_run

NAMES = DEFAULT
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.fixture(autouse=True)
def plain_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 × 24 without colour, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def watch(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return the lines that the command prints."""

    def run(*words: str | Path) -> list[str]:
        assert main(["watch", *map(str, words)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out.splitlines()

    return run


@pytest.mark.parametrize(
    ("columns", "lines", "charts"),
    [(80, 24, 6), (120, 40, 6), (200, 60, 6), (50, 16, 2), (40, 9, 0), (45, 12, 0)],
)
def test_a_frame_fits_its_window_and_uses_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    watch: Callable[..., list[str]],
    columns: int,
    lines: int,
    charts: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    shown = watch(make_run(tmp_path / "run"), "--once")
    assert len(shown) <= lines
    assert len(shown) == (lines if charts else 9)
    assert max(map(len, shown)) <= columns
    assert sum(line.count("TPT 12") for line in shown[2:]) == charts


def test_the_header_tells_run_progress_and_phase(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    run = make_run(tmp_path / "run", seed=3, measurement={"recipe": "digits"})
    first, second = watch(run, "--once")[:2]
    assert first.split() == ["digits", "·", "seed", "3", "run", "not", "finished"]
    # 30 epochs in 30 seconds, 30 to go.
    found = re.fullmatch(
        r"epoch 30 of 60 · about (\d+) s left · terminal phase since epoch 12", second.rstrip()
    )
    assert found
    assert 25 <= int(found[1]) <= 35


def test_the_table_has_latest_and_best_with_its_epoch(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    rows = collapse_rows(range(4), splits=("train", "val"))
    for row, nc1, error, ratio in zip(
        rows,
        [3, 3, 0.25, 9, 0.5, 9, 1, 0.125],
        [0.5, 1, 0.5, 0, 0.75, 0, 1, 1],
        [0.5] * 8,
        strict=True,
    ):
        row |= {"nc1": nc1, "error": error, "s_min_ratio": ratio}
    rows[6]["s_min_ratio"] = 0.25
    start_history(tmp_path, rows)
    shown = watch(tmp_path, "--once", "--metrics", "nc1,error,s_min_ratio,w_norm")
    cells = {line.split()[0]: line.split()[1:] for line in shown[-4:]}
    assert cells["nc1"] == ["1", "0.25", "1", "0.125", "0.125", "3"]
    assert cells["error"] == ["1", "0.5", "0", "1", "0", "1"]
    assert cells["s_min_ratio"] == ["0.25", "0.5", "0", "0.5", "0.5", "0"]
    assert cells["w_norm"][1:] == ["–"]  # nothing is best, and val has no classifier of its own


def test_splits_and_metrics_can_be_chosen(tmp_path: Path, watch: Callable[..., list[str]]) -> None:
    shown = watch(make_run(tmp_path), "--once", "--split", "val", "--metrics", "nc2,nc1_quotient")
    text = "\n".join(shown)
    assert "… 3 more with a larger window" in shown[-1]
    assert "━━ val" in text
    assert "train" not in text
    assert "nc1_quotient" not in text
    assert "nc2_equinorm_means" in text
    assert "nc4" not in text


def test_a_finished_run_says_so_and_where_the_rest_is(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    run = make_run(tmp_path / "my run", finished="2026-11-21T17:18:41+00:00")
    (run / "wandb" / "offline-run-1").mkdir(parents=True)
    shown = watch(run)
    assert shown[0].endswith("finished")
    assert "not finished" not in shown[0]
    assert shown[-2].startswith("the run is finished; all of it: ncmonitor report ")
    assert shown[-1] == "its W&B run in the terminal: wandb leet 'my run/wandb/offline-run-1'"


def test_what_a_file_says_cannot_steer_the_terminal(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    rows = [row | {"split": "\x1b[2J" + row["split"]} for row in collapse_rows(range(3))]
    start_history(tmp_path, rows)
    write_run(tmp_path, facts(command="\x1b]0;mine\x07 fit"))
    assert not any("\x1b" in line or "\x07" in line for line in watch(tmp_path))


def test_a_terminal_without_our_characters_gets_plain_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ncmonitor", "watch", str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    text = done.stdout.decode("ascii")
    assert "?" not in text
    assert "*" in text
    assert "== train" in text


def test_watching_needs_no_torch_and_no_pandas(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = (
        f"import sys; from ncmonitor.cli import main; main(['watch', {str(run)!r}]); "
        "print([n for n in ('torch', 'pandas', 'numpy', 'plotille') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "['plotille']"  # the one that is there shows the others


def test_a_thousand_epochs_are_drawn_in_less_than_a_second(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    start_history(tmp_path, collapse_rows(range(1001)))
    started = time.perf_counter()
    watch(tmp_path)
    assert time.perf_counter() - started < 1


def test_damaged_lines_are_left_out_and_counted(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    start_history(tmp_path, collapse_rows(range(3)))
    with (tmp_path / "history.csv").open("a") as file:
        file.write("3,nonsense\n\x00\n" + "9" * 200_000 + "\n")
    append_history(tmp_path, collapse_rows(range(3, 5)))
    shown = watch(tmp_path)
    assert shown[1].startswith("epoch 4 ") or shown[1].startswith("epoch 4 ·")
    assert shown[-1] == f"left out of {tmp_path / 'history.csv'}: 3 damaged lines"


def test_a_run_that_ended_without_a_row_says_so_and_nothing_else(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    write_run(tmp_path, facts(finished="2026-02-03T14:05:50+00:00"))
    (tmp_path / "history.csv").touch()
    shown = watch(tmp_path, "--split", "test")
    assert shown[1].startswith("the run measured nothing: ")
    assert "waiting" not in "".join(shown)
    assert not any("ncmonitor report" in line for line in shown)


def test_a_table_without_a_clock_has_the_onset_of_its_errors(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    rows = [
        {k: v for k, v in row.items() if "tpt" not in k}
        for row in collapse_rows(range(20), exits=(15,))
    ]
    columns = [name for name in rows[0] if name in {n for row in rows for n in row}]
    start_history(tmp_path, rows, columns)
    shown = watch(tmp_path, "--metrics", "nc1")
    assert "terminal phase since epoch 12, left 1×" in shown[1]
    assert "TPT 12" in "".join(shown)
    assert any("derived from the training error" in line for line in shown)


def test_a_last_row_that_was_cut_is_told(tmp_path: Path, watch: Callable[..., list[str]]) -> None:
    start_history(tmp_path, collapse_rows(range(5)))
    path = tmp_path / "history.csv"
    path.write_text(path.read_text()[:-30])
    assert any("the last row, which is cut short" in line for line in watch(tmp_path))


def test_a_run_that_went_silent_may_have_stopped(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    run = make_run(tmp_path / "run", created="2026-01-01T00:00:00+00:00")
    past = datetime(2026, 1, 1, 0, 5, tzinfo=UTC).timestamp()
    os.utime(run / "history.csv", (past, past))
    assert re.match(r"epoch 30 of 60 · no new row for .* d .* h: stopped\?", watch(run)[1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 01 s"), (1800, "30 min"), (7500, "2 h 05 min"), (90000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("exits", "active", "said"),
    [
        (0, 1, "terminal phase since epoch 12"),
        (2, 1, "terminal phase since epoch 12, left 2×"),
        (1, 0, "terminal phase from epoch 12, left 1×, not in it now"),
        (0, math.nan, "terminal phase from epoch 12, last measurement failed"),
    ],
)
def test_the_phase_is_told_as_it_is(
    tmp_path: Path, watch: Callable[..., list[str]], exits: int, active: float, said: str
) -> None:
    rows = collapse_rows(range(20))
    rows[-2] |= {"tpt_exits": exits, "tpt_active": active}
    start_history(tmp_path, rows)
    assert watch(tmp_path)[1].rstrip().endswith(" · " + said)


def test_where_every_measurement_failed_the_phase_is_unknown_as_in_the_report(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    start_history(tmp_path, collapse_rows(range(4), failed=range(4)))
    assert "terminal phase unknown: every measurement failed" in watch(tmp_path)[1]
    assert "is unknown" in headline(read_history(tmp_path))
    start_history(tmp_path, collapse_rows(range(4), failed=range(1, 4)))
    assert "terminal phase not reached" in watch(tmp_path)[1]


@pytest.mark.parametrize("header", [False, True])
def test_a_run_without_rows_says_what_it_waits_for(
    tmp_path: Path, watch: Callable[..., list[str]], header: bool
) -> None:
    write_run(tmp_path, facts())
    if header:
        start_history(tmp_path)
    expected = "waiting for the first measured epoch: " if header else "waiting for "
    assert watch(tmp_path)[1].startswith(expected)


def test_the_newest_run_is_taken_by_default(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    for i, name in enumerate(("digits/b", "mnist/c-seeds2/seed0", "digits/a")):
        run = make_run(tmp_path / "runs" / name, command=name)
        for file in run.iterdir():
            os.utime(file, (1e9 + (i % 2), 1e9 + (i % 2)))
    assert watch()[0].startswith("mnist/c-seeds2/seed0 ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a run folder, but there is none below ./runs"),
        (["here/run-sed0"], "but here/run-sed0 does not exist; did you mean 'here/run-seed0'"),
        (["here"], "but here holds no run; below it, newest first: here/run-seed0"),
        (["here/run-seed0/history.csv"], "is a file; its folder is here/run-seed0"),
        (["here/run-seed0", "--metrics", "nc11"], "no quantity 'nc11'; did you mean 'nc1'"),
        (["here/run-seed0", "--metrics", "nc1_cdnv"], "has no column 'nc1_cdnv'"),
        (["here/run-seed0", "--metrics", ","], "expected names with commas"),
        (["here/run-seed0", "--split", "vall"], "no split 'vall'; did you mean 'val'"),
        (["here/run-seed0", "--every", "0"], "--every must be a number of seconds above 0, got 0"),
        (["here/run-seed0", "--every", "nan"], "--every must be a number of seconds above 0"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    make_run(tmp_path / "here" / "run-seed0", finished="2026-11-21T17:18:41+00:00")
    assert main(["watch", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_file_that_is_no_history_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.csv").write_text("time,loss\n1,2\n")
    assert main(["watch", str(tmp_path)]) == 2
    assert "is not a history: expected the columns epoch, step, split" in capsys.readouterr().err


def with_symmetry(folder: Path, **settings: Any) -> Path:
    make_run(folder)
    start_history(folder, symmetry_rows([0, 5], **settings), COLUMNS, file=SYMMETRY_FILE)
    return folder / SYMMETRY_FILE


def test_one_line_has_the_latest_collapse_of_classes_and_orbits(
    tmp_path: Path, watch: Callable[..., list[str]]
) -> None:
    with_symmetry(tmp_path / "run", layers=("body.2",))
    rows = [
        row
        for row in symmetry_rows([0, 5], layers=("body.2",))
        if (row["epoch"], row["split"], row["layer"], row["element"]) == (5, "train", "", "")
    ]
    classes = next(row["nc1_quotient"] for row in rows if row["group"] == "plain")
    orbits = next(row["orbit_quot"] for row in rows if row["group"] == "rotations90")
    said = f"scatter on train, epoch 5: classes {number(classes)}, rotations90 {number(orbits)}"
    assert said in watch(str(tmp_path / "run"))
    (tmp_path / "run" / SYMMETRY_FILE).unlink()
    assert not any("scatter" in line for line in watch(str(tmp_path / "run")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-7],
        lambda text: text + "1,2\n",
        lambda text: text + 'a"b,\x00\n',
        lambda text: "epoch,step\n1,2\n",
        lambda text: "",
        lambda text: text.splitlines()[0],
        lambda text: text.replace("orbit_quot", "orbit_quux"),
    ],
)
def test_a_damaged_table_of_symmetry_does_not_disturb_the_frame(
    tmp_path: Path, watch: Callable[..., list[str]], damage: Callable[[str], str]
) -> None:
    path = with_symmetry(tmp_path / "run")
    path.write_text(damage(path.read_text()))
    assert any("nc1" in line for line in watch(str(tmp_path / "run")))


def test_of_a_long_table_the_end_is_enough(tmp_path: Path) -> None:
    path = with_symmetry(tmp_path / "run")
    whole = symmetry_line(path.parent)
    head, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(head + rows[0] * 20_000 + "".join(rows))
    assert path.stat().st_size > 1_000_000
    assert symmetry_line(path.parent) == whole
    assert whole is not None
