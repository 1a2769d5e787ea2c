"""Time and memory of ``measure_collapse``, as ratios to what it cannot avoid and to the textbook.

    python -m benchmarks.numbers [--quick] [--only N,d,K ...] [--seconds 60] [--write]

Each size gets three fresh processes: one times everything in turn, so that a change of the
machine's speed hits all of it; two find the peak memory of the measurement and of the textbook.
Best of the rounds. The whole takes some tens of minutes, most of it for the 50257 classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._machine import machine
from benchmarks._problem import Size
from benchmarks._tables import MIB, Row, ratio_table, seconds_table, stage_table
from benchmarks._worker import say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
SIZES = (
    Size(50000, 512, 10),
    Size(50000, 512, 100),
    Size(100000, 768, 1000),
    Size(20000, 2048, 1000),
    Size(100000, 768, 50257),
)
QUICK_SIZES = (Size(2000, 32, 10), Size(1500, 16, 300))

LEGEND = f"""\
measure: `measure_collapse`, default metrics, float32 features (class means plus noise 0.3).
HᵀH: one float32 product of the same features. Products: float32 logits N x d x K, projection
N x d x r and distances N x r x K, r = min(K − 1, d), by blocks of rows.
Textbook: float64, covariances and cosines whole, `pinv`, `cdist` (`benchmarks/_textbook.py`).
Peak extra memory: highest resident memory during the call minus that just before it, in a fresh
process: features and classifier do not count. What the allocator keeps makes it vary by some tens
of MiB. Floor: K·d·8 bytes, the class means in float64.
Others: share of the processors that other processes took meanwhile; the times are worth little
where it is more than a few percent.
In brackets: budgets. 1 MiB is {MIB:,} bytes, and 1000 MB are {1e9 / MIB:.0f} MiB."""


class WorkerError(Exception):
    """A worker ended without a result."""


def work(job: str, size: Size, *options: str) -> dict[str, Any]:
    """Run one worker process and return its result.

    Raises:
        WorkerError: If it failed; what it said stands on stderr.
    """
    command = [sys.executable, "-m", "benchmarks._worker", job, str(size), *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        killed = f"was killed by signal {-done.returncode} (out of memory?)"
        failed = f"ended with {done.returncode}"
        raise WorkerError(f"{job} worker {killed if done.returncode < 0 else failed}")
    return json.loads(done.stdout.splitlines()[-1])


def fill(row: Row, seconds: float, rounds: int) -> None:
    """Find everything about one size; what fails is noted and left out."""
    try:
        _fill_times(row, seconds, rounds)
    except WorkerError as error:
        row.notes.append(f"no times: {error}")
    for call in ("measure", "textbook"):
        if call == "textbook" and call not in row.seconds:
            continue
        try:
            _fill_memory(row, call)
        except WorkerError as error:
            row.notes.append(f"no memory of {call}: {error}")


def _fill_times(row: Row, seconds: float, rounds: int) -> None:
    say(f"{row.size}: times")
    found = work("time", row.size, f"--seconds={seconds}", f"--rounds={rounds}")
    row.seconds, row.shares = found["seconds"], found["shares"]
    row.rounds, row.others = found["rounds"], found["others"]
    if found["skipped"] is not None:
        row.notes.append(f"no textbook: it {found['skipped']}")
    if found["missing"]:
        row.notes.append(
            f"no complete stages: ncmonitor has no {', '.join(found['missing'])}; if it was "
            "renamed, give the new name in STAGES in benchmarks/_stages.py"
        )


def _fill_memory(row: Row, call: str) -> None:
    say(f"{row.size}: memory of {call}")
    found = work("memory", row.size, f"--of={call}")
    if found["extra"] is None:
        row.notes.append("no memory: this system has no /proc/self/status")
        return
    row.extra[call] = found["extra"]
    if found["extra"] <= found["slack"]:
        row.notes.append(
            f"memory of {call} is an upper bound, at most {found['slack'] / MIB:.0f} MiB too high"
        )


def document(rows: list[Row], facts: list[str]) -> str:
    """Return all tables as Markdown, ratios first."""
    notes = [f"- {row.size}: {note}" for row in rows for note in row.notes]
    parts = [
        "# Time and memory of one measurement",
        "\n".join(f"- {fact}" for fact in facts),
        "## Ratios",
        ratio_table(rows),
        *(["\n".join(notes)] if notes else []),
        LEGEND,
        "## Seconds",
        seconds_table(rows),
        "## Stages, share of the best measurement",
        stage_table(rows),
        "Printed by `python -m benchmarks.numbers`.",
    ]
    return "\n\n".join(parts) + "\n"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, two rounds: does it run?"
    )
    parser.add_argument(
        "--only", type=Size.parse, action="append", metavar="N,d,K", help="this size; repeatable"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="rounds go on for so long")
    parser.add_argument("--rounds", type=int, default=15, help="but there are at most so many")
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.name} beside this file"
    )
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--quick says nothing about speed: it cannot be combined with --write")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    options = _options(arguments)
    facts = machine()  # before anything here loads the machine
    rows = [Row(size) for size in options.only or (QUICK_SIZES if options.quick else SIZES)]
    for row in rows:
        fill(row, options.seconds, 2 if options.quick else options.rounds)
    text = document(rows, facts)
    print(text, end="")
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
        say(f"written to {RESULTS.relative_to(ROOT)}")
    if not all(row.seconds for row in rows):
        sys.exit("some sizes could not be timed: see the notes below the ratios")


if __name__ == "__main__":
    main()
