"""The arithmetic of the measuring forward: the trainer's own, or float32 throughout."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Final

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ncmonitor.errors import InputError, nearest
from ncmonitor.inputs.tensors import exact_arithmetic

TRAINER, FULL = "trainer", "full"
PRECISIONS: Final = (TRAINER, FULL)

_HALF: Final = (torch.float16, torch.bfloat16)
#: Lightning's plugins whose forward is understood here; both distributions name them alike.
_KNOWN: Final = ("MixedPrecision", "HalfPrecision", "DoublePrecision", "Precision")
#: And those that put their precision into the layers, the strategy or the device.
_FIXED: Final = (
    "BitsandbytesPrecision",
    "DeepSpeedPrecision",
    "FSDPPrecision",
    "TransformerEnginePrecision",
    "XLAPrecision",
)


def check_precision(trainer: pl.Trainer, choice: str) -> None:
    """Refuse at setup what :class:`PassPrecision` could not do later.

    Args:
        trainer: With its precision plugin.
        choice: The user's ``precision=``.

    Raises:
        InputError: If the choice is none, or if the plugin's arithmetic cannot be made float32.
    """
    if choice not in PRECISIONS:
        hint = nearest(choice, PRECISIONS) if isinstance(choice, str) else ""
        raise InputError(f"precision= must be one of {PRECISIONS}, but is {choice!r}{hint}")
    if choice == TRAINER:
        return
    plugin = trainer.precision_plugin
    fixed = [name for name in _names(plugin) if name in _FIXED]
    if fixed or _changes_forward(type(plugin)):
        raise InputError(
            f"precision='full' cannot undo what {type(plugin).__name__} does to the network; pass "
            "precision='trainer', and take its rounding as the floor of NC1"
        )


class PassPrecision:
    """Contexts and conversion that give a pass over data its precision.

    ``"trainer"`` computes as the trainer's own loops do. ``"full"`` computes in float32: autocast
    and TF32 are off, float16 and bfloat16 weights and inputs are float32 for the time of the pass,
    which loses nothing but needs their float32 copy in memory. float64 stays float64.

    Autocast that the model switches on in its own ``forward`` cannot be switched off from outside;
    where a module runs under it, ``"full"`` warns once. Functions under it, such as
    ``F.linear``, go unseen; then the dtype of the features may tell. A ``forward`` that asks for
    half precision by name, as in ``x.half()``, fails against float32 weights.

    Args:
        trainer: Its precision plugin is asked anew at each use.
        module: The module that runs.
        choice: As accepted by :func:`check_precision`.

    Example:
        ``with precision.whole():`` around the pass; in it, for each batch,
        ``batch = precision.convert(batch)`` before it is moved to the device, and
        ``with precision.forward():`` around the network.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, choice: str = TRAINER
    ) -> None:
        self.trainer, self.module, self.choice = trainer, module, choice
        self._watched = choice != FULL

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Hold weights and switches for a whole pass, and put the very same back.

        The classifier's weight must be read inside, where it has the precision of the features.

        Raises:
            InputError: If a half-precision part of the model is a ``ScriptModule``.
        """
        if self.choice != FULL:
            yield
            return
        with exact_arithmetic(self.module.device), _exact_kernels(), _widened(self.module):
            yield

    def convert(self, batch: Any) -> Any:
        """Return a batch in the precision of the pass: the first of the loops' own three steps."""
        plugin = self.trainer.precision_plugin
        if self.choice != FULL:
            return plugin.convert_input(batch)
        half = "HalfPrecision" in _names(plugin)  # it would round what the data set gives
        if not half:
            batch = plugin.convert_input(batch)
        return apply_to_collection(batch, Tensor, _float32, every=half)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Run the network inside, once for each batch."""
        plugin = self.trainer.precision_plugin
        if self.choice != FULL:
            with plugin.forward_context():
                yield
        elif "DoublePrecision" in _names(plugin):
            with plugin.forward_context(), self._watching():
                yield
        else:
            with _default_dtype(), self._watching():
                yield

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Look once, in the first forward, for modules that run under autocast all the same."""
        if self._watched:
            yield
            return
        self._watched, found = True, []
        device = self.module.device.type

        def look(module: nn.Module, _: Any) -> None:
            if torch.is_autocast_enabled(device):
                found.append(module)

        handle = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()
        if found:
            names = {m: name for name, m in self.module.named_modules()}
            warnings.warn(
                "precision='full', but the model switches torch.autocast on itself around "
                f"{names.get(found[0]) or type(found[0]).__name__!r}, which cannot be switched off "
                "from outside: the rounding of half precision is the floor of NC1",
                stacklevel=2,
            )


