"""The user's mistakes: one exception, one wording (expected, got, what to do)."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from numbers import Integral

from ncmonitor.redact import redacted_text


class InputError(ValueError):
    """What was given cannot be measured or run; the message is complete in itself.

    The command line prints it without a traceback. It may repeat what was given, or what another
    library said of that, but no secret in it.
    """

    def __str__(self) -> str:
        return redacted_text(super().__str__())


class MeasurementError(InputError):
    """These features cannot be measured (not finite, changing between passes); others may be."""


def is_whole(value: object) -> bool:
    """Tell whether something is a whole number of Python's or numpy's."""
    return isinstance(value, Integral)


def check_whole(name: str, value: object) -> None:
    """Raise :class:`InputError` unless a setting is a whole number that 64 bits hold."""
    if not is_whole(value) or isinstance(value, bool) or not -(2**63) <= int(value) < 2**63:  # type: ignore[call-overload]
        raise InputError(f"{name}= must be a whole number, got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)


def warn(message: str, stacklevel: int = 2) -> None:
    """Warn; inside :func:`said_once` only of what has not been said there before."""
    message, said = redacted_text(message), _SAID.get()
    if said is not None and message in said:
        return
    if said is not None:
        said.add(message)
    warnings.warn(message, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def said_once(said: set[str]) -> Iterator[None]:
    """Say every warning of a measurement once per run: Python's own memory of them is volatile.

    Args:
        said: What has been said; grows.
    """
    before = _SAID.set(said)
    try:
        yield
    finally:
        _SAID.reset(before)
