"""A whole frame: what the run is, charts by epoch, the latest values with their best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ncmonitor.catalogue import quantity_of
from ncmonitor.monitor.words import shown
from ncmonitor.reports.verdict import number
from ncmonitor.watch.chart import MUTED, SERIES, STROKES, Curve, Scale, chart, tint
from ncmonitor.watch.followed_history import HistoryTail
from ncmonitor.watch.symmetry_line import symmetry_line
from ncmonitor.watch.watched_run import (
    Pace,
    leet_line,
    phase,
    progress,
    state,
    title,
    waiting_for,
)

#: The fit, then NC1 to NC4, one number each.
DEFAULT: Final = (
    *("error", "nc1", "nc2_etf_means"),
    *("cross_entropy", "nc3_self_duality", "nc4_disagreement"),
)
_LEAST: Final = (40, 8)  # below this a terminal clips what is written for so much room
_CHART: Final = (24, 6)  # least width and height, the line with its name included
_ROOMY: Final = 16  # lines, of which one may be about symmetry
_BETWEEN: Final = "  "
_NAME: Final = 24
_BLOCK: Final = 28


@dataclass(frozen=True)
class View:
    """What to show of a run.

    Attributes:
        names: Quantities, in the order of the charts.
        splits: Their splits; empty: the training set and the first other one.
    """

    names: Sequence[str] = DEFAULT
    splits: Sequence[str] = ()

    def splits_of(self, tail: HistoryTail) -> list[str]:
        """Return the splits to show of a history."""
        if self.splits:
            return list(self.splits)
        there = tail.splits()
        return there[:1] + [s for s in there[1:] if s not in ("null", "online")][:1]


def frame(
    tail: HistoryTail,
    facts: Mapping[str, Any],
    view: View,
    *,
    pace: Pace,
    now: float,
    size: tuple[int, int],
    footer: str = "",
) -> list[str]:
    """Draw a run as it stands.

    Args:
        tail: Its history, read.
        facts: Its ``run.json``.
        view: What to show.
        pace: Of its epochs.
        now: In seconds since 1970.
        size: Columns and lines there are; a smaller screen than 40 × 8 clips what is right of it.
        footer: How to leave; the command of W&B's own viewer is added where there is room.

    Returns:
        At most so many lines, coloured if standard output is a terminal that takes colour.
    """
    width, height = (max(least, have) for least, have in zip(_LEAST, size, strict=True))
    if not tail.rows:
        lines = _header(tail, facts, waiting_for(tail.path.parent, tail, facts), width)
    else:
        said = " · ".join([progress(tail, facts, pace, now), phase(tail)])
        lines = _header(tail, facts, said, width)
        symmetry = symmetry_line(tail.path.parent) if height >= _ROOMY else None
        lines += [tint(_cut(symmetry, width), MUTED)] if symmetry else []
        room = height - len(lines) - bool(footer)
        table = _table(tail, view, width, min(room, max(5, height // 3)))
        charts = _charts(tail, view, width, room - len(table))
        lines += charts + (table if charts else _table(tail, view, width, room))
    if footer:
        lines.append(_footer(tail, footer, width))
    return lines[: size[1]]


def _header(tail: HistoryTail, facts: Mapping[str, Any], said: str, width: int) -> list[str]:
    name, folder, now = title(tail.path.parent, facts), shown(tail.path.parent), state(facts)
    room = width - len(now) - 2
    left = f"{name}  {folder}" if len(name) + len(folder) + 2 <= room else name
    said = said if len(said) <= width else said.replace("terminal phase", "TPT")
    return [f"{_cut(left, room):<{room}}  {now}", f"{_cut(said, width):<{width}}"]


def _footer(tail: HistoryTail, footer: str, width: int) -> str:
    said = [footer]
    if tail.damaged:
        said.append(f"{tail.damaged} damaged line{'s' * (tail.damaged > 1)} left out")
    leet = leet_line(tail.path.parent)
    if leet is not None and len(" · ".join([*said, leet])) <= width:
        said.append(leet)
    return tint(_cut(" · ".join(said), width), MUTED)


def _charts(tail: HistoryTail, view: View, width: int, height: int) -> list[str]:
    names, splits = list(view.names), view.splits_of(tail)
    columns, rows = _grid(len(names), width, height)
    if not columns:
        return []
    epochs = list(tail.epochs())
    ends, onset = (min(epochs), max(epochs)), tail.onset()
    each, high = (width - len(_BETWEEN) * (columns - 1)) // columns, height // rows
    lines: list[str] = []
    for start in range(0, columns * rows, columns):
        panels = []
        for name in names[start : start + columns]:
            curves = [Curve(tail.series(split, name), i) for i, split in enumerate(splits)]
            drawn = chart(
                curves, epochs=ends, onset=onset, width=each, height=high - 1, scale=scale_of(name)
            )
            panels.append([_chart_title(name, curves, each), *drawn])
        lines += [_BETWEEN.join(parts) for parts in zip(*panels, strict=True)]
    return lines + [""] * (height - len(lines))


def _chart_title(name: str, curves: Sequence[Curve], width: int) -> str:
    last = number(curves[0].points[-1][1]) if curves and curves[0].points else ""
    room = width - len(last) - 1
    return f"{_cut(name, room):<{room}} {last}"


def _grid(count: int, width: int, height: int) -> tuple[int, int]:
    """Return columns and rows of charts, each about as wide as three times its lines."""
    best, found = math.inf, (0, 0)
    for columns in range(1, count + 1):
        if (width - len(_BETWEEN) * (columns - 1)) // columns < _CHART[0]:
            break
        rows = min(math.ceil(count / columns), height // _CHART[1])
        if rows == 0:
            break
        missing = max(0, count - columns * rows)
        shape = abs(math.log(width / columns / (3 * (height // rows))))
        if (score := 10 * missing + shape) < best:
            best, found = score, (columns, rows)
    return found


def scale_of(name: str) -> Scale:
    """Return the axis of a quantity: text has no room for one that ends in a linear part."""
    entry = quantity_of(name)
    return "linear" if entry is None or entry.scale == "linear" else "log"


def _table(tail: HistoryTail, view: View, width: int, most: int) -> list[str]:
    first = min(_NAME, width - _BLOCK)
    splits = view.splits_of(tail)[: max(1, (width - first) // _BLOCK)]
    names = list(view.names)
    if len(names) + 1 > most:
        names = names[: max(0, most - 2)]
    heads = [_block_head(split, i) for i, split in enumerate(splits)]
    lines = [" " * first + "".join(heads)]
    for name in names:
        cells = [_block(name, tail.series(split, name)) for split in splits]
        # Where there is room, what the name stands for.
        room = width - first - _BLOCK * len(splits) - 2
        label = entry.label if (entry := quantity_of(name)) else name
        said = tint(f"  {label}", MUTED) if len(label) <= room else ""
        lines.append(f"{_cut(name, first):<{first}}" + "".join(cells) + said)
    if len(names) < len(view.names):
        more = len(view.names) - len(names)
        lines.append(tint(f"… {more} more with a larger window", MUTED))
    return lines


def _block_head(split: str, style: int) -> str:
    key = f"{STROKES[style % len(STROKES)]} {_cut(split, 8)}"
    fg = SERIES[style % len(SERIES)]
    return tint(f"{key:>11}", fg) + f"{'best':>10}{'epoch':>7}"


def _block(name: str, points: Sequence[tuple[int, float]]) -> str:
    if not points:
        return f"{'–':>11}{'':>17}"
    found = _best(name, points)
    best = f"{'':>17}" if found is None else f"{number(found[1]):>10}{found[0]:>7}"
    return f"{number(points[-1][1]):>11}{best}"


def _best(name: str, points: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """Return epoch and value nearest to collapse, the first of equals; ``None``: nothing is best.

    Of error and cross-entropy, of which collapse says nothing, the lowest is best.
    """
    entry = quantity_of(name)
    known = [point for point in points if not math.isnan(point[1])]
    if entry is None or entry.group == "phase" or not known:
        return None
    goal = entry.collapse if entry.scale == "linear" else 0.0
    if goal is None:
        return None
    return min(known, key=lambda point: abs(point[1] - goal))


def _cut(text: str, width: int) -> str:
    """Shorten a text, and keep what a file says from steering the terminal."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= width else clean[: max(0, width - 1)] + "…"
