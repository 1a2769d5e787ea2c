from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from histories import collapse
from ncmonitor import InputError
from ncmonitor.catalogue import CATALOGUE, METRIC_NAMES, METRICS
from ncmonitor.monitor.history_queries import tpt_spans, tpt_start
from ncmonitor.plots import PANELS, curves, overview, panel, panel_labels
from ncmonitor.plots.style import ROUNDING, log_axis


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return collapse()


def fresh_axes() -> Axes:
    return Figure().subplots()


def lines_of(ax: Axes) -> list[str]:
    return [str(line.get_label()) for line in ax.lines if str(line.get_label())[0] != "_"]


def shades_of(ax: Axes) -> list[tuple[float, float]]:
    boxes = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_label() == "_TPT"]
    return [(box.get_x(), box.get_x() + box.get_width()) for box in boxes]


def draw(figure: Figure) -> None:
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def degenerate() -> dict[str, pd.DataFrame]:
    two_classes = collapse()
    two_classes[[name for name in METRIC_NAMES if name.endswith("_means")]] = 0.0
    zeros = collapse()
    zeros[[q.name for q in METRICS if q.group in {"nc1", "nc3"}]] = 0.0
    endless = collapse()
    endless.loc[endless["epoch"] == 20, "nc1"] = np.inf
    return {
        "one epoch": collapse(range(1)),
        "one epoch, in the TPT": collapse(range(40, 41), failed=()),
        "no validation": collapse(splits=("train",)),
        "two validation sets and a test": collapse(splits=("train", "val0", "val1", "test")),
        "validation only": collapse(splits=("val",)),
        "terminal phase not reached": collapse(range(8)),
        "all nan": collapse(range(5), failed=range(5)),
        "a nan stretch with one point in it": collapse(failed=[*range(70, 80), *range(81, 99)]),
        "two classes": two_classes,
        "exact zeros on log axes": zeros,
        "infinite": endless,
        "sparse schedule": collapse((0, 1, 2, 5, 12, 20, 50, 150), failed=()),
    }


DEGENERATE = degenerate()


def test_curves_returns_the_axes_it_was_given(history: pd.DataFrame) -> None:
    ax = fresh_axes()
    assert curves(history, ax) is ax


def test_curves_makes_axes_of_its_own_without_pyplot(history: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    ax = curves(history, quantities="nc1")
    draw(overview(history))
    assert isinstance(ax.figure, Figure)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "name", [q.name for q in CATALOGUE.values() if not q.vector and q.group != "regression"]
)
def test_every_quantity_can_be_drawn_under_its_label(history: pd.DataFrame, name: str) -> None:
    entry = CATALOGUE[name]
    if name not in history:  # was not asked for in this run
        values = np.where((history["split"] != "train") & entry.once, np.nan, 0.5)
        history = history.assign(**{name: values})
    ax = curves(history, fresh_axes(), quantities=name)
    splits = ["train"] if entry.once or entry.group == "phase" else ["train", "val"]
    assert ax.get_ylabel() == entry.label
    assert lines_of(ax) == [f"{entry.label}, {split}" for split in splits]


def test_one_line_per_quantity_and_split_it_applies_to(history: pd.DataFrame) -> None:
    ax = curves(history, fresh_axes(), quantities=("nc2_etf_means", "nc2_etf_w"))
    assert lines_of(ax) == [
        "NC2 distance to ETF (means), train",
        "NC2 distance to ETF (means), val",
        "NC2 distance to ETF (W), train",
    ]
    assert ax.get_ylabel() == "NC2 distance to ETF"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["means", "W", "train", "val"]


def test_splits_can_be_chosen(history: pd.DataFrame) -> None:
    assert lines_of(curves(history, fresh_axes(), splits=["val"])) == ["NC1, val"]


def test_lines_hold_the_numbers_of_the_table_in_order_of_epochs(history: pd.DataFrame) -> None:
    shuffled = history.sample(frac=1, random_state=0)
    line = curves(shuffled, fresh_axes()).lines[0]
    expected = history[history["split"] == "train"]
    np.testing.assert_array_equal(line.get_xdata(), expected["epoch"])
    np.testing.assert_array_equal(line.get_ydata(), expected["nc1"])


def test_a_failed_measurement_is_a_gap(history: pd.DataFrame) -> None:
    values = np.asarray(curves(history, fresh_axes()).lines[0].get_ydata())
    assert np.isnan(values[90])
    assert np.isnan(values).sum() == 1


def test_a_point_between_two_gaps_is_marked() -> None:
    line = curves(collapse(failed=(80, 82)), fresh_axes()).lines[0]
    assert line.get_marker() == "o"
    assert line.get_markevery() == [81]


def test_the_terminal_phase_is_shaded_without_excursions_and_failures(
    history: pd.DataFrame,
) -> None:
    ax = curves(history, fresh_axes())
    assert tpt_start(history) == 12
    assert shades_of(ax) == tpt_spans(history) == [(12, 59), (62, 89), (91, 150)]
    assert "TPT from epoch 12" in [text.get_text() for text in ax.texts]


def test_nothing_is_shaded_before_the_terminal_phase() -> None:
    ax = curves(collapse(range(8)), fresh_axes())
    assert shades_of(ax) == []
    assert not ax.texts


