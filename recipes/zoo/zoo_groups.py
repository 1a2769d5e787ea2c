"""The zoo's own groups; the others are those of :mod:`ncmonitor.symmetry`."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor

from ncmonitor.recipes.networks.equivariant import quarter_turned
from ncmonitor.recipes.zoo.zoo_data import CANVAS, MARGIN, NODES
from ncmonitor.symmetry import Action, Group, node_permutations, permutations, shifts

#: Elements of a group that is sampled.
COUNT: Final = 8


def turned_maps() -> Group:
    """Quarter turns as they act on maps with four orientations."""
    actions = [
        Action(f"rot{90 * turns}", partial(quarter_turned, turns=turns)) for turns in (1, 2, 3)
    ]
    return Group.of("rotations90", actions, kind="maps", exact=True)


def margin_shifts() -> Group:
    """Shifts that keep the digit inside the image: nothing is cut off, nothing comes round."""
    steps = range(-MARGIN, MARGIN + 1)
    return shifts([(down, right) for down in steps for right in steps], boundary="constant")


def pixel_permutations() -> Group:
    """Random orders of the pixels of an image."""
    orders = permutations(CANVAS**2, count=COUNT)

    def scramble(x: Tensor, order: Action) -> Tensor:
        return torch.as_tensor(order(x.flatten(1))).view_as(x)

    actions = [Action(order.name, partial(scramble, order=order)) for order in orders.actions[1:]]
    return Group.of("pixel_permutations", actions, kind="images", exact=True)


def reversal() -> Group:
    """Sequences from the last step to the first."""
    turn = Action("reversed", lambda x: x.flip(1))
    table = torch.tensor([[0, 1], [1, 0]])
    return Group.of("reversal", [turn], kind="sequences", exact=True, table=table)


def renumbered_nodes() -> Group:
    """Renumber nodes and give each the feature of its new number."""
    plain = node_permutations(NODES, count=COUNT)

    def renumber(graphs: tuple[Tensor, Tensor], action: Action) -> tuple[Tensor, Tensor]:
        features, adjacency = action(graphs)
        numbers = graphs[0][..., -NODES:]
        return torch.cat([features[..., :-NODES], numbers], 2), adjacency

    actions = [Action(a.name, partial(renumber, action=a)) for a in plain.actions[1:]]
    return Group.of(plain.name, actions, kind="graphs", exact=True)
