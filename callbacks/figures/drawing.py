"""Which pictures there are, and what each is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.history import LAYER_MARK
from ncmonitor.monitor.run_info import PICTURES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from ncmonitor.monitor.snapshots.snapshot import Snapshot

FIGURES: Final = PICTURES
DEFAULT: Final = FIGURES[:4]
ANIMATION: Final = "animation"
#: Folder of the pictures in that of the run.
FOLDER: Final = "figures"


class DrawnFigure(NamedTuple):
    """A picture that was drawn.

    Attributes:
        name: One of :data:`FIGURES`.
        path: Where it was written.
        figure: Of matplotlib; ``None`` for an animation.
        pixels: ``(height, width, 3)``; ``None`` for an animation.
    """

    name: str
    path: Path
    figure: Any = None
    pixels: NDArray[np.uint8] | None = None


def figures_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of figures as a tuple; one name is one figure, ``"all"`` is all there are.

    Raises:
        InputError: If one is unknown.
    """
    if names == "all":
        return FIGURES
    chosen = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in chosen:
        if name not in FIGURES:
            hint = nearest(name, FIGURES) if isinstance(name, str) else ""
            known = ", ".join(FIGURES)
            raise InputError(f"figures= takes 'all', or some of {known}, but got {name!r}{hint}")
    return chosen


def has_layers(history: pd.DataFrame) -> bool:
    """Tell whether inner layers were measured."""
    return any(LAYER_MARK in str(split) for split in history["split"].unique())


def draw(
    name: str, folder: Path, snapshot: Snapshot, history: pd.DataFrame, names: Sequence[str] | None
) -> DrawnFigure:
    """Draw one picture and write it to ``FOLDER/<name>.png``, over that of an earlier epoch.

    Args:
        name: One of :data:`FIGURES`, but for the animation.
        folder: Of the run.
        snapshot: Of the epoch.
        history: Up to the epoch.
        names: What to call the classes; else their numbers.
    """
    from ncmonitor import plots
    from ncmonitor.plots._pixels import pixels_of, write_png

    figure: Any
    if name == "curves":
        figure = plots.overview(history)
    elif name == "gram":
        figure = plots.grams(snapshot)
        for text in (text for ax in figure.axes for text in ax.texts):
            text.set_in_layout(False)  # numbers in their cells: to measure each takes half the time
    elif name == "simplex":
        figure = plots.simplex(snapshot, names=names).figure
    elif name == "spectrum":
        figure = plots.spectrum(snapshot).figure
    elif name == "layers":
        figure = plots.layers(history).figure
    elif name == "irrep_budget":
        figure = plots.irrep_budget(history).figure
    else:
        figure = plots.phase(history).figure
    pixels, path = pixels_of(figure), folder / FOLDER / f"{name}.png"
    write_png(path, pixels)
    return DrawnFigure(name, path, figure, pixels)


def animate(folder: Path, last: Snapshot, names: Sequence[str] | None) -> DrawnFigure:
    """Write the animation of all snapshots of a run to ``FOLDER/animation.gif``.

    Args:
        folder: Of the run.
        last: The last one; those before with other corners are left out.
        names: What to call the classes.
    """
    from ncmonitor import plots
    from ncmonitor.monitor.snapshots.snapshot import read_snapshots

    kind = (last.split, last.corners)
    taken = [s for s in read_snapshots(folder) if (s.split, s.corners) == kind]
    path = folder / FOLDER / f"{ANIMATION}.gif"
    return DrawnFigure(ANIMATION, plots.animate(taken, path, names=names))
