"""When a picture is due."""

from __future__ import annotations

from collections.abc import Collection

from ncmonitor.errors import InputError
from ncmonitor.monitor.schedule import Schedule, scheduled_epochs


def planned(every: Schedule, max_epochs: int | None) -> Collection[int] | int:
    """Resolve a schedule; ``"log"`` has a meaning without an end, too.

    Args:
        every: As for :func:`~ncmonitor.monitor.schedule.scheduled_epochs`.
        max_epochs: Planned length of the run; ``None`` or −1 if open.

    Raises:
        InputError: If it is no schedule, or needs an end that the run does not have.
    """
    try:
        return scheduled_epochs(every, max_epochs, endless=True)
    except InputError as error:
        raise InputError(str(error).replace("schedule=", "every=")) from error


def is_due(every: Schedule, epoch: int, before: int | None, max_epochs: int | None) -> bool:
    """Tell whether an epoch is scheduled, or one is since ``before`` that was not measured.

    Args:
        every: The schedule.
        epoch: Completed epochs, measured.
        before: When something was due the last time; ``None``: never.
        max_epochs: Planned length of the run; the last epoch is due.
    """
    if before is None or epoch == max_epochs:
        return True
    plan = planned(every, max_epochs)
    if isinstance(plan, int):
        return epoch // plan > before // plan
    return any(before < wanted <= epoch for wanted in plan)
