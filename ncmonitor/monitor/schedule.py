"""Which epochs are measured. Epochs are completed epochs: 0 is the untrained network."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any, Final

import numpy as np

from ncmonitor.errors import InputError

# Text last: the command line takes the first type that fits, and any number is also a text.
Schedule = int | np.integer[Any] | Iterable[int] | str

#: The epochs of Papyan, Han & Donoho 2020 for 350 epochs of training, from the authors' notebook.
PAPYAN_EPOCHS: Final = (
    *range(1, 15), 16, 17, 19, 20, 22, 24, 27, 29, 32, 35, 38, 42, 45, 50, 54, 59, 65, 71, 77, 85,
    92, 101, 110, 121, 132, 144, 158, 172, 188, 206, 225, 245, 268, 293, 320, 350,
)  # fmt: skip
_EXPECTED: Final = (
    "schedule= must be 'every_epoch', 'papyan', 'log', a number of epochs or a list of epochs, "
    "but is {!r}"
)
_LOG_POINTS: Final = 50  # as many as the paper's list has


#: Epochs of ``"log"`` in a run without an end: as densely spaced as over 350 epochs.
_ENDLESS: Final = frozenset(round(1.127**k) for k in range(100))


def scheduled_epochs(
    schedule: Schedule, max_epochs: int | None, *, endless: bool = False
) -> Collection[int] | int:
    """Resolve a schedule to a set of epochs, or to a period where the end is unknown.

    Args:
        schedule: ``"every_epoch"``, a period, a list of epochs, ``"log"`` (about 50 epochs evenly
            spaced in the logarithm) or ``"papyan"`` (the paper's list, stretched to the run).
        max_epochs: Planned length of the run; ``None`` or −1 if open.
        endless: Whether ``"log"`` has a meaning without an end, too.

    Returns:
        The epochs, or a period in epochs.

    Raises:
        InputError: If the schedule is none of these, or needs ``max_epochs`` and has none.
    """
    if endless and isinstance(schedule, str) and schedule == "log" and not (max_epochs or 0) > 0:
        return _ENDLESS
    if isinstance(schedule, str):
        return 1 if schedule == "every_epoch" else _named(schedule, max_epochs)
    if isinstance(schedule, (int, np.integer)):
        if schedule < 1:
            raise InputError(f"schedule= as a period must be at least 1 epoch, but is {schedule}")
        return int(schedule)
    if not isinstance(schedule, Iterable):
        raise InputError(_EXPECTED.format(schedule))
    epochs = set(schedule)
    wrong = sorted(repr(e) for e in epochs if not isinstance(e, (int, np.integer)) or e < 0)
    if wrong:
        raise InputError(
            f"schedule= must list completed epochs (0, 1, ...), got {', '.join(wrong)}"
        )
    return {int(epoch) for epoch in epochs}


def is_scheduled(
    schedule: Schedule, epoch: int, max_epochs: int | None, *, endless: bool = False
) -> bool:
    """Tell whether an epoch is one of a schedule; see :func:`scheduled_epochs`."""
    plan = scheduled_epochs(schedule, max_epochs, endless=endless)
    return epoch % plan == 0 if isinstance(plan, int) else epoch in plan


def warn_unreachable(schedule: Schedule, max_epochs: int | None) -> None:
    """Warn of listed epochs that the run will not reach."""
    if max_epochs is None or max_epochs < 1 or isinstance(schedule, (str, int, np.integer)):
        return
    beyond = sorted(int(epoch) for epoch in schedule if epoch > max_epochs)
    if beyond:
        shown = ", ".join(map(str, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
        warnings.warn(
            f"schedule= lists {shown}, but the run ends after max_epochs={max_epochs}: these "
            "epochs are not measured",
            stacklevel=2,
        )


def _named(schedule: str, max_epochs: int | None) -> Collection[int]:
    if schedule not in ("papyan", "log"):
        raise InputError(_EXPECTED.format(schedule))
    if max_epochs is None or max_epochs < 1:
        raise InputError(f"schedule={schedule!r} needs Trainer(max_epochs=...) to be set")
    if schedule == "papyan":
        scale = max_epochs / PAPYAN_EPOCHS[-1]
        return {max(1, round(epoch * scale)) for epoch in PAPYAN_EPOCHS}
    return {int(epoch) for epoch in np.geomspace(1, max_epochs, _LOG_POINTS).round()}


def is_due(schedule: Schedule, epoch: int, before: int | None, max_epochs: int | None) -> bool:
    """Tell whether an epoch is scheduled, or one is since ``before`` that was not measured.

    Args:
        schedule: ``"log"`` has a meaning without an end, too.
        epoch: Completed epochs, measured.
        before: When something was due the last time; ``None``: never.
        max_epochs: Planned length of the run; the last epoch is due.
    """
    if before is None or epoch == max_epochs:
        return True
    plan = scheduled_epochs(schedule, max_epochs, endless=True)
    if isinstance(plan, int):
        return epoch // plan > before // plan
    return any(before < wanted <= epoch for wanted in plan)
