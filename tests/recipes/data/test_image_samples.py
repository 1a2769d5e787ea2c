"""Images in memory and on disk, their scaling, and random changes to each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ncmonitor import InputError
from ncmonitor.recipes.data.image_samples import (
    ImageFiles,
    ImageTensors,
    Scaling,
    flipped,
    image_folder,
    pixel_moments,
    resized,
    shifted,
    zoomed,
)

SCALING = Scaling(torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1), torch.full((3, 1, 1), 4.0))


def noise(count: int = 20, side: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def test_a_batch_is_what_its_images_are_one_by_one() -> None:
    data = ImageTensors(noise(), torch.arange(20), SCALING)
    for loader in (DataLoader(data, 7), DataLoader(data, 7, num_workers=1)):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [7, 7, 6]
        singly = torch.stack([data[i][0] for i in range(20)])
        assert torch.equal(torch.cat([images for images, _ in batches]), singly)
        assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(20))


def test_a_loader_reads_whole_batches_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageTensors(noise(), torch.arange(20), SCALING)
    sizes: list[int] = []
    apply = Scaling.apply

    def counted(self: Scaling, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return apply(self, pixels)

    monkeypatch.setattr(Scaling, "apply", counted)
    list(DataLoader(data, 10, shuffle=True))
    assert sizes == [10, 10]


def test_images_stay_bytes_and_are_scaled_when_read() -> None:
    images = noise()
    data = ImageTensors(images, torch.arange(20), SCALING)
    assert data.images.dtype == torch.uint8
    expected = (images.float() - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / 4
    assert torch.equal(data.tensors[0], expected)


def test_taking_all_images_shares_their_memory_and_leaves_the_labels_alone() -> None:
    data = ImageTensors(noise(), torch.arange(20))
    same = data.take(torch.arange(20), torch.zeros(20, dtype=torch.long))
    assert same.images.data_ptr() == data.images.data_ptr()
    assert torch.equal(data.labels, torch.arange(20))
    some = data.take(torch.tensor([3, 5]), torch.tensor([1, 0]))
    assert torch.equal(some.images, data.images[[3, 5]])
    assert some.labels.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undoing_the_scaling_gives_the_pixels_back(dtype: torch.dtype) -> None:
    images = noise()
    inputs = SCALING.apply(images).to(dtype)
    torch.testing.assert_close(SCALING.undo(inputs), images.to(dtype))
    assert SCALING.apply(SCALING.undo(inputs)).dtype == dtype


def test_pixel_moments_are_those_of_every_pixel_and_constant_pixels_become_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ncmonitor.recipes.data.image_samples._CHUNK", 7)
    images = noise(50)
    images[:, :, 0, 0] = 9
    scaling = pixel_moments(images)
    exact = images.numpy().astype(np.float64)
    np.testing.assert_allclose(scaling.mean, exact.mean(0), rtol=1e-6)
    inputs = scaling.apply(images)
    assert (inputs[:, :, 0, 0] == 0).all()
    std = inputs.std(0, correction=0)
    std[:, 0, 0] = 1
    torch.testing.assert_close(std, torch.ones_like(std))


def test_larger_sizes_pad_with_zeros_around_the_centre() -> None:
    images = noise(side=6)
    for size, left in ((10, 2), (9, 1), (6, 0)):
        large = resized(images, size)
        assert large.shape == (20, 3, size, size)
        assert torch.equal(large[..., left : left + 6, left : left + 6], images)
        assert large.sum() == images.sum()


def test_smaller_sizes_resize() -> None:
    images = torch.arange(0, 240, 30, dtype=torch.uint8).repeat(2, 3, 8, 1)
    small = resized(images, 4)
    assert small.dtype == torch.uint8
    assert small.shape == (2, 3, 4, 4)
    assert (small.int().diff(dim=-1) > 30).all()  # the gradient is still there, over half the steps


def test_shifts_crop_each_image_of_the_padded_batch_at_its_own_place() -> None:
    images = noise(200).float()
    moved = shifted(images, 2)
    padded = torch.nn.functional.pad(images, [2] * 4)
    places: set[tuple[int, int]] = set()
    for before, after in zip(padded, moved, strict=True):
        (place,) = (
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 6, left : left + 6], after)
        )
        places.add(place)
    assert len(places) == 25  # 200 draws miss none of 25 places but with probability 0.007


def test_flips_mirror_about_half_of_the_images() -> None:
    images = noise(200).float()
    mirrored = flipped(images)
    same = (mirrored == images).flatten(1).all(1)
    turned = (mirrored == images.flip(-1)).flatten(1).all(1)
    assert (same ^ turned).all()
    assert 60 < turned.sum() < 140


def test_zooms_enlarge_a_part_of_each_image() -> None:
    ramp = torch.arange(32.0).expand(8, 3, 32, 32)
    enlarged = zoomed(ramp)
    assert enlarged.shape == ramp.shape
    slopes = enlarged.diff(dim=-1).mean((1, 2, 3))
    assert (slopes < 1).all()
    assert len(slopes.unique()) > 4


def image_files(folder: Path, size: int = 28) -> ImageFiles:
    labels = torch.tensor([0, 1])
    return ImageFiles(image_folder(folder), size, torch.arange(2), labels, SCALING)


def test_files_are_resized_at_the_shorter_side_and_cut_at_the_centre(tmp_path: Path) -> None:
    for name, size, grey in (("a", (64, 32), 200), ("b", (32, 64), 100)):
        (tmp_path / name).mkdir()
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[size[0] // 2 - 16 : size[0] // 2 + 16, size[1] // 2 - 16 : size[1] // 2 + 16] = grey
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    data = image_files(tmp_path)
    for index in range(2):  # 32 at the shorter side already: 28 of it are the bright middle
        image, label = data[index]
        assert image.shape == (3, 28, 28)
        assert (SCALING.undo(image) == (200, 100)[index]).all()
        assert label == index
    taken = data.take(torch.tensor([1]), torch.tensor([0]))[0]
    assert torch.equal(taken[0], data[1][0])
    assert taken[1] == 0


def test_a_broken_image_file_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(InputError, match=r"cannot read the image .*a/0\.png"):
        image_files(tmp_path)[0]


def test_a_missing_folder_and_an_empty_class_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one folder for each class .*No such file.*--data.root"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no valid file for the classes a"):
        image_folder(tmp_path)
