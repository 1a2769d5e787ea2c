"""The tables of a run's report: every quantity, some epochs, the classes, the inner layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.catalogue import CATALOGUE, FIT, METRICS, PHASE, Quantity
from ncmonitor.monitor.history import LAYER_MARK, NULL_SPLIT
from ncmonitor.monitor.history_queries import is_recorded, other_split, split_names, split_rows
from ncmonitor.reports.page import GROUPS, NOTHING, Cell, value_cell

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table of epochs; the second part is for the split beside train.
_TRAIN_COLUMNS: Final = (
    *("error", "cross_entropy", "nc1", "nc2_equinorm_means", "nc2_etf_means", "nc2_etf_w"),
    *("nc3_self_duality", "nc4_disagreement"),
)
_OTHER_COLUMNS: Final = ("error", "nc1", "nc4_disagreement")
#: Columns of the table of inner layers, as far as they were measured there.
_LAYER_COLUMNS: Final = (
    *("nc1", "nc2_equinorm_means", "nc2_equiangular_std_means", "nc2_etf_means"),
    *("ncc_accuracy", "participation_ratio_means"),
)


def last_table(history: pd.DataFrame) -> dict[str, Any]:
    """Build the table of every quantity at the last epoch of each split, by family."""
    rows = {s: split_rows(history, s).iloc[-1] for s in split_names(history)}
    groups, missing = [], []
    for group, title in GROUPS.items():
        family = [q for q in (*FIT, *METRICS, *PHASE) if q.group == group]
        entries = [q for q in family if is_recorded(history, q.name)]
        missing += [q for q in family if q.name in history and q not in entries]
        lines = [(q, [_cell(row, q, split) for split, row in rows.items()]) for q in entries]
        if lines:
            groups.append({"title": title, "lines": lines})
    columns = [(s, int(row["epoch"])) for s, row in rows.items()]
    return {"columns": columns, "groups": groups, "missing": missing}


def epoch_table(history: pd.DataFrame, start: int | None) -> dict[str, Any]:
    """Build the table of the main quantities at the first, some, and the last epoch.

    Args:
        history: The run's.
        start: Where the terminal phase began.
    """
    other = other_split(history)
    parts = [("train", _TRAIN_COLUMNS), *([(other, _OTHER_COLUMNS)] if other else [])]
    rows = {s: split_rows(history, s).set_index("epoch") for s, _ in parts}
    lines = []
    for epoch in some_epochs(sorted(set(history["epoch"])), start):
        cells = []
        for split, names in parts:
            row = rows[split].loc[[epoch]].iloc[-1] if epoch in rows[split].index else None
            # What was never written reads back as nan, which would look like a failure.
            cells += [
                _cell(row if is_recorded(history, name) else None, CATALOGUE[name], split)
                for name in names
            ]
        active = (
            epoch in rows["train"].index and rows["train"].loc[[epoch], "tpt_active"].eq(1).any()
        )
        lines.append({"epoch": epoch, "onset": epoch == start, "active": active, "cells": cells})
    heads = [(split, [CATALOGUE[name] for name in names]) for split, names in parts]
    labels = [f"{split} {quantity.label}" for split, some in heads for quantity in some]
    return {"heads": heads, "labels": labels, "lines": lines}


def some_epochs(epochs: Sequence[int], start: int | None) -> list[int]:
    """Choose the first, the last, the start of the terminal phase, and 1, 2, 5, 10, 20, ..."""
    steps = {digit * 10**power for power in range(7) for digit in (1, 2, 5)}
    wanted = {epochs[0], epochs[-1], *steps, *([] if start is None else [start])}
    return [epoch for epoch in epochs if epoch in wanted]


def layer_table(history: pd.DataFrame) -> dict[str, Any] | None:
    """Build the table of the training set's inner layers at the last epoch, the input side first.

    Returns:
        ``None`` for a run without inner layers.
    """
    mark = f"train{LAYER_MARK}"
    inner = [s for s in dict.fromkeys(history["split"]) if s.startswith(mark)]
    if not inner:
        return None
    named = [(s.removeprefix(mark), split_rows(history, s)) for s in inner]
    features = split_rows(history, "train")
    named += [("features", features)] if len(features) else []
    last = [(name, rows.iloc[-1]) for name, rows in named]
    known = {n for _, row in last for n in _LAYER_COLUMNS if math.isfinite(row.get(n, math.nan))}
    shown = [name for name in _LAYER_COLUMNS if name in known]
    lines = [
        (name, int(row["epoch"]), [value_cell(float(row[n])) for n in shown]) for name, row in last
    ]
    return {"heads": [CATALOGUE[name] for name in shown], "lines": lines}


def _cell(row: pd.Series[Any] | None, entry: Quantity, split: str) -> Cell:
    if split != "train" and (entry.once or entry.group == "phase"):
        return NOTHING
    if split == NULL_SPLIT and entry.group == "fit":
        return NOTHING
    if row is None:
        return Cell("not measured", "none")
    value = float(row[entry.name])
    if entry.name.startswith("tpt_start") and math.isnan(value):
        return Cell("not reached", "none")
    return value_cell(value)
