"""Augmentation reaches training steps, and nothing that is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import image_sets
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.recipes.data import (
    CIFAR10Data,
    DigitsData,
    FashionMNISTData,
    ImageFolderData,
    MNISTData,
    STL10Data,
    SVHNData,
)
from ncmonitor.recipes.data.datamodule import ImageData
from toys import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Seen:
    """The images of every forward, apart for training and evaluation.

    Kept outside the network: a measurement puts back what a network and its hooks keep of it.
    """

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def add(self, network: nn.Module, args: tuple[Tensor]) -> None:
        (self.trained if network.training else self.evaluated).append(args[0].detach())


class Classifier(pl.LightningModule):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 8))
        self.classifier = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def seen_in_a_fit(data: ImageData, folder: Path) -> Seen:
    module, seen = Classifier(data.image_shape), Seen()
    module.register_forward_pre_hook(seen.add)
    monitor = NeuralCollapse(run_dir=folder / "run", verbose=False, on_error="raise")
    trainer(monitor, max_epochs=2).fit(module, data)
    return seen


def is_among(images: Tensor, known: Tensor) -> Tensor:
    """Tell for each image whether it is one of the known ones, bit for bit."""
    known_bytes = {image.numpy().tobytes() for image in known}
    return torch.tensor([image.numpy().tobytes() in known_bytes for image in images])


def close_to(images: Tensor, known: Tensor) -> Tensor:
    return torch.cdist(images.flatten(1), known.flatten(1)).amin(1) < 1e-2


def test_what_is_measured_is_clean_and_what_trains_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path, monkeypatch)
    data = CIFAR10Data(root=tmp_path, batch_size=20, augment=True)
    seen = seen_in_a_fit(
        data, tmp_path
    )  # warnings are errors: none that a sample read twice differs
    clean = torch.cat([data.train.tensors[0], data.val.tensors[0]])
    evaluated, trained = torch.cat(seen.evaluated), torch.cat(seen.trained)
    assert is_among(evaluated, clean).all()
    measured = is_among(evaluated, data.train.tensors[0]).sum()
    assert measured >= 3 * image_sets.TRAIN  # at epochs 0, 1 and 2
    assert len(trained) == 2 * image_sets.TRAIN
    assert close_to(trained, clean).float().mean() < 0.2  # 1 shift in 81 is none
    first, second = trained.chunk(2)  # one epoch and the next
    assert not is_among(first, second).all()
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["measurement"]["data_deterministic"]
        == 1
    )


def test_training_sees_the_images_themselves_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path, monkeypatch)
    data = CIFAR10Data(root=tmp_path, batch_size=20)
    seen = seen_in_a_fit(data, tmp_path)
    assert is_among(torch.cat(seen.trained), data.train.tensors[0]).all()


def test_measuring_does_not_change_how_training_is_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path, monkeypatch)
    trained = []
    for callbacks in ([], [NeuralCollapse(run_dir=tmp_path / "run", verbose=False)]):
        torch.manual_seed(3)
        data = CIFAR10Data(root=tmp_path, batch_size=20, augment=True)
        module, seen = Classifier(data.image_shape), Seen()
        module.register_forward_pre_hook(seen.add)
        trainer(*callbacks, max_epochs=2).fit(module, data)
        trained.append(torch.cat(seen.trained))
    assert torch.equal(*trained)


def batch_of(data: ImageData, count: int = 12) -> tuple[Tensor, Tensor]:
    """Augment the first images as a training step would get them; return them before and after."""
    data.setup("fit")
    images, labels = data.train.tensors
    data.trainer = trainer()
    data.trainer.training = True
    after, same = data.on_after_batch_transfer([images[:count], labels[:count]], 0)
    assert torch.equal(same, labels[:count])
    return images[:count], after


@pytest.mark.parametrize("normalize", ["channel", "pixel", "none"])
def test_what_a_shift_uncovers_is_black_under_every_scaling(
    normalize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("SVHN", tmp_path, monkeypatch)
    data = SVHNData(root=tmp_path, batch_size=8, augment=True, normalize=normalize)
    before, after = (data.train.scaling.undo(images) for images in batch_of(data))
    padded = nn.functional.pad(before, [4] * 4)
    for source, moved in zip(padded, after, strict=True):
        crops = source.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32); SVHN is not mirrored
        distance = (crops - moved[:, None, None]).abs().amax((0, 3, 4))
        assert distance.min() < 1e-3 * 255


@pytest.mark.parametrize(
    ("kind", "largest"), [(CIFAR10Data, 4), (FashionMNISTData, 4), (STL10Data, 12)]
)
def test_others_are_shifted_and_mirrored(
    kind: type[ImageData], largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = kind.__name__.removesuffix("Data")
    image_sets.write(name, tmp_path, monkeypatch)
    data = kind(root=tmp_path, batch_size=8, augment=True)  # type: ignore[call-arg]
    before, after = (data.train.scaling.undo(images) for images in batch_of(data, 30))
    side, mirrored = before.shape[-1], 0
    for source, moved in zip(before, after, strict=True):
        found = [
            flip
            for flip in (False, True)
            if _shift(source, moved.flip(-1) if flip else moved, largest, side)
        ]
        assert len(found) == 1
        mirrored += found[0]
    assert 5 < mirrored < 25


def _shift(source: Tensor, moved: Tensor, largest: int, side: int) -> bool:
    crops = nn.functional.pad(source, [largest] * 4).unfold(1, side, 1).unfold(2, side, 1)
    # One row and one column across decide as well as the whole image.
    cross = crops[..., side // 2, :] - moved[:, None, None, side // 2, :]
    return bool(cross.abs().amax((0, 3)).min() < 0.1)


@pytest.mark.parametrize("normalize", ["channel", "pixel", "none"])
def test_quarter_turns_move_the_inputs_and_change_none(
    normalize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("MNIST", tmp_path, monkeypatch)
    data = MNISTData(root=tmp_path, batch_size=8, augment="rotations90", normalize=normalize)
    before, after = batch_of(data, 60)
    found = []
    for source, moved in zip(before, after, strict=True):
        turns = [k for k in range(4) if torch.equal(source.rot90(k, (-2, -1)), moved)]
        assert len(turns) == 1
        found += turns
    assert all(5 < found.count(turns) < 25 for turns in range(4))  # each has its own of four


def test_quarter_turns_are_drawn_with_the_seed_of_the_run() -> None:
    data = DigitsData(batch_size=8, augment="rotations90")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(batch_of(data)[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_training_sees_turned_images_and_the_monitor_the_images_themselves(tmp_path: Path) -> None:
    data = DigitsData(batch_size=143, augment="rotations90")
    seen = seen_in_a_fit(data, tmp_path)
    clean = torch.cat([data.train.tensors[0], data.val.tensors[0]])
    turned = torch.cat([clean.rot90(k, (-2, -1)) for k in range(4)])
    trained = torch.cat(seen.trained)
    assert is_among(torch.cat(seen.evaluated), clean).all()
    assert is_among(trained, turned).all()
    assert 0.2 < is_among(trained, clean).float().mean() < 0.3


def test_folders_are_zoomed_in_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("ImageFolder", tmp_path, monkeypatch)
    data = ImageFolderData(root=tmp_path, image_size=24, batch_size=20, augment=True)
    seen = seen_in_a_fit(data, tmp_path)
    clean = torch.stack([data.train[i][0] for i in range(image_sets.TRAIN)])
    assert is_among(torch.cat(seen.evaluated), clean).sum() >= 3 * image_sets.TRAIN
    assert not close_to(torch.cat(seen.trained), clean).any()


def test_outside_of_a_trainer_nothing_is_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path, monkeypatch)
    data = CIFAR10Data(root=tmp_path, batch_size=20, augment=True)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert data.on_after_batch_transfer(batch, 0) is batch
    assert is_among(batch[0], data.train.tensors[0]).all()
