"""Running a model with one tensor inside it replaced: does what it returns depend on that alone?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ncmonitor.features.heads.links import candidates, mapped, tensors

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
    """Run the model up to four times with other noise at a place.

    In the last two passes every weight of the model is another one, too: a second head that is zero
    today, a gate that is closed, or a layer behind the place that does nothing yet, shows. What is
    added in one pass is taken away in the other, since a ReLU may swallow either.

    Args:
        model: The model.
        again: Runs it on one batch and returns its output.
        place: Where the noise goes.
        inside: Called once for each trial, while what is disturbed is still disturbed.

    Raises:
        Missed: If the place is not reached exactly once in a pass.
    """
    done = [_trial(again, place, seed, inside) for seed in (1, 2)]
    for sign in (1.0, -1.0):
        # No network promises to run with any weights.
        with disturbed([*model.modules()], sign), contextlib.suppress(Exception):
            done.append(_trial(again, place, 3, inside))
    return done


def trial(again: Callable[[], Any], place: Place, seed: int) -> Trial:
    """Run the model once with noise at a place.

    Raises:
        Missed: As in :func:`trials`.
    """
    return _trial(again, place, seed, lambda: None)


def _trial(again: Callable[[], Any], place: Place, seed: int, inside: Callable[[], None]) -> Trial:
    drawn: list[Tensor] = []

    def change(tensor: Tensor) -> Tensor:
        if first:
            first.pop()
            drawn.append(_drawn(tensor, place.scale, seed))
            return drawn[-1].clone()  # operations in place may follow
        return tensor

    def give(module: nn.Module, args: Any, output: Any) -> Any:
        first.append(True)
        return mapped(output, change)

    def take(module: nn.Module, args: Any, kwargs: Any) -> Any:
        first.append(True)
        if any(t.is_floating_point() for t in tensors(args)):
            return mapped(args, change), kwargs
        return args, mapped(kwargs, change)

    first: list[bool] = []
    hook: Any = (
        place.module.register_forward_hook(give)
        if place.output
        else place.module.register_forward_pre_hook(take, with_kwargs=True)
    )
    try:
        seed_all()
        returned = candidates(again())
        if len(drawn) != 1:
            raise Missed
        inside()
    finally:
        hook.remove()
    return _cut(drawn[0], returned)


def seed_all() -> None:
    """Seed torch: dropout that is always on drops the same in each pass.

    ``torch.manual_seed`` queues a call for every accelerator that has not been used.
    """
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)


def _drawn(like: Tensor, scale: float | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if scale is None:
        drawn = torch.rand(like.shape, generator=generator) * (2 * _RANGE) - _RANGE
    else:
        drawn = torch.randn(like.shape, generator=generator) * scale
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


@contextlib.contextmanager
def disturbed(modules: list[nn.Module], sign: float = 1.0) -> Iterator[None]:
    """Give modules other weights inside, and then their own, which were never written to.

    Buffers stay as they are, since a mask may be one; but those of norms move in training.
    """
    generator = torch.Generator().manual_seed(4)
    seen: set[int] = set()
    with contextlib.ExitStack() as undo:
        for module in modules:
            held: list[Tensor | None] = [*module._parameters.values()]
            if isinstance(module, nn.modules.batchnorm._NormBase):
                held += [*module._buffers.values()]
            for tensor in held:
                lazy = tensor is None or nn.parameter.is_lazy(tensor)
                if lazy or id(tensor) in seen or tensor is None or not tensor.is_floating_point():
                    continue
                seen.add(id(tensor))
                data = tensor.data
                undo.callback(setattr, tensor, "data", data)
                tensor.data = _other(data, sign, generator)
        yield


def _other(tensor: Tensor, sign: float, generator: torch.Generator) -> Tensor:
    """Return other values: a scalar stays positive if it is, so that a factor stays one."""
    if tensor.numel() == 1:
        return tensor * 1.5 + 0.25
    # Two vectors, along the first and the last axis: noise for every entry would take longer than
    # the forward pass.
    size = float(tensor.abs().mean().nan_to_num(posinf=0)) + 1
    for axis in {0, tensor.ndim - 1} if tensor.numel() else ():
        shape = [1] * tensor.ndim
        shape[axis] = tensor.shape[axis]
        drawn = sign * size * torch.randn(shape, generator=generator)
        tensor = tensor + drawn.to(tensor.dtype).to(tensor.device)
    return tensor
