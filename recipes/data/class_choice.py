"""Which classes of a data set are used, numbered anew."""

from __future__ import annotations

import torch
from torch import Tensor

from ncmonitor.errors import InputError


def only_classes(labels: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the positions of the images of some classes, ascending, and labels counted anew.

    Args:
        labels: (N,) integers.
        classes: Ascending; the first one becomes class 0.
    """
    wanted = torch.tensor(classes)
    keys = torch.isin(labels, wanted).nonzero().flatten()
    return keys, torch.searchsorted(wanted, labels[keys])


def checked_classes(classes: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    """Return the classes to use, ascending.

    Raises:
        InputError: If there are fewer than two, or one of them does not exist.
    """
    chosen = tuple(sorted(set(classes)))
    if len(chosen) < 2 or len(chosen) < len(classes) or not set(chosen) <= {*range(num_classes)}:
        raise InputError(
            f"classes must be two or more different ones of 0 to {num_classes - 1}, but are "
            f"{list(classes)}"
        )
    return chosen
