"""What is kept of an inner layer's output: one row of features for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ncmonitor.errors import InputError
from ncmonitor.features.heads.links import tensors

Reduce = Literal["gap", "flatten", "tokens"] | Callable[[Tensor], Tensor]

REDUCTIONS = ("gap", "flatten", "tokens")
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,  # of instances, too
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


def reduced(name: str, module: nn.Module, output: Any, how: Reduce) -> Tensor | None:
    """Return what is kept of a layer's output, in memory of its own; ``None`` if it cannot be."""
    first = next(tensors(output), None)
    if first is None or not first.is_floating_point() or first.ndim < 2:
        return None
    first = first.detach()
    if first.ndim == 3 and getattr(module, "batch_first", True) is False:
        first = first.transpose(0, 1)
    if callable(how):
        kept = _called(name, first, how)
    elif how == "flatten":
        kept = first.flatten(1)
    else:
        kept = first.movedim(1, -1) if _channels_first(module, first.ndim) else first
        if how == "gap" and kept.ndim > 2:
            half = torch.finfo(kept.dtype).bits < 32
            positions = tuple(range(1, kept.ndim - 1))
            kept = kept.mean(positions, dtype=torch.float32 if half else None)
    # Operations in place that follow (ReLU) would write to a view; a view keeps the map alive, too.
    own = kept.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    return kept if own else kept.clone()


def _called(name: str, output: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
    shape = tuple(output.shape)
    try:
        kept = how(output)
    except Exception as error:
        raise InputError(
            f"reduce= failed on the output {shape} of the layer {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(kept, Tensor) or kept.ndim < 2:
        got = f"shape {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        raise InputError(
            f"reduce= must return a tensor (B, d'), but gave {got} for the output {shape} of the "
            f"layer {name!r}"
        )
    return kept.detach()


def _channels_first(module: nn.Module, ndim: int) -> bool:
    if ndim > 3:  # subclasses of LayerNorm exist for maps, and keep channels first
        return not (isinstance(module, _CHANNELS_LAST) or type(module) is nn.LayerNorm)
    inside = module.modules() if isinstance(module, nn.Sequential) else [module]
    for part in reversed(list(inside)):
        if isinstance(part, (*_CHANNELS_FIRST, *_CHANNELS_LAST, nn.LayerNorm)):
            return isinstance(part, _CHANNELS_FIRST) and ndim > 2
    return False
