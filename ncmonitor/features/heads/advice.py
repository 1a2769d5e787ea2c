"""What is said when no module, or not the named one, makes the logits that a model returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ncmonitor.errors import InputError
from ncmonitor.features.modules import is_pointwise, sizes_of, some

if TYPE_CHECKING:
    from ncmonitor.features.heads.head import GivenPair, Head, LayerCall

_PAIR = (
    "classifier=(module, weight), where module takes or gives the features and weight is a tensor, "
    "the name of a parameter or buffer, or a function that returns (weight, bias) with a row per "
    "class"
)
_ALLOWED = (
    "the same values, one positive factor, softmax, log-softmax, a softcap or a mask over them"
)


def returns_nothing(given: tuple[str, nn.Module] | GivenPair | None) -> InputError:
    """The model returns nothing that could be logits."""
    return InputError(
        "the model returns no floating-point tensor (B, K) that could be the logits; pass "
        "forward=, a function of module and inputs that returns them"
    )


def not_once(name: str, calls: int) -> InputError:
    """The named classifier runs never or several times in a forward pass."""
    return InputError(
        f"expected the classifier {name!r} to run once in a forward pass, but it ran {calls} "
        "times; pass classifier= the layer that makes the logits, or a forward that runs it once"
    )


def not_linear(name: str, module: nn.Module, instead: str) -> InputError:
    """What the named classifier gives is not linear in what it takes."""
    return InputError(
        f"what the classifier {name!r}, a {type(module).__name__}, gives must be linear in what it "
        "takes, as nn.Linear and a 1x1 convolution are (features may be used at unit length), but "
        f"it is not; {instead}"
    )


def not_returned(ran: LayerCall, returned: list[Tensor], instead: str) -> InputError:
    """What the model returns is not made of the named classifier alone."""
    got = "another shape" if ran.output is None else str(tuple(ran.output.shape))
    shapes = ", ".join(str(tuple(t.shape)) for t in returned)
    return InputError(
        f"the classifier {ran.name!r} gives {got}, and the model returns {shapes}, which is not "
        f"made of it alone ({_ALLOWED}): its numbers would not be those of the model; {instead}"
    )


def several(heads: list[Head]) -> InputError:
    """Several layers make what could be the logits."""
    if len(heads) == 1:
        return InputError(
            f"the model returns several tensors: {heads[0].name!r} makes one of them, and other "
            "layers make another, which may be the logits; pass classifier= the name of the one "
            "to watch, or forward=, a function of module and inputs that returns the logits alone"
        )
    listed = ", ".join(f"{head.name!r} ({sizes_of(head.module)})" for head in heads)
    return InputError(
        f"two or more linear layers make outputs of the model: {listed}; pass classifier= the name "
        "of the one to watch"
    )


def weight_not_used(given: GivenPair, weight: Tensor, returned: list[Tensor]) -> InputError:
    """What the model returns is not made with the weight that was given."""
    shapes = ", ".join(str(tuple(t.shape)) for t in returned) or "no tensor"
    return InputError(
        f"the model returns {shapes}, which is not W h + b ({_ALLOWED}) with the given weight of "
        f"shape {tuple(weight.shape)} and features h that {given.name!r} takes or gives, as they "
        "are or at unit length. A copy of the weight is not followed: pass the parameter itself or "
        f"its name; a bias is passed by a function; expected {_PAIR}"
    )


def weights_of(model: nn.Module, widths: set[int], ran: set[int]) -> list[tuple[str, Tensor]]:
    """Return matrices with a row or column for each logit, of modules that are no layers."""
    known = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
    found = []
    for prefix, module in model.named_modules():
        tied = isinstance(module, nn.Embedding) and module.num_embeddings in widths
        if isinstance(module, known) and not tied and id(module) in ran:
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            wanted = tensor is not None and tensor.is_floating_point() and tensor.ndim == 2
            if wanted and tensor is not None and widths & set(tensor.shape):
                found.append((f"{prefix}.{name}" if prefix else name, tensor))
    return found


def no_head(
    ran: list[LayerCall],
    returned: list[Tensor],
    weights: list[tuple[str, Tensor]],
    pairs: list[tuple[str, str]],
) -> InputError:
    """Say what was found instead of a head, and which way leads to one."""
    shapes = ", ".join(str(tuple(t.shape)) for t in returned)
    if pairs:
        module, weight = pairs[0]
        return InputError(
            f"no layer makes what the model returns, {shapes}; a weight of the model does, from "
            f"what {module!r} takes or gives: pass classifier=({module!r}, {weight})"
        )
    wide = class_counts(returned)
    twice = [r for r in ran if r.calls > 1 and _width(r.module) in wide]
    if twice:
        return not_once(twice[-1].name, twice[-1].calls)
    layers = [r for r in ran if _width(r.module) in wide]
    maps = [r for r in layers if is_pointwise(r.module)]
    found = ""
    if layers:
        found = (
            f"; what {_listed(layers)} gives is returned neither as it is nor by itself (a mean of "
            "heads, positions or crops, upsampling, a ReLU or another layer may stand between)"
        )
    hint = ""
    if maps:
        hint = ". For a mean over positions, pool the features before the 1x1 convolution"
    if weights:
        named = some([f"{name!r} {tuple(tensor.shape)}" for name, tensor in weights])
        hint = f". Weights that have a row or a column for each logit: {named}"
    return InputError(
        f"no linear layer makes what the model returns, {shapes}, by itself{found}{hint}. Where a "
        f"weight outside of a layer does, pass {_PAIR}; or pass forward=, a function of module and "
        "inputs that returns the logits of one head"
    )


def class_counts(returned: list[Tensor]) -> set[int]:
    """Return how many classes returned tensors may have logits for."""
    returned = [t for t in returned if t.ndim > 1]
    axes = ({1} if t.ndim > 3 else {t.ndim - 1, 1} for t in returned)
    return {t.shape[axis] for t, each in zip(returned, axes, strict=True) for axis in each}


def _width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.out_channels) if is_pointwise(module) else None  # type: ignore[arg-type]


def _listed(ran: Iterable[LayerCall]) -> str:
    return some([*{each.name: f"{each.name!r} ({sizes_of(each.module)})" for each in ran}.values()])
