"""Axes that tell the truth about zero and about gaps: what :mod:`ncmonitor.plots` draws with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

INK: Final = "#1f2328"
MUTED: Final = "#59636e"
GRID: Final = "#e4e8ec"
SHADE: Final = "#efebf8"
ACCENT: Final = "#6a4fa3"
#: What was not measured, in a picture made of colours.
ABSENT: Final = "#c9cfd6"
#: Blue, vermilion, green, pink, orange, sky: seaborn's colour-blind palette, most distinct first.
SERIES: Final[tuple[str, ...]] = tuple(
    sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 4, 1, 9)
)

#: Below this a distance between float64 quantities of order one is rounding, not a measurement.
ROUNDING: Final = 1e-14
#: Above this a logarithmic axis has limits of its own, below the largest number there is.
_HUGE, _HUGEST = 1e200, 1e308
#: Digits that a logarithmic axis may name, from few to many.
_STEPS: Final = ((1,), (1, 2, 5), (1, 2, 3, 5))
#: With this many measurements or fewer, each one is marked.
_FEW: Final = 25


class Series(NamedTuple):
    """One quantity on one split: its label, its points (epochs, values) and its look."""

    label: str
    epochs: Values
    values: Values
    look: dict[str, Any]


def own_style() -> AbstractContextManager[None]:
    """Return a context in which new figures look like ours; the caller's settings come back."""
    settings: Any = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        **{"axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK},
        **{"xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK},
        **{"ytick.labelcolor": INK, "axes.linewidth": 0.7, "font.size": 9.0},
        **{"axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"},
        **{"xtick.major.width": 0.7, "ytick.major.width": 0.7, "ytick.minor.width": 0.5},
        **{"xtick.major.size": 3.0, "ytick.major.size": 3.0, "ytick.minor.size": 1.5},
        **{"axes.titlesize": 9.0, "axes.labelsize": 8.5, "legend.fontsize": 8.5},
        **{"xtick.labelsize": 8.0, "ytick.labelsize": 8.0},
    }
    return mpl.rc_context(settings)


def fresh_axes(width: float, height: float, **options: Any) -> Any:
    """Return the axes of a new figure, in our style and without pyplot.

    Args:
        width: In inches.
        height: In inches.
        options: For ``add_subplot``, such as ``projection="3d"``.
    """
    with own_style():
        ax = Figure(figsize=(width, height), layout="constrained").add_subplot(**options)
        ax.tick_params(labelsize=8.0)  # ticks are made when drawn, under the caller's settings
    return ax


def colour_scale(
    ax: Axes | Sequence[Axes], colours: ScalarMappable, label: str = "", **options: Any
) -> Colorbar:
    """Put the scale of some colours beside the axes they are in.

    Args:
        ax: One or several axes of a figure.
        colours: What was drawn.
        label: What they stand for.
        options: For ``Figure.colorbar``.
    """
    one = ax[0] if isinstance(ax, Sequence) else ax
    bar = one.figure.colorbar(colours, ax=ax, **({"pad": 0.02, "aspect": 18} | options))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.0, width=0.7, length=3.0, color=MUTED, labelcolor=INK)
    bar.ax.tick_params(which="minor", length=1.5, width=0.5, color=MUTED)
    bar.set_label(label, fontsize=8.5, color=INK)
    if isinstance(colours.norm, LogNorm):
        log_axis(bar.ax, "y", np.array([colours.norm.vmin, colours.norm.vmax]))
    return bar


