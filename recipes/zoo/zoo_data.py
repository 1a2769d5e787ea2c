"""What the networks of the zoo learn: digits in four forms, generated graphs and point clouds.

Nothing is downloaded, and nothing depends on the seed of a run: runs of different seeds are
measured on the same samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad, unfold

#: One tensor, or several that belong together: node features and adjacency.
Inputs = Tensor | tuple[Tensor, ...]

SIDE: Final = 8  # of the digits, in pixels
MARGIN: Final = 2
CANVAS: Final = SIDE + 2 * MARGIN  # of the images that show them in the middle
DELAY: Final = 4  # steps of padding that sequences end in
PATCHES, NODES, POINTS = 16, 12, 16
_TEST, _EDGES = 300, 15
#: Graphs and clouds, of each of which so many are made; a quarter of them is held out.
_MADE: Final = 4 * _TEST
_GRAPHS: Final = ("ring", "random", "hub")
_CLOUDS: Final = ("sphere", "disc", "rod", "ring")


@dataclass(frozen=True)
class Task:
    """Inputs with labels, split once and for all.

    Attributes:
        train: Of each input the samples are along the first axis.
        train_labels: ``(N,)`` int64.
        test: Held out.
        test_labels: ``(M,)`` int64.
        classes: Number of classes.
    """

    train: Inputs
    train_labels: Tensor
    test: Inputs
    test_labels: Tensor
    classes: int


def taken(inputs: Inputs, index: Tensor | slice) -> Inputs:
    """Return some of the samples."""
    return inputs[index] if isinstance(inputs, Tensor) else tuple(part[index] for part in inputs)


def doubled(inputs: Inputs) -> Inputs:
    """Return the same inputs in float64."""
    return inputs.double() if isinstance(inputs, Tensor) else tuple(p.double() for p in inputs)


@cache
def digits() -> Task:
    """The 1,797 digits of scikit-learn, ``(N, 1, 8, 8)``; the background is 0, the deviation 1."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    pixels, held, labels, held_labels = train_test_split(
        pixels, labels, test_size=_TEST, random_state=0, stratify=labels
    )
    deviation = pixels.std()
    images = [
        torch.tensor(x / deviation, dtype=torch.float32).view(-1, 1, SIDE, SIDE)
        for x in (pixels, held)
    ]
    return Task(images[0], torch.tensor(labels), images[1], torch.tensor(held_labels), 10)


def images() -> Task:
    """Digits with a margin of two pixels of background, ``(N, 1, 12, 12)``."""
    return _digits_as(lambda x: pad(x, [MARGIN] * 4))


def sequences() -> Task:
    """Digits read row by row, ``(N, 12, 9)``: 8 pixels and a 1, then four steps of padding by 0."""
    return _digits_as(lambda x: pad(pad(x[:, 0], (0, 1), value=1.0), (0, 0, 0, DELAY)))


def patches() -> Task:
    """Digits as 16 tokens, ``(N, 16, 4)``: the patches of 2×2 pixels."""
    return _digits_as(lambda x: unfold(x, 2, stride=2).mT.contiguous())


def pixels() -> Task:
    """Digits as sets of 64 pixels, ``(N, 64, 17)``: a value, its row and its column of eight."""
    line = torch.arange(SIDE)
    places = one_hot(torch.cartesian_prod(line, line)).flatten(1).float()
    return _digits_as(
        lambda x: torch.cat([x.flatten(1)[..., None], places.expand(len(x), -1, -1)], 2)
    )


@cache
def graphs() -> Task:
    """Graphs of 12 nodes and 15 edges: a ring with chords, any edges, or a hub.

    Node features ``(N, 12, 2)``, a 1 and a random number, and the adjacency ``(N, 12, 12)``.
    Numbers of nodes are drawn at random.
    """
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    labels = torch.arange(_MADE) % len(_GRAPHS)
    adjacency = torch.stack([_graph(_GRAPHS[kind], draw) for kind in labels.tolist()])
    noise = torch.randn(_MADE, NODES, 1, generator=generator)
    return _split((torch.cat([torch.ones_like(noise), noise], 2), adjacency), labels)


@cache
def numbered_graphs() -> Task:
    """The same graphs with the number of each node among its features, ``(N, 12, 14)``."""
    plain = graphs()
    numbers = one_hot(torch.arange(NODES)).float()

    def with_numbers(inputs: Inputs) -> Inputs:
        features, adjacency = inputs
        return torch.cat([features, numbers.expand(len(features), -1, -1)], 2), adjacency

    train, test = with_numbers(plain.train), with_numbers(plain.test)
    return Task(train, plain.train_labels, test, plain.test_labels, plain.classes)


@cache
def clouds() -> Task:
    """Clouds of 16 points, ``(N, 16, 3)``: four blurred shapes, each in one orientation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_MADE) % len(_CLOUDS)
    normal = torch.randn(_MADE, POINTS, 3, generator=generator)
    uniform = torch.rand(_MADE, POINTS, 2, generator=generator)
    angle, zero = 2 * math.pi * uniform[..., 0], torch.zeros(_MADE, POINTS)
    radius = 1.2 * uniform[..., 1].sqrt()
    shapes = (
        normal / normal.norm(dim=2, keepdim=True),
        torch.stack([radius * angle.cos(), radius * angle.sin(), zero], 2),
        torch.stack([3 * uniform[..., 0] - 1.5, zero, zero], 2),
        torch.stack([angle.cos(), zero, angle.sin()], 2),
    )
    points = torch.stack(shapes)[labels, torch.arange(_MADE)]
    return _split(points + 0.15 * torch.randn(points.shape, generator=generator), labels)


def _digits_as(change: Callable[[Tensor], Tensor]) -> Task:
    task = digits()
    assert isinstance(task.train, Tensor)
    assert isinstance(task.test, Tensor)
    train, test = change(task.train), change(task.test)
    return Task(train, task.train_labels, test, task.test_labels, task.classes)


def _split(inputs: Inputs, labels: Tensor) -> Task:
    # Classes take turns, so the last samples are of all of them.
    first, last = slice(None, -_TEST), slice(-_TEST, None)
    test = taken(inputs, last)
    return Task(taken(inputs, first), labels[first], test, labels[last], int(labels.max()) + 1)


def _graph(kind: str, draw: random.Random) -> Tensor:
    nodes = draw.sample(range(NODES), NODES)
    edges: set[frozenset[int]] = set()
    if kind == "ring":
        edges |= {frozenset((a, b)) for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True)}
    elif kind == "hub":
        edges |= {frozenset((nodes[0], other)) for other in nodes[1:9]}
    while len(edges) < _EDGES:
        edges.add(frozenset(draw.sample(nodes, 2)))
    adjacency = torch.zeros(NODES, NODES)
    for a, b in map(sorted, edges):
        adjacency[a, b] = adjacency[b, a] = 1
    return adjacency
