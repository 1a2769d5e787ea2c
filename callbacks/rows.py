"""From reports to rows of the history, and from rows to what loggers get."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, PHASE_NAMES
from ncmonitor.report import CollapseReport

Row = dict[str, "float | int | str"]


def names_of(split: str) -> list[str]:
    """Return what is measured on a split: classifier-only metrics and the clock under train."""
    if split == "train":
        return [*FIT_NAMES, *METRIC_NAMES, *PHASE_NAMES]
    return [*FIT_NAMES, *(n for n in METRIC_NAMES if not CATALOGUE[n].once)]


def history_row(
    epoch: int,
    step: int,
    split: str,
    report: CollapseReport | None,
    phase: Mapping[str, float],
    seconds: float,
) -> Row:
    """Return the row of one split; without a report the metrics are ``nan``, the clock stands.

    Args:
        epoch: Completed epochs.
        step: Optimizer steps made.
        split: As in the log keys.
        report: Of that split, or ``None`` if its measurement failed.
        phase: The clock after this measurement; used on train only.
        seconds: Time it took.
    """
    values = dict(phase)
    if report is None:
        values["tpt_active"] = math.nan
    else:
        values |= report.as_dict()
        values |= {"error": report.error, "cross_entropy": report.cross_entropy}
    row: Row = {"epoch": epoch, "step": step, "split": split}
    row |= {name: float(values.get(name, math.nan)) for name in names_of(split)}
    return row | {"seconds": seconds}


def log_key(prefix: str, split: str, name: str) -> str:
    """Return the log key of a quantity."""
    return f"{prefix}/{'tpt' if name in PHASE_NAMES else split}/{name}"


def log_values(rows: Iterable[Row], prefix: str) -> dict[str, float]:
    """Return what to log for one epoch: every defined number, and the epoch itself.

    ``nan`` is left out: early stopping would end the run on it.
    """
    values: dict[str, float] = {}
    for row in rows:
        values[f"{prefix}/epoch"] = float(row["epoch"])
        for name in names_of(str(row["split"])):
            if not math.isnan(float(row[name])):
                values[log_key(prefix, str(row["split"]), name)] = float(row[name])
    return values
