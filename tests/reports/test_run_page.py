from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from histories import collapse, collapse_rows
from ncmonitor import InputError
from ncmonitor.catalogue import CATALOGUE, METRICS, MONITORED
from ncmonitor.monitor.history import read_history
from ncmonitor.plots import PANELS
from ncmonitor.reports.page import GROUPS, formula
from ncmonitor.reports.run_page import write_report
from ncmonitor.reports.run_page.pictures import PATHS
from ncmonitor.reports.run_page.run_tables import epoch_table, some_epochs
from ncmonitor.reports.verdict import cautions, headline, number, standings
from pages import HOSTILE, RUN, Page, make_run, read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "digits-7")
    (folder / "wandb" / "offline-run-1-a").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return read(folder)


#: What every run has measured.
SHOWN = {q.name for q in CATALOGUE.values() if q.default or q.group in ("fit", "phase")}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a second and does not depend on what is tested."""
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PANELS", ())
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PATHS", ())
    monkeypatch.setattr(
        "ncmonitor.reports.run_page.symmetry_section.has_budget", lambda history: False
    )
    monkeypatch.setattr("ncmonitor.reports.run_page.overview", lambda history: Figure())


def test_the_page_holds_a_figure_per_panel_and_every_metric_name(page: Page) -> None:
    assert page.tags["figure"] == len(PANELS) + len(PATHS) + 1  # and the irrep budget
    assert page.tags["script"] == 0
    words = set(page.text.split())
    assert {entry.name for entry in METRICS if entry.default} <= words
    assert words >= SHOWN
    asked_for = {entry.name for entry in METRICS if not entry.default}
    assert not asked_for & words


def test_every_group_of_the_catalogue_has_a_title() -> None:
    groups = {entry.group for entry in CATALOGUE.values()}
    assert groups - {"regression", *MONITORED} == set(GROUPS)


def test_every_definition_and_meaning_is_visible(page: Page) -> None:
    shown = re.sub("[_{}]", "", page.text)
    for entry in (CATALOGUE[name] for name in SHOWN):
        assert entry.meaning in page.text
        assert re.sub("[_{}]", "", entry.definition)[:12] in shown


@pytest.mark.parametrize(
    ("text", "set_"),
    [
        ("floor of nc2_etf_w under it", "floor of <code>nc2_etf_w</code> under it"),
        ("√(sk_breaking_means² + 1)", "√(<code>sk_breaking_means</code>² + 1)"),
        ("of nc2_etf_*", "of <code>nc2_etf_*</code>"),
        ("W_cW_cᵀ / z_cc", "W<sub>c</sub>W<sub>c</sub>ᵀ / z<sub>cc</sub>"),
        ("n_min ‖W_LS‖ μ_c′", "n<sub>min</sub> ‖W<sub>LS</sub>‖ μ<sub>c′</sub>"),
        ("s_{K−1} < L_⊥ + L_NC2/3", "s<sub>K−1</sub> &lt; L<sub>⊥</sub> + L<sub>NC2/3</sub>"),
    ],
)
def test_subscripts_are_those_of_formulas_and_names_are_code(text: str, set_: str) -> None:
    assert str(formula(text)) == set_


@pytest.mark.usefixtures("no_pictures")
def test_a_selected_epoch_says_what_was_never_measured(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "nc1"} for row in collapse_rows(range(3))]
    rows[4] |= {"nc2_etf_w": math.nan}
    table = epoch_table(read_history(make_run(tmp_path / "run", rows)), None)
    cells = [dict(zip(table["labels"], line["cells"], strict=True)) for line in table["lines"]]
    assert [line["train NC1"].text for line in cells] == ["not measured"] * 3
    assert [line["train NC2 distance to ETF (W)"].text == "nan" for line in cells] == [0, 0, 1]


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_near_the_largest_number_has_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ncmonitor.reports.run_page.pictures.PANELS", (("cross_entropy",), ("nc1",))
    )
    rows = [row | {"cross_entropy": 1e306, "nc1": 1e306} for row in collapse_rows(range(3))]
    rows[0] |= {"cross_entropy": 2.0, "nc1": 2.0}
    page = read(make_run(tmp_path / "run", rows))
    assert page.tags["figure"] == 2
    assert "1.00×10³⁰⁶" in page.text


def test_the_page_fetches_nothing(page: Page) -> None:
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}:
            pixels = r"data:image/png;base64,[\w+/=\s]*"
            assert re.fullmatch(
                rf"#[\w-]+|history\.csv|run\.json|figures/curves\.png|{pixels}", value
            )
        assert "http" not in value or name.startswith("xmlns") or name == "http-equiv"
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", value))
    [policy] = [value for value in page.values("content") if "-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_the_style_fetches_nothing(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style.*?</style>", text, flags=re.DOTALL))
    assert "prefers-color-scheme" in styles
    assert not re.search(r"@import|url\(|http|@font-face", styles)


def test_ids_are_unique_and_every_reference_lands(page: Page) -> None:
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    wanted = [v[1:] for k in ("href", "xlink:href") for v in page.values(k) if v.startswith("#")]
    wanted += re.findall(r"url\(#([^)]*)\)", " ".join(v for _, v in page.attributes))
    assert wanted
    assert set(wanted) <= set(ids)


def test_figures_take_the_colours_of_the_page(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    panels = re.findall(r'<svg[^>]*="[^",]* by epoch".*?</svg>', text, flags=re.DOTALL)
    assert len(panels) == len(PANELS)
    assert all("var(--series-0)" in panel for panel in panels)
    assert all("var(--tpt)" in panel for panel in panels)
    assert not re.search(r"#[0-9a-f]{6}", " ".join(panels))


def test_the_verdict_names_the_onset_and_the_age(page: Page) -> None:
    assert (
        "Training error first reached 0 at epoch 12; the last measurement, epoch 150, is in the "
        "terminal phase, 138 epochs after it first began." in page.text
    )
    assert "came back once after it first vanished" in page.text
    assert "1 of 151 measurements of the training set failed" in page.text


def test_how_it_was_measured_and_where_it_comes_from_is_told(page: Page) -> None:
    for told in (
        *("net.head", "class-balanced", "every_epoch", "train 1437, val 360"),
        *("6 s of the 40 s of the fit (15.0 %)", "3 February 2026, 14:05 UTC", "2.15.0"),
        *("0123abcd, with uncommitted changes", "ncmonitor fit digits --seed_everything 0"),
    ):
        assert told in page.text


@pytest.mark.parametrize(
    ("epochs", "start", "chosen"),
    [
        (range(151), 12, [0, 1, 2, 5, 10, 12, 20, 50, 100, 150]),
        (range(4), None, [0, 1, 2, 3]),
        ([3, 7, 350], 7, [3, 7, 350]),
        ([4], None, [4]),
    ],
)
def test_selected_epochs_hold_the_first_the_onset_and_the_last(
    epochs: Sequence[int], start: int | None, chosen: list[int]
) -> None:
    assert some_epochs(epochs, start) == chosen


def test_the_onset_is_marked_in_the_table_of_epochs(page: Page) -> None:
    table = page.text[page.text.index("Selected epochs") : page.text.index("Every quantity")]
    assert table.count("TPT starts") == 1
    assert "12 TPT starts" in table


def test_the_overview_is_written_beside_the_report(folder: Path, page: Page) -> None:
    picture = (folder / "figures" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 500_000


def test_the_same_run_gives_the_same_page(folder: Path, page: Page) -> None:
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first


def test_no_path_of_the_machine_is_written(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder.parent) not in text
    assert "wandb sync wandb/offline-run-1-a" in text
    assert "wandb leet wandb/offline-run-1-a" in text


def test_every_string_of_a_run_is_escaped(tmp_path: Path) -> None:
    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {f"{key}{HOSTILE}": poison(v) for key, v in value.items()} | value
        return HOSTILE

    run = {k: HOSTILE if isinstance(v, str) else v for k, v in RUN.items()}
    run |= {k: poison(v) for k, v in RUN.items() if k in {"versions", "machine"}}
    run["measurement"] = dict.fromkeys(RUN["measurement"], HOSTILE) | {"splits": {HOSTILE: 1}}
    name = "run <script>alert(1)<script>&amp;"
    folder = make_run(tmp_path / name, collapse_rows(range(3), splits=("train", HOSTILE)), run)
    (folder / "wandb" / "offline-run-<script>").mkdir(parents=True)
    page = read(folder)
    assert page.tags["script"] == 0
    assert name in page.text
    assert page.text.count(HOSTILE) > 10


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "run",
    [
        None,
        [1, 2],
        {},
        dict.fromkeys(RUN),
        dict.fromkeys(RUN, 3),
        RUN | {"timing": {"monitor_seconds": "x"}, "max_epochs": "many", "created": "soon"},
        RUN | {"timing": {"fit_seconds": 0.0, "monitor_seconds": 0.0}, "finished": None},
    ],
)
def test_a_run_json_of_any_shape_has_a_report(run: object, tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run", collapse_rows(range(3)), run))
    assert "not recorded" in page.text
    assert set(page.text.split()) >= SHOWN


DEGENERATE = {
    "one epoch": collapse_rows(range(1)),
    "no validation": collapse_rows(range(20), splits=("train",)),
    "validation only": collapse_rows(range(3), splits=("val",)),
    "splits of several names": collapse_rows(range(20), splits=("train", "val0", "val1")),
    "all nan": collapse_rows(range(4), failed=range(4)),
    "last nan": collapse_rows(range(20), failed=(19,)),
    "sparse": collapse_rows((0, 3, 20, 150)),
    "test measured once": collapse_rows(range(20)) + collapse_rows([19], splits=("test",)),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in ("one epoch", "all nan") else [pytest.mark.slow])
        for case in DEGENERATE
    ],
)
def test_a_degenerate_history_has_a_report(case: str, tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run", DEGENERATE[case]))
    assert len(PANELS) <= page.tags["figure"] <= len(PANELS) + len(PATHS) + 1
    assert set(page.text.split()) >= SHOWN


@pytest.mark.usefixtures("no_pictures")
def test_shuffled_labels_are_explained_where_they_were_measured(tmp_path: Path) -> None:
    words = "the training set with shuffled labels"
    without = read(make_run(tmp_path / "without", collapse_rows(range(3))))
    rows = collapse_rows(range(3)) + collapse_rows(range(3), splits=("null",))
    assert words not in without.text
    assert words in read(make_run(tmp_path / "with", rows)).text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run folder with a history\.csv"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (
            collapse(exits=()),
            "Training error reached 0 at epoch 12; the last measurement, epoch 150, is 138 epochs "
            "into the terminal phase.",
        ),
        (
            collapse(range(14), exits=()),
            "Training error reached 0 at epoch 12; the last measurement, epoch 13, is 1 epoch "
            "into the terminal phase.",
        ),
        (
            collapse(range(13)),
            "Training error reached 0 at epoch 12, the last measurement: the terminal phase "
            "begins.",
        ),
        (
            collapse((0, 5, 20, 150), onset=20, exits=()),
            "Training error reached 0 by epoch 20 (the measurement before is epoch 5); the last "
            "measurement, epoch 150, is 130 epochs into the terminal phase.",
        ),
        (
            collapse(range(62)),
            "Training error first reached 0 at epoch 12, but the last measurement, epoch 61, is "
            "outside the terminal phase: the training error is 0.002088 again.",
        ),
        (
            collapse(failed=(150,)),
            "Training error reached 0 at epoch 12. Whether the network is still in the terminal "
            "phase at epoch 150 is not known: that measurement gave no training error.",
        ),
        (
            collapse(range(4)),
            "The terminal phase was not reached: the training error is 0.2331 at the last "
            "measurement, epoch 3.",
        ),
        (
            collapse(range(5), exits=(2,), failed=(4,)),
            "The terminal phase was not reached: the lowest training error is 0.002088 at epoch 2.",
        ),
        (
            collapse(range(3), failed=range(3)),
            "No training error was measured: whether the terminal phase was reached is unknown.",
        ),
        (
            collapse(range(3), splits=("val",)),
            "The training set was not measured, so nothing can be said about its collapse.",
        ),
    ],
)
def test_the_headline_says_what_was_measured_and_no_more(history: Any, said: str) -> None:
    assert headline(history) == said


def test_a_better_epoch_than_the_last_is_told_when_the_phase_is_not_reached() -> None:
    history = collapse(range(6), exits=(3,))
    assert "(lowest: 0.002088 at epoch 3)" in headline(history)


def test_standings_give_last_lowest_onset_and_validation() -> None:
    history = collapse(failed=())
    train = history[history["split"] == "train"].set_index("epoch")["nc1"]
    val = history[history["split"] == "val"].set_index("epoch")["nc1"]
    first = standings(history)[0]
    assert (first.quantity.name, first.epoch, first.value) == ("nc1", 150, train[150])
    assert first.lowest == (train.min(), train.idxmin())
    assert first.before == (train[12], 12)
    assert first.other == (val[150], "val")


def test_standings_after_a_failure_are_those_of_the_last_success() -> None:
    history = collapse(failed=(149, 150))
    assert {standing.epoch for standing in standings(history)} == {148}
    said = cautions(history, RUN)
    assert "The last measurement, epoch 150, failed" in said[0]
    assert "are those of epoch 148" in said[0]


def test_cautions_are_empty_for_a_run_with_nothing_to_hide() -> None:
    assert cautions(collapse(exits=(), failed=()), RUN) == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("n_classes_present", 9.0, "Only 9 of the 10 classes have samples"),
        ("n_classes_present", 2.0, "With two classes"),
        ("nc1_rank", 7.0, "The class means span 7 of 9 directions"),
        ("degenerate_classes", 1.0, "degenerate classes: 1 (should be 0)"),
        ("neg_clips", 2.0, "negative variances clipped: 2 (should be 0)"),
        ("nc1", np.nan, "Undefined (nan) at epoch 20: NC1."),
    ],
)
def test_cautions_name_what_limits_the_numbers(column: str, value: float, said: str) -> None:
    history = collapse(range(21), exits=(), failed=())
    history[column] = value
    assert any(caution.startswith(said) for caution in cautions(history, RUN))


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({}, "run.json is missing or unreadable"),
        (RUN | {"finished": None}, "The run has not recorded its end"),
        (RUN | {"max_epochs": 300}, "The last measured epoch is 150 of 300 planned"),
    ],
)
def test_cautions_name_what_the_run_did_not_record(run: dict[str, Any], said: str) -> None:
    assert any(caution.startswith(said) for caution in cautions(collapse(), run))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *[(0.0, "0"), (-0.0, "0"), (12.0, "12"), (1437.0, "1437"), (-0.5, "−0.5")],
        *[(0.0012345, "0.001234"), (2.1e-5, "2.10×10⁻⁵"), (-2.1e-5, "−2.10×10⁻⁵")],
        *[(3e9, "3.00×10⁹"), (np.nan, "nan"), (np.inf, "∞"), (-np.inf, "−∞")],
    ],
)
def test_numbers_are_written_for_readers(value: float, written: str) -> None:
    assert number(value) == written


# -- against what was expected ---------------------------------------------------------------------


EXPECT = "expect:\n  epoch: 150\n  nc1: 1.0\n  val/error: 0.001\n  nc2_etf_means: 0.01\n"
LEFT = {"limits": {"nc2_etf_means": 0.0251, "nc1": HOSTILE}, "limits_from": "class sizes"}


def expecting(folder: Path, config: str, run: object = RUN) -> str:
    make_run(folder, run=run)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return " ".join(read(folder).text.split())


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_expected_something_of_is_held_against_it(tmp_path: Path) -> None:
    text = expecting(tmp_path, EXPECT)
    section = text[text.index("Against what was expected") : text.index("The collapse, epoch by")]
    assert text.index("NC4 disagreement") < text.index("Against what was expected")
    assert "at epoch 150" in section
    assert re.search(r"nc1 0\.\d+ [\d.]+ ≤ 1 0 collapsed as expected", section)
    assert re.search(r"nc2_etf_means 0\.\d+ [\d.]+ ≤ 0.01 – not as far as expected", section)
    assert re.search(r"val/error 0\.016 [\d.]+ ≤ 0.001 – outside the expected range", section)
    assert re.search(r"nc3_self_duality 0\.\d+ [\d.]+ – – nothing expected", section)
    assert "shuffled labels" not in section


@pytest.mark.usefixtures("no_pictures")
def test_the_table_has_a_column_for_shuffled_labels_where_they_were_measured(
    tmp_path: Path,
) -> None:
    rows = collapse_rows(failed=())
    null = [row | {"split": "null", "nc1": 7.5} for row in rows if row["split"] == "train"]
    make_run(tmp_path, rows + null)
    (tmp_path / "config.yaml").write_text(EXPECT, encoding="utf-8")
    text = " ".join(read(tmp_path).text.split())
    assert "epoch 0 shuffled labels expected" in text
    assert re.search(r"nc1 0\.\d+ [\d.]+ 7\.5 ≤ 1 0 collapsed", text)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_nothing_was_expected_of_has_no_such_section(tmp_path: Path) -> None:
    text = expecting(tmp_path, "seed_everything: 1\n")
    assert "Against what was expected" not in text
    assert "theory leaves" not in text


@pytest.mark.usefixtures("no_pictures")
def test_floors_stand_in_the_tile_of_nc2_with_and_without_an_expectation(tmp_path: Path) -> None:
    run = RUN | {"measurement": RUN["measurement"] | LEFT}
    text = expecting(tmp_path / "plain", "{}", run)
    assert text.count("theory leaves for these class sizes0.0251") == 1
    nothing = RUN | {"measurement": {"limits": {"nc2_etf_means": 0.0}}}
    assert "theory leaves for" not in expecting(tmp_path / "balanced", "{}", nothing)
    section = expecting(tmp_path / "expecting", EXPECT, run).partition("Against what was")[2]
    assert "SELI" in section.partition("The collapse, epoch by")[0]
    lacking = run | {"measurement": run["measurement"] | {"limits_from": "feature dimension"}}
    text = expecting(tmp_path / "dimension", EXPECT, lacking)
    assert "theory leaves for this feature dimension0.0251" in text
    assert "SELI" not in text.partition("Against what was")[2].partition("The collapse, epoch")[0]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("expect: [", "config.yaml cannot be read"),
        (f"expect:\n  epoch: 150\n  {json.dumps(HOSTILE)}: 1\n", "there is no metric"),
        ("expect:\n  nc1: 1.0\n", "expect.epoch must be a number of completed epochs"),
        ("expect:\n  epoch: 150\n  nc1: .nan\n", "expect.nc1 must be a number"),
    ],
)
def test_an_expectation_that_cannot_be_judged_is_a_caution(
    tmp_path: Path, config: str, said: str
) -> None:
    text = expecting(tmp_path, config)
    assert text.count(said) == 1
    assert "Against what was expected" not in text
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags["script"] == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_run_cut_short_is_told_that_it_is_too_early(tmp_path: Path) -> None:
    make_run(tmp_path, collapse_rows(range(4)))
    (tmp_path / "config.yaml").write_text(EXPECT, encoding="utf-8")
    text = " ".join(read(tmp_path).text.split())
    assert text.count("too early to say (epoch 3 of 150)") == 5
    assert re.search(r"nc1 [\d.]+ epoch 3 [\d.]+ ≤ 1", text)


@pytest.mark.usefixtures("no_pictures")
def test_what_a_damaged_or_old_history_lacks_is_told(tmp_path: Path) -> None:
    rows = [
        {k: v for k, v in row.items() if "tpt" not in k and k != "nc3_self_duality"}
        for row in collapse_rows(range(31), exits=())
    ]
    folder = make_run(tmp_path / "run", rows)
    path = folder / "history.csv"
    path.write_text(path.read_text()[:-30])
    text = " ".join(read(folder).text.split())
    assert "Training error reached 0 at epoch 12; the last measurement, epoch 30, is 18" in text
    assert "derived from the training error" in text
    assert "The last row of history.csv is cut short" in text
    assert "Not measured: NC3 self-duality." in text
    assert "not measured train, epoch30" in text
    assert "Not recorded by this run:" in text


def test_a_folder_without_rows_is_refused_in_words(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    with pytest.raises(InputError, match="no measured epoch yet: only a header"):
        write_report(folder)
    (folder / "history.csv").write_bytes(b"")
    with pytest.raises(InputError, match="no measured epoch yet: it is empty"):
        write_report(folder)
