"""A model that is left as it was: modes, tensors, attributes and generators of its own."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import types
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ncmonitor.errors import InputError
from ncmonitor.features.kept_tensors import KeptTensors

_DEPTH: Final = 6  # of objects within objects
_MANY: Final = 1000  # entries of a container up to which each is looked into
#: Packages whose objects are no state of a model; those of torch are but for some.
_FOREIGN: Final = frozenset(
    {"pytorch_lightning", "lightning", "lightning_fabric", "torch", "builtins", "logging"}
    | {"wandb", "tensorboard", "tensorboardX", "mlflow", "comet_ml", "tqdm", "rich", "threading"}
)
_IN_TORCH: Final = ("torch.distributions", "torch.quasirandom")
_NO_STATE: Final = frozenset({"Dataset", "DataLoader", "Sampler", "Thread", "lock", "RLock"})
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_ITERATORS: Final[tuple[type[Any], ...]] = (
    itertools.count,
    itertools.cycle,
    type(iter([])),
    type(iter(())),
)
_LARGE: Final = 2**20  # bytes of a numpy array up to which it is copied

_CURRENT: ContextVar[KeptModel | None] = ContextVar("kept", default=None)
#: What a model's passes have written on, by model; see KeptTensors.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


class KeptModel:
    """What a model is and holds now, to be put back after an evaluation.

    Kept are, of every module, also of those it holds outside of ``modules()``:

    - its mode, parameters and buffers, by object and bit for bit, with ``grad`` and
      ``requires_grad``;
    - its attributes, with what stands in lists, dictionaries, sets and queues: a hidden state, a
      cache, a counter, the state of a torchmetrics metric;
    - the state of its own generators of torch, numpy and Python;
    - the same of the objects it holds, but for trainers, loggers, data sets and what holds
      threads, and of the data attributes of its classes.

    What can be seen to change and cannot be put back, such as an iterator, is named.

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.tensors = KeptTensors(_WRITTEN.setdefault(module, set()))
        self._undo: list[Callable[[], None]] = []
        self._moved: list[Callable[[], str | None]] = []
        self._known: set[int] = set()
        self._alive: list[Any] = []  # an id means something as long as its object lives
        self._modes = {m: m.training for m in module.modules()}
        self._shapes = _shapes(module)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.tensors.add(name, tensor)
        for name, each in module.named_modules():
            self._keep_module(name, each, 0)
        for kind in {cls for m in module.modules() for cls in type(m).__mro__}:
            if _package(kind) not in _FOREIGN:
                self._keep_class(kind)

    # -- modes -------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Switch to eval mode.

        Raises:
            InputError: If the switch adds, removes or reshapes parameters.
        """
        with self.tensors.watching():
            self._module.eval()
        after = _shapes(self._module)
        if after == self._shapes:
            return
        changed = [n for n in {**self._shapes, **after} if after.get(n) != self._shapes.get(n)]
        name = changed[0]
        what = "reshapes" if name in after and name in self._shapes else "adds"
        what = "removes" if name not in after else what
        raise InputError(
            f"eval() of the model {what} parameters ({', '.join(map(repr, changed[:3]))}), so the "
            "network that can be measured is not the one that is trained. Keep the parameters in "
            "eval mode, for example by fusing branches in a method of its own that is called "
            "after training"
        )

    def _switch_back(self) -> None:
        """Let modules whose class does more than set a flag take their modes back, outer first."""
        for module, training in self._modes.items():
            if module.training != training and _has_own_switch(module):
                module.train() if training else module.eval()

    @contextlib.contextmanager
    def current(self) -> Iterator[KeptModel]:
        """Be what :func:`current` returns inside."""
        before = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(before)

    def add_tensors(self) -> None:
        """Keep also what parameters and buffers hold now, such as averaged weights."""
        for name, tensor in (*self._module.named_parameters(), *self._module.named_buffers()):
            if not is_lazy(tensor):
                self.tensors.add(name, tensor.data)  # an object of its own

    def restore(self) -> list[str]:
        """Put everything back; return what changed and could not be.

        Raises:
            Exception: What a module's own ``train`` raises; everything is put back nevertheless.
        """
        try:
            with self.tensors.watching():
                self._switch_back()
        finally:
            lost = [name for moved in self._moved if (name := moved()) is not None]
            for undo in reversed(self._undo):
                undo()
            for module, training in self._modes.items():
                if module.training != training:
                    module.training = training
            lost += self.tensors.restore()
        return list(dict.fromkeys(lost))

    # -- what is kept ------------------------------------------------------------------------------

    def _first_time(self, value: Any) -> bool:
        if id(value) in self._known:
            return False
        self._known.add(id(value))
        self._alive.append(value)
        return True

    def _keep_module(self, name: str, module: nn.Module, depth: int) -> None:
        if not self._first_time(module):
            return
        if isinstance(module, torch.jit.ScriptModule):  # its attributes live elsewhere
            tensors = (*module.named_parameters(), *module.named_buffers())
            for each, tensor in tensors:
                self.tensors.add(_joined(name, each), tensor)
            return
        self._keep_attributes(name, module, depth)

    def _keep_attributes(self, name: str, owner: Any, depth: int) -> None:
        own = vars(owner)
        self._keep_mapping(own)
        for key, value in own.items():
            if type(value) in _PLAIN:
                continue
            inside = key in ("_parameters", "_buffers", "_modules") and isinstance(owner, nn.Module)
            self._keep(name if inside else _joined(name, key), value, depth + 1)

    def _keep(self, name: str, value: Any, depth: int) -> None:
        """Keep what can change inside of a value; the value itself is kept by its owner."""
        if type(value) in _PLAIN or depth > _DEPTH:
            return
        if isinstance(value, Tensor):
            self.tensors.add(name, value)
        elif isinstance(value, nn.Module):
            self._keep_module(name, value, depth)
        elif not isinstance(value, (type, types.ModuleType)) and self._first_time(value):
            self._keep_inside(name, value, depth)

    def _keep_inside(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            self._keep_mapping(value)
            if len(value) <= _MANY:
                for key, each in value.items():
                    self._keep(_joined(name, key), each, depth + 1)
        elif isinstance(value, (list, deque, tuple, set, frozenset)):
            self._keep_sequence(value)
            if len(value) <= _MANY:
                for place, each in enumerate(value):
                    self._keep(f"{name}[{place}]", each, depth + 1)
        elif (put_back := _generator(value)) is not None:
            self._undo.append(put_back)
        elif isinstance(value, _ITERATORS):
            self._moved.append(_moved(name, value, repr if _is_count(value) else _place))
        elif isinstance(value, types.GeneratorType):
            self._moved.append(_moved(name, value, _frame))
        elif isinstance(value, np.ndarray):
            self._keep_array(name, value)
        elif hasattr(value, "__dict__") and _is_state(value):
            self._keep_attributes(name, value, depth)

    def _keep_array(self, name: str, value: np.ndarray[Any, Any]) -> None:
        if value.nbytes > _LARGE or value.dtype.hasobject:
            self._moved.append(_moved(name, value, lambda array: zlib.crc32(array.tobytes())))
        elif value.flags.writeable:
            before = value.copy()
            self._undo.append(lambda: np.copyto(value, before))

    def _keep_mapping(self, value: dict[Any, Any]) -> None:
        before = dict(value)

        def undo() -> None:
            same = len(value) == len(before) and all(
                (key is other or key == other) and value[key] is before[other]
                for key, other in zip(value, before, strict=True)
            )
            if not same:
                value.clear()
                value.update(before)

        self._undo.append(undo)

    def _keep_sequence(self, value: Any) -> None:
        before = tuple(value)

        def undo() -> None:
            if len(value) == len(before) and all(map(_is, value, before)):
                return
            value.clear()
            value.update(before) if isinstance(value, set) else value.extend(before)

        if not isinstance(value, (tuple, frozenset)):
            self._undo.append(undo)

    def _keep_class(self, kind: type) -> None:
        data = {
            name: value
            for name, value in vars(kind).items()
            if not (name.startswith("__") or callable(value) or hasattr(value, "__get__"))
            and name != "_abc_impl"
        }

        def undo() -> None:
            for name, value in data.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)

        self._undo.append(undo)
        for name, value in data.items():
            self._keep(f"{kind.__name__}.{name}", value, 1)


def current() -> KeptModel | None:
    """Return the model that is being evaluated, as it is kept."""
    return _CURRENT.get()


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_state(value: Any) -> bool:
    """Tell whether the attributes of an object may be what a model remembers."""
    if isinstance(value, (type, types.FunctionType, types.MethodType, types.ModuleType)):
        return False
    kinds = type(value).__mro__
    if any(type(each).__name__ in _NO_STATE for each in vars(value).values()):
        return False
    if any(kind.__module__.startswith(_IN_TORCH) for kind in kinds):
        return True
    return not any(
        kind.__name__ in _NO_STATE or (_package(kind) in _FOREIGN and kind is not object)
        for kind in kinds
    )


def _has_own_switch(module: nn.Module) -> bool:
    own = vars(module)
    kind = type(module)
    return (
        bool({"train", "eval"} & own.keys())
        or kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
    )


def _shapes(module: nn.Module) -> dict[str, Any]:
    named = module.named_parameters(remove_duplicate=False)
    return {n: None if is_lazy(p) else p.shape for n, p in named}


def _joined(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _is(one: Any, other: Any) -> bool:
    return one is other


def _generator(value: Any) -> Callable[[], None] | None:
    """Return what puts a random generator back; ``None`` if it is none."""
    if isinstance(value, torch.Generator):
        whole = value.get_state()
        return lambda: _discard(value.set_state(whole))
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state(legacy=False)
        return lambda: value.set_state(legacy)
    bits = value.bit_generator if isinstance(value, np.random.Generator) else value
    if isinstance(bits, np.random.BitGenerator):
        inner = copy.deepcopy(bits.state)
        return lambda: setattr(bits, "state", inner)
    return None


def _discard(_: Any) -> None:
    pass


# -- what cannot be put back -----------------------------------------------------------------------


def _moved(name: str, value: Any, look: Callable[[Any], Any]) -> Callable[[], str | None]:
    """Return what tells, later, the name of a value that looks other than now."""
    before = look(value)
    return lambda: None if look(value) == before else name


def _is_count(value: Any) -> bool:
    return isinstance(value, itertools.count)


def _place(iterator: Any) -> Any:
    hint = getattr(iterator, "__length_hint__", None)
    return None if hint is None else hint()


def _frame(generator: types.GeneratorType[Any, Any, Any]) -> Any:
    frame = generator.gi_frame
    if frame is None:
        return None
    return frame.f_lasti, {name: id(value) for name, value in frame.f_locals.items()}
