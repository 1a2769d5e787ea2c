"""What a number of the history is called in the logs: ``nc/<split>/<metric>``."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ncmonitor.catalogue import PHASE_NAMES, quantity_of
from ncmonitor.monitor.history import ONLINE_SPLIT, Row


def log_key(prefix: str, split: str, name: str) -> str:
    """Return the log key of a quantity.

    Args:
        prefix: First part of every key.
        split: As in the history; an inner layer's is ``train/layer/<layer>``.
        name: Of the quantity; the clock of the terminal phase has no split of its own.
    """
    if split == ONLINE_SPLIT:
        return f"{prefix}/train/{name}_online"
    return f"{prefix}/{'tpt' if name in PHASE_NAMES else split}/{name}"


def log_values(rows: Iterable[Row], prefix: str) -> dict[str, float]:
    """Return what to log for one epoch: every defined number, and the epoch itself.

    ``nan`` is left out: early stopping would end the run on it.
    """
    values: dict[str, float] = {}
    for row in rows:
        split = str(row["split"])
        values[f"{prefix}/epoch"] = float(row["epoch"])
        for name, value in row.items():
            if quantity_of(name) is not None and not math.isnan(float(value)):
                values[log_key(prefix, split, name)] = float(value)
    return values


def keys_of(rows: Iterable[Row], prefix: str) -> dict[str, str]:
    """Return every key that the rows have a defined number for, with the name of its quantity."""
    return {
        log_key(prefix, str(row["split"]), name): name
        for row in rows
        for name, value in row.items()
        if quantity_of(name) is not None and not math.isnan(float(value))
    }
