"""Groups of runs against what their recipes expect of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ncmonitor.reports.comparison.run_groups import RunGroup
from ncmonitor.reports.comparison.sentences import names
from ncmonitor.reports.expect import read_expectation
from ncmonitor.reports.expected import Finding, findings
from ncmonitor.reports.verdict import number


def expected_table(
    groups: Sequence[RunGroup],
) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """Hold every run against its recipe's expectation, and gather the verdicts by group.

    Args:
        groups: What is compared.

    Returns:
        Lines, each with the number of its group, and what cannot be judged.
    """
    lines, doubts = [], []
    for i, group in enumerate(groups):
        told: dict[tuple[str, str, int], list[tuple[str, Finding]]] = {}
        for run in group.runs:
            expectation, said = read_expectation(run.folder)
            doubts += [f"{run.name}: {doubt}" for doubt in said]
            if expectation is None:
                continue
            for found in findings(run.history, run.facts, expectation):
                if found.bounds:
                    key = (found.bounds.key, str(found.bounds), expectation.epoch)
                    told.setdefault(key, []).append((run.name, found))
        lines += [(i, _line(key, of_runs)) for key, of_runs in told.items()]
    return lines, doubts


def _line(key: tuple[str, str, int], of_runs: Sequence[tuple[str, Finding]]) -> dict[str, Any]:
    values = sorted(f.value for _, f in of_runs if math.isfinite(f.value))
    ends = list(dict.fromkeys(number(value) for value in (values[:1] + values[-1:])))
    counts = Counter(found.words for _, found in of_runs)
    verdicts = []
    for words, count in counts.items():
        who = names([name for name, found in of_runs if found.words == words])
        share = f"all {count}" if count == len(of_runs) else f"{count} of {len(of_runs)}: {who}"
        bad = any(found.trouble for _, found in of_runs if found.words == words)
        verdicts.append((words if len(of_runs) == 1 else f"{words} ({share})", bad))
    return {
        "quantity": of_runs[0][1].bounds.quantity,
        "key": key[0],
        "bounds": key[1],
        "epoch": key[2],
        "measured": " to ".join(ends) or "–",
        "verdicts": verdicts,
    }
