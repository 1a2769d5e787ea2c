"""Whether what a network makes of a sample depends on the batch that the sample comes in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ncmonitor.callbacks.trainers.clean_pass import CleanPass

#: Relative differences that another kernel for another batch size may make.
_ROUNDING: Final = {torch.float64: 1e-6, torch.float32: 2e-3}
_ROUNDING_OF_TF32: Final = 1e-2  # convolutions on accelerators compute in it by default
_ROUNDING_OF_HALF: Final = 5e-2


def check_batch_dependence(reading: CleanPass, inputs: Any) -> str | None:
    """Run the network on a batch twice, and on its first quarter, and compare the features.

    To be called inside :func:`~ncmonitor.callbacks.trainers.clean_pass.evaluating` and the tap's
    context.
    Never raises: inputs that cannot be split, and a network that rejects the part, tell nothing.

    Args:
        reading: Runs the network.
        inputs: Of one batch: a tensor, or a dictionary or sequence with tensors of one length.

    Returns:
        What to warn of; ``None`` if there is nothing, or if it cannot be told.
    """
    try:
        return _found(reading, inputs)
    except Exception:
        return None
    finally:
        reading.tap.forget()


def _found(reading: CleanPass, inputs: Any) -> str | None:
    size = _length(inputs)
    if size is None or size < 2:
        return None
    count = max(2, size // 4) if size > 2 else 1
    # Copies: a network may write on what it is given.
    whole, again = (reading.run(copy.deepcopy(inputs)).features for _ in range(2))
    if whole.shape[0] % size:  # what was taken for samples is none
        return None
    change = _change(whole, again)
    if change > 0:
        return (
            f"the network gives other features for the same batch in eval mode (by {change:.0%}): "
            "it draws at random, or keeps something from one batch to the next, and the measured "
            "numbers depend on it. Make its forward deterministic in eval mode"
        )
    part = reading.run(copy.deepcopy(_first(inputs, count, size))).features
    if part.shape[0] * size != whole.shape[0] * count or part.shape[1:] != whole.shape[1:]:
        return None
    change = _change(whole[: part.shape[0]], part)
    if change > 0:
        return (
            f"the features of a sample depend on its batch: with {count} of {size} samples they "
            f"differ by {change:.0%}, as with BatchNorm without running statistics or another "
            "normalisation over the batch. They are measured in batches of the loader's size and "
            "in one shuffled order; other batches give other numbers"
        )
    return None


def _change(one: Tensor, other: Tensor) -> float:
    """Return the relative difference of features; 0 if it may be rounding."""
    if one.dtype not in _ROUNDING:
        rounding = _ROUNDING_OF_HALF
    elif one.is_cpu or one.dtype == torch.float64:
        rounding = _ROUNDING[one.dtype]
    else:
        rounding = _ROUNDING_OF_TF32
    size = one.double().square().mean().sqrt()
    change = float((one.double() - other.double()).square().mean().sqrt() / size)
    return change if change > rounding else 0.0  # not for nan


def _length(inputs: Any) -> int | None:
    """Return the common length of all tensors; ``None`` if there is none."""
    lengths = {len(tensor) if tensor.ndim else None for tensor in _tensors(inputs)}
    return lengths.pop() if len(lengths) == 1 else None


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        return [tensor for each in inputs.values() for tensor in _tensors(each)]
    if isinstance(inputs, (list, tuple)):
        return [tensor for each in inputs for tensor in _tensors(each)]
    if inputs is None or isinstance(inputs, (bool, int, float, str)):
        return []
    raise TypeError(f"cannot split a {type(inputs).__name__}")


def _first(inputs: Any, count: int, size: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[:count]
    if isinstance(inputs, Mapping):
        return {key: _first(each, count, size) for key, each in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        if len(inputs) == size and not _tensors(inputs):  # a text for each sample
            return inputs[:count]
        parts = [_first(each, count, size) for each in inputs]
        if isinstance(inputs, list):
            return parts
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else tuple(parts)
    return inputs
