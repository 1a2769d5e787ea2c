"""The table of symmetry of a comparison: a line for each way and group, over the seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histories import collapse_rows
from ncmonitor.monitor.history import start_history
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.reports.comparison.aggregate import spread
from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.comparison.runs import read_runs
from ncmonitor.reports.comparison.symmetry_summary import symmetry_table
from ncmonitor.symmetry.rows import COLUMNS
from pages import make_run
from symmetries import symmetry, symmetry_rows

TWO = {"rotations90": ("rot90",), "flips": ("flip_h",)}


def group(root: Path, way: str, seeds: int = 2, **settings: object) -> RunGroup:
    folders = []
    for seed in range(seeds):
        folder = make_run(root / f"{way}{seed}", collapse_rows(range(2)))
        rows = symmetry_rows([0, 5, 50], way=way, seed=seed, **settings)  # type: ignore[arg-type]
        start_history(folder, rows, COLUMNS, file=SYMMETRY_FILE)
        folders.append(folder)
    return RunGroup(way, tuple(read_runs(folders)[0]), True)


def test_a_line_has_mean_and_sd_over_the_seeds_at_the_last_epoch(tmp_path: Path) -> None:
    table = symmetry_table([group(tmp_path, "plain"), group(tmp_path, "augmented")])
    assert table is not None
    assert [line[:3] for line in table["lines"]] == [
        (0, "rotations90", "epoch 50"),
        (1, "rotations90", "epoch 50"),
    ]
    heads = [(quantity.name, split) for quantity, split in table["heads"]]
    assert heads[1] == ("orbit_quot", "train")
    assert heads[-1] == ("acc_orbit_worst", "val")
    ends = "epoch == 50 and split == 'train' and group == 'rotations90' and element == ''"
    values = [
        float(symmetry([0, 5, 50], seed=seed).query(ends)["orbit_quot"].iloc[0]) for seed in (0, 1)
    ]
    wanted = spread(float(np.mean(values)), float(np.std(values, ddof=1)))
    assert table["lines"][0][3][1].text.replace("\u00a0", " ") == wanted


def test_class_collapse_is_that_of_the_samples_as_they_are(tmp_path: Path) -> None:
    table = symmetry_table([group(tmp_path, "plain", seeds=1)])
    assert table is not None
    plain = symmetry([0, 5, 50]).query("epoch == 50 and split == 'train' and group == 'plain'")
    [(_, _, _, cells)] = table["lines"]
    assert cells[0].text == f"{plain['nc1_quotient'].iloc[0]:.4g}"


def test_without_a_training_set_the_accuracies_are_of_the_split_there_is(tmp_path: Path) -> None:
    table = symmetry_table([group(tmp_path, "plain", splits=("val",))])
    assert table is not None
    assert {split for _, split in table["heads"]} == {"val"}


def test_groups_that_all_runs_have_are_compared(tmp_path: Path) -> None:
    both = [group(tmp_path, "plain", groups=TWO), group(tmp_path, "augmented", groups=TWO)]
    table = symmetry_table(both)
    assert table is not None
    assert [line[1] for line in table["lines"]] == ["rotations90", "flips"] * 2
    one = [both[0], group(tmp_path, "equivariant", groups={"flips": ("flip_h",)})]
    table = symmetry_table(one)
    assert table is not None
    assert {line[1] for line in table["lines"]} == {"flips"}


@pytest.mark.parametrize("groups", [{}, {"flips": ("flip_h",)}])
def test_runs_without_a_table_or_a_common_group_have_none(
    tmp_path: Path, groups: dict[str, tuple[str, ...]]
) -> None:
    other = group(tmp_path, "augmented", groups=groups)
    if groups:
        (other.runs[0].folder / SYMMETRY_FILE).unlink()
    assert symmetry_table([group(tmp_path, "plain"), other]) is None


def test_a_number_that_some_seeds_lack_says_over_how_many_it_is(tmp_path: Path) -> None:
    runs = group(tmp_path, "plain")
    rows = [row | {"equiv_r2": float("nan")} for row in symmetry_rows([0, 5, 50])]
    start_history(runs.runs[0].folder, rows, COLUMNS, file=SYMMETRY_FILE)
    table = symmetry_table([runs])
    assert table is not None
    assert table["lines"][0][3][3].text == "0.4 (n\u00a0=\u00a01)"
