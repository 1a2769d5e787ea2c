"""The runs of ``--seeds``: which have finished, and what they say together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ncmonitor._checks import InputError
from ncmonitor._words import shown
from ncmonitor.compare.aggregate import spread
from ncmonitor.history import HISTORY_FILE, read_history
from ncmonitor.recipes.resume import is_finished

#: In the closing lines: quantities of the training set, and the error of the held-out one.
_SHOWN: Final = (
    ("train", "nc1"), ("train", "nc2_etf_means"), ("train", "nc3_self_duality"),
    ("train", "nc4_disagreement"), ("train", "error"), ("val", "error"),
)  # fmt: skip


class SeedRuns:
    """The runs of one command: which there are, and how each of them ended.

    Args:
        folder: Holds a folder for each.
        seeds: Of each.
        options: What all of them are trained with.
    """

    def __init__(self, folder: Path, seeds: Sequence[int], options: dict[str, Any]) -> None:
        self.folder, self.seeds, self.options = folder, seeds, options
        self.failed: dict[int, int] = {}  # exit status by seed
        self.stopped = False

    def folder_of(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def is_finished(self, seed: int) -> bool:
        return is_finished(self.folder_of(seed), self.options)

    def compared(self) -> list[int]:
        """Return the seeds that finished; if none did, those that were interrupted."""
        there = [s for s in self.seeds if (self.folder_of(s) / HISTORY_FILE).is_file()]
        rest = [seed for seed in there if seed not in self.failed]
        finished = [seed for seed in rest if self.is_finished(seed)]
        return finished or [seed for seed in rest if _is_readable(self.folder_of(seed))]


def closing_lines(runs: SeedRuns) -> list[str]:
    """Compare the runs, and say how they ended and where everything is."""
    compared = runs.compared()
    lines = _numbers(runs, compared) if compared else ["No seed has left a measurement."]
    if runs.failed:
        lines.append(f"Failed: {', '.join(f'seed {seed}' for seed in runs.failed)}.")
    open_ones = [s for s in runs.seeds if not (s in runs.failed or runs.is_finished(s))]
    if open_ones:
        left = ", ".join(map(str, open_ones))
        lines.append(f"Not finished: seed {left}; the same command with --resume goes on.")
    report = _compare(runs, compared) if compared else None
    if report is not None:
        lines += ["", f"  report      open {shown(report)} in a browser"]
    which = ", ".join(path.name for path in sorted(runs.folder.glob("seed*")))
    return [*lines, f"  runs        {which} in {shown(runs.folder)}"]


def _compare(runs: SeedRuns, seeds: Sequence[int]) -> Path | None:
    from ncmonitor.compare import write_comparison

    title = f"{runs.folder.parent.name}, {len(seeds)} seeds" if len(seeds) > 1 else None
    try:
        folders = [runs.folder_of(seed) for seed in seeds]
        return write_comparison(folders, runs.folder / "report.html", title)
    except Exception as error:
        # The runs are on disk and must not be lost behind a picture that could not be drawn.
        warnings.warn(f"no comparison: {type(error).__name__}: {error}", stacklevel=2)
        return None


def _numbers(runs: SeedRuns, seeds: Sequence[int]) -> list[str]:
    """Give mean and standard deviation at the last epoch that all of them measured."""
    histories = {seed: read_history(runs.folder_of(seed)) for seed in seeds}
    shared = set.intersection(*(set(table["epoch"]) for table in histories.values()))
    epoch = max(shared)
    table = pd.concat(histories).query("epoch == @epoch")
    which = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    how = ", mean ± standard deviation" if len(seeds) > 1 else ""
    lines = [f"After {epoch} epochs, {which}{how}:"]
    for split, metric in _SHOWN:
        values = table.loc[table["split"] == split, metric].dropna()
        if len(values):
            text = spread(values.mean(), values.std(ddof=1))
            lines.append(f"  {f'{split} {metric}':<24}{text}")
    return lines


def _is_readable(folder: Path) -> bool:
    try:
        read_history(folder)
    except InputError:
        return False
    return True
