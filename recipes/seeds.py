"""``--seeds N``: the same run with N seeds, one after another, and the page that compares them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ncmonitor._checks import InputError
from ncmonitor._words import shown
from ncmonitor.callbacks.strategies import check_strategy
from ncmonitor.history import HISTORY_FILE
from ncmonitor.provenance import CONFIG_FILE
from ncmonitor.recipes.cli import FitCLI
from ncmonitor.recipes.resume import check_same_options, run_folders
from ncmonitor.recipes.run_folder import (
    Home,
    dry_run_home,
    holding,
    is_held,
    new_run_folder,
)
from ncmonitor.recipes.seed_runs import SeedRuns, closing_lines

_MISTAKE: Final = 2  # exit status of a run that could not start


class _Rehearsal(FitCLI):
    """Everything before the fit: what is wrong with the options is found once, and first."""

    def choose_home(self) -> Home:
        if self.config.fit.trainer.fast_dev_run:
            raise InputError("a dry run (trainer.fast_dev_run) keeps nothing to compare: one seed")
        if self.config.fit.ckpt_path is not None:
            raise InputError("--ckpt_path is of one run; leave it out, or --seeds")
        return dry_run_home()

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        seed = self.config.fit.seed_everything
        if isinstance(seed, bool):  # true would be drawn next
            raise InputError(
                f"--seeds counts from seed_everything, which must be a number, but is {seed}"
            )

    def fit(self, **kwargs: Any) -> None:
        try:
            check_strategy(self.trainer)
        finally:
            self.home.forget()


def fit_seeds(
    name: str, words: Sequence[str], given: Sequence[str], count: int, *, resume: bool
) -> int:
    """Train with ``count`` seeds, each in a process of its own, and compare.

    Args:
        name: Names the folder that holds the runs.
        words: Options, with the recipe as a file.
        given: The same as the user gave them: what each run records as its command.
        count: How many seeds, counted from ``seed_everything``.
        resume: Continue the latest interrupted command of this kind: finished seeds are kept, the
            one that was interrupted goes on, the missing ones are trained.

    Returns:
        0; 1 if a seed failed or the user stopped; 2 if no seed could start, which it has explained.

    Raises:
        InputError: If the options cannot work; nothing is left behind.
    """
    rehearsal = _Rehearsal(name, words)
    options, root = rehearsal.full, rehearsal.full["trainer"]["default_root_dir"]
    first: int = options["seed_everything"]
    seeds = range(first, first + count)
    del rehearsal  # a network, perhaps a large one
    home = _home(name, None if root is None else Path(root), seeds, options, resume=resume)
    runs = SeedRuns(home.folder, seeds, options)
    with holding(home.folder):
        started = _train_all(runs, given)
    if not any(home.folder.glob("seed*")):
        home.forget()
        return 1 if started else _MISTAKE
    print("\n".join(["", *closing_lines(runs)]), flush=True)
    return 1 if runs.failed or runs.stopped else 0


def _home(
    name: str, root: Path | None, seeds: range, options: dict[str, Any], *, resume: bool
) -> Home:
    if not resume:
        if root is not None and any(root.glob(f"seed*/{HISTORY_FILE}")):
            raise InputError(
                f"{root} already holds runs; name another folder with --trainer.default_root_dir, "
                "or continue them with --resume"
            )
        if root is None:
            return Home(new_run_folder(name, f"seeds{len(seeds)}"), made=True)
        return Home(root, made=not root.exists())
    pattern = rf"\d{{8}}-\d{{6}}-seeds{len(seeds)}"
    for folder in run_folders(name, pattern) if root is None else [root]:
        runs = SeedRuns(folder, seeds, options)
        started = [seed for seed in seeds if (runs.folder_of(seed) / CONFIG_FILE).is_file()]
        if not started or all(map(runs.is_finished, seeds)) or is_held(folder):
            continue
        for seed in started:
            check_same_options(runs.folder_of(seed), options)
        return Home(folder)
    where = f"runs/{name}" if root is None else shown(root)
    raise InputError(
        f"nothing to resume: {where} holds no interrupted --seeds {len(seeds)} from seed {seeds[0]}"
    )


def _train_all(runs: SeedRuns, given: Sequence[str]) -> bool:
    """Train one seed after another; return whether any could start."""
    for number, seed in enumerate(runs.seeds, 1):
        if runs.stopped:
            break
        which = f"seed {number} of {len(runs.seeds)}"
        status = _train(runs, seed, which, given)
        if status == _MISTAKE and number == 1 and not runs.folder_of(seed).exists():
            return False  # not of this seed: the others would say the same
        if status != 0 and not runs.stopped:
            runs.failed[seed] = status
            how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
            print(f"{which} failed ({how})", file=sys.stderr, flush=True)
    return True


def _train(runs: SeedRuns, seed: int, which: str, given: Sequence[str]) -> int:
    folder = runs.folder_of(seed)
    if runs.is_finished(seed):
        print(f"{which}: {shown(folder)} has finished", flush=True)
        return 0
    resumed = folder.is_dir() and any(folder.iterdir())
    print(f"{which}: {'goes on' if resumed else 'trains'} in {shown(folder)}", flush=True)
    # As the parent was found: with the working directory first on the path, or without it.
    path = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
    command = [sys.executable, *path, "-m", "ncmonitor", "fit", *given]
    command += ["--seed_everything", str(seed), *(["--resume"] if resumed else [])]
    told = {"WANDB_RUN_GROUP": runs.folder.name}
    with Home(folder).handed_on():
        child = subprocess.Popen(command, env=told | os.environ)
    with _signals(runs, child):
        return child.wait()


@contextmanager
def _signals(runs: SeedRuns, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Start no further seed after Ctrl-C, which a terminal sends to the run as well."""

    def stop(signum: int, frame: FrameType | None) -> None:
        runs.stopped = True
        if signum == signal.SIGTERM:  # which comes to this process alone
            child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
