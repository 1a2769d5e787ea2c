"""The digits: the same split for everyone; settings that cannot work; switches of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import image_sets
from ncmonitor import InputError
from ncmonitor.cli import main
from ncmonitor.recipes.data import DigitsData, ImageFolderData, MNISTData

Split = tuple[torch.Tensor, torch.Tensor]


def split(data: DigitsData) -> tuple[Split, Split]:
    data.setup("fit")
    (images, labels), (val_images, val_labels) = data.train.tensors, data.val.tensors
    return (images, labels), (val_images, val_labels)


def test_split_has_the_stated_sizes_and_every_class_in_proportion() -> None:
    (images, labels), (val_images, val_labels) = split(DigitsData())
    assert images.shape == (1437, 1, 8, 8)
    assert val_images.shape == (360, 1, 8, 8)
    share = labels.bincount(minlength=10) / (labels.bincount() + val_labels.bincount())
    torch.testing.assert_close(share, torch.full((10,), 0.8), atol=0.004, rtol=0)


def test_split_is_a_partition_of_the_data() -> None:
    from sklearn.datasets import load_digits

    (images, _), (val_images, _) = split(DigitsData())
    together = torch.cat([images, val_images]).flatten(1)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    # The scaling is one affine map, so sorting by content lines both up. Three images occur twice
    # in the data, which a test by sets would take for an overlap.
    scaled = together * (pixels.std() / together.std())
    scaled = (scaled - scaled.min()).round()
    assert sorted(map(tuple, scaled.tolist())) == sorted(map(tuple, pixels.tolist()))


def test_pixels_are_standardised_over_the_training_set() -> None:
    (images, _), _ = split(DigitsData())
    assert images.mean().abs() < 1e-6
    assert abs(images.std() - 1) < 1e-6


def test_split_depends_on_its_own_seed_alone() -> None:
    torch.manual_seed(1)
    (first, _), _ = split(DigitsData())
    torch.manual_seed(2)
    (same, _), _ = split(DigitsData(batch_size=7))
    (other, _), _ = split(DigitsData(split_seed=1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_training_is_shuffled_and_drops_the_rest_validation_is_neither() -> None:
    data = DigitsData(batch_size=205)
    data.setup("fit")
    sizes = [len(labels) for _, labels in data.train_dataloader()]
    assert sizes == [205] * 7
    first, second = (next(iter(data.train_dataloader()))[1] for _ in range(2))
    assert not torch.equal(first, second)
    ((_, labels),) = data.val_dataloader()
    assert torch.equal(labels, data.val.tensors[1])


def test_the_rest_can_be_kept() -> None:
    data = DigitsData(batch_size=1000, drop_last=False)
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == [1000, 437]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0.01, 0.99\], but is 1.0"),
        ({"batch_size": 1438}, "batch_size is 1438, but there are 1437 training images"),
    ],
)
def test_impossible_settings_are_explained(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DigitsData(**given).setup("fit")  # type: ignore[arg-type]  # one test for two types


def test_digits_know_the_switches_of_the_others() -> None:
    data = DigitsData(
        per_class=20, image_size=12, batch_size=10, val_limit=50, normalize="none", label_noise=0.1
    )
    (images, labels), (val_images, _) = split(data)
    assert images.shape == (200, 1, 12, 12)
    assert data.image_shape == (1, 12, 12)
    assert len(val_images) == 50
    assert (images.min().item(), images.max().item()) == (0, 1)
    clean = DigitsData(per_class=20, batch_size=10)
    clean.setup("fit")
    assert (labels != clean.train.labels).sum() == 20


# -- mistakes, and the command -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_workers": -1}, "num_workers must not be negative, but is -1"),
        ({"image_size": 0}, "image_size must be at least 1, but is 0"),
        ({"val_limit": 0}, "val_limit must be at least 1, but is 0"),
        ({"normalize": "pixels"}, "normalize must be one of .*; did you mean 'pixel'"),
        ({"augment": True}, "MNISTData: there is no augmentation usual for .* take rotations90"),
        ({"augment": "rotation"}, "augment must be one of true, .*; did you mean 'rotations90'"),
        ({"classes": (3,)}, r"classes must be two or more different ones of 0 to 9, but are \[3\]"),
        ({"classes": (3, 5, 3)}, r"two or more different ones of 0 to 9, but are \[3, 5, 3\]"),
        ({"classes": (3, 10)}, "two or more different ones of 0 to 9"),
    ],
)
def test_settings_that_cannot_work_are_explained(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MNISTData(**given)  # type: ignore[arg-type]  # mistakes on purpose


def test_classes_are_left_out_of_both_sets_and_numbered_anew() -> None:
    whole, some = DigitsData(), DigitsData(classes=(7, 0, 3), per_class=20, batch_size=10)
    assert (some.num_classes, whole.num_classes) == (3, 10)
    for data in (whole, some):
        data.setup("fit")
    assert some.train.labels.bincount().tolist() == [20, 20, 20]
    for chosen, every in ((some.train, whole.train), (some.val, whole.val)):
        for label, digit in enumerate((0, 3, 7)):
            kept = {image.numpy().tobytes() for image in chosen.images[chosen.labels == label]}
            there = {image.numpy().tobytes() for image in every.images[every.labels == digit]}
            assert kept <= there
            if every is whole.val:
                assert kept == there
    # The scaling is that of what is left.
    assert some.train.tensors[0].mean().abs() < 1e-5
    assert some.train.scaling.mean != whole.train.scaling.mean


def test_a_folder_has_the_classes_that_its_folders_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ImageFolderData: classes are folders; give a root"):
        ImageFolderData(root=tmp_path, classes=(0, 1))


def test_a_folder_cannot_be_scaled_by_pixel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ImageFolderData: normalize pixel needs the images in"):
        ImageFolderData(root=tmp_path, normalize="pixel")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning.cli")
def test_the_command_takes_every_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image_sets.write("CIFAR10", tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "CIFAR10Data", "--data.root", "data", "--data.batch_size", "8"]
    words += ["--data.per_class", "3", "--data.imbalance", "exponential"]
    words += ["--data.imbalance_ratio", "3", "--data.label_noise", "0.1", "--data.augment", "true"]
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer: {fast_dev_run: true, accelerator: cpu, logger: false}\n"
        "model: {class_path: ncmonitor.recipes.module.ImageClassifier, init_args: {network: "
        "{class_path: ncmonitor.recipes.networks.image_networks.MLP, "
        "init_args: {inputs: 3072, hidden: [8]}}}}\n"
    )
    assert main(["fit", "--config", str(config), *words]) == 0
    assert main(["fit", "--config", str(config), *words, "--data.normalize", "chan"]) != 0
    assert "did you mean 'channel'" in capsys.readouterr().err
