"""The table a run leaves on disk: written so that a kill loses nothing, read so that it shows.

``history.csv`` holds one row per measured epoch and split. A whole epoch is one ``write`` followed
by ``fsync``: after a kill at any instant every finished epoch is there, and at most the last line
is cut short, which the reader drops.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ncmonitor._checks import InputError
from ncmonitor.catalogue import FIT_NAMES, METRIC_NAMES, PHASE_NAMES, quantity_of
from ncmonitor.phase import PhaseClock

if TYPE_CHECKING:
    import pandas as pd

HISTORY_FILE: Final = "history.csv"
KEYS: Final = ("epoch", "step", "split")
#: Pseudo-split: the training set with shuffled labels.
NULL_SPLIT: Final = "null"
#: Pseudo-split: the features of the training forwards themselves.
ONLINE_SPLIT: Final = "online"
#: Stands between a split and the name of an inner layer: ``train/layer/backbone.3``.
LAYER_MARK: Final = "/layer/"
#: What every history has; metrics that were asked for come after them.
COLUMNS: Final = (*KEYS, *FIT_NAMES, *METRIC_NAMES, *PHASE_NAMES, "seconds")

#: What is derived where a table of an older version has no clock; its other start would need to
#: know which accuracy was asked for.
_DERIVED: Final = ("tpt_active", "tpt_start_exact", "epochs_in_tpt", "tpt_exits")

#: One line of the table: what was measured on one split after one epoch. A missing name does not
#: apply there; ``nan`` was tried and is undefined, or failed.
Row = Mapping[str, "float | int | str"]


def known_columns(names: Iterable[str]) -> list[str]:
    """Return those of the names that a history may have as columns, in the same order."""
    return [name for name in names if name in COLUMNS or quantity_of(name) is not None]


def columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the columns of a table of rows: those of every history, then the rows' others."""
    others = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    return (*COLUMNS, *others)


def _lines(rows: Iterable[Row], columns: Sequence[str], *, strict: bool = True) -> str:
    out = io.StringIO()
    # repr of a float64 reads back to the same number; csv uses it for floats.
    writer = csv.DictWriter(
        out, columns, restval="", extrasaction="raise" if strict else "ignore", lineterminator="\n"
    )
    writer.writerows(rows)
    return out.getvalue()


def start_history(
    run_dir: Path, rows: Iterable[Row] = (), columns: Sequence[str] = COLUMNS
) -> None:
    """Write the header and the rows of an earlier part of the run, replacing the file atomically.

    Args:
        run_dir: Folder of the run; made if missing.
        rows: Rows kept from before a resume.
        columns: Of the table.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / f"{HISTORY_FILE}.part"
    part.write_text(",".join(columns) + "\n" + _lines(rows, columns), encoding="utf-8")
    part.replace(run_dir / HISTORY_FILE)


def keep_previous(run_dir: Path, rows: Iterable[Row] = ()) -> int | None:
    """Set another run's history in the same folder aside, as ``history.1.csv`` and so on.

    Args:
        run_dir: Folder of the run.
        rows: Rows that this run brings along; a history that begins with them is its own.

    Returns:
        The number that the other history got; ``None`` if there was none.
    """
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return None
    old = path.read_text(encoding="utf-8", errors="replace")
    mine = _lines(rows, old.partition("\n")[0].split(","), strict=False)  # other columns
    if mine and old.partition("\n")[2].startswith(mine):
        return None
    number = 1
    while (aside := path.with_suffix(f".{number}.csv")).exists():
        number += 1
    path.rename(aside)
    return number


def append_history(run_dir: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Append one epoch's rows, under the columns the table was started with; force them to disk."""
    with (run_dir / HISTORY_FILE).open("a", encoding="utf-8", newline="") as file:
        file.write(_lines(rows, columns))
        file.flush()
        os.fsync(file.fileno())


