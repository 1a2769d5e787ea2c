"""The zoo as text in the terminal, as a CSV file and as a Markdown page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from ncmonitor.recipes.zoo.predictions import Theory
from ncmonitor.recipes.zoo.zoo_measurement import WHERE, Result, Trained, Verdict

CSV_FILE: Final = "zoo.csv"
PAGE_FILE: Final = "zoo.md"
PICTURE_FILE: Final = "zoo.png"
WIDTH: Final = 100
#: For the reader of any of the forms.
LEGEND: Final = (
    "Errors are mean squared moves over twice the total variance: 0 invariant, 1 as far as two "
    "samples are from each other; of the inner map, from what the group should make of it. "
    "On 128 held-out samples in float64, before → after training. 'exactly 0' agrees up to "
    "2e-16, 'nearly 0' above it and below the network without the construction (the inner map: "
    "below 1), 'free' anywhere above it."
)
_WORDS: Final = {True: "yes", False: "NO", None: "?"}
_TITLES: Final = {"features": "features", "logits": "logits", "inner": "inner map"}
_HEAD: Final = ("group", "theory", "features", "logits", "ok", "inner map", "", "ok")
_WIDTHS: Final = (18, 9, 14, 14, 3, 9, 14, 3)


def number(value: float) -> str:
    """Write an error in about five characters: two digits of what counts, one of what is small."""
    if value == 0 or 100 <= value < 1e5:
        return f"{value:.0f}"
    if 0.01 <= value < 100:
        return f"{value:.2g}"
    return f"{value:.3f}" if 0.001 <= value < 0.01 else f"{value:.0e}"


# -- in the terminal -------------------------------------------------------------------------------


def heading() -> str:
    """Return the explanation and the heads of the columns."""
    return "\n".join(
        [*textwrap.wrap(LEGEND, WIDTH), "", _row(_HEAD), _row(["-" * w for w in _WIDTHS])]
    )


def block(results: Sequence[Result], told: Sequence[Mapping[str, Verdict]]) -> str:
    """Lay out one network: a line of its own, then a line for each group."""
    entry, trained = results[0].entry, results[0].trained
    lines = [f"{entry.name}: {entry.what}", f"  {_learned(trained)}"]
    lines += [_row(_cells(result, own)) for result, own in zip(results, told, strict=True)]
    return "\n".join(lines)


def closing(results: Sequence[Result], told: Sequence[Mapping[str, Verdict]]) -> list[str]:
    """Count what agrees, and name what does not or cannot be told."""
    counts = []
    for theory in Theory:
        verdicts = [verdict for own in told for verdict in own.values() if verdict.theory is theory]
        agreed = [agreed for v in verdicts for agreed in (v.before, v.after)]
        if agreed:
            counts.append(f"{agreed.count(True)} of {len(agreed)} numbers {theory}")
    return [f"As theory says: {', '.join(counts)}.", *exceptions(results, told)]


def exceptions(results: Sequence[Result], told: Sequence[Mapping[str, Verdict]]) -> Iterator[str]:
    """Yield a sentence for each number that does not agree, or of which it cannot be told."""
    for result, own in zip(results, told, strict=True):
        for where, verdict in own.items():
            who = f"{result.entry.name}, {result.claim.group.name}, {_TITLES[where]}"
            for when, errors in (("before", result.before), ("after", result.after)):
                agreed = getattr(verdict, when)
                if agreed is False:
                    what = f"{number(errors[where])} {when} training is not {verdict.theory}"
                    yield f"{who}: {what}{_bound(result, where)}"
                elif agreed is None:
                    missing = f"; needs {result.claim.below}" if result.claim.below else ""
                    yield f"{who}: {number(errors[where])} {when} training cannot be told{missing}"


def _bound(result: Result, where: str) -> str:
    if result.claim.of(where) is not Theory.SMALL:
        return ""
    return f", for it is not below {'1' if where == 'inner' else result.claim.below}"


def _learned(trained: Trained) -> str:
    epochs = f"{trained.epochs} epoch{'s' * (trained.epochs != 1)}"
    return (
        f"{epochs} in {trained.seconds:.0f} s; right on {trained.train_accuracy:.1%} of the "
        f"training set, {trained.test_accuracy:.1%} of the test set"
    )


def _cells(result: Result, told: Mapping[str, Verdict]) -> list[str]:
    pairs = [_pair(result, where) for where in WHERE]
    outer = _together([told[where] for where in ("features", "logits")])
    cells = [result.claim.group.name, str(result.claim.output), *pairs[:2], outer]
    if "inner" in told:
        cells += [str(told["inner"].theory), pairs[2], _together([told["inner"]])]
    return cells


def _pair(result: Result, where: str) -> str:
    if where not in result.before:
        return ""
    return f"{number(result.before[where])} → {number(result.after[where])}"


def _together(told: Sequence[Verdict]) -> str:
    every = [agreed for verdict in told for agreed in (verdict.before, verdict.after)]
    return _WORDS[False if False in every else None if None in every else True]


def _row(cells: Sequence[str]) -> str:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=False))
    return ("  " + " ".join(padded)).rstrip()


# -- in files --------------------------------------------------------------------------------------


def frame(
    results: Sequence[Result], told: Sequence[Mapping[str, Verdict]], seed: int
) -> pd.DataFrame:
    """Return a row for each network, group and measured thing."""
    rows: list[dict[str, Any]] = [
        {
            "seed": seed,
            "network": result.entry.name,
            "group": result.claim.group.name,
            "of": where,
            "theory": str(verdict.theory),
            "before": result.before[where],
            "after": result.after[where],
            "agrees_before": _WORDS[verdict.before].lower(),
            "agrees_after": _WORDS[verdict.after].lower(),
            "train_accuracy": result.trained.train_accuracy,
            "test_accuracy": result.trained.test_accuracy,
            "epochs": result.trained.epochs,
        }
        for result, own in zip(results, told, strict=True)
        for where, verdict in own.items()
    ]
    return pd.DataFrame(rows)


def page(
    results: Sequence[Result],
    told: Sequence[Mapping[str, Verdict]],
    facts: Sequence[str],
) -> str:
    """Write the page: what was run, the picture, the table.

    Args:
        results: Of all networks.
        told: Their verdicts.
        facts: Sentences about the run.
    """
    heads = ["network", "test", "group", "theory", "features", "logits", "ok"]
    heads += ["inner map: theory", "inner map", "ok"]
    lines = ["# Symmetry zoo", "", *(f"{fact}  " for fact in facts), ""]
    lines += [f"![Errors before and after training]({PICTURE_FILE})", "", LEGEND, ""]
    lines += [_bar(heads), "|---" * len(heads) + "|"]
    for result, own in zip(results, told, strict=True):
        who = [f"`{result.entry.name}`", f"{result.trained.test_accuracy:.1%}"]
        cells = _cells(result, own)
        lines.append(_bar([*who, *cells, *[""] * (len(heads) - len(who) - len(cells))]))
    lines += ["", *closing(results, told), "", "| network | what it is |", "|---|---|"]
    known = {result.entry.name: result.entry.what for result in results}
    lines += [_bar([f"`{name}`", what]) for name, what in known.items()]
    return "\n".join(lines) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
