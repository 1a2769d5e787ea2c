"""The classifier's input, and what inner layers give, while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ncmonitor.errors import InputError, nearest
from ncmonitor.features import modules as _modules
from ncmonitor.features.heads import advice
from ncmonitor.features.heads.head import Call, GivenPair, Head, Weight, read_source
from ncmonitor.features.heads.reader import HeadReader
from ncmonitor.features.heads.search import find_head
from ncmonitor.features.pooling import REDUCTIONS, Reduce, reduced

Layer = str | nn.Module
#: What ``classifier=`` takes: a layer, or a module beside features and the weight on them.
Classifier = Layer | tuple[Layer, Weight]
Seen = dict[str, list[Tensor | None]]  # what each run of each layer gave


@dataclass(frozen=True, eq=False)
class Activations:
    """What one forward pass left at the classifier; unpacks as ``features, logits``.

    Attributes:
        features: The classifier's input, detached, in the order of the logits that the model
            returns: ``(B, d)`` for an ordinary image classifier, also for one that runs on tokens
            if the model returns one of them; ``(B, T, d)`` for token classification,
            ``(B, H, W, d)`` for dense prediction by a 1x1 convolution.
        logits: The model's logits, detached, ``(B, K)`` and so on; of one logit z the two
            ``-z/2, z/2``; of a model that returns probabilities, what its classifier gives.
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

    The classifier is found at the first :meth:`take`, by intervention: the module whose output the
    model returns, whatever is put in its place, and whose output is linear in its input. Between
    the two may stand a positive factor, softmax, log-softmax, a softcap, a mask over classes, a
    reshape or a choice of positions. ``nn.Linear``, 1x1 convolutions, adapters around them, cosine
    heads and layers of other classes are found. At every take the values are compared.

    Names are those before ``torch.compile``: ``_orig_mod.`` is left out, and may be left out. Run
    a compiled model under ``torch.compiler.set_stance("force_eager")``; its graphs skip hooks.

    Args:
        model: Any module.
        classifier: The last linear layer, when it cannot be found: its name, a shell pattern that
            matches one linear layer (``"*.fc"``), or the module itself. Or a pair
            ``(module, weight)`` for a weight outside of a layer: the features are what the module
            takes or gives, the weight is a tensor ``(K, d)``, the name of a parameter or buffer, or
            a function (of nothing, or of the model) that returns ``(weight, bias)``.
        layers: Inner modules to catch too: names, patterns (each may match several) or modules; or
            ``"all"``: every module that owns a weight of two or more dimensions, except the
            classifier and what does not run once in a forward pass.
        reduce: What is kept of each layer's output (of its first tensor, if there are several),
            at once, so that no map outlives the layer. ``"gap"``: the mean over the positions of
            ``(B, C, *, *)`` or ``(B, T, d)``, half precision in float32. ``"flatten"``:
            ``(B, d')``. ``"tokens"``: all positions, channels last. A callable: its value, one
            row for each sample. With three dimensions, convolutions, pooling and batch norms (also
            within ``nn.Sequential``) give ``(B, C, T)``, everything else ``(B, T, d)``.
        head: A head that another tap of the same model has found; instead of ``classifier``.
        compares: Whether to compare what the model returns with what its classifier gives, which in
            training mode may be another thing.

    Attributes:
        model: The module that is tapped.
        head: The classifier as it was found; ``None`` until then.

    Raises:
        InputError: If the model has nothing of a given name.

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
        classifier: Classifier | None = None,
        *,
        layers: Layer | Sequence[Layer] = (),
        reduce: Reduce = "gap",
        head: Head | None = None,
        compares: bool = True,
    ) -> None:
        self.model = model
        self.head = head
        self._compares = compares
        if not callable(reduce) and reduce not in REDUCTIONS:
            raise InputError(
                f"reduce= must be 'gap', 'flatten', 'tokens' or a function, but is {reduce!r}"
                f"{nearest(str(reduce), REDUCTIONS)}"
            )
        self._reduce = reduce
        self._settled = layers != "all"  # whether every layer must run
        self._layers = _inner(model, layers)
        self._given = None if head is not None else _named(model, classifier)
        if head is not None:
            self._leave_out(head.name, head.module)
        elif isinstance(self._given, tuple):
            self._leave_out(*self._given)
        self._calls: dict[nn.Module, list[Call]] = {}
        self._seen: Seen = {}
        self._output: Any = None
        self._root_call: tuple[Any, Any] | None = None
        self._handles: list[RemovableHandle] = []
        self._reader: HeadReader | None = None
        self._deaf = False

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the inner layers, in the model's order; of ``"all"`` settled by a take."""
        return tuple(self._layers)

    @property
    def name(self) -> str:
        """The classifier's name in the model, ``""`` until found."""
        if self.head is not None:
            return self.head.name
        return self._given[0] if isinstance(self._given, tuple) else ""

    @property
    def classifier(self) -> nn.Module | None:
        """The classifier's module; ``None`` until found."""
        if self.head is not None:
            return self.head.module
        return self._given[1] if isinstance(self._given, tuple) else None

    @property
    def ran(self) -> bool:
        """Whether the classifier, or anything, has run since the last take."""
        own = self.classifier
        return bool(self._calls.get(own)) if own is not None else self._output is not None

    @property
    def weight(self) -> Tensor:
        """The classifier's weight, detached, ``(K, d)``; one that is computed is computed now."""
        return self._weight_and_bias()[0]

    @property
    def bias(self) -> Tensor | None:
        """The classifier's bias, detached, ``(K,)``; ``None`` if it has none."""
        return self._weight_and_bias()[1]

    def __enter__(self) -> FeatureTap:
        """Place the hooks."""
        self._reader = None
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

    def take(self, output: Any = None, again: Callable[[], Any] | None = None) -> Activations:
        """Return what the last forward pass left, and forget it.

        Args:
            output: What the model returned; needed only if the forward pass went through
                something else than ``model(...)``.
            again: Runs that forward pass once more and returns its output; needed then, too. The
                first call runs the model some times to find the classifier.

        Returns:
            Features, logits and inner layers of that pass.

        Raises:
            InputError: If the classifier cannot be told, is not what makes the logits, did not run,
                ran more than once, or its input was overwritten since; if an inner layer did not
                run, or not once.
            MeasurementError: On the CPU, if the model returned something else than its classifier
                gives; elsewhere :meth:`check` says so.
        """
        calls, seen = self._calls, self._seen
        returned = self._output if output is None else output
        again = again or self._root_again()
        self.forget()
        if self.head is None:
            anew = self._find(returned, again)
            if self._must_read(calls):
                returned = anew  # nobody listened to a head of this kind, or kept its output
                calls, seen = self._calls, self._seen
            self.forget()
        reader = self._known_reader()
        own = calls.get(reader.head.module, [])
        if len(own) != 1:
            raise advice.not_once(reader.head.name, len(own))
        with self._not_listening():
            features, logits = reader.read(own[0], returned if self._compares else None, again)
        if features.device.type == "cpu":
            reader.check()
        return Activations(features, logits, self._take_layers(seen, features))

    def check(self) -> None:
        """Compare, once for many batches, what the model returned with what its classifier gave.

        Raises:
            MeasurementError: If they differed by more than rounding.
        """
        if self._reader is not None:
            self._reader.check()

    def forget(self) -> None:
        """Forget what was caught since the last take, as after a forward pass that failed."""
        self._calls, self._seen, self._output, self._root_call = {}, {}, None, None

    def _find(self, returned: Any, again: Callable[[], Any] | None) -> Any:
        """Find the head; return what the model returns in a last pass, which is caught."""
        if again is None:
            if isinstance(self._given, tuple) and returned is None:
                self._reader = HeadReader(Head(*self._given), self.model)
                return None  # the model itself did not run: there is nothing to compare with
            raise InputError(
                "the classifier is found by running the model again: run the model itself, or "
                "pass take(output, again) a function that runs the same forward pass"
            )
        self._remove()
        with _without_trace(self.model):
            head = find_head(self.model, again, self._given)
            self._leave_out(head.name, head.module)
            self.head, self._reader = head, None
            self._place()
            return again()  # a model may keep what it computed last: nothing of ours

    def _must_read(self, calls: Mapping[nn.Module, Any]) -> bool:
        return self.head is not None and (self.head.copies or self.head.module not in calls)

    def _known_reader(self) -> HeadReader:
        if self._reader is None:
            if self.head is None:
                raise InputError(
                    "the classifier is not known before the first take(); run the model once, or "
                    "pass classifier="
                )
            self._reader = HeadReader(self.head, self.model)
        return self._reader

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self.head is None and isinstance(self._given, tuple) and _plain(self._given[1]):
            return Head(*self._given).linear()
        with self._not_listening():
            return self._known_reader().weight_and_bias()

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
            self._remove()
            self._place()
        return caught

    def _leave_out(self, name: str, module: nn.Module) -> None:
        """Leave the classifier out of ``layers="all"``; refuse it as a layer that was named."""
        if not self._settled:
            self._layers = {n: m for n, m in self._layers.items() if m is not module}
        elif any(layer is module for layer in self._layers.values()):
            raise InputError(
                f"the layer {name!r} is the classifier: its input is measured as the features "
                "already; leave it out of layers="
            )

    # -- hooks -------------------------------------------------------------------------------------

    def _place(self) -> None:
        known = self.classifier
        heads = _modules.linear_layers(self.model) if known is None else [known]
        try:
            for module in heads:
                catch = module.register_forward_hook(self._catch, with_kwargs=True)
                self._handles.append(catch)
            for name, module in self._layers.items():
                self._watch_layer(name, module)
            root = _modules.unwrapped(self.model)
            self._handles.append(root.register_forward_hook(self._keep_output, with_kwargs=True))
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def _catch(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # A forward hook sees the same input as a pre-hook, and the logits with it.
        if not self._deaf:
            copy = self.head is not None and self.head.copies
            self._calls.setdefault(module, []).append(Call.of(args, kwargs, output, copy=copy))

    def _watch_layer(self, name: str, module: nn.Module) -> None:
        def catch(module: nn.Module, args: Any, output: Any) -> None:
            if self._deaf:
                return
            seen = self._seen.setdefault(name, [])
            # A second run is only counted.
            seen.append(None if seen else reduced(name, module, output, self._reduce))

        self._handles.append(module.register_forward_hook(catch))

    def _keep_output(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._deaf:
            self._output, self._root_call = output, (args, kwargs)

    def _root_again(self) -> Callable[[], Any] | None:
        if self._root_call is None:
            return None
        args, kwargs = self._root_call
        return lambda: self.model(*args, **kwargs)

    @contextlib.contextmanager
    def _not_listening(self) -> Iterator[None]:
        """Run the model, or a part, inside without catching anything."""
        before, self._deaf = self._deaf, True
        try:
            yield
        finally:
            self._deaf = before


@contextlib.contextmanager
def _without_trace(model: nn.Module) -> Iterator[None]:
    """Run a model inside without gradients, on copies of its buffers, and put random states back.

    Copies: a pass in training mode writes to buffers that a graph of the user's may have saved.
    """
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    copies: dict[int, Tensor] = {}  # tied buffers stay tied
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for name, buffer in module._buffers.items():
                if buffer is not None and not nn.parameter.is_lazy(buffer):
                    undo.callback(module._buffers.__setitem__, name, buffer)
                    copies.setdefault(id(buffer), buffer.detach().clone())
                    module._buffers[name] = copies[id(buffer)]
        undo.enter_context(torch.random.fork_rng(sorted(map(str, devices))))
        undo.enter_context(torch.no_grad())
        yield


def _named(
    model: nn.Module, classifier: Classifier | None
) -> tuple[str, nn.Module] | GivenPair | None:
    """Return what ``classifier=`` means in a model."""
    if classifier is None:
        return None
    if not isinstance(classifier, (tuple, list)):
        return _modules.named_head(model, classifier)
    if len(classifier) != 2:
        raise InputError(
            f"classifier= takes a layer, or a pair (module, weight), but got {len(classifier)} "
            "entries"
        )
    module, source = classifier
    name, found = _modules.one_module(model, module)
    if isinstance(source, Tensor):  # by its name it is found in a copy of the model, too
        held = (*model.named_parameters(), *model.named_buffers())
        source = next((n for n, tensor in held if tensor is source), source)
    read_source(source, model)  # a wrong name should fail here
    return GivenPair(name, found, source)


def _plain(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


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
