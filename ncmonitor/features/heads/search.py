"""Which module makes the logits that a model returns: decided by replacing what modules give."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmonitor.errors import InputError
from ncmonitor.features.heads import advice
from ncmonitor.features.heads.head import (
    Call,
    GivenHead,
    GivenPair,
    Head,
    LayerCall,
    found_weight,
    linear_head,
    read_source,
    slack_of,
)
from ncmonitor.features.heads.interventions import Missed, Place, Trial, disturbed, seed_all, trials
from ncmonitor.features.heads.links import KINDS, Arrangement, Link, arrangements, candidates, fit
from ncmonitor.features.modules import modules_of, unwrapped

Again = Callable[[], Any]


def find_head(
    model: nn.Module, again: Again, given: tuple[str, nn.Module] | GivenPair | None = None
) -> Head:
    """Return the head whose output is the logits that the model returns.

    A module is it if the model returns noise that is put in place of its output, up to what
    :mod:`ncmonitor.features.heads.links` allows, and if its output is linear in its input.

    Args:
        model: The model.
        again: Runs it on one batch and returns its output.
        given: The module that the user named, or the module and the weight.

    Raises:
        InputError: If there is none, or more than one, with what to pass.
    """
    if isinstance(given, GivenPair):
        return _given_head(model, again, given)
    ran, returned = _watched(model, again, None if given is None else given[1])
    if not returned:
        raise advice.returns_nothing(given)
    if given is not None:
        return _named_head(model, again, given, ran, returned)
    found = list(_found(model, again, ran, returned))
    # A hidden layer that is returned behind tanh looks like logits under a softcap of 1.
    found = [h for h in found if h.link is not None and h.link.kind != "softcap"] or found
    if len(found) == 1 and not _another_makes_logits(again, found[0], ran, returned):
        return found[0]
    if found:
        return _tie(found, model)
    raise _none(model, again, ran, returned)


def _watched(
    model: nn.Module, again: Again, only: nn.Module | None = None
) -> tuple[list[LayerCall], list[Tensor]]:
    """Run the model; return the modules in the order in which they ended, and what it returned."""
    named = {id(module): (name, module) for name, module in reversed(modules_of(model).items())}
    wide = candidates(again())  # what to keep depends on it
    counts: dict[int, int] = {}
    last: dict[int, tuple[Call, Tensor] | None] = {}

    def catch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        key = id(module)  # the hash of a torchmetrics Metric changes with its state
        counts[key] = counts.pop(key, 0) + 1
        last[key] = None
        real = isinstance(output, Tensor) and output.is_floating_point()
        if real and (module is only or _may_hold(output, wide)):
            call = Call.of(args, kwargs, output, copy=True)
            last[key] = None if call.given is None else (call, output.detach())

    with contextlib.ExitStack() as hooks:
        for _, module in named.values():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(catch, with_kwargs=True).remove)
        returned = candidates(again())
    ran = [
        LayerCall(*named[key], count, *(last[key] or (None, None))) for key, count in counts.items()
    ]
    return ran, returned


def _may_hold(output: Tensor, returned: Iterable[Tensor]) -> bool:
    turned = [output] if output.ndim < 3 else [output, output.movedim(1, -1)]
    return any(any(arrangements(made, r)) for made in turned for r in returned if output.ndim > 1)


def _found(
    model: nn.Module, again: Again, ran: list[LayerCall], returned: list[Tensor]
) -> Iterator[Head]:
    """Yield one head for each returned tensor that has one."""
    places: set[int] = set()
    passed: list[nn.Module] = []
    for each in _inner_first(ran[::-1]):
        inner = set(each.module.modules())
        if each.call is None or each.calls != 1 or any(module in inner for module in passed):
            continue
        if not any(_plausible(each, r) for r in returned):
            continue
        head = linear_head(each.name, each.call, each.module)
        head = None if head is None else _proven(model, again, each, head)
        if head is not None:
            passed.append(each.module)
            if head.place not in places:
                places.add(head.place)
                yield head


def _another_makes_logits(
    again: Again, head: Head, ran: list[LayerCall], returned: list[Tensor]
) -> bool:
    """Tell whether layers that are not on the way to the head make another returned tensor.

    A hidden layer that is returned beside the logits is on that way; the mean of two other heads, a
    reconstruction and a second task are not, and which one is meant is not known here.
    """
    assert head.link is not None
    places = [place for place in range(len(returned)) if place != head.place]
    places = [place for place in places if _may_be_logits(returned[place], returned[head.place])]
    if not places:
        return False
    own = next(number for number, each in enumerate(ran) if each.module is head.module)
    inside = set(map(id, head.module.modules()))
    clean = _with_weights(again, head, [])
    # All that ran later at once; before it, one by one what gives a tensor of that shape.
    before = [[each.module] for each in ran[:own] if each.output is not None]
    for group in ([each.module for each in ran[own + 1 :]], *before):
        group = [m for m in group if id(m) not in inside]
        taken, now = _with_weights(again, head, group)
        if len(now) != len(clean[1]) or not _equal(taken, clean[0]):
            continue  # on the way to the head
        changed = (place for place in places if not _equal(now[place], clean[1][place]))
        if any(fit([returned[head.place]], [now[place]]) is None for place in changed):
            return True
    return False


def _may_be_logits(tensor: Tensor, logits: Tensor) -> bool:
    return tensor.ndim == logits.ndim and tensor.shape[0] == logits.shape[0]


def _with_weights(
    again: Again, head: Head, modules: list[nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """Return what the head takes and the model returns while some modules have other weights."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = Call.of(args, kwargs, output).given
        if given is not None:
            caught.append(given.clone())

    handle = head.module.register_forward_hook(catch, with_kwargs=True)
    try:
        seed_all()
        with disturbed(modules):
            returned = [t.clone() for t in candidates(again())]
    except Exception:  # no network promises to run with any weights
        return torch.zeros(0), []
    finally:
        handle.remove()
    return (caught[0] if caught else torch.zeros(0)), returned


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-5, equal_nan=True)


