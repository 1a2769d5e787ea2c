from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from cases import seeded
from histories import collapse
from ncmonitor import InputError, measure_collapse, theory
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history import LAYER_MARK
from ncmonitor.monitor.snapshots.snapshot import Snapshot, take_snapshot
from ncmonitor.plots import (
    animate,
    animation_html,
    gram,
    grams,
    layers,
    phase,
    simplex,
    spectrum,
)
from ncmonitor.plots.style import ABSENT

KINDS = ("means", "classifier", "cross", "etf")


def cloud(
    num_classes: int = 5, dim: int = 12, *, noise: float = 0.2, seed: int = 0
) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(8 * num_classes) % num_classes
    means = rng.normal(size=(num_classes, dim))
    features = means[labels] + noise * rng.normal(size=(len(labels), dim))
    return features, labels, means + 0.3 * rng.normal(size=means.shape)


def collapsed(num_classes: int = 5, dim: int = 12) -> tuple[Any, Any, Any]:
    means = theory.simplex_etf(num_classes, dim, generator=seeded(1)).numpy()
    labels = np.arange(3 * num_classes) % num_classes
    return means[labels], labels, 2 * means


def film(count: int = 4, **options: Any) -> list[Snapshot]:
    """A cloud that draws together, epoch by epoch."""
    clouds = [cloud(noise=1.0 * 0.8**epoch) for epoch in range(count)]
    return [take_snapshot(*arrays, epoch=2 * i, **options) for i, arrays in enumerate(clouds)]


def fresh_axes(**options: Any) -> Any:
    return Figure().add_subplot(**options)


def draw(figure: Any) -> None:
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def words_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def matrix_of(ax: Axes) -> Any:
    shown: Any = ax.collections[0].get_array()
    return np.ma.filled(shown, np.nan)


def grey_of(ax: Axes) -> str:
    bad: Any = ax.collections[0].get_cmap().get_bad()
    return mpl.colors.to_hex(bad)


def marks_of(ax: Axes, label: str) -> list[Any]:
    """Places of the marks under a label, one array for each class."""
    found = [c for c in ax.collections if c.get_label() == label]
    return [np.asarray(c.get_offsets()) for c in found]


def dots_of(ax: Axes) -> Any:
    return np.asarray(ax.collections[1].get_offsets())


DRAWN: dict[str, Callable[..., Axes]] = {"gram": gram, "simplex": simplex, "spectrum": spectrum}


# -- of one snapshot -------------------------------------------------------------------------------


def degenerate() -> dict[str, Snapshot]:
    features, labels, weight = cloud()
    endless = features.copy()
    endless[labels == 1] = np.inf
    wide = np.random.default_rng(0).normal(size=(2000, 8))
    return {
        "two classes": take_snapshot(*cloud(2)),
        "a thousand classes in eight dimensions": take_snapshot(wide, np.arange(2000) % 1000, wide),
        "one dimension": take_snapshot(*cloud(4, 1)),
        "four corners": take_snapshot(*cloud(), corners=(4, 2, 0, 1)),
        "classes missing": take_snapshot(features[labels > 1], labels[labels > 1], weight),
        "one class": take_snapshot(features[labels == 1], labels[labels == 1], weight),
        "one sample": take_snapshot(features[:1], labels[:1]),
        "one sample of each class": take_snapshot(features[:5], labels[:5], weight),
        "no classifier": take_snapshot(features, labels),
        "classifier of zeros": take_snapshot(features, labels, 0 * weight),
        "not finite": take_snapshot(endless, labels, weight),
        "all the same": take_snapshot(0 * features + 1, labels, weight),
        "no points": take_snapshot(features, labels, weight, points_per_class=0),
    }


DEGENERATE = degenerate()


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_returns_the_axes_it_was_given(name: str) -> None:
    ax = fresh_axes()
    assert DRAWN[name](take_snapshot(*cloud()), ax) is ax


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_snapshots_are_drawn_without_a_warning(name: str, case: str) -> None:
    before = dict(mpl.rcParams)
    draw(DRAWN[name](DEGENERATE[case]).figure)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("case", ["not finite", "all the same", "one class", "one sample"])
