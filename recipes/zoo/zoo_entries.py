"""Which network learns what, and which groups it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from ncmonitor.errors import InputError, nearest
from ncmonitor.recipes.networks.equivariant import P4Net
from ncmonitor.recipes.zoo import geometric
from ncmonitor.recipes.zoo import zoo_data as data
from ncmonitor.recipes.zoo import zoo_groups as groups
from ncmonitor.recipes.zoo import zoo_networks as networks
from ncmonitor.recipes.zoo.predictions import Claim, Theory
from ncmonitor.recipes.zoo.zoo_data import CANVAS, DELAY, NODES, PATCHES, POINTS, SIDE, Task
from ncmonitor.recipes.zoo.zoo_groups import COUNT
from ncmonitor.recipes.zoo.zoo_networks import MaxBlurPool, ZooNetwork
from ncmonitor.symmetry import (
    Group,
    circular_shifts,
    euclidean,
    node_permutations,
    orthogonal,
    permutations,
    rotations90,
    time_shifts,
    translations,
)

ZERO, SMALL, FREE = Theory.ZERO, Theory.SMALL, Theory.FREE


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        name: As options and tables have it.
        what: One line for the reader.
        task: What it learns.
        build: Makes it, with random weights.
        claims: What theory says of it, group by group.
        epochs: Of training, enough to learn the task.
        extra: Whether it needs torch_geometric.
    """

    name: str
    what: str
    task: Callable[[], Task]
    build: Callable[[], ZooNetwork]
    claims: tuple[Claim, ...]
    epochs: int = 12
    extra: bool = False


def p4_net() -> ZooNetwork:
    """The network of group convolutions, taken apart at its last map larger than a pixel."""
    net = P4Net(1, CANVAS, widths=(8, 16), features=64)
    return ZooNetwork(net.body[:6], net.body[6:], 64, 10)


@cache
def entries() -> dict[str, Entry]:
    """Return all networks by name, in the order of the table."""
    found = [*_images(), *_sequences(), *_sets(), *_graphs(), *_clouds()]
    return {entry.name: entry for entry in found}


