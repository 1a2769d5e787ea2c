"""Draws the picture on the front page from a run of ``digits``.

ncmonitor fit digits
python docs/front_figure.py runs/digits/<run>
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.snapshots.snapshot import read_snapshots
from ncmonitor.plots import curves, simplex

EPOCHS = (0, 1, 5, 40, 200)
NAMES = tuple(f"digit {digit}" for digit in range(10))
CURVES = (
    ("nc1",),
    ("nc2_etf_means", "nc2_etf_w"),
    ("nc3_self_duality",),
    ("nc4_disagreement",),
)


def main(run: Path) -> None:
    """Write ``docs/collapse.png``."""
    history = read_history(run)
    known = {snapshot.epoch: snapshot for snapshot in read_snapshots(run)}
    shown = [min(known, key=lambda epoch: abs(epoch - wanted)) for wanted in EPOCHS]
    figure = Figure(figsize=(11, 5.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.05, 1))
    for ax, epoch in zip(above.subplots(1, len(shown)), shown, strict=True):
        simplex(known[epoch], ax, names=NAMES, limit=1.6, legend=False)
        ax.set_title("untrained" if epoch == 0 else f"epoch {epoch}", fontsize="medium")
    for ax, names in zip(below.subplots(1, len(CURVES)), CURVES, strict=True):
        curves(history, ax, quantities=names, splits=["train"])
    figure.savefig(Path(__file__).with_name("collapse.png"), dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
