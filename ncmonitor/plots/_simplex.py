"""Features, class means and classifier rows of a few classes, on the ideal simplex."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ncmonitor.errors import InputError
from ncmonitor.monitor.snapshots.corners import ideal_corners
from ncmonitor.plots.style import INK, MUTED, SERIES, fresh_axes, say_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ncmonitor.monitor.snapshots.numbers import FloatArray
    from ncmonitor.monitor.snapshots.snapshot import Snapshot

#: The picture reaches at least and at most so far from the centre, in lengths of a mean.
NEAR, FAR = 1.35, 2.5
#: A triangle about its centre reaches higher than lower.
_RAISED: Final = 0.25
#: Blue, vermilion, green, pink are told apart by shape too.
_MARKERS: Final = ("o", "s", "^", "D")


def simplex(
    snapshot: Snapshot,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    limit: float | None = None,
    legend: bool = True,
) -> Axes:
    """Draw a few classes in the space of their means, turned to the corners of an ideal simplex.

    Small marks are features, large ones class means, arrows the classifier's rows; dashes join the
    corners of the simplex. At full collapse everything of a class lies on its corner. An arrow
    shorter than the way to its corner leans out of the space of the means.

    Args:
        snapshot: What to draw. With two corner classes it is a line, the height in the picture
            meaning nothing; with three a plane, with four a space.
        ax: Where, of ``projection="3d"`` for four classes; a new figure's axes if ``None``.
        names: What to call the classes, by class index; else their numbers.
        limit: How far the picture reaches, in mean lengths of the means; found if ``None``.
        legend: Whether to say what the marks are.

    Returns:
        The axes drawn on.

    Raises:
        InputError: If there are four classes and the axes are flat, or a class has no name.
    """
    corners = snapshot.corners
    solid = len(corners) == 4
    if ax is None:
        high = 1.8 if len(corners) == 2 else 3.4
        ax = fresh_axes(3.4, high, **({"projection": "3d"} if solid else {}))
    elif (ax.name == "3d") != solid:
        raise InputError(
            f"{len(corners)} corner classes need axes {'with' if solid else 'without'} "
            'projection="3d"; make them by figure.add_subplot('
            + ('projection="3d")' if solid else ")")
        )
    words = [_name(c, names) for c in corners]
    if len(corners) < 2 or not np.isfinite(snapshot.corner_means).all():
        say_empty(
            ax,
            "nothing to draw: one class"
            if len(corners) < 2
            else "nothing to draw: class means not finite,\nor all the same",
        )
        return ax
    reach = limit if limit is not None else reach_of([snapshot])
    _draw_ideal(ax, len(corners))
    _draw_points(ax, snapshot, reach)
    _draw_means(ax, snapshot)
    _draw_rows(ax, snapshot)
    _draw_names(ax, words, reach)
    _dress(ax, len(corners), reach)
    if snapshot.num_classes > len(corners):
        _write(ax, 0.99, f"{len(corners)} of {snapshot.num_classes} classes", ha="right")
    if legend:
        ax.legend(handles=keys(snapshot), loc="upper right", fontsize="x-small", frameon=False,
                  borderaxespad=0, handletextpad=0.3)  # fmt: skip
    return ax


def reach_of(snapshots: Sequence[Snapshot]) -> float:
    """Return how far from the centre a picture of all of these has to reach, within reason."""
    arrays = [_about_middle(a) for s in snapshots for a in (s.points, s.corner_means)]
    far = max((float(np.nanmax(np.abs(a))) for a in arrays if np.isfinite(a).any()), default=0.0)
    return min(max(1.04 * far, NEAR), FAR)


def _about_middle(places: FloatArray) -> FloatArray:
    """Return places about the middle of the picture, which is above the centre of a triangle."""
    return places - np.array([0.0, _RAISED]) if places.shape[1] == 2 else places


def keys(snapshot: Snapshot) -> list[Line2D]:
    """Return what the marks mean, for a legend."""
    look: dict[str, Any] = {"color": MUTED, "linestyle": "none", "marker": "o"}
    found = [
        Line2D([], [], markersize=2.5, label="features", **look),
        Line2D([], [], markersize=6.5, markeredgecolor="white", label="class mean", **look),
    ]
    if snapshot.corner_weights is not None:
        found.append(Line2D([], [], color=MUTED, linewidth=1.6, label="classifier row"))
    return [*found, Line2D([], [], color=MUTED, linewidth=0.8, linestyle="--", label="simplex ETF")]


def _name(label: int, names: Sequence[str] | None) -> str:
    if names is None:
        return f"class {label}"
    if label >= len(names):
        raise InputError(f"names= has {len(names)} entries, but class {label} is in the picture")
    return str(names[label]).replace("$", r"\$")


def _flat(places: FloatArray) -> FloatArray:
    """Give places on a line a second coordinate, 0."""
    return np.column_stack([places, np.zeros(len(places))]) if places.shape[1] == 1 else places


def _write(ax: Any, x: float, remark: str, y: float = 0.01, **look: Any) -> None:
    """Write a remark at the edge of the picture."""
    write = ax.text2D if hasattr(ax, "text2D") else ax.text
    write(x, y, remark, transform=ax.transAxes, fontsize="x-small", color=MUTED, **look)


def _draw_ideal(ax: Axes, count: int) -> None:
    places = _flat(ideal_corners(count))
    for one, other in combinations(places, 2):
        ends = np.stack([one, other]).T
        ax.plot(*ends, color=MUTED, linewidth=0.8, linestyle="--", zorder=1, label="_ETF")


def _draw_points(ax: Any, snapshot: Snapshot, reach: float) -> None:
    size = 7.0 if len(snapshot.corners) < 4 else 5.0
    near = np.abs(_about_middle(snapshot.points)) <= reach
    seen = np.asarray(near.all(axis=1))  # nan is not
    if not seen.all():
        _write(ax, 0.01, f"{np.sum(~seen)} of {len(seen)} features outside", y=0.99, va="top")
    for i, corner in enumerate(snapshot.corners):
        inside = snapshot.points[seen & (snapshot.point_labels == corner)]
        if inside.shape[1] == 1:  # spread over the height, in an order that shows no pattern
            height = 0.5 * ((np.arange(len(inside)) * 0.618034) % 1 - 0.5)
            inside = np.column_stack([inside, height])
        look: dict[str, Any] = {"color": SERIES[i], "marker": _MARKERS[i], "linewidths": 0}
        ax.scatter(*inside.T, s=size, alpha=0.55, zorder=2, label="_features", **look)


def _draw_means(ax: Any, snapshot: Snapshot) -> None:
    for i, place in enumerate(_flat(snapshot.corner_means)):
        look: dict[str, Any] = {"color": SERIES[i], "marker": _MARKERS[i], "edgecolors": "white"}
        ax.scatter(*place[:, None], s=60, linewidths=0.9, zorder=5, label="_mean", **look)


def _draw_rows(ax: Any, snapshot: Snapshot) -> None:
    if snapshot.corner_weights is None:
        return
    for i, place in enumerate(_flat(snapshot.corner_weights)):
        if not np.isfinite(place).all():
            continue
        if len(place) == 3:
            ax.quiver(0, 0, 0, *place, color=SERIES[i], linewidth=1.6, arrow_length_ratio=0.08,
                      zorder=3, label="_row")  # fmt: skip
        else:
            ax.annotate("", xy=place, xytext=(0, 0), zorder=3, annotation_clip=False,
                        arrowprops={"arrowstyle": "-|>", "color": SERIES[i], "linewidth": 1.6,
                                    "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9})  # fmt: skip


def _draw_names(ax: Any, words: Sequence[str], reach: float) -> None:
    """Name the classes near the edge of the picture, where few features are."""
    places = _flat(ideal_corners(len(words)))
    if len(words) == 3:
        places = 0.97 * reach * places
    elif len(words) == 4:
        places = 1.35 * places
    else:  # below the marks
        places[:, 1] -= 0.45
    for i, (outside, word) in enumerate(zip(places, words, strict=True)):
        text = ax.text(*outside, word, ha="center", va="center", fontsize=8, color=SERIES[i],
                       fontweight="bold", zorder=6)  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.8)])


def _dress(ax: Any, count: int, reach: float) -> None:
    ax.set_axis_off()
    if count == 4:
        ax.set_box_aspect((1, 1, 1), zoom=1.7)
        ax.view_init(elev=24, azim=-82)  # no corner hides another
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        return
    ax.set_xlim(-reach, reach)
    ax.set_ylim(*((-0.8, 0.8) if count == 2 else (_RAISED - reach, _RAISED + reach)))
    ax.set_aspect("equal" if count == 3 else "auto", "box")
    if count == 2:
        _write(ax, 0.01, "the height only keeps dots apart", va="bottom")
    ax.plot([0], [0], marker="+", color=INK, markersize=5, zorder=4, label="_centre")
