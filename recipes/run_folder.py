"""Where a run goes on disk, and the last lines that say what is there."""

from __future__ import annotations

import math
import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

from ncmonitor._checks import InputError
from ncmonitor.history import HISTORY_FILE, read_history
from ncmonitor.provenance import RUN_FILE, read_run

CONFIG_FILE: Final = "config.yaml"
_SHOWN: Final = ("nc1", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")


def new_run_folder(recipe: str, seed: int | None) -> Path:
    """Make ``runs/<recipe>/<time>-seed<k>`` below the working directory.

    Two runs of the same second get different folders: making a folder is atomic.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")  # local time: for people, in a name
    name = stamp if seed is None else f"{stamp}-seed{seed}"
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


def remove_run_folder(folder: Path) -> None:
    """Remove a folder of :func:`new_run_folder`, and those above it that it leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (folder.parent, folder.parent.parent):
        try:
            path.rmdir()
        except OSError:  # holds other runs
            return


def closing_lines(folder: Path, report: Path | None) -> list[str]:
    """Say how the run ended, where its files are, and how to look at them or upload them."""
    ways = []
    if report is not None:
        ways.append(("report", f"open {_shown(report)} in a browser"))
    for run in sorted(folder.glob("wandb/offline-run-*")):
        path = shlex.quote(_shown(run))
        ways.append(("W&B here", f"wandb leet {path}"))
        ways.append(("W&B online", f"wandb sync {path}"))
    files = (HISTORY_FILE, RUN_FILE, CONFIG_FILE)
    there = ", ".join(name for name in files if (folder / name).exists())
    ways.append(("files", f"{there} in {_shown(folder)}"))
    return [*_numbers(folder), "", *(f"  {what:<12}{how}" for what, how in ways)]


def _numbers(folder: Path) -> list[str]:
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
    timing = read_run(folder).get("timing") or {}
    fit, monitor = timing.get("fit_seconds"), timing.get("monitor_seconds")
    took = f"Took {fit:.0f} s, {monitor:.0f} s of it measuring." if fit and monitor else ""
    lines = [f"After {last['epoch']} epochs, on the training set: {metrics}", phase, took]
    return [line for line in lines if line]


def _rounded(value: float) -> str:
    return f"{value:.2g}"


def _shown(path: Path) -> str:
    """Return a path as short as possible: relative below the working directory."""
    full = path.absolute()
    here = Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)
