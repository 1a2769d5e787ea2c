"""Symmetries of the parameters through a fit: the classifier's mean row, the layers' balance."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ncmonitor.symmetry.parameters import RowMeanLaw, SgdSettings, chains, layer_balance


class _Attempt(NamedTuple):
    """A step that a gradient scaler may skip, and the scale before it."""

    settings: SgdSettings
    scaler: Any
    scale: float


class ParameterWatch:
    """Follows what symmetry demands of the parameters, whatever the data.

    The row sum ``Wᵀ1`` of the classifier is compared to what the optimizer's own settings predict
    from the first step on (:class:`~ncmonitor.symmetry.parameters.RowMeanLaw`): the lr, momentum
    and weight decay that each step finds, over however many batches its gradient was gathered.
    Steps that move nothing count for nothing: a weight without a gradient, a step that the
    gradient scaler of ``16-mixed`` skips. The law is one of ``torch.optim.SGD``; other optimizers
    have none, and the ratio is ``nan`` with a :attr:`reason`. Under SGD a ratio other than 1 is a
    finding: a loss that sees more than softmax (MSE, a penalty on W), gradients clipped entry by
    entry (by their norm makes no difference), tied weights, a W changed outside the optimizer.
    Rounding moves it by 5e-7 in 420 steps of the digits recipe in float32, and by 3e-4 under
    bfloat16 autocast, where the rows of the gradient sum to zero only roughly.

    Nothing is drawn, written or kept of the network.

    Args:
        weight: The classifier's weight as the optimizer holds it, ``(K, d)`` or that of a
            pointwise convolution; ``None`` if it is computed by a parametrisation.
        module: The whole network, for the balance of its layers.

    Attributes:
        reason: Why the last ``w_mean_law_ratio`` is ``nan``; ``None`` if it is a number.
    """

    def __init__(self, weight: nn.Parameter | None, module: nn.Module) -> None:
        self._weight, self._module = weight, module
        self._law: RowMeanLaw | None = None
        self._attempt: _Attempt | None = None
        self._held = False  # by an optimizer, as far as is known
        self._broken: str | None = None  # for good: what was once missed is never made up for
        self.reason: str | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Start the law at the present weights, or go on with the one that was loaded.

        Args:
            trainer: With its optimizers, in ``on_train_start``.
        """
        weight = self._weight
        if weight is None:
            self._broken = "the classifier's weight is computed, and no optimizer holds it as it is"
            return
        holders = [o for o in trainer.optimizers if _group_of(o, weight) is not None]
        self._held = bool(holders)
        if len(holders) > 1:
            self._broken = "several optimizers hold the classifier's weight, each with its momentum"
        for optimizer in holders:
            self._broken = self._broken or _objection(optimizer)
        if self._law is None:
            # of a run that began without the watch; .get, as [] would make an entry
            buffers = [o.state.get(weight, {}).get("momentum_buffer") for o in holders[:1]]
            buffer = next((_rows(b) for b in buffers if b is not None), None)
            self._law = RowMeanLaw(_rows(weight), buffer)

    def step(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Follow the step that is about to be made, of whichever optimizer.

        Args:
            trainer: For the gradient scaler of its precision plugin.
            optimizer: As ``on_before_optimizer_step`` gets it.
        """
        try:
            self._settle()
            self._follow(trainer, optimizer)
        except Exception as error:  # an optimizer unlike any known must not stop the training
            self._broken = f"a step of {type(optimizer).__name__} is not understood: {error}"

    def _follow(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> None:
        weight, law = self._weight, self._law
        if self._broken or law is None or weight is None:
            return
        group = _group_of(optimizer, weight)
        if group is None or weight.grad is None:  # SGD then skips it, weight decay included
            return
        self._held = True  # fine-tuning may hand a weight over later
        self._broken = _objection(optimizer)
        if self._broken:
            return
        settings = SgdSettings.of(group)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            law.step(settings)
        else:
            self._attempt = _Attempt(settings, scaler, scaler.get_scale())

    def _settle(self) -> None:
        """Count the last attempt, unless the scale has fallen since: then it was skipped."""
        attempt, self._attempt = self._attempt, None
        if attempt is None or self._law is None:
            return
        if attempt.scaler.get_scale() >= attempt.scale:
            self._law.step(attempt.settings)

    def read(self) -> dict[str, dict[str, float]]:
        """Return the numbers at the present, raw weights; averaged ones obey no such law.

        Returns:
            Under ``""`` the ``w_mean_law_ratio``, measured over predicted ‖Wᵀ1‖: 1 where the law
            holds, ``nan`` where there is none (:attr:`reason`). Under ``"a -> b"`` the
            ``layer_balance`` of two neighbours in a ``nn.Sequential``, by name, as
            :func:`~ncmonitor.symmetry.parameters.layer_balance` has it.
        """
        self._settle()
        ratio, self.reason = self._ratio()
        numbers = {"": {"w_mean_law_ratio": ratio}}
        for chain in chains(self._module):
            for pair, value in layer_balance(chain).items():
                numbers[pair] = {"layer_balance": value}
        return numbers

    def _ratio(self) -> tuple[float, str | None]:
        """Return measured over predicted ‖Wᵀ1‖, or ``nan`` and why."""
        weight, law = self._weight, self._law
        if self._broken:
            return math.nan, self._broken
        if law is None or weight is None:
            return math.nan, "the fit has not begun"
        if not self._held:
            return math.nan, "no optimizer holds the classifier's weight"
        rows = _rows(weight)
        if not bool(torch.isfinite(rows).all()):
            return math.nan, "the classifier's weight is not finite"
        ratio = law.ratio(rows)
        if law.steps == 0 and ratio != 1 and not math.isnan(ratio):
            return math.nan, "the classifier has moved, but no step of an optimizer was announced"
        if math.isnan(ratio):
            return ratio, (
                f"the predicted row sum, {law.norm:.1e}, is below what rounding may have left of "
                f"it after {law.steps} steps"
            )
        return ratio, None

    def state_dict(self) -> dict[str, Any]:
        """Return the law from its start, as plain values and tensors."""
        self._settle()
        return {
            "law": None if self._law is None else dict(vars(self._law)),
            "broken": self._broken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; to be called before :meth:`begin`."""
        self._attempt, self._broken, self._law = None, state["broken"], None
        if state["law"] is not None:
            self._law = RowMeanLaw(torch.zeros(1, 1))
            vars(self._law).update(state["law"])


def _group_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any] | None:
    """Return the parameter group that the weight is in; by identity, as == compares entries."""
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            return group
    return None


def _objection(optimizer: torch.optim.Optimizer) -> str | None:
    """Say why no law is known for the steps of an optimizer; ``None`` if one is."""
    kind = type(optimizer)
    if not isinstance(optimizer, torch.optim.SGD):
        return f"{kind.__name__} is not torch.optim.SGD, for which alone the law is known"
    # Torch wraps the step of each class, and schedulers that of each optimizer.
    if inspect.unwrap(kind.step) is not inspect.unwrap(torch.optim.SGD.step):
        return f"{kind.__name__} has a step of its own, and the law is that of torch.optim.SGD"
    return None


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)
