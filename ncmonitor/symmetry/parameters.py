"""Symmetries of the parameters: what the optimiser must do to them, whatever the data.

Softmax cross-entropy does not change when all rows of the classifier move together, so it gives
their mean no gradient: under SGD only weight decay acts on it. ReLU layers do not change when one
is scaled up and the next one down, so gradient flow conserves the difference of their norms.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ncmonitor.errors import InputError
from ncmonitor.inputs.tensors import as_tensor

#: Layers that scale with their input: they may stand between two balanced layers.
HOMOGENEOUS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample, nn.PixelShuffle,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
LINEAR: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class SgdSettings:
    """What one step of ``torch.optim.SGD`` does; names and defaults are torch's.

    Attributes:
        lr: Learning rate η.
        momentum: β.
        weight_decay: λ.
        dampening: τ.
        nesterov: Whether the momentum is Nesterov's.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> SgdSettings:
        """Read the parameter group of an optimiser, at the time of the step.

        Raises:
            InputError: If it is not a group of ``torch.optim.SGD``.
        """
        names = ("lr", "momentum", "weight_decay", "dampening", "nesterov")
        missing = [name for name in names if name not in group]
        if missing:
            raise InputError(
                f"the law of the row mean is one of torch.optim.SGD, but the parameter group has "
                f"no {missing[0]!r}; Adam and its kin scale every coordinate and break it"
            )
        values = {name: float(group[name]) for name in names[:-1]}
        return cls(**values, nesterov=bool(group["nesterov"]))

    @property
    def decay(self) -> float:
        """Factor per step that the row mean settles to under constant settings.

        The largest root of ``r² − (1 + β − ηλ) r + β = 0``, about ``exp(−ηλ/(1−β))`` while ηλ is
        far below (1−β)²/4; above it the roots are complex, and the row mean swings under √β. With
        dampening and Nesterov momentum, of the recursion they make. 1 without weight decay.
        """
        eta, beta, lam = self.lr, self.momentum, self.weight_decay
        if beta == 0:
            return abs(1 - eta * lam)
        gain = 1 - self.dampening
        trace = 1 + beta - eta * lam * (gain if not self.nesterov else 1 + beta * gain)
        product = beta * (1 - eta * lam) if self.nesterov else beta
        root = cmath.sqrt(trace**2 - 4 * product)
        return max(abs(trace + root), abs(trace - root)) / 2


class RowMeanLaw:
    """Row sum ``Wᵀ1`` of a softmax classifier under SGD, predicted from the settings alone.

    With zero gradient a step of SGD is linear: ``b ← βb + (1−τ)λw``, ``w ← w − ηb`` (Nesterov:
    ``w ← w − η(λw + βb)``), simulated in float64 step by step. It holds for every loss that sees
    softmax alone (class weights, label smoothing, mixup included), with gradients clipped by norm;
    not with MSE, Adam, or a penalty on W inside the loss. Autocast rounds the gradient, whose rows
    then sum to zero only to its own precision.

    Args:
        weight: Rows of the classifier at the start, ``(K, d)``.
        buffer: Its momentum buffer, ``(K, d)``, if the run has already begun.

    Raises:
        InputError: If a shape is not as above.

    Example:
        >>> import torch
        >>> from ncmonitor.symmetry.parameters import RowMeanLaw, SgdSettings
        >>> law = RowMeanLaw(torch.ones(2, 1))
        >>> law.step(SgdSettings(lr=0.5, weight_decay=0.5), times=2).norm
        1.125
    """

    def __init__(self, weight: Any, buffer: Any = None) -> None:
        self._start = _row_sum(weight, "weight")
        self._begun = None if buffer is None else _row_sum(buffer, "buffer")
        # Row sums of W and of the buffer: multiples of the first of W, and of the first buffer's.
        self._state = [(1.0, 0.0), (0.0, 1.0)]
        self._has_buffer = buffer is not None
        self.steps = 0
        self.wd_time = 0.0

    def step(self, settings: SgdSettings, times: int = 1) -> Self:
        """Advance by optimiser steps; not by those that a gradient scaler has skipped."""
        for _ in range(times):
            self._state = [self._moved(w, b, settings) for w, b in self._state]
            self._has_buffer |= settings.momentum != 0
        eta_lambda = settings.lr * settings.weight_decay * times
        if settings.momentum:
            eta_lambda *= (1 - settings.dampening) / (1 - settings.momentum)
        self.wd_time += eta_lambda
        self.steps += times
        return self

    def _moved(self, w: float, b: float, s: SgdSettings) -> tuple[float, float]:
        gradient = s.weight_decay * w
        if s.momentum == 0:  # torch leaves the buffer as it is
            return w - s.lr * gradient, b
        fresh = not self._has_buffer  # torch's first buffer is the gradient, not dampened
        b = gradient if fresh else s.momentum * b + (1 - s.dampening) * gradient
        return w - s.lr * (gradient + s.momentum * b if s.nesterov else b), b

    @property
    def row_sum(self) -> Tensor:
        """Predicted ``Wᵀ1``, ``(d,)`` float64."""
        predicted = self._state[0][0] * self._start
        return predicted if self._begun is None else predicted + self._state[1][0] * self._begun

    @property
    def norm(self) -> float:
        """Predicted ``‖Wᵀ1‖``; its square over K is NC0."""
        return float(self.row_sum.norm())

    def ratio(self, weight: Any) -> float:
        """Return measured over predicted ``‖Wᵀ1‖``.

        Args:
            weight: Rows of the classifier now, ``(K, d)``.

        Returns:
            1 where the law holds, whatever the data; more where something drives the row mean,
            such as Adam or MSE. ``nan`` once the prediction is below what rounding may have left
            after so many steps, ``eps √steps ‖W‖_F``.

        Source: Zhao et al. 2026 (NC0); the discrete law and the check are ncmonitor's.
        """
        rows = as_tensor(weight)
        measured = _row_sum(rows, "weight")
        floor = torch.finfo(rows.dtype).eps * math.sqrt(max(1, self.steps))
        if not self.norm > floor * float(rows.double().norm()):
            return math.nan
        return float(measured.norm()) / self.norm


