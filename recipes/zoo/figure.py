"""The zoo as one figure: every error before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ncmonitor.plots.style import GRID, INK, MUTED, SERIES, SHADE, own_style
from ncmonitor.recipes.zoo.predictions import EXACT, Theory
from ncmonitor.recipes.zoo.zoo_measurement import WHERE, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = dict(zip((Theory.ZERO, Theory.SMALL, Theory.FREE), SERIES, strict=False))
_TITLES: Final = {
    "features": "features: invariance error",
    "logits": "logits: invariance error",
    "inner": "inner map: equivariance error",
}
_LOW, _HIGH = 1e-37, 1e3
_ZERO: Final = 1e-35  # where an error of 0 is drawn
#: Power of ten below which decades are narrow: there is little to tell apart.
_WIDE: Final = -4.0
_NARROW: Final = 0.1
_TICKS: Final = (_ZERO, 1e-20, 1e-2, 1.0, 100.0)
_MINOR: Final = (1e-3, 0.1, 10.0)


def draw(results: Sequence[Result]) -> Figure:
    """Draw all errors: a row for each network and group, a panel for each measured thing.

    Args:
        results: Of all networks.

    Returns:
        The figure, made without pyplot.
    """
    with own_style():
        figure = Figure(figsize=(9.6, 1.4 + 0.21 * len(results)), layout="constrained")
        panels = figure.subplots(1, len(WHERE), sharey=True, squeeze=False)[0]
        for ax, where in zip(panels, WHERE, strict=True):
            _panel(ax, results, where)
        _names(panels[0], results)
        figure.legend(handles=_keys(panels[0]), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _panel(ax: Axes, results: Sequence[Result], where: str) -> None:
    ax.set_xscale("function", functions=(_place, _value))
    ax.set(xlim=(_LOW, _HIGH), title=_TITLES[where], xlabel="1: as far as two samples")
    ax.axvspan(_LOW, EXACT, color=SHADE, linewidth=0, zorder=0)
    ax.axvline(1.0, color=MUTED, linewidth=0.7, linestyle=":", zorder=1)
    for row, result in enumerate(results):
        theory = result.claim.of(where)
        if where not in result.before or theory is None:
            continue
        ends = [max(errors[where], _ZERO) for errors in (result.before, result.after)]
        colour = _COLOURS[theory]
        ax.plot(ends, [row, row], color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        ax.plot(ends[:1], [row], **_dot(colour, "white"), zorder=3)
        ax.plot(ends[1:], [row], **_dot(colour, colour), zorder=4)
    ax.xaxis.set_major_locator(FixedLocator(_TICKS))
    ax.xaxis.set_minor_locator(FixedLocator(_MINOR))
    ax.xaxis.set_major_formatter(FuncFormatter(_written))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_axisbelow(True)


def _place(values: Any) -> Any:
    """Return places on the axis: logarithms, with narrow decades below 1e-4."""
    power = np.log10(np.maximum(values, _LOW))
    return np.where(power > _WIDE, power, _WIDE + _NARROW * (power - _WIDE))


def _value(places: Any) -> Any:
    """Return what stands at a place on the axis."""
    power = np.where(places > _WIDE, places, _WIDE + (places - _WIDE) / _NARROW)
    return np.power(10.0, power)


def _written(value: float, _: int | None = None) -> str:
    return "0" if value <= 2 * _ZERO else f"{value:g}"


def _names(ax: Axes, results: Sequence[Result]) -> None:
    """Name the rows; the network stands at its first group alone."""
    names, last = [], ""
    for row, result in enumerate(results):
        name, group = result.entry.name, result.claim.group.name.replace("_", " ")
        names.append(f"{name}   {group}" if name != last else group)
        if name != last and row:
            for panel in ax.figure.axes:
                panel.axhline(row - 0.5, color=MUTED, linewidth=0.3)
        last = name
    ax.set_yticks(range(len(results)), names)
    ax.set_ylim(len(results) - 0.4, -0.6)


def _keys(ax: Axes) -> list[Any]:
    looks = {str(theory): _dot(colour, colour) for theory, colour in _COLOURS.items()}
    looks |= {"before training": _dot(INK, "white"), "after training": _dot(INK, INK)}
    dots = [ax.plot([], [], label=label, **look)[0] for label, look in looks.items()]
    return [*dots, Patch(facecolor=SHADE, label="0 within rounding")]


def _dot(edge: str, fill: str) -> dict[str, Any]:
    look = {"linestyle": "none", "marker": "o", "markersize": 4.4, "markeredgewidth": 1.1}
    return {**look, "markeredgecolor": edge, "markerfacecolor": fill}
