"""One quantity against another, coloured by epoch: the path that training takes to collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError
from ncmonitor.monitor.history_queries import split_names, split_rows, tpt_start
from ncmonitor.plots._curves import known_names, scale_of
from ncmonitor.plots.style import ACCENT, ROUNDING, colour_scale, fresh_axes, log_axis, say_empty

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


def phase(
    history: pd.DataFrame,
    ax: Axes | None = None,
    *,
    x: str = "nc1",
    y: str = "nc3_self_duality",
    split: str = "train",
) -> Axes:
    """Draw the path of training in the plane of two quantities, from bright (first) to dark (last).

    A quantity that falls to 0 gets a log axis; epochs at which either is 0, or was not measured,
    are left out, and the path does not bridge them. A ring marks the start of the terminal phase.

    Args:
        history: One row per epoch and split.
        ax: Where to draw; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        x: A name from the catalogue.
        y: Another.
        split: Whose values; quantities of the classifier alone are those of ``"train"``.

    Returns:
        The axes drawn on, with the colours' scale beside them.

    Raises:
        InputError: If a quantity is not in the catalogue or the split not in the table.
    """
    [x], [y] = known_names(x), known_names(y)
    if split not in split_names(history):
        present = ", ".join(split_names(history))
        raise InputError(f"split= must be among {present}, but is {split!r}")
    ax = ax if ax is not None else fresh_axes(4.2, 3.2)
    ax.set_xlabel(CATALOGUE[x].label)
    ax.set_ylabel(CATALOGUE[y].label)
    epochs = split_rows(history, split)["epoch"].to_numpy(dtype=float)
    places = np.column_stack([_values(history, name, split, epochs) for name in (x, y)])
    logarithmic = [scale_of((name,)) != "linear" for name in (x, y)]
    places[places <= np.where(logarithmic, ROUNDING, -np.inf)] = np.nan
    known: NDArray[np.bool_] = np.asarray(np.isfinite(places).all(axis=1))
    if not known.any():
        say_empty(ax, "not measured")
        return ax
    _draw_path(ax, places, epochs, known)
    for axis, name, log in zip("xy", (0, 1), logarithmic, strict=True):
        if log:
            log_axis(ax, axis, places[known, name])
    _mark(history, ax, places, epochs)
    return ax


def _values(
    history: pd.DataFrame, name: str, split: str, epochs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a quantity at some epochs, ``nan`` where there is none."""
    rows = split_rows(history, "train" if CATALOGUE[name].once else split)
    if name not in rows:
        return np.full(len(epochs), np.nan)
    found = rows.drop_duplicates("epoch", keep="last").set_index("epoch")[name]
    return found.reindex(epochs).to_numpy(dtype=float)


def _draw_path(
    ax: Axes, places: NDArray[np.float64], epochs: NDArray[np.float64], known: NDArray[np.bool_]
) -> None:
    palette: Any = sns.color_palette("flare", as_cmap=True)
    first, last = float(epochs[known].min()), float(epochs[known].max())
    norm = Normalize(first, last if last > first else first + 1)
    steps = np.stack([places[:-1], places[1:]], axis=1)
    joined = known[:-1] & known[1:]
    path = LineCollection(list(steps[joined]), cmap=palette, norm=norm, linewidths=1.0, alpha=0.7)
    path.set_array(epochs[1:][joined])
    ax.add_collection(path)
    size = 14 if known.sum() <= 60 else 6
    look: dict[str, Any] = {"cmap": palette, "norm": norm, "s": size, "linewidths": 0, "zorder": 3}
    dots = ax.scatter(places[known, 0], places[known, 1], c=epochs[known], **look)
    ends = f"{first:.0f} to {last:.0f}" if last > first else f"{first:.0f}"
    colour_scale(
        ax, dots, f"epoch, {ends}", ticks=MaxNLocator(nbins=6, integer=True, min_n_ticks=1)
    )


def _mark(
    history: pd.DataFrame, ax: Axes, places: NDArray[np.float64], epochs: NDArray[np.float64]
) -> None:
    """Ring the epoch at which the terminal phase began, and say so where no path can lie."""
    start = tpt_start(history)
    ring = places[epochs == start]
    if start is None or not np.isfinite(ring).all(axis=1).any():
        return
    look: dict[str, Any] = {"s": 46, "facecolors": "none", "edgecolors": ACCENT}
    ax.scatter(ring[:, 0], ring[:, 1], label="_TPT start", **look)
    ax.set_title(f"○ TPT from epoch {start}", loc="left", fontsize="small", color=ACCENT)
