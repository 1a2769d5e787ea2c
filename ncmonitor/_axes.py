"""Axes that tell the truth about zero and about gaps: what :mod:`ncmonitor.plots` draws with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
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
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

INK: Final = "#1f2328"
MUTED: Final = "#59636e"
GRID: Final = "#e4e8ec"
SHADE: Final = "#efebf8"
ACCENT: Final = "#6a4fa3"
#: Blue, vermilion, green, pink, orange, sky: seaborn's colour-blind palette, most distinct first.
SERIES: Final[tuple[str, ...]] = tuple(
    sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 4, 1, 9)
)

#: Below this a distance between float64 quantities of order one is rounding, not a measurement.
ROUNDING: Final = 1e-14
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


def draw_series(ax: Axes, series: list[Series], scale: str) -> None:
    """Draw lines with gaps at ``nan``, on a scale that has room for the zeros among them.

    Args:
        ax: Where to draw.
        series: The lines; values at or below rounding count as zero on a logarithmic axis.
        scale: ``"log"``, ``"share"`` (logarithmic, but linear next to 0) or ``"linear"``. The first
            two need a positive value and fall back to ``"linear"`` without one.
    """
    largest = max((np.nanmax(s.values) for s in series), default=np.nan)
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
        _log_scale(ax, np.concatenate([s.values for s in series]))
    elif scale == "share":
        _share_scale(ax, np.concatenate([s.values for s in series]))


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


def _log_scale(ax: Axes, values: Values) -> None:
    """Logarithmic, with numbers a reader can say aloud wherever the values lie."""
    positive = values[values > ROUNDING]
    low, high = float(positive.min()), float(positive.max())
    ax.set_yscale("log")
    ax.margins(y=0.14)  # room above for a label, below for the zeros
    if high < 2 * low:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.yaxis.set_minor_locator(NullLocator())
    elif high < 30 * low:
        steps = (1, 2, 3, 5) if high < 8 * low else (1, 2, 5)
        ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(_numbers(low))


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
