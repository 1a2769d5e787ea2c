"""What a report shows beside its panels: geometry, film, paths, layers, classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from histories import collapse, collapse_rows
from ncmonitor.monitor.history import history_frame
from ncmonitor.monitor.snapshots.snapshot import append_snapshot, read_snapshots, take_snapshot
from ncmonitor.reports.run_page.classes import class_table
from ncmonitor.reports.run_page.film import MOST_FRAMES, film
from ncmonitor.reports.run_page.pictures import (
    geometry,
    known_layers,
    known_paths,
    some,
    usable_snapshots,
)
from ncmonitor.reports.run_page.run_tables import layer_table
from pages import RUN, Page, add_layers, add_snapshots, make_run, read

EPOCHS = (0, 2, 5, 12, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        row | {f"nc1_per_class/{c}": row["nc1"] * (1 + c) for c in range(4)}
        for row in collapse_rows(range(21), exits=(), failed=())
    ]
    sizes = {"class_sizes": [30, 30, 20, 10], "num_classes": 4}
    run = RUN | {"measurement": RUN["measurement"] | sizes}
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", add_layers(rows, "a", "b.c"), run)
    add_snapshots(folder, EPOCHS)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return read(folder)


@pytest.fixture
def no_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of the history, which take a second."""
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PANELS", ())
    monkeypatch.setattr("ncmonitor.reports.run_page.pictures.PATHS", ())
    monkeypatch.setattr("ncmonitor.reports.run_page.overview", lambda history: Figure())


def labels_of(page: Page) -> list[str]:
    return page.values("aria-label")


# -- the geometry ----------------------------------------------------------------------------------


def test_simplex_spectra_and_gram_matrices_are_shown_first_and_last(page: Page) -> None:
    labels = labels_of(page)
    for epoch in (0, 20):
        assert f"Spectra at epoch {epoch}" in labels
        assert any(re.search(rf"classes 0, 1, 2 at epoch {epoch}$", label) for label in labels)
        kinds = ("class means", "classifier", "classifier × means", "simplex ETF")
        assert all(f"Gram matrix at epoch {epoch}: {kind}" in labels for kind in kinds)
    assert not any("epoch 5" in label and "Gram" in label for label in labels)
    assert "snapshots.jsonl" in page.values("href")
    assert "Classes 0, 1, 2 (3 of 4) of the train split" in page.text


def test_the_film_has_a_frame_for_every_snapshot_and_begins_at_the_end(page: Page) -> None:
    ids = [value for value in page.values("id") if value.startswith("frame-")]
    assert ids == [f"frame-{i}" for i in range(len(EPOCHS))]
    titles = [title for title in page.values("title") if title.startswith("epoch")]
    assert titles == [f"epoch {epoch}" for epoch in EPOCHS]
    assert page.values("checked") == [""]
    assert page.tags["script"] == 0


def test_every_frame_of_the_film_has_a_place_of_its_own(folder: Path) -> None:
    found = film(read_snapshots(folder))
    assert found is not None
    assert found.columns == 3
    assert [frame.epoch for frame in found.frames] == list(EPOCHS)
    shifts = [frame.shift for frame in found.frames]
    assert shifts[0] == "translate(0%, 0%)"
    assert shifts[4] == "translate(-33.3333%, -50%)"
    assert len(set(shifts)) == len(EPOCHS)
    starts = [float(frame.percent.rstrip("%")) for frame in found.frames]
    assert starts == sorted(starts)
    assert 0 <= starts[0] < starts[-1] < 50  # the last one stays


