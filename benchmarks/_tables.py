"""Tables of ``benchmarks.numbers``: aligned on a terminal, and Markdown all the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks._problem import Size
from benchmarks._stages import OTHER, STAGES

MIB: Final = 2**20
ABSENT: Final = "-"

#: (ratio, size) -> what it may be at most.
BUDGETS: Final[dict[tuple[str, Size], float]] = {
    ("gram", Size(50000, 512, 10)): 0.75,
    ("gram", Size(50000, 512, 100)): 1.25,
    ("products", Size(100000, 768, 1000)): 1.5,
    ("products", Size(20000, 2048, 1000)): 1.5,
    ("extra", Size(100000, 768, 50257)): 1e9 / MIB,  # 1000 MB
}


@dataclass
class Row:
    """What was found for one size.

    Attributes:
        size: N, d and K.
        seconds: Best seconds of ``measure``, ``gram``, ``products`` and ``textbook``.
        shares: Stage to share of the best measurement.
        extra: Peak extra bytes of ``measure`` and ``textbook``.
        rounds: How often each ran; the textbook perhaps less often.
        others: Share of the processors that other processes kept busy meanwhile.
        notes: What the reader has to know, such as why a number is absent.
    """

    size: Size
    seconds: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    others: float | None = None
    notes: list[str] = field(default_factory=list)

    def ratio(self, over: str, under: str) -> float | None:
        """Return the ratio of two times, ``None`` if one is absent."""
        if over in self.seconds and under in self.seconds:
            return self.seconds[over] / self.seconds[under]
        return None

    def mebibytes(self, of: str) -> float | None:
        """Return the peak extra memory of a call in MiB."""
        return self.extra[of] / MIB if of in self.extra else None

    def against_budget(self, name: str, value: float | None, digits: str) -> str:
        """Show a value, with its budget where there is one."""
        budget = BUDGETS.get((name, self.size))
        shown = _shown(value, digits)
        if budget is None:
            return shown
        missed = "" if value is None or value <= budget else " MISSED"
        return f"{shown} (≤ {budget:{digits}}){missed}"


def ratio_table(rows: Sequence[Row]) -> str:
    """Return the table of ratios and memory, with the budgets."""
    head = ["N", "d", "K", "measure / HᵀH", "measure / products", "textbook / measure"]
    head += ["peak extra MiB", "textbook's MiB", "floor MiB"]
    return _table(head, (_ratio_cells(row) for row in rows))


def _ratio_cells(row: Row) -> list[str]:
    return [
        *map(str, row.size),
        row.against_budget("gram", row.ratio("measure", "gram"), ".2f"),
        row.against_budget("products", row.ratio("measure", "products"), ".2f"),
        _shown(row.ratio("textbook", "measure"), ".2f"),
        row.against_budget("extra", row.mebibytes("measure"), ".0f"),
        _shown(row.mebibytes("textbook"), ".0f"),
        _shown(row.size.classes * row.size.dim * 8 / MIB, ".1f"),
    ]


def seconds_table(rows: Sequence[Row]) -> str:
    """Return the table of seconds, best of the rounds."""
    names = ("measure", "gram", "products", "textbook")
    head = ["N", "d", "K", "measure", "HᵀH", "products", "textbook", "rounds", "others"]
    cells = (
        [
            *map(str, row.size),
            *(_shown(row.seconds.get(name), ".4g") for name in names),
            str(row.rounds or ABSENT),
            _shown(row.others, ".0%"),
        ]
        for row in rows
    )
    return _table(head, cells)


def stage_table(rows: Sequence[Row]) -> str:
    """Return the table of stages, in percent of the best measurement."""
    stages = [*STAGES, OTHER]
    cells = (
        [*map(str, row.size), *(_shown(row.shares.get(stage), ".0%") for stage in stages)]
        for row in rows
    )
    return _table(["N", "d", "K", *stages], cells)


def _shown(value: float | None, digits: str) -> str:
    return ABSENT if value is None else format(value, digits)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.rjust, line, widths)) + " |"  # aligned for the terminal too
        for line in lines
    )
