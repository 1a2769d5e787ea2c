"""Data modules. Each one gives a training loader without augmentation and a validation loader."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor._checks import InputError

Loader = DataLoader[tuple[torch.Tensor, ...]]


class DigitsData(pl.LightningDataModule):
    """The 1,797 handwritten digits that ship with scikit-learn, as (1, 8, 8) images in memory.

    Pixels are scaled to mean 0 and standard deviation 1 over the training set. The split depends on
    ``split_seed`` alone, so that runs of different seeds are measured on the same images.

    Args:
        batch_size: Training images per step.
        val_fraction: Share of each class that is held out.
        split_seed: Chooses the images that are held out.
        drop_last: Leave out the images that do not fill the last batch, others in each epoch.
            Batch normalisation over a handful of images makes the class means wander: with batches
            of 128 the last one has 29, and keeping it costs a factor of ten in the final NC1.
    """

    num_classes = 10

    def __init__(
        self,
        batch_size: int = 128,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"DigitsData: batch_size must be at least 1, but is {batch_size}")
        if not 0.01 <= val_fraction <= 0.99:  # each class keeps images on both sides
            raise InputError(
                f"DigitsData: val_fraction must lie in [0.01, 0.99], but is {val_fraction}"
            )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.drop_last = drop_last

    def setup(self, stage: str) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, val, train_labels, val_labels = train_test_split(
            torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8),
            torch.tensor(labels, dtype=torch.long),
            test_size=self.val_fraction,
            random_state=self.split_seed,
            stratify=labels,
        )
        mean, std = train.mean(), train.std()
        self.train = TensorDataset((train - mean) / std, train_labels)
        self.val = TensorDataset((val - mean) / std, val_labels)
        if self.drop_last and self.batch_size > len(self.train):
            raise InputError(
                f"DigitsData: batch_size is {self.batch_size}, but there are {len(self.train)} "
                "training images; use a smaller one, or --data.drop_last false"
            )

    def train_dataloader(self) -> Loader:
        return DataLoader(
            self.train, batch_size=self.batch_size, shuffle=True, drop_last=self.drop_last
        )

    def val_dataloader(self) -> Loader:
        return DataLoader(self.val, batch_size=len(self.val))
