"""One quantity through the depth of the network and the time of training, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FixedLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import LAYER_MARK
from ncmonitor.monitor.history_queries import split_names, split_rows, tpt_start
from ncmonitor.plots._curves import known_names, scale_of
from ncmonitor.plots.style import ABSENT, ACCENT, ROUNDING, colour_scale, fresh_axes, say_empty

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: The row of the split itself: the input of the classifier.
FEATURES: Final = "features"


def layers(
    history: pd.DataFrame,
    ax: Axes | None = None,
    *,
    quantity: str = "nc1",
    split: str = "train",
) -> Axes:
    """Draw one quantity of every measured layer and epoch; darker is smaller.

    The first layer is at the bottom, the classifier's input on top. Every measured epoch is one
    column, however far apart they are; the ticks say which. What was not measured is grey.

    Args:
        history: With rows of inner layers, as ``NeuralCollapse(layers=...)`` leaves them.
        ax: Where to draw; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        quantity: A name from the catalogue.
        split: Whose layers.

    Returns:
        The axes drawn on, with the colours' scale beside them.

    Raises:
        InputError: If the quantity is not in the catalogue or the split not in the table.
    """
    [quantity] = known_names(quantity)
    if split not in split_names(history):
        present = ", ".join(split_names(history))
        raise InputError(f"split= must be among {present}, but is {split!r}")
    ax = ax if ax is not None else fresh_axes(5.0, 2.6)
    names, epochs, values = _table(history, quantity, split)
    if not np.isfinite(values).any():
        say_empty(ax, "not measured")
        return ax
    palette = sns.color_palette("mako", as_cmap=True).with_extremes(bad=ABSENT)
    norm, extend = _norm(values, quantity)
    edges = np.arange(len(epochs) + 1) - 0.5, np.arange(len(names) + 1) - 0.5
    values = np.where(np.isfinite(values), values, np.nan)
    mesh = ax.pcolormesh(*edges, values, cmap=palette, norm=norm, rasterized=True)
    colour_scale(ax, mesh, CATALOGUE[quantity].label, extend=extend)
    _dress(ax, names, epochs)
    _mark_tpt(history, ax, epochs)
    return ax


def _table(
    history: pd.DataFrame, quantity: str, split: str
) -> tuple[list[str], list[int], NDArray[np.float64]]:
    """Return the layers in the network's order, the epochs, and the values ``(layers, epochs)``."""
    mark = f"{split}{LAYER_MARK}"
    inner = [s for s in dict.fromkeys(history["split"]) if s.startswith(mark)]
    splits = {s.removeprefix(mark): s for s in inner} | {FEATURES: split}
    own = history[history["split"].isin(splits.values())]
    epochs = sorted({int(e) for e in own["epoch"]})
    values = np.full((len(splits), len(epochs)), np.nan)
    for i, name in enumerate(splits.values()):
        rows = split_rows(history, name)
        if quantity in rows:
            places = np.searchsorted(epochs, rows["epoch"].to_numpy())
            values[i, places] = rows[quantity].to_numpy(dtype=float)
    return list(splits), epochs, values


def _norm(values: NDArray[np.float64], quantity: str) -> tuple[Normalize, str]:
    """Return the scale of the colours, and whether values lie below it."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > ROUNDING]
    if scale_of((quantity,)) == "linear" or not len(positive) or positive.min() == positive.max():
        low, high = float(finite.min()), float(finite.max())
        return Normalize(low, high if high > low else low + 1), "neither"
    extend = "min" if len(positive) < len(finite) else "neither"
    return LogNorm(float(positive.min()), float(positive.max()), clip=True), extend


def _dress(ax: Axes, names: list[str], epochs: list[int]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize="x-small" if len(names) > 8 else "small")
    least = (len(epochs) - 1) / 8
    step = next(n * 10**p for p in range(9) for n in (1, 2, 5) if n * 10**p >= least)
    places = list(range(0, len(epochs), step))
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_ticklabels([str(epochs[place]) for place in places])
    ax.set_xlabel("epoch")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _mark_tpt(history: pd.DataFrame, ax: Axes, epochs: list[int]) -> None:
    start = tpt_start(history)
    if start is None:
        return
    place = float(np.searchsorted(epochs, start)) - 0.5
    ax.axvline(place, color="white", linewidth=1.0, linestyle=":", label="_TPT start")
    ax.annotate(
        f"TPT from epoch {start}",
        xy=(place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left" if place < len(epochs) / 2 else "right",
        color=ACCENT,
        fontsize="x-small",
        annotation_clip=False,
    )
