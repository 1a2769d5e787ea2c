"""Permutations: of the elements of a set, of tokens, of the nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import permutations as every_order
from typing import Any

import torch
from torch import Tensor

from ncmonitor.errors import InputError, check_whole
from ncmonitor.symmetry.groups.group import Action, Group, table_of

_MOST_IN_FULL = 120  # S_5; its table has 14,400 entries, that of S_6 half a million
_DIM = 1  # (B, n, ...)


def permutations(n: int, *, count: int | None = None, seed: int = 0) -> Group:
    """Permute the n elements of sets or the tokens of sequences, ``(B, n, ...)``.

    A mask goes along by ``permutations(n).on("tokens", "mask")``.

    Args:
        n: Elements in each set.
        count: Take this many different permutations at random, the identity among them; a set
            without a table. None: all n!, for n up to 5.
        seed: Of that choice; the generator is its own.

    Returns:
        The identity and the permutations; exact, closed where it has all of them.
    """
    orders = _orders(n, count, seed)
    table = None if count is not None else table_of(orders, _compose)
    actions = [Action(_name(i, p), partial(_permute, order=p)) for i, p in enumerate(orders)]
    fields: dict[str, Any] = {"exact": True, "table": table, "drawn": count is not None}
    return Group.of("permutations", actions[1:], kind="sets", **fields)


def node_permutations(
    n: int,
    *,
    count: int | None = None,
    seed: int = 0,
    features: int | str | Iterable[int | str] = 0,
    adjacency: int | str | Iterable[int | str] = 1,
) -> Group:
    """Renumber the n nodes of graphs: rows of the features, rows and columns of the adjacency.

    Acts on a tuple ``(features, adjacency)`` or on a dict, given the keys.

    Args:
        n: Nodes in each graph.
        count: As in :func:`permutations`.
        seed: Of that choice.
        features: Positions or keys of what is ``(B, n, ...)``: node features, a mask.
        adjacency: Positions or keys of what is ``(B, n, n, ...)``: adjacency, edge features.

    Returns:
        The identity and the permutations; exact, closed where it has all of them.

    Raises:
        InputError: If features and adjacency are one part.
    """
    lines, squares = _keys(features), _keys(adjacency)
    if not squares or set(lines) & set(squares):
        raise InputError(
            f"features= and adjacency= must name different parts, got {lines} and {squares}; "
            "without an adjacency use permutations()"
        )
    orders = _orders(n, count, seed)
    table = None if count is not None else table_of(orders, _compose)
    actions = []
    for index, order in enumerate(orders):
        action = Action(_name(index, order), partial(_permute, order=order, both=True)).on(*squares)
        if lines:
            along = Action(action.name, partial(_permute, order=order)).on(*lines)
            action = Action(action.name, partial(_one_after_other, along, action))
        actions.append(action)
    fields: dict[str, Any] = {"exact": True, "table": table, "drawn": count is not None}
    return Group.of("node_permutations", actions[1:], kind="graphs", **fields)


def cyclic(n: int, step: int = 1) -> Group:
    """Shift the n elements of ``(B, n, ...)`` round in a circle: tokens, periodic sequences, rings.

    Args:
        n: Elements.
        step: Divides n; n / step shifts, a closed group.

    Returns:
        The shifts, with their table; exact.

    Raises:
        InputError: If ``step`` does not divide ``n``, or is ``n``.
    """
    check_whole("n", n)
    check_whole("step", step)
    if step < 1 or n < 2 or n % step or n == step:
        raise InputError(f"step must divide n and be smaller, got step={step} for n={n}")
    turns = torch.arange(n // step)
    orders = [tuple((i - step * int(turn)) % n for i in range(n)) for turn in turns]
    actions = [
        Action(f"turn{step * turn}", partial(_permute, order=order))
        for turn, order in enumerate(orders)
    ]
    table = (turns[:, None] + turns) % len(turns)
    return Group.of("cyclic", actions[1:], kind="sequences", exact=True, table=table)


def _orders(n: int, count: int | None, seed: int) -> list[tuple[int, ...]]:
    """Return permutations of range(n), the identity first."""
    check_whole("n", n)
    if n < 2:
        raise InputError(f"n must be at least 2 to permute, got {n}")
    total = math.factorial(n)
    if count is None:
        if total > _MOST_IN_FULL:
            raise InputError(
                f"{n} elements have {total:,} permutations; give count= to take some at random"
            )
        return list(every_order(range(n)))
    check_whole("count", count)
    if not 2 <= count <= total:
        raise InputError(
            f"count must lie between 2 and {total:,}, the permutations of {n} elements, got {count}"
        )
    generator = torch.Generator().manual_seed(seed)
    found = {tuple(range(n)): None}  # a dict keeps the order
    while len(found) < count:
        found.setdefault(tuple(torch.randperm(n, generator=generator).tolist()))
    return list(found)


def _compose(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of ``a∘b``: ``(a(bx))[i] = (bx)[a[i]] = x[b[a[i]]]``."""
    return tuple(b[i] for i in a)


def _name(index: int, order: tuple[int, ...]) -> str:
    return "perm" + ("".join(map(str, order)) if len(order) <= 5 else str(index))


def _permute(x: Tensor, *, order: tuple[int, ...], both: bool = False) -> Tensor:
    dims = (_DIM, _DIM + 1) if both else (_DIM,)
    if not isinstance(x, Tensor):
        raise InputError(  # a whole batch, given by mistake
            f"the permutation is of a tensor (B, {len(order)}, ...), got {type(x).__name__}; "
            "group.on(0) or group.on('tokens') acts on that part of a batch"
        )
    shape = tuple(x.shape)
    if x.dim() <= dims[-1] or any(shape[dim] != len(order) for dim in dims):
        wanted = ", ".join([str(len(order))] * len(dims))
        raise InputError(f"the permutation needs a shape (B, {wanted}, ...), got {shape}")
    places = torch.tensor(order, device=x.device)
    for dim in dims:
        x = x.index_select(dim, places)
    return x


def _one_after_other(first: Action, second: Action, x: Any) -> Any:
    return second(first(x))


def _keys(parts: int | str | Iterable[int | str]) -> tuple[int | str, ...]:
    return (parts,) if isinstance(parts, int | str) else tuple(parts)
