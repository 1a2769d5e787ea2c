"""How much of a fit's time pictures may take."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Final

from ncmonitor.callbacks.trainers.progress import Overhead

#: Seconds that a drawing takes before one has been seen: four figures, and matplotlib's import.
_GUESS: Final = 2.0


class Allowance:
    """A share of the fit's time, to be spent on drawings; the last one is always made.

    Args:
        share: How much of the fit drawing may take, in [0, 1]; 1 is no limit.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._spent, self._cost = 0.0, _GUESS

    def covers(self) -> bool:
        """Tell whether the time so far pays for a drawing now, and another one at the end."""
        return self._share == 1 or self._spent + 2 * self._cost <= self._share * self._passed()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Count what is done inside as a drawing."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._cost = time.perf_counter() - before
            self._spent += self._cost

    def end(self) -> None:
        """Stop the clock of the fit."""
        self._ended = time.perf_counter()

    @property
    def overhead(self) -> Overhead:
        """What drawings have cost."""
        passed = self._passed()
        return Overhead(self._spent, self._spent / passed if passed > 0 else math.nan)

    def _passed(self) -> float:
        return (self._ended or time.perf_counter()) - self._started
