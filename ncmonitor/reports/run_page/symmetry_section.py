"""The section on symmetry in a run's report: pictures, tables of the last epoch, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError
from ncmonitor.monitor.provenance import read_run
from ncmonitor.monitor.symmetry_queries import (
    element_names,
    flow_names,
    group_names,
    other_split,
    rows_of,
    split_of,
)
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE, read_symmetry
from ncmonitor.plots import collapse_and_orbits, group_curves, irrep_budget
from ncmonitor.plots._irreps import has_budget
from ncmonitor.plots.style import fresh_axes, own_style
from ncmonitor.reports.page import NOTHING, Cell, inline_svg, value_cell
from ncmonitor.reports.run_page.pictures import FigureBlock
from ncmonitor.reports.symmetry_words import findings
from ncmonitor.symmetry.rows import FACTS_FILE, OF_FLOWS, PARAMETERS

if TYPE_CHECKING:
    import pandas as pd

#: Rows of the table of groups.
_OF_GROUPS: Final = (
    *("inv_error", "inv_error_logits", "pred_consistency", "tv"),
    *("acc_orbit_mean", "acc_orbit_worst", "acc_drop"),
    *("orbit_quot", "orbit_share", "orbit_nc1", "between_nc1", "nc1_aug"),
    *("equiv_r2", "group_law", "group_law_scaled"),
)
#: Columns of the table of inner layers.
_OF_LAYERS: Final = ("inv_error", "orbit_quot", "orbit_share", "equiv_r2", "group_law_scaled")
#: Groups whose elements have a picture of their own, and pairs of layers that a table shows.
_DRAWN, _PAIRS = 3, 24


def read(folder: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Read the table of symmetry, if the run has one that can be read, and what it leaves out.

    The table's ``attrs["reasons"]`` say why numbers were not measured, by their name.
    """
    if not (folder / SYMMETRY_FILE).is_file():
        return None, []
    try:
        table = read_symmetry(folder)
    except InputError as error:
        return None, [f"The symmetry of the inputs is left out: {error}."]
    reasons = read_run(folder, FACTS_FILE).get("reasons")
    table.attrs["reasons"] = reasons if isinstance(reasons, dict) else {}
    return table, list(table.attrs["cautions"])


def budget(history: pd.DataFrame) -> FigureBlock | None:
    """Draw the irrep budget of the class means; ``None`` where there is none to draw."""
    if history[history["split"] == "train"].empty or not has_budget(history):
        return None
    with own_style():
        ax: Any = irrep_budget(history, fresh_axes(4.6, 3.0))
    parts = ("sk_breaking_means", "sk_breaking_norm", "sk_breaking_pair")
    names = ("S_K breaking", "unequal lengths", "similar pairs")
    quantities = tuple(zip(names, (CATALOGUE[part] for part in parts), strict=True))
    svg = inline_svg(ax.figure, "b0-", "What breaks the symmetry of the classes, by epoch")
    return FigureBlock(svg, "", quantities)


def section(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """Gather what the page shows of the symmetry of inputs and parameters.

    Args:
        table: Of the run; ``None``: it has none.
    """
    if table is None:
        return None
    split = split_of(table)
    return {
        "epoch": int(table["epoch"].max()),
        "split": split,
        "findings": findings(table),
        "pictures": _pictures(table),
        "tables": [
            found
            for names, rows, what in (
                (group_names(table), _OF_GROUPS, "group"),
                (flow_names(table), OF_FLOWS, "flow"),
            )
            if (found := _by_quantity(table, names, rows, what))
        ],
        "layers": _layers(table, split),
        "balance": _balance(table),
        "reasons": _reasons(table),
    }


def _pictures(table: pd.DataFrame) -> list[FigureBlock]:
    groups = group_names(table)
    if not groups:
        return []
    label = "Class collapse and orbit collapse by epoch"
    found = [FigureBlock(inline_svg(collapse_and_orbits(table), "y0-", label))]
    shown = other_split(table)
    for i, group in enumerate(groups[:_DRAWN]):
        with own_style():
            ax: Any = group_curves(table, "acc", fresh_axes(4.6, 3.0), group=group, split=shown)
        label = f"Accuracy under each element of {group} by epoch"
        found.append(FigureBlock(inline_svg(ax.figure, f"y{i + 1}-", label)))
    return found


def _by_quantity(
    table: pd.DataFrame, groups: Sequence[str], names: Sequence[str], what: str
) -> dict[str, Any] | None:
    """Build a table of quantities by groups and splits, at the last epoch of each."""
    splits = [s for s in dict.fromkeys(table["split"]) if not table[table["split"] == s].empty]
    columns = []
    for group in groups:
        for split in splits:
            rows = rows_of(table, group, split)
            if len(rows):
                columns.append((group, split, rows.iloc[-1]))
    lines = [
        (CATALOGUE[name], [value_cell(float(row[name])) for _, _, row in columns])
        for name in names
        if any(np.isfinite(row[name]) for _, _, row in columns)
    ]
    heads = [(group, split, int(row["epoch"])) for group, split, row in columns]
    return {"what": what, "heads": heads, "lines": lines} if lines else None


def _layers(table: pd.DataFrame, split: str) -> dict[str, Any] | None:
    """Build the table of inner layers at their last epoch, the input side first."""
    inner = [name for name in dict.fromkeys(table["layer"]) if name]
    if not inner:
        return None
    lines = []
    for group in group_names(table):
        for layer in (*inner, ""):
            rows = rows_of(table, group, split, layer=layer)
            if len(rows):
                cells = [value_cell(float(rows.iloc[-1][name])) for name in _OF_LAYERS]
                lines.append((group, layer or "features", cells))
    heads = [CATALOGUE[name] for name in _OF_LAYERS]
    return {"heads": heads, "lines": lines, "split": split} if lines else None


def _balance(table: pd.DataFrame) -> dict[str, Any] | None:
    """Build the table of neighbouring layers: what rescaling changes, first and last.

    Without pairs that have something else than scaling layers between them, such as normalisation.
    """
    defined = table[table["layer_balance"].notna()]
    pairs = element_names(defined, PARAMETERS, "train")
    lines = []
    for pair in pairs[:_PAIRS]:
        rows = rows_of(table, PARAMETERS, "train", element=pair).dropna(subset="layer_balance")
        ends = [_at(rows, place) for place in (0, -1)]
        lines.append((pair, ends))
    if not lines:
        return None
    left = len(pairs) - len(lines)
    return {"lines": lines, "left": left, "quantity": CATALOGUE["layer_balance"]}


def _reasons(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return each reason for which numbers were not measured, with the names of these."""
    found: dict[str, list[str]] = {}
    for name, why in table.attrs.get("reasons", {}).items():
        found.setdefault(str(why), []).append(str(name))
    return list(found.items())


def _at(rows: pd.DataFrame, place: int) -> Cell:
    return value_cell(float(rows["layer_balance"].iloc[place])) if len(rows) else NOTHING
