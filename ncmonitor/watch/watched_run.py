"""The run that is watched: which one, how far it is, how long it will take, which phase."""

from __future__ import annotations

import math
import shlex
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.history import HISTORY_FILE
from ncmonitor.monitor.provenance import CONFIG_FILE, RUN_FILE
from ncmonitor.monitor.words import duration, shown
from ncmonitor.watch.followed_history import HistoryTail

_RUNS: Final = Path("runs")
#: A run that was silent for so many times its usual pace, and for a minute, may have stopped.
_SILENT: Final = 5


def find_run(path: Path | None) -> Path:
    """Return the run folder to watch.

    Args:
        path: What the user named; ``None``: the newest run below ``./runs``.

    Raises:
        InputError: If there is none; the message offers those that are near.
    """
    if path is None:
        found = _newest_below(_RUNS)
        if not found:
            raise InputError(
                "expected a run folder, but there is none below ./runs; name one "
                "(ncmonitor watch RUN_DIR), or start a run with ncmonitor fit digits"
            )
        return found[0]
    if any((path / name).is_file() for name in (HISTORY_FILE, RUN_FILE, CONFIG_FILE)):
        return path
    expected = f"expected a run folder with a {HISTORY_FILE}"
    if path.is_file():
        hint = f"; its folder is {path.parent}" if path.name == HISTORY_FILE else ""
        raise InputError(f"{expected}, but {path} is a file{hint}")
    if path.exists():
        below = [str(run) for run in _newest_below(path)[:5]]
        hint = f"; below it, newest first: {', '.join(below)}" if below else ""
        raise InputError(f"{expected}, but {path} holds no run{hint}")
    near = [str(run) for run in (*_newest_below(path.parent, 1), *_newest_below(_RUNS))]
    raise InputError(f"{expected}, but {path} does not exist{nearest(str(path), set(near))}")


def _newest_below(folder: Path, depth: int = 4) -> list[Path]:
    """Return run folders, newest first; four levels reach every layout of ours."""
    files = [
        file
        for name in (HISTORY_FILE, RUN_FILE)
        for level in range(1, depth + 1)
        for file in folder.glob(f"{'*/' * level}{name}")
    ]
    newest: dict[Path, float] = {}
    for file in files:
        try:
            changed = file.stat().st_mtime
        except OSError:  # removed meanwhile
            continue
        newest[file.parent] = max(changed, newest.get(file.parent, changed))
    return sorted(newest, key=lambda run: (-newest[run], str(run)))


class Pace:
    """How fast epochs come in, from when the history changed."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=30)

    def observe(self, epoch: int, at: float) -> None:
        """Take in that an epoch is on disk; going back to an earlier one starts anew.

        Args:
            epoch: Last completed epoch on disk.
            at: When the file was written, in seconds since 1970.
        """
        if self._seen and epoch < self._seen[-1][1]:
            self._seen.clear()
        if not self._seen or epoch > self._seen[-1][1]:
            self._seen.append((at, epoch))

    def seconds(self, facts: Mapping[str, Any]) -> float:
        """Return the seconds per epoch; ``nan`` while unknown.

        Args:
            facts: Of ``run.json``: a run that was not resumed began with epoch 0 when it says.
        """
        if not self._seen:
            return math.nan
        first, last = self._seen[0], self._seen[-1]
        started = _time_of(facts.get("created"))
        # Two passes are a rough clock: the file is looked at now and then, its run began long ago.
        if last[1] - first[1] < 3 and not facts.get("resumed") and not math.isnan(started):
            first = (started, 0)
        took, epochs = last[0] - first[0], last[1] - first[1]
        return took / epochs if epochs > 0 and took > 0 else math.nan


def _time_of(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.nan


def title(folder: Path, facts: Mapping[str, Any]) -> str:
    """Name the run: its recipe, else its command, else its folder; and the seed."""
    how = facts.get("measurement")
    recipe = facts.get("recipe") or (how.get("recipe") if isinstance(how, dict) else None)
    name = recipe or facts.get("command") or folder.resolve().name
    seed = facts.get("seed")
    return f"{name} · seed {seed}" if isinstance(seed, int) and recipe else str(name)


def state(facts: Mapping[str, Any]) -> str:
    """Say whether the run has recorded its end."""
    return "finished" if facts.get("finished") else "not finished"


def progress(tail: HistoryTail, facts: Mapping[str, Any], pace: Pace, now: float) -> str:
    """Say how far the run is and how long it will take, or has taken.

    Args:
        tail: Its history, with a row at least.
        facts: Its ``run.json``.
        pace: Of its epochs.
        now: In seconds since 1970.
    """
    epoch, planned = max(tail.epochs()), facts.get("max_epochs")
    open_end = not isinstance(planned, int) or planned < 0
    said = f"epoch {epoch}" if open_end else f"epoch {epoch} of {planned}"
    if facts.get("finished"):
        timing = facts.get("timing")
        took = timing.get("fit_seconds") if isinstance(timing, dict) else None
        return f"{said} · took {duration(took)}" if isinstance(took, int | float) else said
    each, silent = pace.seconds(facts), now - tail.changed
    if silent > (600 if math.isnan(each) else max(60, _SILENT * each)):
        return f"{said} · no new row for {duration(silent)}: stopped?"
    if open_end or math.isnan(each) or not isinstance(planned, int):
        return said
    return f"{said} · about {duration(max(0.0, (planned - epoch) * each - silent))} left"


def phase(tail: HistoryTail) -> str:
    """Say whether the terminal phase was reached, and whether it holds."""
    clock, start = tail.clock(), tail.onset()
    if not clock:
        return f"terminal phase unknown: no training {'error' if tail.rows.get('train') else 'set'}"
    if start is None:
        failed = all(math.isnan(error) for _, error in tail.series("train", "error"))
        unknown = "terminal phase unknown: every measurement failed"
        return unknown if failed else "terminal phase not reached"
    exits, active = clock.get("tpt_exits", 0.0), clock.get("tpt_active", math.nan)
    left = f", left {exits:.0f}×" if exits > 0 else ""
    if active == 1:
        return f"terminal phase since epoch {start}{left}"
    holds = "last measurement failed" if math.isnan(active) else "not in it now"
    return f"terminal phase from epoch {start}{left}, {holds}"


def waiting_for(folder: Path, tail: HistoryTail, facts: Mapping[str, Any]) -> str:
    """Say what is missing before there is something to draw, or that nothing will come."""
    if facts.get("finished"):
        what = "has no row" if tail.path.exists() else "is missing"
        return f"the run measured nothing: {shown(folder)}/{HISTORY_FILE} {what}"
    if not tail.path.exists():
        return f"waiting for {shown(folder)}/{HISTORY_FILE}: training has not begun to measure"
    return f"waiting for the first measured epoch: {shown(folder)}/{HISTORY_FILE} has no row yet"


def leet_line(folder: Path) -> str | None:
    """Return the command that shows the run's own W&B file in the terminal, if there is one."""
    runs = sorted(folder.glob("wandb/offline-run-*"))
    if not runs:
        return None
    latest = folder / "wandb" / "latest-run"  # a link that W&B keeps; shorter to type
    return f"wandb leet {shlex.quote(shown(latest if latest.exists() else runs[-1]))}"