def legend_above(ax: Axes, keys: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend above the axes, in as many columns as they have room for.

    Args:
        ax: Whose.
        keys: What the entries show.
        labels: What they say.
    """
    look: dict[str, Any] = {"columnspacing": 0.8, "handlelength": 1.4, "fontsize": 8}
    look |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False}
    for columns in range(len(keys), 0, -1):
        legend = ax.legend(keys, labels, ncols=columns, **look)
        # A little beyond the axes there is still figure.
        if legend.get_window_extent().width <= 1.05 * ax.bbox.width:
            return


def say_empty(ax: Axes, why: str) -> None:
    """Say in empty axes why nothing is drawn."""
    # text() of 3D axes would need a third coordinate.
    write = ax.text2D if hasattr(ax, "text2D") else ax.text
    write(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=MUTED)
    ax.set_xticks([])
    ax.set_yticks([])


def draw_series(
    ax: Axes, series: list[Series], scale: str, beside: Sequence[float] | Values = ()
) -> None:
    """Draw lines with gaps at ``nan``, on a scale that has room for the zeros among them.

    Args:
        ax: Where to draw.
        series: The lines; values at or below rounding count as zero on a logarithmic axis.
        scale: ``"log"``, ``"share"`` (logarithmic, but linear next to 0) or ``"linear"``. The first
            two need a positive value and fall back to ``"linear"`` without one.
        beside: Values that other axes show on the same scale.
    """
    every = np.concatenate([*(s.values for s in series), np.asarray(beside, dtype=float)])
    largest = np.nanmax(every, initial=-np.inf)
    if scale != "linear" and not largest > ROUNDING:
        ax.set_ylim(-0.05, 1.0)
        scale = "linear"
    for line in series:
        zero = line.values <= ROUNDING if scale == "log" else np.zeros(len(line.values), bool)
        values = np.where(zero, np.nan, line.values)
        ax.plot(line.epochs, values, label=line.label, **_marks(values), **line.look)
        if zero.any():
            _mark_zeros(ax, line.epochs[zero], line.look)
    if scale == "log":
        log_axis(ax, "y", every)
        ax.margins(y=0.14)  # room above for a label, below for the zeros
    elif scale == "share":
        _share_scale(ax, every)


def _marks(values: Values) -> dict[str, Any]:
    """Mark points that no line would show: between two gaps, or in a history of a few epochs."""
    finite = np.isfinite(values)
    if finite.sum() <= _FEW:
        return {"marker": "o", "markersize": 3.2}
    padded = np.concatenate([[False], finite, [False]])
    alone = finite & ~padded[:-2] & ~padded[2:]
    return {"marker": "o", "markersize": 3.2, "markevery": np.flatnonzero(alone).tolist()}


def _mark_zeros(ax: Axes, epochs: Values, look: dict[str, Any]) -> None:
    """Put exact zeros, which a logarithmic axis has no place for, on its lower edge."""
    ax.plot(
        epochs,
        np.full(len(epochs), 0.03),
        transform=ax.get_xaxis_transform(),
        linestyle="none",
        marker="v",
        markersize=4,
        markevery=max(1, len(epochs) // 12),
        color=look["color"],
        label="_zero",
    )
    ax.annotate(
        "▾ 0 within rounding",
        xy=(0, 0),
        xycoords="axes fraction",
        xytext=(4, 10),
        textcoords="offset points",
        color=look["color"],
        fontsize="x-small",
    )


def log_axis(ax: Axes, which: str, values: Values) -> None:
    """Make one axis logarithmic, with numbers a reader can say aloud wherever the values lie.

    Args:
        ax: Whose.
        which: ``"x"`` or ``"y"``.
        values: Some of them above rounding.
    """
    positive = values[values > ROUNDING]
    low, high = float(positive.min()), float(positive.max())
    if high > _HUGE:  # the usual margins would end beyond the largest number there is
        ax.set(**{f"autoscale{which}_on": False, f"{which}lim": (low / 10, _HUGEST)})
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    if high > _HUGE:
        axis.set_major_locator(FixedLocator([1e-10, 1.0, *(10.0**p for p in range(50, 309, 50))]))
        axis.set_minor_locator(NullLocator())
    elif not (steps := _steps(low, high)):
        axis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_minor_locator(NullLocator())
    elif len(steps) > 1:
        axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(_numbers(low))


def _steps(low: float, high: float) -> tuple[int, ...]:
    """Choose the digits that a logarithmic axis names: two numbers at least; empty: none do."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    first = (high < 30 * low) + (high < 8 * low) + (high < 2 * low)
    for steps in _STEPS[first:]:
        if sum(low <= digit * 10.0**power <= high for digit in steps for power in powers) > 1:
            return steps
    return ()


def _numbers(low: float) -> FuncFormatter:
    """Write 0.01 rather than a power of ten, unless the axis goes where zeros must be counted."""
    plain = low >= 1e-4

    def write(value: float, _: int | None = None) -> str:
        if plain or value == 0:
            return f"{value:.4g}"
        power = int(np.floor(np.log10(value) + 1e-9))
        digit = f"{value / 10.0**power:.3g}"
        return rf"$10^{{{power}}}$" if digit == "1" else rf"${digit}\cdot10^{{{power}}}$"

    return FuncFormatter(write)


def _share_scale(ax: Axes, values: Values) -> None:
    """Scale for shares of samples: decades down to the smallest share seen, then linear to 0."""
    smallest = np.nanmin(values[values > 0])
    first = int(np.floor(np.log10(smallest)))
    threshold = 10.0**first
    top = float(np.nanmax(values))
    decades = np.log10(top / threshold) + 0.5
    ax.set_yscale("symlog", linthresh=threshold, linscale=0.5)
    ax.set_ylim(-0.2 * threshold, top * 10 ** (0.1 + 0.14 * decades))
    powers = range(first, int(np.floor(np.log10(top))) + 1)
    ax.yaxis.set_major_locator(FixedLocator([0.0, *(10.0**p for p in powers)]))
    ax.yaxis.set_major_formatter(_numbers(threshold))
    ax.yaxis.set_minor_locator(NullLocator())
