"""The last linear layer: logits that lose no digits to a common offset of the features."""

from __future__ import annotations

import torch
from torch import Tensor

from ncmonitor import geometry
from ncmonitor._checks import InputError, MeasurementError
from ncmonitor._tensors import Scratch, as_tensor


class Classifier:
    """The last linear layer, ``z = W h + b``.

    Args:
        weight: ``(K, d)`` floating point; kept as it is, not copied.
        bias: ``(K,)`` or ``None``.

    Raises:
        InputError: If the shapes or dtypes do not fit.
        MeasurementError: If a number is not finite.
    """

    def __init__(self, weight: object, bias: object = None) -> None:
        self.weight = as_tensor(weight)
        if self.weight.ndim != 2:
            raise InputError(f"weight must have shape (K, d), got {tuple(self.weight.shape)}")
        if not self.weight.is_floating_point():
            raise InputError(
                f"weight must be floating point, but has dtype {self.weight.dtype}; "
                "pass weight.float()"
            )
        count = self.weight.shape[0]
        zeros = self.weight.new_zeros(count)
        self.bias = (zeros if bias is None else as_tensor(bias)).double().cpu()
        if self.bias.shape != (count,):
            raise InputError(
                f"bias must have shape ({count},) like the rows of weight, "
                f"got {tuple(self.bias.shape)}"
            )
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise MeasurementError(
                "the classifier's weight or bias is not finite (nan or inf): the network has "
                "diverged"
            )
        self._ready: tuple[Tensor, Tensor] | None = None

    def check(self, features: Tensor) -> None:
        """Raise :class:`InputError` unless it takes features of this dimension."""
        if features.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"expected features of dimension {self.weight.shape[1]} as weight has columns, "
                f"got {features.shape[1]}"
            )

    def at(self, point: Tensor) -> Tensor:
        """Return ``W point + b``, ``(K,)`` float64 on the CPU."""
        point = point.double().cpu()
        parts = self.weight.split(geometry.BLOCK_ROWS)
        return torch.cat([part.double().cpu() @ point for part in parts]) + self.bias

    def logits(self, features: Tensor, origin: Tensor, scratch: Scratch, out: Tensor) -> Tensor:
        """Return ``(N, K)`` logits, taken about ``origin``: a common offset costs no digits.

        Args:
            features: ``(N, d)``.
            origin: A point near the features, ``(d,)``; the same at every call.
            scratch: For the difference.
            out: Where the logits go, ``(N, K)``.
        """
        if self._ready is None:
            self._ready = self.weight.to(features), self.at(origin).to(features)
        weight, constant = self._ready
        about = scratch.get("about", features, *features.shape, dtype=features.dtype)
        torch.sub(features, origin, out=about)
        return torch.mm(about, weight.T, out=out).add_(constant)