def chosen(names: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """Return the networks asked for in the order of the table, and the names of those left out.

    Args:
        names: Of networks; none: all that can be built here.

    Raises:
        InputError: If a name is unknown, or needs what is not installed.
    """
    known, there = entries(), geometric.is_there()
    asked = list(dict.fromkeys(names))
    for name in asked:
        if name not in known:
            raise InputError(
                f"unknown network {name!r}, expected some of: {', '.join(known)}"
                f"{nearest(name, known)}"
            )
        if known[name].extra and not there:
            raise InputError(f"{name} needs torch_geometric: {geometric.INSTALL}")
    wanted = [entry for entry in known.values() if not asked or entry.name in asked]
    missing = [] if there else [entry.name for entry in wanted if entry.extra]
    return [entry for entry in wanted if entry.name not in missing], missing


def _images() -> list[Entry]:
    around, turns = circular_shifts(CANVAS, step=3), rotations90()
    pixels = (Claim(turns, FREE), Claim(around, FREE), Claim(groups.pixel_permutations(), FREE))
    turned = (Claim(turns, ZERO, ZERO, groups.turned_maps()), Claim(around, FREE))
    what = "group convolutions over shifts and quarter turns"
    return [
        Entry("mlp", "MLP on pixels", data.images, networks.mlp, pixels),
        *_convolutions(around, turns, groups.margin_shifts()),
        Entry("p4_net", what, data.images, p4_net, turned),
    ]


def _convolutions(around: Group, turns: Group, inside: Group) -> list[Entry]:
    circular = "CNN, circular padding"
    return [
        _cnn(
            "cnn_dense",
            f"{circular}, a dense layer on the map",
            (Claim(around, FREE, ZERO, around), Claim(inside, FREE)),
            dense=True,
        ),
        _cnn(
            "cnn_gap",
            f"{circular}, stride 1, average over the map",
            (Claim(around, ZERO, ZERO, around), Claim(turns, FREE)),
        ),
        _cnn(
            "cnn_zero_pad",
            "CNN, zero padding, stride 1, average over the map",
            (Claim(inside, SMALL, SMALL, inside, below="cnn_dense"), Claim(around, FREE)),
            padding="zeros",
        ),
        _cnn(
            "cnn_maxpool",
            f"{circular}, max-pooling of stride 2, average over the map",
            (Claim(around, SMALL, below="cnn_dense"),),
            pooling=partial(torch.nn.MaxPool2d, 2),
        ),
        _cnn(
            "cnn_blurpool",
            f"{circular}, anti-aliased max-pooling of stride 2, average over the map",
            (Claim(around, SMALL, below="cnn_maxpool"),),
            pooling=MaxBlurPool,
        ),
    ]


def _cnn(name: str, what: str, claims: tuple[Claim, ...], **options: Any) -> Entry:
    return Entry(name, what, data.images, partial(networks.cnn, **options), claims, epochs=20)


def _sequences() -> list[Entry]:
    delays = time_shifts(DELAY)
    return [
        Entry(
            "gru",
            "GRU on the rows of a digit, its last state",
            data.sequences,
            networks.gru,
            (Claim(delays, FREE, FREE, delays), Claim(groups.reversal(), FREE)),
            epochs=30,
        ),
        Entry(
            "gru_packed",
            "GRU that leaves padding out (packed sequences), its last state",
            data.sequences,
            partial(networks.gru, packed=True),
            (Claim(delays, ZERO, ZERO, delays), Claim(groups.reversal(), FREE)),
            epochs=30,
        ),
    ]


def _sets() -> list[Entry]:
    of_pixels = permutations(SIDE**2, count=COUNT)
    of_tokens = permutations(PATCHES, count=COUNT)
    return [
        Entry(
            "deepsets",
            "DeepSets on pixels with their places",
            data.pixels,
            partial(networks.deep_sets, 1 + 2 * SIDE, classes=10),
            (Claim(of_pixels, ZERO, ZERO, of_pixels),),
            epochs=20,
        ),
        Entry(
            "transformer",
            "transformer on patches without positions, averaged",
            data.patches,
            partial(networks.transformer, positions=False),
            (Claim(of_tokens, ZERO, ZERO, of_tokens),),
            epochs=20,
        ),
        Entry(
            "transformer_pos",
            "transformer on patches with learned positions, averaged",
            data.patches,
            partial(networks.transformer, positions=True),
            (Claim(of_tokens, FREE, FREE, of_tokens),),
            epochs=20,
        ),
    ]


def _graphs() -> list[Entry]:
    renumbered, moved = node_permutations(NODES, count=COUNT), permutations(NODES, count=COUNT)
    return [
        Entry(
            "gnn",
            "message passing (GIN), averaged over the nodes",
            data.graphs,
            partial(geometric.message_passing, 2),
            (Claim(renumbered, ZERO, ZERO, moved),),
            epochs=30,
            extra=True,
        ),
        Entry(
            "gnn_numbered",
            "message passing that is told the number of each node",
            data.numbered_graphs,
            partial(geometric.message_passing, 2 + NODES),
            (Claim(groups.renumbered_nodes(), FREE, FREE, moved),),
            epochs=30,
            extra=True,
        ),
    ]


def _clouds() -> list[Entry]:
    orders, moves = permutations(POINTS, count=COUNT), translations(COUNT)
    turns, rigid = orthogonal(COUNT), euclidean(COUNT)
    return [
        Entry(
            "pointnet",
            "PointNet on raw coordinates: the maximum over points",
            data.clouds,
            partial(networks.deep_sets, 3, classes=4, maximum=True),
            (Claim(orders, ZERO, ZERO, orders), Claim(turns, FREE), Claim(moves, FREE)),
        ),
        Entry(
            "pointnet_conv",
            "PointNet++ on differences of points",
            data.clouds,
            geometric.relative_pointnet,
            (Claim(orders, ZERO, ZERO, orders), Claim(moves, ZERO), Claim(turns, FREE)),
            extra=True,
        ),
        Entry(
            "schnet",
            "SchNet on distances of points",
            data.clouds,
            geometric.schnet,
            (Claim(orders, ZERO, ZERO, orders), Claim(turns, ZERO), Claim(rigid, ZERO)),
            extra=True,
        ),
    ]
