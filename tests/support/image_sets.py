"""Small image data sets on disk, in the formats and places where torchvision looks for them."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from ncmonitor.recipes.data.downloads import LabelledSTL10

Array = np.ndarray[Any, Any]
TRAIN, TEST = 60, 30


def images(count: int, shape: tuple[int, ...], classes: int, seed: int) -> tuple[Array, Array]:
    """Noise on a pattern for each class: (count, C, H, W) bytes, and labels 0, ..., K−1, 0, ..."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    patterns = np.random.default_rng(0).integers(0, 200, (classes, *shape))
    return (patterns[labels] + rng.integers(0, 56, (count, *shape))).astype(np.uint8), labels


def write(name: str, root: Path, patch: pytest.MonkeyPatch, *, classes: int = 10) -> None:
    """Write a data set of :data:`TRAIN` and :data:`TEST` images below a root.

    Args:
        name: As in torchvision, or ``"ImageFolder"``.
        root: Where to write.
        patch: Replaces the md5 sums that torchvision expects.
        classes: Classes that occur.
    """
    root.mkdir(parents=True, exist_ok=True)
    parts = {
        split: images(count, SHAPES[name], classes, seed)
        for seed, (split, count) in enumerate({"train": TRAIN, "test": TEST}.items(), start=1)
    }
    _WRITERS[name](name, root, patch, parts)


SHAPES = {
    **dict.fromkeys(("MNIST", "FashionMNIST"), (1, 28, 28)),
    **dict.fromkeys(("CIFAR10", "CIFAR100", "SVHN"), (3, 32, 32)),
    "STL10": (3, 96, 96),
    "ImageFolder": (3, 40, 50),
}
Parts = dict[str, tuple[Array, Array]]


def _mnist(name: str, root: Path, patch: pytest.MonkeyPatch, parts: Parts) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        pixels, labels = parts[split]
        head = struct.pack(">iiii", 0x803, len(pixels), *pixels.shape[2:])
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">ii", 0x801, len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            head + labels.astype(np.uint8).tobytes()
        )


def _cifar(name: str, root: Path, patch: pytest.MonkeyPatch, parts: Parts) -> None:
    dataset = getattr(datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir()
    key = "labels" if name == "CIFAR10" else "fine_labels"

    def save(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5(folder / file)]

    for split, file in {"train": dataset.train_list[0][0], "test": dataset.test_list[0][0]}.items():
        pixels, labels = parts[split]
        content = {"data": pixels.reshape(len(pixels), -1), key: labels.tolist()}
        patch.setattr(dataset, f"{split}_list", [save(file, content)])
    names = dataset.meta["key"]
    file, total = save(dataset.meta["filename"], {names: [f"class {c}" for c in range(100)]})
    patch.setattr(dataset, "meta", {"filename": file, "key": names, "md5": total})


def _svhn(name: str, root: Path, patch: pytest.MonkeyPatch, parts: Parts) -> None:
    split_list = {}
    for split, (pixels, labels) in parts.items():
        url, file, _ = datasets.SVHN.split_list[split]
        digits = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        savemat(root / file, {"X": pixels.transpose(2, 3, 1, 0), "y": digits})
        split_list[split] = [url, file, md5(root / file)]
    patch.setattr(datasets.SVHN, "split_list", split_list)


def _stl10(name: str, root: Path, patch: pytest.MonkeyPatch, parts: Parts) -> None:
    folder = root / LabelledSTL10.base_folder
    folder.mkdir()
    for split, (pixels, labels) in parts.items():
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
        files = [f"{split}_X.bin", f"{split}_y.bin"]
        patch.setattr(LabelledSTL10, f"{split}_list", [[f, md5(folder / f)] for f in files])


def _folder(name: str, root: Path, patch: pytest.MonkeyPatch, parts: Parts) -> None:
    for split, folder in {"train": "train", "test": "val"}.items():
        for index, (pixels, label) in enumerate(zip(*parts[split], strict=True)):
            path = root / folder / f"class{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


Writer = Callable[[str, Path, pytest.MonkeyPatch, Parts], None]
_WRITERS: dict[str, Writer] = {
    **dict.fromkeys(("MNIST", "FashionMNIST"), _mnist),
    **dict.fromkeys(("CIFAR10", "CIFAR100"), _cifar),
    "SVHN": _svhn,
    "STL10": _stl10,
    "ImageFolder": _folder,
}
