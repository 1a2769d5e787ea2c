"""The recorded results parse, match the page that shows them, and keep what the recipes promise."""

from __future__ import annotations

import re
import shlex

import pandas as pd
import pytest
import yaml

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.recipes.bundled import recipes
from ncmonitor.recipes.fit.command import main
from ncmonitor.reports.expect import ExpectedBounds
from recipe_results import COLUMNS, PAGE, RESULTS, RUNS, known_runs, with_tables

RUN_HERE = {"digits", "mnist_quick", "cifar10_quick", "ufm", "imbalanced", "random_labels"}
LABELS = sorted(known_runs())


def table_of(label: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{label}.csv")


def test_every_recipe_that_can_run_here_was_run_with_three_seeds() -> None:
    runs = known_runs()
    assert {*runs} >= RUN_HERE | {"mnist_mse_short"}
    for label in RUN_HERE | {"mnist_mse_short"}:
        assert runs[label]["seeds"] == [0, 1, 2]


def test_the_page_shows_what_the_files_hold() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text
    for label in LABELS:
        assert f"results/{label}.csv" in text


def test_there_is_no_file_without_a_run_and_no_link_without_a_file() -> None:
    assert {path.stem for path in RESULTS.glob("*.csv")} == set(LABELS)
    for target in re.findall(r"\]\((results/[^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).is_file(), target
    assert RUNS.stat().st_size + sum(p.stat().st_size for p in RESULTS.iterdir()) < 2_000_000


@pytest.mark.parametrize("label", LABELS)
def test_a_history_is_whole(label: str) -> None:
    table, facts = table_of(label), known_runs()[label]
    assert set(table["seed"]) == set(facts["seeds"])
    assert {*COLUMNS} <= {*table} - {"seed", "split", "epoch"}
    assert all(name in CATALOGUE or name.startswith(("ufm/", "symmetry/")) for name in [*table][3:])
    assert not table.duplicated(["seed", "split", "epoch"]).any()
    train = table[table["split"] == "train"]
    for seed, epochs in zip(facts["seeds"], facts["epochs"], strict=True):
        measured = train.loc[train["seed"] == seed, "epoch"]
        assert (measured.min(), measured.max()) == (0, epochs)
    assert train[["error", "nc1", "nc2_etf_means", "nc3_self_duality"]].notna().all(axis=None)
    assert re.fullmatch(r"[0-9a-f]{40}", facts["commit"])
    assert facts["machine"]["cpu"]
    assert min(facts["fit_seconds"]) > 0


@pytest.mark.parametrize("label", LABELS)
def test_its_command_is_accepted(label: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(known_runs()[label]["command"])
    assert words[:2] == ["ncmonitor", "fit"]
    words = words[2 : words.index("--seeds")] if "--seeds" in words else words[2:]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("label", sorted(RUN_HERE))
def test_every_seed_keeps_what_the_recipe_promises(label: str) -> None:
    config = yaml.safe_load(recipes()[label].path.read_text(encoding="utf-8"))
    expected = ExpectedBounds.of(config["expect"])
    assert expected.epoch == config["trainer"]["max_epochs"]
    table = table_of(label)
    last = table[table["epoch"] == expected.epoch]
    for bounds in expected.bounds:
        values = last.loc[last["split"] == bounds.split, bounds.name]
        assert len(values) == 3, bounds.key
        assert all(map(bounds.hold, values)), (bounds.key, [*values])


@pytest.mark.parametrize("way", ["equal", "unequal"])
def test_the_symmetry_of_the_classes_is_broken_first_and_returns_if_the_labels_have_it(
    way: str,
) -> None:
    config = yaml.safe_load(recipes()["class_symmetry"].path.read_text(encoding="utf-8"))
    expected = ExpectedBounds.of(config["ways"][way].get("expect", config["expect"]))
    table = table_of(f"class_symmetry_{way}").query("split == 'train'")
    last = table[table["epoch"] == expected.epoch]
    assert len(last) == 5
    for bounds in expected.bounds:
        assert all(map(bounds.hold, last[bounds.name])), (bounds.key, [*last[bounds.name]])
    for _, course in table.groupby("seed"):
        breaking = course.set_index("epoch")["sk_breaking_w"]
        assert breaking.loc[:10].max() > 1.2 * breaking.loc[0]
        assert (breaking.iloc[-1] < 0.2 * breaking.loc[0]) == (way == "equal")


def test_classes_collapse_without_their_orbits_unless_the_network_or_the_data_are_symmetric() -> (
    None
):
    last = {}
    for way in ("plain", "augmented", "equivariant"):
        table = table_of(f"digits_rot90_{way}")
        assert set(table["seed"]) == {0, 1, 2}
        last[way] = table[(table["epoch"] == 100) & (table["split"] == "train")]
    classes = {way: rows["symmetry/plain/nc1_quotient"] for way, rows in last.items()}
    orbits = {way: rows["symmetry/rotations90/orbit_quot"] for way, rows in last.items()}
    assert classes["plain"].max() < 0.001
    assert orbits["plain"].min() > 2
    assert max(classes["augmented"].max(), classes["equivariant"].max()) < 0.013
    assert orbits["augmented"].max() < 0.004
    assert orbits["equivariant"].max() < 1e-10