def test_the_style_brings_every_frame_into_view(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    rules = re.findall(r"#frame-(\d+):checked ~ \.screen \.sheet \{ transform: ([^;]*); \}", text)
    assert [int(frame) for frame, _ in rules] == list(range(len(EPOCHS)))
    frames = re.search(r"@keyframes film \{(.*?)\n\}", text, flags=re.DOTALL)
    assert frames is not None
    assert re.findall(r"transform: ([^;]*);", frames[1]) == [shift for _, shift in rules]


@pytest.mark.parametrize("count", [1, 2, MOST_FRAMES, 41, 500, 5000])
def test_of_many_snapshots_the_first_the_last_and_the_early_ones_are_kept(count: int) -> None:
    shown: Any = some(list(range(count)), MOST_FRAMES)  # type: ignore[arg-type]
    assert len(shown) == count if count <= MOST_FRAMES else MOST_FRAMES - 8 < len(shown) <= 40
    assert (shown[0], shown[-1]) == (0, count - 1)
    assert shown == sorted(set(shown))
    if count > MOST_FRAMES:
        assert shown[1] - shown[0] <= shown[-1] - shown[-2]


def test_pictures_made_of_colours_are_turned_as_a_whole(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    gram = re.search(r"<svg[^>]*Gram matrix at epoch 20: class.*?</svg>", text, flags=re.DOTALL)
    assert gram is not None
    assert "var(--" not in gram[0]
    assert text.index('class="panels centred turned"') < text.index(
        'class="panels quarters turned"'
    )
    assert re.search(r"\.turned svg[^}]*invert\(", text)


@pytest.mark.usefixtures("no_panels")
def test_a_run_without_snapshots_says_nothing_of_geometry(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run", collapse_rows(range(3))))
    assert "The geometry of the features" not in page.text
    assert page.tags["input"] == 0


@pytest.mark.usefixtures("no_panels")
def test_a_single_snapshot_has_pictures_and_no_film(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(1)))
    add_snapshots(folder, [0])
    page = read(folder)
    assert labels_of(page).count("Spectra at epoch 0") == 1
    assert page.tags["input"] == page.tags["details"] == 0


DEGENERATE: dict[str, dict[str, Any]] = {
    "two classes": {"classes": 2},
    "four corners": {"corners": (0, 1, 2, 3)},
    "many classes": {"classes": 40},
    "no classifier": {"head": False},
    "no points": {"points_per_class": 0},
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_panels")
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_snapshots_have_a_report(case: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(6)))
    add_snapshots(folder, [0, 5], **DEGENERATE[case])
    page = read(folder)
    assert page.tags["img"] == 1
    grams = [label for label in labels_of(page) if label.startswith("Gram matrix at epoch 5")]
    assert len(grams) == (2 if case == "no classifier" else 4)
    assert ("32 of 40 classes" in page.text) == (case == "many classes")


@pytest.mark.usefixtures("no_panels")
def test_features_that_are_not_finite_have_a_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(6)))
    bad = np.full((6, 3), np.nan)
    for epoch in (0, 5):
        append_snapshot(folder, take_snapshot(bad, np.arange(6) % 3, bad[:3], epoch=epoch))
    assert "nan" in read(folder).text


@pytest.mark.usefixtures("no_panels")
def test_a_torn_last_snapshot_is_left_out_and_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(6)))
    add_snapshots(folder, [0, 2, 5])
    path = folder / "snapshots.jsonl"
    path.write_text(path.read_text()[:-40])
    page = read(folder)
    assert "Spectra at epoch 2" in labels_of(page)
    assert "1 of 3 lines of snapshots.jsonl cannot be read" in page.text


@pytest.mark.usefixtures("no_panels")
def test_damaged_snapshots_are_a_caution_that_tells_no_path(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(6)))
    (folder / "snapshots.jsonl").write_text('{"epoch": 3}\n')
    text = " ".join(read(folder).text.split())
    assert "1 of 1 lines of snapshots.jsonl cannot be read and were left out: line 1." in text
    assert "The pictures of the geometry are left out: no snapshot can be read." in text
    assert str(tmp_path) not in text
    assert "The geometry of the features" not in text


def test_snapshots_of_other_corners_are_left_out_and_counted(tmp_path: Path) -> None:
    add_snapshots(tmp_path, [0, 1], corners=(0, 1, 2))
    add_snapshots(tmp_path, [2, 3, 4], corners=(1, 2, 3))
    add_snapshots(tmp_path, [4], split="val")
    used, said = usable_snapshots(tmp_path)
    assert [snapshot.epoch for snapshot in used] == [2, 3, 4]
    assert said[0].startswith("2 earlier snapshots show other corner classes")
    shown = geometry(used)
    assert shown is not None
    assert (shown["epochs"], shown["corners"]) == ([2, 4], (1, 2, 3))


# -- paths and layers ------------------------------------------------------------------------------


def test_paths_are_those_through_two_measured_epochs(page: Page) -> None:
    assert len([label for label in labels_of(page) if label.endswith("coloured by epoch")]) == 3
    assert len(known_paths(collapse(range(2), failed=()))) == 3
    assert known_paths(collapse(range(1))) == []
    assert known_paths(collapse(range(9), splits=("val",))) == []
    flat = collapse(range(9), failed=()).assign(nc2_etf_means=0.0)  # as with two classes
    assert known_paths(flat) == [("nc1", "nc3_self_duality")]


