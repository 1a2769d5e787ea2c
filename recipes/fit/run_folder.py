"""Where a run goes on disk, who holds it, and the last lines that say what is there."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.provenance import CONFIG_FILE, RUN_FILE, read_run
from ncmonitor.monitor.words import shown
from ncmonitor.redact import hidden_options
from ncmonitor.reports.expected import closing

#: Environment variable by which a process tells those that it starts which run is theirs.
HANDED_ON: Final = "_NCMONITOR_RUN"
_SHOWN: Final = ("nc1", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")


@dataclass(frozen=True)
class RunPlace:
    """Where a run goes.

    Attributes:
        folder: Of the run.
        made: Whether it was made for this run: it goes again if the run never starts.
        checkpoint: What the run continues from; ``None`` for a new run.
    """

    folder: Path
    made: bool = False
    checkpoint: Path | None = None

    @contextlib.contextmanager
    def handed_on(self) -> Iterator[None]:
        """Let processes that are started inside find the run: the trainer's other ranks."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        before = os.environ.get(HANDED_ON)
        told = {"folder": str(self.folder), "checkpoint": checkpoint}
        os.environ[HANDED_ON] = json.dumps(told)
        try:
            yield
        finally:
            os.environ.pop(HANDED_ON)
            if before is not None:
                os.environ[HANDED_ON] = before

    def forget(self) -> None:
        """Remove the folder of a run that never started, if it was made for it."""
        if self.made:
            remove_run_folder(self.folder)


def home_handed_on() -> RunPlace | None:
    """Return what the process that started this one has told; ``None``: nothing."""
    text = os.environ.get(HANDED_ON)
    if text is None:
        return None
    told = json.loads(text)
    checkpoint = told["checkpoint"]
    return RunPlace(Path(told["folder"]), False, None if checkpoint is None else Path(checkpoint))


def new_run_folder(recipe: str, label: str | None) -> Path:
    """Make ``runs/<recipe>/<time>-<label>`` below the working directory.

    Two runs of the same second get different folders: making a folder is atomic.

    Args:
        recipe: Name of the recipe or config.
        label: What to tell runs apart by: ``seed0``, ``seeds3``, ``plain-seed0``.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")  # local time: for people, in a name
    name = stamp if label is None else f"{stamp}-{label}"
    for attempt in range(1, 1000):
        folder = Path("runs", recipe, name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {folder}: {error.strerror}; "
                "name another one with --trainer.default_root_dir"
            ) from error
        return folder
    raise InputError(f"runs/{recipe} already holds a thousand runs called {name}")


def label_of(way: str | None, seed: int | None) -> str | None:
    """Return what tells a run apart from others of its recipe, as its folder's name has it."""
    parts = [*([way] if way else []), *([] if seed is None else [f"seed{seed}"])]
    return "-".join(parts) or None


def dry_run_home() -> RunPlace:
    """Make a home for a run that leaves nothing behind."""
    return RunPlace(Path(tempfile.mkdtemp(prefix="ncmonitor-dry-run-")), made=True)


def remove_run_folder(folder: Path) -> None:
    """Remove a folder made for a run, and those above it in ``runs`` that it leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parts[0] != "runs":  # the user's, as are those above it
        return
    for path in list(folder.parents)[:-1]:
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # holds other runs
            return


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder inside, so that no other process trains in it; a kill lets go of it, too.

    Args:
        folder: Of a run; made if missing.

    Raises:
        InputError: If another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the run folder {folder}: {error.strerror}; "
            "name another one with --trainer.default_root_dir"
        ) from error
    try:
        lock = _lock(folder)
    except BlockingIOError as error:
        raise InputError(
            f"another process trains in {folder}; name another folder with "
            "--trainer.default_root_dir"
        ) from error
    with lock:
        yield


def is_held(folder: Path) -> bool:
    """Tell whether a process is at work in a folder."""
    try:
        with _lock(folder):
            return False
    except BlockingIOError:
        return True


def _lock(folder: Path) -> contextlib.ExitStack:
    lock = contextlib.ExitStack()
    if sys.platform == "win32":  # cannot lock a folder
        return lock
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    lock.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise
        # Otherwise a file system without locks.
    return lock


def closing_lines(folder: Path, report: Path | None) -> list[str]:
    """Say how the run ended, where its files are, and how to look at them or upload them."""
    ways, facts = [], read_run(folder)
    command = str(facts.get("command", ""))
    if not facts.get("finished") and command.startswith("ncmonitor fit"):
        again = command if "--resume" in command.split() else f"{command} --resume"
        ways.append(("go on", again))
        if hidden := hidden_options(shlex.split(again)):
            ways.append(("", f"with {', '.join(hidden)} given again: secrets are not saved"))
    if report is not None:
        ways.append(("report", f"open {shown(report)} in a browser"))
    for run in sorted(folder.glob("wandb/offline-run-*")):
        path = shlex.quote(shown(run))
        ways.append(("W&B here", f"wandb leet {path}"))
        ways.append(("W&B online", f"wandb sync {path}"))
    files = (HISTORY_FILE, RUN_FILE, CONFIG_FILE)
    there = ", ".join(name for name in files if (folder / name).exists())
    ways.append(("files", f"{there} in {shown(folder)}"))
    told = [*_numbers(folder, facts), *closing(folder)]
    return [*told, "", *(f"  {what:<12}{how}" for what, how in ways)]


def _numbers(folder: Path, run: Mapping[str, Any]) -> list[str]:
    train = read_history(folder).query("split == 'train'")
    last = train.iloc[-1]
    metrics = ", ".join(f"{name} {_rounded(last[name])}" for name in _SHOWN)
    start, exits = last["tpt_start_exact"], last["tpt_exits"]
    left, error = f", left {exits:.0f} times" if exits > 0 else "", f"{last['error']:.2%}"
    if math.isnan(last["error"]):
        phase = f"The measurement of epoch {last['epoch']} failed."
    elif math.isnan(start):
        phase = f"The terminal phase was not reached: the training error is {error}."
    elif last["tpt_active"] == 1:
        phase = f"Terminal phase (no training error) since epoch {start:.0f}{left}."
    else:
        phase = f"Terminal phase from epoch {start:.0f}{left}; now the training error is {error}."
    timing, parts = run.get("timing") or {}, run.get("resumed") or []
    fit, monitor = timing.get("fit_seconds"), timing.get("monitor_seconds")
    took = f"Took {fit:.0f} s, {monitor:.0f} s of it measuring" if fit and monitor else ""
    if took:
        lost = any(part.get("time_lost") for part in parts)
        took += ", without the part that was killed." if lost else "."
    lines = [f"After {last['epoch']} epochs, on the training set: {metrics}", phase, took]
    return [line for line in lines if line]


def _rounded(value: float) -> str:
    return f"{value:.2g}"
