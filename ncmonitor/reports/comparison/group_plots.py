"""Pictures of groups of runs: the mean of each, the range of its runs, and the runs themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history_queries import other_split, split_rows
from ncmonitor.plots._curves import scale_of
from ncmonitor.plots.style import MUTED, ROUNDING, SERIES, Series, draw_series, own_style, say_empty
from ncmonitor.reports.comparison.aggregate import thinned

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ncmonitor.reports.comparison.run_groups import RunGroup

#: With more groups than colours, dashes tell groups with one colour apart, not splits.
DASHES: Final[tuple[tuple[float, ...], ...]] = ((), (3.2, 1.6), (1, 1.4), (5, 1.5, 1, 1.5))
#: With more runs than this, or with more points than this on a panel, the single runs are left to
#: the range that they span.
_MANY_RUNS: Final = 24
_MANY_POINTS: Final = 5000
#: Points on the lines of a panel: what keeps a page of 14 panels below 5 MB.
_POINTS: Final = 4000
#: Times the shortest run that the longest may take on a linear axis.
_MUCH_LONGER: Final = 6
_POINTS_OF_A_LINE: Final = 300  # about one for each pixel of the axes
_KEY: Final = 8.0  # size of the text below a panel that stands alone, in points
_ROOM: Final = 180.0  # of a line of it: the width of the figure less margin and sample

#: Order parameters of the symmetry of the classes: means, its exact split, and W.
ORDER_PARAMETERS: Final = (
    *("sk_breaking_means", "sk_breaking_norm", "sk_breaking_pair"),
    "sk_breaking_w",
)


@dataclass(frozen=True)
class GroupStyle:
    """How the groups of a comparison are told apart.

    Attributes:
        splits: Which splits are drawn; the second one dashed.
        single: Whether every run has a thin line of its own.
        points: Epochs of a line at most; longer courses are thinned.
        log_epochs: Whether runs are so unlike in length that a linear axis would hide the short.
    """

    splits: tuple[str, ...]
    single: bool
    points: int
    log_epochs: bool

    @staticmethod
    def colour(group: int) -> str:
        """Return the colour of the group with that number."""
        return SERIES[group % len(SERIES)]

    def dashes(self, group: int, split: str) -> tuple[float, ...]:
        """Return the dashes of a line, empty for a solid one."""
        return DASHES[(group // len(SERIES) + self.splits.index(split)) % len(DASHES)]


def look_of(groups: Sequence[RunGroup], table: pd.DataFrame) -> GroupStyle:
    """Choose what a comparison can show at once and still be read.

    Args:
        groups: What is compared.
        table: Their statistics.
    """
    other = other_split(table)
    splits = ("train", other) if other else ("train",)
    shown = tuple(split for split in splits if (table["split"] == split).any()) or splits[:1]
    if len(groups) > len(SERIES):
        shown = shown[:1]
    runs = [run for group in groups for run in group.runs if len(group.runs) > 1]
    points = sum(int(run.history["split"].isin(shown).sum()) for run in runs)
    lines = max(1, len(groups) * len(shown))
    return GroupStyle(
        splits=shown,
        single=len(runs) <= _MANY_RUNS and points <= _MANY_POINTS,
        points=min(_POINTS_OF_A_LINE, max(50, _POINTS // lines)),
        log_epochs=_unlike([int(r.history["epoch"].max()) for g in groups for r in g.runs]),
    )


def _unlike(ends: Sequence[int]) -> bool:
    return max(ends) > _MUCH_LONGER * max(1, min(ends))


def compared_panel(
    groups: Sequence[RunGroup], tables: Sequence[pd.DataFrame], name: str, look: GroupStyle
) -> Figure:
    """Draw one quantity of all groups by epoch; panels of one page line up.

    A line is the mean over the runs of a group, the band about it reaches from their smallest to
    their largest value, and thin lines are the runs. Triangles at the upper edge mark where the
    terminal phase of each run began.

    Args:
        groups: What is compared.
        tables: Statistics of each group, as
            :func:`ncmonitor.reports.comparison.aggregate.aggregate` returns them.
        name: A quantity of the catalogue.
        look: What to show.

    Returns:
        A figure of the size of a report's panels.
    """
    with own_style():
        figure = Figure(figsize=(3.4, 2.5))
        ax = figure.add_axes((0.15, 0.17, 0.83, 0.73))
        _draw(groups, tables, ax, name, look, scale_of((name,)))
        ax.set_title(CATALOGUE[name].label, loc="left", fontweight="bold", y=1.03)
        ax.set_xlabel("epoch")
        _set_epochs(ax, groups, log=look.log_epochs)
    return figure


def order_parameters(
    groups: Sequence[RunGroup], tables: Sequence[pd.DataFrame], look: GroupStyle
) -> Figure | None:
    """Draw how broken the symmetry of the classes is, by epoch: :data:`ORDER_PARAMETERS`.

    Lines, bands and triangles are those of :func:`compared_panel`, of the training set. The panels
    share a linear axis from 0, the symmetric phase, so that they can be read against each other,
    and a logarithmic one of epochs, as the symmetry breaks and returns early.

    Args:
        groups: What is compared.
        tables: Statistics of each group.
        look: What to show.

    Returns:
        A figure as wide as a page; ``None`` if none of them was measured.
    """
    names = [n for n in ORDER_PARAMETERS if any(_was_measured(table, n) for table in tables)]
    if not names:
        return None
    look = replace(look, splits=look.splits[:1])
    with own_style():
        width = 2.4 * len(names) + 0.5  # in inches, as the margins
        figure = Figure(figsize=(width, 2.6))
        figure.subplots_adjust(0.45 / width, 0.17, 1 - 0.1 / width, 0.88, wspace=0.1)
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for ax, name in zip(panels, names, strict=True):
            _draw(groups, tables, ax, name, look, "linear")
            ax.set_title(CATALOGUE[name].label, loc="left", fontweight="bold", y=1.03)
            ax.set_xlabel("epoch")
            _set_epochs(ax, groups, log=True)
        panels[0].set_ylim(bottom=0)
    return figure


def _was_measured(table: pd.DataFrame, name: str) -> bool:
    return bool((table.loc[table["metric"] == name, "n"] > 0).any())


def _set_epochs(ax: Axes, groups: Sequence[RunGroup], *, log: bool) -> None:
    epochs = [run.history["epoch"] for group in groups for run in group.runs]
    first, last = min(map(min, epochs)), max(map(max, epochs))
    if log:
        ax.set_xscale("symlog", linthresh=1)
        ticks = [0, *(digit * 10**power for power in range(7) for digit in (1, 3))]
        ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if first <= t <= last]))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(first - 0.1 * (first == 0), 1.1 * last)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        pad = max(0.5, 0.02 * (last - first))
        ax.set_xlim(first - pad, last + pad)


def with_key(figure: Figure, groups: Sequence[RunGroup], look: GroupStyle) -> Figure:
    """Add below a compared panel what its lines are, so that it can stand alone.

    Args:
        figure: From :func:`compared_panel`; it becomes higher.
        groups: What is compared.
        look: What was shown.
    """
    first = look.splits[0]
    with own_style():
        keys = [_line(look.colour(i), look.dashes(i, first), g.label) for i, g in enumerate(groups)]
        if len(look.splits) > 1:
            keys += [_line(MUTED, look.dashes(0, split), split) for split in look.splits]
        mark: dict[str, Any] = {"marker": "v", "linestyle": "none", "markeredgewidth": 0}
        keys.append(Line2D([], [], color=MUTED, label="TPT starts", **mark))
        [ax] = figure.axes
        left, bottom, width, height = ax.get_position().bounds
        old = figure.get_figheight()
        for key in keys:
            key.set_label(_folded(str(key.get_label())))
        lines = sum(1 + str(key.get_label()).count("\n") for key in keys)
        new = old + 0.17 * lines + 0.12
        figure.set_size_inches(figure.get_figwidth(), new)
        ax.set_position((left, 1 - (1 - bottom) * old / new, width, height * old / new))
        style: dict[str, Any] = {"frameon": False, "fontsize": _KEY, "labelspacing": 0.3}
        place: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (left - 0.03, 0),
            "borderpad": 0.2,
        }
        figure.legend(handles=keys, **place, **style)
    return figure


def _folded(label: str) -> str:
    """Break the name of a group into lines that are no longer than a figure is wide."""
    for width in range(60, 10, -4):
        lines = textwrap.wrap(label, width) or [""]
        if all(TextPath((0, 0), line, size=_KEY).get_extents().width < _ROOM for line in lines):
            break
    return "\n".join(lines)


def _line(colour: str, dashes: Sequence[float], label: str) -> Line2D:
    style: Any = (0, tuple(dashes)) if dashes else "-"
    return Line2D([], [], color=colour, linestyle=style, label=label.replace("$", r"\$"))


def _draw(
    groups: Sequence[RunGroup],
    tables: Sequence[pd.DataFrame],
    ax: Axes,
    name: str,
    look: GroupStyle,
    scale: str,
) -> None:
    series, bands = [], []
    for i, (group, table) in enumerate(zip(groups, tables, strict=True)):
        for split in look.splits:
            rows = split_rows(table[table["metric"] == name], split)
            if not (rows["n"] > 0).any():  # does not apply to this split, or was never measured
                continue
            dashes = look.dashes(i, split)
            style: dict[str, Any] = {"color": look.colour(i)}
            style["linestyle"] = (0, dashes) if dashes else "-"
            course = thinned(rows, look.points)
            if len(group.runs) > 1 or len(course) < len(rows):
                bands.append((course, look.colour(i), split == look.splits[0]))
            if len(group.runs) > 1 and look.single:
                _draw_runs(group, ax, name, split, style, scale)
            epochs, mean = (course[key].to_numpy(dtype=float) for key in ("epoch", "mean"))
            own = {"linewidth": 1.4, "fillstyle": "full" if split == look.splits[0] else "none"}
            series.append(Series("_mean", epochs, mean, style | own))
    if not series:
        say_empty(ax, "not measured")
        return
    draw_series(ax, series, scale)
    _draw_bands(ax, bands)
    _mark_onsets(groups, ax, look)


def _draw_runs(
    group: RunGroup, ax: Axes, name: str, split: str, style: dict[str, Any], scale: str
) -> None:
    for run in group.runs:
        rows = split_rows(run.history, split)
        if name not in rows:
            continue
        values = rows[name].to_numpy(dtype=float)
        hidden = ~np.isfinite(values) | ((values <= ROUNDING) & (scale == "log"))
        values = np.where(hidden, np.nan, values)
        look = style | {"linewidth": 0.5, "alpha": 0.45}
        ax.plot(rows["epoch"], values, label="_run", **look)


def _draw_bands(ax: Axes, bands: Sequence[tuple[pd.DataFrame, str, bool]]) -> None:
    """Fill between the extremes, on the axis that the lines have chosen."""
    bottom, top = ax.get_ylim()
    for rows, colour, first in bands:
        low, high = (rows[key].to_numpy(dtype=float) for key in ("min", "max"))
        if np.isfinite(high).any():
            top = max(top, float(np.nanmax(high)))
            if ax.get_yscale() == "linear":
                bottom = min(bottom, float(np.nanmin(low)))
        ax.fill_between(
            rows["epoch"].to_numpy(dtype=float),
            np.maximum(low, bottom),  # a logarithmic axis has no place for an extreme at 0
            np.maximum(high, bottom),
            color=colour,
            alpha=0.2 if first else 0.12,
            linewidth=0,
            label="_range",
        )
    ax.set_ylim(bottom, top)


def _mark_onsets(groups: Sequence[RunGroup], ax: Axes, look: GroupStyle) -> None:
    for i, group in enumerate(groups):
        onsets = [run.onset for run in group.runs if run.onset is not None]
        ax.plot(
            onsets,
            np.full(len(onsets), 1.025),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            marker="v",
            markersize=4.5,
            markeredgewidth=0,
            alpha=0.75,
            color=look.colour(i),
            clip_on=False,
            label="_TPT start",
        )
