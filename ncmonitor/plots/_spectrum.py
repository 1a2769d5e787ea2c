"""Spectra of class means and classifier, and what the classes still spread along the means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ncmonitor.monitor.snapshots.numbers import SHOWN_VALUES
from ncmonitor.plots.style import MUTED, SERIES, fresh_axes, legend_above, say_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ncmonitor.monitor.snapshots.numbers import FloatArray
    from ncmonitor.monitor.snapshots.snapshot import Snapshot


def spectrum(snapshot: Snapshot, ax: Axes | None = None) -> Axes:
    """Draw singular values relative to the largest: a simplex ETF has K − 1 equal ones.

    Of the classifier the first K − 1 are drawn; the ETF's last one is 0. What samples spread about
    their class means, in the span of the means, is on the scale of the means:
    ``√(K λ_i(Σ_W))`` over their largest singular value, which NC1 sends to 0.

    Args:
        snapshot: What to draw.
        ax: Where; a new figure's axes if ``None`` (no pyplot: show ``ax.figure``).

    Returns:
        The axes drawn on.
    """
    ax = ax if ax is not None else fresh_axes(3.4, 2.5)
    means, rows = snapshot.singular_means, snapshot.singular_weight
    top = float(np.max(means, initial=0.0))
    if not np.isfinite(means).all() or top <= 0:
        say_empty(ax, "nothing to draw: class means not finite,\nor all the same")
        return ax
    _line(ax, means / top, 0, "o", "class means")
    if rows is not None and len(rows) and rows[0] > 0:
        _line(ax, rows[: len(means)] / rows[0], 1, "s", "classifier")
    within = snapshot.within_spectrum
    if within is not None and np.isfinite(within).all():
        _line(ax, np.sqrt(snapshot.num_classes * within) / top, 2, "^", "within classes")
    others = snapshot.num_classes - 1
    narrow = len(means) < min(others, SHOWN_VALUES)  # what is cut at SHOWN_VALUES may be too
    cut = len(means) < others and not narrow
    flat = "all equal" + ("; no ETF for d < K − 1" if narrow else "") if len(means) < others else ""
    look: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": "--", "zorder": 1}
    ax.axhline(1, label=flat or "simplex ETF", **look)
    highest = max(float(np.nanmax(np.asarray(line.get_ydata()))) for line in ax.lines)
    ax.set_ylim(-0.03 * highest, 1.08 * highest)
    ax.set_xlabel(f"direction (the first {len(means)} of {others})" if cut else "direction")
    ax.set_ylabel("singular value / largest")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    legend_above(ax, *ax.get_legend_handles_labels())  # inside it would lie on long curves
    return ax


def _line(ax: Axes, values: FloatArray, colour: int, marker: str, label: str) -> None:
    few = len(values) <= 40
    ax.plot(
        np.arange(1, len(values) + 1),
        values,
        color=SERIES[colour],
        marker=marker if few else "none",
        markersize=3.6,
        linewidth=1.3,
        label=label,
    )
