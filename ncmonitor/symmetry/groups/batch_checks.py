"""Does a group fit a batch, before anything is measured with it."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ncmonitor.errors import InputError
from ncmonitor.symmetry.groups.group import IDENTITY, Action, Flow, Group

# (dimensions, in words) of the input of each kind that is a single tensor.
_KINDS: Final = {
    "images": ((4,), "images (B, C, H, W)"),
    "points": ((3,), "point clouds (B, n, d)"),
    "sets": ((2, 3, 4, 5), "sets (B, n, ...)"),
    "sequences": ((2, 3, 4, 5), "sequences (B, T, ...)"),
}
_MOST_PAIRS: Final = 1024  # compositions looked at; 24 elements have 576
_SAMPLES: Final = 4  # enough to tell a transform of each sample from one of the batch
_ROUNDING: Final = 1e-2  # of the largest entry: bfloat16 rounds by 0.4 %, mistakes are far larger


def check_group(group: Group, batch: Any) -> None:
    """Try a group on a batch, as one would before training; the batch and all seeds stay as are.

    Each action is called twice, and once on fewer samples; a table is compared with compositions.

    Args:
        group: The group.
        batch: Inputs as the actions take them: a tensor, or the tuple or dict of ``group.on()``.

    Raises:
        InputError: If an action does not fit the inputs, changes shape, dtype or device, gives
            nan, changes its input, draws random numbers, does not give the same twice, mixes
            samples; or if the identity or the table is not what it says.
    """
    if not isinstance(group, Group):
        raise InputError(f"expected a Group, got {type(group).__name__}; make one by Group.of")
    _check_kind(group, batch)
    tensors = dict(_tensors(batch))
    if not tensors:
        raise InputError(
            f"group {group.name!r} is tried on a tensor, or a tuple, list or dict of tensors, "
            f"got {type(batch).__name__}"
        )
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise InputError(f"group {group.name!r} needs a batch with samples in it to be tried on")
    few = _first(batch, _SAMPLES)
    with torch.no_grad(), _seeds_kept():
        for action in group:
            _check_action(f"action {action.name!r} of group {group.name!r}", action, few)
        _check_table(group, few)


def composition_table(group: Group | Sequence[Action], batch: Any) -> Tensor | None:
    """Find the table of a closed set of exact actions by composing them on a batch.

    Args:
        group: Or its actions, the identity first.
        batch: Inputs that no two actions send to the same: random ones will do.

    Returns:
        ``(n, n)`` int64, the index of ``g_i∘g_j``, or None if some composition is no element.

    Raises:
        InputError: If two actions agree on the batch.
    """
    actions = list(group)
    places: dict[Hashable, int] = {}
    for index, action in enumerate(actions):
        place = places.setdefault(_bits(action(batch)), index)
        if place != index:
            raise InputError(
                f"actions {actions[place].name!r} and {action.name!r} do the same to this "
                "batch; give random inputs, or leave one of them out"
            )
    inner = [action(batch) for action in actions]
    table = torch.tensor([[places.get(_bits(g(x)), -1) for x in inner] for g in actions])
    return None if (table < 0).any() else table


def _bits(batch: Any) -> Hashable:
    """Return the tensors of a batch as bytes; 0 and −0 are one number."""
    return tuple(
        (name, (tensor + tensor.new_zeros(())).flatten().cpu().view(torch.uint8).numpy().tobytes())
        for name, tensor in _tensors(batch).items()
    )


def _check_kind(group: Group, batch: Any) -> None:
    if group.kind not in _KINDS or not isinstance(batch, Tensor):
        return
    dims, words = _KINDS[group.kind]
    if batch.dim() not in dims:
        raise InputError(
            f"group {group.name!r} acts on {words}, got the shape {tuple(batch.shape)}"
        )


def _check_action(who: str, action: Action, batch: Any) -> None:
    before = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
    drawn = _states()
    first = _called(who, action, batch)
    if _drew(drawn):
        raise InputError(f"{who} draws random numbers; draw them once, when the action is made")
    if _distance(_tensors(batch), before) != 0:
        raise InputError(f"{who} changes its input in place; let it work on a copy (x.clone())")
    _check_like(who, first, batch)
    for name, tensor in _tensors(first).items():
        if _has_nan(tensor) and not _has_nan(before[name]):
            raise InputError(f"{who} gives nan where its input has none")
    if _distance(_tensors(_called(who, action, batch)), _tensors(first)) != 0:
        raise InputError(f"{who} is not deterministic: called twice, it gives different results")
    if action.name == IDENTITY and _distance(_tensors(first), before) != 0:
        raise InputError(f"{who} changes its input")
    alone = _called(who, action, _first(batch, 1))
    if _distance(_tensors(alone), _tensors(_first(first, 1))) > _ROUNDING:
        raise InputError(
            f"{who} mixes the samples of a batch: the first sample alone gives something else; "
            "transform each sample by itself (dimension 0 counts the samples)"
        )


def check_flow(flow: Flow, batch: Any) -> None:
    """Try the two transforms that a symmetric difference along a flow needs, as a group is tried.

    Args:
        flow: The flow, moved by its own step.
        batch: As in :func:`check_group`.

    Raises:
        InputError: Likewise.
    """
    if not isinstance(flow, Flow):
        raise InputError(f"expected a Flow, got {type(flow).__name__}")
    ahead = Action("ahead", lambda x: flow(x, flow.step))
    back = Action("back", lambda x: flow(x, -flow.step))
    check_group(Group.of(flow.name, [ahead, back], kind=flow.kind), batch)


def _check_table(group: Group, batch: Any) -> None:
    if group.table is None:
        return
    count = len(group)
    allowed = 0.0 if group.exact else _ROUNDING
    # Of a large group, pairs spread evenly; the odd step meets all rows and columns.
    step = max(1, count * count // _MOST_PAIRS) | 1
    for pair in range(0, count * count, step):
        i, j = divmod(pair, count)
        named = int(group.table[i, j])
        both = group[i](group[j](batch))
        if _distance(_tensors(both), _tensors(group[named](batch))) > allowed:
            names = group.names
            raise InputError(
                f"the table of group {group.name!r} says that {names[j]!r}, then {names[i]!r} is "
                f"{names[named]!r}, but on this batch it is not; see composition_table"
            )


def _called(who: str, action: Action, batch: Any) -> Any:
    try:
        return action(batch)
    except InputError as error:
        raise InputError(f"{who} does not fit the inputs: {error}") from error
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(batch).items()}
        shown = shapes.get("", shapes)
        raise InputError(
            f"{who} fails on inputs of shape {shown}: {type(error).__name__}: {error}"
        ) from error


def _check_like(who: str, result: Any, batch: Any) -> None:
    after, before = _tensors(result), _tensors(batch)
    if type(result) is not type(batch) or after.keys() != before.keys():
        raise InputError(
            f"{who} must return a batch like the one it got ({type(batch).__name__}), "
            f"got {type(result).__name__}"
        )
    for name, tensor in after.items():
        part = f" of part {name}" if name else ""
        for word, new, old in (
            ("shape", tuple(tensor.shape), tuple(before[name].shape)),
            ("dtype", tensor.dtype, before[name].dtype),
            ("device", tensor.device, before[name].device),
        ):
            if new != old:
                raise InputError(f"{who} changes the {word}{part} from {old} to {new}; keep it")


def _tensors(batch: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a batch by their place in it."""
    if isinstance(batch, Tensor):
        return {name: batch}
    places = enumerate(batch) if isinstance(batch, list | tuple) else ()
    found: dict[str, Tensor] = {}
    for place, part in batch.items() if isinstance(batch, Mapping) else places:
        found |= _tensors(part, f"{name}[{place!r}]")
    return found


