"""What a group is made of: names, a table, classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, is_whole, nearest

_NAME: Final = re.compile(r"[^\s/]+")


def check_name(what: str, name: object) -> None:
    """Refuse a name that cannot be part of a log key."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"the name of {what} must be a word without blanks or '/', got {name!r}")


def checked_table(name: str, table: Tensor, count: int) -> Tensor:
    """Return the composition table of a group, if it is one."""
    table = torch.as_tensor(table).to("cpu", torch.int64)
    every = torch.arange(count)
    if table.shape != (count, count):
        raise InputError(
            f"the table of group {name!r} must be {count} × {count}, got {tuple(table.shape)}"
        )
    if not (torch.equal(table[0], every) and torch.equal(table[:, 0], every)):
        raise InputError(f"the table of group {name!r} must have the identity at position 0")
    lines = torch.cat([table, table.T]).sort(dim=1).values
    if not (lines == every).all():
        raise InputError(
            f"the table of group {name!r} must hold each element once in every row and column"
        )
    return table


def checked_classes(
    classes: Mapping[str, Collection[int]], names: Sequence[str]
) -> dict[str, frozenset[int]]:
    """Return which classes each element leaves out, if elements and labels exist."""
    for element, labels in classes.items():
        if element not in names:
            raise InputError(
                f"excluded= names {element!r}, which is no element of the group"
                f"{nearest(str(element), names)}; there are {', '.join(names[:12])}"
            )
        if not all(is_whole(c) and c >= 0 for c in labels):
            raise InputError(
                f"excluded classes of {element!r} must be whole numbers from 0, got {labels!r}"
            )
    return {element: frozenset(int(c) for c in labels) for element, labels in classes.items()}
