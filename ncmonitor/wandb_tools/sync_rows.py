"""What a run folder has to replay: the rows of its history, and those of its symmetry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import Row, read_history
from ncmonitor.monitor.log_keys import keys_of, log_values
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE, read_symmetry
from ncmonitor.symmetry import rows as symmetry
from ncmonitor.wandb_tools import run_record

if TYPE_CHECKING:
    import pandas as pd


class Step(NamedTuple):
    """What is logged at once.

    Attributes:
        values: By key.
        rows: Of the history.
        groups: Of the table of symmetry.
    """

    values: dict[str, float]
    rows: int
    groups: int


class Recorded(NamedTuple):
    """What a run has left.

    Attributes:
        history: Its table.
        rows: The same, one by one.
        groups: Rows of ``symmetry.csv``, with the defined numbers alone; none where there is none.
        cautions: What could not be read.
    """

    history: pd.DataFrame
    rows: list[Row]
    groups: list[Row]
    cautions: list[str]

    def keys(self, prefix: str) -> dict[str, str]:
        """Return every key there is a number for, with the name of its quantity."""
        return keys_of(self.rows, prefix) | symmetry.keys_to_come(self.groups, prefix)

    def steps(self, prefix: str, rows: int, groups: int) -> Iterator[Step]:
        """Iterate over the epochs after so many rows of either table."""
        tables = self.rows[rows:], self.groups[groups:]
        for epoch in sorted({row["epoch"] for table in tables for row in table}):
            here, there = ([row for row in table if row["epoch"] == epoch] for table in tables)
            values = log_values(here, prefix) | symmetry.log_values(there, prefix)
            yield Step(values, len(here), len(there))

    def summary(self, prefix: str) -> dict[str, dict[str, float]]:
        """Return what the summary of a run with all rows is, by key."""
        numbers = [
            (key, name, float(row[name]))
            for row in self.groups
            for key, name in symmetry.keys_to_come([row], prefix).items()
        ]
        logged = {*symmetry.keys_to_come(self.groups, prefix)}
        found = run_record.summary_of(self.rows, prefix)
        for key, name, value in numbers:
            if key in logged:
                run_record.summarise(found, key, name, value)
        return found


def read_recorded(folder: Path) -> Recorded:
    """Read what a run has left.

    Args:
        folder: Of the run; a table of symmetry that cannot be read is left out.

    Raises:
        InputError: If the folder holds no run.
    """
    history = read_history(folder)
    cautions = list(history.attrs.get("cautions", ()))
    groups: list[Row] = []
    if (folder / SYMMETRY_FILE).is_file():
        try:
            table = read_symmetry(folder)
        except InputError as error:
            cautions.append(f"{SYMMETRY_FILE} is left out: {error}")
        else:
            groups = _defined(table.to_dict("records"))
            cautions += table.attrs["cautions"]
    return Recorded(history, cast(list[Row], history.to_dict("records")), groups, cautions)


def _defined(rows: Sequence[dict[Any, Any]]) -> list[Row]:
    """Leave out what does not apply: empty cells are nan, and would be keys without a number."""
    return [
        {n: v for n, v in row.items() if not (isinstance(v, float) and math.isnan(v))}
        for row in rows
    ]