def _first(batch: Any, count: int) -> Any:
    """Return the first samples of a batch: of each tensor with a dimension, the first entries."""
    if isinstance(batch, Tensor):
        return batch[:count] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _first(part, count) for key, part in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_first(part, count) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Largest difference of two batches, relative to the largest entry; equal nan do not differ."""
    worst = 0.0
    for name, a in left.items():
        b = right[name]
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0 or torch.equal(a, b):
            continue
        wide = torch.complex128 if a.is_complex() else torch.float64
        x, y = (torch.nan_to_num(tensor.cpu().to(wide), nan=0.0) for tensor in (a, b))
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp_min(1e-300)))
    return worst


def _has_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())


def _states() -> tuple[list[Tensor], Any, Any]:
    """Return the state of every generator that a transform might draw from."""
    # Asked only of a CUDA in use: the question would start it.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if started else []
    old = np.random.get_state(legacy=False)  # noqa: NPY002 - the one others draw from
    return [torch.get_rng_state(), *cuda], random.getstate(), old


def _drew(before: tuple[list[Tensor], Any, Any]) -> bool:
    """Tell whether a generator has moved."""
    after = _states()
    tensors = zip(before[0], after[0], strict=False)  # cuda may have started in between
    old, new = before[2]["state"], after[2]["state"]
    return (
        any(not torch.equal(a, b) for a, b in tensors)
        or before[1] != after[1]
        or old["pos"] != new["pos"]
        or not np.array_equal(old["key"], new["key"])
    )


@contextmanager
def _seeds_kept() -> Iterator[None]:
    (here, *cuda), python_state, numpy_state = _states()
    try:
        yield
    finally:
        torch.set_rng_state(here)
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - likewise
