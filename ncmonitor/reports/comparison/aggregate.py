"""Statistics over runs: which epochs they share, mean and spread there, and how to write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from ncmonitor.catalogue import FIT, METRICS, PHASE, quantity_of
from ncmonitor.monitor.history import KEYS
from ncmonitor.reports.verdict import number

if TYPE_CHECKING:
    from ncmonitor.reports.comparison.run_groups import RunGroup

#: Columns of ``comparison.csv``.
COLUMNS: Final = ("group", "split", "epoch", "metric", "n", "mean", "sd", "min", "max")
_ORDER: Final = {q.name: i for i, q in enumerate((*FIT, *METRICS, *PHASE))}


def aggregate(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return mean and spread over runs, at the epochs that all of them measured.

    Args:
        histories: Tables of runs that differ by the seed alone. A split that some runs lack is
            taken over the others.

    Returns:
        One row per split, epoch and metric with ``n`` (runs where it is a finite number),
        ``mean``, ``sd`` (of the sample, n − 1; ``nan`` for one run), ``min`` and ``max``. Metrics
        that are undefined at every epoch of a split are left out.
    """
    wide = pd.concat(
        [
            history.drop_duplicates(["split", "epoch"], keep="last").assign(run=i)
            for i, history in enumerate(histories)
        ]
    )
    metrics = [name for name in wide if name not in KEYS and quantity_of(str(name)) is not None]
    shared = wide.groupby(["split", "epoch"])["run"].transform("nunique")
    runs = wide.groupby("split")["run"].transform("nunique")
    long = wide[shared == runs].melt(["split", "epoch"], metrics, "metric", "value")
    long["value"] = long["value"].where(np.isfinite(long["value"]))
    found = long.groupby(["split", "epoch", "metric"], sort=False)["value"]
    table = found.agg(n="count", mean="mean", sd="std", min="min", max="max").reset_index()
    known = table.groupby(["split", "metric"])["n"].transform("sum") > 0
    return _sorted(table[known])


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    name = table["metric"].str.partition("/")
    keys = table.assign(
        after=table["split"] != "train",
        place=name[0].map(_ORDER),
        index_=pd.to_numeric(name[2], errors="coerce"),
    )
    order = keys.sort_values(["after", "split", "epoch", "place", "index_"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def comparison_table(groups: Sequence[RunGroup], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of all groups under one another, with the columns of ``comparison.csv``."""
    parts = [t.assign(group=g.label) for g, t in zip(groups, tables, strict=True)]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def per_run_table(groups: Sequence[RunGroup], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return one row per run and split: what it measured at the last epoch its group shares."""
    rows = []
    for group, table in zip(groups, tables, strict=True):
        for split, epoch in last_epochs(table).items():
            for run in group.runs:
                here = run.history[run.history["split"] == split]
                row = here[here["epoch"] == epoch].tail(1)
                who = {"group": group.label, "run": run.name}
                rows.append(row.assign(**who, seed=_whole(run.seed), tpt_onset=_whole(run.onset)))
    whole = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["epoch"])
    first = ["group", "run", "seed", "split", "epoch", "tpt_onset"]
    names = [n for n in whole if n not in first and quantity_of(str(n)) is not None]
    filled = [name for name in names if whole[name].notna().any()]
    return whole.reindex(columns=[*first, *filled]).astype({"seed": "Int64", "tpt_onset": "Int64"})


def _whole(value: int | None) -> float:
    return math.nan if value is None else float(value)


def thinned(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most about ``most`` rows of a long course, for drawing.

    Args:
        rows: One metric on one split of an aggregate, in the order of epochs.
        most: How many rows a picture has room for.

    Returns:
        Every n-th row, counted from the last; ``min`` and ``max`` are those of all rows since the
        one before, so that no extreme is lost.
    """
    step = -(-len(rows) // most)
    if step < 2:
        return rows
    stretch = np.arange(len(rows) - 1, -1, -1) // step
    last = {str(name): (name, "last") for name in rows if name not in ("min", "max", "mean")}
    ends = {"min": ("min", "min"), "max": ("max", "max")}
    kept = rows.groupby(stretch, sort=False).agg(**last, **ends)
    # "last" would skip nan, and a gap must stay one.
    return kept.assign(mean=rows["mean"].to_numpy()[(len(rows) - 1) % step :: step])


def last_epochs(table: pd.DataFrame) -> dict[str, int]:
    """Return for every split of an aggregate the last epoch that all runs measured."""
    last = table.groupby("split", sort=False)["epoch"].max()
    return {str(split): int(epoch) for split, epoch in last.items()}


def spread(mean: float, sd: float) -> str:
    """Write a mean and a standard deviation for a reader: both to the second digit of the sd.

    >>> spread(0.0034213, 0.00021), spread(3.42e-7, 2.1e-8), spread(0.25, float("nan"))
    ('0.00342 ± 0.00021', '(3.42 ± 0.21)×10⁻⁷', '0.25')
    """
    if not math.isfinite(mean) or math.isnan(sd):
        return number(mean)
    if sd < 1e-5 * abs(mean) or sd == 0:  # more digits of the mean than anybody reads
        return f"{number(mean)} ± {number(float(f'{sd:.1e}'))}"
    top = max(abs(mean), sd)
    power = 0 if 1e-4 <= top < 1e6 else math.floor(math.log10(top))
    mean, sd = mean / 10.0**power, sd / 10.0**power
    places = max(0, 1 - math.floor(math.log10(float(f"{sd:.1e}"))))
    text = f"{mean:.{places}f} ± {sd:.{places}f}".replace("-", "−")
    return text if power == 0 else f"({text})×10{number_power(power)}"


def number_power(power: int) -> str:
    """Write an exponent in superscript."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def span(values: Sequence[int]) -> str:
    """Write whole numbers as one, or as the range they lie in."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def shares(facts: Mapping[str, str]) -> dict[str, list[str]]:
    """Gather what runs say: each value, with the names of the runs that say it."""
    said: dict[str, list[str]] = {}
    for run, value in facts.items():
        said.setdefault(value, []).append(run)
    return said
