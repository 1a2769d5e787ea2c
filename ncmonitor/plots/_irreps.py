"""How much of the classes' broken symmetry is unequal lengths, and how much is pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ncmonitor.errors import InputError
from ncmonitor.monitor.history_queries import split_names, split_rows
from ncmonitor.plots._curves import shade_tpt
from ncmonitor.plots.style import (
    INK,
    ROUNDING,
    SERIES,
    Series,
    draw_series,
    fresh_axes,
    legend_above,
    own_style,
    say_empty,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_TOTAL: Final = "sk_breaking_means"
_PARTS: Final = (("sk_breaking_norm", "unequal lengths"), ("sk_breaking_pair", "similar pairs"))
_COLOURS: Final = (SERIES[4], SERIES[5])
_LINE: Final = "S_K breaking (right axis)"


def irrep_budget(history: pd.DataFrame, ax: Axes | None = None, *, split: str = "train") -> Axes:
    """Draw what breaks the symmetry of the class means, as exact shares of its square.

    ``sk_breaking_means²`` is the sum of ``sk_breaking_norm²``, what unequal lengths explain (the
    standard representation of S_K), and ``sk_breaking_pair²``, what similar pairs of classes do.
    The areas are their shares, on the left axis; the line is ``sk_breaking_means`` itself, on the
    right one: where it has fallen to rounding, there is nothing to share. The terminal phase is
    the stretch right of the dotted line.

    Args:
        history: One row per epoch and split, as :func:`ncmonitor.monitor.history.read_history`
            returns it.
        ax: Where to draw; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        split: Whose means.

    Returns:
        The axes of the shares; those of the line are beside them in the figure. Of two classes
        there is nothing to draw, and the axes say so.

    Raises:
        InputError: If the split is not in the table.
    """
    if split not in split_names(history):
        raise InputError(
            f"split= must be among {', '.join(split_names(history))}, but is {split!r}"
        )
    ax = ax if ax is not None else fresh_axes(5.0, 3.4)
    rows = split_rows(history, split).drop_duplicates("epoch", keep="last")
    epochs, total, shares = _shares(rows)
    if why := _nothing(rows, total):
        say_empty(ax, why)
        return ax
    _areas(ax, epochs, shares)
    line = _line(ax, epochs, total)
    shade_tpt(history, ax)
    _dress(ax, history, line)
    return ax


def has_budget(history: pd.DataFrame, split: str = "train") -> bool:
    """Tell whether there is a budget to draw: more than two classes, and numbers of them."""
    rows = split_rows(history, split)
    return not _nothing(rows, _shares(rows)[1])


def _shares(
    rows: pd.DataFrame,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs, the total, and the shares ``(2, epochs)``; ``nan`` where there are none."""
    columns = [rows[n].to_numpy(dtype=float) if n in rows else np.full(len(rows), np.nan)
               for n in (_TOTAL, *(name for name, _ in _PARTS))]  # fmt: skip
    total = np.where(np.isfinite(columns[0]), columns[0], np.nan)
    whole = np.where(total > ROUNDING, total, np.nan)
    return rows["epoch"].to_numpy(dtype=float), total, (np.stack(columns[1:]) / whole) ** 2


def _nothing(rows: pd.DataFrame, total: NDArray[np.float64]) -> str:
    classes = rows["n_classes_present"].max() if "n_classes_present" in rows else np.nan
    if classes == 2:
        return "two classes: their centred means are\nsymmetric by construction"
    return "" if np.isfinite(total).any() else "not measured"


def _areas(ax: Axes, epochs: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
    known = np.isfinite(shares).all(axis=0)
    edges = np.vstack([np.zeros(len(epochs)), np.cumsum(shares, axis=0)])
    padded = np.concatenate([[False], known, [False]])
    alone = known & ~padded[:-2] & ~padded[2:]  # an area needs two epochs
    width = max(0.6, 0.012 * float(np.ptp(epochs)))
    for i, colour in enumerate(_COLOURS):
        look: dict[str, Any] = {"color": colour, "alpha": 0.5, "linewidth": 0}
        ax.fill_between(epochs, edges[i], edges[i + 1], label="_share", **look)
        if alone.any():
            heights = (edges[i + 1] - edges[i])[alone]
            ax.bar(epochs[alone], heights, width, edges[i][alone], label="_share", **look)


def _line(ax: Axes, epochs: NDArray[np.float64], total: NDArray[np.float64]) -> Axes:
    with own_style():
        right = ax.twinx()
        look = {"color": INK, "linestyle": "-", "linewidth": 1.4}
        draw_series(right, [Series(_LINE, epochs, total, look)], "log")
        right.spines["right"].set_visible(True)
        right.tick_params(axis="y", which="both", labelsize=8.0)
        right.set_ylabel("S_K breaking of the means")
    return right


def _dress(ax: Axes, history: pd.DataFrame, right: Axes) -> None:
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylabel("share of its square")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    first, last = int(history["epoch"].min()), int(history["epoch"].max())
    pad = max(0.5, 0.02 * (last - first))
    ax.set_xlim(first - pad, last + pad)
    keys: list[Any] = [Patch(facecolor=c, alpha=0.5) for c in _COLOURS]
    for mark in [text for text in ax.texts if text.get_gid() == "TPT"]:
        mark.set_position((0, -2))
        mark.set_verticalalignment("top")
    legend_above(ax, [*keys, right.lines[0]], [*(label for _, label in _PARTS), _LINE])
