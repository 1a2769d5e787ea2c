"""Tables of a run on disk: every whole line is read, the one that a kill cut short is dropped."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ncmonitor.errors import InputError

_Row = dict[str, "float | int | str"]


@dataclass(frozen=True)
class Layout:
    """What a file of a run holds.

    Attributes:
        file: Its name.
        what: What it is, with an article.
        counts: Columns of whole numbers, in every file and every row.
        texts: Columns of text, in every file.
        absent: What to do if there is none.
    """

    file: str
    what: str
    counts: tuple[str, ...]
    texts: tuple[str, ...]
    absent: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that name a row; all others are numbers."""
        return (*self.counts, *self.texts)


class Rows(NamedTuple):
    """A file as read.

    Attributes:
        rows: With every number column, ``nan`` where the cell is empty.
        unrecorded: Number columns that nothing was ever written to.
        cautions: What was left out, in sentences.
    """

    rows: list[_Row]
    unrecorded: list[str]
    cautions: list[str]


def read_rows(
    folder: Path, layout: Layout, numbers: Callable[[Sequence[str]], Sequence[str]]
) -> Rows:
    """Read a table of a run, finished, running or killed.

    Args:
        folder: Of the run.
        layout: Of the file.
        numbers: Takes the names in the header, returns the number columns to read.

    Raises:
        InputError: If there is no such file, it is not one of ours, or has no row yet.
    """
    path = folder / layout.file
    if not path.is_file():
        raise InputError(_no_file(folder, layout))
    text = path.read_text(encoding="utf-8", errors="replace")  # foreign bytes fail below, in words
    header, *lines = text.split("\n")
    if not lines:
        why = "its header is cut short" if text else "it is empty"
        raise InputError(f"{path} has no measured epoch yet: {why}")
    names = next(csv.reader([header]), [])
    if missing := [key for key in layout.keys if key not in names]:
        raise InputError(
            f"{path} is not {layout.what}: expected the columns {', '.join(layout.keys)}, "
            f"but {', '.join(missing)} is missing"
        )
    return _read_lines(lines, names, numbers(names), path, layout)


def _read_lines(
    lines: Sequence[str], names: Sequence[str], numbers: Sequence[str], path: Path, layout: Layout
) -> Rows:
    rows: list[_Row] = []
    written, damage = set[str](), list[str]()
    for number, line in enumerate(lines[:-1], start=2):
        if not line.strip():
            continue
        try:
            cells = _cells(line, names)
            rows.append(_row(cells, numbers, layout))
        except InputError as error:
            damage.append(f"line {number} {error}")
            continue
        written |= {name for name, text in cells.items() if text}
    if not rows:
        why = f"is damaged: {damage[0]}" if damage else "has no measured epoch yet: only a header"
        raise InputError(f"{path} {why}")
    cautions = []
    if damage:
        cautions.append(
            f"{len(damage)} of {len(damage) + len(rows)} rows of {layout.file} cannot be read and "
            f"were left out ({damage[0]})."
        )
    if lines[-1]:  # a line without its end was cut by a kill
        cautions.append(
            f"The last row of {layout.file} is cut short and was left out: its writing was "
            "interrupted, or is under way."
        )
    return Rows(rows, [name for name in numbers if name not in written], cautions)


def _cells(line: str, names: Sequence[str]) -> dict[str, str]:
    try:
        cells = next(csv.reader([line]))
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}") from error
    if len(cells) != len(names):
        raise InputError(f"has {len(cells)} cells where the header has {len(names)}")
    return dict(zip(names, cells, strict=True))


def _row(cells: Mapping[str, str], numbers: Sequence[str], layout: Layout) -> _Row:
    row: _Row = {}
    for name in (*layout.counts, *numbers):
        text = cells.get(name) or ""
        whole = name in layout.counts
        try:
            row[name] = int(text) if whole else float(text or math.nan)
        except ValueError as error:
            kind = "a whole number" if whole else "a number"
            raise InputError(f"has {text!r} in the column {name}, not {kind}") from error
    return row | {name: cells[name].strip() for name in layout.texts}


def _no_file(folder: Path, layout: Layout) -> str:
    expected = f"expected a run folder with a {layout.file}"
    if not folder.exists():
        return f"{expected}, but {folder} does not exist"
    if folder.is_file():
        return f"{expected}, but {folder} is a file"
    # Four levels reach every layout of ours, without walking somebody's whole disk.
    below = (f"{'*/' * depth}{layout.file}" for depth in range(1, 5))
    found = [str(path.parent) for pattern in below for path in sorted(folder.glob(pattern))][:5]
    hint = f"; run folders below it: {', '.join(found)}" if found else layout.absent
    return f"{expected}, but {folder} holds {'none' if layout.absent else 'no run'}{hint}"
