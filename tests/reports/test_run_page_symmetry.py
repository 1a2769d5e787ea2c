"""The section on symmetry of a report: what it shows, what it says, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from histories import collapse_rows
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history import history_frame, start_history
from ncmonitor.monitor.provenance import write_run
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE, symmetry_frame
from ncmonitor.plots import group_curves
from ncmonitor.reports import symmetry_words as words
from ncmonitor.reports.run_page import export_run
from ncmonitor.reports.run_page.symmetry_section import budget, read, section
from ncmonitor.symmetry.rows import COLUMNS, FACTS_FILE
from pages import HOSTILE, Page, make_run
from pages import read as read_page
from symmetries import symmetry, symmetry_rows

TWO = {"rotations90": ("rot90", "rot180", "rot270"), "flips": ("flip_h",)}


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures that have tests of their own."""
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PANELS", ())
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PATHS", ())
    monkeypatch.setattr("ncmonitor.reports.run_page.overview", lambda history: Figure())


def run_with(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    make_run(folder, collapse_rows(range(3)))
    start_history(folder, rows, COLUMNS, file=SYMMETRY_FILE)
    return folder


def page_of(folder: Path, **settings: Any) -> Page:
    return read_page(run_with(folder, symmetry_rows([0, 5, 50], **settings)))


# -- the page --------------------------------------------------------------------------------------


def test_a_run_with_a_table_of_symmetry_shows_its_numbers_and_links_the_file(
    tmp_path: Path,
) -> None:
    page = page_of(tmp_path / "run", groups=TWO, layers=("body.2",))
    assert page.tags["figure"] == 4  # both collapses, two groups' accuracies, the irrep budget
    table = symmetry([0, 5, 50], groups=TWO, layers=("body.2",))
    whole = "epoch == 50 and group == 'flips' and element == '' and layer == '' and split == 'val'"
    last = table.query(whole).iloc[0]
    for name in ("orbit_quot", "inv_error"):
        assert f"{last[name]:.4g}" in page.text
    for word in ("orbit_quot", "equiv_r2", "lie_error", "body.2", "0 -> 2", "symmetry.csv"):
        assert word in page.text


def test_without_the_table_there_is_the_irrep_budget_alone(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path / "run", collapse_rows(range(3))))
    assert page.tags["figure"] == 1
    assert "Full collapse is a symmetry" in page.text
    assert "orbit_quot" not in page.text


def test_with_two_classes_and_no_table_there_is_no_section(tmp_path: Path) -> None:
    rows = [
        row | {"n_classes_present": 2.0, "sk_breaking_means": 0.0}
        for row in collapse_rows(range(3))
    ]
    page = read_page(make_run(tmp_path / "run", rows))
    assert page.tags["figure"] == 0
    assert "Full collapse is a symmetry" not in page.text


def test_names_from_the_run_are_escaped(tmp_path: Path) -> None:
    group = re.sub(r"\s", "", HOSTILE)
    page = page_of(tmp_path / "run", groups={group: (f"{group}2",)}, layers=(HOSTILE,))
    assert page.tags["script"] == 0
    assert group in page.text


def test_a_damaged_table_is_a_caution_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(3)))
    (folder / SYMMETRY_FILE).write_text("epoch,step\n1,2\n")
    page = read_page(folder)
    assert "The symmetry of the inputs is left out" in page.text
    cut = run_with(tmp_path / "cut", symmetry_rows([0, 1]))
    path = cut / SYMMETRY_FILE
    path.write_text(path.read_text()[:-5])
    assert "The last row of symmetry.csv is cut short" in read_page(cut).text


@pytest.mark.parametrize(
    "table",
    [
        symmetry([0]),
        symmetry(groups={}),
        symmetry(groups={}, flows=(), parameters=False),
        symmetry(groups={}, flows=(), splits=()),
        symmetry(splits=("val",)),
        symmetry().assign(**dict.fromkeys(COLUMNS[6:], np.nan)),
        symmetry().assign(orbit_quot=np.inf, acc=np.nan, equiv_r2=np.nan),
        symmetry(groups={"shifts": tuple(f"s{i}" for i in range(30))}),
    ],
    ids=["one epoch", "no group", "plain alone", "parameters alone", "val alone", "all nan",
         "infinite", "many elements"],
)  # fmt: skip
def test_degenerate_tables_have_a_section(table: pd.DataFrame) -> None:
    found = section(table)
    assert found is not None
    assert not any("nan" in said or "inf" in said for said in found["findings"])


