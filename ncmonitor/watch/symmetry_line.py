"""What the latest rows of a run's table of symmetry say, in one line."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.reports.verdict import number
from ncmonitor.symmetry.rows import KEYS, PLAIN

#: Bytes from the end that are looked at: an epoch of some hundred elements.
_TAIL: Final = 200_000
_OF_CLASSES: Final = "nc1_quotient"
_OF_ORBITS: Final = "orbit_quot"


def symmetry_line(folder: Path) -> str | None:
    """Say how far classes and orbits have collapsed at the last epoch; ``None``: not measured.

    Args:
        folder: Of the run. What is damaged there, or half written, is passed over.
    """
    rows = [row for row in _latest(folder / SYMMETRY_FILE) if not (row["layer"] or row["element"])]
    splits = [row["split"] for row in rows if row["group"] == PLAIN]
    split = "train" if "train" in splits or not splits else splits[0]
    here = [row for row in rows if row["split"] == split]
    classes = [_value(row, _OF_CLASSES) for row in here if row["group"] == PLAIN]
    orbits = {row["group"]: _value(row, _OF_ORBITS) for row in here if row["group"] != PLAIN}
    known = {group: value for group, value in orbits.items() if not math.isnan(value)}
    if not classes or not known:
        return None
    said = ", ".join(f"{group} {number(value)}" for group, value in known.items())
    return f"scatter on {split}, epoch {here[0]['epoch']}: classes {number(classes[-1])}, {said}"


def _latest(path: Path) -> list[dict[str, str]]:
    """Return the rows of the last epoch in a file, among those near its end."""
    try:
        with path.open("rb") as file:
            head = file.readline()
            size = file.seek(0, 2)
            file.seek(max(len(head), size - _TAIL))
            if file.tell() > len(head):
                file.readline()  # from the middle of a row
            lines = file.read().decode(errors="replace").split("\n")[:-1]
    except OSError:
        return []
    names = next(csv.reader([head.decode(errors="replace").strip()]), [])
    if any(key not in names for key in KEYS):
        return []
    rows = [dict(zip(names, cells, strict=False)) for cells in _cells(lines, len(names))]
    return [row for row in rows if row["epoch"] == rows[-1]["epoch"]]


def _cells(lines: list[str], width: int) -> list[list[str]]:
    found = []
    for line in lines:
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error:
            continue
        if len(cells) == width:
            found.append(cells)
    return found


def _value(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row.get(name) or math.nan)
    except ValueError:
        return math.nan
