"""Every data set is what its files hold: generated ones, the real ones, folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import image_sets
from ncmonitor import InputError
from ncmonitor.recipes.data import (
    CIFAR10Data,
    CIFAR100Data,
    FashionMNISTData,
    ImageFolderData,
    MNISTData,
    STL10Data,
    SVHNData,
)
from ncmonitor.recipes.data.datamodule import TorchvisionData

IN_MEMORY: list[type[TorchvisionData]] = [
    MNISTData,
    FashionMNISTData,
    CIFAR10Data,
    CIFAR100Data,
    SVHNData,
    STL10Data,
]


def name_of(kind: type[TorchvisionData]) -> str:
    return kind.__name__.removesuffix("Data")


def generated(
    kind: type[TorchvisionData], root: Path, patch: pytest.MonkeyPatch, **options: object
) -> TorchvisionData:
    image_sets.write(name_of(kind), root, patch)
    data = kind(root=root, download=False, **{"batch_size": 16, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_a_data_set_is_what_its_files_hold(
    kind: type[TorchvisionData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generated(kind, tmp_path, monkeypatch)
    for part, count, seed in (
        (data.train, image_sets.TRAIN, 1),
        (data.val, image_sets.TEST, 2),
    ):
        images, labels = image_sets.images(count, kind.image_shape, 10, seed)
        assert torch.equal(part.images, torch.from_numpy(images))
        assert torch.equal(part.labels, torch.from_numpy(labels))
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (16, *data.image_shape)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (kind.mean, kind.std))
    torch.testing.assert_close(images, (data.val.images[:16] / 255 - mean) / std)
    assert data.num_classes == (100 if kind is CIFAR100Data else 10)


def test_training_batches_are_shuffled_and_whole_validation_is_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generated(MNISTData, tmp_path, monkeypatch)
    batches = [labels for _, labels in data.train_dataloader()]
    assert [len(labels) for labels in batches] == [16] * 3
    assert not torch.equal(torch.cat(batches), data.train.labels[:48])
    val = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.equal(val, data.val.labels)


def test_choices_reach_the_training_set_and_leave_validation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generated(
        MNISTData,
        tmp_path,
        monkeypatch,
        per_class=4,
        imbalance="step",
        imbalance_ratio=4,
        random_labels=True,
        drop_last=False,
    )
    assert data.train.labels.bincount().tolist() == [4] * 5 + [1] * 5
    true = {image.numpy().tobytes(): label for image, label in source(data)}
    wrong = [true[i.numpy().tobytes()] != int(label) for i, label in pairs(data.train)]
    assert sum(wrong) > 10  # of 25
    assert torch.equal(data.val.labels, torch.arange(image_sets.TEST) % 10)


def source(data: TorchvisionData) -> list[tuple[torch.Tensor, int]]:
    images, labels = image_sets.images(image_sets.TRAIN, data.image_shape, 10, 1)
    return list(zip(torch.from_numpy(images), labels.tolist(), strict=True))


def pairs(part: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(part.images, part.labels, strict=True))  # type: ignore[attr-defined]


def test_setting_up_again_keeps_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = generated(MNISTData, tmp_path, monkeypatch)
    train = data.train
    data.setup("validate")
    assert data.train is train


def test_pixels_can_be_scaled_each_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generated(CIFAR10Data, tmp_path, monkeypatch, normalize="pixel")
    images, _ = data.train.tensors
    torch.testing.assert_close(images.mean(0), torch.zeros(3, 32, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(0, correction=0), torch.ones(3, 32, 32))


def test_images_can_be_padded_to_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generated(MNISTData, tmp_path, monkeypatch, image_size=32)
    assert data.image_shape == (1, 32, 32)
    (images, _), (val_images, _) = data.train[0], data.val[0]
    assert images.shape == val_images.shape == (1, 32, 32)
    assert (images[0, 0] == images[0, 0, 0]).all()
    assert images[0, 0, 0] == pytest.approx(-0.1307 / 0.3081)


# -- real data -----------------------------------------------------------------------------------

Root = Callable[[str], Path]


@pytest.mark.parametrize("kind", [MNISTData, FashionMNISTData, CIFAR10Data])
def test_real_data_is_complete_and_standardised_to_four_digits(
    kind: type[TorchvisionData], image_root: Root
) -> None:
    data = kind(root=image_root(name_of(kind)), download=False)
    data.setup("fit")
    train = 50_000 if kind is CIFAR10Data else 60_000
    assert (len(data.train), len(data.val)) == (train, 10_000)
    if kind is not MNISTData:
        assert data.train.labels.bincount().tolist() == [train // 10] * 10
    values = torch.arange(256.0, dtype=torch.float64) / 255
    for channel, (mean, std) in enumerate(zip(kind.mean, kind.std, strict=True)):
        pixels = data.train.images[:, channel].flatten().bincount(minlength=256).double()
        share = pixels / pixels.sum()
        measured = share @ values
        assert measured.item() == pytest.approx(mean, abs=5.1e-5)
        assert (share @ (values - measured) ** 2).sqrt().item() == pytest.approx(std, abs=5.1e-5)


def test_real_mnist_is_balanced_exactly(image_root: Root) -> None:
    data = MNISTData(root=image_root("MNIST"), download=False, per_class=5000)
    data.setup("fit")
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.val.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    inputs = torch.cat([images for images, _ in data.train_dataloader()])
    assert inputs.shape == (49_920, 1, 28, 28)  # 390 whole batches
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01
    with pytest.raises(InputError, match=r"the smallest class \(5\) has 5421 training images"):
        MNISTData(root=image_root("MNIST"), per_class=5422).setup("fit")


# -- folders of images ---------------------------------------------------------------------------


def test_a_folder_of_images_counts_its_classes_and_gives_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("ImageFolder", tmp_path, monkeypatch, classes=3)
    data = ImageFolderData(root=tmp_path, image_size=28, per_class=6, batch_size=4)
    assert data.num_classes == 3  # at once: the network is made before setup
    data.prepare_data()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 28, 28)
    assert data.image_shape == (3, 28, 28)
    assert (len(data.train), len(data.val)) == (18, image_sets.TEST)
    assert data.train.labels.bincount().tolist() == [6] * 3
    assert sum(len(labels) for _, labels in data.val_dataloader()) == image_sets.TEST
    # Noise of 56 grey values on a pattern: the mean of an image tells its class.
    pixels, label = data.val[4]
    expected, labels_ = image_sets.images(image_sets.TEST, (3, 40, 50), 3, 2)
    order = sorted(range(image_sets.TEST), key=lambda i: (labels_[i], str(i)))
    assert label == labels_[order[4]]
    mean = data.val.scaling.undo(pixels).mean((1, 2)) / 255
    torch.testing.assert_close(
        mean, torch.from_numpy(expected[order[4]]).double().mean((1, 2)).float() / 255,
        atol=0.03, rtol=0,
    )  # fmt: skip


def test_folders_that_do_not_match_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"expected images in .*train/CLASS/"):
        ImageFolderData(root=tmp_path).setup("fit")
    image_sets.write("ImageFolder", tmp_path, monkeypatch, classes=3)
    (tmp_path / "val" / "class2").rename(tmp_path / "val" / "klass2")
    with pytest.raises(InputError, match="the same classes, but class2, klass2"):
        ImageFolderData(root=tmp_path, batch_size=4).setup("fit")
