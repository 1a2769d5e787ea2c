"""One line for each group and element: the names of its numbers, and what loggers call them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

#: One line of the table, as of the history.
Row = Mapping[str, "float | int | str"]
#: Stands for the samples as they are, in place of a group.
PLAIN: Final = "plain"
#: Stands for the symmetries of the weights, in place of a group of transforms.
PARAMETERS: Final = "parameters"
#: Beside the table: which groups, with which boundary and interpolation, on which samples.
FACTS_FILE: Final = "symmetry.json"
#: Columns that say what a row is about.
KEYS: Final = ("epoch", "step", "split", "layer", "group", "element")
#: Numbers of one element; those of the whole group are means over its elements.
OF_ELEMENTS: Final = (
    "inv_error", "inv_error_logits", "pred_consistency", "tv", "acc", "acc_drop", "equiv_r2",
)  # fmt: skip
#: Numbers of a whole group, or of the samples as they are.
OF_GROUPS: Final = (
    "acc_orbit_mean", "acc_orbit_worst", "orbit_share", "orbit_quot", "orbit_nc1", "between_nc1",
    "nc1_aug", "group_law", "group_law_scaled", "nc1", "nc1_quotient",
)  # fmt: skip
OF_FLOWS: Final = ("lie_error", "lie_error_logits")
OF_PARAMETERS: Final = ("w_mean_law_ratio", "layer_balance")
NUMBERS: Final = (*OF_ELEMENTS, *OF_GROUPS, *OF_FLOWS, *OF_PARAMETERS)
COLUMNS: Final = (*KEYS, *NUMBERS, "seconds")
#: Groups with more elements are logged as a whole; the table has every element.
LOGGED_ELEMENTS: Final = 8


def log_key(prefix: str, row: Mapping[str, object], name: str) -> str:
    """Return the log key of a number in a row: ``nc/val/symmetry/rotations90/acc/rot180``.

    Args:
        prefix: First part of every key.
        row: With the columns of :data:`KEYS`.
        name: Of the number.
    """
    if row["group"] == PARAMETERS:
        places: list[object] = [prefix, PARAMETERS, name]
    else:
        layer = f"layer/{row['layer']}/" if row["layer"] else ""
        places = [prefix, row["split"], f"{layer}symmetry", row["group"], name]
    element = str(row["element"]).replace(" -> ", "-")
    return "/".join(map(str, [*places, element] if element else places))


def keys_to_come(rows: Iterable[Row], prefix: str) -> dict[str, str]:
    """Return every key that rows like these are logged under, with the name of its quantity."""
    return {log_key(prefix, row, name): name for row, name, _ in _logged(rows)}


def log_values(rows: Iterable[Row], prefix: str) -> dict[str, float]:
    """Return what to log for one epoch: every defined number, and the epoch itself.

    ``nan`` is left out: early stopping would end the run on it. So are the elements of groups with
    more than :data:`LOGGED_ELEMENTS`.
    """
    rows = list(rows)
    values = {f"{prefix}/epoch": float(row["epoch"]) for row in rows}
    for row, name, value in _logged(rows):
        if not math.isnan(value):
            values[log_key(prefix, row, name)] = value
    return values


def _logged(rows: Iterable[Row]) -> Iterator[tuple[Row, str, float]]:
    rows = list(rows)
    sizes = Counter(map(_place, rows))
    for row in rows:
        large = row["group"] != PARAMETERS and sizes[_place(row)] > LOGGED_ELEMENTS
        for name in NUMBERS if not (row["element"] and large) else ():
            if name in row:
                yield row, name, float(row[name])


def _place(row: Row) -> tuple[object, ...]:
    return tuple(row[key] for key in KEYS if key != "element")
