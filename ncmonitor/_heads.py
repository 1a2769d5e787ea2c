"""Which run of a linear layer made the logits, and what its features are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ncmonitor._checks import InputError
from ncmonitor._modules import is_pointwise, sizes_of, some, unwrapped


class Run(NamedTuple):
    """One run of a linear layer: what went in and out, and how often each was written to."""

    name: str
    module: nn.Module
    features: Tensor
    output: Tensor
    versions: tuple[int | None, int | None]

    @classmethod
    def of(cls, name: str, module: nn.Module, features: Tensor, output: Tensor) -> Run:
        """Keep input and output without their graphs."""
        features, output = features.detach(), output.detach()
        return cls(name, module, features, output, (_version(features), _version(output)))


def choose(runs: list[Run], output: Any, model: nn.Module) -> Run:
    """Return the run whose output the model returned, or, failing that, one it passed on.

    A loss-free wrapper may still change the logits (softmax, temperature, a cast): the last layer
    of the same shape whose largest entries are the same is then the classifier.

    Raises:
        InputError: If there is none, or more than one.
    """
    returned = list(tensors(output))
    made = {
        id(run.module): run
        for run in runs
        if any(_same(run.output, t) or _is_mean(run, t) for t in returned)
    }
    if len(made) > 1:
        return _tie(list(made.values()), output, model)
    if made:
        return next(iter(made.values()))
    for run in reversed(runs):
        if any(_same_winner(run, t) for t in returned):
            return run
    for run in reversed(runs):
        if is_pointwise(run.module) and any(t.shape[:2] == run.output.shape[:2] for t in returned):
            raise _not_linear(run, returned)
    own = _unknown_heads(returned, model)
    hint = f", or the head of your own {some(own)} (its weight, of shape (K, d), is read)"
    raise InputError(
        "no linear layer makes what the model returns (its output should be the logits); pass "
        f"classifier= one of {_listed(runs) or 'the linear layers, none of which ran'}"
        f"{hint if own else ''}"
    )


def _unknown_heads(returned: list[Tensor], model: nn.Module) -> list[str]:
    """Return the modules of other types whose weight has a row for each logit."""
    widths = {t.shape[-1] for t in returned if t.ndim}
    return [
        repr(name)
        for name, module in model.named_modules()
        if name and not isinstance(module, (nn.Linear, nn.Embedding))
        for weight in [module._parameters.get("weight")]
        if weight is not None and weight.ndim == 2 and weight.shape[0] in widths
    ]


def _tie(made: list[Run], output: Any, model: nn.Module) -> Run:
    """Return the run that made the output called logits, or that ``get_classifier()`` names."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    by_name = [run for run in made if any(_same(run.output, t) for t in tensors(named))]
    if len(by_name) == 1:
        return by_name[0]
    for owner in map(unwrapped, (model, *model.children())):
        head = None
        with contextlib.suppress(AttributeError, TypeError):  # none, or one that takes arguments
            head = getattr(owner, "get_classifier")()  # noqa: B009 - unknown to nn.Module
        inside = set(head.modules()) if isinstance(head, nn.Module) else set()
        by_method = [run for run in made if run.module in inside]
        if len(by_method) == 1:
            return by_method[0]
    raise InputError(
        f"two or more linear layers make outputs of the model: {_listed(made)}; pass "
        "classifier= the name of the one to watch"
    )


def _same(one: Tensor, two: Tensor) -> bool:
    # One memory is enough: the model may view, flatten, squeeze or index it.
    return one.data_ptr() == two.data_ptr() and one.numel() == two.numel()


def _same_winner(run: Run, returned: Tensor) -> bool:
    output = run.output
    if not returned.is_floating_point() or output.ndim == 0 or returned.numel() != output.numel():
        return False
    if is_pointwise(run.module):
        returned = returned.movedim(1, -1) if returned.shape == output.shape else returned
        output = output.movedim(1, -1)
    if returned.ndim == 0 or returned.shape[-1] != output.shape[-1]:
        return False
    winners = returned.reshape(output.shape).argmax(-1)
    return output.argmax(-1).equal(winners.to(output.device))


