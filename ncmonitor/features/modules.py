"""The modules of a model by name, and which of them could be its linear classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ncmonitor.errors import InputError, nearest

_LISTED = 12  # names in a message; the last ones, among which the classifier is


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of what ``torch.compile`` made of it."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by name, second names included, as they are called before compiling."""
    return {_plain(name): m for name, m in model.named_modules(remove_duplicate=False)}


def matching(model: nn.Module, given: str | nn.Module, argument: str) -> dict[str, nn.Module]:
    """Return the modules that a name, a shell pattern or a module stands for; none for no match."""
    modules = modules_of(model)
    if isinstance(given, nn.Module):
        given = unwrapped(given)
        for name, module in modules.items():
            if module is given:
                return {name: module}
        raise InputError(
            f"{argument}= is a {type(given).__name__} that is no part of the model; pass one of "
            "its modules, or a name"
        )
    if not isinstance(given, str):
        raise InputError(f"{argument}= takes names, patterns and modules, but got {given!r}")
    name = _plain(given)
    if name in modules:
        return {name: modules[name]}
    return _once((n, m) for n, m in modules.items() if n and fnmatchcase(n, name))


def named_head(model: nn.Module, given: str | nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of the classifier that the user named.

    Raises:
        InputError: If nothing has that name, or several linear layers match the pattern.
    """
    found = matching(model, given, "classifier")
    asked = isinstance(given, nn.Module) or _plain(given) in found
    suitable = {name: module for name, module in found.items() if _is_head(module)}
    if len(suitable) == 1:
        return next(iter(suitable.items()))
    if asked:
        name, module = next(iter(found.items()))
        if _may_be_head(module):  # whether it is one, the model itself tells
            return name, module
        raise InputError(
            f"the classifier {name!r} must hold a weight (K, d) as nn.Linear does, or be a 1x1 "
            "convolution with stride 1, no padding and one group, but is a "
            f"{type(module).__name__}; linear layers here: {_names(heads_of(model))}. For a weight "
            "outside of a layer pass classifier=(module, weight)"
        )
    if suitable:
        raise InputError(
            f"classifier={given!r} must match one linear layer, but matches {len(suitable)}: "
            f"{_names(suitable)}; pass the name of one of them"
        )
    what = "linear layer that matches" if _is_pattern(str(given)) else "module named"
    hint = nearest(str(given), modules_of(model))
    raise InputError(
        f"the model has no {what} {given!r}{hint}; its linear layers are {_names(heads_of(model))}"
    )


def named_layers(model: nn.Module, given: Iterable[str | nn.Module]) -> dict[str, nn.Module]:
    """Return the modules that names, patterns and modules stand for, in the model's order.

    Raises:
        InputError: If one of them stands for nothing.
    """
    wanted: dict[nn.Module, str] = {}
    modules = modules_of(model)
    for each in given:
        found = matching(model, each, "layers")
        if not found:
            what = "module that matches" if _is_pattern(str(each)) else "module named"
            raise InputError(
                f"the model has no {what} {each!r}{nearest(str(each), modules)}; layers= takes "
                "names from model.named_modules(), patterns of them, modules, or 'all'"
            )
        for name, module in found.items():
            wanted.setdefault(module, name)
    return {wanted[module]: module for module in modules.values() if module in wanted}


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that owns a weight of two or more dimensions."""
    return _once((n, m) for n, m in modules_of(model).items() if any(_weights(m)))


def one_module(model: nn.Module, given: str | nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of the one that is named beside a weight.

    Raises:
        InputError: If nothing has that name, or several match the pattern.
    """
    found = matching(model, given, "classifier")
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise InputError(
            f"classifier=({given!r}, ...) must match one module, but matches {len(found)}: "
            f"{_names(found)}; pass the name of one of them"
        )
    raise InputError(
        f"the model has no module named {given!r}{nearest(str(given), modules_of(model))}"
    )


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that are linear by their class, each once."""
    return [module for module in model.modules() if _is_linear(module)]


def heads_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that are linear by their class, by name."""
    return _once((n, m) for n, m in modules_of(model).items() if _is_linear(m))


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that is a linear layer at each position."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    # With a kernel of 1, "same" and "valid" pad nothing.
    padding = () if isinstance(module.padding, str) else module.padding
    ones = {*module.kernel_size, *module.stride, module.groups} == {1}
    return ones and not any(padding)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _once(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    first: dict[nn.Module, str] = {}
    for name, module in named:
        first.setdefault(module, name)
    return {name: module for module, name in first.items()}


def _names(modules: Mapping[str, nn.Module]) -> str:
    return some(list(modules))


def some(words: list[str]) -> str:
    """Return names for a message; of many, the last."""
    more = len(words) - _LISTED
    return ", ".join(words[-_LISTED:]) + (f" (the last of {len(words)})" if more > 0 else "")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_pointwise(module)


def _is_head(module: nn.Module) -> bool:
    if _is_linear(module):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return False
    if parametrize.is_parametrized(module, "weight"):
        return any(_weights(module))
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _may_be_head(module: nn.Module) -> bool:
    """Tell whether a module of any class holds a matrix that may map features to logits."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)):
        return False
    held = (*module.parameters(), *module.buffers())
    return any(nn.parameter.is_lazy(t) or (t.is_floating_point() and t.ndim > 1) for t in held)


def _weights(module: nn.Module) -> Iterator[bool]:
    """Say of every weight of a module's own whether it has two or more dimensions.

    A parametrised weight is never computed: in training mode that may change it (spectral norm).
    """
    own = [p for n, p in module._parameters.items() if "weight" in n and p is not None]
    if parametrize.is_parametrized(module, "weight"):
        own += module.parametrizations["weight"].parameters()  # type: ignore[index,union-attr]
    yield from (nn.parameter.is_lazy(p) or p.ndim > 1 for p in own)


def sizes_of(module: nn.Module) -> str:
    """Return a linear layer's dimensions in words."""
    if isinstance(module, nn.Linear):
        return f"{module.in_features} to {module.out_features}"
    if is_pointwise(module):
        return f"{module.in_channels} to {module.out_channels}"
    return type(module).__name__
