"""The classifier of a model: where its features are, what its weight is, what it makes of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmonitor.errors import InputError
from ncmonitor.features.heads.links import Link, mapped, rounding, tensors
from ncmonitor.features.modules import is_pointwise, modules_of
from ncmonitor.inputs.tensors import exact_arithmetic

#: The weight of a head that is no layer: a tensor, the name of a parameter or buffer, or a function
#: of nothing or of the model that returns ``(weight, bias)``.
Weight = Tensor | str | Callable[..., Any]

_SLACK = 16.0  # rounding units of |w| |h|: a sum of d products in any order
_USUAL = {"weight", "bias"}
_EXPECTED = (
    "classifier=(module, weight) takes as weight a tensor (K, d), the name of a parameter or "
    "buffer of the model, or a function (of nothing or the model) that returns (weight, bias) with "
    "a row per class"
)


class Call(NamedTuple):
    """One call of a module: what it took and gave, and how often each was written to."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Tensor | None
    made: Tensor | None
    versions: tuple[int | None, int | None]

    @classmethod
    def of(cls, args: Any, kwargs: Any, output: Any, *, copy: bool = False) -> Call:
        """Keep the first tensors that went in and came out, without their graphs."""
        given, made = first_tensor((args, kwargs)), first_tensor(output)
        given = None if given is None else given.detach()
        made = None if made is None else made.detach()
        if copy and made is not None:  # the model writes to it afterwards
            made = made.clone()
        return cls(args, kwargs, given, made, (version(given), version(made)))


def first_tensor(value: Any) -> Tensor | None:
    """Return the first floating-point tensor in a nest."""
    return next((t for t in tensors(value) if t.is_floating_point()), None)


def version(tensor: Tensor | None) -> int | None:
    """Return how often a tensor was written to; tensors of inference mode do not count."""
    return None if tensor is None or tensor.is_inference() else tensor._version


class LayerCall(NamedTuple):
    """A module that ran.

    Attributes:
        name: In the model.
        module: The module.
        calls: How often it ran.
        call: The last, if its output may hold the logits.
        output: That output itself.
    """

    name: str
    module: nn.Module
    calls: int
    call: Call | None
    output: Tensor | None

    @property
    def overwritten(self) -> bool:
        """Whether the model wrote to the output afterwards."""
        return self.call is not None and version(self.output) != self.call.versions[1]


@dataclass(eq=False)
class Head:
    """A linear layer: ``nn.Linear``, a 1x1 convolution, or a layer whose weight gives its output.

    Attributes:
        name: Of the module in the model.
        module: The module.
        link: What stands between its output and the returned logits; ``None``: not known yet.
        place: Position of the returned tensor among those that may be logits.
        channels_first: Whether its classes are axis 1 of more than two.
        copies: Whether the model writes to its output afterwards, so that a copy is needed.
        normalised: Whether the features are used at unit length.
    """

    name: str
    module: nn.Module
    link: Link | None = None
    place: int = 0
    channels_first: bool = False
    copies: bool = False
    normalised: bool = False

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weight as an optimizer holds it; ``None`` if it is computed from others."""
        return self.module._parameters.get("weight")

    @property
    def described(self) -> str:
        """The name, as a record of the run has it."""
        return self.name

    def bound(self, model: nn.Module | None) -> Self:
        """Return the same head of another model of the same architecture; ``None``: of none."""
        module = None if model is None else modules_of(model)[self.name]
        return dataclasses.replace(self, module=module)  # type: ignore[arg-type]

    @property
    def one_logit(self) -> bool:
        """Whether it has one output, for two classes."""
        return self.link is not None and self.link.arrangement.classes == 1

    def linear(self) -> tuple[Tensor, Tensor | None]:
        """Return weight ``(K, d)`` and bias ``(K,)`` as they map features to the output."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        bias = getattr(self.module, "bias", None)
        return weight.detach().flatten(1), bias.detach() if isinstance(bias, Tensor) else None

    def read(self, call: Call) -> tuple[Tensor, Tensor]:
        """Return features and output of a call, both with their channels last."""
        assert call.given is not None
        assert call.made is not None
        if version(call.given) != call.versions[0]:
            raise InputError(
                f"the input of the classifier {self.name!r} was overwritten in place after it ran, "
                "so its features are lost; make the operation that follows out of place "
                "(inplace=False, x = x + y instead of x += y), or give it a copy"
            )
        features, made = call.given, call.made
        if self.channels_first:
            features, made = features.movedim(1, -1), made.movedim(1, -1)
        return self.used(features), made

    def used(self, features: Tensor) -> Tensor:
        """Return features as the weight meets them."""
        if not self.normalised:
            return features
        half = torch.finfo(features.dtype).bits < 32
        return functional.normalize(features.float() if half else features, dim=-1)