@pytest.mark.parametrize("name", DRAWN)
def test_where_nothing_can_be_drawn_the_picture_says_so(name: str, case: str) -> None:
    [words] = words_of(DRAWN[name](DEGENERATE[case]))
    assert words.startswith("nothing to draw: ")


# -- gram ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", KINDS)
def test_all_gram_matrices_share_a_scale_and_show_the_numbers(of: str) -> None:
    snapshot = take_snapshot(*cloud())
    ax = gram(snapshot, of=of)
    expected = {
        "means": snapshot.means_gram,
        "classifier": snapshot.weight_gram,
        "cross": snapshot.cross,
        "etf": np.eye(5) * 1.25 - 0.25,
    }[of]
    assert expected is not None
    assert_array_equal(matrix_of(ax), expected)
    assert ax.collections[0].get_clim() == (-1, 1)
    assert ax.yaxis_inverted()
    first = f"{expected[0, 1]:.2f}".replace("0.", ".").replace("-", "−")
    assert words_of(ax)[1] == first
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("means", "nc2_etf_means"),
        ("classifier", "nc2_etf_w"),
        ("cross", "nc3_self_duality"),
    ],
)
def test_the_distance_below_a_gram_matrix_is_the_metric_under_its_label(of: str, name: str) -> None:
    features, labels, weight = cloud(noise=0.6)
    value = measure_collapse(features, labels, weight).as_dict()[name]
    remark = gram(take_snapshot(features, labels, weight), of=of).get_xlabel()
    assert remark == f"{CATALOGUE[name].label} {value:.2g}"
    assert gram(take_snapshot(*collapsed()), of=of).get_xlabel().endswith(" < 0.01")


def test_of_many_classes_no_distance_is_claimed() -> None:
    ax = gram(DEGENERATE["a thousand classes in eight dimensions"])
    assert ax.get_xlabel() == "32 of 1000 classes"
    assert not ax.texts
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["0", "97"]


def test_a_row_that_is_undefined_is_grey_and_the_others_are_shown() -> None:
    features, labels, weight = cloud()
    weight[2] = 0
    ax = gram(take_snapshot(features, labels, weight), of="cross")
    assert np.isnan(matrix_of(ax)).all(axis=1).tolist() == [False, False, True, False, False]
    assert grey_of(ax) == ABSENT


def test_grams_stand_beside_the_etf_and_leave_out_what_there_is_not() -> None:
    titles = [ax.get_title(loc="left") for ax in grams(take_snapshot(*cloud())).axes]
    assert titles == ["class means", "classifier", "classifier × means", "simplex ETF", ""]
    bare = grams(DEGENERATE["no classifier"])
    assert [ax.get_title(loc="left") for ax in bare.axes] == ["class means", "simplex ETF", ""]
    assert words_of(gram(DEGENERATE["no classifier"], of="cross")) == ["no classifier"]


def test_an_unknown_gram_matrix_is_named() -> None:
    with pytest.raises(InputError, match="got 'mean'; did you mean 'means'"):
        gram(DEGENERATE["two classes"], of="mean")


# -- simplex ---------------------------------------------------------------------------------------


def test_everything_of_a_collapsed_class_is_on_its_corner() -> None:
    ax = simplex(take_snapshot(*collapsed()), fresh_axes())
    corners = np.array([[0, 1], [np.sqrt(0.75), -0.5], [-np.sqrt(0.75), -0.5]])
    assert_allclose(np.concatenate(marks_of(ax, "_mean")), corners, atol=1e-9)
    for corner, points in zip(corners, marks_of(ax, "_features"), strict=True):
        assert_allclose(points, np.tile(corner, (3, 1)), atol=1e-9)
    arrows = [text.xy for text in ax.texts if isinstance(text, Annotation)]
    assert_allclose(arrows, corners, atol=1e-9)
    ideal: Any = [line.get_xydata() for line in ax.lines if line.get_label() == "_ETF"]
    assert_allclose(ideal, [corners[[0, 1]], corners[[0, 2]], corners[[1, 2]]])
    assert [w for w in words_of(ax) if w.startswith("class")] == ["class 0", "class 1", "class 2"]
    assert "3 of 5 classes" in words_of(ax)


