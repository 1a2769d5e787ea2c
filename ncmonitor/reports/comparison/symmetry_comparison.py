"""The section on symmetry of a comparison: collapse of the classes and of the orbits, by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ncmonitor.errors import InputError
from ncmonitor.monitor.symmetry_table import read_symmetry
from ncmonitor.plots import collapse_and_orbits
from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.page import inline_svg
from ncmonitor.reports.run_page.pictures import FigureBlock

if TYPE_CHECKING:
    import pandas as pd

_LABEL = "Scatter within classes and along orbits by epoch"


def orbits_beside_classes(groups: Sequence[RunGroup]) -> FigureBlock | None:
    """Draw both kinds of collapse of every group of runs; ``None`` where none was measured."""
    tables = {group.label: _tables(group) for group in groups}
    measured = {label: known for label, known in tables.items() if known}
    if not measured:
        return None
    return FigureBlock(inline_svg(collapse_and_orbits(measured), "s0-", _LABEL))


def _tables(group: RunGroup) -> list[pd.DataFrame]:
    found = []
    for run in group.runs:
        try:
            found.append(read_symmetry(run.folder))
        except InputError:  # not measured in this run, or nothing yet
            continue
    return found