@dataclass(eq=False)
class ProbedHead(Head):
    """A module whose map is linear, found by trying unit vectors: an adapter, a layer of one's own.

    Its weight is what the module makes of d + 1 inputs, whatever it is computed from, and whatever
    way its parameter lies; a cosine head's map is linear in features of unit length.

    Attributes:
        dim: Dimension of the features.
        call: The rest of what it takes.
        axes: Of its input.
    """

    dim: int = 0
    call: Call | None = None
    axes: int = 2

    @property
    def parameter(self) -> nn.Parameter | None:
        """``None``: its weight may be computed from several parameters."""
        return None

    def outputs(self, rows: Tensor) -> Tensor:
        """Return what the module makes of feature rows ``(n, d)``: ``(n, K)``."""
        assert self.call is not None
        middle = [1] * (self.axes - 2)
        shape = [len(rows), self.dim, *middle] if self.channels_first else [len(rows), *middle, -1]
        given, done = rows.reshape(shape), False

        def change(tensor: Tensor) -> Tensor:
            nonlocal done
            first, done = not done, True
            return given if first else tensor

        args = mapped(self.call.args, change)
        kwargs = self.call.kwargs if done else mapped(self.call.kwargs, change)
        made = first_tensor(self.module(*args, **kwargs))
        assert made is not None
        made = made.movedim(1, -1) if self.channels_first else made
        return made.detach().reshape(len(rows), -1)

    def linear(self) -> tuple[Tensor, Tensor | None]:
        """Return what the module makes of the unit vectors."""
        like = self.like()
        with exact_arithmetic(like.device):
            units = torch.eye(self.dim, dtype=like.dtype, device=like.device)
            made = self.outputs(torch.cat([units, -units[:1]])).double()
        bias = (made[0] + made[-1]) / 2
        small = 4 * rounding(like) * made.abs().amax(0)
        bias = bias.where(bias.abs() > small, 0)  # ±1 cancel up to rounding
        weight = (made[:-1] - bias).T.contiguous()
        return weight.to(like.dtype), bias.to(like.dtype) if bool(bias.any()) else None

    def like(self) -> Tensor:
        """Return a tensor with the precision and the device of the module."""
        own = (*self.module.parameters(), *self.module.buffers())
        found = next((t for t in own if t.is_floating_point()), None)
        if found is None:
            assert self.call is not None
            assert self.call.given is not None
            return self.call.given
        return found


@dataclass(eq=False)
class GivenHead(Head):
    """A weight that the user named, on the features that a module takes or gives.

    Attributes:
        source: The weight.
        model: The model that holds it, if it is a name.
        output: Whether the features are what the module gives.
        turned: Whether the weight is ``(d, K)``.
        unit_rows: Whether its rows are used at unit length.
        returns_features: Whether the model returns the features, not logits.
    """

    source: Any = None
    model: nn.Module | None = None
    output: bool = False
    turned: bool = False
    unit_rows: bool = False
    returns_features: bool = False

    @property
    def turned_square(self) -> bool:
        """Whether which way a square weight lies is a guess."""
        weight, _ = read_source(self.source, self.model)
        return self.turned and weight.shape[0] == weight.shape[1]

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weight, if it is one parameter and is used as it is."""
        found = found_weight(self.model, self.source) if isinstance(self.source, str) else None
        plain = isinstance(found, nn.Parameter) and not self.unit_rows
        return found if plain else None  # type: ignore[return-value]

    @property
    def described(self) -> str:
        """The module's name and the weight's."""
        return f"{self.name} with {source_name(self.source)}"

    def bound(self, model: nn.Module | None) -> Self:
        """Return the same head of another model of the same architecture; ``None``: of none."""
        return dataclasses.replace(super().bound(model), model=model)

    def linear(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight ``(K, d)`` and the bias as they are now."""
        weight, bias = read_source(self.source, self.model)
        weight = weight.T if self.turned else weight
        return (functional.normalize(weight, dim=1) if self.unit_rows else weight), bias

    def read(self, call: Call) -> tuple[Tensor, Tensor]:
        """Return the features of a call, and the logits computed from them."""
        found, written = (call.made, 1) if self.output else (call.given, 0)
        assert found is not None
        if version(found) != call.versions[written]:
            raise InputError(
                f"what {self.name!r} {'gives' if self.output else 'takes'} was overwritten in "
                "place later, so the features are lost; make the operation that follows out of "
                "place, or give it a copy"
            )
        features = self.used(found.movedim(1, -1) if self.channels_first else found)
        return features, self.logits(features)

    def logits(self, features: Tensor) -> Tensor:
        """Return ``W h + b`` of features as the weight meets them."""
        weight, bias = self.linear()
        wide = torch.promote_types(features.dtype, weight.dtype)
        wide = torch.float64 if wide == torch.float64 else torch.float32
        with exact_arithmetic(features.device):
            bias = None if bias is None else bias.to(features.device, wide)
            weight = weight.to(features.device, wide)
            return functional.linear(features.to(wide), weight, bias)


