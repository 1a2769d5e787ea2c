"""Losses by name. Each is a module: of logits (N, K) and labels (N,), the mean over the samples.

The squared loss and its weight decay. With W, b the classifier and e_y the one-hot label, Han,
Papyan & Donoho (2022) decompose ::

    L = ½ Ave‖Wh + b − e_y‖² + (λ/2)(‖W‖² + ‖b‖²)

summed over the K classes. PyTorch's ``weight_decay`` of SGD and Adam adds (weight_decay/2)·‖θ‖² to
the loss. Dividing so that the data term is the one above gives

==========  ===================================  =================
loss        value                                λ
==========  ===================================  =================
mse         ½ Ave‖Wh + b − e_y‖²                 weight_decay
mse_mean    (1/K) Ave‖Wh + b − e_y‖²             K·weight_decay/2
==========  ===================================  =================

``mse`` is L itself: it equals ``mse_l_nc1 + mse_l_nc23 + mse_l_perp`` on balanced data.
``mse_mean`` is ``torch.nn.MSELoss()``, with which the authors' demonstration trains: its learning
rates (0.0184 for MNIST) belong to it. The same path with ``mse`` needs 2/K of the learning rate and
K/2 times the weight decay. :func:`ridge` gives λ, for ``NeuralCollapse(ridge=)``.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncmonitor.errors import InputError, nearest

LOSSES: Final = ("cross_entropy", "mse", "mse_mean", "label_smoothing", "focal")


class SquaredError(nn.Module):
    """Squared distance of the logits to the one-hot labels, as written in this module's text.

    Args:
        mean: Average over the classes (``mse_mean``) instead of half the sum (``mse``).
    """

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        squares = (logits - target).square()
        return squares.mean() if self.mean else squares.sum(dim=1).mean() / 2


class Focal(nn.Module):
    """Cross-entropy that counts samples less the better they are fitted: −(1 − p)^γ log p.

    p is the probability of the label.

    Args:
        gamma: γ, at least 0, which is cross-entropy.

    Source: Lin et al. 2017, focal loss, without class weights.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")  # −log p
        # In the terminal phase p rounds to 1: the slope of a fractional power there is infinite,
        # and infinity times a loss of 0 would be nan.
        miss = (-torch.expm1(-entropy)).clamp(min=torch.finfo(entropy.dtype).tiny)
        return (miss**self.gamma * entropy).mean()


def make_loss(
    name: str, *, smoothing: float | None = None, gamma: float | None = None
) -> nn.Module:
    """Return a loss by name.

    Args:
        name: One of :data:`LOSSES`.
        smoothing: ε of ``label_smoothing``, in [0, 1): the target is 1 − ε + ε/K for the label and
            ε/K for every other class. ``None``: 0.1.
        gamma: γ of ``focal``. ``None``: 2.

    Raises:
        InputError: If there is no such loss, or a parameter is out of range or of another loss.
    """
    if name not in LOSSES:
        raise InputError(
            f"unknown loss {name!r}, expected one of: {', '.join(LOSSES)}{nearest(name, LOSSES)}"
        )
    owners = {"smoothing": ("label_smoothing", smoothing), "gamma": ("focal", gamma)}
    for parameter, (owner, value) in owners.items():
        if value is not None and name != owner:
            raise InputError(
                f"{parameter} is a parameter of the loss {owner!r}, but the loss is {name!r}; "
                f"leave out {parameter}, or use --model.loss {owner}"
            )
    if smoothing is not None and not 0 <= smoothing < 1:
        raise InputError(f"smoothing must lie in [0, 1), but is {smoothing}")
    if gamma is not None and not 0 <= gamma < math.inf:
        raise InputError(f"gamma must be at least 0, but is {gamma}")
    if name == "label_smoothing":
        return nn.CrossEntropyLoss(label_smoothing=0.1 if smoothing is None else smoothing)
    if name == "focal":
        return Focal(2.0 if gamma is None else gamma)
    return nn.CrossEntropyLoss() if name == "cross_entropy" else SquaredError(name == "mse_mean")


def ridge(name: str, *, weight_decay: float, classes: int) -> float:
    """Return λ of the squared loss's decomposition, for ``NeuralCollapse(ridge=)``.

    Args:
        name: ``"mse"`` or ``"mse_mean"``.
        weight_decay: Of SGD or Adam; AdamW's is not a part of the loss.
        classes: K.

    Raises:
        InputError: For other losses, which have no such decomposition.
    """
    factors = {"mse": 1.0, "mse_mean": classes / 2}
    if name not in factors:
        raise InputError(f"λ is defined for the losses 'mse' and 'mse_mean', not for {name!r}")
    return factors[name] * weight_decay
