"""A measurement's place in Lightning's own progress bar."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

_SECONDS_PER_DRAWING = 0.1  # as tqdm's own mininterval; rich would draw up to 100 times a second


@dataclass(frozen=True)
class Overhead:
    """What measuring has cost.

    Attributes:
        seconds: Wall-clock time spent measuring.
        share: That time as a fraction of the fit's, in [0, 1]; nan before it is known.
    """

    seconds: float = 0.0
    share: float = math.nan

    def __str__(self) -> str:
        """Return both, such as ``12.3 s, 4.1 % of the fit``."""
        share = "unknown share" if math.isnan(self.share) else f"{100 * self.share:.1f} %"
        return f"{self.seconds:.1f} s, {share} of the fit"


@contextlib.contextmanager
def measuring(
    trainer: pl.Trainer, total: int | None, share: float | None
) -> Iterator[Callable[[], None]]:
    """Show a task in the trainer's progress bar for as long as the context lasts.

    Nothing is shown on other ranks than zero, without a running rich or tqdm bar of Lightning's,
    or where the bar is disabled; a bar that fails is not shown any longer. Rich's bar starts in
    its own ``on_train_start`` or with the sanity check, so at ``on_train_start`` of a callback
    before it there is one only after a sanity check.

    Args:
        trainer: Whose bar it is.
        total: Batches to come; ``None`` if unknown.
        share: Expected fraction of the fit's time, in [0, 1]; ``None`` or nan if unknown.

    Yields:
        ``advance()``, to be called once per batch.
    """
    task = _Quiet(lambda: _task(trainer, total, _description(share)))
    try:
        yield task.advance
    finally:
        task.close()


class _Task(Protocol):
    """A line in a bar."""

    every: int  # batches between two drawings, at least

    def advance(self, batches: int) -> None: ...

    def close(self) -> None: ...


class _Quiet:
    """A task that is drawn now and then, and given up at its first exception."""

    def __init__(self, start: Callable[[], _Task | None]) -> None:
        self.task: _Task | None = None
        self.pending = 0
        self.due = time.monotonic() + _SECONDS_PER_DRAWING
        with contextlib.suppress(Exception):  # bars are the user's classes
            self.task = start()

    def advance(self) -> None:
        if self.task is None:
            return
        self.pending += 1
        if self.pending < self.task.every or time.monotonic() < self.due:
            return
        try:
            self.task.advance(self.pending)
        except Exception:
            self.close()
        self.pending, self.due = 0, time.monotonic() + _SECONDS_PER_DRAWING

    def close(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            with contextlib.suppress(Exception):
                task.close()


class _RichTask:
    """A task of the bar's ``rich.progress.Progress``, hidden at the end and used again.

    Removing it would shift the tasks after it, which Lightning finds by position.
    """

    every = 1
    _used: ClassVar[WeakKeyDictionary[Any, dict[tuple[bool, bool], Any]]] = WeakKeyDictionary()

    def __init__(self, bar: Any, total: int | None, description: str) -> None:
        self.bar, self.progress = bar, bar.progress
        style = getattr(getattr(bar, "theme", None), "description", "")
        text = f"[{style}]{description}" if style else description
        known = self._used.setdefault(self.progress, {})
        # Lightning has another class of tasks without an end, and a task from before the training's
        # would stand above it.
        kind = (total is None, bar.train_progress_bar_id is None)
        size = math.inf if total is None else total
        if kind in known:
            self.id = known[kind]
            self.progress.reset(self.id, total=size, description=text, visible=True)
        else:
            self.id = known[kind] = self.progress.add_task(text, total=size)

    def advance(self, batches: int) -> None:
        self.progress.update(self.id, advance=batches)
        self.bar.refresh()

    def close(self) -> None:
        self.progress.update(self.id, visible=False)
        self.progress.refresh()  # at once: what the bar is asked for may come after the next print


class _TqdmTask:
    """A line below the bar's training line."""

    def __init__(self, bar: Any, total: int | None, description: str) -> None:
        self.every = bar.refresh_rate
        train = getattr(bar, "_train_progress_bar", None)
        below = train is not None and not train.disable  # a closed line is disabled
        self.line = Tqdm(
            desc=description,
            total=total,
            position=2 * bar.process_position + below,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=bar.BAR_FORMAT,
        )

    def advance(self, batches: int) -> None:
        self.line.n += batches
        self.line.refresh()

    def close(self) -> None:
        self.line.close()


def _task(trainer: pl.Trainer, total: int | None, description: str) -> _Task | None:
    bar: Any = trainer.progress_bar_callback
    if bar is None or not trainer.is_global_zero or not bar.is_enabled:
        return None
    names = {each.__name__ for each in type(bar).__mro__}  # of either distribution
    if "RichProgressBar" in names:
        running = bar.progress is not None and bar.progress.live.is_started
        return _RichTask(bar, total, description) if running else None
    return _TqdmTask(bar, total, description) if "TQDMProgressBar" in names else None


def _description(share: float | None) -> str:
    if share is None or math.isnan(share):
        return "measuring"
    percent = "<1 %" if share < 0.01 else f"~{100 * share:.0f} %"
    return f"measuring ({percent} of time)"  # short: rich breaks the columns of long lines
