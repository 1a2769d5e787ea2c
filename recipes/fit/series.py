"""``--seeds N`` and ``ways``: several runs, one after another, and the page that compares them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ncmonitor.callbacks.trainers.strategies import check_strategy
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE
from ncmonitor.monitor.provenance import CONFIG_FILE
from ncmonitor.monitor.words import shown
from ncmonitor.recipes.fit.lightning_cli import FitCLI
from ncmonitor.recipes.fit.resume import check_same_options, run_folders
from ncmonitor.recipes.fit.run_folder import (
    RunPlace,
    dry_run_home,
    holding,
    is_held,
    new_run_folder,
)
from ncmonitor.recipes.fit.series_runs import Member, RunSeries, closing_lines, members_of

_MISTAKE: Final = 2  # exit status of a run that could not start


class _Rehearsal(FitCLI):
    """Everything before the fit: what is wrong with the options is found once, and first."""

    def choose_home(self) -> RunPlace:
        if self.config.fit.trainer.fast_dev_run:
            raise InputError(
                "a dry run (trainer.fast_dev_run) keeps nothing to compare: one seed, one --way"
            )
        if self.config.fit.ckpt_path is not None:
            raise InputError(
                "--ckpt_path is of one run; leave it out, or train one seed, one --way"
            )
        return dry_run_home()

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        seed = self.config.fit.seed_everything
        if isinstance(seed, bool):  # true would be drawn next
            raise InputError(
                f"several runs count from seed_everything, which must be a number, but is {seed}"
            )

    def fit(self, **kwargs: Any) -> None:
        try:
            check_strategy(self.trainer)
        finally:
            self.home.forget()


def fit_series(
    name: str,
    ways: Mapping[str | None, Sequence[str]],
    given: Sequence[str],
    count: int | None,
    *,
    resume: bool,
) -> int:
    """Train every way with ``count`` seeds, each run in a process of its own, and compare.

    Args:
        name: Names the folder that holds the runs.
        ways: Options of each way, with the recipe as a file; under ``None`` if there are no ways.
        given: Options as the user gave them: what each run records as its command.
        count: How many seeds, counted from ``seed_everything``; ``None``: that one.
        resume: Continue the latest interrupted command of this kind: finished runs are kept, the
            one that was interrupted goes on, the missing ones are trained.

    Returns:
        0; 1 if a run failed or the user stopped; 2 if none could start, which it has explained.

    Raises:
        InputError: If the options cannot work; nothing is left behind.
    """
    with _hushed():
        options = {way: _Rehearsal(name, words).full for way, words in ways.items()}
    members = members_of(options, count)
    root = members[0].options["trainer"]["default_root_dir"]
    home = _home(name, None if root is None else Path(root), members, count, resume=resume)
    series = RunSeries(home.folder, members)
    with holding(home.folder):
        started = _train_all(series, given)
    if not any(series.folder_of(member).is_dir() for member in members):
        home.forget()
        return 1 if started else _MISTAKE
    print("\n".join(["", *closing_lines(series)]), flush=True)
    return 1 if series.failed or series.stopped else 0


@contextmanager
def _hushed() -> Iterator[None]:
    """Leave out what Lightning says of devices and seeds: each run will say it again."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _home(
    name: str, root: Path | None, members: Sequence[Member], count: int | None, *, resume: bool
) -> RunPlace:
    label = _label(members, count)
    if not resume:
        if root is not None and any(root.glob(f"*/{HISTORY_FILE}")):
            raise InputError(
                f"{root} already holds runs; name another folder with --trainer.default_root_dir, "
                "or continue them with --resume"
            )
        if root is None:
            return RunPlace(new_run_folder(name, label), made=True)
        return RunPlace(root, made=not root.exists())
    for folder in run_folders(name, rf"\d{{8}}-\d{{6}}-{label}") if root is None else [root]:
        series = RunSeries(folder, members)
        started = [m for m in members if (series.folder_of(m) / CONFIG_FILE).is_file()]
        if not started or all(map(series.is_finished, members)) or is_held(folder):
            continue
        for member in started:
            check_same_options(series.folder_of(member), member.options)
        return RunPlace(folder)
    where = f"runs/{name}" if root is None else shown(root)
    what = "comparison of ways" if count is None else f"--seeds {count}"
    raise InputError(
        f"nothing to resume: {where} holds no interrupted {what} from seed {members[0].seed}"
    )


def _label(members: Sequence[Member], count: int | None) -> str:
    """Return how the folder of the runs is called: ``seeds3``, ``ways3`` or both."""
    ways = list(dict.fromkeys(m.way for m in members if m.way is not None))
    parts = [ways[0] if len(ways) == 1 else f"ways{len(ways)}"] if ways else []
    return "-".join([*parts, *([] if count is None else [f"seeds{count}"])])


def _train_all(series: RunSeries, given: Sequence[str]) -> bool:
    """Train one run after another; return whether any could start."""
    for number, member in enumerate(series.members, 1):
        if series.stopped:
            break
        which = f"{member.kind} {number} of {len(series.members)}"
        status = _train(series, member, which, given)
        if status == _MISTAKE and number == 1 and not series.folder_of(member).exists():
            return False  # not of this run: the others would say the same
        if status != 0 and not series.stopped:
            series.failed.add(member)
            how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
            print(f"{which} failed ({how})", file=sys.stderr, flush=True)
    return True


def _train(series: RunSeries, member: Member, which: str, given: Sequence[str]) -> int:
    folder = series.folder_of(member)
    if series.is_finished(member):
        print(f"{which}: {shown(folder)} has finished", flush=True)
        return 0
    resumed = folder.is_dir() and any(folder.iterdir())
    print(f"{which}: {'goes on' if resumed else 'trains'} in {shown(folder)}", flush=True)
    # As the parent was found: with the working directory first on the path, or without it.
    path = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
    command = [sys.executable, *path, "-m", "ncmonitor", "fit", *given, *member.words]
    told = {"WANDB_RUN_GROUP": series.folder.name}
    with RunPlace(folder).handed_on():
        child = subprocess.Popen(
            [*command, *(["--resume"] if resumed else [])], env=told | os.environ
        )
    with _signals(series, child):
        return child.wait()


@contextmanager
def _signals(series: RunSeries, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Start no further run after Ctrl-C, which a terminal sends to the run as well."""

    def stop(signum: int, frame: FrameType | None) -> None:
        series.stopped = True
        if signum == signal.SIGTERM:  # which comes to this process alone
            child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
