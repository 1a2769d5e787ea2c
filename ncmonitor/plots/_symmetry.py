"""Symmetry of the inputs through training: class collapse beside orbit collapse, and elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.symmetry_queries import (
    OF_CLASSES,
    OF_ORBITS,
    ROUNDING,
    common_groups,
    course,
    element_names,
    group_names,
    split_of,
)
from ncmonitor.plots.style import (
    INK,
    MUTED,
    SERIES,
    Series,
    draw_series,
    fresh_axes,
    legend_above,
    own_style,
    say_empty,
)
from ncmonitor.symmetry.rows import NUMBERS, PLAIN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

#: Lines of their own, where colours can tell them apart; of more, the range is drawn.
_MOST: Final = 2 * len(SERIES)
_DASHES: Final[tuple[Any, ...]] = ("-", (0, (3.2, 1.6)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))


class _Course(NamedTuple):
    """Mean, smallest and largest value over tables, by epoch."""

    epochs: Values
    mean: Values
    low: Values
    high: Values


def collapse_and_orbits(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    *,
    groups: str | Sequence[str] | None = None,
    split: str | None = None,
    layer: str = "",
) -> Figure:
    """Draw class collapse and orbit collapse on one scale: the first need not bring the second.

    Class collapse is ``nc1_quotient`` of the samples as they are, orbit collapse ``orbit_quot``,
    scatter along the orbits of a group; both in units of the variance between classes. One run has
    one panel with a line for each. Several ways of training have a panel for class collapse and one
    for each group, with a colour for each way; several tables of one way are its seeds: the line
    is their mean and the band reaches from the smallest to the largest.

    Args:
        tables: As :func:`ncmonitor.monitor.symmetry_table.read_symmetry` returns them: of one run,
            or by the name of the way, one or several.
        groups: Whose orbits; ``None``: every group that all tables have.
        split: Whose samples; ``None``: the training set, where it was measured.
        layer: An inner layer; empty: the classifier's input.

    Returns:
        The figure. What lies below 1e-10, rounding of an invariant network, is drawn as 0.

    Raises:
        InputError: If there is no table, or a group is not in all of them.
    """
    named = tables if isinstance(tables, Mapping) else {"": tables}
    ways = {name: list(t) if isinstance(t, Sequence) else [t] for name, t in named.items()}
    every = [table for seeds in ways.values() for table in seeds]
    if not every or not all(ways.values()):
        raise InputError("expected at least one table of symmetry for each name, but got none")
    names, split = _groups(every, groups), split or split_of(every[0])
    if len(ways) == 1 and names:
        [(title, seeds)] = ways.items()
        return _one_panel(seeds, names, split, layer, title)
    return _panels(ways, names, split, layer)


def group_curves(
    table: pd.DataFrame,
    name: str,
    ax: Axes | None = None,
    *,
    group: str | None = None,
    split: str | None = None,
    layer: str = "",
) -> Axes:
    """Draw one quantity of a group's elements through training, with the mean of the group.

    Of more elements than colours can tell apart, the range is drawn in their place. What is
    measured of whole groups or flows only has a line for each of them. ``acc`` has a grey line for
    the samples as they are.

    Args:
        table: As :func:`ncmonitor.monitor.symmetry_table.read_symmetry` returns it.
        name: Of a number in it, such as ``"acc"``.
        ax: Where to draw; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        group: Whose elements; ``None``: of the group, if there is one, else a line for each group.
        split: Whose samples; ``None``: the training set, where it was measured.
        layer: An inner layer; empty: the classifier's input.

    Returns:
        The axes drawn on.

    Raises:
        InputError: If the table has no such number or group.
    """
    if name not in NUMBERS:
        raise InputError(f"expected a number of a table of symmetry, but got {name!r}"
                         f"{nearest(name, NUMBERS)}")  # fmt: skip
    if group is not None and group not in set(table["group"]):
        raise InputError(f"group= must be among {', '.join(group_names(table))}, but is {group!r}")
    ax = ax if ax is not None else fresh_axes(5.0, 3.4)
    split = split or split_of(table)
    every = _measured(table, name, split, layer)
    groups = [g for g in every if g != PLAIN] if group is None else [group]
    if len(groups) == 1 and element_names(table, groups[0], split, layer):
        lines = _elements(table, name, groups[0], split, layer, ax)
    else:
        lines = [
            Series(_plain(g), *course(table, name, g, split, layer=layer), _look(i))
            for i, g in enumerate(groups)
        ]
    if name == "acc" and PLAIN in every:
        look = _look(0, MUTED) | {"linewidth": 1.0}
        lines.insert(0, Series("untransformed", *course(table, name, PLAIN, split), look))
    lines = [line for line in lines if np.isfinite(line.values).any()]
    if lines:
        draw_series(ax, lines, CATALOGUE[name].scale)
        legend_above(ax, *ax.get_legend_handles_labels())
    else:
        say_empty(ax, "not measured")
    where = f"{split}, {layer}" if layer else split
    _dress(ax, f"{CATALOGUE[name].label} ({_plain(where)})")
    return ax


# -- class collapse and orbit collapse -------------------------------------------------------------


def _groups(tables: Sequence[pd.DataFrame], wanted: str | Sequence[str] | None) -> list[str]:
    known = common_groups(tables)
    if wanted is None:
        return known
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in known:
            there = f"; all have {', '.join(known)}" if known else ""
            raise InputError(f"groups= must be in every table, but {name!r} is not{there}")
    return names


def _one_panel(
    seeds: Sequence[pd.DataFrame], groups: Sequence[str], split: str, layer: str, title: str
) -> Figure:
    lines = [("class collapse", _over(seeds, OF_CLASSES, PLAIN, split, layer), _look(0))]
    for i, group in enumerate(groups, start=1):
        what = f"orbit collapse, {group}"
        lines.append((what, _over(seeds, OF_ORBITS, group, split, layer), _look(i)))
    with own_style():
        figure = Figure(figsize=(5.0, 3.4), layout="constrained")
        ax = figure.add_subplot()
        _draw_courses(ax, lines)
        _dress(ax, _unit(split, layer), [course for _, course, _ in lines])
        keys = [Line2D([], [], **look, label=_plain(label)) for label, _, look in lines]
        _key(figure, keys, _plain(title))
    return figure


def _panels(
    ways: Mapping[str, Sequence[pd.DataFrame]], groups: Sequence[str], split: str, layer: str
) -> Figure:
    what = [("class collapse", OF_CLASSES, PLAIN)]
    what += [(f"orbit collapse, {group}", OF_ORBITS, group) for group in groups]
    grid = [[_over(seeds, name, g, split, layer) for seeds in ways.values()] for _, name, g in what]
    every = [course for courses in grid for course in courses]
    with own_style():
        figure = Figure(figsize=(0.6 + 3.1 * len(what), 3.3), layout="constrained")
        axes = list(figure.subplots(1, len(what), squeeze=False)[0])
        for ax, courses, (title, _, _) in zip(axes, grid, what, strict=True):
            looks = [_look(i) for i in range(len(ways))]
            _draw_courses(ax, list(zip(ways, courses, looks, strict=True)), every)
            _dress(ax, _unit(split, layer) if ax is axes[0] else "", every)
            ax.set_title(_plain(title), loc="left", fontweight="bold")
        _align(axes, every)
        _key(figure, [Line2D([], [], **_look(i), label=_plain(w)) for i, w in enumerate(ways)])
    return figure


def _over(seeds: Sequence[pd.DataFrame], name: str, group: str, split: str, layer: str) -> _Course:
    """Return one quantity over tables, at the epochs that all of them have."""
    courses = [course(table, name, group, split, layer=layer) for table in seeds]
    shared = sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in courses)))
    values = np.array([y[np.isin(x, shared)] for x, y in courses]).reshape(len(courses), -1)
    values = np.where(values < ROUNDING, 0.0, values)
    return _Course(np.array(shared), values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _draw_courses(
    ax: Axes, lines: Sequence[tuple[str, _Course, dict[str, Any]]], every: Sequence[_Course] = ()
) -> None:
    """Draw means and ranges, on the scale of every course that the figure shows."""
    known = [line for line in lines if np.isfinite(line[1].mean).any()]
    series = [Series(_plain(label), c.epochs, c.mean, look) for label, c, look in known]
    beside = [value for c in every for value in (*c.low, *c.high)]
    if not series:
        say_empty(ax, "not measured")
        return
    draw_series(ax, series, "log", beside)
    bottom, top = ax.get_ylim()
    for _, c, look in known:
        if (c.high > c.low).any():
            band = np.maximum(c.low, bottom), np.maximum(c.high, bottom)
            ax.fill_between(
                c.epochs, *band, color=look["color"], alpha=0.2, linewidth=0, label="_range"
            )
            top = max(top, float(np.nanmax(c.high)))
    ax.set_ylim(bottom, top)


def _align(axes: Sequence[Axes], every: Sequence[_Course]) -> None:
    """Give panels beside each other one vertical axis, written at the first."""
    values = np.concatenate([part for c in every for part in (c.low, c.high)])
    positive = values[values > ROUNDING]
    drawn = [ax for ax in axes if ax.get_yscale() == "log"]
    if len(positive):
        low, high = float(positive.min()), float(positive.max())
        room = max(high / low, 2.0) ** 0.12
        for ax in drawn:
            ax.set_ylim(low / room, high * room)
    for ax in axes[1:]:
        ax.tick_params(axis="y", which="both", labelleft=False)


def _unit(split: str, layer: str) -> str:
    where = f"{split}, {layer}" if layer else split
    return f"variance over tr $\\Sigma_B$ ({_plain(where)})"


def _key(figure: Figure, keys: Sequence[Line2D], title: str = "") -> None:
    style: Any = {"frameon": False, "handlelength": 1.8, "columnspacing": 1.2}
    if title:
        style |= {"title": title, "alignment": "left", "title_fontproperties": {"weight": "bold"}}
    wide = max(len(str(key.get_label())) for key in keys)
    columns = max(1, int(figure.get_figwidth() * 14.5 / (wide + 5)))
    figure.legend(handles=list(keys), loc="outside upper left", ncols=columns, **style)


# -- elements --------------------------------------------------------------------------------------


def _measured(table: pd.DataFrame, name: str, split: str, layer: str) -> list[str]:
    """Return the groups, flows and such that have the number, in the table's order."""
    own = table[(table["split"] == split) & (table["layer"] == layer)]
    return list(dict.fromkeys(own.loc[np.isfinite(own[name]), "group"]))


