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

from ncmonitor.catalogue import FIT_NAMES, METRIC_NAMES, PHASE_NAMES, quantity_of
from ncmonitor.monitor.csv_table import Layout, read_rows
from ncmonitor.monitor.phase_clock import PhaseClock

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

_LAYOUT: Final = Layout(HISTORY_FILE, "a history", KEYS[:2], KEYS[2:])

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
    run_dir: Path,
    rows: Iterable[Row] = (),
    columns: Sequence[str] = COLUMNS,
    file: str = HISTORY_FILE,
) -> None:
    """Write the header and the rows of an earlier part of the run, replacing the file atomically.

    Args:
        run_dir: Folder of the run; made if missing.
        rows: Rows kept from before a resume.
        columns: Of the table.
        file: Its name.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / f"{file}.part"
    part.write_text(",".join(columns) + "\n" + _lines(rows, columns), encoding="utf-8")
    part.replace(run_dir / file)


def keep_previous(run_dir: Path, rows: Iterable[Row] = (), file: str = HISTORY_FILE) -> int | None:
    """Set another run's history in the same folder aside, as ``history.1.csv`` and so on.

    Args:
        run_dir: Folder of the run.
        rows: Rows that this run brings along; a history that begins with them is its own.
        file: Name of the table.

    Returns:
        The number that the other history got; ``None`` if there was none.
    """
    path = run_dir / file
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


def append_history(
    run_dir: Path,
    rows: Iterable[Row],
    columns: Sequence[str] = COLUMNS,
    file: str = HISTORY_FILE,
) -> None:
    """Append one epoch's rows, under the columns the table was started with; force them to disk."""
    with (run_dir / file).open("a", encoding="utf-8", newline="") as table:
        table.write(_lines(rows, columns))
        table.flush()
        os.fsync(table.fileno())


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
    rows, unrecorded, cautions = read_rows(
        Path(run_dir),
        _LAYOUT,
        lambda names: [
            n for n in dict.fromkeys([*COLUMNS, *known_columns(names)]) if n not in KEYS
        ],
    )
    if "tpt_start_exact" in unrecorded and _derive_clock(rows):
        unrecorded = [name for name in unrecorded if name not in _DERIVED]
        cautions.append(
            f"{HISTORY_FILE} has no clock of the terminal phase, as older versions wrote it: its "
            "start and its exits are derived from the training error of the measured epochs."
        )
    frame = history_frame(rows)
    frame.attrs |= {"cautions": cautions, "unrecorded": unrecorded}
    return frame


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
