"""One chart as lines of text: curves over epochs, with the onset of the terminal phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from plotille import Canvas, color

Scale = Literal["log", "linear"]
Point = tuple[int, float]

#: Colours of the 256 that can be told apart on black and on white, by most eyes.
SERIES: Final = (32, 166, 36, 169)
ACCENT: Final = 98
MUTED: Final = 244
#: Where a line is drawn on to the next column of dots: solid, dashed, dotted, dash-dotted.
DASHES: Final = ("1", "111000", "1000", "1111001000")
#: The same for a key.
STROKES: Final = ("━━", "╍╍", "··", "━·")
#: Below this a distance between float64 quantities of order one is rounding, not a measurement.
_ROUNDING: Final = 1e-14
_LABEL: Final = 7  # characters of a tick label and the space after it
_DOTS_X: Final = 2
_DOTS_Y: Final = 4


@dataclass(frozen=True)
class Curve:
    """One quantity on one split: its points in the order of epochs, ``nan`` for a gap, its look."""

    points: Sequence[Point]
    style: int


class _Heights:
    """Where a value stands, in dots above the lower edge.

    On a logarithmic axis zeros, and what is rounding, stand on the lowest row, below everything
    positive; without any positive value the axis is linear.
    """

    def __init__(self, values: Sequence[float], rows: int, scale: Scale) -> None:
        positive = [value for value in values if value > _ROUNDING]
        self.log = scale == "log" and bool(positive)
        self.zeros = self.log and len(positive) < len(values)
        low, high = min(positive if self.log else values), max(values)
        self.ends = (low, high)
        self.low, high = (math.log10(low), math.log10(high)) if self.log else (low, high)
        self.base = _DOTS_Y if self.zeros else 0
        self.top = _DOTS_Y * rows - 1
        if high - self.low < 1e-6 * max(1.0, abs(high)):  # one value: in the middle
            widened = 0.5 if self.log else max(0.5 * abs(high), 0.5)
            self.low, high = self.low - widened, high + widened
        self.span = high - self.low

    def dots(self, value: float) -> float:
        if self.log and value <= _ROUNDING:
            return 0.0
        height = math.log10(value) if self.log else value
        return self.base + (height - self.low) / self.span * (self.top - self.base)

    def labels(self, rows: int) -> dict[int, str]:
        """Return tick labels by row from the top; the more telling one wins a place."""
        wanted = [(0.0, "0")] if self.zeros else []
        wanted += [(value, tick(value)) for value in reversed(self.ends)]
        if self.log:
            low, high = (math.floor(math.log10(value)) for value in self.ends)
            wanted += [(10.0**power, tick(10.0**power)) for power in range(high, low, -1)]
        else:
            middle = sum(self.ends) / 2
            wanted.append((middle, tick(middle)))
        labels: dict[int, str] = {}
        for value, text in wanted:
            row = rows - 1 - min(rows - 1, int(self.dots(value)) // _DOTS_Y)
            if not any(taken in labels for taken in (row - 1, row, row + 1)) or (
                row not in labels and len(labels) < 2
            ):
                labels[row] = text
        return labels


def tint(text: str, colour: int) -> str:
    """Return a text in one of 256 colours, if standard output is a terminal that takes colour."""
    return str(color(text, fg=colour, mode="byte"))


def tick(value: float) -> str:
    """Write a number in six characters or so."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def chart(
    curves: Sequence[Curve],
    *,
    epochs: tuple[int, int],
    onset: int | None,
    width: int,
    height: int,
    scale: Scale = "linear",
) -> list[str]:
    """Draw curves, with tick labels on the left and below.

    Args:
        curves: What to draw; infinite values count as gaps.
        epochs: First and last of the horizontal axis.
        onset: Where to mark the beginning of the terminal phase.
        width: Characters of every line.
        height: Lines, 3 at least.
        scale: Of the values.

    Returns:
        ``height`` lines, coloured if standard output is a terminal that takes colour.
    """
    columns, rows = width - _LABEL, height - 1
    values = [v for curve in curves for _, v in curve.points if math.isfinite(v)]
    if not values:
        said = "nan so far" if any(curve.points for curve in curves) else "not measured"
        blank = [" " * width for _ in range(height)]
        blank[height // 2] = tint(said.center(width), MUTED)
        return blank
    heights = _Heights(values, rows, scale)
    # In dots, so that what is asked of the canvas is what it draws.
    canvas = Canvas(columns, rows, 0, 0, _DOTS_X * columns, _DOTS_Y * rows, mode="byte")
    across = _Columns(epochs, _DOTS_X * columns)
    if onset is not None and epochs[0] <= onset <= epochs[1]:
        for dot in range(0, _DOTS_Y * rows, 2):
            canvas.point(round(across.dots(onset)), dot, color=ACCENT)
    for curve in reversed(curves):  # the first one on top
        _draw(canvas, curve, across, heights)
    labels = heights.labels(rows)
    # Some fonts draw rings for the dots that are not set.
    drawn = canvas.plot(linesep="\n").replace("\u2800", " ").split("\n")
    lines = [_left(labels.get(row, "")) + text for row, text in enumerate(drawn)]
    return [*lines, " " * _LABEL + across.labels(columns, onset)]


def _left(label: str) -> str:
    return tint(f"{label:>{_LABEL - 1}.{_LABEL - 1}} ", MUTED)


class _Columns:
    """Where an epoch stands, in dots from the left edge."""

    def __init__(self, epochs: tuple[int, int], dots: int) -> None:
        self.first, self.last = epochs
        self.right = dots - 1

    def dots(self, epoch: int) -> float:
        if self.last == self.first:
            return self.right / 2
        return (epoch - self.first) / (self.last - self.first) * self.right

    def labels(self, columns: int, onset: int | None) -> str:
        """Return the line of epochs below the chart: the ends, and the onset where it fits."""
        first, last = str(self.first), str(self.last)
        if self.first == self.last:
            return tint(first.center(columns), MUTED)
        between = columns - len(first) - len(last)
        mark = f"TPT {onset}"
        room = between - 2 - len(mark)
        if onset is None or room < 0 or not self.first <= onset <= self.last:
            return tint(first + " " * between + last, MUTED)
        wanted = int(self.dots(onset)) // _DOTS_X - len(mark) // 2 - len(first)
        left = min(max(1, wanted), 1 + room)
        right = between - left - len(mark)
        return (
            tint(first + " " * left, MUTED) + tint(mark, ACCENT) + tint(" " * right + last, MUTED)
        )


def _draw(canvas: Canvas, curve: Curve, across: _Columns, heights: _Heights) -> None:
    fg, dash = SERIES[curve.style % len(SERIES)], DASHES[curve.style % len(DASHES)]
    before: tuple[float, float] | None = None
    for epoch, value in curve.points:
        if not math.isfinite(value):
            before = None  # a gap is never bridged
            continue
        here = across.dots(epoch), heights.dots(value)
        if before is None:
            canvas.point(*here, color=fg)
        else:
            _line(canvas, before, here, dash, fg)
        before = here


def _line(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], dash: str, fg: int
) -> None:
    """Draw a line column by column, so that its dashes do not depend on where points lie."""
    steps = max(1, round(end[0]) - round(start[0]))
    rise = (end[1] - start[1]) / steps
    run = (end[0] - start[0]) / steps
    for i in range(steps):
        x, y = start[0] + i * run, start[1] + i * rise
        if dash[round(x) % len(dash)] == "1":
            canvas.line(x, y, x + run, y + rise, color=fg)
