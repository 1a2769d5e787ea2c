"""Tensors that are put back, bit for bit and in place, after something has run on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

#: Bytes up to which a tensor is copied beforehand: buffers of a norm, counters, small layers.
_SMALL: Final = 2**16
_WORDS: Final = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


class KeptTensors:
    """Memory of tensors, as it was when they were added.

    What is small is copied at once. Of the rest a copy is made when an operation is about to write
    on it inside :meth:`watching`, or at once if ``written`` names it. So a large network that does
    not write on its weights is never copied. What is written outside, and what a kernel writes
    past PyTorch's dispatcher, is found by a sum over the bits and cannot be put back.

    Args:
        written: Names of tensors that earlier passes have written on; grows.
    """

    def __init__(self, written: set[str]) -> None:
        self._written = written
        self._tensors: dict[int, tuple[str, Tensor, Tensor]] = {}  # name, object, its data
        self._names: dict[int, str] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._copies: dict[int, torch.UntypedStorage] = {}
        self._sums: dict[int, Tensor] = {}
        self._grads: list[tuple[Tensor, Tensor | None, bool]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor; one without memory of its own (lazy, meta) is left alone."""
        if id(tensor) in self._tensors or is_lazy(tensor) or tensor.is_meta:
            return
        self._tensors[id(tensor)] = (name, tensor, tensor.data)
        if tensor.is_leaf:
            self._grads.append((tensor, tensor.grad, tensor.requires_grad))
            if tensor.grad is not None:
                self._add_memory(f"{name}.grad", tensor.grad)
        self._add_memory(name, tensor)

    def _add_memory(self, name: str, tensor: Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
            if storage._cdata in self._storages or (storage.nbytes() and not storage.data_ptr()):
                return  # known, or a wrapper around other tensors
        except (NotImplementedError, RuntimeError):  # sparse and other layouts
            return
        self._storages[storage._cdata] = storage
        self._names[storage._cdata] = name
        if storage.nbytes() <= _SMALL or name in self._written:
            self._copies[storage._cdata] = _copied(storage)
        else:
            self._sums[storage._cdata] = _bits(storage)

    def watching(self) -> TorchDispatchMode:
        """Return a context in which memory is copied before it is written on."""
        return _Watch(self._about_to_write)

    def _about_to_write(self, tensor: Tensor) -> None:
        try:
            key = tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):
            return
        if key in self._storages and key not in self._copies:
            self._copies[key] = _copied(self._storages[key])
            self._written.add(self._names[key])

    def restore(self) -> list[str]:
        """Put everything back; return the names of what changed and could not be."""
        for tensor, grad, requires_grad in self._grads:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        for _, tensor, data in self._tensors.values():
            if not _same_place(tensor, data):
                tensor.data = data
        for key, copy in self._copies.items():
            storage = self._storages[key]
            if storage.nbytes() != copy.nbytes():
                storage.resize_(copy.nbytes())
            storage.copy_(copy)
        keys = [key for key in self._sums if key not in self._copies]
        now = [_bits(self._storages[key]) for key in keys]
        changed = [self._sums[key] != each for key, each in zip(keys, now, strict=True)]
        lost = [self._names[k] for k, differs in zip(keys, changed, strict=True) if bool(differs)]
        self._written.update(lost)  # next time they are copied first
        return lost


def _same_place(tensor: Tensor, data: Tensor) -> bool:
    try:
        one, two = tensor.untyped_storage()._cdata, data.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return True
    return one == two and (
        (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)
        == (data.shape, data.stride(), data.storage_offset(), data.dtype)
    )


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copy: torch.UntypedStorage = storage.clone()  # type: ignore[no-untyped-call]
    return copy


def _bits(storage: torch.UntypedStorage) -> Tensor:
    """Return the sum over the words of some memory: exact, whatever the order of summation."""
    size = storage.nbytes()
    dtype = next(dtype for width, dtype in _WORDS if size % width == 0)
    with torch.no_grad():
        return torch.empty(0, dtype=dtype, device=storage.device).set_(storage).sum()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls a function with every tensor that an operation is about to write on."""

    supports_higher_order_operators = True

    def __init__(self, about_to_write: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._about_to_write = about_to_write

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for place, name in _places_written(func):
            given = args[place] if place < len(args) else kwargs.get(name)
            for tensor in _tensors(given):
                self._about_to_write(tensor)
        return func(*args, **kwargs)


@functools.cache
def _places_written(func: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(func, "_schema", None)
    arguments = () if schema is None else schema.arguments
    # PyTorch does not declare what these write on in training mode.
    hidden = ("running_mean", "running_var") if "batch_norm" in str(func) else ()
    return tuple(
        (place, each.name)
        for place, each in enumerate(arguments)
        if (each.alias_info is not None and each.alias_info.is_write) or each.name in hidden
    )


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        yield from (each for each in given if isinstance(each, Tensor))
