"""Networks for images. Each ends in ``classifier``, a linear layer: its input is the features."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from ncmonitor._checks import InputError


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
