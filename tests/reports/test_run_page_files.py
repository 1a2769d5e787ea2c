"""Figures and tables as files: for papers, spreadsheets and other programs."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histories import collapse, collapse_rows
from ncmonitor.cli import main
from ncmonitor.monitor.history import history_frame, read_history
from ncmonitor.reports.comparison.aggregate import aggregate
from ncmonitor.reports.comparison.group_plots import compared_panel, look_of, with_key
from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.comparison.runs import read_runs
from ncmonitor.reports.run_page.files import DOUBLE, SINGLE, write_figures, write_table
from pages import RUN, add_layers, add_snapshots, make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = add_layers(collapse_rows(range(21), exits=()), "body.3")
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", rows)
    add_snapshots(folder, (0, 20))
    assert main(["report", str(folder), "--format", "pdf"]) == 0
    return folder


def written(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in (folder / "paper").iterdir()}


def width_of(pdf: Path) -> float:
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) [\d.]+ \]", pdf.read_bytes())
    assert box is not None
    return float(box[1]) / 72


@pytest.mark.slow
def test_every_figure_is_a_file_one_or_two_columns_wide(folder: Path) -> None:
    files = written(folder)
    assert set(files) == {
        *("curves", "error", "cross_entropy", "nc1", "nc2_equinorm", "nc2_equiangular_std"),
        *("nc2_max_angle", "nc2_etf", "nc3_self_duality", "nc4_disagreement", "irrep_budget"),
        *("path_nc1_nc2_etf_means", "path_nc1_nc3_self_duality"),
        *("path_nc2_etf_means_nc3_self_duality", "layers_nc1", "layers_nc2_etf_means"),
        *(
            f"{kind}_{when}"
            for kind in ("simplex", "spectrum", "gram")
            for when in ("first", "last")
        ),
    }
    wide = {name for name, path in files.items() if width_of(path) == pytest.approx(DOUBLE)}
    assert wide == {"curves", "layers_nc1", "layers_nc2_etf_means", "gram_first", "gram_last"}
    assert all(width_of(files[name]) == pytest.approx(SINGLE) for name in set(files) - wide)


@pytest.mark.slow
def test_fonts_are_embedded_as_outlines_and_no_page_is_a_bitmap(folder: Path) -> None:
    for name, path in written(folder).items():
        content = path.read_bytes()
        assert b"/FontFile2" in content  # TrueType, not Type 3
        assert b"/Type3" not in content
        images = content.count(b"/Subtype /Image")
        assert images == 0 or name.startswith(("layers", "path", "gram"))  # colours in a scale


@pytest.mark.slow
@pytest.mark.parametrize("splits", [("train", "val"), ("train", "val0", "validation_2", "test")])
def test_legends_are_whole_and_touch_nothing(
    splits: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: dict[str, Any] = {}
    monkeypatch.setattr(
        "ncmonitor.reports.run_page.files.save", lambda f, path: figures.update({path: f})
    )
    write_figures(collapse(range(30), splits=splits), [], tmp_path, "png")
    legends = 0
    for figure in figures.values():
        figure.draw_without_rendering()
        for ax in figure.axes:
            if (legend := ax.get_legend()) is None or len(figure.axes) > 1:
                continue
            legends += 1
            box = legend.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1
            assert box.y0 >= ax.bbox.y1 - 1
            assert not any(box.overlaps(text.get_window_extent()) for text in ax.texts)
            assert "TPT from epoch 12" in [text.get_text() for text in legend.get_texts()]
    assert legends == 9


@pytest.mark.slow
def test_the_key_of_a_comparison_breaks_long_names(tmp_path: Path) -> None:
    name = "digits · weight_decay 0.005, gradient_clip_val 0.5, metrics default, …"
    folder = make_run(tmp_path / "run", collapse_rows(range(3)))
    [run] = read_runs([folder])[0]
    groups = [RunGroup(label, (run,), certain=True) for label in (name, "W" * 90)]
    tables = [aggregate([run.history])] * 2
    look = look_of(groups, tables[0])
    figure = with_key(compared_panel(groups, tables, "nc1", look), groups, look)
    figure.draw_without_rendering()
    [legend], [ax] = figure.legends, figure.axes
    box = legend.get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= ax.xaxis.label.get_window_extent().y0
    said = [text.get_text() for text in legend.get_texts()]
    assert said[0].replace("\n", " ") == name
    assert said[0].count("\n") == 1


@pytest.mark.slow
def test_the_smallest_text_of_the_overview_can_be_read_in_print(folder: Path) -> None:
    content = written(folder)["curves"].read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)endstream", content, flags=re.DOTALL)
    texts = b"".join(zlib.decompress(s) for s in streams if s[:1] == b"x")
    sizes = {float(size) for size in re.findall(rb"/F\d+ ([\d.]+) Tf", texts)}
    assert 5 <= min(sizes) <= max(sizes) <= 9


@pytest.mark.slow
def test_the_same_figure_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncmonitor.reports.run_page.files.PANELS", (("error",), ("nc1",)))
    history = collapse(range(2))
    first = write_figures(history, [], tmp_path / "a", "pdf")
    second = write_figures(history, [], tmp_path / "b", "pdf")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one epoch", "validation only", "all nan"])
def test_a_degenerate_history_has_figures(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncmonitor.reports.run_page.files.PANELS", (("error",), ("nc2_etf_w",)))
    history = {
        "one epoch": collapse(range(1)),
        "validation only": collapse(range(3), splits=("val",)),
        "all nan": collapse(range(3), failed=range(3)),
    }[case]
    files = write_figures(history, [], tmp_path, "png")
    budget = ["irrep_budget.png"] * (case == "one epoch")  # of the training set's means
    names = ["curves.png", "error.png", "nc2_etf_w.png", *budget]
    assert [path.name for path in files] == names
    for path in files:
        with Image.open(path) as image:
            assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
            assert np.asarray(image.convert("L")).std() > 3


@pytest.mark.slow
def test_the_table_is_tidy_and_holds_every_number(folder: Path) -> None:
    history = read_history(folder)
    table = pd.read_csv(write_table(history, folder / "x.csv"), keep_default_na=False, dtype=str)
    assert list(table.columns) == ["epoch", "step", "split", "layer", "metric", "value"]
    assert set(table["layer"]) == {"", "body.3"}
    assert set(table["split"]) == {"train", "val"}
    assert not table.duplicated(["epoch", "split", "layer", "metric"]).any()
    at = (table["epoch"] == "20") & (table["split"] == "train") & (table["metric"] == "nc1")
    values = dict(zip(table[at]["layer"], table[at]["value"], strict=True))
    for layer, split in (("", "train"), ("body.3", "train/layer/body.3")):
        rows = history[(history["split"] == split) & (history["epoch"] == 20)]
        assert float(values[layer]) == rows["nc1"].iloc[0]


@pytest.mark.slow
def test_a_failed_measurement_is_an_empty_value_and_what_never_was_has_no_row(
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": e, "step": e, "split": "train", "nc1": [0.5, np.nan][e], "nc4_disagreement": 0.0}
        for e in range(2)
    ]
    text = write_table(history_frame(rows), tmp_path / "x.csv").read_text()
    assert text == (
        "epoch,step,split,layer,metric,value\n"
        "0,0,train,,nc1,0.5\n0,0,train,,nc4_disagreement,0.0\n"
        "1,1,train,,nc1,\n1,1,train,,nc4_disagreement,0.0\n"
    )


@pytest.mark.slow
def test_the_command_names_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", collapse_rows(range(3)))
    assert main(["report", str(run), "--format", "csv"]) == 0
    assert capsys.readouterr().out == f"{run / 'metrics.csv'}\n"
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_damaged_snapshots_are_warned_of_and_the_rest_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", collapse_rows(range(2)))
    (run / "snapshots.jsonl").write_text("[]\n")
    with pytest.warns(UserWarning, match=r"snapshots.jsonl cannot be read|geometry are left out"):
        assert main(["report", str(run), "--format", "png"]) == 0
    assert "simplex_last" not in written(run)
    assert "nc1" in written(run)


@pytest.mark.slow
def test_a_comparison_is_figures_with_a_key_or_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ncmonitor.reports.comparison.PANELS", (("error",), ("nc1",)))
    for seed in range(2):
        make_run(tmp_path / f"seed{seed}", collapse_rows(range(4)), RUN | {"command": f"x {seed}"})
    monkeypatch.chdir(tmp_path)
    assert main(["report", "seed0", "seed1", "--format", "pdf", "--out", "new"]) == 0
    names = ["new/paper/comparison_error.pdf", "new/paper/comparison_nc1.pdf"]
    assert capsys.readouterr().out.split() == names
    assert width_of(Path(names[0])) == pytest.approx(SINGLE)
    assert main(["report", ".", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["comparison.csv", "per_run.csv"]
    assert main(["report", "seed0", "seed1", "--format", "csv", "--out", "x.csv"]) == 2
    assert "--out must be a folder, not x.csv" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.slow
def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", ".", "--format", "svg"])
    assert "invalid choice: 'svg'" in capsys.readouterr().err
