"""Pictures of symmetry: exact shares, one scale for classes and orbits, and nothing invented."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from histories import collapse
from ncmonitor import InputError
from ncmonitor.plots import collapse_and_orbits, group_curves, irrep_budget
from ncmonitor.plots._irreps import has_budget
from symmetries import WAYS, symmetry

TWO = {"rotations90": ("rot90", "rot180", "rot270"), "flips": ("flip_h",)}
MANY = {"shifts": tuple(f"s{i}" for i in range(24))}


def draw(figure: Any) -> None:
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def labels_of(ax: Any) -> list[str]:
    return [str(line.get_label()) for line in ax.lines if str(line.get_label())[0] != "_"]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def areas_of(ax: Any) -> list[np.ndarray]:
    """Return the vertices of the filled areas, from the bottom."""
    return [np.vstack([p.vertices for p in area.get_paths()]) for area in ax.collections]


def budget(lengths: float = 0.36, **changes: Any) -> pd.DataFrame:
    history = collapse(range(20), exits=(), failed=())
    total = np.linspace(0.8, 0.1, 20).repeat(2)
    history["sk_breaking_means"] = total
    history["sk_breaking_norm"] = total * np.sqrt(lengths)
    history["sk_breaking_pair"] = total * np.sqrt(1 - lengths)
    return history.assign(**changes)


def of_epoch(epoch: int) -> pd.DataFrame:
    history = budget()
    return history.loc[history["epoch"] == epoch]


# -- the irrep budget ------------------------------------------------------------------------------


def test_the_shares_are_squares_and_fill_the_axes() -> None:
    ax = irrep_budget(budget(0.36))
    lower, upper = areas_of(ax)
    assert {round(float(y), 9) for y in lower[:, 1]} == {0.0, 0.36}
    assert {round(float(y), 9) for y in upper[:, 1]} == {0.36, 1.0}
    assert ax.get_ylim() == (0, 1)


def test_the_line_beside_the_shares_is_the_breaking_itself() -> None:
    history = budget()
    ax: Any = irrep_budget(history)
    right = ax.figure.axes[1]
    own = history[history["split"] == "train"]["sk_breaking_means"]
    assert np.asarray(right.lines[0].get_ydata()) == pytest.approx(own.to_numpy())
    assert right.get_yscale() == "log"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["unequal lengths", "similar pairs", "S_K breaking (right axis)"]


def test_the_budget_shades_the_terminal_phase_and_says_when_it_began() -> None:
    ax = irrep_budget(budget())
    assert any(patch.get_label() == "_TPT" for patch in ax.patches)
    assert "TPT from epoch 12" in [text.get_text() for text in ax.texts]


def test_a_failed_measurement_is_a_gap_in_the_shares() -> None:
    history = budget()
    history.loc[history["epoch"] == 10, "sk_breaking_means"] = np.nan
    lower, _ = areas_of(irrep_budget(history))
    assert not {10.0} & set(lower[:, 0])
    assert {9.0, 11.0} <= set(lower[:, 0])


def test_two_classes_have_no_budget_and_the_axes_say_so() -> None:
    history = budget(n_classes_present=2.0, sk_breaking_means=0.0)
    ax = irrep_budget(history)
    assert "two classes" in ax.texts[0].get_text()
    assert not has_budget(history)
    assert has_budget(budget())


def test_symmetry_to_rounding_has_no_shares_but_shows_the_zeros() -> None:
    gone = dict.fromkeys(("sk_breaking_means", "sk_breaking_norm", "sk_breaking_pair"), 0.0)
    ax: Any = irrep_budget(budget(**gone))
    assert not [path for area in ax.collections for path in area.get_paths()]
    assert set(ax.figure.axes[1].lines[0].get_ydata()) == {0.0}
    draw(ax.figure)


@pytest.mark.parametrize(
    "history",
    [
        of_epoch(3),
        collapse(range(5), failed=range(5)),
        budget().drop(columns=["sk_breaking_norm", "sk_breaking_pair"]),
        budget(sk_breaking_norm=np.inf),
    ],
    ids=["one epoch", "all nan", "no parts", "infinite"],
)
def test_degenerate_budgets_are_drawn_without_a_warning(history: pd.DataFrame) -> None:
    draw(irrep_budget(history).figure)


def test_one_epoch_has_a_bar_of_its_shares() -> None:
    ax: Any = irrep_budget(of_epoch(3))
    heights = [p.get_height() for p in ax.patches if p.get_label() == "_nolegend_"]
    assert heights == pytest.approx([0.36, 0.64])


def test_the_budget_of_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="split= must be among train, val, but is 'test'"):
        irrep_budget(budget(), split="test")


# -- class collapse and orbit collapse -------------------------------------------------------------


def test_one_run_has_class_and_orbit_collapse_in_one_panel() -> None:
    table = symmetry()
    figure = collapse_and_orbits(table)
    [ax] = figure.axes
    assert legend_of(figure) == ["class collapse", "orbit collapse, rotations90"]
    for line, (name, group) in zip(
        ax.lines, [("nc1_quotient", "plain"), ("orbit_quot", "rotations90")], strict=True
    ):
        rows = table[(table["split"] == "train") & (table["group"] == group)]
        values = rows[rows["element"] == ""][name].to_numpy()
        assert np.asarray(line.get_ydata()) == pytest.approx(values)
    assert ax.get_yscale() == "log"


def test_another_split_and_an_inner_layer_can_be_drawn() -> None:
    table = symmetry(layers=("body.2",))
    figure = collapse_and_orbits(table, split="val", layer="body.2")
    [ax] = figure.axes
    own = (table["split"] == "val") & (table["layer"] == "body.2") & (table["group"] == "plain")
    assert np.asarray(ax.lines[0].get_ydata()) == pytest.approx(table[own]["nc1_quotient"])
    assert "val, body.2" in ax.get_ylabel()


def test_several_ways_share_their_scale_and_a_colour_each() -> None:
    figure = collapse_and_orbits({way: symmetry(way=way) for way in WAYS})
    classes, orbits = figure.axes
    assert classes.get_ylim() == orbits.get_ylim()
    assert legend_of(figure) == list(WAYS)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "class collapse",
        "orbit collapse, rotations90",
    ]
    colours = [line.get_color() for line in classes.lines]
    assert len(set(colours)) == 3


def test_an_invariant_network_is_drawn_at_zero_and_does_not_stretch_the_scale() -> None:
    ways = {way: symmetry(way=way) for way in ("plain", "equivariant")}
    orbits = collapse_and_orbits(ways).axes[1]
    zeros = [line for line in orbits.lines if line.get_label() == "_zero"]
    assert len(zeros) == 1
    assert orbits.get_ylim()[0] > 1e-4
    only = collapse_and_orbits({"equivariant": symmetry(way="equivariant")}).axes[0]
    assert [line.get_label() for line in only.lines].count("_zero") == 1


def test_seeds_of_a_way_are_a_mean_and_a_band_from_the_least_to_the_most() -> None:
    seeds = [symmetry(seed=seed) for seed in range(3)]
    figure = collapse_and_orbits({"plain": seeds, "augmented": [symmetry(way="augmented")]})
    orbits = figure.axes[1]
    values = np.array(
        [t.query("split == 'train' and group == 'rotations90' and element == ''")["orbit_quot"]
         for t in seeds]
    )  # fmt: skip
    assert np.asarray(orbits.lines[0].get_ydata()) == pytest.approx(values.mean(axis=0))
    [band] = orbits.collections
    assert np.asarray(band.get_paths()[0].vertices)[:, 1].max() == pytest.approx(values.max())


def test_seeds_are_compared_at_the_epochs_they_share() -> None:
    ways = {"a": [symmetry([0, 1, 2]), symmetry([0, 2, 5])], "b": [symmetry([0, 1])]}
    line = collapse_and_orbits(ways).axes[0].lines[0]
    assert list(np.asarray(line.get_xdata())) == [0, 2]


def test_every_group_that_all_runs_have_gets_a_panel() -> None:
    ways = {"a": symmetry(groups=TWO), "b": symmetry(groups={"flips": ("flip_h",)})}
    titles = [ax.get_title("left") for ax in collapse_and_orbits(ways).axes]
    assert titles == ["class collapse", "orbit collapse, flips"]
    assert len(collapse_and_orbits(symmetry(groups=TWO), groups="flips").axes[0].lines) == 2
    with pytest.raises(InputError, match="'rotations90' is not; all have flips"):
        collapse_and_orbits(ways, groups="rotations90")


def test_no_table_is_refused() -> None:
    with pytest.raises(InputError, match="at least one table"):
        collapse_and_orbits({})
    with pytest.raises(InputError, match="at least one table"):
        collapse_and_orbits({"a": []})


@pytest.mark.parametrize(
    "table",
    [
        symmetry([5]),
        symmetry(groups={}),
        symmetry().assign(orbit_quot=np.nan),
        symmetry().assign(orbit_quot=np.inf, nc1_quotient=0.0),
        symmetry(splits=("val",)),
    ],
    ids=["one epoch", "no group", "nan", "infinite", "no training set"],
)
def test_degenerate_tables_are_drawn_without_a_warning(table: pd.DataFrame) -> None:
    draw(collapse_and_orbits(table))
    draw(collapse_and_orbits({"a": table, "b": [table, table]}))


# -- the elements of a group -----------------------------------------------------------------------


def test_elements_have_a_line_each_beside_their_mean_and_the_plain_accuracy() -> None:
    table = symmetry()
    ax = group_curves(table, "acc", split="val")
    assert labels_of(ax) == ["untransformed", "rot90", "rot180", "rot270", "mean of rotations90"]
    assert ax.get_ylabel() == "accuracy under g (val)"
    own = table.query("split == 'val' and element == 'rot180'")["acc"]
    assert np.asarray(ax.lines[2].get_ydata()) == pytest.approx(own.to_numpy())


def test_many_elements_are_a_range_with_their_mean() -> None:
    ax: Any = group_curves(symmetry(groups=MANY), "inv_error")
    assert labels_of(ax) == ["mean of shifts"]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "24 elements, from the least to the most" in texts


def test_of_several_groups_each_is_a_line_unless_one_is_named() -> None:
    table = symmetry(groups=TWO)
    assert labels_of(group_curves(table, "inv_error")) == ["rotations90", "flips"]
    assert labels_of(group_curves(table, "inv_error", group="flips")) == ["flip_h"]
    assert labels_of(group_curves(table, "lie_error")) == ["shift_right"]
    assert labels_of(group_curves(table, "layer_balance")) == ["0 -> 2"]


def test_names_and_groups_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"'orbit_quott'; did you mean 'orbit_quot'"):
        group_curves(symmetry(), "orbit_quott")
    with pytest.raises(InputError, match="group= must be among rotations90, but is 'flips'"):
        group_curves(symmetry(), "acc", group="flips")


def test_what_was_not_measured_is_said() -> None:
    ax = group_curves(symmetry(parameters=False), "w_mean_law_ratio")
    assert [text.get_text() for text in ax.texts] == ["not measured"]
    draw(ax.figure)


def test_nothing_of_the_caller_changes() -> None:
    before = dict(mpl.rcParams)
    mine = Figure().subplots()
    assert group_curves(symmetry(), "acc", mine) is mine
    assert irrep_budget(budget(), mine.figure.subplots()) is not None
    draw(collapse_and_orbits(symmetry()))
    assert dict(mpl.rcParams) == before
