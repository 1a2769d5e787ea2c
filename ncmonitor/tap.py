"""The classifier's input while the model runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ncmonitor._checks import InputError, nearest


class Tapped(NamedTuple):
    """What one forward pass left at the classifier.

    Attributes:
        features: Its input, detached: ``(B, d)`` for an ordinary image classifier.
        logits: Its output, detached, ``(B, K)``.
    """

    features: Tensor
    logits: Tensor


class _Run(NamedTuple):
    name: str
    module: nn.Module
    features: Tensor
    output: Tensor


class FeatureTap:
    """Context manager that catches the input and output of the last linear layer.

    The classifier is found at the first :meth:`take`: the ``nn.Linear`` whose output the model
    returns as its logits. Hooks are gone when the context ends, however it ends.

    Args:
        model: Any module.
        classifier: The last linear layer, by name or as the module itself; ``None`` finds it.

    Attributes:
        model: The module that is tapped.
        classifier: The classifier; ``None`` until found.
        name: Its name in the model, ``""`` until found.

    Raises:
        InputError: If the model has no ``nn.Linear``, or no submodule of the given name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ncmonitor import FeatureTap
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with FeatureTap(model) as tap:
        ...     _ = model(torch.zeros(5, 4))
        ...     features, logits = tap.take()
        >>> tap.name, features.shape, logits.shape
        ('2', torch.Size([5, 3]), torch.Size([5, 2]))
    """

    def __init__(self, model: nn.Module, classifier: str | nn.Module | None = None) -> None:
        self.model = model
        self.classifier: nn.Module | None = None
        self.name = ""
        if classifier is None:
            _linears(model)  # fail now rather than after a forward pass
        else:
            self.name, self.classifier = _named(model, classifier)
        self._runs: list[_Run] = []
        self._output: Any = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        """Place the hooks."""
        if self.classifier is not None:
            self._watch(self.name, self.classifier)
        else:
            for name, module in _linears(self.model).items():
                self._watch(name, module)
            self._handles.append(self.model.register_forward_hook(self._keep_output))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks and everything caught."""
        self._remove()

    def take(self, output: Any = None) -> Tapped:
        """Return what the last forward pass left at the classifier, and forget it.

        Args:
            output: What the model returned; needed at the first call only, and only if the
                forward pass went through something else than ``model(...)``.

        Returns:
            Features and logits of that pass.

        Raises:
            InputError: If the classifier cannot be told, did not run, or ran more than once.
        """
        runs, self._runs = self._runs, []
        returned, self._output = (self._output if output is None else output), None
        if self.classifier is None:
            chosen = _choose(runs, list(_tensors(returned)))
            self.name, self.classifier = chosen.name, chosen.module
            self._remove()
            self._watch(self.name, self.classifier)
            runs = [run for run in runs if run.module is self.classifier]
        if len(runs) != 1:
            raise InputError(
                f"expected the classifier {self.name!r} to run once in a forward pass, but it ran "
                f"{len(runs)} times; pass classifier= the layer that makes the logits"
            )
        return Tapped(runs[0].features, runs[0].output)

    def _watch(self, name: str, module: nn.Module) -> None:
        # A forward hook sees the same input as a pre-hook, and the logits with it.
        def catch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            self._runs.append(_Run(name, module, given.detach(), output.detach()))

        self._handles.append(module.register_forward_hook(catch, with_kwargs=True))

    def _keep_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self._output = output

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._runs, self._output = [], [], None


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    if not found:
        kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
        raise InputError(
            "the model has no nn.Linear, so there is no linear classifier to watch; its layers "
            f"are {', '.join(kinds)}. Pass classifier= a module with a (K, d) weight"
        )
    return found


def _named(model: nn.Module, classifier: str | nn.Module) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    if isinstance(classifier, str):
        if classifier not in modules:
            raise InputError(
                f"the model has no module named {classifier!r}{nearest(classifier, modules)}; its "
                f"linear layers are {', '.join(_linears(model))}"
            )
        name, module = classifier, modules[classifier]
    else:
        names = [name for name, module in modules.items() if module is classifier]
        if not names:
            raise InputError(
                f"classifier= is a {type(classifier).__name__} that is no part of the model"
            )
        name, module = names[0], classifier
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputError(
            f"the classifier {name!r} must have a weight of shape (K, d) like nn.Linear, but is "
            f"a {type(module).__name__}; linear layers here: {', '.join(_linears(model))}"
        )
    return name, module


def _choose(runs: list[_Run], returned: list[Tensor]) -> _Run:
    """Return the run whose output the model returned, or, failing that, one it passed on.

    A loss-free wrapper may still change the logits (softmax, temperature, a cast): the last layer
    of the same shape whose largest entries are the same is then the classifier.
    """
    made = {id(run.module): run for run in runs if any(_same(run.output, t) for t in returned)}
    if len(made) > 1:
        raise InputError(
            f"two or more linear layers make outputs of the model: {_listed(made.values())}; pass "
            "classifier= the name of the one to watch"
        )
    if made:
        return next(iter(made.values()))
    for run in reversed(runs):
        if any(t.shape == run.output.shape and _same_winner(run.output, t) for t in returned):
            return run
    raise InputError(
        "no linear layer makes what the model returns (its output should be the logits); pass "
        f"classifier= one of {_listed(runs) or 'the linear layers, none of which ran'}"
    )


def _same(one: Tensor, two: Tensor) -> bool:
    place = one.data_ptr() == two.data_ptr() and one.shape == two.shape
    return place and one.stride() == two.stride()


def _same_winner(one: Tensor, two: Tensor) -> bool:
    return two.is_floating_point() and one.ndim > 0 and one.argmax(-1).equal(two.argmax(-1))


def _listed(runs: Any) -> str:
    shapes = {run.name: tuple(run.module.weight.shape[::-1]) for run in runs}
    return ", ".join(f"{name!r} ({wide} to {out})" for name, (wide, out) in shapes.items())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nest of tuples, lists, mappings and dataclasses."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))
