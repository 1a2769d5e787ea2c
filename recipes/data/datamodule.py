"""What the data modules of all data sets have in common: choice, labels, scaling, loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ncmonitor.errors import InputError
from ncmonitor.recipes.data import downloads
from ncmonitor.recipes.data.class_choice import checked_classes, only_classes
from ncmonitor.recipes.data.image_samples import (
    ImageFiles,
    ImageTensors,
    Sample,
    Scaling,
    flipped,
    pixel_moments,
    quarter_turned,
    resized,
    shifted,
)
from ncmonitor.recipes.data.subsets import Relabelling, Selection, check_one_of

Loader = DataLoader[Sample]
Split = ImageTensors | ImageFiles
_NORMALIZE: Final = ("channel", "pixel", "none")
#: Augmentation by a group of ``ncmonitor.symmetry``, under its name: of the network's inputs.
_GROUPS: Final = {"rotations90": quarter_turned}


class ImageData(pl.LightningDataModule, ABC):
    """A training set, chosen and labelled as asked, and a validation set with its true labels.

    Both loaders give clean images: augmentation is done to the training batches on the device, in
    training steps alone, so that a measurement of the same loader sees the images as they are.

    Args:
        classes: Use images of these classes alone, of both sets; they are numbered anew from 0.
        batch_size: Images per step.
        num_workers: Processes that read ahead; of use for image files, not for data in memory.
        drop_last: Leave out the images that do not fill the last batch, others in each epoch.
            Batch normalisation over a handful of images makes the class means wander.
        per_class: Training images of every class; null takes all. The paper balances MNIST with
            5000, SVHN with 4600 and ImageNet with 600.
        limit: Training images at most, after per_class and imbalance, the classes in proportion.
        val_limit: Validation images at most, the classes in proportion.
        subset_seed: Chooses images, wrong labels and limits, apart from the run's own seed. A
            smaller choice lies within a larger one of the same seed.
        random_labels: Shuffle the training labels among the images; the classes keep their sizes.
        label_noise: Share of the training images that get another label, drawn uniformly from the
            wrong ones.
        imbalance: Make the training classes unequal, class c of K with n_c images: exponential has
            n_c = n_max R^(-c/(K-1)); step has n_max, and n_max/R for the last classes. n_max is
            per_class, or else the size of the smallest class.
        imbalance_ratio: R, the largest class over the smallest.
        minority: Share of the classes that step makes small.
        normalize: channel subtracts the mean of each colour and divides by its standard deviation
            over the data set; pixel does so for each pixel, over the training images chosen; none
            scales to [0, 1].
        image_size: Side of the square images in pixels: larger pads with zeros, smaller resizes.
        augment: true: random shifts and flips as usual for the data set, in training steps alone;
            rotations90: random quarter turns there, of what the network gets.

    Attributes:
        num_classes: Number of classes K.
        image_shape: (C, H, W) of one image.
        train: The training set, after ``setup``.
        val: The validation set, after ``setup``.

    Raises:
        InputError: If a setting is impossible.
    """

    num_classes: int = 10
    image_shape: tuple[int, int, int]
    #: Of each channel over the training set, pixels in [0, 1].
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    white: ClassVar[int] = 255
    #: What ``augment`` does: the largest shift in pixels, and whether to mirror.
    shift: ClassVar[int] = 0
    flip: ClassVar[bool] = False
    train: Any
    val: Any

    def __init__(
        self,
        *,
        classes: tuple[int, ...] | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        drop_last: bool = True,
        per_class: int | None = None,
        limit: int | None = None,
        val_limit: int | None = None,
        subset_seed: int = 0,
        random_labels: bool = False,
        label_noise: float = 0.0,
        imbalance: str | None = None,
        imbalance_ratio: float | None = None,
        minority: float = 0.5,
        normalize: str = "channel",
        image_size: int | None = None,
        augment: bool | str = False,
    ) -> None:
        super().__init__()
        self.classes = None if classes is None else checked_classes(classes, self.num_classes)
        self.num_classes = len(self.classes or range(self.num_classes))
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.normalize, self.augment = normalize, augment
        if image_size is not None:
            self.image_shape = (self.image_shape[0], image_size, image_size)
        self._check(image_size, val_limit)
        self.selection = Selection(
            per_class, limit, imbalance, imbalance_ratio, minority, subset_seed
        )
        self.relabelling = Relabelling(random_labels, label_noise, subset_seed)
        self.val_selection = Selection(limit=val_limit, seed=subset_seed)

    # -- what a data set defines -------------------------------------------------------------------

    @abstractmethod
    def _read(self) -> tuple[Split, Split]:
        """Return all training and validation images at the size asked for."""

    def _channel_scaling(self, train: Split) -> Scaling:
        mean, std = (torch.tensor(v).view(-1, 1, 1) * self.white for v in (self.mean, self.std))
        return Scaling(mean, std)

    def _augmented(self, pixels: Tensor) -> Tensor:
        if self.shift:
            pixels = shifted(pixels, self.shift)
        return flipped(pixels) if self.flip else pixels

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if hasattr(self, "train"):
            return
        train, val = map(self._of_classes, self._read())
        keys = self.selection.of(train.labels, self.num_classes)
        train = train.take(keys, self.relabelling.of(train.labels[keys], self.num_classes))
        keys = self.val_selection.of(val.labels, self.num_classes)
        val = val.take(keys, val.labels[keys])
        if self.drop_last and self.batch_size > len(train):
            raise InputError(
                f"{self._name}: batch_size is {self.batch_size}, but there are {len(train)} "
                "training images; use a smaller one, or --data.drop_last false"
            )
        train.scaling = val.scaling = self._scaling(train)
        self.train, self.val = train, val

    def train_dataloader(self) -> Loader:
        return self._loader(self.train, shuffle=True, drop_last=self.drop_last)

    def val_dataloader(self) -> Loader:
        return self._loader(self.val)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment what a training step sees, and nothing else that reads the same loader."""
        if not self.augment or self.trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        if isinstance(self.augment, str):
            return _GROUPS[self.augment](images), labels
        scaling: Scaling = self.train.scaling
        # In pixels: what a shift uncovers is black, under every scaling.
        return scaling.apply(self._augmented(scaling.undo(images))), labels

    # -- the work ----------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check(self, image_size: int | None, val_limit: int | None) -> None:
        sizes = {"batch_size": self.batch_size, "image_size": image_size, "val_limit": val_limit}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise InputError(f"{self._name}: {name} must be at least 1, but is {value}")
        if self.num_workers < 0:
            raise InputError(
                f"{self._name}: num_workers must not be negative, but is {self.num_workers}"
            )
        check_one_of(f"{self._name}: normalize", self.normalize, _NORMALIZE)
        if isinstance(self.augment, str):
            check_one_of(f"{self._name}: augment", self.augment, ("true", "false", *_GROUPS))
        elif self.augment and not self.shift and not self.flip:
            raise InputError(
                f"{self._name}: there is no augmentation usual for these images; leave augment "
                f"out, or take {' or '.join(_GROUPS)}"
            )

    def _of_classes(self, split: Split) -> Split:
        if self.classes is None:
            return split
        return split.take(*only_classes(split.labels, self.classes))

    def _scaling(self, train: Split) -> Scaling:
        if self.normalize == "none":
            return Scaling(torch.tensor(0.0), torch.tensor(float(self.white)))
        if self.normalize == "pixel":
            assert isinstance(train, ImageTensors)  # files refuse it
            return pixel_moments(train.images)
        return self._channel_scaling(train)

    def _loader(self, data: Split, *, shuffle: bool = False, drop_last: bool = False) -> Loader:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.num_workers > 0 and torch.cuda.is_available(),
        )


class TorchvisionData(ImageData):
    """One of torchvision's data sets, in memory as bytes; its test set is the validation set.

    Args:
        root: Folder of the data sets, as torchvision lays them out; null takes the environment
            variable NCMONITOR_DATA, or else ncmonitor in the user's cache folder.
        download: Download what is missing.
        options: As in :class:`ImageData`.

    Raises:
        InputError: If the data is missing and cannot be downloaded, or is corrupt.
    """

    dataset: ClassVar[type[Any]]
    megabytes: ClassVar[int]  # of the download

    def __init__(
        self, *, root: str | Path | None = None, download: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = downloads.default_root() if root is None else Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        if self.download:
            downloads.fetch(self.dataset, self.root, self.megabytes)

    def _read(self) -> tuple[Split, Split]:
        train, test = downloads.load(self.dataset, self.root)
        size = self.image_shape[-1]
        train.images, test.images = resized(train.images, size), resized(test.images, size)
        return train, test
