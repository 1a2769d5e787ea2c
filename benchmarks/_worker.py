"""One fresh process of ``benchmarks.numbers``: times one problem, or weighs one call.

    python -m benchmarks._worker time N,d,K [--seconds 60] [--rounds 15]
    python -m benchmarks._worker memory N,d,K --of measure

The last line of stdout is JSON; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import OthersClock
from benchmarks._problem import Problem, Size, unavoidable_products
from benchmarks._stages import StageClock
from benchmarks._textbook import textbook, why_skipped
from ncmonitor import measure_collapse

#: Rounds that even a slow problem gets: the first one warms up.
_MIN_ROUNDS = 2
_TINY = Size(64, 8, 3)


def measure(problem: Problem) -> None:
    """Measure with every default metric."""
    measure_collapse(
        problem.features,
        problem.labels,
        problem.weight,
        problem.bias,
        num_classes=problem.size.classes,
    )


_CALLS: dict[str, Callable[[Problem], object]] = {"measure": measure, "textbook": textbook}


def seconds_of(call: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def prime() -> None:
    """Start torch's and BLAS's threads and load what they load late, with tiny problems."""
    tiny = Problem.build(_TINY)
    for call in _CALLS.values():
        call(tiny)
    for dtype in (torch.float32, torch.float64):
        square = torch.ones(512, 512, dtype=dtype)
        _ = square @ square


# -- time --------------------------------------------------------------------------------------


class Race:
    """Contenders that take turns on one problem, so that a change of speed hits all of them.

    Args:
        problem: What they run on.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.best: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.missing: list[str] = []
        self.skipped: str | None = None
        self._textbook_seconds = 0.0
        self._products = unavoidable_products(problem)

    def round(self, seconds: float) -> None:
        """Let each run once; the textbook only until it has taken ``seconds`` in all."""
        features = self.problem.features
        self._note("gram", seconds_of(lambda: features.T @ features))
        self._measure()
        self._note("products", seconds_of(self._products))
        self.skipped = self.skipped or why_skipped(self.problem.size, self._flops())
        if self.skipped is None and self._textbook_seconds <= seconds:
            took = seconds_of(lambda: textbook(self.problem))
            self._textbook_seconds += took
            self._note("textbook", took)

    def _measure(self) -> None:
        with StageClock() as clock:
            took = seconds_of(lambda: measure(self.problem))
        if took < self.best.get("measure", float("inf")):
            self.shares, self.missing = clock.shares(took), clock.missing
        self._note("measure", took)

    def _flops(self) -> float:
        samples, dim, _ = self.problem.size
        return 2 * samples * dim**2 / self.best["gram"]

    def _note(self, name: str, took: float) -> None:
        self.best[name] = min(took, self.best.get(name, float("inf")))
        say(f"{self.problem.size}: {name} {took:.3g} s")


def time_problem(size: Size, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the best seconds of every contender and the stages of the best measurement."""
    prime()
    race = Race(Problem.build(size))
    others, started, done = OthersClock(), time.perf_counter(), 0
    while done < rounds and (done < _MIN_ROUNDS or time.perf_counter() - started < seconds):
        race.round(seconds)
        done += 1
    return {
        "seconds": race.best,
        "shares": race.shares,
        "missing": race.missing,
        "skipped": race.skipped,
        "rounds": done,
        "others": others.share(),
    }


# -- memory ------------------------------------------------------------------------------------


def resident() -> tuple[int, int] | None:
    """Return resident bytes of this process, now and at their highest; ``None`` without /proc.

    Not ``ru_maxrss``: that a process inherits from the one that started it.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        now, highest = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, highest
    return None


def weigh(size: Size, of: str) -> dict[str, Any]:
    """Return the bytes that a call needs at its peak beyond those resident just before it.

    ``extra`` is the kernel's own high-water mark, so no peak is missed between two samples. If
    building the problem had already gone higher, the mark did not move and ``extra`` is only an
    upper bound; ``slack`` says how far above the start the mark stood.
    """
    prime()
    problem = Problem.build(size)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # free heap would hide what the call takes from it
    before = resident()
    _CALLS[of](problem)
    after = resident()
    if before is None or after is None:
        return {"extra": None, "slack": None}
    return {"extra": after[1] - before[0], "slack": before[1] - before[0]}


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Do one job and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["time", "memory"])
    parser.add_argument("size", type=Size.parse)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--of", choices=sorted(_CALLS), default="measure")
    options = parser.parse_args()
    if options.job == "time":
        result = time_problem(options.size, options.seconds, options.rounds)
    else:
        result = weigh(options.size, options.of)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
