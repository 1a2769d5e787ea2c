"""Runs gathered into groups that differ by the seed alone, and what sets the groups apart."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ncmonitor.reports.comparison.runs import RunFolder
from ncmonitor.reports.verdict import section

_SEED_WORD: Final = re.compile(r"-{0,2}(\w+[._-])?seed(_everything)?(=.*)?")
_FREE_WORD: Final = re.compile(r"--(trainer\.default_root_dir|resume)(=.*)?")
_STAMP: Final = re.compile(r"^\d{8}-\d{6}|[-_]?seeds?\d+(-\d+)?$")


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that differ by the seed alone.

    Attributes:
        label: What it is called: the recipe, and the options that set it apart.
        runs: Its runs, by seed.
        certain: Whether saved options say that they differ by the seed alone; without those only
            the same command does.
    """

    label: str
    runs: tuple[RunFolder, ...]
    certain: bool


def group_runs(runs: Sequence[RunFolder]) -> list[RunGroup]:
    """Gather runs that differ by the seed alone, in the order in which they come.

    Runs with ``config.yaml`` belong together when all options are equal except the seed, folders
    and loggers. Without it the command must be the same apart from the seed, and the classifier,
    the class count and the planned epochs too. Anything else is a group of its own.
    """
    gathered: dict[str, list[RunFolder]] = {}
    for run in runs:
        gathered.setdefault(_key(run), []).append(run)
    groups = [sorted(group, key=_by_seed) for group in gathered.values()]
    labels = _labels(groups)
    return [
        RunGroup(label, tuple(group), len(group) == 1 or group[0].options is not None)
        for label, group in zip(labels, groups, strict=True)
    ]


def _by_seed(run: RunFolder) -> tuple[bool, int]:
    return run.seed is None, run.seed or 0


def _key(run: RunFolder) -> str:
    if run.options is not None:
        return json.dumps(run.options, sort_keys=True)
    words = command_words(run)
    # A notebook's command names its kernel, whatever was trained in it.
    if not words or "ipykernel" in words[0]:
        return str(run.folder.resolve())
    how = section(run.facts, "measurement")
    same = [how.get(name) for name in ("classifier", "num_classes", "feature_dim")]
    return json.dumps([words, same, run.facts.get("max_epochs")], default=str)


def command_words(run: RunFolder) -> list[str]:
    """Return the command of a run in words, without the seed and the folder."""
    try:
        words = shlex.split(str(run.facts.get("command") or ""))
    except ValueError:  # a quote that is never closed
        return []
    kept, value = [], False
    for word in words:
        free = _SEED_WORD.fullmatch(word) or _FREE_WORD.fullmatch(word)
        if not free and not (value and not word.startswith("--")):
            kept.append(word)
        value = bool(free) and word.startswith("-") and "=" not in word and word != "--resume"
    return kept


def _labels(groups: Sequence[Sequence[RunFolder]]) -> list[str]:
    bases = [_base(group[0]) for group in groups]
    labels = []
    for group, base in zip(groups, bases, strict=True):
        twins = [g for g, other in zip(groups, bases, strict=True) if other == base]
        known = [twin for twin in twins if twin[0].options is not None]
        if group[0].options is None and known:  # nothing saved: every option would differ
            labels.append(f"{base} · no config.yaml")
            continue
        apart = [name for name, _ in differences(known)]
        apart = ["way"] if "way" in apart else apart  # the name of what differs
        options = group[0].options or {}
        said = [f"{name.rpartition('.')[2]} {options[name]}" for name in apart if name in options]
        more = ", …" if len(said) > 3 else ""
        labels.append(" · ".join([base, ", ".join(said[:3]) + more]) if said else base)
    return [
        label if labels.count(label) == 1 else f"{label} · {group[0].name}"
        for label, group in zip(labels, groups, strict=True)
    ]


def _base(run: RunFolder) -> str:
    words = command_words(run)
    if words[1:2] == ["fit"] and len(words) > 2 and not words[2].startswith("-"):
        return words[2]  # ncmonitor fit NAME
    for part in reversed(run.folder.resolve().parts):
        name = _STAMP.sub("", _STAMP.sub("", part)).strip("-_")
        if name:
            return name
    return run.name


def differences(groups: Sequence[Sequence[RunFolder]]) -> list[tuple[str, list[str]]]:
    """Return the options in which groups differ, each with its value per group, ``–`` without."""
    known = [group[0].options or {} for group in groups]
    names = dict.fromkeys(name for options in known for name in options)
    rows = [(name, [options.get(name, "–") for options in known]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]