def test_the_simplex_of_three_classes_is_not_distorted_and_shows_every_feature() -> None:
    snapshot = take_snapshot(*cloud(noise=0.6))
    ax = simplex(snapshot, fresh_axes())
    assert ax.get_aspect() == 1
    assert_allclose(np.concatenate(marks_of(ax, "_features")), _by_class(snapshot))
    for points in (snapshot.points, snapshot.corner_means):
        assert (points > [ax.get_xlim()[0], ax.get_ylim()[0]]).all()
        assert (points < [ax.get_xlim()[1], ax.get_ylim()[1]]).all()


def _by_class(snapshot: Snapshot) -> Any:
    order = np.argsort(snapshot.point_labels, kind="stable")
    return snapshot.points[order]


def test_features_far_away_are_counted_and_not_shown() -> None:
    snapshot = take_snapshot(*cloud())
    far = snapshot.points.copy()
    far[:3] *= 100
    ax = simplex(dataclasses.replace(snapshot, points=far))
    assert "3 of 24 features outside" in words_of(ax)
    assert sum(len(points) for points in marks_of(ax, "_features")) == 21
    assert ax.get_xlim() == (-2.5, 2.5)


def test_two_classes_are_on_a_line_whose_height_means_nothing() -> None:
    snapshot = DEGENERATE["two classes"]
    points = np.concatenate(marks_of(simplex(snapshot), "_features"))
    assert_allclose(points[:, 0], _by_class(snapshot)[:, 0])
    assert len(np.unique(points[:, 1].round(6))) > 4


def test_four_classes_need_axes_of_three_dimensions() -> None:
    snapshot = DEGENERATE["four corners"]
    ax = fresh_axes(projection="3d")
    assert simplex(snapshot, ax) is ax
    assert words_of(ax) == [*(f"class {c}" for c in (4, 2, 0, 1)), "4 of 5 classes"]
    with pytest.raises(InputError, match=r'with projection="3d"; make them by .*3d"\)$'):
        simplex(snapshot, fresh_axes())
    with pytest.raises(InputError, match=r'3 corner classes need axes without projection="3d"'):
        simplex(take_snapshot(*cloud()), ax)


def test_classes_can_be_named() -> None:
    snapshot = take_snapshot(*cloud(), corners=(3, 1))
    ax = simplex(snapshot, names=["ant", "bee", "cat", "do$"])
    assert {r"do\$", "bee"} < set(words_of(ax))
    assert "the height only keeps dots apart" in words_of(ax)
    draw(ax.figure)
    with pytest.raises(InputError, match="names= has 3 entries, but class 3 is in the picture"):
        simplex(snapshot, names=["ant", "bee", "cat"])


def test_the_legend_says_nothing_of_a_classifier_that_is_not_there() -> None:
    def legend(snapshot: Snapshot) -> list[str]:
        found = simplex(snapshot).get_legend()
        assert found is not None
        return [text.get_text() for text in found.get_texts()]

    assert legend(take_snapshot(*cloud())) == [
        "features", "class mean", "classifier row", "simplex ETF",
    ]  # fmt: skip
    assert legend(DEGENERATE["no classifier"]) == ["features", "class mean", "simplex ETF"]
    assert simplex(take_snapshot(*cloud()), legend=False).get_legend() is None


# -- spectrum --------------------------------------------------------------------------------------


