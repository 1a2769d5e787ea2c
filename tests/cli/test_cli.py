"""The command line: what it answers, how fast, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ncmonitor
from histories import collapse_rows
from ncmonitor.cli import main
from ncmonitor.monitor.history import start_history

CODE = """
import json, sys
from ncmonitor.cli import main
try:
    status = main({argv!r})
except SystemExit as stop:
    status = stop.code
print()
print(json.dumps([status, "torch" in sys.modules]))
"""


def status_and_torch(argv: list[str], before: str = "") -> tuple[int, bool]:
    """Run the command in a process of its own; return its status and whether torch was loaded."""
    done = subprocess.run(
        [sys.executable, "-c", before + CODE.format(argv=argv)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    status, torch = json.loads(done.stdout.splitlines()[-1])
    return status, torch


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        *((["--help"], 0), (["--version"], 0), (["recipes"], 0), (["recipes", "ufm"], 0)),
        *(([], 2), (["fit"], 2), (["nope"], 2)),
    ],
)
def test_answers_without_importing_torch(argv: list[str], status: int) -> None:
    assert status_and_torch(argv) == (status, False)


def test_the_test_above_can_fail() -> None:
    assert status_and_torch(["--help"], before="import torch") == (0, True)


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncmonitor", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"ncmonitor {ncmonitor.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command}" in out for command in ("recipes", "fit NAME", "report RUN_DIR"))


RECIPES = [
    *("cifar10", "cifar100", "cifar10_quick", "class_symmetry", "digits", "digits_rot90"),
    *("fashion_mnist", "imagenet", "imbalanced", "mnist", "mnist_mse", "mnist_quick"),
    *("mnist_rotation", "random_labels", "stl10", "svhn", "symmetry_zoo", "ufm"),
]


def test_recipes_are_a_table_that_fits_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "data", "download", "network", "an", "epoch", "takes"]
    names = [line.split()[0] for line in lines[2:] if line[:1].islower()]
    assert sorted(names) == RECIPES
    assert max(map(len, lines)) <= 100
    for word in ("170 MB", "MLP", "core", "nc1", "ncmonitor recipes NAME"):
        assert any(word in line for line in lines), word


def test_one_recipe_is_told_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "digits"]) == 0
    out = capsys.readouterr().out
    for word in ("1,437", "nc1 0.0005", "seeds 0, 1, 2", "ncmonitor fit digits", "digits.yaml"):
        assert word in out


def test_fit_without_a_recipe_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    err = capsys.readouterr().err
    assert "usage: ncmonitor fit NAME" in err
    assert "\n  digits  " in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fitt"],
            "unknown command 'fitt', expected one of: recipes, fit, metrics, report, "
            "watch, sync, dashboard; "
            "did you mean 'fit'?",
        ),
        (["recipes", "mnist_quik"], "unknown recipe 'mnist_quik', expected one of: cifar10, "),
        (["recipes", "mnist_quik"], "; did you mean 'mnist_quick'"),
        (["report", "nowhere"], "but nowhere does not exist"),
        (["report", "."], "but . holds no run"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ncmonitor: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_report_writes_a_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_history(tmp_path, collapse_rows(range(5)))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_history(tmp_path, collapse_rows(range(5)))
    (tmp_path / "figures").write_text("a file in the way")
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("ncmonitor: error: the report cannot be written")


def test_real_bugs_show_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr("ncmonitor.reports.run_page.write_report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", str(tmp_path)])
