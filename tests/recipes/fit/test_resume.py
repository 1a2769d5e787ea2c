"""``ncmonitor fit --resume``: a run that was interrupted ends as the one that was not.

As a script, ``python test_resume.py FOLDER`` runs the commands that it reads from stdin, each in a
process of its own, forked after the imports, which take longer than the runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pandas as pd
import pytest
import torch
import yaml

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import Row, read_history, start_history
from ncmonitor.monitor.provenance import read_run, write_run
from ncmonitor.recipes.fit.random_state import Randomness
from ncmonitor.recipes.fit.resume import check_same_options, run_to_resume
from ncmonitor.recipes.fit.run_folder import holding

ROOT = Path(__file__).resolve().parents[3]
DIES = """
import os, signal
import pytorch_lightning as pl

def die(): os.kill(os.getpid(), getattr(signal, os.environ["BY"]))

class Dies(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("DIE") == f"{trainer.current_epoch}:{batch_idx}": die()
    def on_train_end(self, trainer, pl_module):
        if os.environ.get("DIE") == "end": die()
"""
SHORT = (
    *("digits", "--trainer.max_epochs=4", "--trainer.logger=false"),
    *("--trainer.enable_progress_bar=false", "--trainer.callbacks+=dies.Dies"),
    "--figures.figures=[]",
)
CONSTANT = (*SHORT, "--model.schedule=constant", "--trainer.default_root_dir")


class Command(NamedTuple):
    words: tuple[str, ...]
    die: str = ""  # "2:3": before batch 3 of the epoch after 2; "end": when training has ended
    by: str = "SIGKILL"


RESUMED = "resumed"  # the one that draws its report
COMMANDS = {
    "unbroken": Command((*SHORT, "--trainer.default_root_dir=unbroken")),
    "killed": Command(SHORT, "1:3"),
    "killed again": Command((*SHORT, "--resume"), "3:2"),
    RESUMED: Command(
        (*SHORT, "--resume", "--threads=1", "--nc.verbose=false", "--figures.figures=simplex")
    ),
    "finished": Command((*SHORT, "--resume")),
    "early": Command((*SHORT, "--trainer.default_root_dir=early"), "0:3"),
    "early, resumed": Command((*SHORT, "--trainer.default_root_dir=early", "--resume")),
    "stopped": Command((*SHORT, "--trainer.default_root_dir=stopped"), "2:1", "SIGINT"),
    "stopped, resumed": Command((*SHORT, "--trainer.default_root_dir=stopped", "--resume")),
    "late": Command((*SHORT, "--trainer.default_root_dir=late"), "end"),
    "late, resumed": Command((*SHORT, "--trainer.default_root_dir=late", "--resume")),
    "long": Command((*CONSTANT, "long")),
    "short": Command((*CONSTANT, "short", "--trainer.max_epochs=2")),
    "short, longer": Command((*CONSTANT, "short", "--resume")),
}


class Outcome(NamedTuple):
    status: int
    out: str


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all commands, in one working directory."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "dies.py").write_text(DIES)
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        input=json.dumps(COMMANDS), env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def outcome(here: Path, name: str) -> Outcome:
    return Outcome(*json.loads((here / f"{name}.json").read_text()))


def assert_same_history(folder: Path, other: Path) -> None:
    got, expected = (read_history(run).drop(columns="seconds") for run in (folder, other))
    pd.testing.assert_frame_equal(got, expected, check_exact=True)


@pytest.mark.slow
def test_a_run_killed_twice_and_resumed_is_bit_identical_to_one_that_was_not(here: Path) -> None:
    statuses = [outcome(here, name).status for name in ("killed", "killed again", "resumed")]
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL, 0], outcome(here, "resumed").out
    (folder,) = here.glob("runs/digits/*")
    assert f"runs/digits/{folder.name} goes on" in outcome(here, "resumed").out
    assert_same_history(folder, here / "unbroken")
    weights, expected = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (folder, here / "unbroken")
    )
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_resuming_keeps_the_config_writes_the_report_and_leaves_nothing_aside(here: Path) -> None:
    (folder,) = here.glob("runs/digits/*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["nc"]["verbose"] is True  # as the run was started
    assert read_run(folder)["finished"]
    assert "<svg" in (folder / "report.html").read_text()
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("checkpoints", "config.yaml", "figures", "history.csv", "report.html", "run.json"),
        "snapshots.jsonl",
    }
    assert [path.name for path in folder.glob("checkpoints/*")] == ["last.ckpt"]


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(here: Path) -> None:
    status, out = outcome(here, "finished")
    (folder,) = here.glob("runs/digits/*")
    assert status == 2
    assert "no run in runs/digits with seed 0 was interrupted" in out
    assert f"the latest, runs/digits/{folder.name}, has finished" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status"), [("early", -signal.SIGKILL), ("stopped", 1), ("late", -signal.SIGKILL)]
)
def test_killed_before_the_first_checkpoint_after_the_last_and_by_ctrl_c(
    name: str, status: int, here: Path
) -> None:
    assert outcome(here, name).status == status
    resumed = outcome(here, f"{name}, resumed")
    assert resumed.status == 0, resumed.out
    assert f"open {name}/report.html in a browser" in resumed.out
    assert_same_history(here / name, here / "unbroken")
    assert read_run(here / name)["finished"]
    assert not list((here / name).glob("history.*.csv"))


@pytest.mark.slow
def test_a_finished_run_at_a_constant_rate_can_be_made_longer(here: Path) -> None:
    assert outcome(here, "short, longer").status == 0, outcome(here, "short, longer").out
    assert_same_history(here / "short", here / "long")


# -- in this process: which run, which options, which checkpoint -----------------------------------

OPTIONS: dict[str, Any] = {
    "seed_everything": 0,
    "threads": 1,
    "trainer": {"max_epochs": 4, "precision": 32, "logger": {"class_path": "WandbLogger"}},
    "model": {"init_args": {"lr": 0.1, "schedule": "cosine"}},
    "nc": {"schedule": "every_epoch", "verbose": True},
}


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)

    def make(
        name: str, *, epochs: int = 2, finished: bool = False, saved: str | None = "last.ckpt"
    ) -> Path:
        folder = Path("runs", "mine", name)
        rows: list[Row] = [{"epoch": e, "step": e, "split": "train"} for e in range(epochs + 1)]
        start_history(folder, rows)
        (folder / "config.yaml").write_text(yaml.safe_dump(OPTIONS))
        write_run(folder, {"finished": "2026-01-01" if finished else None, "max_epochs": 4})
        if saved is not None:
            (folder / "checkpoints").mkdir()
            torch.save({"epoch": epochs}, folder / "checkpoints" / saved)
        return folder

    return make


def changed(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = json.loads(json.dumps(OPTIONS))
    for key, value in changes.items():
        *parents, name = key.split("__")
        part = options
        for parent in parents:
            part = part[parent]
        part[name] = value
    return options


def test_the_latest_interrupted_run_of_the_seed_is_found(make_run: Callable[..., Path]) -> None:
    make_run("20260101-000000-seed0")
    folder = make_run("20260102-000000-seed0")
    again = make_run("20260102-000000-seed0-2")
    make_run("20260103-000000-seed0", finished=True)
    make_run("20260104-000000-seed1")
    make_run("20260105-000000-seeds3")
    home = run_to_resume("mine", 0, None, OPTIONS)
    assert home.folder == again
    assert home.checkpoint == again / "checkpoints" / "last.ckpt"
    assert not home.made  # so it is never removed
    with holding(again):  # as the process that trains in it does
        assert run_to_resume("mine", 0, None, OPTIONS).folder == folder


def test_a_run_that_is_still_going_is_left_alone(make_run: Callable[..., Path]) -> None:
    folder = make_run("20260101-000000-seed0")
    with holding(folder):
        with pytest.raises(InputError, match=r"nothing to resume: .*-seed0 is still going"):
            run_to_resume("mine", 0, None, OPTIONS)
        with pytest.raises(InputError, match=r"nothing to resume: .* is still going"):
            run_to_resume("mine", 0, folder, OPTIONS)
        with pytest.raises(InputError, match="another process trains in"), holding(folder):
            pass
    assert run_to_resume("mine", 0, None, OPTIONS).folder == folder


def test_nothing_to_resume_says_what_was_looked_for(make_run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="runs/mine with seed 0 has no run"):
        run_to_resume("mine", 0, None, OPTIONS)
    with pytest.raises(InputError, match=r"nowhere holds no config\.yaml of a run"):
        run_to_resume("mine", 0, Path("nowhere"), OPTIONS)
    folder = make_run("20260101-000000-seed0", finished=True)
    with pytest.raises(InputError, match=r"the latest, .*-seed0, has finished"):
        run_to_resume("mine", 0, None, OPTIONS)
    with pytest.raises(InputError, match=r"the run in .*-seed0 has finished"):
        run_to_resume("mine", 0, folder, OPTIONS)


def test_other_options_are_refused_with_both_values(make_run: Callable[..., Path]) -> None:
    folder = make_run("20260101-000000-seed0")
    other = changed(model__init_args__lr=0.2, trainer__precision=64)
    with pytest.raises(InputError) as caught:
        check_same_options(folder, other)
    assert "model.init_args.lr 0.1 (now 0.2)" in str(caught.value)
    assert "trainer.precision 32 (now 64)" in str(caught.value)


def test_options_without_influence_on_the_training_may_differ(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run("20260101-000000-seed0")
    check_same_options(folder, changed(threads=8, trainer__logger=False, nc__verbose=False))
    check_same_options(folder, changed(data={"init_args": {"new": 1}}))  # of a newer version


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__max_epochs": 3, "model__init_args__schedule": "constant"},
        {"trainer__max_epochs": 8, "model__init_args__schedule": "cosine"},
        {"trainer__max_epochs": 8, "model__init_args__schedule": "constant", "nc__schedule": "log"},
    ],
)
def test_another_length_is_refused_where_something_is_planned_by_it(
    changes: dict[str, Any], make_run: Callable[..., Path]
) -> None:
    folder = make_run("20260101-000000-seed0")
    before = changed(**{**changes, "trainer__max_epochs": 4})
    (folder / "config.yaml").write_text(yaml.safe_dump(before))
    with pytest.raises(InputError, match=r"trainer\.max_epochs 4 \(now [38]\)"):
        check_same_options(folder, changed(**changes))


def test_a_torn_checkpoint_is_refused_with_a_way_out(make_run: Callable[..., Path]) -> None:
    folder = make_run("20260101-000000-seed0")
    last = folder / "checkpoints" / "last.ckpt"
    shutil.copy(last, folder / "checkpoints" / "epoch=1.ckpt")
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.raises(InputError) as caught:
        run_to_resume("mine", 0, None, OPTIONS)
    assert f"{last} is damaged" in str(caught.value)
    assert f"--ckpt_path {folder}/checkpoints/epoch=1.ckpt" in str(caught.value)
    (folder / "checkpoints" / "epoch=1.ckpt").unlink()
    with pytest.raises(InputError, match=r"damaged .*; start a new run without --resume"):
        run_to_resume("mine", 0, None, OPTIONS)


def test_without_a_checkpoint_only_a_run_that_loses_nothing_starts_anew(
    make_run: Callable[..., Path],
) -> None:
    make_run("20260101-000000-seed0", epochs=0, saved=None)
    assert run_to_resume("mine", 0, None, OPTIONS).checkpoint is None
    make_run("20260102-000000-seed0", epochs=1, saved=None)
    with pytest.raises(InputError, match="measured up to epoch 1, but holds no checkpoints/last"):
        run_to_resume("mine", 0, None, OPTIONS)


def test_of_several_last_checkpoints_the_newest_is_taken(make_run: Callable[..., Path]) -> None:
    folder = make_run("20260101-000000-seed0")
    newer = folder / "checkpoints" / "last-v1.ckpt"
    shutil.copy(folder / "checkpoints" / "last.ckpt", newer)
    os.utime(folder / "checkpoints" / "last.ckpt", (1, 1))
    assert run_to_resume("mine", 0, None, OPTIONS).checkpoint == newer


def test_a_damaged_config_is_one_line(make_run: Callable[..., Path]) -> None:
    folder = make_run("20260101-000000-seed0")
    (folder / "config.yaml").write_text("trainer: {max_epochs")
    with pytest.raises(InputError, match=r"cannot resume: .*config\.yaml is unreadable"):
        run_to_resume("mine", 0, None, OPTIONS)


def test_random_generators_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    import random
    from types import SimpleNamespace

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    torch.save(Randomness().state_dict(), tmp_path / "state")
    expected = draw()
    assert draw() != expected
    callback, trainer = Randomness(), SimpleNamespace(fit_loop=SimpleNamespace(_data_fetcher=None))
    callback.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    callback.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    assert draw() == expected
    callback.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    assert draw() != expected  # once


# -- the commands ----------------------------------------------------------------------------------


def run(command: Command, log: Path, *, plain: bool) -> int:
    """Run a command in a process of its own; return its exit code, minus the signal if killed."""
    import plain_pages
    from ncmonitor.cli import main

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= {"DIE": command.die, "BY": command.by}
        if plain:
            mock.patch("ncmonitor.reports.run_page.write_report", plain_pages.write_report).start()
        sys.argv = ["ncmonitor", "fit", *command.words]
        status = main(sys.argv[1:])
    except SystemExit as stop:  # Ctrl-C
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # not back into the loop of the parent


if __name__ == "__main__":
    import sklearn.datasets  # noqa: F401 - once for all, as the next two

    os.chdir(sys.argv[1])
    for name, command in json.load(sys.stdin).items():
        log = Path("log.txt")
        status = run(Command(*command), log, plain=name != RESUMED)
        Path(f"{name}.json").write_text(json.dumps([status, log.read_text()]))
