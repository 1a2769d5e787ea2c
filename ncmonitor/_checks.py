"""The user's mistakes: one exception, one wording (expected, got, what to do)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral


class InputError(ValueError):
    """What was given cannot be measured or run; the message is complete in itself.

    The command line prints it without a traceback.
    """


class MeasurementError(InputError):
    """These features cannot be measured (not finite, changing between looks); others may be."""


def is_whole(value: object) -> bool:
    """Tell whether something is a whole number of Python's or numpy's."""
    return isinstance(value, Integral)


def check_whole(name: str, value: object) -> None:
    """Raise :class:`InputError` unless a setting is a whole number that 64 bits hold."""
    if not is_whole(value) or isinstance(value, bool) or not -(2**63) <= int(value) < 2**63:  # type: ignore[call-overload]
        raise InputError(f"{name}= must be a whole number, got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
