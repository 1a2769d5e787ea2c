"""What a comparison of runs says in plain words: who is compared, and what limits the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ncmonitor.monitor.history_queries import split_names, split_rows
from ncmonitor.reports.comparison.aggregate import span
from ncmonitor.reports.verdict import cautions, section

if TYPE_CHECKING:
    from ncmonitor.reports.comparison.run_groups import RunGroup
    from ncmonitor.reports.comparison.runs import RunFolder

#: More names than this are counted, not listed.
_FEW: Final = 6


def headline(groups: Sequence[RunGroup]) -> str:
    """Say in two sentences what is compared, and in how many runs the terminal phase began."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        what = f"One run: {groups[0].label}."
    elif len(groups) == 1:
        how = "the seed alone" if groups[0].certain else "the seed, as far as their commands tell"
        what = f"{len(runs)} runs of {groups[0].label} that differ by {how}."
    elif len(groups) == len(runs):
        what = f"{len(runs)} runs, each with settings of its own."
    else:
        sizes = span([len(group.runs) for group in groups])
        what = (
            f"{len(runs)} runs in {len(groups)} groups of {sizes}; within a group only the seed "
            "differs."
        )
    return f"{what} {onset(runs)}"


def onset(runs: Sequence[RunFolder]) -> str:
    """Say in how many runs, and when, the training error reached 0."""
    reached = [run.onset for run in runs if run.onset is not None]
    known = [run for run in runs if len(split_rows(run.history, "train"))]
    if not known:
        return "The training set was not measured."
    if not reached:
        none = "The terminal phase was not reached" if len(runs) == 1 else "None reached"
        return f"{none}." if len(runs) == 1 else f"{none} a training error of 0."
    every = "both" if len(runs) == 2 else f"all {len(runs)}"
    share = every if len(reached) == len(runs) else f"{len(reached)} of {len(runs)}"
    who = "" if len(runs) == 1 else f" in {share} runs"
    when = "at epoch" if min(reached) == max(reached) else "at epochs"
    return f"Training error reached 0{who}, {when} {span(reached)}."


def all_cautions(
    groups: Sequence[RunGroup], last: Sequence[Mapping[str, int]], left_out: Sequence[str]
) -> list[str]:
    """List what a reader should know: about the comparison, then about single runs.

    Args:
        groups: What is compared.
        last: For each group the last epoch that its runs share, by split.
        left_out: Names of runs without a measured epoch.
    """
    said = [f"{name} has no measured epoch yet and is left out." for name in left_out]
    told: dict[str, list[str]] = {}
    for group, epochs in zip(groups, last, strict=True):
        for caution in _about_group(group, epochs):
            told.setdefault(caution, []).append(group.label)
    said += _with_names(told, len(groups), "All groups") + _about_sizes(groups)
    told = {}
    for run in (run for group in groups for run in group.runs):
        damage = run.history.attrs.get("cautions", ())
        for caution in (*damage, *cautions(run.history, run.facts)):
            told.setdefault(caution, []).append(run.name)
    return said + _with_names(told, sum(len(group.runs) for group in groups), "All runs")


def _about_group(group: RunGroup, last: Mapping[str, int]) -> list[str]:
    said = []
    seeds = Counter(run.seed for run in group.runs if run.seed is not None)
    for seed, times in seeds.items():
        if times > 1:
            said.append(
                f"seed {seed} was run {times} times. Equal seeds are not independent runs, and "
                "the sd is too small."
            )
    if not group.certain:
        said.append(
            "no config.yaml, so these runs are taken together because their commands are equal "
            "apart from the seed."
        )
    if len(group.runs) > 1:
        splits = dict.fromkeys(s for run in group.runs for s in split_names(run.history))
        told: dict[str, list[str]] = {}
        for split in splits:
            for caution in _about_epochs(group, split, last.get(split)):
                told.setdefault(caution, []).append(split)
        said += [f"on {' and '.join(where)} {caution}" for caution, where in told.items()]
    return said


def _about_epochs(group: RunGroup, split: str, last: int | None) -> list[str]:
    epochs = {run.name: set(split_rows(run.history, split)["epoch"]) for run in group.runs}
    said = []
    if missing := [name for name, measured in epochs.items() if not measured]:
        said.append(f"nothing was measured by {names(missing)}, so n is smaller there.")
    epochs = {name: measured for name, measured in epochs.items() if measured}
    if last is None:
        return [*said, "the runs have no measured epoch in common, so there is no mean."]
    if any(max(measured) > last for measured in epochs.values()):
        ends = names([f"{name} {max(measured)}" for name, measured in epochs.items()])
        said.append(
            f"the runs end at different epochs ({ends}); their numbers are those of epoch {last}, "
            "the last that all measured."
        )
    elif len(set(map(frozenset, epochs.values()))) > 1:
        said.append("different epochs were measured; means are over the shared ones.")
    return said


def _about_sizes(groups: Sequence[RunGroup]) -> list[str]:
    said = []
    for key, noun in (("num_classes", "class counts"), ("feature_dim", "feature dimensions")):
        sizes = {section(r.facts, "measurement").get(key) for g in groups for r in g.runs} - {None}
        if len(sizes) > 1:
            shown = ", ".join(sorted(map(str, sizes), key=lambda size: (len(size), size)))
            said.append(
                f"The runs have different {noun} ({shown}): levels of NC1 and NC2 depend on it, "
                "and only their course can be compared."
            )
    return said


def _with_names(told: Mapping[str, Sequence[str]], count: int, everyone: str) -> list[str]:
    """Put before each caution of whom it is true; with one of a kind that goes without saying."""
    if count == 1:
        return [caution[0].upper() + caution[1:] for caution in told]
    return [
        f"{everyone if len(who) == count else names(who)}: {caution}"
        for caution, who in told.items()
    ]


def names(runs: Sequence[str]) -> str:
    """List the names of runs, or count those that would make the list long."""
    shown = ", ".join(runs[:_FEW])
    return shown if len(runs) <= _FEW else f"{shown} and {len(runs) - _FEW} more"
