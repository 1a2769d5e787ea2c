"""``ncmonitor watch``: a local run, running or finished, as live charts in the terminal."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ncmonitor.catalogue import CATALOGUE, MONITORED, hint_of, quantity_of
from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.provenance import read_run
from ncmonitor.monitor.words import shown
from ncmonitor.watch.followed_history import HistoryTail
from ncmonitor.watch.frame import DEFAULT, View, frame
from ncmonitor.watch.screen import Screen, is_terminal, size, write
from ncmonitor.watch.watched_run import Pace, find_run, leet_line


def main(words: Sequence[str]) -> int:
    """Run ``ncmonitor watch``.

    Args:
        words: After the command.

    Returns:
        0, also when the user leaves.

    Raises:
        InputError: If there is no run to watch, or it does not measure what was asked for.
    """
    given = _parser().parse_args(words)
    names = _names(given.metrics) if given.metrics is not None else list(DEFAULT)
    view = View(names, _words(given.split) if given.split is not None else ())
    if not math.isfinite(given.every) or given.every <= 0:
        raise InputError(f"--every must be a number of seconds above 0, got {given.every:g}")
    watched = _Watched(find_run(given.run_dir), view, strict=given.metrics is not None)
    if given.once or not is_terminal():
        watched.look()
    elif not _follow(watched, given.every):
        print(f"stopped watching; again: ncmonitor watch {shown(watched.folder)}")
        return 0
    ending = watched.ending()
    # On a screen the whole of it should be seen, above the next prompt.
    write(watched.lines(shorter=len(ending) + 1 if is_terminal() else 0))
    write(ending)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncmonitor watch",
        description="Follow a run in the terminal: error and NC1 to NC4 by epoch, the terminal "
        "phase (TPT), the latest values and the best. A finished run is drawn once.",
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        nargs="?",
        type=Path,
        help="folder with history.csv (default: the newest run below ./runs)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one frame and exit (default where standard output is not a terminal)",
    )
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between frames: %(default)g"
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help="quantities or groups with commas (default: error, cross_entropy and one number for "
        "each of NC1 to NC4)",
    )
    parser.add_argument(
        "--split",
        metavar="NAMES",
        help="splits with commas (default: train and the first other one)",
    )
    return parser


def _words(text: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise InputError("expected names with commas between them, got none")
    return words


def _names(text: str) -> list[str]:
    """Return the quantities that words stand for: themselves, or the default ones of a group."""
    names: dict[str, None] = {}
    groups = {q.group for q in CATALOGUE.values()} - {*MONITORED}
    for word in _words(text):
        if quantity_of(word) is not None:
            names[word] = None
        elif word in groups:
            members = [q for q in CATALOGUE.values() if q.group == word]
            names |= dict.fromkeys(q.name for q in members if q.default or q.group == "fit")
        else:
            hint = hint_of(word, [*groups, *CATALOGUE])
            raise InputError(f"--metrics: there is no quantity {word!r}{hint}")
    return list(names)


class _Watched:
    """A run that is looked at.

    Args:
        folder: Of the run.
        view: What to show.
        strict: Whether to refuse a quantity that the run does not measure.
    """

    def __init__(self, folder: Path, view: View, *, strict: bool) -> None:
        self.folder, self.view, self.strict = folder, view, strict
        self.tail = HistoryTail(folder, view.names)
        self.facts: dict[str, Any] = {}
        self.pace = Pace()

    def look(self) -> None:
        """Take in what the run has written."""
        # First whether it has ended: then all its rows are there.
        self.facts = read_run(self.folder)
        self.tail.read()
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is gone")
        if self.strict:
            self.tail.check_names(self.view.names)
        unknown = [split for split in self.view.splits if split not in self.tail.rows]
        if unknown and self.has_ended() and self.tail.rows:
            there = self.tail.splits()
            hint = nearest(unknown[0], self.tail.rows) or f"; it has: {', '.join(there)}"
            raise InputError(f"--split: the run has no split {unknown[0]!r}{hint}")
        if self.tail.rows:
            self.pace.observe(max(self.tail.epochs()), self.tail.changed)

    def has_ended(self) -> bool:
        """Tell whether the run has recorded its end."""
        return bool(self.facts.get("finished"))

    def lines(self, *, shorter: int = 0, footer: str = "") -> list[str]:
        """Return the frame of the last look, so many lines shorter than the terminal."""
        columns, rows = size()
        return frame(
            self.tail,
            self.facts,
            self.view,
            pace=self.pace,
            now=time.time(),
            size=(columns, max(1, rows - shorter)),
            footer=footer,
        )

    def ending(self) -> list[str]:
        """Return what to say below the last frame."""
        said = []
        if self.tail.damaged:
            lines = (
                "1 damaged line" if self.tail.damaged == 1 else f"{self.tail.damaged} damaged lines"
            )
            said.append(f"left out of {self.tail.path}: {lines}")
        if self.tail.torn:
            said.append(f"left out of {self.tail.path}: the last row, which is cut short")
        if self.tail.clock() and not self.tail.has_clock():
            said.append("the run recorded no terminal phase: it is derived from the training error")
        if self.has_ended() and self.tail.rows:
            report = self.folder / "report.html"
            more = (
                f"open {shown(report)}" if report.is_file() else f"ncmonitor report {self.folder}"
            )
            said.append(f"the run is finished; all of it: {more}")
        leet = leet_line(self.folder)
        return said if leet is None else [*said, f"its W&B run in the terminal: {leet}"]


def _follow(watched: _Watched, every: float) -> bool:
    """Draw frame after frame until the run ends; return False if the user leaves before."""
    try:
        watched.look()
        if watched.has_ended():
            return True
        with Screen() as screen:
            while not watched.has_ended():
                drawn = size()
                screen.draw(watched.lines(footer="q or Ctrl-C leaves"))
                if not screen.wait(every, drawn):
                    return False
                watched.look()
    except KeyboardInterrupt:
        return False
    return True
