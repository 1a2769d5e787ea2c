"""What several runs measured, for the terminal: a line for each quantity, a column for each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE, read_symmetry
from ncmonitor.reports.comparison.aggregate import spread

Columns = Mapping[str, Sequence[Path]]

#: Quantities of the training set, and the error of the held-out one.
_SHOWN: Final = (
    ("train", "nc1"), ("train", "nc2_etf_means"), ("train", "nc3_self_duality"),
    ("train", "nc4_disagreement"), ("train", "error"), ("val", "error"),
)  # fmt: skip
#: Of the samples as they are, and then of each group: collapse of the classes, and of the orbits.
_PLAIN: Final = (("train", "nc1_quotient"),)
_OF_GROUP: Final = (("train", "orbit_quot"), ("val", "acc_orbit_mean"), ("val", "acc_orbit_worst"))


def numbers(columns: Columns) -> tuple[int, list[str]]:
    """Lay out the numbers at the last epoch that all runs measured.

    Args:
        columns: Folders of the runs that differ by the seed alone, under a heading; none for a
            single column.

    Returns:
        The epoch, and the lines.
    """
    histories = {h: [read_history(run) for run in runs] for h, runs in columns.items()}
    tables = [table for group in histories.values() for table in group]
    epoch = max(set.intersection(*(set(table["epoch"]) for table in tables)))
    lines = []
    for split, metric in _SHOWN:
        cells = [_cell(_at(group, epoch, split), metric) for group in histories.values()]
        lines.append((f"{split} {metric}", cells))
    lines += _of_symmetry(columns)
    return epoch, _laid_out(list(columns), lines)


def _of_symmetry(columns: Columns) -> list[tuple[str, list[str]]]:
    """Return lines of the groups whose action was measured in every run."""
    runs = [run for group in columns.values() for run in group]
    if not all((run / SYMMETRY_FILE).is_file() for run in runs):
        return []
    found = {h: [_of_groups(run) for run in group] for h, group in columns.items()}
    tables = [table for group in found.values() for table in group]
    epochs = set.intersection(*(set(table["epoch"]) for table in tables))
    if not epochs:
        return []
    wanted = [("plain", *pair) for pair in _PLAIN]
    for name in tables[0].loc[tables[0]["orbit_quot"].notna(), "group"].unique():
        wanted += [(name, *pair) for pair in _OF_GROUP]
    return [
        (
            f"{split} {metric}, {name}",
            [
                _cell(_at([t[t["group"] == name] for t in group], max(epochs), split), metric)
                for group in found.values()
            ],
        )
        for name, split, metric in wanted
    ]


def _of_groups(run: Path) -> pd.DataFrame:
    """Return what was measured of whole groups at the classifier's input."""
    return read_symmetry(run).query("layer == '' and element == ''")


def _at(tables: Sequence[pd.DataFrame], epoch: int, split: str) -> pd.DataFrame:
    return pd.concat(tables).query("epoch == @epoch and split == @split")


def _cell(rows: pd.DataFrame, metric: str) -> str:
    values = rows[metric].dropna()
    return spread(values.mean(), values.std(ddof=1)) if len(values) else ""


def _laid_out(heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [line for line in lines if any(line[1])]
    first = max(22, *(len(name) for name, _ in lines)) + 2
    table = [("", heads), *lines] if any(heads) else lines
    widths = [max(len(cells[i]) for _, cells in table) + 2 for i in range(len(heads))]
    return [
        f"  {name:<{first}}{''.join(map(str.ljust, cells, widths))}".rstrip()
        for name, cells in table
    ]
