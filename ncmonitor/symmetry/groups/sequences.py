"""Shifts in time of sequences (B, T, ...)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor

from ncmonitor.errors import InputError, check_whole
from ncmonitor.symmetry.groups.group import Action, Group
from ncmonitor.symmetry.groups.resampling import border, moved

_DIM = 1


def time_shifts(steps: int | Iterable[int] = 1, *, fill: float = 0.0) -> Group:
    """Let sequences begin later, padded on the left: ``(gx)[t] = x[t − s]``, ``fill`` before.

    The last s steps leave the window: where they matter, let the sequences end in as many steps of
    padding. A set, not a group; :func:`cyclic` is one. Masks: ``time_shifts(3).on("x", "mask")``.

    Args:
        steps: Delays in steps, or n for 1, ..., n.
        fill: What padding is: 0, or the token of it.

    Returns:
        The identity and the delays; exact, not closed.

    Raises:
        InputError: If there is no delay, or one is not a whole number above 0.
    """
    delays = list(range(1, steps + 1)) if isinstance(steps, int) else [*steps]
    edge = border("constant", fill)
    if not delays:
        raise InputError(f"steps must name at least one delay of 1 or more, got {steps!r}")
    for delay in delays:
        check_whole("steps", delay)
        if delay < 1:
            raise InputError(
                f"steps must be 1 or more (a delay, padded on the left), got {delay}; "
                "an earlier start would cut the beginning off"
            )
    actions = [
        Action(f"delay{d}", partial(_delay, steps=int(d), fill=edge["fill"])) for d in delays
    ]
    return Group.of(
        "time_shifts", actions, kind="sequences", exact=True, note=f"padded on the left by {fill:g}"
    )


def _delay(x: Any, *, steps: int, fill: float) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() <= _DIM:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"the delay is of a tensor (B, T, ...), got {what}; "
            "group.on(0) or group.on('tokens') acts on that part of a batch"
        )
    if steps >= x.shape[_DIM]:
        raise InputError(
            f"a delay of {steps} steps leaves nothing of sequences of {x.shape[_DIM]} steps; "
            f"delay by {x.shape[_DIM] - 1} at most"
        )
    return moved(x, steps, _DIM, "constant", fill)
