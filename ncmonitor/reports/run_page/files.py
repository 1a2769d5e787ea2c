"""The figures of a run as files for a paper, and its numbers as one tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.patches import Patch
from matplotlib.text import Text

from ncmonitor.monitor.history import KEYS, LAYER_MARK
from ncmonitor.monitor.symmetry_queries import group_names
from ncmonitor.plots import (
    PANELS,
    collapse_and_orbits,
    curves,
    grams,
    irrep_budget,
    overview,
    phase,
    simplex,
    spectrum,
)
from ncmonitor.plots._irreps import has_budget
from ncmonitor.plots._simplex import reach_of
from ncmonitor.plots.style import ACCENT, SHADE, fresh_axes, legend_above, own_style
from ncmonitor.reports.run_page import pictures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ncmonitor.monitor.snapshots.snapshot import Snapshot

#: What a report can be written as.
FORMATS: Final = ("html", "png", "pdf", "csv")
#: Where figures for a paper go: not among those that a fit draws, which W&B is shown.
PAPER: Final = "paper"
TABLE_FILE: Final = "metrics.csv"
#: Widths of one and of two columns of a journal, in inches.
SINGLE, DOUBLE = 3.4, 7.0
#: With more classes the cells of four matrices side by side have no room for numbers.
_NUMBERED: Final = 5


def write_figures(
    history: pd.DataFrame,
    snapshots: Sequence[Snapshot],
    folder: Path,
    kind: str,
    symmetry: pd.DataFrame | None = None,
) -> list[Path]:
    """Write the figures of a run, one file each, one or two columns of a journal wide.

    Args:
        history: The run's.
        snapshots: Of one split, with the same corner classes; the geometry is drawn of them.
        folder: Where to; made if missing.
        kind: ``"pdf"``: vectors, with fonts embedded; ``"png"``: 300 pixels per inch.
        symmetry: The run's table of symmetry, if it has one.

    Returns:
        Paths of the files.
    """
    drawn = (*_of_history(history), *_of_symmetry(history, symmetry), *_of_snapshots(snapshots))
    return [save(figure, folder / f"{name}.{kind}") for name, figure in drawn]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure for a paper; the same figure gives the same file.

    Args:
        figure: Of the size it is to have in print.
        path: Ends in ``.pdf`` or ``.png``; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    same: dict[str, Any] = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with mpl.rc_context({"pdf.fonttype": 42}):  # outlines that journals accept and text stays text
        figure.savefig(path, dpi=300, metadata=same)
    return path


def write_table(history: pd.DataFrame, path: Path) -> Path:
    """Write the numbers of a run as a tidy table: one measured number in each row.

    The columns are ``epoch``, ``step``, ``split``, ``layer`` (empty: the classifier's input),
    ``metric`` and ``value``, which is empty where a measurement failed or is undefined. A metric
    that a split never had is left out.

    Args:
        history: The run's.
        path: Of the file.
    """
    metrics = [name for name in history if name not in KEYS]
    long = history.melt(list(KEYS), metrics, "metric", "value")
    known = long.groupby(["split", "metric"])["value"].transform("count") > 0
    places = long["split"].str.partition(LAYER_MARK)
    long = long.assign(split=places[0], layer=places[2])[known]
    long = long.sort_values(["epoch", "split", "layer"], kind="stable")
    columns = ["epoch", "step", "split", "layer", "metric", "value"]
    long[columns].to_csv(path, index=False, lineterminator="\n")
    return path


def _of_history(history: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    yield "curves", _shrunk(overview(history), DOUBLE)
    for names in PANELS:
        with own_style():
            ax = curves(history, fresh_axes(SINGLE, 2.5), quantities=names)
            _put_key_above(ax)
        name = names[0] if len(names) == 1 else names[0].removesuffix("_means")
        yield name, ax.figure  # type: ignore[misc]
    for x, y in pictures.known_paths(history):
        with own_style():
            ax = phase(history, fresh_axes(SINGLE, 2.6), x=x, y=y)
        yield f"path_{x}_{y}", ax.figure  # type: ignore[misc]
    for quantity in pictures.known_layers(history):
        yield f"layers_{quantity}", pictures.draw_layers(history, quantity, DOUBLE).figure


def _of_symmetry(
    history: pd.DataFrame, symmetry: pd.DataFrame | None
) -> Iterator[tuple[str, Figure]]:
    if (history["split"] == "train").any() and has_budget(history):
        with own_style():
            ax = irrep_budget(history, fresh_axes(SINGLE, 2.6))
        yield "irrep_budget", ax.figure  # type: ignore[misc]
    if symmetry is not None and group_names(symmetry):
        yield "collapse_and_orbits", _shrunk(collapse_and_orbits(symmetry), SINGLE)


def _put_key_above(ax: Axes) -> None:
    """Move the legend above the axes, where no curve is, with the terminal phase as an entry."""
    old = ax.get_legend()
    if old is None:  # what stands above the axes has the room for itself
        return
    keys: list[Any] = list(old.legend_handles)
    labels = [text.get_text() for text in old.get_texts()]
    for mark in [text for text in ax.texts if text.get_gid() == "TPT"]:
        mark.remove()
        keys.append(Patch(facecolor=SHADE, edgecolor=ACCENT, linewidth=0.4))
        labels.append(mark.get_text())
    legend_above(ax, keys, labels)


def _of_snapshots(snapshots: Sequence[Snapshot]) -> Iterator[tuple[str, Figure]]:
    if not snapshots:
        return
    ends = {"first": snapshots[0], "last": snapshots[-1]} if len(snapshots) > 1 else {}
    reach = reach_of(snapshots)
    for when, snapshot in (ends or {"last": snapshots[-1]}).items():
        with own_style():
            yield f"simplex_{when}", simplex(snapshot, limit=reach).figure  # type: ignore[misc]
            ax = spectrum(snapshot, fresh_axes(SINGLE, 2.5))
            yield f"spectrum_{when}", ax.figure  # type: ignore[misc]
            yield f"gram_{when}", _grams(snapshot)


def _grams(snapshot: Snapshot) -> Figure:
    figure = grams(snapshot)
    width = SINGLE if snapshot.weight_gram is None else DOUBLE
    figure.set_size_inches(width, 0.62 * width if width == SINGLE else 2.2)
    for ax in figure.axes[:-1]:  # the last one is the scale of the colours
        ax.xaxis.label.set_fontsize(6.5)
        for text in ax.texts if len(snapshot.classes) > _NUMBERED else ():
            text.set_visible(text.get_text().isalpha())
    return figure


def _shrunk(figure: Figure, width: float) -> Figure:
    """Bring a figure to another width, its texts and all."""
    share = width / figure.get_figwidth()
    figure.set_size_inches(width, share * figure.get_figheight())
    texts: list[Any] = figure.findobj(Text)
    for text in texts:
        text.set_fontsize(share * float(text.get_fontsize()))
    return figure