def test_an_onset_at_the_last_epoch_is_a_line_and_no_shade() -> None:
    history = collapse(range(13))
    ax = curves(history, fresh_axes())
    assert shades_of(ax) == []
    assert "_TPT start" in [line.get_label() for line in ax.lines]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *[("nc1", "log"), ("nc2_etf_w", "log"), ("nc3_self_duality", "log")],
        *[("cross_entropy", "log"), ("w_mean_ratio", "log"), ("ncc_accuracy", "linear")],
        *[("error", "symlog"), ("nc4_disagreement", "symlog"), ("nc1_rank", "linear")],
    ],
)
def test_axes_are_logarithmic_only_where_zero_has_a_place(
    history: pd.DataFrame, name: str, scale: str
) -> None:
    assert curves(history, fresh_axes(), quantities=name).get_yscale() == scale


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.012, 0.8), (2.1, 4.9), (0.51, 1.9), (5.1, 9.9), (3.1, 9.9), (1e-7, 3.0), (0.2, 0.21)],
)
def test_a_log_axis_has_two_labels_wherever_the_values_lie(
    low: float, high: float, which: str
) -> None:
    ax = fresh_axes()
    ax.margins(0)  # as the scale of colours, which ends where they do
    values = np.geomspace(low, high, 5)
    ax.scatter(values, values)
    log_axis(ax, which, values)
    axis = ax.xaxis if which == "x" else ax.yaxis
    first, last = axis.get_view_interval()
    labels = [axis.get_major_formatter()(t) for t in axis.get_majorticklocs() if first <= t <= last]
    assert len(set(labels)) == len(labels) > 1


@pytest.mark.parametrize("largest", [1e250, 1e306, 1.7e308])
def test_a_loss_near_the_largest_number_is_drawn(largest: float) -> None:
    history = collapse(range(20))
    history.loc[history["epoch"] > 9, "cross_entropy"] = largest
    ax = curves(history, fresh_axes(), quantities="cross_entropy")
    draw(ax.figure)  # type: ignore[arg-type]
    assert np.isfinite(ax.get_ylim()).all()
    assert ax.get_ylim()[0] < history["cross_entropy"].min()


def test_a_share_of_zero_lies_inside_the_axes_and_is_labelled(history: pd.DataFrame) -> None:
    ax = curves(history, fresh_axes(), quantities="error")
    assert ax.get_ylim()[0] < 0
    assert 0.0 in ax.get_yticks()
    assert ax.yaxis.get_major_formatter()(0.0) == "0"


def test_exact_zeros_on_a_log_axis_are_marked_on_its_edge() -> None:
    history = collapse(failed=())
    history.loc[history["epoch"] >= 100, "nc1"] = [0.0, ROUNDING / 10] * 51
    ax = curves(history, fresh_axes(), splits=["train"])
    edge = [line for line in ax.lines if line.get_label() == "_zero"]
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] > 1e-5
    np.testing.assert_array_equal(edge[0].get_xdata(), np.arange(100, 151))


def test_a_quantity_that_is_zero_throughout_gets_a_linear_axis() -> None:
    history = collapse()
    history["nc2_etf_means"] = 0.0
    ax = curves(history, fresh_axes(), quantities="nc2_etf_means")
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] < 0 < ax.get_ylim()[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_histories_are_drawn_without_a_warning(case: str) -> None:
    figure = overview(DEGENERATE[case])
    draw(figure)
    assert len(figure.axes) == len(PANELS)


def test_the_overview_has_a_panel_for_the_fit_and_for_nc1_to_nc4(history: pd.DataFrame) -> None:
    figure = overview(history)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [panel_labels(names)[0] for names in PANELS]
    assert all(len(shades_of(ax)) == 3 for ax in figure.axes)
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys[:2] == ["train", "val"]
    assert "from epoch 12" in keys[2]


def test_a_quantity_that_was_never_measured_says_so(history: pd.DataFrame) -> None:
    figure = panel(history.drop(columns="nc1"), ["nc1"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]


def test_a_table_without_a_clock_is_drawn_without_shade(history: pd.DataFrame) -> None:
    bare = history[["epoch", "split", "nc1"]]
    assert shades_of(curves(bare, fresh_axes())) == []


def test_a_split_with_a_dollar_in_its_name_is_not_taken_for_mathematics(
    history: pd.DataFrame,
) -> None:
    odd = history.replace({"split": {"val": "val$\\frac$"}})
    draw(overview(odd))


@pytest.mark.parametrize("names", [("nc2_etf_means", "nc2_etf_w"), ("nc1",), ("error", "nc1")])
def test_panel_labels_lose_no_word(names: tuple[str, ...]) -> None:
    shared, own = panel_labels(names)
    for name, rest in zip(names, own, strict=True):
        label = CATALOGUE[name].label
        assert f"{shared} {rest}".split() == label.replace("(", "").replace(")", "").split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantities": "nc5"}, "expected names of the catalogue, but got 'nc5'; did you mean"),
        ({"quantities": ()}, "at least one quantity"),
        ({"splits": ["valid"]}, "expected splits among train, val, but got 'valid'"),
    ],
)
def test_a_wrong_argument_is_named(
    history: pd.DataFrame, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        curves(history, fresh_axes(), **arguments)  # type: ignore[arg-type]