def test_the_spectrum_is_relative_to_the_largest_and_within_classes_to_the_means() -> None:
    snapshot = take_snapshot(*cloud())
    assert snapshot.within_spectrum is not None
    assert snapshot.singular_weight is not None
    ax = spectrum(snapshot)
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
    top = snapshot.singular_means[0]
    assert_allclose(lines["class means"], snapshot.singular_means / top)
    rows = snapshot.singular_weight
    assert_allclose(lines["classifier"], rows[:4] / rows[0])
    assert_allclose(lines["within classes"], np.sqrt(5 * snapshot.within_spectrum) / top)
    assert_allclose(lines["simplex ETF"], 1)
    assert ax.get_ylim()[0] < 0 < 1 < ax.get_ylim()[1]


def test_no_etf_is_promised_where_there_is_no_room_for_one() -> None:
    narrow = spectrum(DEGENERATE["a thousand classes in eight dimensions"])
    assert "all equal; no ETF for d < K − 1" in [line.get_label() for line in narrow.lines]
    assert narrow.get_xlabel() == "direction"


@pytest.mark.parametrize("width", [2.8, 3.4])
@pytest.mark.parametrize("case", [None, "a thousand classes in eight dimensions"])
def test_the_legend_of_a_spectrum_is_above_the_axes_and_in_the_figure(
    case: str | None, width: float
) -> None:
    wide = np.random.default_rng(0).normal(size=(800, 350))
    snapshot = take_snapshot(wide, np.arange(800) % 400) if case is None else DEGENERATE[case]
    figure = Figure(figsize=(width, 2.5), layout="constrained")
    ax = spectrum(snapshot, figure.add_subplot())
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert box.y0 >= ax.bbox.y1 - 1
    assert box.x1 <= figure.bbox.x1 + 1
    assert box.y1 <= figure.bbox.y1 + 1


def test_a_spectrum_that_is_cut_says_so() -> None:
    features = np.random.default_rng(0).normal(size=(800, 350))
    ax = spectrum(take_snapshot(features, np.arange(800) % 400))
    assert ax.get_xlabel() == "direction (the first 256 of 399)"
    assert "simplex ETF" not in [line.get_label() for line in ax.lines]


# -- layers ----------------------------------------------------------------------------------------


def with_layers(history: pd.DataFrame, names: tuple[str, ...] = ("stem", "top")) -> pd.DataFrame:
    train = history[history["split"] == "train"]
    inner = [
        train.assign(split=f"train{LAYER_MARK}{name}", nc1=train["nc1"] * (10 + i))
        for i, name in enumerate(names)
    ]
    return pd.concat([*inner, history], ignore_index=True)


def test_layers_go_up_with_depth_and_the_features_are_on_top() -> None:
    history = with_layers(collapse(range(0, 40, 4)))
    ax = fresh_axes()
    assert layers(history, ax) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["stem", "top", "features"]
    assert not ax.yaxis_inverted()
    matrix = matrix_of(ax)
    train = history[history["split"] == "train"]["nc1"]
    assert_allclose(matrix, [10 * train, 11 * train, train])
    assert [t.get_text() for t in ax.get_xticklabels()][:3] == ["0", "8", "16"]
    assert ax.figure.axes[1].get_ylabel() == CATALOGUE["nc1"].label
    assert isinstance(ax.collections[0].norm, LogNorm)


def test_a_layer_that_failed_is_grey_at_that_epoch() -> None:
    ax = layers(with_layers(collapse(range(6), failed=(3,))))
    assert np.isnan(matrix_of(ax)).all(axis=0).tolist() == [False] * 3 + [True] + [False] * 2
    assert grey_of(ax) == ABSENT


def test_the_start_of_the_terminal_phase_lies_before_its_first_column() -> None:
    ax = layers(with_layers(collapse((0, 3, 6, 12, 50), failed=())))
    [line] = [line for line in ax.lines if line.get_label() == "_TPT start"]
    assert_array_equal(line.get_xdata(), [2.5, 2.5])
    assert "TPT from epoch 12" in words_of(ax)


