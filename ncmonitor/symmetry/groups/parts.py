"""A transform of an input, applied to named parts of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ncmonitor.errors import InputError


def on_parts(function: Callable[..., Any], parts: Sequence[int | str], x: Any, *rest: Any) -> Any:
    """Apply ``function`` to the named parts of a batch; the batch given is left as it was."""
    for part in parts:
        if not _holds(x, part):
            has = f"with the keys {list(x)}" if isinstance(x, Mapping) else f"a {type(x).__name__}"
            raise InputError(
                f"the action is on part {part!r} of a batch, but the batch is {has}; "
                "name its parts by the positions of a tuple or the keys of a dict"
            )
    changed = {part: function(x[part], *rest) for part in parts}
    if isinstance(x, tuple):
        entries = [changed.get(i, changed.get(i - len(x), entry)) for i, entry in enumerate(x)]
        return type(x)(*entries) if hasattr(x, "_fields") else tuple(entries)
    whole = copy.copy(x)
    for part, value in changed.items():
        whole[part] = value
    return whole


def _holds(x: Any, part: int | str) -> bool:
    if isinstance(x, Tensor | str):
        return False
    if isinstance(x, list | tuple):
        return isinstance(part, int) and -len(x) <= part < len(x)
    return hasattr(x, "__contains__") and part in x


def checked_parts(parts: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return which parts of a batch a transform acts on, if they can be named."""
    if not parts:
        raise InputError("on() needs the part of the batch to act on, as on(0) or on('image')")
    return parts
