"""Quantities by epoch, with the terminal phase shaded: one panel, or the whole collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.history_queries import split_names, split_rows, tpt_spans, tpt_start
from ncmonitor.plots.style import (
    ACCENT,
    INK,
    SERIES,
    SHADE,
    Series,
    draw_series,
    fresh_axes,
    own_style,
    say_empty,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: The overview, in reading order: the fit, then NC1 to NC4. What one panel compares, it overlays.
PANELS: Final[tuple[tuple[str, ...], ...]] = (
    ("error",),
    ("cross_entropy",),
    ("nc1",),
    ("nc2_equinorm_means", "nc2_equinorm_w"),
    ("nc2_equiangular_std_means", "nc2_equiangular_std_w"),
    ("nc2_max_angle_means", "nc2_max_angle_w"),
    ("nc2_etf_means", "nc2_etf_w"),
    ("nc3_self_duality", "nc3_self_duality_centered"),
    ("nc4_disagreement",),
)


_DASHES: Final[dict[str, Any]] = {"train": "-", "val": (0, (3.2, 1.6))}
_OTHER_DASHES: Final = ((0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))


def curves(
    history: pd.DataFrame,
    ax: Axes | None = None,
    *,
    quantities: str | Sequence[str] = ("nc1",),
    splits: Sequence[str] | None = None,
) -> Axes:
    """Draw quantities against completed epochs, with the terminal phase (TPT) shaded.

    Train is solid, val dashed; each quantity has its colour. Distances and variances get a log
    axis, where exact zeros show as triangles on the lower edge; shares of samples (error, NC4) get
    a scale that is logarithmic down to the smallest share seen and linear from there to 0. A failed
    measurement (``nan``) is a gap, never bridged.

    Args:
        history: One row per epoch and split, as :func:`ncmonitor.monitor.history.read_history`
            returns it.
        ax: Where to draw; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        quantities: Names from the catalogue.
        splits: Which splits to draw; all that the table holds if ``None``.

    Returns:
        The axes drawn on.

    Raises:
        InputError: If a quantity is not in the catalogue or a split not in the table.
    """
    ax = ax if ax is not None else fresh_axes(5.0, 3.4)
    names = known_names(quantities)
    shown = _splits(history, splits)
    _draw(history, ax, names, shown)
    shade_tpt(history, ax)
    handles = _quantity_keys(names, "-") + (_split_keys(shown) if len(shown) > 1 else [])
    if handles:
        ax.legend(handles=handles, frameon=False, fontsize="small")
    return ax


def shade_tpt(history: pd.DataFrame, ax: Axes, *, label: bool = True) -> Axes:
    """Shade the terminal phase: every stretch between measurements that both had no train error.

    So an excursion out of the TPT stays white, and so does a stretch next to a failed measurement,
    where nothing is known. A dotted line marks the start.

    Args:
        history: As for :func:`curves`.
        ax: Axes with completed epochs on x.
        label: Whether to say above the axes which epoch the phase began at.

    Returns:
        The axes drawn on.
    """
    start = tpt_start(history)
    if start is None:
        return ax
    for left, right in tpt_spans(history):
        ax.axvspan(left, right, facecolor=SHADE, edgecolor="none", zorder=0, label="_TPT")
    ax.axvline(start, color=ACCENT, linewidth=0.8, linestyle=":", zorder=1, label="_TPT start")
    if label:
        _label_tpt(ax, start)
    return ax


def _label_tpt(ax: Axes, start: int) -> None:
    ax.annotate(
        f"TPT from epoch {start}",
        gid="TPT",
        xy=(1, 1),
        xycoords="axes fraction",
        xytext=(0, 2),  # above the axes: inside it would meet the legend
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=ACCENT,
        fontsize="x-small",
    )


def overview(history: pd.DataFrame) -> Figure:
    """Draw the whole collapse in one figure: the fit, NC1, NC2, NC3 and NC4 by epoch.

    Args:
        history: As for :func:`curves`.

    Returns:
        A figure of nine panels, 9.0 by 7.2 inches.
    """
    with own_style():
        figure = Figure(figsize=(9.0, 7.2))
        # Fixed margins: the tick labels are at most six characters, and layout engines are slow.
        margins = {"left": 0.058, "right": 0.985, "bottom": 0.065, "top": 0.92}
        grid = margins | {"wspace": 0.26, "hspace": 0.2}
        axes = figure.subplots(3, 3, sharex=True, gridspec_kw=grid)
        for ax, names in zip(axes.flat, PANELS, strict=True):
            _panel(history, ax, names)
            ax.set_xlabel("epoch" if ax in axes[-1] else "")
        keys: list[Line2D | Patch] = [*_split_keys(_splits(history, None))]
        if (start := tpt_start(history)) is not None:
            label = f"terminal phase (TPT), from epoch {start}: no training error"
            keys.append(Patch(facecolor=SHADE, edgecolor=ACCENT, linewidth=0.4, label=label))
        figure.legend(handles=keys, loc="upper left", ncols=len(keys), frameon=False)
    return figure


def panel(history: pd.DataFrame, quantities: Sequence[str]) -> Figure:
    """Draw one panel of the overview as a figure of its own; panels of one page line up.

    Args:
        history: As for :func:`curves`.
        quantities: Names from the catalogue.

    Returns:
        A figure of 3.4 by 2.5 inches.

    Raises:
        InputError: If a name is not in the catalogue.
    """
    with own_style():
        figure = Figure(figsize=(3.4, 2.5))
        _panel(history, figure.add_axes((0.15, 0.17, 0.83, 0.73)), known_names(quantities))
    return figure


def panel_labels(names: Sequence[str]) -> tuple[str, list[str]]:
    """Split the catalogue's labels into what they share and what tells them apart.

    >>> panel_labels(["nc2_etf_means", "nc2_etf_w"])
    ('NC2 distance to ETF', ['means', 'W'])
    """
    words = [CATALOGUE[name].label.split() for name in names]
    if len(words) == 1:
        return " ".join(words[0]), [""]
    same = 0
    while all(len(w) > same + 1 and w[same] == words[0][same] for w in words):
        same += 1
    return " ".join(words[0][:same]), [" ".join(w[same:]).strip("()") for w in words]


def known_names(quantities: str | Sequence[str]) -> tuple[str, ...]:
    names = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    for name in names:
        if name not in CATALOGUE:
            raise InputError(
                f"expected names of the catalogue, but got {name!r}{nearest(name, CATALOGUE)}"
            )
    if not names:
        raise InputError("expected at least one quantity to draw, but got none")
    return names


def _splits(history: pd.DataFrame, wanted: Sequence[str] | None) -> tuple[str, ...]:
    present = split_names(history)
    for split in wanted or ():
        if split not in present:
            raise InputError(f"expected splits among {', '.join(present)}, but got {split!r}")
    return tuple(wanted or present)


def _dashes(splits: Sequence[str]) -> dict[str, Any]:
    others = [split for split in splits if split not in _DASHES]
    return _DASHES | {s: _OTHER_DASHES[i % len(_OTHER_DASHES)] for i, s in enumerate(others)}


def scale_of(names: Sequence[str]) -> str:
    """Return the axis that quantities share, linear if they would have different ones."""
    scales = {CATALOGUE[name].scale for name in names}
    return scales.pop() if len(scales) == 1 else "linear"


def _series(history: pd.DataFrame, names: Sequence[str], splits: Sequence[str]) -> list[Series]:
    dashes = _dashes(splits)
    found = []
    for i, name in enumerate(names):
        for split in splits:
            rows = split_rows(history, split)
            if name not in rows:
                continue
            values = rows[name].to_numpy(dtype=float)
            values = np.where(np.isfinite(values), values, np.nan)
            if np.isnan(values).all():  # does not apply to this split, or was never measured
                continue
            look = {"color": SERIES[i % len(SERIES)], "linestyle": dashes[split], "linewidth": 1.4}
            look["fillstyle"] = "full" if split == "train" else "none"
            label = f"{CATALOGUE[name].label}, {split}"
            found.append(Series(label, rows["epoch"].to_numpy(dtype=float), values, look))
    return found


def _draw(history: pd.DataFrame, ax: Axes, names: Sequence[str], splits: Sequence[str]) -> None:
    series = _series(history, names, splits)
    if series:
        draw_series(ax, series, scale_of(names))
    else:
        say_empty(ax, "not measured")
    ax.set_xlabel("epoch")
    ax.set_ylabel(panel_labels(names)[0])
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    first, last = int(history["epoch"].min()), int(history["epoch"].max())
    pad = max(0.5, 0.02 * (last - first))
    ax.set_xlim(first - pad, last + pad)


def _panel(history: pd.DataFrame, ax: Axes, names: Sequence[str]) -> None:
    _draw(history, ax, names, _splits(history, None))
    shade_tpt(history, ax, label=False)  # the figure's key says it once
    ax.set_title(panel_labels(names)[0], loc="left", fontweight="bold", y=1.0)
    ax.set_ylabel("")
    if len(names) > 1:
        ax.legend(
            # Without a line: of length 0 it would still leave a dot before the word.
            handles=_quantity_keys(names, "none"),
            loc="lower right",  # above the axes, beside the title: inside it would hide a curve
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(names),
            frameon=False,
            borderaxespad=0.1,
            labelcolor="linecolor",  # the words in the colours of their lines: no room for samples
            handlelength=0,
            handletextpad=0,
            columnspacing=0.8,
        )


def _quantity_keys(names: Sequence[str], linestyle: Literal["-", "none"]) -> list[Line2D]:
    if len(names) == 1:
        return []
    own = panel_labels(names)[1]
    return [
        Line2D([], [], color=SERIES[i % len(SERIES)], linestyle=linestyle, label=label)
        for i, label in enumerate(own)
    ]


def _split_keys(splits: Sequence[str]) -> list[Line2D]:
    dashes = _dashes(splits)
    return [
        Line2D([], [], color=INK, linestyle=dashes[s], label=s.replace("$", r"\$")) for s in splits
    ]
