"""What theory says of a network under a group, and when a measured error agrees with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from ncmonitor.symmetry import Group

#: At most this is 0. Errors are squared, relative to the variance of what moves, and measured in
#: float64, whose rounding alone gives 1e-32 to 1e-26: this is a move by 1e-8 standard deviations.
EXACT: Final = torch.finfo(torch.float64).eps


class Theory(StrEnum):
    """What holds whatever the weights are."""

    ZERO = "exactly 0"
    #: Zero but for a border or a stride: neither 0, nor as large as without the construction.
    SMALL = "nearly 0"
    #: Nothing in the network makes it 0; data and chance decide.
    FREE = "free"


@dataclass(frozen=True)
class Claim:
    """What theory says of one network under one group.

    Attributes:
        group: Acts on the inputs.
        output: Of the features, and of the logits, which are linear in them: how far they are from
            invariant.
        inner: Of the inner map: how far it is from equivariant; None where theory is silent.
        acts: How the group acts on the inner map, element by element under the same names.
        below: For SMALL: the network whose error under the same group must be larger.
    """

    group: Group
    output: Theory
    inner: Theory | None = None
    acts: Group | None = None
    below: str = ""

    def of(self, where: str) -> Theory | None:
        """Return what is claimed of ``"features"``, ``"logits"`` or ``"inner"``."""
        return self.inner if where == "inner" else self.output


def agrees(theory: Theory, error: float, reference: float | None = None) -> bool | None:
    """Tell whether a measured error is what theory says.

    Args:
        theory: What it says.
        error: Invariance or equivariance error, 0 or more.
        reference: For SMALL: the error of the network that lacks the construction.

    Returns:
        None where it cannot be told: the error is nan, or SMALL without a reference.
    """
    if math.isnan(error):
        return None
    if theory is Theory.ZERO:
        return error <= EXACT
    if theory is Theory.FREE:
        return error > EXACT
    if reference is None or math.isnan(reference):
        return None
    return EXACT < error < reference