def _inner_first(ran: list[LayerCall]) -> Iterator[LayerCall]:
    """Yield what ran, the last first, but the parts of a module before the module."""
    done: set[nn.Module] = set()
    for each in ran:
        if each.module in done:
            continue
        inside = set(each.module.modules()) - {each.module} - done
        yield from _inner_first([other for other in ran if other.module in inside])
        done |= inside | {each.module}
        yield each


def _plausible(ran: LayerCall, returned: Tensor) -> bool:
    """Tell whether the values of one pass allow it; a single row does not tell."""
    assert ran.call is not None
    assert ran.call.made is not None
    made = ran.call.made
    turned = [made] if made.ndim < 3 else [made, made.movedim(1, -1)]
    return any(
        (made.shape[:-1].numel() < 2 and any(arrangements(made, returned)))
        or fit([made], [returned]) is not None
        for made in turned
    )


def _proven(model: nn.Module, again: Again, ran: LayerCall, head: Head) -> Head | None:
    """Return the head with its link, if the model returns noise that is put in its place."""
    try:
        done = trials(model, again, Place(head.module))
    except Missed:
        return None
    made = [t.noise.movedim(1, -1) if head.channels_first else t.noise for t in done]
    found = sorted(_links(done, made, KINDS), key=lambda each: KINDS.index(each[1].kind))
    if not found:
        return None
    place, link = found[0]
    return dataclasses.replace(head, link=link, place=place, copies=ran.overwritten)


def _links(
    done: list[Trial],
    made: list[Tensor],
    kinds: Iterable[str],
    slack: list[Tensor] | None = None,
) -> Iterator[tuple[int, Link]]:
    """Yield the returned tensors that hold what was made, and how."""
    count = len(done[0].returned)
    if any(len(t.returned) != count for t in done):
        return
    for place in range(count):
        link = fit(made, [t.returned[place] for t in done], tuple(kinds), slack)
        if link is not None:
            yield place, link


# -- a classifier that the user named --------------------------------------------------------------


