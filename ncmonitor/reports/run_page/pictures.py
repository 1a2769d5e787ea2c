"""The pictures of a run's report: panels by epoch, paths, inner layers, and the geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ncmonitor.catalogue import CATALOGUE, Quantity
from ncmonitor.monitor.history import LAYER_MARK
from ncmonitor.monitor.history_queries import split_names, split_rows
from ncmonitor.monitor.snapshots.snapshot import Snapshot, readable_snapshots
from ncmonitor.plots import PANELS, gram, layers, panel, panel_labels, phase, simplex, spectrum
from ncmonitor.plots._gram import KINDS
from ncmonitor.plots._simplex import reach_of
from ncmonitor.plots.style import fresh_axes, own_style
from ncmonitor.reports.page import inline_svg

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

#: Pairs of quantities whose common path is shown: variability, angles and duality.
PATHS: Final = (
    ("nc1", "nc2_etf_means"),
    ("nc1", "nc3_self_duality"),
    ("nc2_etf_means", "nc3_self_duality"),
)
#: What is shown of inner layers, where it was measured there.
LAYERED: Final = ("nc1", "nc2_etf_means", "nc2_equiangular_std_means")


class FigureBlock(NamedTuple):
    """One figure of a page.

    Attributes:
        svg: The figure itself.
        caption: What it shows, in words.
        quantities: What it is about, each with its name in the figure if it shows several.
    """

    svg: Markup
    caption: str = ""
    quantities: tuple[tuple[str, Quantity], ...] = ()


def panels(history: pd.DataFrame) -> list[FigureBlock]:
    """Draw the panels of the overview, each as a figure of its own."""
    return list(_panels(history))


def _panels(history: pd.DataFrame) -> Iterator[FigureBlock]:
    for i, names in enumerate(PANELS):
        title, own = panel_labels(names)
        quantities = zip(own, (CATALOGUE[name] for name in names), strict=True)
        svg = inline_svg(panel(history, names), f"p{i}-", f"{title} by epoch")
        yield FigureBlock(svg, "", tuple(quantities))


def known_paths(history: pd.DataFrame) -> list[tuple[str, str]]:
    """Return those of :data:`PATHS` that lead through at least two epochs."""
    train = split_rows(history, "train")
    there = train[[name for pair in PATHS for name in pair]] > 0  # a logarithmic axis has no 0
    return [pair for pair in PATHS if there[list(pair)].all(axis="columns").sum() > 1]


def paths(history: pd.DataFrame) -> list[FigureBlock]:
    """Draw the paths of training in planes of two quantities."""
    found = []
    for i, (x, y) in enumerate(known_paths(history)):
        with own_style():
            ax: Any = phase(history, fresh_axes(3.4, 2.7), x=x, y=y)
        label = f"{CATALOGUE[y].label} against {CATALOGUE[x].label}, coloured by epoch"
        found.append(FigureBlock(inline_svg(ax.figure, f"f{i}-", label, follow=False)))
    return found


def known_layers(history: pd.DataFrame) -> list[str]:
    """Return those of :data:`LAYERED` that were measured on inner layers, two at most."""
    inner = history[history["split"].str.startswith(f"train{LAYER_MARK}")]
    return [name for name in LAYERED if inner[name].notna().any()][:2]


def draw_layers(history: pd.DataFrame, quantity: str, width: float) -> Any:
    """Draw a heat map of layers by epochs that is as high as the layers need.

    Args:
        history: With rows of inner layers.
        quantity: A name of :func:`known_layers`.
        width: In inches.
    """
    count = sum(split.startswith(f"train{LAYER_MARK}") for split in set(history["split"]))
    with own_style():
        ax = fresh_axes(width, max(1.9, 1.0 + 0.22 * (count + 1)))
        return layers(history, ax, quantity=quantity)


def layer_maps(history: pd.DataFrame) -> list[FigureBlock]:
    """Draw the heat maps of inner layers; none for a run without them."""
    if "train" not in split_names(history):
        return []
    found = []
    for i, name in enumerate(known_layers(history)):
        entry = CATALOGUE[name]
        figure = draw_layers(history, name, 4.6).figure
        figure.axes[-1].set_ylabel("")  # the caption says it, in one line
        svg = inline_svg(figure, f"l{i}-", f"{entry.label} by layer and epoch")
        found.append(FigureBlock(svg, "", ((entry.label, entry),)))
    return found


def usable_snapshots(folder: Path) -> tuple[list[Snapshot], list[str]]:
    """Read the snapshots that belong together: of one split, with the same corner classes.

    Args:
        folder: Of the run.

    Returns:
        The snapshots, and what a reader should know of those that are not among them.
    """
    try:
        every, damaged = readable_snapshots(folder)
    except OSError as error:
        return [], [f"The pictures of the geometry are left out: {error.strerror}"]
    remarks = [damaged] if damaged else []
    if damaged and not every:
        remarks.append("The pictures of the geometry are left out: no snapshot can be read.")
    train = [s for s in every if s.split == "train"] or every[-1:]
    train = [s for s in train if s.split == train[-1].split]
    same = [s for s in train if s.corners == train[-1].corners]
    if len(same) < len(train):
        remarks.append(
            f"{len(train) - len(same)} earlier snapshots show other corner classes than the last "
            "one, and are left out of the pictures of the geometry."
        )
    return same, remarks


def geometry(snapshots: Sequence[Snapshot]) -> dict[str, Any] | None:
    """Draw the first and the last snapshot: simplex, Gram matrices beside the ETF's, spectra.

    Args:
        snapshots: From :func:`usable_snapshots`.

    Returns:
        ``None`` without a snapshot.
    """
    if not snapshots:
        return None
    ends = [snapshots[0], snapshots[-1]] if len(snapshots) > 1 else [snapshots[-1]]
    reach = reach_of(snapshots)
    last = snapshots[-1]
    return {
        "epochs": [s.epoch for s in ends],
        "simplex": [_simplex(s, reach, f"s{i}-") for i, s in enumerate(ends)],
        "spectra": [_spectrum(s, f"v{i}-") for i, s in enumerate(ends)],
        "grams": [(s.epoch, _grams(s, f"g{i}")) for i, s in reversed(list(enumerate(ends)))],
        "corners": last.corners,
        "split": last.split,
        "few": (len(last.classes), last.num_classes),
    }


def _simplex(snapshot: Snapshot, reach: float, prefix: str) -> FigureBlock:
    with own_style():
        ax: Any = simplex(snapshot, limit=reach)
    classes = ", ".join(map(str, snapshot.corners))
    label = f"Features, means and classifier rows of the classes {classes} at epoch"
    svg = inline_svg(ax.figure, prefix, f"{label} {snapshot.epoch}", follow=False)
    return FigureBlock(svg, f"epoch {snapshot.epoch}")


def _spectrum(snapshot: Snapshot, prefix: str) -> FigureBlock:
    with own_style():
        ax: Any = spectrum(snapshot, fresh_axes(3.4, 2.7))
    svg = inline_svg(ax.figure, prefix, f"Spectra at epoch {snapshot.epoch}")
    return FigureBlock(svg, f"epoch {snapshot.epoch}")


def _grams(snapshot: Snapshot, prefix: str) -> list[FigureBlock]:
    rowless = snapshot.weight_gram is None
    kinds = [of for of in KINDS if not (rowless and of in ("classifier", "cross"))]
    found = []
    for of in kinds:
        with own_style():
            figure = Figure(figsize=(2.5, 2.75))
            # Fixed margins: layout engines draw everything twice, and numbers are many.
            gram(snapshot, figure.add_axes((0.08, 0.1, 0.9, 0.818)), of=of)
        label = f"Gram matrix at epoch {snapshot.epoch}: {KINDS[of]}"
        found.append(FigureBlock(inline_svg(figure, f"{prefix}{of}-", label, follow=False)))
    return found


def some(snapshots: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """Choose snapshots, the first and the last among them, denser at the start.

    Args:
        snapshots: To choose from.
        most: How many at most.
    """
    count = len(snapshots)
    if count <= most:
        return list(snapshots)
    for points in range(4 * most, 1, -1):
        places = np.unique(np.geomspace(1, count, points).round().astype(int)) - 1
        if len(places) <= most:
            break
    return [snapshots[i] for i in places]
