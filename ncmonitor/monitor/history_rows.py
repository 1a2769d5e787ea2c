"""From reports to rows of the history, and from rows to what loggers get."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, PHASE_NAMES, quantity_of
from ncmonitor.measurement.report import PER_CLASS_KEYS, CollapseReport
from ncmonitor.metrics import SHAPE
from ncmonitor.monitor.history import LAYER_MARK, NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.monitor.log_keys import log_key, log_values

Row = dict[str, "float | int | str"]

__all__ = [
    "Row", "history_row", "layer_split", "log_key", "log_keys", "log_values", "metric_columns",
    "names_of",
]  # fmt: skip


def metric_columns(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return a run's columns for its metrics: one, or one per class up to 100 classes."""
    columns: list[str] = []
    for name in names:
        if not CATALOGUE[name].vector:
            columns.append(name)
        elif num_classes <= PER_CLASS_KEYS:
            columns += [f"{name}/{c}" for c in range(num_classes)]
    return tuple(columns)


def layer_split(split: str, layer: str) -> str:
    """Return the pseudo-split of an inner layer: its rows stand beside those of the split."""
    return f"{split}{LAYER_MARK}{layer}"


def names_of(split: str, metrics: Sequence[str] = METRIC_NAMES) -> list[str]:
    """Return what is measured on a split: classifier-only metrics and the clock under train.

    Args:
        split: As in the log keys; an inner layer has no classifier, online mode one look.
        metrics: The run's, from :func:`metric_columns`.
    """
    if split == "train":
        return [*FIT_NAMES, *metrics, *PHASE_NAMES]
    if split == ONLINE_SPLIT:
        return [*FIT_NAMES, *(name for name in metrics if name in SHAPE)]
    own = [name for name in metrics if not _once(name)]
    if LAYER_MARK in split:
        return [name for name in own if not _needs(name)]
    return own if split == NULL_SPLIT else [*FIT_NAMES, *own]


def _needs(name: str) -> str:
    quantity = quantity_of(name)
    return "" if quantity is None else quantity.needs


def _once(name: str) -> bool:
    quantity = quantity_of(name)
    return quantity is not None and quantity.once


def history_row(
    epoch: int,
    step: int,
    split: str,
    report: CollapseReport | None,
    phase: Mapping[str, float],
    seconds: float,
    metrics: Sequence[str] = METRIC_NAMES,
) -> Row:
    """Return the row of one split; without a report the metrics are ``nan``, the clock stands.

    Args:
        epoch: Completed epochs.
        step: Optimizer steps made.
        split: As in the log keys.
        report: Of that split, or ``None`` if its measurement failed.
        phase: The clock after this measurement; used on train only.
        seconds: Time it took.
        metrics: The run's, from :func:`metric_columns`.
    """
    values = dict(phase)
    if report is None:
        values["tpt_active"] = math.nan
    else:
        values |= report.as_dict()
        values |= {"error": report.error, "cross_entropy": report.cross_entropy}
    row: Row = {"epoch": epoch, "step": step, "split": split}
    row |= {name: float(values.get(name, math.nan)) for name in names_of(split, metrics)}
    return row | {"seconds": seconds}


def log_keys(prefix: str, splits: Iterable[str], metrics: Sequence[str]) -> dict[str, str]:
    """Return every key that may be logged, with the name of its quantity.

    Args:
        prefix: First part of every key.
        splits: Those that may be measured.
        metrics: The run's, from :func:`metric_columns`.
    """
    return {
        log_key(prefix, split, name): name for split in splits for name in names_of(split, metrics)
    }
