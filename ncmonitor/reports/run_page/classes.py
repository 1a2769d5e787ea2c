"""The table of classes in a run's report: sizes, variability, lengths and angles of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history_queries import split_rows
from ncmonitor.reports.expect import is_number
from ncmonitor.reports.page import NOTHING, Cell, value_cell
from ncmonitor.reports.verdict import number, section

if TYPE_CHECKING:
    import pandas as pd

    from ncmonitor.monitor.snapshots.numbers import FloatArray
    from ncmonitor.monitor.snapshots.snapshot import Snapshot

#: Classes that a table shows at most.
_MOST: Final = 32
_SPREAD: Final = "nc1_per_class"
#: What a snapshot tells of a class: heading, and what it is.
_GEOMETRY: Final = (
    ("length of mean", "Length of the centred class mean over the root mean square of all."),
    ("cosines of mean", "Cosines of the centred class mean with those of the other classes."),
    ("length of row", "Length of the classifier's row over the root mean square of all."),
    ("cosine of row and mean", "Cosine of the classifier's row with the class's centred mean."),
)


def class_table(
    history: pd.DataFrame, run: Mapping[str, Any], snapshot: Snapshot | None
) -> dict[str, Any] | None:
    """Build the table of the training set's classes from whatever is known of them.

    Args:
        history: The run's; with ``nc1_per_class`` if that was measured.
        run: Its ``run.json``, for the class sizes.
        snapshot: The last one of the training set, for lengths and angles.

    Returns:
        ``None`` where nothing is known of single classes.
    """
    sizes = _sizes(run)
    epoch, spread = _spreads(history)
    shape = {} if snapshot is None else _shapes(snapshot)
    known = sorted({*sizes, *spread, *shape})
    if not known:
        return None
    shown, chosen = _shown(known, spread, shape)
    heads: list[tuple[str, str]] = [("samples", "Of the training set.")] if sizes else []
    if spread:
        quantity = CATALOGUE[_SPREAD]
        heads.append((quantity.label, f"{quantity.definition}. {quantity.meaning}"))
    geometry = [head for head, there in zip(_GEOMETRY, _columns(shape), strict=True) if there]
    lines = [(str(c), _line(c, sizes, spread, shape)) for c in shown]
    return {
        "heads": [*heads, *geometry],
        "lines": lines,
        "ideal": _ideal(sizes, spread, shape, snapshot),
        "remark": f"{len(shown)} of {len(known)} classes, {chosen}." if chosen else "",
        "epochs": _epochs(epoch if spread else None, snapshot if shape else None),
    }


def _sizes(run: Mapping[str, Any]) -> dict[int, float]:
    sizes = section(dict(run), "measurement").get("class_sizes")
    if not isinstance(sizes, list) or not all(map(is_number, sizes)):
        return {}  # of many classes only the extremes are recorded
    return dict(enumerate(map(float, sizes)))


def _spreads(history: pd.DataFrame) -> tuple[int, dict[int, float]]:
    """Return NC1 of each class at the last epoch that has it, and that epoch."""
    columns = [name for name in map(str, history.columns) if name.startswith(f"{_SPREAD}/")]
    train = split_rows(history, "train")
    train = train[train[columns].notna().any(axis="columns")] if columns else train[:0]
    if train.empty:
        return 0, {}
    row = train.iloc[-1]
    return int(row["epoch"]), {int(n.rpartition("/")[2]): float(row[n]) for n in columns}


def _shapes(snapshot: Snapshot) -> dict[int, tuple[Cell | None, ...]]:
    """Return the cells of :data:`_GEOMETRY` of each class shown; ``None``: no classifier."""
    gram, rows, cross = snapshot.means_gram, snapshot.weight_gram, snapshot.cross
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.sqrt(np.diag(gram))
        cosines = gram / np.outer(lengths, lengths)
    found: dict[int, tuple[Cell | None, ...]] = {}
    for i, c in enumerate(snapshot.classes):
        others = np.delete(cosines[i], i)
        found[c] = (
            value_cell(round(float(lengths[i]), 4)),
            _range(others),
            None if rows is None else value_cell(round(float(np.sqrt(rows[i, i])), 4)),
            None if cross is None else value_cell(round(float(cross[i, i]), 4)),
        )
    return found


def _range(values: FloatArray) -> Cell:
    if not len(values) or not np.isfinite(values).all():
        return Cell("nan", "nan") if len(values) else NOTHING
    low, high = (f"{value + 0.0:.3f}".replace("-", "−") for value in (values.min(), values.max()))
    return Cell(low if low == high else f"{low} to {high}")


def _columns(shape: Mapping[int, Sequence[Cell | None]]) -> list[bool]:
    """Tell which columns of :data:`_GEOMETRY` there are."""
    first = next(iter(shape.values()), (None,) * len(_GEOMETRY))
    return [cell is not None for cell in first]


def _shown(
    known: Sequence[int], spread: Mapping[int, float], shape: Mapping[int, object]
) -> tuple[list[int], str]:
    """Choose classes, and say how they were chosen if not all are shown."""
    if len(known) <= _MOST:
        return list(known), ""
    if spread:
        worst = sorted(spread, key=lambda c: (math.isnan(spread[c]), -spread[c]))
        return worst[:_MOST], "those with the largest spread within"
    if shape:
        return sorted(shape)[:_MOST], "those of the Gram matrices"
    return list(known[:_MOST]), "the first ones"


def _line(
    c: int,
    sizes: Mapping[int, float],
    spread: Mapping[int, float],
    shape: Mapping[int, Sequence[Cell | None]],
) -> list[Cell]:
    cells = [Cell(number(sizes[c])) if c in sizes else NOTHING] if sizes else []
    if spread:
        cells.append(value_cell(spread[c]) if c in spread else NOTHING)
    there = sum(_columns(shape))
    own = shape.get(c, ())
    return cells + ([cell for cell in own if cell is not None] or [NOTHING] * there)


def _ideal(
    sizes: object, spread: object, shape: Mapping[int, Sequence[Cell | None]], snapshot: Any
) -> list[Cell]:
    """Return what full collapse of classes of one size would show."""
    cells = [NOTHING] if sizes else []
    cells += [value_cell(0.0)] if spread else []
    if shape:
        angle = -1 / max(1, snapshot.num_classes - 1)
        ideal = [value_cell(1.0), _range(np.array([angle])), value_cell(1.0), value_cell(1.0)]
        cells += [cell for cell, there in zip(ideal, _columns(shape), strict=True) if there]
    return cells


def _epochs(spread: int | None, snapshot: Snapshot | None) -> str:
    if spread is not None and snapshot is not None and snapshot.epoch != spread:
        return f"epoch {spread}; lengths and angles of epoch {snapshot.epoch}"
    known = spread if spread is not None else None if snapshot is None else snapshot.epoch
    return "" if known is None else f"epoch {known}"