def history_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table with every column of the history, in order and typed."""
    import pandas as pd

    rows = [dict(row) for row in rows]
    columns = columns_of(rows)
    frame = pd.DataFrame(rows).reindex(columns=list(columns))
    numbers = [name for name in columns if name not in KEYS]
    return frame.astype({"epoch": "int64", "step": "int64", "split": "str"}).astype(
        dict.fromkeys(numbers, "float64")
    )


def read_history(run_dir: str | Path) -> pd.DataFrame:
    """Read the table of a run, finished, running or killed.

    Args:
        run_dir: Folder of the run, the one that holds ``history.csv``.

    Returns:
        One row per measured epoch and split, columns as in :data:`COLUMNS`, then metrics that were
        asked for; columns this version knows and the file lacks are ``nan``, others are left out.
        A clock of the terminal phase that the file lacks is derived from the train error.
        ``attrs["cautions"]`` says what was left out or derived, ``attrs["unrecorded"]`` names the
        columns that nothing was ever written to.

    Raises:
        InputError: If the folder holds no run, or the file is not one of ours or has no row yet.
    """
    path = Path(run_dir) / HISTORY_FILE
    if not path.is_file():
        raise InputError(_no_run(Path(run_dir)))
    text = path.read_text(encoding="utf-8", errors="replace")  # foreign bytes fail below, in words
    header, *lines = text.split("\n")
    if not lines:
        why = "its header is cut short" if text else "it is empty"
        raise InputError(f"{path} has no measured epoch yet: {why}")
    names = next(csv.reader([header]), [])
    if missing := [key for key in KEYS if key not in names]:
        raise InputError(
            f"{path} is not a history: expected the columns {', '.join(KEYS)}, "
            f"but {', '.join(missing)} is missing"
        )
    rows, unrecorded, cautions = _read_lines(lines, names, path)
    if "tpt_start_exact" in unrecorded and _derive_clock(rows):
        unrecorded = [name for name in unrecorded if name not in _DERIVED]
        cautions.append(
            f"{HISTORY_FILE} has no clock of the terminal phase, as older versions wrote it: its "
            "start and its exits are derived from the training error of the measured epochs."
        )
    frame = history_frame(rows)
    frame.attrs |= {"cautions": cautions, "unrecorded": unrecorded}
    return frame


def _read_lines(
    lines: Sequence[str], names: Sequence[str], path: Path
) -> tuple[list[dict[str, float | int | str]], list[str], list[str]]:
    """Return the rows, the columns that nothing was written to, and what was left out."""
    columns = dict.fromkeys([*COLUMNS, *known_columns(names)])
    numbers = [name for name in columns if name not in KEYS]
    rows: list[dict[str, float | int | str]] = []
    written, damage = set[str](), list[str]()
    for number, line in enumerate(lines[:-1], start=2):
        if not line.strip():
            continue
        try:
            cells = _cells(line, names)
            rows.append(_row(cells, numbers))
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
            f"{len(damage)} of {len(damage) + len(rows)} rows of {HISTORY_FILE} cannot be read and "
            f"were left out ({damage[0]})."
        )
    if lines[-1]:  # a line without its end was cut by a kill
        cautions.append(
            f"The last row of {HISTORY_FILE} is cut short and was left out: its writing was "
            "interrupted, or is under way."
        )
    return rows, [name for name in numbers if name not in written], cautions


def _cells(line: str, names: Sequence[str]) -> dict[str, str]:
    try:
        cells = next(csv.reader([line]))
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}") from error
    if len(cells) != len(names):
        raise InputError(f"has {len(cells)} cells where the header has {len(names)}")
    return dict(zip(names, cells, strict=True))


def _row(cells: Mapping[str, str], numbers: Sequence[str]) -> dict[str, float | int | str]:
    row: dict[str, float | int | str] = {}
    for name in ("epoch", "step", *numbers):
        text = cells.get(name) or ""
        try:
            row[name] = int(text) if name in KEYS else float(text or math.nan)
        except ValueError as error:
            kind = "a whole number" if name in KEYS else "a number"
            raise InputError(f"has {text!r} in the column {name}, not {kind}") from error
    return row | {"split": cells["split"].strip()}


def _derive_clock(rows: list[dict[str, float | int | str]]) -> bool:
    """Add the clock of the terminal phase to the train rows, if they have an error at all."""
    clock = PhaseClock()
    train = [row for row in rows if row["split"] == "train"]
    for row in sorted(train, key=lambda row: row["epoch"]):
        error = float(row["error"])
        clock.update(int(row["epoch"]), error)
        values = clock.as_dict() | ({"tpt_active": math.nan} if math.isnan(error) else {})
        row |= {name: values[name] for name in _DERIVED}
    return clock.epoch is not None


def _no_run(folder: Path) -> str:
    expected = f"expected a run folder with a {HISTORY_FILE}"
    if not folder.exists():
        return f"{expected}, but {folder} does not exist"
    if folder.is_file():
        return f"{expected}, but {folder} is a file"
    # Four levels reach every layout of ours, without walking somebody's whole disk.
    below = (f"{'*/' * depth}{HISTORY_FILE}" for depth in range(1, 5))
    found = [str(path.parent) for pattern in below for path in sorted(folder.glob(pattern))][:5]
    hint = f"; run folders below it: {', '.join(found)}" if found else ""
    return f"{expected}, but {folder} holds no run{hint}"
