"""The table of symmetry in a comparison: what each way of training reached, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError
from ncmonitor.monitor.symmetry_queries import (
    OF_CLASSES,
    OF_ORBITS,
    common_groups,
    other_split,
    rows_of,
    split_of,
)
from ncmonitor.monitor.symmetry_table import read_symmetry
from ncmonitor.reports.comparison.aggregate import spread
from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.page import NOTHING, Cell
from ncmonitor.symmetry.rows import PLAIN

if TYPE_CHECKING:
    import pandas as pd

#: Columns: of the training set, then of the split beside it.
_TRAIN: Final = (OF_CLASSES, OF_ORBITS, "inv_error", "equiv_r2")
_OTHER: Final = ("acc_orbit_mean", "acc_orbit_worst")


def symmetry_table(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    """Build the table, a line for each group of runs and group of transforms.

    Args:
        groups: What is compared.

    Returns:
        ``None`` unless every run has a table of symmetry, and all tables a group in common.
    """
    try:
        tables = [[read_symmetry(run.folder) for run in group.runs] for group in groups]
    except InputError:
        return None
    every = [table for seeds in tables for table in seeds]
    names = common_groups(every)
    if not names:
        return None
    split, other = split_of(every[0]), other_split(every[0])
    wanted = [*((name, split) for name in _TRAIN), *((name, other) for name in _OTHER)]
    lines = []
    for i, seeds in enumerate(tables):
        for name in names:
            cells = [_cell(seeds, name, quantity, where) for quantity, where in wanted]
            lines.append((i, name, _epochs(seeds, name, split), cells))
    heads = [(CATALOGUE[name], where) for name, where in wanted]
    return {"heads": heads, "lines": lines, "several": any(len(seeds) > 1 for seeds in tables)}


def _last(table: pd.DataFrame, group: str, name: str, split: str) -> float:
    rows = rows_of(table, PLAIN if name == OF_CLASSES else group, split)
    return float(rows[name].iloc[-1]) if len(rows) else float("nan")


def _cell(seeds: Sequence[pd.DataFrame], group: str, name: str, split: str) -> Cell:
    values = np.array([_last(table, group, name, split) for table in seeds])
    known = values[np.isfinite(values)]
    if not len(known):
        return NOTHING
    sd = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    few = f" (n\u00a0=\u00a0{len(known)})" if len(known) < len(seeds) else ""
    return Cell(spread(float(known.mean()), sd).replace("± ", "±\u00a0") + few)


def _epochs(seeds: Sequence[pd.DataFrame], group: str, split: str) -> str:
    ends = sorted({int(rows_of(table, group, split)["epoch"].max()) for table in seeds
                   if len(rows_of(table, group, split))})  # fmt: skip
    said = " to ".join(map(str, dict.fromkeys([*ends[:1], *ends[-1:]])))
    return f"epoch {said}" if ends else "no epoch"
