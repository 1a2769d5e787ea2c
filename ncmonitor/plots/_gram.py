"""Gram matrices of the class means and the classifier, beside that of the simplex ETF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError, nearest
from ncmonitor.plots.style import ABSENT, INK, MUTED, colour_scale, fresh_axes, own_style, say_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from ncmonitor.monitor.snapshots.numbers import FloatArray
    from ncmonitor.monitor.snapshots.snapshot import Snapshot

#: What a Gram matrix can be of, in the order of :func:`grams`, and its title.
KINDS: Final[dict[str, str]] = {
    "means": "class means",
    "classifier": "classifier",
    "cross": "classifier × means",
    "etf": "simplex ETF",
}
#: With so many classes each cell has room for its number.
_NUMBERED: Final = 10
_EMPTY: Final = "nothing to draw: not finite,\nor all the same"
#: Below this, five digits of a Gram matrix do not tell a distance from rounding.
_FLOOR: Final = 0.01


def gram(snapshot: Snapshot, ax: Axes | None = None, *, of: str = "means") -> Axes:
    """Draw a Gram matrix on the scale that all of them share: from −1, blue, to 1, red.

    Full collapse shows as the matrix of the ETF: 1 on the diagonal and the same −1/(K−1) in all
    other places. Where all classes are shown, the distance from it is written below, under its name
    in the catalogue.

    Args:
        snapshot: What to draw.
        ax: Where; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).
        of: ``"means"``: inner products of the centred class means over their mean square length;
            ``"classifier"``: the same of its rows; ``"cross"``: cosines of each row with each mean;
            ``"etf"``: what they tend to.

    Returns:
        The axes drawn on.

    Raises:
        InputError: If ``of`` is none of these.
    """
    if of not in KINDS:
        raise InputError(f"of= takes {', '.join(map(repr, KINDS))}, got {of!r}{nearest(of, KINDS)}")
    ax = ax if ax is not None else fresh_axes(2.6, 2.8)
    ax.set_title(KINDS[of], loc="left", fontweight="bold")
    matrix = _matrix(snapshot, of)
    if matrix is None or not np.isfinite(matrix).any():
        say_empty(ax, "no classifier" if matrix is None else _EMPTY)
        ax.set_aspect("equal", "box")
        return ax
    size = len(matrix)
    edges = np.arange(size + 1) - 0.5
    # Edges in the colour of their cell: viewers of vector files leave seams between bare cells.
    look: dict[str, Any] = {"edgecolors": "face", "linewidth": 0.3}
    mesh = ax.pcolormesh(edges, edges, matrix, cmap=_colours(), vmin=-1, vmax=1, **look)
    mesh.set_label("_gram")
    ax.set_aspect("equal", "box")
    ax.invert_yaxis()
    for spine in ax.spines.values():
        spine.set_visible(False)
    if size <= _NUMBERED:
        _write_numbers(ax, matrix)
    _label_classes(ax, snapshot.classes)
    ax.set_xlabel(_remark(snapshot, of), color=MUTED)
    return ax


def grams(snapshot: Snapshot) -> Figure:
    """Draw what there is of class means, classifier and both, beside the simplex ETF.

    Args:
        snapshot: What to draw.

    Returns:
        A figure with a Gram matrix for each.
    """
    kinds = [of for of in KINDS if _matrix(snapshot, of) is not None]
    with own_style():
        figure = Figure(figsize=(0.7 + 2.35 * len(kinds), 2.95), layout="constrained")
        axes = figure.subplots(1, len(kinds), squeeze=False)[0]
        for ax, of in zip(axes, kinds, strict=True):
            gram(snapshot, ax, of=of)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-1, 1), _colours())
        colour_scale(list(axes), scale, shrink=0.72, ticks=[-1, 0, 1])
    return figure


def _colours() -> Colormap:
    """Blue for below 0, red for above; tells the colour-blind apart too."""
    palette: Colormap = sns.color_palette("vlag", as_cmap=True)
    return palette.with_extremes(bad=ABSENT)


def _matrix(snapshot: Snapshot, of: str) -> FloatArray | None:
    if of == "etf":
        others = max(1, snapshot.num_classes - 1)
        size = len(snapshot.classes)
        return np.eye(size) * (1 + 1 / others) - 1 / others
    found = {
        "means": snapshot.means_gram,
        "classifier": snapshot.weight_gram,
        "cross": snapshot.cross,
    }
    return found[of]


def _write_numbers(ax: Axes, matrix: FloatArray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            dark = abs(value) > 0.6
            text = f"{value:.2f}".replace("0.", ".").replace("-", "−")
            place = {"ha": "center", "va": "center", "fontsize": min(9.0, 46 / len(matrix))}
            ax.text(column, row, text, color="white" if dark else INK, **place)  # type: ignore[arg-type]


def _label_classes(ax: Axes, classes: tuple[int, ...]) -> None:
    step = max(1, -(-len(classes) // 11))
    places = list(range(0, len(classes), step))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(places))
        axis.set_ticklabels([str(classes[place]) for place in places])
        axis.set_tick_params(length=0, pad=1, labelsize=6.5)


def _remark(snapshot: Snapshot, of: str) -> str:
    """Return the distance to collapse where the matrix tells it, else what is shown."""
    count, shown = snapshot.num_classes, len(snapshot.classes)
    if of == "etf":
        return f"1 and −1/{count - 1}" if count > 2 else "1 and −1"
    if shown < count:
        return f"{shown} of {count} classes"
    matrix = _matrix(snapshot, of)
    if of == "cross":
        return _written("nc3_self_duality", _self_duality(snapshot))
    assert matrix is not None
    ideal = (np.eye(count) - 1 / count) / np.sqrt(max(1, count - 1))
    distance = float(np.linalg.norm(matrix / np.linalg.norm(matrix) - ideal))
    return _written("nc2_etf_means" if of == "means" else "nc2_etf_w", distance)


def _self_duality(snapshot: Snapshot) -> float:
    """Return ‖W/‖W‖ − Ṁ/‖Ṁ‖‖ from the cosines and the lengths on the diagonals."""
    assert snapshot.cross is not None
    assert snapshot.weight_gram is not None
    lengths = np.sqrt(np.diag(snapshot.means_gram) * np.diag(snapshot.weight_gram))
    overlap = float(np.sum(np.diag(snapshot.cross) * lengths)) / snapshot.num_classes
    return float(np.sqrt(max(0.0, 2 - 2 * overlap)))


def _written(name: str, value: float) -> str:
    label = CATALOGUE[name].label
    if not np.isfinite(value):
        return f"{label} undefined"
    return f"{label} < {_FLOOR}" if value < _FLOOR else f"{label} {value:.2g}"
