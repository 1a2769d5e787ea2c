"""``ncmonitor fit symmetry_zoo``: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from ncmonitor import InputError
from ncmonitor.cli import main
from ncmonitor.errors import MeasurementError
from ncmonitor.monitor.provenance import read_run
from ncmonitor.recipes.bundled import STUDIES, all_recipes, studies
from ncmonitor.recipes.zoo import geometric, symmetry_zoo
from ncmonitor.recipes.zoo import zoo_table as table
from ncmonitor.recipes.zoo.figure import draw
from ncmonitor.recipes.zoo.predictions import Theory
from ncmonitor.recipes.zoo.zoo_entries import Entry, chosen, entries
from ncmonitor.recipes.zoo.zoo_measurement import Result, Trained, verdicts

KNOWN = entries()
Zoo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zoo:
    """Return a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", "symmetry_zoo", *words])
        return status, *capsys.readouterr()

    return run


def refused(result: tuple[int, str, str]) -> str:
    """Return the one line of a refusal; nothing may be left behind."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert list(Path.cwd().iterdir()) == []
    (line,) = err.splitlines()
    return line


def made(name: str, change: float = 1.0) -> list[Result]:
    """Results of made numbers that agree with theory; times a number where they are not 0."""
    sizes = {Theory.ZERO: 1e-30, Theory.SMALL: 0.1, Theory.FREE: 0.5}
    found = []
    for claim in KNOWN[name].claims:
        where = ["features", "logits", *(["inner"] if claim.inner else [])]
        errors = {w: change * sizes[claim.of(w) or Theory.FREE] for w in where}
        found.append(Result(KNOWN[name], claim, errors, errors, Trained(0.9, 0.8, 3, 2.0)))
    return found


def dots(ax: Axes) -> list[tuple[float, float, bool]]:
    """Return place, row and whether it is filled of each dot that is drawn."""
    points = []
    for line in ax.lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        if line.get_marker() == "o" and len(x):
            points.append((float(x[0]), float(y[0]), line.get_markerfacecolor() != "white"))
    return points


# -- what it prints and keeps ----------------------------------------------------------------------


def test_a_small_zoo_is_trained_shown_and_kept(zoo: Zoo, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    status, out, err = zoo("--models", "gru,pointnet", "--epochs", "1", "--seed", "4")
    assert (status, err) == (0, "")
    assert torch.get_num_threads() == threads
    assert max(map(len, out.splitlines())) <= 100
    (folder,) = tmp_path.glob("runs/symmetry_zoo/*-seed4")
    assert {path.name for path in folder.iterdir()} == {
        *("zoo.csv", "zoo.md", "zoo.png", "run.json"),
    }
    kept = pd.read_csv(folder / "zoo.csv")
    assert set(kept["network"]) == {"gru", "pointnet"}
    assert set(kept["of"]) == {"features", "logits", "inner"}
    assert (kept["seed"] == 4).all()
    assert (kept[["agrees_before", "agrees_after"]] == "yes").all(axis=None)
    (counted,) = re.findall("^As theory says: (.*)[.]$", out, re.MULTILINE)
    zeros, free = (2 * (kept["theory"] == theory).sum() for theory in ("exactly 0", "free"))
    assert counted == f"{zeros} of {zeros} numbers exactly 0, {free} of {free} numbers free"
    page = (folder / "zoo.md").read_text(encoding="utf-8")
    features: Any = kept[kept["of"] == "features"]
    for row in features.itertuples():
        pair = f"{table.number(row.before)} → {table.number(row.after)}"
        assert re.search(rf"^  {row.group} +{row.theory} +{pair} ", out, re.MULTILINE)
        assert (
            f"| `{row.network}` | {row.test_accuracy:.1%} | {row.group} | {row.theory} | {pair} |"
            in page
        )
    with Image.open(folder / "zoo.png") as picture:
        assert picture.width > 1000
    run = read_run(folder)
    assert run["options"] == {"seed": 4, "models": ["gru", "pointnet"], "epochs": 1}
    assert str(folder.relative_to(tmp_path)) in out


def test_a_network_gives_the_same_numbers_alone_and_among_others(zoo: Zoo, tmp_path: Path) -> None:
    numbers = []
    for folder, names in (("alone", ["pointnet"]), ("both", ["mlp", "pointnet"])):
        assert zoo("--models", *names, "--epochs", "1", "--out", folder)[0] == 0
        kept = pd.read_csv(tmp_path / folder / "zoo.csv").query("network == 'pointnet'")
        numbers.append(kept[["before", "after", "train_accuracy"]].to_numpy().tolist())
    assert numbers[0] == numbers[1]


def test_a_claim_without_its_reference_is_neither_kept_nor_broken(zoo: Zoo) -> None:
    out = zoo("--models", "cnn_maxpool", "--epochs", "0")[1]
    assert "As theory says: 0 of 4 numbers nearly 0." in out
    assert "before training cannot be told; needs cnn_dense" in out
    assert re.search(r"^  circular_shifts +nearly 0 .* \?$", out, re.MULTILINE)


def test_what_disagrees_is_named_in_every_form() -> None:
    results = [*made("cnn_dense"), *made("cnn_maxpool", 100.0), *made("pointnet", 1e20)]
    told = verdicts(results)
    lines = "\n".join(table.closing(results, told))
    large = "cnn_maxpool, circular_shifts, features: 10 before training is not nearly 0"
    assert f"{large}, for it is not below cnn_dense" in lines
    assert "pointnet, permutations, inner map: 1e-10 after training is not exactly 0" in lines
    assert "O3" not in lines  # free, and large as before
    assert re.search(
        r"^  permutations .* NO +exactly 0 .* NO$", table.block(results[-3:], told[-3:]), re.M
    )
    assert large in table.page(results, told, [])
    frame = table.frame(results, told, 0)
    assert set(frame.query("agrees_after == 'no'")["network"]) == {"cnn_maxpool", "pointnet"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (0.0, "0"),
            (3.21e-31, "3e-31"),
            (0.00034, "3e-04"),
            (0.0034, "0.003"),
            (0.0234, "0.023"),
        ),
        *((0.8, "0.8"), (8.53, "8.5"), (47.6, "48"), (158.4, "158"), (5e19, "5e+19")),
    ],
)
def test_errors_are_written_shortly(value: float, text: str) -> None:
    assert table.number(value) == text


def test_the_figure_has_a_row_for_each_claim_and_zeros_at_its_edge() -> None:
    results = [*made("gru_packed"), *made("cnn_dense"), *made("schnet")]
    results[0] = replace(results[0], after=dict.fromkeys(results[0].after, 0.0))
    figure = draw(results)
    features, _, inner = figure.axes
    names = [label.get_text() for label in features.get_yticklabels()]
    assert names[:2] == ["gru_packed   time shifts", "reversal"]
    assert len(names) == len(results)
    after = [(x, row) for x, row, filled in dots(features) if filled]
    assert [row for _, row in after] == list(range(len(results)))
    assert [x for x, _ in after[:2]] == [1e-35, 0.5]
    assert features.get_xlim()[0] < 1e-35
    with_inner = [i for i, result in enumerate(results) if result.claim.inner]
    assert sorted({row for _, row, _ in dots(inner)}) == with_inner


def test_the_zoo_is_listed_and_described_as_other_recipes_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(studies()) == set(STUDIES) <= set(all_recipes())
    assert main(["recipes"]) == 0
    assert "\nsymmetry_zoo  " in capsys.readouterr().out
    assert main(["recipes", "symmetry_zoo"]) == 0
    assert "run it    ncmonitor fit symmetry_zoo" in capsys.readouterr().out
    networks = re.search(r"(\d+) small networks", studies()["symmetry_zoo"].model)
    assert networks
    assert int(networks[1]) == len(KNOWN)


# -- without torch_geometric, and interrupted ------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometric, "is_there", lambda: False)


@pytest.mark.usefixtures("without")
def test_without_the_extra_its_networks_are_left_out() -> None:
    wanted, missing = chosen([])
    assert missing == ["gnn", "gnn_numbered", "pointnet_conv", "schnet"]
    assert [entry.name for entry in wanted] == [name for name in KNOWN if name not in missing]


@pytest.mark.usefixtures("without")
def test_without_the_extra_one_line_says_what_to_install(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symmetry_zoo, "run", lambda entry, seed, epochs: made(entry.name))
    out = zoo()[1]
    assert (
        "\nLeft out: gnn, gnn_numbered, pointnet_conv, schnet; they need pip install "
        "'ncmonitor[symmetry]'" in out
    )


@pytest.mark.usefixtures("without")
def test_a_network_that_needs_the_extra_is_refused_by_name(zoo: Zoo) -> None:
    line = refused(zoo("--models", "mlp", "schnet"))
    assert "schnet needs torch_geometric: pip install 'ncmonitor[symmetry]'" in line


@pytest.mark.parametrize("how", [KeyboardInterrupt(), MeasurementError("mlp diverged")])
def test_what_was_measured_before_an_end_is_kept(
    how: BaseException, zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopping(entry: Entry, *_: Any) -> list[Result]:
        if entry.name == "cnn_gap":
            raise how
        return made(entry.name)

    monkeypatch.setattr(symmetry_zoo, "run", stopping)
    status, out, _ = zoo()
    assert status == 1
    (kept,) = tmp_path.glob("runs/symmetry_zoo/*/zoo.csv")
    assert set(pd.read_csv(kept)["network"]) == {"mlp", "cnn_dense"}
    assert f"networks were asked for: {str(how) or 'stopped'}." in out


@pytest.mark.parametrize("how", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_run_that_measured_nothing_leaves_nothing(
    how: BaseException, zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopping(*_: Any) -> list[Result]:
        raise how

    monkeypatch.setattr(symmetry_zoo, "run", stopping)
    if isinstance(how, KeyboardInterrupt):
        assert zoo()[0] == 1
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            zoo()
    assert list(tmp_path.iterdir()) == []


# -- misused ---------------------------------------------------------------------------------------

MISTAKES = {
    "--models cnn_gab": "unknown network 'cnn_gab', expected some of: mlp, cnn_dense",
    "--models mlp,transformers": "did you mean 'transformer'",
    "--model mlp": "symmetry_zoo has no option --model; did you mean '--models'",
    "--seeds 3": "symmetry_zoo has no option --seeds; did you mean '--seed'",
    "--trainer.max_epochs=3": "symmetry_zoo has no option --trainer.max_epochs",
    "--seed one": "argument --seed: expected a whole number from 0, got 'one'",
    f"--seed {2**63}": "argument --seed: expected a whole number",
    "--epochs -1": "argument --epochs: expected",
    "--models": "argument --models: expected at least one argument",
    "digits": "symmetry_zoo has no option digits; expected",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_what_cannot_work_is_refused_in_one_line(words: str, zoo: Zoo) -> None:
    assert MISTAKES[words] in refused(zoo(*words.split()))


def test_a_folder_that_holds_a_zoo_is_not_overwritten(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zoo.csv").write_text("precious")
    status, _, err = zoo("--out", "mine")
    assert status == 2
    assert "mine already holds a zoo; name another folder with --out" in err
    assert (tmp_path / "mine" / "zoo.csv").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_named(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = zoo("--out", "file/zoo", "--models", "mlp")
    assert status == 2
    assert "cannot make the folder file/zoo: " in err


def test_a_place_for_runs_that_is_none_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    status, _, err = zoo("--models", "mlp")
    assert status == 2
    assert "name another one with --out" in err


def test_an_unknown_network_is_refused_in_python_too() -> None:
    with pytest.raises(InputError, match="did you mean 'gru'"):
        chosen(["grus"])