def test_of_few_numbers_only_those_that_were_measured_have_a_row() -> None:
    [groups, flows] = section(symmetry().assign(group_law=np.nan))["tables"]  # type: ignore[index]
    names = [quantity.name for quantity, _ in groups["lines"]]
    assert "orbit_quot" in names
    assert "group_law" not in names
    assert [head[:2] for head in groups["heads"]] == [("rotations90", s) for s in ("train", "val")]
    assert [quantity.name for quantity, _ in flows["lines"]] == ["lie_error", "lie_error_logits"]


def test_a_run_without_a_table_is_no_caution(tmp_path: Path) -> None:
    assert read(tmp_path) == (None, [])
    assert section(None) is None
    assert budget(history_frame(collapse_rows(range(2), splits=("val",)))) is None


REASONS = {
    "equiv_r2 of rotations90 (train)": "12 samples are too few",
    "equiv_r2 of flips (train)": "12 samples are too few",
    "w_mean_law_ratio": f"the optimiser is {HOSTILE}",
}


def test_the_page_says_why_numbers_were_not_measured(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", symmetry_rows([0, 5]))
    write_run(folder, {"reasons": REASONS}, FACTS_FILE)
    page = read_page(folder)
    assert "Not measured, and why" in page.text
    assert page.tags["script"] == 0
    words_only = re.sub(r"[\s,:]+", " ", page.text)
    wanted = (
        "equiv_r2 of rotations90 (train) equiv_r2 of flips (train) 12 samples are too few w_mean"
    )
    assert wanted in words_only
    assert HOSTILE in page.text


@pytest.mark.parametrize("facts", [{}, {"reasons": {}}, {"reasons": ["law"]}, {"reasons": None}])
def test_without_reasons_there_is_no_heading_for_them(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    folder = run_with(tmp_path / "run", symmetry_rows([0, 5]))
    write_run(folder, facts, FACTS_FILE)
    assert "and why" not in read_page(folder).text


def test_the_split_of_the_parameters_is_no_split_of_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []

    def spy(table: pd.DataFrame, *args: Any, split: str, **settings: Any) -> Any:
        drawn.append(split)
        return group_curves(table, *args, split=split, **settings)

    monkeypatch.setattr("ncmonitor.reports.run_page.symmetry_section.group_curves", spy)
    found = section(symmetry(splits=("val",)))
    assert found is not None
    assert drawn == ["val"]
    assert any(said.startswith("On val, accuracy is") for said in found["findings"])


# -- the words -------------------------------------------------------------------------------------


def said(way: str = "plain", **changes: Any) -> list[str]:
    return words.findings(symmetry(way=way, **changes))


def test_collapse_of_the_classes_without_invariance_is_said_with_both_numbers() -> None:
    assert said()[0] == (
        "From epoch 0 to 100 the scatter within classes fell 49-fold to 0.00496, the scatter along "
        "orbits of rotations90 fell 1.4-fold to 0.561 (both over the variance between classes): "
        "the collapse of the classes did not bring invariance."
    )


def ends(classes: tuple[float, float], orbits: tuple[float, float]) -> str:
    """Return what is said of a run with these values at its first and last epoch."""
    table = symmetry([0, 100], splits=("train",))
    for name, group, values in (
        ("nc1_quotient", "plain", classes),
        ("orbit_quot", "rotations90", orbits),
    ):
        own = (table["group"] == group) & (table["element"] == "")
        table.loc[own, name] = np.array(values)
    return words.findings(table)[0]


INVARIANT, NOT_INVARIANT = "orbits collapsed with the classes.", "did not bring invariance."
PLAIN_NUMBERS = "(both over the variance between classes)."


@pytest.mark.parametrize(
    ("classes", "orbits", "verdict"),
    [
        ((50.0, 0.005), (900.0, 1.03), NOT_INVARIANT),  # a large fall, from almost no Σ_B
        ((50.0, 0.005), (90.0, 0.9), NOT_INVARIANT),
        ((50.0, 1e-4), (5.0, 0.02), INVARIANT),  # a smaller fall than that of the classes
        ((50.0, 0.05), (5.0, 0.1), INVARIANT),
        ((50.0, 0.05), (50.0, 0.3), PLAIN_NUMBERS),
        ((50.0, 0.5), (50.0, 0.05), PLAIN_NUMBERS),  # the classes have not collapsed
        ((50.0, 2.0), (900.0, 30.0), PLAIN_NUMBERS),
        ((0.06, 0.01), (3.0, 2.0), PLAIN_NUMBERS),
        ((1.0, 0.001), (0.08, 0.07), PLAIN_NUMBERS),
    ],
)
def test_a_verdict_on_orbits_needs_their_level_and_not_their_fall_alone(
    classes: tuple[float, float], orbits: tuple[float, float], verdict: str
) -> None:
    found = ends(classes, orbits)
    assert found.endswith(verdict)
    assert f"to {words.number(classes[1])}, the scatter along orbits of rotations90" in found
    assert f" {words.number(orbits[1])} (both over" in found


def test_what_did_not_change_is_said_to_have_stayed() -> None:
    found = ends((0.5, 0.5), (2.0, 4.0))
    assert "within classes stayed at 0.5, the scatter along orbits of rotations90 rose" in found


def test_orbits_that_collapse_with_the_classes_are_said_to() -> None:
    assert said("augmented")[0].endswith("classes): orbits collapsed with the classes.")


def test_invariance_by_construction_is_said_to_hold_to_rounding() -> None:
    assert said("equivariant")[0] == (
        "At epoch 100 the features are invariant under rotations90 to rounding."
    )
    assert not any("Certificate" in each for each in said("equivariant"))


def test_where_classes_did_not_collapse_nothing_is_concluded() -> None:
    short = words.findings(symmetry([0, 1]))[0]
    assert short.startswith("From epoch 0 to 1 the scatter within classes fell 1.1-fold to 0.224")
    assert "invariance" not in short


def test_the_certificate_has_the_scatter_and_what_bounds_it() -> None:
    table = symmetry([0, 50])
    last = table.query("epoch == 50 and split == 'train' and group == 'rotations90'").iloc[-1]
    [found] = [each for each in words.findings(table) if each.startswith("Certificate")]
    numbers = [float(n) for n in re.findall(r"(\d\.\d+)\u00a0tr", found)]
    orbit = last["orbit_quot"]
    assert numbers == pytest.approx([orbit, orbit / last["orbit_share"]], rel=5e-3)


@pytest.mark.parametrize(("share", "count"), [(1.0, 1), (1.0001, 0), (2.5, 0), (0.0, 0)])
def test_a_scatter_estimated_above_its_bound_has_no_certificate(share: float, count: int) -> None:
    found = words.findings(symmetry([0, 50]).assign(orbit_share=share))
    assert sum(each.startswith("Certificate") for each in found) == count


def test_the_accuracy_over_an_orbit_is_said_to_count_the_identity() -> None:
    [found] = [each for each in said() if each.startswith("On val, accuracy is")]
    assert "over the transforms of rotations90, of which the identity is one, it is" in found
    for name in ("acc_orbit_mean", "acc_orbit_worst"):
        assert "the identity among the g" in CATALOGUE[name].definition


def test_accuracy_is_that_of_unseen_data_where_it_was_measured() -> None:
    assert any(each.startswith("On val, accuracy is") for each in said())
    assert any(each.startswith("On train, accuracy is") for each in said(splits=("train",)))


def test_of_the_untrained_network_no_law_is_said_to_hold() -> None:
    assert not any("mean row" in each for each in words.findings(symmetry([0])))
    rows = [
        row | ({"w_mean_law_ratio": float("nan")} if row["epoch"] else {})
        for row in symmetry_rows([0, 5])
    ]
    assert not any("mean row" in each for each in words.findings(symmetry_frame(rows)))
    assert "At epoch 1 the classifier's mean row" in words.findings(symmetry([0, 1]))[-1]


def test_the_law_of_the_mean_row_holds_or_something_else_moves_it() -> None:
    assert said()[-1].endswith("the law of SGD with softmax holds.")
    adam = [
        row | ({"w_mean_law_ratio": 7.5} if "w_mean_law_ratio" in row else {})
        for row in symmetry_rows()
    ]
    last = words.findings(symmetry_frame(adam))[-1]
    assert last.startswith("At epoch 100 the classifier's mean row is 7.5 times what")
    assert last.endswith("something else moves it.")


# -- files for a paper -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_export_has_the_budget_and_both_collapses(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", symmetry_rows([0, 5, 50]))
    names = {path.name for path in export_run(folder, "pdf")}
    assert {"irrep_budget.pdf", "collapse_and_orbits.pdf"} <= names
    (folder / SYMMETRY_FILE).unlink()
    assert "collapse_and_orbits.pdf" not in {path.name for path in export_run(folder, "pdf")}


def test_an_export_warns_of_a_table_that_it_leaves_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(3)))
    (folder / SYMMETRY_FILE).write_text("")
    with pytest.warns(UserWarning, match="symmetry of the inputs is left out"):
        export_run(folder, "png")
