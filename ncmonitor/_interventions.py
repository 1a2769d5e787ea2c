"""Running a model with one tensor inside it replaced: does what it returns depend on that alone?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ncmonitor._links import candidates, mapped, tensors
from ncmonitor._modules import modules_of

#: Noise on a head's output lies in [-8, 8]: a softcap at 30 shows even in bfloat16.
_RANGE: Final = 8.0
_KEPT: Final = 2**23  # numbers of a trial: 32 MiB in float32


class Place(NamedTuple):
    """A tensor inside a model: the first that a module takes, or that it gives.

    Attributes:
        module: The module.
        output: Whether it is what the module gives.
        scale: Of the noise: uniform on ±8 where ``None``, else normal with this deviation.
    """

    module: nn.Module
    output: bool = True
    scale: float | None = None


class Trial(NamedTuple):
    """A forward pass with noise at a place.

    Attributes:
        noise: What stood there instead.
        returned: What the model returned that may be logits.
    """

    noise: Tensor
    returned: list[Tensor]


class Missed(Exception):  # noqa: N818 - no error of the user's
    """The place was not reached once, or the model cannot run with noise there."""


def trials(
    model: nn.Module,
    again: Callable[[], Any],
    place: Place,
    inside: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Run the model four times with other noise at a place.

    In the last two passes everything else that owns weights and does not depend on the place gives
    noise too: a second head that is zero today, or a constant, shows. The noise of one has the
    opposite sign of the other's, since a ReLU may swallow either.

    Args:
        model: The model.
        again: Runs it on one batch and returns its output.
        place: Where the noise goes.
        inside: Called after each pass, while what is disturbed is still disturbed.

    Raises:
        Missed: If the place is not reached exactly once in a pass.
    """
    first, second = _Run(model, place, seed=1), _Run(model, place, seed=2)
    done = [first.trial(again, inside), second.trial(again, inside)]
    apart = [
        module
        for module in model.modules()
        if id(module) in first.seen
        and id(module) not in first.around
        and first.seen[id(module)] == second.seen.get(id(module))
    ]
    for sign in (1.0, -1.0):
        # No network promises to bear noise everywhere.
        with _disturbed(model, apart, set(first.seen), sign), contextlib.suppress(Exception):
            done.append(_Run(model, place, seed=3).trial(again, inside))
    return done


def trial(model: nn.Module, again: Callable[[], Any], place: Place, seed: int) -> Trial:
    """Run the model once with noise at a place.

    Raises:
        Missed: As in :func:`trials`.
    """
    return _Run(model, place, seed).trial(again, lambda: None)


class _Run:
    """One pass: noise at the place; what every module takes, in short.

    Attributes:
        seen: Fingerprints of what each call took, by the identity of a module with weights of its
            own: the hash of a torchmetrics ``Metric`` changes with its state.
        around: The modules inside whose call the place is, and its own, likewise.
    """

    def __init__(self, model: nn.Module, place: Place, seed: int) -> None:
        self.model, self.place, self.seed = model, place, seed
        self.seen: dict[int, list[float]] = {}
        self.around = {id(place.module)}
        self._open: list[int] = []
        self._noise: list[Tensor] = []

    def trial(self, again: Callable[[], Any], inside: Callable[[], None]) -> Trial:
        with contextlib.ExitStack() as hooks:
            for module in self.model.modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no such hooks
                    continue
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = module.register_forward_hook(self._leave)
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            own = self.place.module
            if self.place.output:
                handle: Any = own.register_forward_hook(self._output)
            else:
                handle = own.register_forward_pre_hook(self._input, with_kwargs=True)
            hooks.callback(handle.remove)
            returned = candidates(again())
            inside()
        if len(self._noise) != 1:
            raise Missed
        return _cut(self._noise[0], returned)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if _owns(module):
            taken = [_fingerprint(t.detach()) for t in tensors((args, kwargs)) if _real(t)]
            self.seen.setdefault(id(module), []).extend(taken)
        self._open.append(id(module))
        if module is self.place.module:
            self.around |= set(self._open)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._open:  # a call that failed and was caught never left
            del self._open[len(self._open) - 1 - self._open[::-1].index(id(module)) :]

    def _output(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._replaced(output)

    def _input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if any(_real(t) for t in tensors(args)):
            return self._replaced(args), kwargs
        return args, self._replaced(kwargs)

    def _replaced(self, value: Any) -> Any:
        """Replace the first floating-point tensor of a nest."""
        done = False

        def change(tensor: Tensor) -> Tensor:
            nonlocal done
            if done:
                return tensor
            done = True
            self._noise.append(self._drawn(tensor))
            return self._noise[-1].clone()  # operations in place may follow

        return mapped(value, change)

    def _drawn(self, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        if self.place.scale is None:
            drawn = torch.rand(like.shape, generator=generator) * (2 * _RANGE) - _RANGE
        else:
            drawn = torch.randn(like.shape, generator=generator) * self.place.scale
        return drawn.to(like.dtype).to(like.device)


def _cut(noise: Tensor, returned: list[Tensor]) -> Trial:
    """Keep the first samples alone, where there are many numbers: logits of a vocabulary."""
    samples = noise.shape[0]
    kept = max(1, _KEPT * samples // max(1, noise.numel()))
    if kept >= samples:
        return Trial(noise, returned)
    parts = [
        r[: kept * (r.shape[0] // samples)].clone() if r.shape[0] % samples == 0 else r
        for r in returned
    ]
    return Trial(noise[:kept].clone(), parts)


def _fingerprint(tensor: Tensor) -> float:
    """Return a sum over entries spread over a tensor."""
    flat = tensor.reshape(-1)
    return float(flat[:: max(1, len(flat) // 4096)].double().sum())


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _owns(module: nn.Module) -> bool:
    """Tell whether a module has weights of its own, which another one may not have learnt yet."""
    return bool(module._parameters) or parametrize.is_parametrized(module)


@contextlib.contextmanager
def _disturbed(
    model: nn.Module, apart: list[nn.Module], ran: set[int], sign: float
) -> Iterator[None]:
    """Add noise to what some modules give, and to the weights of those that only hold them.

    A vector with an entry per class that is not learnt may be a mask: it stays as it is.
    """
    generator = torch.Generator().manual_seed(4)

    def noisy(tensor: Tensor) -> Tensor:
        # Two vectors, along the first and the last axis: noise for every entry would take longer
        # than the forward pass.
        size = float(tensor.detach().abs().mean().nan_to_num(posinf=0)) + 1
        for axis in {0, tensor.ndim - 1} if tensor.ndim else ():
            shape = [1] * tensor.ndim
            shape[axis] = tensor.shape[axis]
            drawn = sign * size * torch.randn(shape, generator=generator)
            tensor = tensor + drawn.to(tensor.dtype).to(tensor.device)
        return tensor

    with contextlib.ExitStack() as undo:
        for module in apart:
            handle = module.register_forward_hook(lambda m, a, output: mapped(output, noisy))
            undo.callback(handle.remove)
        for module in modules_of(model).values():
            if id(module) in ran and not [*module.children()]:
                continue
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and _may_be_a_head(tensor):
                    data = tensor.data
                    undo.callback(setattr, tensor, "data", data)
                    tensor.data = noisy(data).detach()
        yield


def _may_be_a_head(tensor: Tensor) -> bool:
    if nn.parameter.is_lazy(tensor) or not _real(tensor):
        return False
    if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
        return tensor.numel() > 1
    return sum(size > 1 for size in tensor.shape) > 1