def layer_balance(layers: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, float]:
    """Return ``‖W_{l+1}‖_F² − ‖W_l‖_F²`` for the neighbours in a chain of layers.

    The bias of layer l counts with W_l: scaling layer l by α and layer l+1 by 1/α scales it too.
    Gradient flow conserves each difference; weight decay shrinks it as ``exp(−2ηλt)``, and steps
    of finite size add their own drift.

    Args:
        layers: Every layer between input and output in the order of the computation, or each
            ``nn.Sequential`` of a model by :func:`chains`. Convolutions count like matrices.

    Returns:
        ``"l -> l+1"`` to a number: 0 for balanced layers. ``nan`` where anything but scaling
        layers (:data:`HOMOGENEOUS`) stands between, such as normalisation or GELU, for a layer
        that occurs twice, and for reparametrised weights: the symmetry is void there.

    Source: Du, Hu & Lee 2018 (auto-balancing).
    """
    named = layers if isinstance(layers, Mapping) else {str(i): m for i, m in enumerate(layers)}
    seen = [id(module) for module in named.values()]
    balance: dict[str, float] = {}
    before: tuple[str, nn.Module] | None = None
    void = False
    for name, module in named.items():
        if not isinstance(module, LINEAR):
            void |= not isinstance(module, HOMOGENEOUS)
            continue
        if before is not None:
            pair = (before[1], module)
            own = all(seen.count(id(m)) == 1 and "weight" in m._parameters for m in pair)
            value = _square(module, bias=False) - _square(before[1], bias=True)
            balance[f"{before[0]} -> {name}"] = value if own and not void else math.nan
        before, void = (name, module), False
    return balance


def chains(model: nn.Module) -> list[dict[str, nn.Module]]:
    """Return the leaves of each outermost ``nn.Sequential``, by name, in the order of computation.

    The order of other modules' children is not known without running them. A chain that the model
    does not run as it stands (that it indexes into, say) must not be balanced.

    Args:
        model: Any module.

    Returns:
        One dict per ``nn.Sequential``, for :func:`layer_balance`; of the outermost ones.
    """
    found: list[dict[str, nn.Module]] = []

    def visit(name: str, module: nn.Module) -> None:
        if isinstance(module, nn.Sequential):
            found.append(_leaves(name, module))
            inside = [m for m in found[-1].items() if not isinstance(m[1], LINEAR + HOMOGENEOUS)]
        else:
            inside = [(f"{name}.{n}" if name else n, m) for n, m in module.named_children()]
        for child, inner in inside:
            visit(child, inner)

    visit("", model)
    return found


def _leaves(prefix: str, chain: nn.Sequential) -> dict[str, nn.Module]:
    leaves: dict[str, nn.Module] = {}
    for name, module in chain._modules.items():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(module, nn.Sequential):
            leaves |= _leaves(full, module)
        elif module is not None:
            leaves[full] = module
    return leaves


def _row_sum(matrix: Any, what: str) -> Tensor:
    rows = as_tensor(matrix)
    if rows.ndim != 2 or not rows.is_floating_point():
        raise InputError(f"{what} must be floating point (K, d), got {tuple(rows.shape)}")
    return rows.cpu().double().sum(0)


def _square(layer: nn.Module, *, bias: bool) -> float:
    parts = [layer.weight, layer.bias if bias else None]
    wide = [p.detach().cpu().double() for p in parts if isinstance(p, Tensor)]
    return sum(float(part.square().sum()) for part in wide)
