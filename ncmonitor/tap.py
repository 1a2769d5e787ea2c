"""The classifier's input, and what inner layers give, while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ncmonitor import _heads, _modules
from ncmonitor._checks import InputError, nearest
from ncmonitor._heads import Run
from ncmonitor._reduce import REDUCTIONS, Reduce, reduced

Layer = str | nn.Module
Seen = dict[str, list[Tensor | None]]  # what each run of each layer gave


@dataclass(frozen=True, eq=False)
class Tapped:
    """What one forward pass left at the classifier; unpacks as ``features, logits``.

    Attributes:
        features: The classifier's input, detached: ``(B, d)`` for an ordinary image classifier,
            ``(B, T, d)`` for one that runs on tokens, ``(B, H, W, d)`` for dense prediction by a
            1x1 convolution. Where such a convolution is averaged over positions afterwards: the
            mean of its input, ``(B, d)``.
        logits: Its output, detached, ``(B, K)`` and so on.
        layers: What each inner layer gave, reduced and detached, by name.
    """

    features: Tensor
    logits: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        """Unpack as ``features, logits``."""
        return iter((self.features, self.logits))


class FeatureTap:
    """Context manager that catches input and output of the classifier, and of inner layers.

    The classifier is found at the first :meth:`take`: the ``nn.Linear`` or 1x1 convolution whose
    output the model returns as its logits, in whatever shape or nest. Where several do, the one
    that makes the output's ``logits`` is it, or that the model's ``get_classifier()`` names. Hooks
    are gone when the context ends, however it ends.

    Names are those before ``torch.compile``: ``_orig_mod.`` is left out, and may be left out. Run
    a compiled model under ``torch.compiler.set_stance("force_eager")``; its graphs skip hooks.

    Args:
        model: Any module.
        classifier: The last linear layer: its name, a shell pattern that matches one linear layer
            (``"*.fc"``), or the module itself; ``None`` finds it. A named one may be of any class
            that has a ``(K, d)`` weight.
        layers: Inner modules to catch too: names, patterns (each may match several) or modules; or
            ``"all"``: every module that owns a weight of two or more dimensions, except the
            classifier and what does not run once in a forward pass.
        reduce: What is kept of each layer's output (of its first tensor, if there are several),
            at once, so that no map outlives the layer. ``"gap"``: the mean over the positions of
            ``(B, C, *, *)`` or ``(B, T, d)``, half precision in float32. ``"flatten"``:
            ``(B, d')``. ``"tokens"``: all positions, channels last. A callable: its value, one
            row for each sample. With three dimensions, convolutions, pooling and batch norms (also
            within ``nn.Sequential``) give ``(B, C, T)``, everything else ``(B, T, d)``.

    Attributes:
        model: The module that is tapped.
        classifier: The classifier; ``None`` until found.
        name: Its name in the model, ``""`` until found.

    Raises:
        InputError: If the model has no linear layer, or nothing of a given name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ncmonitor import FeatureTap
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with FeatureTap(model, layers=["0"]) as tap:
        ...     _ = model(torch.zeros(5, 4))
        ...     tapped = tap.take()
        >>> tap.name, tapped.features.shape, tapped.logits.shape, tapped.layers["0"].shape
        ('2', torch.Size([5, 3]), torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: Layer | None = None,
        *,
        layers: Layer | Sequence[Layer] = (),
        reduce: Reduce = "gap",
    ) -> None:
        self.model = model
        self.classifier: nn.Module | None = None
        self.name = ""
        if not callable(reduce) and reduce not in REDUCTIONS:
            raise InputError(
                f"reduce= must be 'gap', 'flatten', 'tokens' or a function, but is {reduce!r}"
                f"{nearest(str(reduce), REDUCTIONS)}"
            )
        self._reduce = reduce
        self._form: str | None = None  # see _heads.read
        self._settled = layers != "all"  # whether every layer must run
        self._layers = _inner(model, layers)
        if classifier is None:
            _modules.heads_of(model)  # fail now rather than after a forward pass
        else:
            self._settle_classifier(*_modules.named_head(model, classifier))
        self._runs: list[Run] = []
        self._seen: Seen = {}
        self._output: Any = None
        self._handles: list[RemovableHandle] = []

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the inner layers, in the model's order; of ``"all"`` settled by a take."""
        return tuple(self._layers)

    @property
    def ran(self) -> bool:
        """Whether the classifier, or anything that may be it, has run since the last take."""
        return bool(self._runs)

    @property
    def weight(self) -> Tensor:
        """The classifier's weight, detached, ``(K, d)``; a parametrised one is computed now."""
        weight: Tensor = self._known().weight  # type: ignore[assignment]
        return weight.detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The classifier's bias, detached, ``(K,)``; ``None`` if it has none."""
        bias = getattr(self._known(), "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def __enter__(self) -> FeatureTap:
        """Place the hooks."""
        self._place()
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
        """Return what the last forward pass left, and forget it.

        Args:
            output: What the model returned; needed only if the forward pass went through
                something else than ``model(...)``, and then at the first call (at each call, if
                a 1x1 convolution is averaged to the logits).

        Returns:
            Features, logits and inner layers of that pass.

        Raises:
            InputError: If the classifier cannot be told, did not run, ran more than once, or its
                input was overwritten since; if an inner layer did not run, or not once.
        """
        runs, seen = self._runs, self._seen
        returned = self._output if output is None else output
        self.forget()
        if self.classifier is None:
            chosen = _heads.choose(runs, returned, self.model)
            runs = [run for run in runs if run.module is chosen.module]
            name, module = chosen.name, chosen.module
        else:
            name, module = self.name, self.classifier
        if len(runs) != 1:
            raise InputError(
                f"expected the classifier {name!r} to run once in a forward pass, but it ran "
                f"{len(runs)} times; pass classifier= the layer that makes the logits, or a "
                "forward that runs it once"
            )
        features, logits, self._form = _heads.read(runs[0], returned, self._form)
        if self.classifier is None:
            self._settle_classifier(name, module)
            self._replace()
        return Tapped(features, logits, self._take_layers(seen, features))

    def forget(self) -> None:
        """Forget what was caught since the last take, as after a forward pass that failed."""
        self._runs, self._seen, self._output = [], {}, None

    def _take_layers(self, seen: Seen, features: Tensor) -> dict[str, Tensor]:
        caught: dict[str, Tensor] = {}
        for name in self._layers:
            got = seen.get(name, [])
            if len(got) == 1 and got[0] is not None and _fits(got[0], features):
                caught[name] = got[0]
            elif self._settled:
                raise InputError(f"the layer {name!r} {_fault(got, features)}")
        if not self._settled:
            self._layers = {name: self._layers[name] for name in caught}
            self._settled = True
            self._replace()
        return caught

    def _settle_classifier(self, name: str, module: nn.Module) -> None:
        if not self._settled:
            self._layers = {n: m for n, m in self._layers.items() if m is not module}
        elif any(layer is module for layer in self._layers.values()):
            raise InputError(
                f"the layer {name!r} is the classifier: its input is measured as the features "
                "already; leave it out of layers="
            )
        self.name, self.classifier = name, module

    def _known(self) -> nn.Module:
        if self.classifier is None:
            raise InputError(
                "the classifier is not known before the first take(); run the model once, or pass "
                "classifier="
            )
        return self.classifier

    # -- hooks -------------------------------------------------------------------------------------

    def _place(self) -> None:
        known = self.classifier
        heads = _modules.heads_of(self.model) if known is None else {self.name: known}
        try:
            for name, module in heads.items():
                self._watch(name, module)
            for name, module in self._layers.items():
                self._watch_layer(name, module)
            if known is None or _modules.is_pointwise(known):
                root = _modules.unwrapped(self.model)
                self._handles.append(root.register_forward_hook(self._keep_output))
        except BaseException:
            self._remove()
            raise

    def _replace(self) -> None:
        self._remove()
        self._place()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def _watch(self, name: str, module: nn.Module) -> None:
        # A forward hook sees the same input as a pre-hook, and the logits with it.
        def catch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next(_heads.tensors((args, kwargs)), None)
            made = next(_heads.tensors(output), None)
            if given is not None and made is not None:
                self._runs.append(Run.of(name, module, given, made))

        self._handles.append(module.register_forward_hook(catch, with_kwargs=True))

    def _watch_layer(self, name: str, module: nn.Module) -> None:
        def catch(module: nn.Module, args: Any, output: Any) -> None:
            seen = self._seen.setdefault(name, [])
            # A second run is only counted.
            seen.append(None if seen else reduced(name, module, output, self._reduce))

        self._handles.append(module.register_forward_hook(catch))

    def _keep_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self._output = output


# -- inner layers ----------------------------------------------------------------------------------


def _inner(model: nn.Module, layers: Layer | Sequence[Layer]) -> dict[str, nn.Module]:
    if layers == "all":
        return _modules.weighted_layers(model)
    return _modules.named_layers(
        model, [layers] if isinstance(layers, (str, nn.Module)) else layers
    )


def _fits(layer: Tensor, features: Tensor) -> bool:
    rows = layer.shape[:-1].numel() == features.shape[:-1].numel()  # tokens that were flattened
    return rows or layer.shape[0] == features.shape[0]


def _fault(got: list[Tensor | None], features: Tensor) -> str:
    if len(got) != 1:
        return (
            f"must run once in a forward pass, but ran {len(got)} times; take it out of layers=, "
            "or name the modules inside or around it"
        )
    if got[0] is None:
        return "gives no floating-point tensor (B, ...); take it out of layers="
    return (
        f"gives {got[0].shape[0]} rows for {features.shape[0]} of features, so they cannot be "
        "matched to samples; take it out of layers="
    )