def _named_head(
    model: nn.Module,
    again: Again,
    given: tuple[str, nn.Module],
    ran: list[LayerCall],
    returned: list[Tensor],
) -> Head:
    name, module = given
    own = next((each for each in ran if each.module is module), None)
    calls = 0 if own is None else own.calls
    if own is None or calls != 1:
        raise advice.not_once(name, calls)
    head = None if own.call is None else linear_head(name, own.call, module, named=True)
    if own.call is None or head is None:
        raise advice.not_linear(name, module, _better(model, again))
    proven = _proven(model, again, own._replace(name=name), head)
    if proven is None:
        raise advice.not_returned(own, returned, _better(model, again))
    return proven


def _better(model: nn.Module, again: Again) -> str:
    """Return what to pass instead of a module that is not the head."""
    try:
        head = find_head(model, again)
    except InputError:
        return "leave classifier= out to be told what else there is"
    return f"the model's logits are made by {head.name!r}: leave classifier= out"


def _tie(found: list[Head], model: nn.Module) -> Head:
    """Return the head that ``get_classifier()`` names."""
    for owner in map(unwrapped, (model, *model.children())):
        named = None
        with contextlib.suppress(AttributeError, TypeError):  # none, or one that takes arguments
            named = getattr(owner, "get_classifier")()  # noqa: B009 - unknown to nn.Module
        inside = set(named.modules()) if isinstance(named, nn.Module) else set()
        chosen = [head for head in found if head.module in inside]
        if len(chosen) == 1:
            return chosen[0]
    raise advice.several(found[::-1])


# -- a weight that the user named ------------------------------------------------------------------


def _given_head(model: nn.Module, again: Again, given: GivenPair) -> Head:
    ran, returned = _watched(model, again, given.module)
    own = next((each for each in ran if each.module is given.module), None)
    if own is None or own.calls != 1:
        raise advice.not_once(given.name, 0 if own is None else own.calls)
    weight, _ = read_source(given.source, model)
    head = pair_head(model, again, given)
    if head is None:
        raise advice.weight_not_used(given, weight, returned)
    return head


def pair_head(model: nn.Module, again: Again, given: GivenPair) -> GivenHead | None:
    """Return how a weight and a module's features make what the model returns; ``None``: not.

    The features are what the module takes, or what it gives, whichever the model proves; the weight
    or its transpose, rows and features as they are or at unit length.
    """
    weight, _ = read_source(given.source, model)
    acts = _acts(model, again, given.source)
    longest = float(weight.float().norm(dim=1).square().mean().sqrt())
    scale = 3.0 / longest if longest > 0 else 1.0
    for output in (False, True):
        read: list[tuple[Tensor, Tensor | None]] = []
        place = Place(given.module, output, scale)
        try:
            done = trials(
                model,
                again,
                place,
                lambda: read.append(_copied(*read_source(given.source, model))),  # noqa: B023
            )
        except Missed:
            continue
        for head in _ways(model, given, output):
            proven = _explained(head, done, read[: len(done)])
            if proven is not None and not (proven.returns_features and acts):
                return proven
    return None


def _acts(model: nn.Module, again: Again, source: Any) -> bool:
    """Tell whether what the model returns changes with a weight, which is then not the loss's."""
    held = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    read = read_source(source, model)[0]
    tensor = found_weight(model, source) if isinstance(source, str) else None
    own = [t for t in held if t is tensor or t.data_ptr() == read.data_ptr()]
    if not own:  # computed from others
        return False
    seed_all()
    before = [t.clone() for t in candidates(again())]
    data = own[0].data
    try:
        own[0].data = data * 1.5 + 0.25
        seed_all()
        after = candidates(again())
    except Exception:
        return True
    finally:
        own[0].data = data
    return len(before) != len(after) or not all(map(_equal, before, after))


