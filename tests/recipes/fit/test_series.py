"""``ncmonitor fit --seeds N`` and ways: each run has its folder, and one page compares them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from ncmonitor.cli import main
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.provenance import read_run
from ncmonitor.monitor.symmetry_table import read_symmetry
from ncmonitor.recipes.fit import series as module
from plain_pages import write_report

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
    "ignore:schedule= lists",  # of runs that are cut short on purpose
)
Fit = Callable[..., tuple[int, str, str]]
SHORT = (
    *("digits", "--trainer.max_epochs=1", "--trainer.logger=false"),
    *("--trainer.enable_progress_bar=false", "--figures.figures=[]"),
)


class Children:
    """Stands in for ``subprocess.Popen``: a child is a command in this process.

    Attributes:
        started: Words and environment of each.
        statuses: Exit statuses of children that do not run, by number.
    """

    def __init__(self) -> None:
        self.started: list[tuple[list[str], Mapping[str, str]]] = []
        self.statuses: dict[int, int] = {}

    def __call__(self, command: Sequence[str], env: Mapping[str, str]) -> Children:
        at = command.index("ncmonitor")
        self.started.append(([*command[at + 1 :]], env))
        return self

    def wait(self) -> int:
        words, env = self.started[-1]
        if (status := self.statuses.pop(len(self.started), None)) is not None:
            return status
        with mock.patch.dict(os.environ, env, clear=True):
            return main(words)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    made = Children()
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=made))
    return made


@pytest.fixture
def fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Fit]:
    """Give the command, run in an empty folder; it returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    threads = torch.get_num_threads()  # which a recipe may set

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", *words])
        return status, *capfd.readouterr()

    yield run
    torch.set_num_threads(threads)


def group(here: Path) -> Path:
    (folder,) = here.glob("runs/digits*/*")
    return folder


def test_each_seed_has_a_run_of_its_own_and_one_page_compares_them(
    fit: Fit, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ncmonitor.reports.run_page.write_report", write_report
    )  # but a true comparison
    status, out, _ = fit(*SHORT, "--seeds", "2", "--seed_everything", "5")
    assert status == 0
    folder = group(tmp_path)
    assert folder.name.endswith("-seeds2")
    assert {path.name for path in folder.glob("seed*")} == {"seed5", "seed6"}
    for seed in (5, 6):
        assert (folder / f"seed{seed}" / "report.html").is_file()
        config = yaml.safe_load((folder / f"seed{seed}" / "config.yaml").read_text())
        assert config["seed_everything"] == seed
        assert config["trainer"]["default_root_dir"] is None  # so that it can be run again
        assert read_run(folder / f"seed{seed}")["seed"] == seed
    assert "<svg" in (folder / "report.html").read_text()
    shown = folder.relative_to(tmp_path)
    assert f"seed 2 of 2: trains in {shown}/seed6" in out
    assert f"open {shown}/report.html in a browser" in out