def _names(plugin: Any) -> list[str]:
    return [cls.__name__ for cls in type(plugin).__mro__]


def _changes_forward(kind: type) -> bool:
    """Tell whether a user's plugin has arithmetic of its own on top of Lightning's."""
    for cls in kind.__mro__:
        if cls.__name__ in _KNOWN:
            return False
        if {"forward_context", "convert_input", "convert_module"} & vars(cls).keys():
            return True
    return True


def _float32(tensor: Tensor, every: bool) -> Tensor:
    narrow = tensor.dtype in _HALF or (every and tensor.is_floating_point())
    return tensor.float() if narrow else tensor


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    """Make tensors that a forward creates float32 where the user's default is half precision."""
    default = torch.get_default_dtype()
    if default in _HALF:
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def _exact_kernels() -> Iterator[None]:
    """No TF32 or bfloat16 in convolutions and recurrent layers, whose switches are their own."""
    owners: list[Any] = [torch.backends.cudnn, torch.backends.mkldnn]
    kinds: list[Any] = [getattr(each, kind, None) for each in owners for kind in ("conv", "rnn")]
    single = [(k, k.fp32_precision) for k in kinds if hasattr(k, "fp32_precision")]  # torch 2.9
    try:
        common: bool | None = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it refuses where a user has set the kinds one by one
        common = None
    if common is not None:  # before the single ones, or it could not be read inside
        torch.backends.cudnn.allow_tf32 = False
    for kind, _ in single:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        if common is not None:
            torch.backends.cudnn.allow_tf32 = common
        for kind, value in single:
            kind.fp32_precision = value


@contextlib.contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Give the modules float32 copies of their half-precision tensors, and then their own back.

    The parameters themselves stay untouched: autograd drops the gradient accumulator of one whose
    ``.data`` changes its dtype, and ``DistributedDataParallel`` would reduce no gradient any more.
    """
    undo = contextlib.ExitStack()
    wide: dict[int, Tensor] = {}  # tied tensors stay tied
    with undo:
        for module in model.modules():
            stores: list[Any] = [module._parameters, module._buffers]
            for store in stores:
                for name, tensor in store.items():
                    if tensor is not None and tensor.dtype in _HALF:
                        _refuse_script(module)
                        undo.callback(store.__setitem__, name, tensor)
                        store[name] = _wide(tensor, wide)
            _widen_extras(module, wide, undo)
        yield


def _wide(tensor: Tensor, known: dict[int, Tensor]) -> Tensor:
    if id(tensor) not in known:
        copy = tensor.detach().float()
        is_parameter = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
    return known[id(tensor)]


def _widen_extras(module: nn.Module, wide: dict[int, Tensor], undo: contextlib.ExitStack) -> None:
    """Follow the two other places that tell a module's weights or their precision."""
    flat = vars(module).get("_flat_weights")  # nn.RNNBase runs on this list
    if isinstance(flat, list):
        vars(module)["_flat_weights"] = [wide.get(id(weight), weight) for weight in flat]
        undo.callback(vars(module).__setitem__, "_flat_weights", flat)
    kinds = {cls.__name__ for cls in type(module).__mro__}
    dtype = vars(module).get("_dtype")
    if "_DeviceDtypeModuleMixin" in kinds and dtype in _HALF:  # LightningModule.dtype
        vars(module)["_dtype"] = torch.float32
        undo.callback(vars(module).__setitem__, "_dtype", dtype)


def _refuse_script(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"precision='full' cannot give a half-precision ScriptModule "
            f"({module.original_name}) float32 weights; pass precision='trainer'"
        )
