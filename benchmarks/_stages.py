"""Where the time of a measurement goes: a clock around its stages, put there from outside."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final
from unittest import mock

#: Stage -> the functions it consists of, each as ``module:name``. What none of them covers is
#: "other"; a function called inside another counts for its own stage only.
STAGES: Final[dict[str, tuple[str, ...]]] = {
    "first pass": ("ncmonitor.statistics.passes:FirstPass.update",),
    "geometry": ("ncmonitor.measurement.class_geometry:shape_of",),
    "second pass": (
        "ncmonitor.statistics.class_means:ClassMeans.__init__",
        "ncmonitor.statistics.passes:SecondPass.update",
    ),
    "metrics": ("ncmonitor.measurement.evaluation:shape_values",),
}
OTHER: Final = "other"


class StageClock:
    """Clocks every call of the functions in :data:`STAGES` while it is entered.

    Args:
        stages: Like :data:`STAGES`.

    Attributes:
        seconds: Stage to seconds so far.
        missing: Functions that no longer exist under their name; the rest is clocked all the same.
    """

    def __init__(self, stages: dict[str, tuple[str, ...]] = STAGES) -> None:
        self._stages = stages
        self._patches = ExitStack()
        self._nested: list[float] = []
        self.seconds = dict.fromkeys(stages, 0.0)
        self.missing: list[str] = []

    def __enter__(self) -> StageClock:
        for stage, functions in self._stages.items():
            for name in functions:
                self._wrap(stage, name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patches.close()

    def shares(self, total: float) -> dict[str, float]:
        """Return each stage's share of ``total`` seconds, and what is left as "other".

        A stage that misses a function has no share; then what is left is not known either.
        """
        known = {
            stage: self.seconds[stage] / total
            for stage, functions in self._stages.items()
            if not set(functions) & set(self.missing)
        }
        complete = len(known) == len(self._stages)
        return known | ({OTHER: 1 - sum(known.values())} if complete else {})

    def _wrap(self, stage: str, name: str) -> None:
        module, _, path = name.partition(":")
        *owners, last = path.split(".")
        try:
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            found = inspect.getattr_static(owner, last)
        except (ImportError, AttributeError):
            self.missing.append(name)
            return
        if isinstance(found, (classmethod, staticmethod)):
            clocked: Any = type(found)(self._clocked(stage, found.__func__))
        else:
            clocked = self._clocked(stage, found)
        self._patches.enter_context(mock.patch.object(owner, last, clocked))

    def _clocked(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._counting(stage):
                return function(*args, **kwargs)

        return call

    @contextlib.contextmanager
    def _counting(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        self._nested.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[stage] += took - self._nested.pop()
            if self._nested:
                self._nested[-1] += took
