"""Data modules: digits, MNIST, FashionMNIST, CIFAR, SVHN, STL10 and folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets

from ncmonitor.errors import InputError
from ncmonitor.recipes.data.datamodule import ImageData, Loader, Split, TorchvisionData
from ncmonitor.recipes.data.downloads import LabelledSTL10, default_root
from ncmonitor.recipes.data.image_samples import (
    ImageFiles,
    ImageTensors,
    Scaling,
    flipped,
    image_folder,
    resized,
    zoomed,
)


class DigitsData(ImageData):
    """The 1,797 handwritten digits that ship with scikit-learn, as (1, 8, 8) images in memory.

    Pixels are scaled to mean 0 and standard deviation 1 over the training set. The split depends on
    ``split_seed`` alone, so that runs of different seeds are measured on the same images.

    Args:
        val_fraction: Share of each class that is held out.
        split_seed: Chooses the images that are held out.
        options: As in :class:`ImageData`. A last batch that is kept (``drop_last=False``) has 29
            images with batches of 128, and costs a factor of ten in the final NC1.

    Raises:
        InputError: If a setting is impossible.
    """

    image_shape = (1, 8, 8)
    white = 16

    def __init__(self, *, val_fraction: float = 0.2, split_seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        if not 0.01 <= val_fraction <= 0.99:  # each class keeps images on both sides
            raise InputError(
                f"DigitsData: val_fraction must lie in [0.01, 0.99], but is {val_fraction}"
            )
        self.val_fraction = val_fraction
        self.split_seed = split_seed

    def _read(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 8, 8)
        train, val, train_labels, val_labels = train_test_split(
            resized(images, self.image_shape[-1]),
            torch.tensor(labels, dtype=torch.long),
            test_size=self.val_fraction,
            random_state=self.split_seed,
            stratify=labels,
        )
        return ImageTensors(train, train_labels), ImageTensors(val, val_labels)

    def _channel_scaling(self, train: Split) -> Scaling:
        assert isinstance(train, ImageTensors)  # made above
        pixels = train.images.float()
        return Scaling(pixels.mean(), pixels.std())

    def val_dataloader(self) -> Loader:
        return DataLoader(self.val, batch_size=len(self.val))


class MNISTData(TorchvisionData):
    """MNIST: 60,000 + 10,000 handwritten digits of 28×28 grey pixels; 12 MB to download."""

    dataset = datasets.MNIST
    megabytes = 12
    image_shape = (1, 28, 28)
    # Measured over the training set, as for the next two.
    mean, std = (0.1307,), (0.3081,)


class FashionMNISTData(TorchvisionData):
    """FashionMNIST: 60,000 + 10,000 clothes of 28×28 grey pixels; 31 MB to download."""

    dataset = datasets.FashionMNIST
    megabytes = 31
    image_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    shift, flip = 4, True


class CIFAR10Data(TorchvisionData):
    """CIFAR10: 50,000 + 10,000 photographs of 32×32 pixels; 170 MB to download."""

    dataset = datasets.CIFAR10
    megabytes = 170
    image_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shift, flip = 4, True


class CIFAR100Data(TorchvisionData):
    """CIFAR100: 50,000 + 10,000 photographs of 32×32 pixels; 169 MB to download."""

    dataset = datasets.CIFAR100
    megabytes = 169
    num_classes = 100
    image_shape = (3, 32, 32)
    # As in weiaicunzai/pytorch-cifar100 and most others.
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    shift, flip = 4, True


class SVHNData(TorchvisionData):
    """SVHN: 73,257 + 26,032 house numbers of 32×32 colour pixels; 246 MB to download."""

    dataset = datasets.SVHN
    megabytes = 246
    image_shape = (3, 32, 32)
    # As commonly used, of the training set without the extra images.
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    shift = 4  # a mirrored digit is none


class STL10Data(TorchvisionData):
    """STL10: 5,000 + 8,000 labelled photographs of 96×96 pixels; 2,640 MB to download."""

    dataset = LabelledSTL10
    megabytes = 2640
    image_shape = (3, 96, 96)
    # As commonly used, of the labelled training set.
    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    shift, flip = 12, True  # an eighth of the side, as for CIFAR


class ImageFolderData(ImageData):
    """Photographs in folders, as ImageNet has them: root/train/CLASS/*.jpg, root/val/CLASS/*.jpg.

    The shorter side is resized to 8/7 of the image size and the centre cut out. Augmented, a random
    part of that centre is enlarged and mirrored.

    Args:
        root: Folder with ``train`` and ``val``; null takes ``imagenet`` in the folder that the
            environment variable NCMONITOR_DATA names, or else in the user's cache folder.
        options: As in :class:`ImageData`, with ``image_size`` 224 by default.

    Raises:
        InputError: If a setting is impossible or the folders are not there.
    """

    num_classes = 1000  # until root has said otherwise
    image_shape = (3, 224, 224)
    # Of ImageNet's training set, as torchvision's own models use.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    flip = True

    def __init__(self, *, root: str | Path | None = None, **options: Any) -> None:
        super().__init__(**options)
        if self.classes is not None:
            raise InputError(f"{self._name}: classes are folders; give a root with those wanted")
        if self.normalize == "pixel":
            raise InputError(
                f"{self._name}: normalize pixel needs the images in memory; use channel"
            )
        self.root = default_root() / "imagenet" if root is None else Path(root).expanduser()
        if found := [path for path in self.root.glob("train/*") if path.is_dir()]:
            self.num_classes = len(found)

    def _read(self) -> tuple[Split, Split]:
        train, val = (image_folder(self.root / split) for split in ("train", "val"))
        if train.classes != val.classes:
            odd = ", ".join(sorted({*train.classes} ^ {*val.classes}))
            raise InputError(
                f"{self.root}/train and {self.root}/val must hold the same classes, but {odd} "
                "is in one of them only"
            )
        self.num_classes = len(train.classes)
        return self._files(train), self._files(val)

    def _files(self, folder: Any) -> ImageFiles:
        labels = torch.tensor(folder.targets)
        size, scaling = self.image_shape[-1], Scaling(torch.tensor(0.0), torch.tensor(1.0))
        return ImageFiles(folder, size, torch.arange(len(labels)), labels, scaling)

    def _augmented(self, pixels: Tensor) -> Tensor:
        return flipped(zoomed(pixels))