def _listed(runs: list[Run]) -> str:
    return some([*{run.name: f"{run.name!r} ({sizes_of(run.module)})" for run in runs}.values()])


# -- its features ----------------------------------------------------------------------------------


def read(run: Run, output: Any, form: str | None) -> tuple[Tensor, Tensor, str | None]:
    """Return features, logits and form of a run of the classifier.

    Args:
        run: Of the classifier.
        output: What the model returned.
        form: How earlier outputs of a 1x1 convolution became logits: ``"mean"`` over positions,
            ``"dense"`` prediction, or ``None`` if no map was seen so far.

    Raises:
        InputError: If they were overwritten, or the model is not linear behind the features.
    """
    if _version(run.features) != run.versions[0]:
        raise InputError(
            f"the input of the classifier {run.name!r} was overwritten in place after it ran, so "
            "its features are lost; make the operation that follows out of place (inplace=False, "
            "x = x + y instead of x += y), or give it a copy"
        )
    if not is_pointwise(run.module):
        return run.features, run.output, None
    returned = list(tensors(output))
    if _version(run.output) != run.versions[1]:
        raise _not_linear(run, returned)
    if form is None and run.output[0, 0].numel() == 1:  # pooled before
        return run.features.flatten(1), run.output.flatten(1), None
    form = form or _form(run, returned)
    if form == "dense":
        return run.features.movedim(1, -1), run.output.movedim(1, -1), form
    pooled = [t for t in returned if _is_pooled(run, t)]
    if len(pooled) > 1:
        pooled = [t for t in pooled if _is_mean(run, t)]
    if not pooled:
        raise _not_linear(run, returned)
    return run.features.flatten(2).mean(-1), pooled[0].detach().flatten(1), form


def _form(run: Run, returned: list[Tensor]) -> str:
    if any(_same(run.output, t) or _same_winner(run, t) for t in returned):
        return "dense"
    if any(_is_mean(run, t) for t in returned):
        return "mean"
    raise _not_linear(run, returned)


def _is_pooled(run: Run, returned: Tensor) -> bool:
    output, shape = run.output, returned.shape
    same = is_pointwise(run.module) and shape[:2] == output.shape[:2]
    return same and returned.is_floating_point() and shape[2:].numel() == 1


def _is_mean(run: Run, returned: Tensor) -> bool:
    """Tell whether the model returned the mean over positions of a 1x1 convolution's output."""
    if not _is_pooled(run, returned):
        return False
    over = run.output.double().flatten(2)
    error = (returned.detach().flatten(1).to(over) - over.mean(-1)).abs()
    # Rounding of the result, and of a sum over N positions that is accumulated in float32 or
    # better: its standard error grows as sqrt(N).
    coarse = max(torch.finfo(t.dtype).eps for t in (run.output, returned))
    fine = min(coarse, torch.finfo(torch.float32).eps)
    scale = 2 * coarse + 4 * fine * over.shape[-1] ** 0.5
    return bool((error <= scale * over.abs().mean(-1)).all())


def _not_linear(run: Run, returned: list[Tensor]) -> InputError:
    shapes = ", ".join(str(tuple(t.shape)) for t in returned) or "nothing that is known here"
    found = f"the 1x1 convolution {run.name!r} gives {tuple(run.output.shape)}"
    if not returned:
        return InputError(f"{found}; pass what the model returned: take(output)")
    if _version(run.output) != run.versions[1] or any(_is_pooled(run, t) for t in returned):
        return InputError(
            f"{found}, but what the model returns is not its mean over positions: something that "
            "is not linear (in SqueezeNet a ReLU) stands between it and the logits, so they are "
            "no linear function of any features. Pool the features before the convolution, or "
            "leave the non-linearity out; or pass classifier= another layer"
        )
    return InputError(
        f"{found}, but the model returns {shapes}: neither that map nor its mean over positions "
        "(upsampling?); measure a model that returns it as it is, or pass classifier= another layer"
    )


def _version(tensor: Tensor) -> int | None:
    # Inference tensors do not count what is written to them.
    return None if tensor.is_inference() else tensor._version


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nest of tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name))
