"""Lie derivatives: how fast an output moves as its input starts to shift, turn or scale.

For outputs that should not move, ``L f(x) = d/dt f(flow(x, t))`` at t = 0; for feature maps, which
should move along, the output is moved back first. Interpolated flows (bilinear above all) have a
kink at t = 0, where the one-sided derivatives are different pixel differences; a symmetric
difference at ±½ px averages the two. Features and centred logits are compared with their total
variance. Softmax probabilities are not offered: they saturate as the network becomes confident, so
that their derivative vanishes whether or not the network is invariant.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Final, Self

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.inputs import tensors
from ncmonitor.inputs.tensors import as_tensor, check_floating, exact_arithmetic

#: Half a pixel, for shifts in pixels; for angles and scales take what moves the rim that far.
STEP: Final = 0.5

Flow = Callable[[Tensor, float], Tensor]


class LieError:
    """Mean squared Lie derivative over batches, in units of the features' total variance.

    Args:
        step: t of the symmetric difference, in the units of the flow (pixels, degrees).

    Raises:
        InputError: If the step is not a positive number.

    Example:
        >>> import torch
        >>> from ncmonitor.symmetry.lie import LieError
        >>> LieError(0.5).update(torch.tensor([[1.0]]), torch.tensor([[0.0]])).value(4.0)
        0.25
    """

    def __init__(self, step: float = STEP) -> None:
        if not 0 < step < math.inf:
            raise InputError(f"step= must be a positive number, got {step!r}")
        self.step = float(step)
        self.count = 0
        self._squares: Tensor | None = None

    def update(self, ahead: Any, back: Any) -> Self:
        """Add a batch.

        Args:
            ahead: Output at ``flow(x, step)``, ``(B, ...)``; features are flattened.
            back: Output at ``flow(x, −step)``, the same shape.

        Raises:
            InputError: If the shapes differ or are not floating point.
        """
        ahead, back = as_tensor(ahead), as_tensor(back)
        check_floating(ahead)
        if ahead.shape != back.shape or ahead.ndim < 2:
            raise InputError(
                "expected two outputs of one shape (B, ...), got "
                f"{tuple(ahead.shape)} and {tuple(back.shape)}"
            )
        place = tensors.home(ahead.device)
        with exact_arithmetic(place):
            # In float64 the difference of nearly equal outputs is exact.
            slope = (ahead.to(place).double() - back.to(place).double()) / (2 * self.step)
            squares = slope.square().sum()
        self._squares = squares if self._squares is None else self._squares + squares
        self.count += len(ahead)
        return self

    def value(self, total_variance: float) -> float:
        """Return ``lie_error = Ave ‖L f(x)‖² / tr Σ_T``, per unit of t squared.

        Args:
            total_variance: ``tr Σ_T`` of the same outputs, untransformed: for features
                :attr:`~ncmonitor.symmetry.invariance.FeatureInvariance.total_variance`.

        Returns:
            In [0, ∞): 0 for an invariant network (an equivariant one, where the output is moved
            back); ``1/(2 t²)`` where the outputs at t and −t are independent. ``nan`` without
            samples or variance. The rounding of features of size ‖h‖ in float32 leaves about
            ``(1e-7 ‖h‖/t)²/tr Σ_T``.

        Source: Gruver et al. 2022 (local equivariance error), there divided by the number of
        outputs.
        """
        if self._squares is None or not total_variance > 0:
            return math.nan
        return float(self._squares) / self.count / total_variance


def lie_difference(
    f: Callable[[Tensor], Tensor],
    flow: Flow,
    inputs: Tensor,
    step: float = STEP,
    *,
    undo: Flow | None = None,
) -> Tensor:
    """Return the Lie derivative by symmetric difference, ``(B, ...)``: two forwards.

    ``(f(flow(x, t)) − f(flow(x, −t))) / 2t``, off by ``O(t²)`` for smooth flows.

    Args:
        f: Network, or any map of a batch; its mode and gradients are the caller's.
        flow: ``(x, t) ↦`` x moved by t; t = 0 leaves x alone.
        inputs: ``(B, ...)``.
        step: t.
        undo: For an output that moves along: ``(y, t) ↦`` y moved by −t. Feature maps that mix
            channels when they move (steerable ones) need it to mix them back.

    Returns:
        0 for an invariant f; for an equivariant one with ``undo``.

    Raises:
        InputError: If the step is not a positive number.

    Source: Gruver et al. 2022.
    """
    if not 0 < step < math.inf:
        raise InputError(f"step= must be a positive number, got {step!r}")
    ahead, back = f(flow(inputs, step)), f(flow(inputs, -step))
    if undo is not None:
        ahead, back = undo(ahead, step), undo(back, -step)
    wide = torch.float32 if ahead.device.type == "mps" else torch.float64
    return (ahead.to(wide) - back.to(wide)) / (2 * step)


def lie_jvp(
    f: Callable[[Tensor], Tensor],
    flow: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    *,
    undo: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the Lie derivative exactly, ``(B, ...)``: one forward-mode pass (``torch.func.jvp``).

    For flows that are smooth in t, such as a Fourier shift. Of an interpolated flow it returns
    whichever one-sided derivative the kink gives; use :func:`lie_difference` there.

    Args:
        f: As in :func:`lie_difference`; every operation must have a forward-mode derivative.
        flow: ``(x, t)`` with t a scalar tensor that is differentiated through.
        inputs: ``(B, ...)`` floating point.
        undo: As in :func:`lie_difference`, with t a scalar tensor.

    Returns:
        In the precision of f; 0 for an invariant f.

    Source: Gruver et al. 2022.
    """

    def moved(t: Tensor) -> Tensor:
        out = f(flow(inputs, t))
        return out if undo is None else undo(out, t)

    start = inputs.new_zeros(())
    with warnings.catch_warnings():  # the first pass imports a part of torch that torch deprecates
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        slope: Tensor = torch.func.jvp(moved, (start,), (torch.ones_like(start),))[1]
    return slope