@pytest.mark.parametrize(
    "history",
    [
        with_layers(collapse(range(1))),
        collapse(range(5)),
        with_layers(collapse(range(3), failed=range(3))),
        with_layers(collapse(range(3))).assign(nc1=0.0),
        with_layers(collapse(range(3))).assign(nc1=[0.0, np.inf, 0.5] * 4),
        with_layers(collapse(range(3)), tuple(f"block.{i}" for i in range(40))),
    ],
    ids=["one epoch", "no layers", "all failed", "zeros", "infinite", "forty layers"],
)
def test_degenerate_layers_are_drawn_without_a_warning(history: pd.DataFrame) -> None:
    for name in ("nc1", "ncc_accuracy"):
        draw(layers(history, quantity=name).figure)


# -- phase -----------------------------------------------------------------------------------------


def test_the_path_joins_neighbours_and_bridges_no_gap() -> None:
    history = collapse(range(8), failed=(4,))
    ax = fresh_axes()
    assert phase(history, ax) is ax
    train = history[history["split"] == "train"]
    path, dots = ax.collections[:2]
    places = train[["nc1", "nc3_self_duality"]].to_numpy()
    assert_allclose(dots_of(ax), places[np.isfinite(places).all(axis=1)])
    steps: Any = [s.vertices for s in path.get_paths()]
    expected = [places[i : i + 2] for i in (0, 1, 2, 5, 6)]
    assert_allclose(steps, expected)
    assert_array_equal(np.asarray(dots.get_array()), [0, 1, 2, 3, 5, 6, 7])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("NC1", CATALOGUE["nc3_self_duality"].label)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.figure.axes[1].get_ylabel() == "epoch, 0 to 7"


def test_the_path_names_its_ends_and_rings_the_start_of_the_terminal_phase() -> None:
    ax = phase(collapse(range(31)))
    assert words_of(ax) == []  # on a path that turns back, a word would lie on its dots
    assert ax.get_title(loc="left") == "○ TPT from epoch 12"
    assert ax.figure.axes[1].get_ylabel() == "epoch, 0 to 30"
    [ring] = marks_of(ax, "_TPT start")
    history = collapse(range(31))
    there = history[(history["split"] == "train") & (history["epoch"] == 12)]
    assert_allclose(ring, there[["nc1", "nc3_self_duality"]])


def test_what_is_measured_once_is_taken_from_train() -> None:
    history = collapse(range(5))
    ax = phase(history, y="nc2_etf_w", split="val")
    val, train = (history[history["split"] == s] for s in ("val", "train"))
    places = np.column_stack([val["nc1"], train["nc2_etf_w"]])
    assert_allclose(dots_of(ax), places)


def test_epochs_at_zero_have_no_place_on_log_axes() -> None:
    history = collapse(range(6))
    history.loc[history["epoch"] == 5, "nc1"] = 0.0
    assert len(dots_of(phase(history))) == 5
    linear = phase(history, x="ncc_accuracy")
    assert linear.get_xscale() == "linear"
    assert len(dots_of(linear)) == 6


@pytest.mark.parametrize(
    "history",
    [collapse(range(1)), collapse(range(3), failed=range(3)), collapse(range(3)).assign(nc1=0.0)],
    ids=["one epoch", "all failed", "zeros"],
)
def test_degenerate_paths_are_drawn_without_a_warning(history: pd.DataFrame) -> None:
    draw(phase(history).figure)