def _copied(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.clone(), None if bias is None else bias.clone()


def _ways(model: nn.Module, given: GivenPair, output: bool) -> Iterator[GivenHead]:
    """Yield the ways in which a weight may meet features, the plainest first."""
    plain = GivenHead(given.name, given.module, source=given.source, model=model, output=output)
    for first, turned, unit_rows, normalised in itertools.product((False, True), repeat=4):
        yield dataclasses.replace(
            plain,
            channels_first=first,
            turned=turned,
            unit_rows=unit_rows,
            normalised=normalised,
        )


def _explained(
    head: GivenHead, done: list[Trial], read: list[tuple[Tensor, Tensor | None]]
) -> GivenHead | None:
    """Return the head with its link, if it explains what the model returned in every pass."""
    made, slack, used = [], [], []
    for trial, (weight, bias) in zip(done, read, strict=True):
        noise = trial.noise
        if head.channels_first:
            if noise.ndim < 3:
                return None
            noise = noise.movedim(1, -1)
        weight = weight.T if head.turned else weight
        if noise.shape[-1] != weight.shape[1] or (bias is not None and len(bias) != len(weight)):
            return None
        weight = functional.normalize(weight, dim=1) if head.unit_rows else weight
        features = head.used(noise)
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        bias = None if bias is None else bias.to(features.device, wide)
        weight = weight.to(features.device, wide)
        made.append(functional.linear(features.to(wide), weight, bias))
        slack.append(slack_of(features, weight))
        used.append(features)
    for place, link in _links(done, made, (*KINDS, "shift"), slack):
        return dataclasses.replace(head, link=link, place=place)
    # The model returns the features alone, and the loss has the weight.
    alone = all(len(trial.returned) == 1 for trial in done) and not head.turned_square
    for place, link in _links(done, used, ("identity",)) if alone else ():
        width = weight.shape[0]
        if not link.arrangement.chosen:
            axis = link.arrangement.axis
            link = Link(Arrangement(axis, width, chosen=False), "identity")
            return dataclasses.replace(head, link=link, place=place, returns_features=True)
    return None


# -- nothing found ---------------------------------------------------------------------------------


def _none(
    model: nn.Module, again: Again, ran: list[LayerCall], returned: list[Tensor]
) -> InputError:
    """Return what to say, with a weight to name where one makes the logits."""
    weights = advice.weights_of(model, advice.class_counts(returned), {id(r.module) for r in ran})
    pairs = []
    for name, _ in weights:
        ways = [(name, repr(name)), *_with_biases(model, name), _distances(name)]
        for each in _ends_in_features(model, again, name):
            for source, words in ways:
                pair = GivenPair(each.name, each.module, source)
                with contextlib.suppress(InputError):
                    head = pair_head(model, again, pair)
                    if head is not None and not head.returns_features:
                        pairs.append((each.name, words))
            if pairs:
                break
    return advice.no_head(ran, returned, weights, pairs)


def _with_biases(model: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
    """Yield a weight with each vector beside it that may be its bias, and in words."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    for other, tensor in (*module._parameters.items(), *module._buffers.items()):
        if other != last and tensor is not None and tensor.ndim == 1 and last != "weight":
            bias = f"{owner}.{other}" if owner else other

            def source(model: nn.Module, bias: str = bias) -> tuple[Any, Any]:
                return found_weight(model, name), found_weight(model, bias)

            yield source, f"lambda model: (model.{name}, model.{bias})"


def _distances(name: str) -> tuple[Callable[[nn.Module], tuple[Tensor, Tensor]], str]:
    """Return weight and bias of logits that are squared distances to prototypes, and in words.

    ``-‖h - p‖² = 2 p·h - ‖p‖² - ‖h‖²``, whose last term is the same for every class.
    """

    def source(model: nn.Module) -> tuple[Tensor, Tensor]:
        found = found_weight(model, name)
        assert found is not None
        return 2 * found, -found.square().sum(1)

    return source, f"lambda model: (2 * model.{name}, -model.{name}.square().sum(1))"


def _ends_in_features(model: nn.Module, again: Again, weight: str) -> list[LayerCall]:
    """Return the outermost modules whose output is as wide as a weight, the last first."""
    found = found_weight(model, weight)
    assert found is not None
    wide = set(found.shape)
    ends: list[tuple[nn.Module, Tensor]] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 1 and {*output.shape[1:]} & wide:
            ends.append((module, output))

    named = {id(module): (name, module) for name, module in reversed(modules_of(model).items())}
    with contextlib.ExitStack() as hooks:
        for name, module in named.values():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(catch).remove)
        again()
    ran = [id(module) for module, _ in ends]
    last = [key for key in reversed(ran) if ran.count(key) == 1][:4]
    return [LayerCall(*named[key], 1, None, None) for key in last]