@pytest.mark.usefixtures("plain_pages")
def test_children_get_the_users_words_and_a_wandb_group(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    assert fit(*SHORT, "--seeds=2")[0] == 0
    assert [words for words, _ in children.started] == [
        ["fit", *SHORT, "--seed_everything", seed] for seed in ("0", "1")
    ]
    assert {env["WANDB_RUN_GROUP"] for _, env in children.started} == {group(tmp_path).name}


@pytest.mark.usefixtures("plain_pages")
def test_closing_lines_give_mean_and_standard_deviation(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    _, out, _ = fit(*SHORT, "--seeds", "2")
    rows = [read_history(f).query("epoch == 1") for f in sorted(group(tmp_path).glob("seed?"))]
    nc1 = torch.tensor([float(r.query("split == 'train'")["nc1"].iloc[0]) for r in rows])
    error = torch.tensor([float(r.query("split == 'val'")["error"].iloc[0]) for r in rows])
    assert "After 1 epochs, seeds 0, 1, mean ± standard deviation:" in out
    for name, values in {"train nc1": nc1, "val error": error}.items():
        (found,) = re.findall(rf"^  {name} +([\d.]+) ± ([\d.]+)$", out, re.M)
        mean, sd = map(float, found)
        assert sd == pytest.approx(float(values.std()), rel=0.05)  # two digits are shown
        assert mean == pytest.approx(float(values.mean()), abs=0.05 * sd)


@pytest.mark.usefixtures("plain_pages")
def test_one_seed_is_a_group_of_one_without_a_deviation(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    status, out, _ = fit(*SHORT, "--seeds", "1", "--trainer.default_root_dir", "mine")
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}
    assert (tmp_path / "mine" / "seed0" / "history.csv").is_file()
    assert "After 1 epochs, seed 0:" in out
    assert "±" not in out


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_a_failed_seed_is_named_and_the_others_are_compared(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    children.statuses = {2: -signal.SIGKILL}
    status, out, err = fit(*SHORT, "--seeds", "3")
    assert status == 1
    assert "seed 2 of 3 failed (SIGKILL)" in err
    assert "Failed: seed 1." in out
    assert "After 1 epochs, seeds 0, 2, mean" in out
    assert (group(tmp_path) / "report.html").read_text() == "<html>seed0 seed2"
    assert {path.name for path in group(tmp_path).glob("seed*")} == {"seed0", "seed2"}


@pytest.mark.usefixtures("plain_pages")
def test_a_comparison_that_fails_leaves_the_runs_and_says_so(
    fit: Fit, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ncmonitor.reports.comparison

    def fail(*_: Any, **__: Any) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(ncmonitor.reports.comparison, "write_comparison", fail)
    with pytest.warns(UserWarning, match="no comparison: OSError: no space"):
        status, out, _ = fit(*SHORT, "--seeds", "1")
    assert status == 0
    assert "report.html in a browser" in out  # the run's own
    assert (group(tmp_path) / "seed0" / "history.csv").is_file()


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_resuming_keeps_finished_seeds_goes_on_with_one_and_trains_the_missing(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    children.statuses = {2: 1, 3: 1}
    assert fit(*SHORT, "--seeds", "3")[0] == 1
    folder = group(tmp_path)
    before = (folder / "seed0" / "history.csv").read_bytes()
    # Seed 1 was killed when it had saved its only epoch, and seed 2 had not begun.
    with mock.patch.dict(os.environ):
        words = ("--trainer.default_root_dir", str(folder / "seed1"), "--seed_everything", "1")
        assert fit(*SHORT, *words)[0] == 0
    run = read_run(folder / "seed1")
    (folder / "seed1" / "run.json").write_text(
        (folder / "seed1" / "run.json").read_text().replace(f'"{run["finished"]}"', "null")
    )
    children.started.clear()
    status, out, _ = fit(*SHORT, "--seeds", "3", "--resume")
    assert status == 0, out
    assert ["--resume" in words for words, _ in children.started] == [True, False]
    assert "seed 1 of 3: " in out
    assert "has finished" in out
    assert (folder / "seed0" / "history.csv").read_bytes() == before
    assert all(read_run(folder / f"seed{seed}")["finished"] for seed in range(3))
    assert group(tmp_path) == folder  # and no other
    status, _, err = fit(*SHORT, "--seeds", "3", "--resume")
    assert status == 2
    assert "runs/digits holds no interrupted --seeds 3 from seed 0" in err


@pytest.mark.usefixtures("plain_pages")
def test_resuming_with_other_options_is_refused_before_any_seed(
    fit: Fit, children: Children, tmp_path: Path
) -> None:
    children.statuses = {2: 1}
    fit(*SHORT, "--seeds", "2")
    children.started.clear()
    status, _, err = fit(*SHORT, "--seeds", "2", "--resume", "--model.lr", "0.2")
    assert status == 2
    assert "was started with model.init_args.lr 0.05 (now 0.2)" in err
    assert not children.started


# -- ways ------------------------------------------------------------------------------------------

OWN = """\
ways:
  plain: {}
  turned: {data.augment: rotations90}
seed_everything: 3
trainer: {max_epochs: 1, logger: false, enable_progress_bar: false, accelerator: cpu}
figures: {figures: []}
model: {class_path: ImageClassifier, init_args: {name: mlp}}
data: {class_path: DigitsData, init_args: {batch_size: 143}}
"""
SYMMETRY = """accelerator: cpu, callbacks: [{class_path: ncmonitor.callbacks.SymmetryMonitor,
  init_args: {groups: [rotations90, flips], samples: 200, verbose: false}}]}"""


@pytest.fixture
def digits_ways(tmp_path: Path) -> str:
    path = tmp_path / "digits_ways.yaml"
    path.write_text(OWN)
    return str(path)


def nc1_of(folder: Path) -> float:
    return float(read_history(folder).query("epoch == 1 and split == 'train'")["nc1"].iloc[0])


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_every_way_is_trained_and_they_stand_side_by_side(
    fit: Fit, children: Children, tmp_path: Path, digits_ways: str
) -> None:
    status, out, err = fit("--config", digits_ways)
    assert status == 0, err
    folder = group(tmp_path)
    assert folder.name.endswith("-ways2")
    assert [words for words, _ in children.started] == [
        ["fit", "--config", digits_ways, "--way", way, "--seed_everything", "3"]
        for way in ("plain", "turned")
    ]
    runs = [folder / "plain", folder / "turned"]
    for run, augment in zip(runs, (False, "rotations90"), strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["data"]["init_args"]["augment"] == augment
        assert (config["way"], config["seed_everything"]) == (run.name, 3)
    assert "run 1 of 2: trains in" in out
    table = out.partition("After 1 epochs, seed 3:\n")[2].splitlines()
    assert table[0].split() == ["plain", "turned"]
    (line,) = [line for line in table if line.startswith("  train nc1 ")]
    shown = [float(number) for number in line.split()[2:]]
    assert shown == pytest.approx([nc1_of(run) for run in runs], rel=1e-3)
    assert shown[0] != shown[1]
    assert (folder / "report.html").read_text() == "<html>plain turned"
    assert f"plain, turned in {folder.relative_to(tmp_path)}" in out


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_ways_and_seeds_make_a_run_for_each_pair_and_a_column_for_each_way(
    fit: Fit, children: Children, tmp_path: Path, digits_ways: str
) -> None:
    status, out, err = fit("--config", digits_ways, "--seeds", "2")
    assert status == 0, err
    folder = group(tmp_path)
    assert folder.name.endswith("-ways2-seeds2")
    names = ["plain-seed3", "plain-seed4", "turned-seed3", "turned-seed4"]
    assert [path.name for path in sorted(folder.glob("*-seed*"))] == names
    assert {env["WANDB_RUN_GROUP"] for _, env in children.started} == {folder.name}
    assert "After 1 epochs, seeds 3, 4, mean ± standard deviation:" in out
    (line,) = re.findall(r"^  train nc1 .*$", out, re.M)
    means = [float(number) for number in re.findall(r"([\d.]+) ±", line)]
    nc1 = [nc1_of(folder / name) for name in names]
    assert means == pytest.approx([sum(nc1[:2]) / 2, sum(nc1[2:]) / 2], rel=0.05)
    seeds = {name: read_run(folder / name)["seed"] for name in names}
    assert seeds == {name: int(name[-1]) for name in names}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_the_seeds_of_one_way_are_a_command_of_their_own(
    fit: Fit, children: Children, tmp_path: Path, digits_ways: str
) -> None:
    status, out, _ = fit("--config", digits_ways, "--way", "turned", "--seeds=2")
    assert status == 0
    folder = group(tmp_path)
    assert folder.name.endswith("-turned-seeds2")
    assert {path.name for path in folder.glob("seed*")} == {"seed3", "seed4"}
    assert all("--way turned" in " ".join(words) for words, _ in children.started)
    assert "seed 2 of 2: trains in" in out
    assert "plain" not in out


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.slow
def test_ways_are_resumed_where_they_were_interrupted(
    fit: Fit, children: Children, tmp_path: Path, digits_ways: str
) -> None:
    words = ("--config", digits_ways)
    children.statuses = {2: 1}
    status, out, err = fit(*words)
    assert status == 1
    assert "run 2 of 2 failed (exit status 1)" in err
    assert "Failed: turned." in out
    children.started.clear()
    status, _, err = fit(*words, "--resume")
    assert status == 0, err
    assert [given[3:5] for given, _ in children.started] == [["--way", "turned"]]
    assert read_run(group(tmp_path) / "turned")["finished"]
    status, _, err = fit(*words, "--resume")
    assert status == 2
    assert "digits_ways holds no interrupted comparison of ways from seed 3" in err


@pytest.mark.slow
def test_the_comparison_names_the_ways_and_sets_orbits_beside_classes(
    fit: Fit, children: Children, tmp_path: Path, digits_ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ncmonitor.reports.run_page.write_report", write_report
    )  # but a true comparison
    monkeypatch.setattr(sys, "argv", ["ncmonitor", "fit", "digits_ways"])  # what runs record
    Path(digits_ways).write_text(OWN.replace("accelerator: cpu}", SYMMETRY))
    status, out, err = fit("--config", digits_ways, "--seeds", "2")
    assert status == 0, err
    folder = group(tmp_path)
    page = (folder / "report.html").read_text()
    assert "Scatter within classes and along orbits by epoch" in page
    assert "digits_ways · way plain</li>" in page  # which says it all
    assert "digits_ways · way turned</li>" in page
    tables = [read_symmetry(f.parent) for f in sorted(folder.glob("*/symmetry.csv"))]
    for name, split, metric in (
        ("plain", "train", "nc1_quotient"), ("rotations90", "train", "orbit_quot"),
        ("rotations90", "val", "acc_orbit_worst"), ("flips", "val", "acc_orbit_mean"),
    ):  # fmt: skip
        (line,) = re.findall(rf"^  {split} {metric}, {name} .*$", out, re.M)
        rows = f"epoch == 1 and layer == element == '' and group == '{name}' and split == '{split}'"
        values = [float(table.query(rows)[metric].iloc[0]) for table in tables]
        means = [sum(pair) / 2 for pair in (values[:2], values[2:])]
        shown = [float(number) for number in re.findall(r"([\d.]+) ±", line)]
        assert shown == pytest.approx(means, rel=0.05, abs=1e-3), line


MISTAKES = {
    "digits --seeds 0": "--seeds takes a number of runs, 1 or more (--seeds 3), but got '0'",
    "digits --seeds -1": "but got '-1'",
    "digits --seeds x": "but got 'x'",
    "digits --seeds": "but got ''",
    "digits --seeds 2 --model.lrr 3": "unknown option model.lrr; did you mean 'model.lr'",
    "digits --seeds 2 --seed_everything true": "seed_everything, which must be a number",
    "digits --seeds 2 --trainer.fast_dev_run 1": "keeps nothing to compare",
    "digits --seeds 2 --resume": "runs/digits holds no interrupted --seeds 2 from seed 0",
    "digits --seeds 2 --model.network.hidden [0]": "every size must be at least 1",
    "digits --seeds 2 --trainer.accelerator gpus": "You selected an invalid accelerator name",
    "digits --seeds 2 --ckpt_path .": "--ckpt_path is of one run",
    "digits_rot90 --way plan": "did you mean 'plain'",
    "digits_rot90 --trainer.fast_dev_run 1": "keeps nothing to compare: one seed, one --way",
    "digits_rot90 --seed_everything true": "seed_everything, which must be a number",
    "digits_rot90 --resume": "runs/digits_rot90 holds no interrupted comparison of ways from seed",
    "digits_rot90 --data.classes [6]": "classes must be two or more different ones",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_a_mistake_is_found_before_the_first_seed(
    words: str, fit: Fit, children: Children, tmp_path: Path
) -> None:
    status, out, err = fit(*words.split())
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("ncmonitor: error: ")]
    assert MISTAKES[words] in line
    assert "Traceback" not in out + err
    assert not children.started
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [(), ("--trainer.default_root_dir", "mine")])
def test_a_mistake_that_only_a_run_finds_is_reported_once(
    folder: tuple[str, ...], fit: Fit, children: Children, tmp_path: Path
) -> None:
    status, _, err = fit(*SHORT, "--seeds", "3", "--data.batch_size", "5000", *folder)
    assert status == 2
    assert err.count("there are 1437 training images") == 1
    assert len(children.started) == 1
    assert not list(tmp_path.iterdir())


def test_runs_are_not_overwritten_in_a_named_folder(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "mine" / "seed0").mkdir(parents=True)
    (tmp_path / "mine" / "seed0" / "history.csv").write_text("epoch\n")
    status, _, err = fit(*SHORT, "--seeds", "2", "--trainer.default_root_dir", "mine")
    assert status == 2
    assert "mine already holds runs" in err


CTRL_C = """
import os, signal
import pytorch_lightning as pl

class CtrlC(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if "CTRL_C" in os.environ and trainer.current_epoch == 1:
            os.killpg(0, signal.SIGINT)  # as a terminal does
"""


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pages")
def test_ctrl_c_ends_the_run_and_starts_no_other_and_resuming_finishes(
    fit: Fit, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ctrl_c.py").write_text(CTRL_C)
    words = (*SHORT, "--trainer.max_epochs=2", "--trainer.callbacks+=ctrl_c.CtrlC", "--seeds=2")
    stopped = subprocess.run(
        [sys.executable, "-m", "ncmonitor", "fit", *words],
        cwd=tmp_path, env=os.environ | {"CTRL_C": "1"}, start_new_session=True,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    folder = group(tmp_path)
    assert stopped.returncode == 1, stopped.stderr
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"seed0"}
    assert "Not finished: seed 0, seed 1; the same command with --resume goes on." in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert (folder / "report.html").is_file()  # of what is there
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = fit(*words, "--resume")
    monkeypatch.delitem(sys.modules, "ctrl_c")
    assert status == 0, err
    assert ["--resume" in given for given, _ in children.started] == [True, False]
    assert group(tmp_path) == folder
    for seed in (0, 1):
        assert read_run(folder / f"seed{seed}")["finished"]
        assert read_history(folder / f"seed{seed}")["epoch"].max() == 2