def linear_misfit(
    features: Tensor,
    made: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Return how far ``W h + b`` is from the output ``(n, K)``, in units of rounding.

    Args:
        features: ``(n, d)``.
        made: The output.
        weight: ``(K, d)``.
        bias: ``(K,)`` or ``None``.
        lengths: Of the rows of the weight, ``(K,)``, where they are known.

    Returns:
        A scalar on the output's device; above 1 the output is something else.
    """
    wide = torch.float64 if made.dtype == torch.float64 else torch.float32
    with exact_arithmetic(made.device):
        h, w = features.to(wide), weight.to(made.device, wide)
        b = w.new_zeros(len(w)) if bias is None else bias.to(w)
        expected = functional.linear(h, w, b)
        rows: Tensor = torch.linalg.vector_norm(w, dim=1) if lengths is None else lengths.to(w)
        allowed = torch.linalg.vector_norm(h, dim=1)[:, None] * rows + b.abs()
    unit = rounding(features, made, weight)
    found = made.to(wide)
    error = (found - expected).abs() / (_SLACK * unit * allowed + torch.finfo(wide).smallest_normal)
    broken = ~(found.isfinite() & expected.isfinite())  # of a network that has diverged
    worst: Tensor = error.masked_fill(broken, 0).max() if error.numel() else error.new_zeros(())
    return worst.float()


def slack_of(features: Tensor, weight: Tensor) -> Tensor:
    """Return ``‖h‖ max‖w‖``, ``(n, 1)``: the size of the sums behind rows of ``W h``."""
    longest: Tensor = weight.to(features.device).float().norm(dim=1).max()
    lengths: Tensor = features.float().reshape(-1, features.shape[-1]).norm(dim=1)
    return lengths[:, None] * longest


def linear_head(name: str, call: Call, module: nn.Module, *, named: bool = False) -> Head | None:
    """Return the head that a module is, by what it makes of features; ``None`` if not linear.

    Its own ``weight`` is believed only if it explains the output on rows of other lengths too; else
    unit vectors are tried. A module around layers counts only if one of them is as wide, an
    adapter and not a network, or if the user named it.
    """
    given, made = call.given, call.made
    if given is None or made is None or given.ndim < 2 or given.ndim != made.ndim:
        return None
    first = is_pointwise(module) or given.shape[:-1] != made.shape[:-1]
    if first and (given.shape[0] != made.shape[0] or given.shape[2:] != made.shape[2:]):
        return None
    axis = 1 if first else -1
    dim, width = given.shape[axis], made.shape[axis]
    known = isinstance(module, nn.Linear) or is_pointwise(module)
    if not known and not named and not _is_adapter_or_layer(module, dim, width):
        return None
    common: dict[str, Any] = {"name": name, "module": module, "channels_first": first}
    probed = ProbedHead(**common, dim=dim, call=call, axes=given.ndim)
    rows = _rows_of_many_lengths(probed, given.movedim(axis, -1).reshape(-1, dim))
    try:
        with exact_arithmetic(rows.device):
            made = probed.outputs(rows)
    except Exception:  # it takes what only the model can give
        return None
    plain = [Head(**common)] if _is_plain(module, dim, width) else []
    for head in (*plain, probed, dataclasses.replace(probed, normalised=True)):
        weight, bias = head.linear()
        # A zero weight fits whatever it means; unit vectors tell as soon as it moves.
        sure = type(head) is ProbedHead or _exactly_linear(module) or bool(weight.any())
        if sure and bool(linear_misfit(head.used(rows), made, weight, bias) <= 1):
            return head
    return None


def _rows_of_many_lengths(head: ProbedHead, features: Tensor) -> Tensor:
    like = head.like()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(12, head.dim, generator=generator)
    drawn *= torch.logspace(-1, 1, 12)[:, None]
    real = features[:: max(1, len(features) // 4)][:4].detach()
    return torch.cat([real.to(like.device, like.dtype), drawn.to(like.device, like.dtype)])


def _exactly_linear(module: nn.Module) -> bool:
    own = getattr(module.forward, "__func__", None)
    return own in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def _is_plain(module: nn.Module, dim: int, width: int) -> bool:
    """Tell whether ``weight`` may be all there is: no adapter beside it, which is zero at first."""
    if not _exactly_linear(module):
        own = {**module._parameters, **module._buffers}
        if [*module.children()] or not {k for k, v in own.items() if v is not None} <= _USUAL:
            return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and (weight.shape[0], weight[0].numel()) == (width, dim)


def _is_adapter_or_layer(module: nn.Module, dim: int, width: int) -> bool:
    parts = [part for part in module.modules() if part is not module]
    if any(map(nn.parameter.is_lazy, module.parameters())):
        return False
    layers = [p for p in parts if any(t.ndim > 1 for t in p.parameters(recurse=False))]
    if layers:
        return any(
            isinstance(p, nn.Linear) and (p.in_features, p.out_features) == (dim, width)
            for p in parts
        ) or any(is_pointwise(p) and p.out_channels == width for p in parts)
    own = (*module.parameters(), *module.buffers())
    return any(t.ndim > 1 and width in t.shape for t in own)  # also packed as integers


# -- one logit -------------------------------------------------------------------------------------


def two_logits(logits: Tensor) -> Tensor:
    """Return the two logits ``(..., 2)`` that one ``(..., 1)`` stands for: ∓half of it."""
    return torch.cat([-logits, logits], -1) / 2


# -- weights that the user names -------------------------------------------------------------------


def source_name(source: Any) -> str:
    """Return how a record calls a weight that was given."""
    if isinstance(source, str):
        return source
    if isinstance(source, Tensor):
        return f"a weight of shape {tuple(source.shape)}"
    return str(getattr(source, "__name__", type(source).__name__))


def found_weight(model: nn.Module | None, name: str) -> Tensor | None:
    """Return a parameter or buffer by its dotted name, a parametrised one as it is used."""
    if model is None:
        return None
    owner, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    found: object = getattr(module, last, None)
    return found if isinstance(found, Tensor) else None


def _own_bias(model: nn.Module | None, name: str) -> Tensor | None:
    """Return the bias of a layer whose ``weight`` is named: it belongs to it."""
    owner, _, last = name.rpartition(".")
    bias = found_weight(model, f"{owner}.bias" if owner else "bias") if last == "weight" else None
    weight = found_weight(model, name)
    fits = bias is not None and weight is not None and bias.shape == weight.shape[:1]
    return bias if fits else None


def read_source(source: Any, model: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias that the user has given.

    Raises:
        InputError: If there is none of that name, or a function returns something else.
    """
    given, bias = source, None
    try:
        if isinstance(source, str):
            given, bias = found_weight(model, source), _own_bias(model, source)
        elif callable(source) and not isinstance(source, (Tensor, nn.Module)):
            takes = len(inspect.signature(source).parameters) > 0
            given = source(model) if takes else source()
            if isinstance(given, (tuple, list)) and len(given) == 2:
                given, bias = given
    except Exception as error:
        raise InputError(
            f"{_EXPECTED}; {source_name(source)!r} failed with {type(error).__name__}: {error}"
        ) from error
    fits = isinstance(given, Tensor) and given.ndim == 2 and given.is_floating_point()
    if not fits or not (bias is None or isinstance(bias, Tensor)):
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"{_EXPECTED}; {source_name(source)!r} gave {got}")
    return given.detach(), None if bias is None else bias.detach()


@dataclass
class GivenPair:
    """What the user passed as ``classifier=(module, weight)``, checked against the model.

    Attributes:
        name: Of the module.
        module: The module.
        source: The weight.
    """

    name: str
    module: nn.Module
    source: Weight = field(repr=False)
