"""Convolutions that turn with the image: quarter turns of the input only move their output about.

The group p4 of shifts and quarter turns, as in Cohen & Welling, Group Equivariant Convolutional
Networks (ICML 2016). Maps have an axis of four orientations, (N, C, 4, H, W), and a quarter turn of
the image turns them and shifts that axis by one: :func:`quarter_turned`. Written out here because
escnn, which has every such group, needs a Fortran compiler and numpy 1 to install.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncmonitor.errors import InputError

_TURNS: Final = 4


def quarter_turned(maps: Tensor, turns: int = 1) -> Tensor:
    """Return what the layers here make of an image that was turned anticlockwise.

    Args:
        maps: (N, C, 4, H, W), of the image as it was.
        turns: By how many right angles.
    """
    return torch.rot90(maps, turns, (-2, -1)).roll(turns, dims=2)


class _P4Layer(nn.Module):
    """A filter for each pair of channels, applied in four orientations.

    Args:
        weight: Learned filters, (channels_out, channels_in, ..., k, k).
        stride: Of the output, in pixels of the input.
        padding: Zeros on every side.
    """

    def __init__(self, weight: Tensor, stride: int, padding: int) -> None:
        super().__init__()
        if min(*weight.shape, stride) < 1 or padding < 0:
            raise InputError(
                f"{type(self).__name__}: channels, kernel_size and stride must be at least 1 and "
                f"padding at least 0, but filters are {tuple(weight.shape)}, stride={stride}, "
                f"padding={padding}"
            )
        self.weight = nn.Parameter(weight)
        self.stride, self.padding = stride, padding
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d's

    def _turned(self, turns: int) -> Tensor:
        """Return the filters (channels_out, channels_in, ..., k, k) of one orientation."""
        raise NotImplementedError

    def _convolved(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, channels_out, 4, H', W')."""
        self._check(maps)
        filters = torch.stack([self._turned(turns) for turns in range(_TURNS)], dim=1)
        filters = filters.flatten(2, -3).flatten(0, 1)  # (channels_out · 4, C, k, k)
        out = F.conv2d(maps, filters, stride=self.stride, padding=self.padding)
        return out.reshape(len(out), self.weight.shape[0], _TURNS, *out.shape[-2:])

    def _check(self, maps: Tensor) -> None:
        kernel = self.weight.shape[-1]
        for side in maps.shape[-2:]:
            steps = side + 2 * self.padding - kernel
            if steps < 0 or steps % self.stride:
                raise InputError(
                    f"{type(self).__name__}: a kernel of {kernel} with stride {self.stride} and "
                    f"padding {self.padding} does not end at the far border of "
                    f"{tuple(maps.shape[-2:])} pixels, so it would see a turned image at other "
                    "places; with stride 2 and padding 1 take kernel_size 3 for odd sides and 4 "
                    "for even ones"
                )

    def extra_repr(self) -> str:
        shape = "×".join(map(str, self.weight.shape))
        return f"{shape}, stride={self.stride}, padding={self.padding}"


class P4Lift(_P4Layer):
    """The first layer: from images to maps with four orientations.

    Args:
        channels_in: Of the images.
        channels_out: Of the maps, each with four orientations.
        kernel_size: Side k of the filters.
        stride: Of the output, in pixels of the input.
        padding: Zeros on every side.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        weight = torch.empty(channels_out, channels_in, kernel_size, kernel_size)
        super().__init__(weight, stride, padding)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, 4, H', W')."""
        if images.ndim != 4 or images.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"P4Lift: expected images (N, {self.weight.shape[1]}, H, W), got "
                f"{tuple(images.shape)}"
            )
        return self._convolved(images)

    def _turned(self, turns: int) -> Tensor:
        return torch.rot90(self.weight, turns, (-2, -1))


class P4Conv(_P4Layer):
    """A layer between maps with four orientations: a filter reaches over all four.

    Args:
        channels_in: Of the maps that come in, each with four orientations.
        channels_out: Of the maps that go out.
        kernel_size: Side k of the filters.
        stride: Of the output, in pixels of the input.
        padding: Zeros on every side.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        weight = torch.empty(channels_out, channels_in, _TURNS, kernel_size, kernel_size)
        super().__init__(weight, stride, padding)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, channels_in, 4, H, W) to (N, channels_out, 4, H', W')."""
        if maps.ndim != 5 or maps.shape[1:3] != self.weight.shape[1:3]:
            raise InputError(
                f"P4Conv: expected maps (N, {self.weight.shape[1]}, 4, H, W), got "
                f"{tuple(maps.shape)}"
            )
        return self._convolved(maps.flatten(1, 2))

    def _turned(self, turns: int) -> Tensor:
        return quarter_turned(self.weight, turns)


class P4Pool(nn.Module):
    """The last layer: the largest of the four orientations, which a turn of the image keeps."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, 4, H, W) to (N, C, H, W)."""
        return maps.amax(dim=2)


class P4Net(nn.Module):
    """Small network whose features and logits do not change when the image turns by 90°.

    ``ConvNet`` (:mod:`~ncmonitor.recipes.networks.image_networks`) with group convolutions: maps of
    the same sides, each layer with batch normalisation (over the orientations as well) and ReLU.
    In place of its hidden linear layer there is a filter as large as the map, and then the
    largest of four orientations. The widths make about as many parameters as ``ConvNet`` has:
    371,126 beside 356,586 for grey images of 28×28 and ten classes, 86,326 beside 110,826 for 8×8.

    Args:
        channels: Of the images.
        image_size: Side of the images in pixels.
        widths: Channels of the convolutions, each with four orientations.
        features: Dimension of the features.
        classes: Number of classes.
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        widths: tuple[int, ...] = (10, 20, 40),
        features: int = 128,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if not widths or min(channels, image_size, *widths, features, classes) < 1:
            raise InputError(
                f"P4Net: every size must be at least 1, but channels={channels}, image_size="
                f"{image_size}, widths={list(widths)}, features={features}, classes={classes}"
            )
        self.image_size = image_size
        layers: list[nn.Module] = []
        side = image_size
        for width_in, width in pairwise((channels, *widths)):
            layer = P4Conv if layers else P4Lift
            # Whatever the side, the outermost windows lie alike at both borders: see _check.
            convolution = layer(width_in, width, 3 if side % 2 else 4, stride=2, padding=1)
            layers += [convolution, nn.BatchNorm3d(width), nn.ReLU()]
            side = (side + 1) // 2
        layers += [P4Conv(widths[-1], features, side), nn.BatchNorm3d(features), nn.ReLU()]
        self.body = nn.Sequential(*layers, P4Pool(), nn.Flatten())
        self.classifier = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, channels, image_size, image_size)."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"P4Net: expected images of {self.image_size}×{self.image_size} pixels, got "
                f"{tuple(images.shape)}; use --model.network.image_size"
            )
        logits: Tensor = self.classifier(self.body(images))
        return logits
