"""VGG, ResNet and DenseNet up to the classifier: torchvision's, with a stem for small images, too.

Each function returns a body, from images (N, C, S, S) to features (N, d), and d. Every one has
batch normalisation and none has dropout; the features come out of a ReLU.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

#: Images up to this side get the small-image stem: one 3×3 convolution that keeps their size. The
#: ImageNet stem quarters it, by a 7×7 convolution and a maximum over 3×3, each with stride 2.
SMALL: Final = 64

_VGG: Final = {11: "A", 13: "B", 16: "D", 19: "E"}
_BLOCKS: Final = {121: (6, 12, 24, 16), 201: (6, 12, 48, 32)}

Body = tuple[nn.Module, int]


def vgg(depth: int, channels: int, size: int, small: bool) -> Body:
    """Return VGG with batch normalisation where the original has dropout.

    Its two hidden linear layers keep their places, each followed by normalisation and ReLU. The
    last map is averaged to at most 7×7. The layers have 4096 units above 64 pixels (torchvision's),
    and 512 below, where the map is 512×1×1 and 4096 would be most of the network.

    Args:
        depth: 11, 13, 16 or 19: layers with weights, the classifier included.
        channels: Of the images.
        size: Side of the images in pixels, at least 32.
        small: Leave 512 units in the hidden linear layers.
    """
    features = make_layers(cfgs[_VGG[depth]], batch_norm=True)
    features[0] = nn.Conv2d(channels, 64, kernel_size=3, padding=1)
    side, units = min(7, size // 32), 512 if small else 4096
    head: list[nn.Module] = []
    for inputs in (512 * side**2, units):
        head += [nn.Linear(inputs, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
    body = nn.Sequential(
        OrderedDict(
            features=features,
            avgpool=nn.AdaptiveAvgPool2d(side),
            flatten=nn.Flatten(),
            hidden=nn.Sequential(*head),
        )
    )
    for module in body.modules():  # as torchvision's
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return body, units


def resnet(depth: int, channels: int, size: int, small: bool) -> Body:
    """Return ResNet; for small images with a 3×3 convolution of stride 1 and no pooling in front.

    Args:
        depth: 18, 34, 50, 101 or 152.
        channels: Of the images.
        size: Side of the images in pixels.
        small: Use the small-image stem.
    """
    net = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    net.conv1 = _stem(channels, 64, small)
    if small:
        net.maxpool = nn.Identity()
    width: int = net.fc.in_features
    net.fc = nn.Identity()
    return net, width


def densenet(depth: int, channels: int, size: int, small: bool) -> Body:
    """Return DenseNet: 40 is the plain one with growth 12; 250 is the BC one with growth 24.

    These are the two of their depths in the paper of DenseNet (table 1: 1.0 and 15.3 million
    parameters). 121 and 201 are torchvision's, made for ImageNet: BC, growth 32.

    Args:
        depth: 40, 121, 201 or 250.
        channels: Of the images.
        size: Side of the images in pixels.
        small: Use the small-image stem, without normalisation: the dense layers begin with one.
    """
    if depth == 40:
        return _plain_densenet(12, 12, channels, small)
    blocks: tuple[int, ...]
    if depth == 250:  # 3 blocks of (250 − 4)/6 bottleneck layers; twice the growth to begin with
        growth, blocks, width = 24, (41, 41, 41), 48
    else:
        growth, blocks, width = 32, _BLOCKS[depth], 64
    net = torchvision.models.DenseNet(growth, blocks, width)
    net.features.conv0 = _stem(channels, width, small)
    if small:
        for name in ("norm0", "relu0", "pool0"):
            delattr(net.features, name)
    features: int = net.classifier.in_features
    net.classifier = nn.Identity()
    return net, features


def _stem(channels: int, width: int, small: bool) -> nn.Conv2d:
    kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
    conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


# -- DenseNet without bottlenecks, which torchvision does not have ---------------------------------


class _DenseLayer(nn.Sequential):
    """Adds its output to its input as further channels."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, growth, kernel_size=3, padding=1, bias=False),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        added = maps
        for module in self:
            added = module(added)
        return torch.cat([maps, added], dim=1)


def _plain_densenet(layers: int, growth: int, channels: int, small: bool) -> Body:
    width = 16
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv0=_stem(channels, width, small))
    if not small:
        parts.update(norm0=nn.BatchNorm2d(width), relu0=nn.ReLU(), pool0=nn.MaxPool2d(3, 2, 1))
    for block in (1, 2, 3):
        dense = [_DenseLayer(width + i * growth, growth) for i in range(layers)]
        parts[f"denseblock{block}"] = nn.Sequential(*dense)
        width += layers * growth
        if block < 3:
            parts[f"transition{block}"] = nn.Sequential(
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, kernel_size=1, bias=False),
                nn.AvgPool2d(2),
            )
    parts.update(
        norm5=nn.BatchNorm2d(width), relu5=nn.ReLU(), pool5=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )  # fmt: skip
    body = nn.Sequential(parts)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return body, width