def _elements(
    table: pd.DataFrame, name: str, group: str, split: str, layer: str, ax: Axes
) -> list[Series]:
    """Return a line for each element and for their mean; of many elements, draw the range."""
    own = element_names(table, group, split, layer)
    lines = [
        Series(
            _plain(element),
            *course(table, name, group, split, layer=layer, element=element),
            _look(i),
        )
        for i, element in enumerate(own)
    ]
    whole = course(table, name, group, split, layer=layer)
    mean = Series(f"mean of {_plain(group)}", *whole, _look(0, INK) | {"linewidth": 2.0})
    if len(own) <= _MOST:
        return [*lines, *([mean] if len(own) > 1 else [])]
    stack = np.array([line.values for line in lines if len(line.values) == len(lines[0].values)])
    known = np.isfinite(stack).all(axis=0)
    low, high = stack.min(axis=0)[known], stack.max(axis=0)[known]
    look: dict[str, Any] = {"color": SERIES[0], "alpha": 0.25, "linewidth": 0}
    label = f"{len(own)} elements, from the least to the most"
    ax.fill_between(lines[0].epochs[known], low, high, label=label, **look)
    return [mean]


# -- both ------------------------------------------------------------------------------------------


def _look(i: int, colour: str = "") -> dict[str, Any]:
    dashes = _DASHES[i // len(SERIES) % len(_DASHES)]
    return {"color": colour or SERIES[i % len(SERIES)], "linestyle": dashes, "linewidth": 1.4}


def _dress(ax: Axes, label: str, courses: Sequence[_Course] = ()) -> None:
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    epochs = [epoch for c in courses for epoch in c.epochs]
    if epochs:
        pad = max(0.5, 0.02 * (max(epochs) - min(epochs)))
        ax.set_xlim(min(epochs) - pad, max(epochs) + pad)


def _plain(text: str) -> str:
    """Keep a name from being read as mathematics, or as one that legends leave out."""
    return text.replace("$", r"\$").lstrip("_")
