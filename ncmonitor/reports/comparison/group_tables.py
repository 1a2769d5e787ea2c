"""The tables of a comparison: groups by quantity, quantity by groups, and the single runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from ncmonitor.catalogue import CATALOGUE, FIT, METRICS, PHASE, Quantity
from ncmonitor.monitor.history_queries import split_rows
from ncmonitor.monitor.words import duration
from ncmonitor.reports.comparison import aggregate
from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.comparison.runs import RunFolder
from ncmonitor.reports.page import GROUPS, REPORT_FILE, Cell, value_cell
from ncmonitor.reports.verdict import MAIN, section

#: Columns of the first table, on the training set; the errors of both splits stand before them.
_GROUP_COLUMNS: Final = (
    *("nc1", "nc2_equinorm_means", "nc2_etf_means", "nc2_etf_w"),
    *("nc3_self_duality", "nc4_disagreement"),
)


class Column:
    """A group with its statistics: at every shared epoch, and at the last one of each split."""

    def __init__(self, group: RunGroup) -> None:
        self.group = group
        self.table = aggregate.aggregate([run.history for run in group.runs])
        self.last = aggregate.last_epochs(self.table)
        ends = self.table[self.table["epoch"] == self.table["split"].map(self.last)]
        keys = zip(ends["split"], ends["metric"], strict=True)
        values = zip(ends["n"], ends["mean"], ends["sd"], strict=True)
        self._ends = dict(zip(keys, values, strict=True))

    def cell(self, name: str, split: str) -> Cell:
        """Write a quantity of a split at the last epoch that all runs measured."""
        if (split, name) not in self._ends:
            return Cell("·", "none")
        n, mean, sd = self._ends[split, name]
        if name.startswith("tpt_start") and n == 0:
            return Cell("not reached", "none")
        return self._spread(int(n), float(mean), float(sd))

    def onset(self) -> Cell:
        """Write the epoch at which the terminal phase began, over the runs that reached it."""
        reached = [run.onset for run in self.group.runs if run.onset is not None]
        if not reached:
            return Cell("not reached", "none")
        sd = float(np.std(reached, ddof=1)) if len(reached) > 1 else float("nan")
        return self._spread(len(reached), float(np.mean(reached)), sd)

    def _spread(self, n: int, mean: float, sd: float) -> Cell:
        few = f" (n\u00a0=\u00a0{n})" if 0 < n < len(self.group.runs) else ""
        text = aggregate.spread(mean, sd).replace("± ", "±\u00a0")  # a line may break before it
        return Cell(text + few, "nan" if n == 0 else "value")


def main_table(columns: Sequence[Column], other: str | None) -> dict[str, Any]:
    """Build the table of the main quantities: a line per group."""
    wanted = _wanted(_GROUP_COLUMNS, other)
    lines = []
    for column in columns:
        last = column.last.get("train", column.last.get(other or ""))
        epoch = "no epoch shared" if last is None else f"epoch {last}"
        cells = [column.cell(name, split) for name, split in wanted]
        lines.append((column.group, epoch, [*cells, column.onset()]))
    return {"heads": _heads(wanted), "lines": lines}


def all_table(columns: Sequence[Column], split: str) -> dict[str, Any]:
    """Build the table of every quantity of a split at the last epoch that each group shares."""
    here = [column for column in columns if split in column.last]
    measured = {name for column in here for name in column.table["metric"]}

    def line(quantity: Quantity) -> tuple[Quantity, list[Cell]]:
        return quantity, [column.cell(quantity.name, split) for column in here]

    families = []
    for family, title in GROUPS.items():
        entries = [q for q in (*FIT, *METRICS, *PHASE) if q.group == family and q.name in measured]
        lines = [(q, cells) for q, cells in map(line, entries) if any(c.text != "·" for c in cells)]
        if lines:
            families.append({"title": title, "lines": lines})
    heads = [
        (i, column.last[split], len(column.group.runs))
        for i, column in enumerate(columns)
        if split in column.last
    ]
    return {"split": split, "heads": heads, "families": families}


def run_table(groups: Sequence[RunGroup], base: Path, other: str | None) -> dict[str, Any]:
    """Build the table of the runs, with links to their reports relative to ``base``."""
    wanted = _wanted(MAIN, other)
    lines = []
    for i, run in ((i, run) for i, group in enumerate(groups) for run in group.runs):
        end, planned = int(run.history["epoch"].max()), run.facts.get("max_epochs")
        short = isinstance(planned, int) and planned > end
        cells = [Cell("–" if run.seed is None else str(run.seed))]
        cells.append(Cell(f"{end} of {planned}" if short else str(end)))
        cells += [_own_cell(run, name, split) for name, split in wanted]
        cells.append(Cell("not reached", "none") if run.onset is None else Cell(str(run.onset)))
        seconds = section(run.facts, "timing").get("fit_seconds")
        cells.append(Cell(duration(seconds) if isinstance(seconds, int | float) else "–"))
        cells.append(Cell(_machine(section(run.facts, "machine"))))
        lines.append((i, run.name, _link(run, base), cells))
    return {"heads": _heads(wanted), "lines": lines}


def _wanted(names: Sequence[str], other: str | None) -> list[tuple[str, str]]:
    errors = [("error", "train"), *([("error", other)] if other else [])]
    return errors + [(name, "train") for name in names]


def _heads(wanted: Sequence[tuple[str, str]]) -> list[tuple[Quantity, str]]:
    return [(CATALOGUE[name], split if name == "error" else "") for name, split in wanted]


def _link(run: RunFolder, base: Path) -> str:
    report = run.folder / REPORT_FILE
    if not report.is_file():
        return ""
    return quote(Path(os.path.relpath(report.resolve(), base.resolve())).as_posix())


def _own_cell(run: RunFolder, name: str, split: str) -> Cell:
    rows = split_rows(run.history, split)
    if rows.empty:
        return Cell("·", "none")
    return value_cell(float(rows[name].iloc[-1]))


def _machine(facts: dict[str, Any]) -> str:
    cores = facts.get("cpu_count")
    return str(facts.get("gpu") or (f"{cores} CPU cores" if cores else "–"))