@pytest.mark.parametrize(
    ("picture", "arguments", "message"),
    [
        (layers, {"quantity": "nc5"}, "names of the catalogue, but got 'nc5'; did you mean"),
        (layers, {"split": "valid"}, "split= must be among train, val, but is 'valid'"),
        (phase, {"x": "nc5"}, "names of the catalogue, but got 'nc5'; did you mean"),
        (phase, {"split": "valid"}, "split= must be among train, val, but is 'valid'"),
    ],
)
def test_a_wrong_argument_is_named(picture: Any, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        picture(collapse(range(3)), **arguments)


# -- animate ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gif_has_a_frame_for_each_snapshot_and_is_small(tmp_path: Path) -> None:
    snapshots = film(50)
    path = animate(snapshots, tmp_path / "new" / "collapse.gif", fps=10)
    assert path == tmp_path / "new" / "collapse.gif"
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        assert image.n_frames == 50  # type: ignore[attr-defined]
        assert image.info["duration"] == 100
        corner = image.convert("RGB").getpixel((2, 2))
        assert corner == (255, 255, 255)
        image.seek(49)
        assert image.info["duration"] == 2000


def test_frames_show_their_snapshots_on_one_scale(tmp_path: Path) -> None:
    snapshots = film(3)
    animation = animate(snapshots)
    animation.save(tmp_path / "a.gif", writer="pillow")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    figure = animation._fig  # type: ignore[attr-defined]
    alone = {simplex(s).get_xlim() for s in snapshots}
    assert len(alone) == 3
    for i, snapshot in enumerate(snapshots):
        animation._draw_frame(i)  # type: ignore[attr-defined]
        assert figure.texts[0].get_text() == f"epoch {snapshot.epoch}"
        assert figure.axes[0].get_xlim() == min(alone)  # the widest
        means = np.concatenate(marks_of(figure.axes[0], "_mean"))
        assert_allclose(means, snapshot.corner_means)


def test_the_page_needs_nothing_else_and_holds_every_frame(tmp_path: Path) -> None:
    path = animate(film(3), tmp_path / "collapse.html", fps=5)
    text = path.read_text(encoding="utf-8")
    assert "http" not in text
    assert text.startswith("<!doctype html>")
    data = re.search(r'<script type="application/json">(.*?)</script>', text)
    assert data is not None
    held = json.loads(data[1])
    assert held["labels"] == ["epoch 0", "epoch 2", "epoch 4"]
    assert held["milliseconds"] == 200
    assert len(set(held["frames"])) == 3
    assert f'src="data:image/png;base64,{held["frames"][-1]}"' in text


def test_a_fragment_can_stand_in_a_page_more_than_once() -> None:
    fragment = animation_html(film(2))
    assert fragment.startswith("<figure")
    assert not re.search(r"\sid=", fragment)
    assert "<html" not in fragment


@pytest.mark.parametrize("corners", [(0, 1), (3, 0, 1, 2)])
def test_lines_and_tetrahedra_move_too(corners: tuple[int, ...], tmp_path: Path) -> None:
    path = animate(film(2, corners=corners), tmp_path / "a.gif")
    with Image.open(path) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]


def test_a_film_with_a_failed_epoch_and_one_with_a_single_one_are_drawn(tmp_path: Path) -> None:
    snapshots = film(3)
    features, labels, weight = cloud()
    snapshots[1] = take_snapshot(features * np.nan, labels, weight, epoch=2)
    for some in (snapshots, snapshots[:1], snapshots[1:2]):
        with Image.open(animate(some, tmp_path / "a.gif")) as image:
            assert getattr(image, "n_frames", 1) == len(some)


def test_with_ffmpeg_it_gets_every_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "ffmpeg"
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\nwc -c > "$last"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = animate(film(3), tmp_path / "a.mp4")
    assert path == tmp_path / "a.mp4"
    assert int(path.read_text()) == 3 * 600 * 600 * 4


def test_without_ffmpeg_an_mp4_becomes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"no ffmpeg to write an mp4: writing .*a\.html instead"):
        path = animate(film(2), tmp_path / "a.mp4")
    assert path == tmp_path / "a.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("snapshots", "options", "message"),
    [
        ([], {}, "needs at least one snapshot"),
        (film(1) + film(1, corners=(1, 2)), {}, r"train \(0, 1, 2\) and train \(1, 2\); choose"),
        (film(1) + film(1, split="val"), {}, r"train \(0, 1, 2\) and val \(0, 1, 2\); choose"),
        (film(1), {"path": "a.avi"}, "written as .gif, .mp4 or .html, but not as a.avi"),
        (film(1), {"fps": 0}, "fps= must be positive, but is 0"),
    ],
)
def test_an_animation_that_cannot_be_made_says_why(
    snapshots: list[Snapshot], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        animate(snapshots, **options)
