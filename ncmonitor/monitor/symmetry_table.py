"""The table of symmetry that a run leaves on disk beside its history, read so that it shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ncmonitor.monitor.csv_table import Layout, read_rows
from ncmonitor.monitor.history import Row
from ncmonitor.symmetry.rows import COLUMNS, KEYS

if TYPE_CHECKING:
    import pandas as pd

SYMMETRY_FILE: Final = "symmetry.csv"
SYMMETRY_KEYS: Final = KEYS

_NUMBERS: Final = COLUMNS[len(KEYS) :]
_LAYOUT: Final = Layout(
    SYMMETRY_FILE,
    "a table of symmetry",
    KEYS[:2],
    KEYS[2:],
    absent="; ncmonitor.callbacks.SymmetryMonitor writes it as a run trains",
)


def symmetry_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table with every column of :data:`ncmonitor.symmetry.rows.COLUMNS`, typed.

    Args:
        rows: A missing text is empty, a missing number ``nan``.

    Returns:
        The table, rows in the same order.
    """
    import pandas as pd

    texts = dict.fromkeys(KEYS[2:], "")
    frame = pd.DataFrame([{**texts, **row} for row in rows]).reindex(columns=list(COLUMNS))
    types = dict.fromkeys(KEYS[:2], "int64") | dict.fromkeys(texts, "str")
    return frame.astype(types).astype(dict.fromkeys(_NUMBERS, "float64"))


def read_symmetry(run_dir: str | Path) -> pd.DataFrame:
    """Read what ``SymmetryMonitor`` has measured in a run, finished, running or killed.

    Args:
        run_dir: Folder of the run, the one that holds ``symmetry.csv``.

    Returns:
        One row per measured epoch, split, layer, group and element. ``layer`` is ``""`` for the
        classifier's input, ``element`` for the values of a whole group; ``group`` is the name of a
        group or flow, ``"plain"`` for the samples as they are, ``"parameters"`` for the weights.
        Numbers that do not apply to a row are ``nan``; columns of other versions are left out.
        ``attrs["cautions"]`` says what could not be read, ``attrs["unrecorded"]`` names the columns
        that nothing was ever written to.

    Raises:
        InputError: If the folder has no such table, or it is not one of ours or has no row yet.
    """
    rows, unrecorded, cautions = read_rows(Path(run_dir), _LAYOUT, lambda names: _NUMBERS)
    frame = symmetry_frame(rows)
    frame.attrs |= {"cautions": cautions, "unrecorded": unrecorded}
    return frame
