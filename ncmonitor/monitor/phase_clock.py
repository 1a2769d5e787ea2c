"""The clock of the terminal phase of training (TPT), and of weight decay."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class PhaseClock:
    """When the terminal phase began, whether it holds, and for how long.

    The phase begins when the error on the whole training set, measured in eval mode at fixed
    weights, first vanishes (Papyan, Han & Donoho 2020). It can be left again; a return counts as
    an exit, not as a new beginning.

    Attributes:
        accuracy: Train accuracy that marks the *effective* start; the paper uses 0.999 (0.996 for
            ImageNet) because of label noise.
        start_exact: Completed epochs when the train error first was 0.
        start_effective: The same for ``accuracy``.
        inside: Epochs spent at zero error: the gaps between neighbouring measurements that both
            found none.
        exits: Times the error came back.
        epoch: Last measured epoch.
        active: Whether the error was 0 then.
    """

    accuracy: float = 0.999
    start_exact: int | None = None
    start_effective: int | None = None
    inside: int = 0
    exits: int = 0
    epoch: int | None = None
    active: bool = False

    def update(self, epoch: int, error: float) -> None:
        """Take in the train error after ``epoch`` completed epochs; ``nan`` changes nothing."""
        if math.isnan(error):
            return
        now = error == 0
        if self.active and not now:
            self.exits += 1
        if self.active and now and self.epoch is not None:
            self.inside += epoch - self.epoch
        if now and self.start_exact is None:
            self.start_exact = epoch
        if 1 - error >= self.accuracy and self.start_effective is None:
            self.start_effective = epoch
        self.epoch, self.active = epoch, now

    def as_dict(self) -> dict[str, float]:
        """Return the phase quantities by catalogue name; a start not yet reached is ``nan``."""
        return {
            "tpt_active": float(self.active),
            "tpt_start_exact": math.nan if self.start_exact is None else self.start_exact,
            "tpt_start_effective": (
                math.nan if self.start_effective is None else self.start_effective
            ),
            "epochs_in_tpt": float(self.inside),
            "tpt_exits": float(self.exits),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)


def decay_time(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> float:
    """Weight-decay time that one optimizer step adds for a parameter, ``η λ / (1 − β)``.

    Softmax cross-entropy gives the classifier's mean row no gradient, so under (momentum) SGD it
    decays as ``exp(−τ)`` with τ the sum of these steps: the slow root of
    ``r² − (1 + β − ηλ) r + β = 0``, to first order: its true rate is larger by a share of
    ``ηλβ / (1 − β)²``, 9 % at η = 0.1, λ = 0.01, β = 0.9. Decoupled decay (AdamW) has ``η λ``.

    Args:
        optimizer: About to step.
        parameter: The classifier's weight.

    Returns:
        0 if the optimizer does not hold the parameter or has no weight decay; ``nan`` where no
        such law holds (coupled decay under adaptive steps, unknown optimizers).
    """
    import torch  # the clock alone is read without it

    for group in optimizer.param_groups:
        if not any(p is parameter for p in group["params"]):
            continue
        rate, decay = float(group.get("lr", math.nan)), float(group.get("weight_decay", 0.0))
        if decay == 0:
            return 0.0
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"] < 1:
            gain = 1 - group["dampening"] if group["momentum"] else 1.0
            return float(rate * decay * gain / (1 - group["momentum"]))
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        return rate * decay if decoupled or group.get("decoupled_weight_decay") else math.nan
    return 0.0
