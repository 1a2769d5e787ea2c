"""How a network takes its inputs: as one argument, as several, or by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor, nn

from ncmonitor.errors import InputError
from ncmonitor.inputs.entries import TEXT_KEYS, is_input, named_entries

#: Parameters of ``forward`` that stand for the whole of what a loader gives.
_WHOLE: Final = frozenset({"batch", "data", "graph", "sample", "samples", "example", "examples"})


def run_network(module: pl.LightningModule, inputs: Any) -> Any:
    """Run the network on inputs as its ``forward`` takes them.

    * A mapping, or an object that is no tensor: by name, if ``forward`` takes those names and asks
      for no other. Failing that, of a mapping its only entry, or the only one with a usual name
      (``image``, ``x``, ...), unless the parameter's name says that it takes the whole batch.
    * A tuple or list: as several arguments, if ``forward`` requires several.
    * Everything else, and wherever the signature cannot be read: ``module(inputs)``.

    Args:
        module: The module under training.
        inputs: As split from a batch.

    Raises:
        InputError: If the module defines no ``forward``.
    """
    forward = _uncompiled(module).forward
    if _is_undefined(forward):
        raise _no_forward(_uncompiled(module))
    takes = None if isinstance(inputs, (Tensor, np.ndarray)) else _takes(forward)
    if takes is None:
        return module(inputs)
    named = named_entries(inputs)
    if named is None:
        sequence = type(inputs) in (tuple, list)  # not a PackedSequence
        several = sequence and 1 < takes.fewest <= len(inputs)
        return module(*inputs) if several and len(inputs) <= takes.most else module(inputs)
    mapping = isinstance(inputs, Mapping)
    names = set(named) if mapping and takes.any_name else takes.names & set(named)
    if names >= takes.required and (mapping or any(is_input(name) for name in names)) and names:
        return module(**{name: named[name] for name in named if name in names})
    return module(_sole_input(inputs, named, takes))


class _Takes(NamedTuple):
    """What a ``forward`` takes, without ``self``: names, and how many positional arguments."""

    first: str
    names: frozenset[str]
    required: frozenset[str]
    any_name: bool
    fewest: int
    most: int


def _uncompiled(module: nn.Module) -> nn.Module:
    """Return what ``torch.compile(module)`` wraps; its own ``forward`` takes anything."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def _is_undefined(forward: Any) -> bool:
    """Tell whether a ``forward`` is the one that every Lightning module inherits."""
    while hasattr(forward, "__wrapped__"):  # compiled
        forward = forward.__wrapped__
    name, home = getattr(forward, "__qualname__", ""), str(getattr(forward, "__module__", ""))
    lightning = home.split(".")[0] in ("pytorch_lightning", "lightning")
    return name == "_forward_unimplemented" or (name == "LightningModule.forward" and lightning)


def _takes(forward: Any) -> _Takes | None:
    """Read a signature; ``None`` if it has none to read."""
    try:
        parameters = [*inspect.signature(forward).parameters.values()]
    except Exception:  # built-in, scripted, or with a __signature__ of its own
        return None
    single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    ordered = [p for p in single if p.kind is not p.KEYWORD_ONLY]
    return _Takes(
        first=ordered[0].name if ordered else "",
        names=frozenset(p.name for p in single if p.kind is not p.POSITIONAL_ONLY),
        required=frozenset(p.name for p in single if p.default is p.empty),
        any_name=any(p.kind is p.VAR_KEYWORD for p in parameters),
        fewest=sum(p.default is p.empty for p in ordered),
        most=len(ordered),
    )


def _sole_input(inputs: Any, named: Mapping[str, Any], takes: _Takes) -> Any:
    """Return the one entry that a ``forward`` with a name of its own must mean, or all of them."""
    if takes.first in _WHOLE or not (
        isinstance(inputs, Mapping) or dataclasses.is_dataclass(inputs)
    ):
        return inputs
    if isinstance(inputs, Mapping) and len(named) == 1:
        return next(iter(named.values()))
    usual = [key for key in named if is_input(key)]
    text = any(key in TEXT_KEYS for key in named)
    return named[usual[0]] if len(usual) == 1 and not text else inputs


def _no_forward(module: nn.Module) -> InputError:
    sizes = {
        name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()
    }
    largest = max(sizes, key=lambda name: sizes[name], default="net")
    return InputError(
        f"{type(module).__name__} does not define forward, so the measuring pass cannot run it: "
        f"define forward, or pass forward=lambda module, x: module.{largest}(x) (its modules: "
        f"{', '.join(sizes) or 'none'})"
    )
