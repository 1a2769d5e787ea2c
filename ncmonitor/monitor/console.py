"""One line per measured epoch, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

_HEADER_EVERY: Final = 25
_COLUMNS: Final = (
    ("loss", "cross_entropy", "{:.2e}"),
    ("error", "error", "{:.2%}"),
    ("nc1", "nc1", "{:.2e}"),
    ("nc2 (etf)", "nc2_etf_means", "{:.4f}"),
    ("nc3", "nc3_self_duality", "{:.4f}"),
    ("nc4", "nc4_disagreement", "{:.2%}"),
)
HEADER: Final = " | ".join(["epoch", *(f"{head:>9}" for head, _, _ in _COLUMNS), "terminal phase"])


def console_lines(row: Mapping[str, object], position: int) -> list[str]:
    """Return the lines for a measured epoch: its numbers, below the header now and then.

    Args:
        row: The train row of the history.
        position: How many epochs were shown before this one.
    """
    numbers = [_shown(row.get(name), form) for _, name, form in _COLUMNS]
    line = " | ".join([f"{row['epoch']:>5}", *(f"{n:>9}" for n in numbers), _phase(row)])
    return [HEADER, line] if position % _HEADER_EVERY == 0 else [line]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _shown(value: object, form: str) -> str:
    number = _number(value)
    return "nan" if math.isnan(number) else form.format(number)


def _phase(row: Mapping[str, object]) -> str:
    start = _number(row.get("tpt_start_exact"))
    if math.isnan(start):
        return "not yet"
    exits = int(_number(row.get("tpt_exits")))
    left = f", left {exits}x" if exits else ""
    if _number(row.get("tpt_active")) == 1:
        return f"{_number(row.get('epochs_in_tpt')):.0f} epochs in{left}"
    return f"began at {start:.0f}{left}, not in it now"
