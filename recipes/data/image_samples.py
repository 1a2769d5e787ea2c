"""Images of a data set as samples: kept in memory or read from files, scaled, augmented."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from ncmonitor.errors import InputError

Sample = tuple[Tensor, Tensor]
_CHUNK = 4096  # images converted at once: the whole data set never exists in a wider type
_RESIZE_MARGIN = 256 / 224  # ImageNet's evaluation: the shorter side to 256, then the centre 224


@dataclass(frozen=True)
class Scaling:
    """The map from pixels to network inputs, (pixel − mean) / std.

    Args:
        mean: (C, 1, 1) or (C, H, W), in the units of the pixels.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def apply(self, pixels: Tensor) -> Tensor:
        """Scale (..., C, H, W) pixels of any type to inputs; floating inputs keep their type."""
        if not pixels.is_floating_point():
            pixels = pixels.to(torch.get_default_dtype())
        return (pixels - self.mean.to(pixels)).div_(self.std.to(pixels))

    def undo(self, inputs: Tensor) -> Tensor:
        """Return the pixels of inputs, as floating numbers."""
        return inputs * self.std.to(inputs) + self.mean.to(inputs)


class ImageTensors(Dataset[Sample]):
    """Images in memory as bytes, scaled when they are read, a batch in one go.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        scaling: From pixels to inputs.
    """

    def __init__(self, images: Tensor, labels: Tensor, scaling: Scaling | None = None) -> None:
        self.images, self.labels = images, labels
        self.scaling = scaling or Scaling(torch.tensor(0.0), torch.tensor(255.0))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.scaling.apply(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Read a batch: one indexing and one scaling, then views, which any collate takes."""
        keys = torch.tensor(indices)
        images = self.scaling.apply(self.images[keys])
        return list(zip(images.unbind(), self.labels[keys].unbind(), strict=True))

    @property
    def tensors(self) -> Sample:
        """All inputs (N, C, H, W) and labels (N,) at once; four bytes a pixel."""
        return self.scaling.apply(self.images), self.labels

    def take(self, keys: Tensor, labels: Tensor) -> ImageTensors:
        """Return the images at these positions, ascending, under the labels given."""
        if len(keys) == len(self):
            return ImageTensors(self.images, labels, self.scaling)
        return ImageTensors(self.images[keys], labels, self.scaling)


class ImageFiles(Dataset[Sample]):
    """Image files, decoded when they are read: the shorter side resized, then the centre cut out.

    Args:
        folder: Paths, and how to load one.
        size: Side of the square that is cut out, in pixels.
        keys: (n,) positions of the images in ``folder``.
        labels: (n,) int64.
        scaling: From pixels to inputs.
    """

    def __init__(
        self, folder: Any, size: int, keys: Tensor, labels: Tensor, scaling: Scaling
    ) -> None:
        self.folder, self.size, self.scaling = folder, size, scaling
        self.keys, self.labels = keys, labels
        shorter = round(size * _RESIZE_MARGIN)
        steps = [v2.Resize(shorter, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        path, _ = self.folder.samples[int(self.keys[index])]
        try:
            image = self.transform(self.folder.loader(path))
        except OSError as error:  # what PIL raises for a broken file
            raise InputError(
                f"cannot read the image {path} ({error}); replace or delete it"
            ) from error
        return self.scaling.apply(image), self.labels[index]

    def take(self, keys: Tensor, labels: Tensor) -> ImageFiles:
        """Return the images at these positions under the labels given."""
        return ImageFiles(self.folder, self.size, self.keys[keys], labels, self.scaling)


def image_folder(path: Path) -> Any:
    """List the images of a folder with one subfolder for each class.

    Raises:
        InputError: If there is no such folder, or a class has no image.
    """
    try:
        return datasets.ImageFolder(path)
    except OSError as error:
        raise InputError(
            f"expected images in {path}/CLASS/, one folder for each class ({error}); name the "
            "folder that holds train and val with --data.root"
        ) from error


def pixel_moments(images: Tensor) -> Scaling:
    """Return mean and standard deviation of every pixel over the images.

    A pixel that is the same in all images keeps the deviation 1, so that its input is 0.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        A scaling with (C, H, W).
    """
    total = torch.zeros(images.shape[1:], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, _CHUNK):
        wide = chunk.int()
        total += wide.sum(0)
        squares += wide.square().sum(0)
    # In whole numbers up to here, so nothing cancels: N² var = N Σx² − (Σx)².
    n = len(images)
    std = (n * squares - total.square()).double().sqrt() / n
    std[std == 0] = 1
    return Scaling((total.double() / n).float(), std.float())


def resized(images: Tensor, size: int) -> Tensor:
    """Return square images of the size given: padded with zeros, or made smaller.

    Args:
        images: (N, C, H, H) uint8.
        size: New side in pixels.
    """
    extra = size - images.shape[-1]
    if extra >= 0:
        left = extra // 2
        return F.pad(images, [left, extra - left, left, extra - left]) if extra else images
    return torch.cat([v2.functional.resize(c, [size, size]) for c in torch.split(images, _CHUNK)])


def shifted(images: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros and crop it at a place of its own.

    torchvision's ``RandomCrop`` would crop a whole batch at one place.

    Args:
        images: (N, C, H, W).
        padding: Largest shift in each direction, in pixels.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, n, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return padded[sample, channel, rows, columns]


def flipped(images: Tensor) -> Tensor:
    """Mirror each of (N, C, H, W) images left to right with probability 1/2."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def quarter_turned(images: Tensor) -> Tensor:
    """Turn each of (N, C, H, H) images by a random multiple of 90°; pixels are moved alone."""
    chosen = torch.randint(4, (len(images), 1, 1, 1), device=images.device)
    turned = images
    for turns in (1, 2, 3):
        turned = torch.where(chosen == turns, images.rot90(turns, (-2, -1)), turned)
    return turned


def zoomed(images: Tensor) -> Tensor:
    """Cut out a part of each of (N, C, H, W) images and resize it, as usual for ImageNet."""
    crop = v2.RandomResizedCrop(list(images.shape[-2:]), antialias=True)
    return torch.stack([crop(image) for image in images])