def test_inner_layers_have_maps_and_a_table_with_the_features_last(page: Page) -> None:
    assert "NC1 by layer and epoch" in labels_of(page)
    part = page.text[page.text.index("Inner layers") : page.text.index("Selected epochs")]
    assert part.index("\n      a") < part.index("b.c") < part.index("features")


def test_the_table_of_layers_leaves_out_what_no_layer_has() -> None:
    history = history_frame(add_layers(collapse_rows(range(3), failed=()), "a"))
    history = history.assign(participation_ratio_means=np.nan)
    table = layer_table(history)
    assert table is not None
    names = [quantity.name for quantity in table["heads"]]
    assert names == [
        *("nc1", "nc2_equinorm_means", "nc2_equiangular_std_means", "nc2_etf_means"),
        "ncc_accuracy",
    ]
    assert [(name, epoch) for name, epoch, _ in table["lines"]] == [("a", 2), ("features", 2)]
    assert known_layers(history) == ["nc1", "nc2_etf_means"]
    assert layer_table(collapse(range(3))) is None


# -- classes ---------------------------------------------------------------------------------------


def test_the_table_of_classes_joins_sizes_variability_lengths_and_angles(folder: Path) -> None:
    history = history_frame(
        [row | {"nc1_per_class/0": 0.25, "nc1_per_class/1": 0.5} for row in collapse_rows(range(3))]
    )
    gram = np.array([[2.0, -1.0], [-1.0, 2.0]])
    snapshot = take_snapshot(np.array([[1.0, 0], [-1, 0]]), [0, 1], gram, epoch=7)
    run = {"measurement": {"class_sizes": [30, 20]}}
    table = class_table(history, run, snapshot)
    assert table is not None
    assert [head for head, _ in table["heads"]] == [
        *("samples", "NC1 of a class", "length of mean", "cosines of mean", "length of row"),
        "cosine of row and mean",
    ]
    lines = {name: [cell.text for cell in cells] for name, cells in table["lines"]}
    assert lines["0"] == ["30", "0.25", "1", "−1.000", "1", "0.8944"]
    assert lines["1"] == ["20", "0.5", "1", "−1.000", "1", "0.4472"]
    assert [cell.text for cell in table["ideal"]] == ["·", "0", "1", "−1.000", "1", "1"]
    assert table["epochs"] == "epoch 2; lengths and angles of epoch 7"


def test_of_many_classes_those_with_the_largest_spread_are_shown() -> None:
    values = {f"nc1_per_class/{c}": float(c) for c in range(100)}
    history = history_frame([row | values for row in collapse_rows(range(2))])
    table = class_table(history, {"measurement": {"class_sizes": [5] * 100}}, None)
    assert table is not None
    assert [name for name, _ in table["lines"]] == [str(c) for c in range(99, 67, -1)]
    assert table["remark"] == "32 of 100 classes, those with the largest spread within."


@pytest.mark.parametrize(
    "sizes", [None, {"min": 1, "max": 9}, [], "many", [1, None], [True], {"0": 3}]
)
def test_without_anything_known_of_classes_there_is_no_table(sizes: object) -> None:
    run = {"measurement": {"class_sizes": sizes}}
    assert class_table(collapse(range(2)), run, None) is None


def test_the_page_shows_the_classes(folder: Path, page: Page) -> None:
    facts = json.loads((folder / "run.json").read_text())
    part = page.text[page.text.index("Class by class") : page.text.index("Every quantity at")]
    assert "samples" in part
    assert "at collapse" in part
    text = (folder / "report.html").read_text(encoding="utf-8")
    for c, size in enumerate(facts["measurement"]["class_sizes"]):
        cell = f'<td class="number value" data-label="samples">{size}</td>'
        assert f'data-what="class">{c}</th>{cell}' in text


@pytest.mark.usefixtures("no_panels")
def test_a_damaged_snapshot_hides_no_other_and_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", collapse_rows(range(6)))
    add_snapshots(folder, [0, 2, 5])
    path = folder / "snapshots.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00\xff {garbage\n", *lines[1:]]))
    page = read(folder)
    assert "Spectra at epoch 5" in labels_of(page)
    assert "1 of 4 lines of snapshots.jsonl cannot be read and were left out: line 2." in page.text
