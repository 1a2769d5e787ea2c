"""Print how far every metric is from the naive twin: ``python tests/support/accuracy.py``.

Two tables, the worst relative error of each metric and where: over the precision sweep (spread 1e-1
to 1e-6 of the class signal, common offset 0, 1 and 1e3 times it, K = 2, 10, 100; float32) and over
all hard cases.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from agreement import ABSOLUTE, ABSOLUTE_ELSEWHERE, DECISIONS, fast, naive
from cases import CASES, Case, sweep


def worst(cases: Iterable[Case]) -> dict[str, tuple[float, str]]:
    """Return (relative error, case) by metric; differences within the absolute tolerance are 0."""
    found: dict[str, tuple[float, str]] = {}
    for number, case in enumerate(cases, 1):
        print(f"\r{number:>4} {case.name:<40}", end="", file=sys.stderr, flush=True)
        got, want = fast(case, metrics="all"), naive(case, metrics="all")
        for name in set(want) - DECISIONS:
            error = _error(got[name], want[name], ABSOLUTE.get(name, ABSOLUTE_ELSEWHERE))
            if error >= found.get(name, (-1.0, ""))[0]:
                found[name] = (error, case.name)
    print(file=sys.stderr)
    return found


def _error(got: float, want: float, floor: float) -> float:
    if math.isnan(want) or abs(got - want) <= floor or got == want:
        return 0.0
    return abs(got - want) / abs(want) if want else math.inf


def show(title: str, found: dict[str, tuple[float, str]]) -> None:
    """Print a table, the largest error first; errors below 1e-9 in one line."""
    print(f"\n{title}")
    large = {name: entry for name, entry in found.items() if entry[0] >= 1e-9}
    for name, (error, case) in sorted(large.items(), key=lambda item: -item[1][0]):
        print(f"  {name:<27} {error:8.1e}  {case}")
    rest = [error for name, (error, _) in found.items() if name not in large]
    print(f"  {len(rest)} others: at most {max(rest, default=0.0):.1e}")


if __name__ == "__main__":
    show("precision sweep, 54 clouds in float32", worst(sweep()))
    show("hard cases, float32 and float64", worst(CASES))
