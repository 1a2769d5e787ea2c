"""The networks that need torch alone: for images, sequences, sets and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ncmonitor.recipes.zoo.zoo_data import CANVAS, PATCHES, SIDE, Inputs

_HIDDEN: Final = 32
Padding = Literal["circular", "zeros"]


class ZooNetwork(nn.Module):
    """An inner map, what makes features ``(B, d)`` of it, and a linear classifier.

    Args:
        encoder: From inputs to the inner map, which may be equivariant.
        pool: From the inner map to features, which may be invariant.
        width: Of the features, d.
        classes: Number of classes.
    """

    def __init__(self, encoder: nn.Module, pool: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Inputs) -> Tensor:
        logits: Tensor = self.head(self.pool(self.encoder(inputs)))
        return logits


class Pool(nn.Module):
    """A function of the inner map without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inner: Tensor) -> Tensor:
        return self.function(inner)


def mean_pool() -> Pool:
    """Average over the elements of ``(B, n, d)``: tokens, nodes, points."""
    return Pool(lambda inner: inner.mean(1))


# -- images ----------------------------------------------------------------------------------------


def mlp() -> ZooNetwork:
    """Two hidden layers on the pixels."""
    layers = [nn.Flatten(), nn.Linear(CANVAS**2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return ZooNetwork(nn.Sequential(*layers), nn.Identity(), 64, 10)


def cnn(
    *,
    padding: Padding = "circular",
    pooling: Callable[[], nn.Module] | None = None,
    dense: bool = False,
) -> ZooNetwork:
    """Three convolutions of stride 1 and width 3, and an average over all places.

    Args:
        padding: What lies beyond the border.
        pooling: Halves the map after the first and the second convolution.
        dense: A hidden layer on the whole map in place of the average.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(((1, 16), (16, _HIDDEN), (_HIDDEN, _HIDDEN))):
        layers += [nn.Conv2d(before, after, 3, padding=1, padding_mode=padding), nn.ReLU()]
        if pooling is not None and index < 2:
            layers.append(pooling())
    encoder = nn.Sequential(*layers)
    if dense:
        head = [nn.Flatten(), nn.Linear(_HIDDEN * CANVAS**2, _HIDDEN), nn.ReLU()]
        return ZooNetwork(encoder, nn.Sequential(*head), _HIDDEN, 10)
    return ZooNetwork(encoder, Pool(lambda maps: maps.mean((2, 3))), _HIDDEN, 10)


class MaxBlurPool(nn.Module):
    """Anti-aliased maximum (Zhang 2019): at every place, then a binomial filter, then every other.

    Circular, as the convolutions around it.
    """

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        dense = max_pool2d(pad(maps, (0, 1, 0, 1), mode="circular"), 2, stride=1)
        kernel = cast(Tensor, self.kernel).expand(channels, 1, -1, -1)
        return conv2d(pad(dense, (2, 2, 2, 2), mode="circular"), kernel, stride=2, groups=channels)


# -- sequences -------------------------------------------------------------------------------------


def gru(*, packed: bool = False) -> ZooNetwork:
    """A GRU; its last state is the feature.

    Args:
        packed: Leave the padding out, wherever it is.
    """
    pool = _last_real if packed else _last
    return ZooNetwork(States(SIDE + 1, packed=packed), Pool(pool), _HIDDEN, 10)


class States(nn.Module):
    """All states of a GRU, ``(B, T, 32)``.

    Args:
        inputs: Per step; the last of them is 0 where a step is padding.
        packed: Padding leaves the state as it is (a packed sequence), and is 0 in the answer.
    """

    def __init__(self, inputs: int, *, packed: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, _HIDDEN, batch_first=True)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            states: Tensor = self.gru(x)[0]
            return states
        real = x[..., -1] != 0
        order = real.logical_not().int().argsort(stable=True, dim=1)[..., None]  # padding last
        first = x.gather(1, order.expand_as(x))
        sequences = pack_padded_sequence(first, real.sum(1), True, enforce_sorted=False)
        states = pad_packed_sequence(self.gru(sequences)[0], True, total_length=x.shape[1])[0]
        return torch.zeros_like(states).scatter(1, order.expand_as(states), states)


def _last(states: Tensor) -> Tensor:
    return states[:, -1]


def _last_real(states: Tensor) -> Tensor:
    steps = torch.arange(states.shape[1], device=states.device)
    place = steps.where(states.any(2), -1).amax(1)
    return states[torch.arange(len(states)), place]


# -- sets and tokens -------------------------------------------------------------------------------


def deep_sets(inputs: int, *, classes: int, maximum: bool = False) -> ZooNetwork:
    """The same layers for every element, a symmetric function, and a layer on top.

    Args:
        inputs: Numbers per element.
        classes: Number of classes.
        maximum: Over the elements, as in PointNet; otherwise the sum, as in DeepSets.
    """
    encoder = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    over = Pool(lambda elements: elements.amax(1) if maximum else elements.sum(1))
    top = nn.Sequential(over, nn.Linear(64, 64), nn.ReLU())
    return ZooNetwork(encoder, top, 64, classes)


class Tokens(nn.Module):
    """A transformer encoder on tokens ``(B, n, 4)``, with or without learned positions."""

    def __init__(self, *, positions: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(4, _HIDDEN)
        self.positions = nn.Embedding(PATCHES, _HIDDEN) if positions else None
        layer = nn.TransformerEncoderLayer(_HIDDEN, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.enter(tokens)
        if self.positions is not None:
            embedded = embedded + self.positions.weight
        out: Tensor = self.layers(embedded)
        return out


def transformer(*, positions: bool) -> ZooNetwork:
    """Two layers of self-attention on patches, averaged over the tokens."""
    return ZooNetwork(Tokens(positions=positions), mean_pool(), _HIDDEN, 10)
