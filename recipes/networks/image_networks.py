"""Networks for images. Each ends in ``classifier``, a linear layer: its input is the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from ncmonitor.errors import InputError, nearest
from ncmonitor.recipes.networks import small_images
from ncmonitor.recipes.networks.equivariant import P4Net
from ncmonitor.recipes.networks.small_images import SMALL, Body

STEMS: Final = ("small", "imagenet")


class MLP(nn.Module):
    """Fully connected network with batch normalisation and ReLU after each hidden layer.

    Without the normalisation such small networks reach zero error but do not collapse.

    Args:
        inputs: Pixels of an image, over all channels.
        hidden: Widths of the hidden layers; the last one is the dimension of the features.
        classes: Number of classes.
    """

    def __init__(
        self, inputs: int = 64, hidden: tuple[int, ...] = (256, 256, 256), classes: int = 10
    ) -> None:
        super().__init__()
        sizes = (inputs, *hidden)
        if min(*sizes, classes) < 1:
            raise InputError(
                "MLP: every size must be at least 1, "
                f"but inputs={inputs}, hidden={list(hidden)}, classes={classes}"
            )
        self.inputs = inputs
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width in pairwise(sizes):
            # No bias: the normalisation that follows would subtract it again.
            linear = nn.Linear(width_in, width, bias=False)
            layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, ...)."""
        pixels = images[0].numel() if len(images) else self.inputs
        if pixels != self.inputs:
            raise InputError(
                f"MLP: expected images of {self.inputs} pixels, got {tuple(images.shape[1:])}, "
                f"which is {pixels}; use --model.network.inputs {pixels}"
            )
        logits: torch.Tensor = self.classifier(self.body(images))
        return logits


class ConvNet(nn.Module):
    """Small convolutional network, for runs of minutes on a CPU.

    3×3 convolutions, each of stride 2, then one hidden linear layer, each with batch normalisation
    and ReLU. That layer sees where things are; an average would not fit hard images so soon.

    Args:
        channels: Of the images.
        image_size: Side of the images in pixels.
        widths: Channels of the convolutions.
        features: Units of the linear layer: the dimension of the features.
        classes: Number of classes.
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        widths: tuple[int, ...] = (32, 64, 128),
        features: int = 128,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if min(channels, image_size, *widths, features, classes) < 1:
            raise InputError(
                f"ConvNet: every size must be at least 1, but channels={channels}, image_size="
                f"{image_size}, widths={list(widths)}, features={features}, classes={classes}"
            )
        layers: list[nn.Module] = []
        side = image_size
        for width_in, width in pairwise((channels, *widths)):
            conv = nn.Conv2d(width_in, width, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            side = (side + 1) // 2
        linear = nn.Linear((channels, *widths)[-1] * side**2, features, bias=False)
        layers += [nn.Flatten(), linear, nn.BatchNorm1d(features), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, channels, image_size, image_size)."""
        logits: torch.Tensor = self.classifier(self.body(images))
        return logits


class Network(nn.Module):
    """A body, from images to features (N, d), and a linear classifier on top.

    Args:
        body: As the functions of :mod:`ncmonitor.recipes.networks.small_images` make it, with d.
        classes: Number of classes.
    """

    def __init__(self, body: Body, classes: int) -> None:
        super().__init__()
        self.body = body[0]
        self.classifier = nn.Linear(body[1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, C, S, S)."""
        logits: torch.Tensor = self.classifier(self.body(images))
        return logits


@dataclass(frozen=True)
class _Design:
    body: Callable[[int, int, bool], Body]  # of channels, image size and whether the stem is small
    halvings: int  # how often it halves the images after the stem
    stems: bool = True  # whether it has two of them


_DESIGNS: Final = {
    **{f"vgg{d}": _Design(partial(small_images.vgg, d), 5, False) for d in (11, 13, 16, 19)},
    **{f"resnet{d}": _Design(partial(small_images.resnet, d), 3) for d in (18, 34, 50, 101, 152)},
    **{f"densenet{d}": _Design(partial(small_images.densenet, d), 2) for d in (40, 250)},
    **{f"densenet{d}": _Design(partial(small_images.densenet, d), 3) for d in (121, 201)},
}

#: What :func:`network` makes.
NETWORKS: Final = ("mlp", "convnet", "p4net", *_DESIGNS)


def network(
    name: str, *, classes: int, channels: int, image_size: int, stem: str | None = None
) -> nn.Module:
    """Return a network by name, freshly initialised.

    Args:
        name: One of :data:`NETWORKS`.
        classes: Number of classes.
        channels: Of the images.
        image_size: Side of the images in pixels.
        stem: For ResNet and DenseNet: ``"small"`` (one 3×3 convolution) or ``"imagenet"``
            (quarters the images); ``None``: small up to 64 pixels.

    Returns:
        From images (N, channels, image_size, image_size) to logits (N, classes); its last layer,
        a ``torch.nn.Linear``, is ``classifier``.

    Raises:
        InputError: If there is no such network, or it cannot take such images.
    """
    check_network(name, classes=classes, channels=channels, image_size=image_size, stem=stem)
    if name == "mlp":
        return MLP(inputs=channels * image_size**2, classes=classes)
    if name == "convnet":
        return ConvNet(channels=channels, image_size=image_size, classes=classes)
    if name == "p4net":
        return P4Net(channels=channels, image_size=image_size, classes=classes)
    small = _has_small_stem(image_size, stem)
    return Network(_DESIGNS[name].body(channels, image_size, small), classes)


def check_network(
    name: str, *, classes: int, channels: int, image_size: int, stem: str | None = None
) -> None:
    """Refuse what :func:`network` cannot make, without making anything.

    Raises:
        InputError: If there is no such network, or it cannot take such images.
    """
    if name not in NETWORKS:
        raise InputError(
            f"unknown network {name!r}, expected one of: {', '.join(NETWORKS)}"
            f"{nearest(name, NETWORKS)}"
        )
    for what, value in {"classes": classes, "channels": channels, "image_size": image_size}.items():
        if value < 1:
            raise InputError(f"{name}: {what} must be at least 1, but is {value}")
    if stem is not None and stem not in STEMS:
        raise InputError(f"stem must be one of {STEMS} or null, but is {stem!r}")
    if stem is not None and not (name in _DESIGNS and _DESIGNS[name].stems):
        raise InputError(f"{name} has no choice of stems; leave out stem={stem!r}")
    if name in _DESIGNS:
        _check_size(name, image_size, _has_small_stem(image_size, stem))


def _has_small_stem(image_size: int, stem: str | None) -> bool:
    return image_size <= SMALL if stem is None else stem == "small"


def _check_size(name: str, size: int, small: bool) -> None:
    """Refuse images that a network would shrink to nothing, or never shrink."""
    design = _DESIGNS[name]
    halvings = design.halvings + (2 if design.stems and not small else 0)
    if size < 2**halvings:
        stem = " with the ImageNet stem" if design.stems and not small else ""
        raise InputError(
            f"{name}{stem} halves images {halvings} times, so they need at least {2**halvings} "
            f"pixels a side, but these have {size}; pad them (--data.image_size {2**halvings}), or "
            "use mlp or convnet"
        )
    if design.stems and small and size > SMALL:
        raise InputError(
            f"{name} with the small-image stem computes its first stage at {size}×{size}, "
            f"{(size / 32) ** 2:.0f} times the memory and time of 32×32; leave out stem= for the "
            f"ImageNet stem, which is meant for images above {SMALL} pixels"
        )
