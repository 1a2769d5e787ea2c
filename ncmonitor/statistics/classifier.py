"""The last linear layer: logits that lose no digits to a common offset of the features."""

from __future__ import annotations

import torch
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.geometry import vectors as geometry
from ncmonitor.inputs.tensors import Scratch, as_tensor


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
        sums = torch.stack([self.weight.sum(dtype=torch.float64).cpu(), self.bias.sum()])
        if not bool(sums.isfinite().all()):  # a sum is finite only if its terms are
            raise MeasurementError(
                "the classifier's weight or bias is not finite (nan or inf): the network has "
                "diverged"
            )

    def check(self, features: Tensor) -> None:
        """Raise :class:`InputError` unless it takes features of this dimension."""
        wide, expected = features.shape[1], self.weight.shape[1]
        if wide != expected:
            turned = "; pass weight.T if it is (d, K)" if wide == self.weight.shape[0] else ""
            raise InputError(
                f"expected features of dimension {expected} as weight has columns, got {wide}"
                f"{turned}"
            )

    def at(self, point: Tensor) -> Tensor:
        """Return ``W point + b``, ``(K,)`` float64 on the CPU."""
        point = point.double().cpu()
        parts = torch.split(self.weight, geometry.BLOCK_ROWS)
        return torch.cat([part.double().cpu() @ point for part in parts]) + self.bias


class Scorer:
    """Logits of a stream of features, taken about a point among them.

    Args:
        classifier: The last layer.
        origin: A point near the features, ``(d,)``, in the precision of the products.
    """

    def __init__(self, classifier: Classifier, origin: Tensor) -> None:
        self._origin = origin
        self._weight = classifier.weight.to(origin)
        self._constant = classifier.at(origin).to(origin)

    def logits(self, features: Tensor, scratch: Scratch, out: Tensor) -> Tensor:
        """Write the logits of ``(N, d)`` features to ``out``, ``(N, K)``, and return it."""
        about = scratch.get("about", out, *features.shape, dtype=out.dtype)
        torch.sub(features, self._origin, out=about)
        return torch.addmm(self._constant, about, self._weight.T, out=out)
