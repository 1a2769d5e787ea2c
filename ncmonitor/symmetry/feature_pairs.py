"""Features under transforms at the edge: shapes, masks and averages over transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.inputs import tensors
from ncmonitor.inputs.tensors import as_tensor


def average_beyond_identity(values: Tensor) -> float:
    """Return the mean of all but the first value that are not ``nan``; ``nan`` if none is left."""
    return float(values[1:].nanmean())


def check_pairs(features: Any, mask: Any, *, identity: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return features under transforms and the mask, on a device that has float64.

    Args:
        features: ``(m, B, d)``, or one ``(B, d)`` per transform.
        mask: ``(m, B)`` or ``None``.
        identity: Whether the first transform must be the identity.

    Raises:
        InputError: Unless features are ``(m, B, d)`` floating point with B ≥ 1, and the mask
            ``(m, B)`` bool and true for the identity.
    """
    if isinstance(features, (list, tuple)):
        rows = [as_tensor(one) for one in features]
        if len({one.shape for one in rows}) > 1:
            raise InputError(
                "features must have one shape under all transforms, but have "
                f"{sorted({tuple(one.shape) for one in rows})}"
            )
        features = torch.stack(rows) if rows else torch.zeros(0)
    features = as_tensor(features)
    if features.ndim != 3 or 0 in features.shape:
        raise InputError(
            "features under transforms must have shape (m, B, d), none of them 0, but have shape "
            f"{tuple(features.shape)}; stack one (B, d) per transform, the identity first"
        )
    tensors.check_floating(features)
    place = tensors.home(features.device)
    if mask is None:
        return features.to(place), None
    mask = as_tensor(mask)
    if mask.dtype != torch.bool or mask.shape != features.shape[:2]:
        raise InputError(
            f"mask must be bool of shape {tuple(features.shape[:2])}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    mask = mask.to(place)
    if identity and not bool(mask[0].all()):
        raise InputError(
            "mask leaves out untransformed samples; the identity comes first and keeps every label"
        )
    return features.to(place), mask
