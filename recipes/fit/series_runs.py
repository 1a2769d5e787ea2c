"""The runs of one command: seeds, ways or both; which have finished, and what they say together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.words import shown
from ncmonitor.recipes.fit.resume import is_finished
from ncmonitor.recipes.fit.side_by_side import numbers
from ncmonitor.redact import reason_of


@dataclass(frozen=True)
class Member:
    """One of several runs.

    Attributes:
        way: Its variant of the recipe; ``None`` if that has no ways.
        seed: It is trained with.
        name: Of its folder.
        options: All that it is trained with.
    """

    way: str | None
    seed: int
    name: str
    options: dict[str, Any] = field(compare=False, repr=False)

    @property
    def words(self) -> list[str]:
        """What its command has beside the words for all."""
        way = [] if self.way is None else ["--way", self.way]
        return [*way, "--seed_everything", str(self.seed)]

    @property
    def kind(self) -> str:
        """What its number among the others counts."""
        return "seed" if self.name == f"seed{self.seed}" else "run"

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return f"seed {self.seed}" if self.kind == "seed" else self.name


def members_of(options: Mapping[str | None, dict[str, Any]], count: int | None) -> list[Member]:
    """Return the runs of a command, way by way.

    Args:
        options: Of each way; under ``None`` if there are no ways.
        count: Of the seeds; ``None``: the one that the options name.
    """
    members = []
    for way, own in options.items():
        first: int = own["seed_everything"]
        for seed in range(first, first + (count or 1)):
            # A single way has the command to itself, and a single seed the way.
            parts = [*([way] if way and len(options) > 1 else []), f"seed{seed}"]
            name = "-".join(parts[:1] if count is None else parts)
            members.append(Member(way, seed, name, own))
    return members


class RunSeries:
    """The runs of one command in their folder, and how each of them ended.

    Args:
        folder: Holds a folder for each.
        members: The runs, in the order of training.
    """

    def __init__(self, folder: Path, members: Sequence[Member]) -> None:
        self.folder, self.members = folder, members
        self.failed: set[Member] = set()
        self.stopped = False

    def folder_of(self, member: Member) -> Path:
        return self.folder / member.name

    def is_finished(self, member: Member) -> bool:
        return is_finished(self.folder_of(member), member.options)

    def compared(self) -> list[Member]:
        """Return the runs that finished; if none did, those that were interrupted."""
        there = [m for m in self.members if (self.folder_of(m) / HISTORY_FILE).is_file()]
        rest = [member for member in there if member not in self.failed]
        finished = [member for member in rest if self.is_finished(member)]
        return finished or [member for member in rest if _is_readable(self.folder_of(member))]


def closing_lines(series: RunSeries) -> list[str]:
    """Compare the runs, and say how they ended and where everything is."""
    compared = series.compared()
    lines = _numbers(series, compared) if compared else ["No run has left a measurement."]
    failed = [member for member in series.members if member in series.failed]
    if failed:
        lines.append(f"Failed: {', '.join(member.title for member in failed)}.")
    rest = [m for m in series.members if m not in series.failed and not series.is_finished(m)]
    if rest:
        left = ", ".join(member.title for member in rest)
        lines.append(f"Not finished: {left}; the same command with --resume goes on.")
    report = _compare(series, compared) if compared else None
    if report is not None:
        lines += ["", f"  report      open {shown(report)} in a browser"]
    there = [m.name for m in series.members if series.folder_of(m).is_dir()]
    return [*lines, f"  runs        {', '.join(there)} in {shown(series.folder)}"]


def _compare(series: RunSeries, members: Sequence[Member]) -> Path | None:
    from ncmonitor.reports.comparison import write_comparison

    try:
        folders = [series.folder_of(member) for member in members]
        return write_comparison(folders, series.folder / "report.html", _title(series, members))
    except Exception as error:
        # The runs are on disk and must not be lost behind a picture that could not be drawn.
        warnings.warn(f"no comparison: {reason_of(error)}", stacklevel=2)
        return None


def _title(series: RunSeries, members: Sequence[Member]) -> str | None:
    ways = list(dict.fromkeys(m.way for m in members if m.way is not None))
    seeds = len({member.seed for member in members})
    parts = [", ".join(ways)] if ways else []
    parts += [f"{seeds} seeds"] if seeds > 1 else []
    return f"{series.folder.parent.name}, {'; '.join(parts)}" if len(members) > 1 else None


def _numbers(series: RunSeries, members: Sequence[Member]) -> list[str]:
    columns: dict[str, list[Path]] = {}
    for member in members:
        columns.setdefault(member.way or "", []).append(series.folder_of(member))
    seeds = list(dict.fromkeys(str(member.seed) for member in members))
    which = f"seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}"
    how = ", mean ± standard deviation" if len(seeds) > 1 else ""
    epoch, lines = numbers(columns)
    return [f"After {epoch} epochs, {which}{how}:", *lines]


def _is_readable(folder: Path) -> bool:
    try:
        read_history(folder)
    except InputError:
        return False
    return True
