"""Data that is missing, corrupt, or nowhere to be put: what the user is told. No network here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from torchvision import datasets

import image_sets
from ncmonitor import InputError
from ncmonitor.recipes.data import (
    CIFAR10Data,
    CIFAR100Data,
    FashionMNISTData,
    MNISTData,
    STL10Data,
    SVHNData,
)
from ncmonitor.recipes.data.datamodule import TorchvisionData
from ncmonitor.recipes.data.downloads import default_root

KINDS: list[type[TorchvisionData]] = [
    MNISTData,
    FashionMNISTData,
    CIFAR10Data,
    CIFAR100Data,
    SVHNData,
    STL10Data,
]
FUNCTIONS = {
    "mnist.download_and_extract_archive",
    "cifar.download_and_extract_archive",
    "stl10.download_and_extract_archive",
    "svhn.download_url",
}


def name_of(kind: type[TorchvisionData]) -> str:
    return kind.__name__.removesuffix("Data")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cut the network off, and list what was asked of it."""
    urls: list[str] = []

    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        urls.append(url)
        raise URLError("no route to host")

    for function in FUNCTIONS:
        monkeypatch.setattr(f"torchvision.datasets.{function}", refuse)
    return urls


@pytest.mark.parametrize("kind", KINDS)
def test_without_network_the_user_is_told_which_files_go_where(
    kind: type[TorchvisionData], tmp_path: Path, asked: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        kind(root=tmp_path).prepare_data()
    said = str(caught.value)
    archives = {
        "MNIST": "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz",
        "FashionMNIST": "train-images-idx3-ubyte.gz",
        "CIFAR10": "cifar-10-python.tar.gz",
        "CIFAR100": "cifar-100-python.tar.gz",
        "SVHN": "train_32x32.mat, test_32x32.mat",
        "STL10": "stl10_binary.tar.gz",
    }
    name = name_of(kind)
    folder = tmp_path / name / "raw" if "MNIST" in name else tmp_path
    assert said.startswith(f"{name} is not in {tmp_path}, and the download ({kind.megabytes:,} MB)")
    assert "no route to host" in said
    assert archives[name] in said
    assert f" into {folder} yourself" in said
    assert "--data.root" in said
    assert "NCMONITOR_DATA" in said
    assert asked


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_is_there_is_not_downloaded(
    kind: type[TorchvisionData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
) -> None:
    image_sets.write(name_of(kind), tmp_path, monkeypatch)
    data = kind(root=tmp_path, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train) == image_sets.TRAIN
    assert asked == []


def test_missing_data_is_downloaded_by_torchvision_into_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path / "source", monkeypatch)
    root = tmp_path / "new" / "root"

    def bring(url: str, folder: Any, **kwargs: Any) -> None:
        assert url == datasets.CIFAR10.url
        shutil.copytree(tmp_path / "source", folder, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", bring)
    data = CIFAR10Data(root=root, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    assert (root / "cifar-10-batches-py" / "test_batch").is_file()


def test_without_download_the_missing_files_are_named(tmp_path: Path, asked: list[str]) -> None:
    data = SVHNData(root=tmp_path, download=False)
    data.prepare_data()
    with pytest.raises(
        InputError, match=r"there is no train_32x32\.mat, no test_32x32\.mat\. Use --data\.download"
    ):
        data.setup("fit")
    assert asked == []


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (CIFAR10Data, "cifar-10-batches-py/test_batch"),
        (CIFAR100Data, "cifar-100-python/meta"),
        (SVHNData, "train_32x32.mat"),
        (STL10Data, "stl10_binary/train_X.bin"),
        (MNISTData, "MNIST/raw/train-images-idx3-ubyte"),
        (MNISTData, "MNIST/raw/t10k-labels-idx1-ubyte"),
    ],
)
def test_a_corrupt_file_is_named(
    kind: type[TorchvisionData], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write(name_of(kind), tmp_path, monkeypatch)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-5])
    data = kind(root=tmp_path)
    data.prepare_data()
    with pytest.raises(InputError, match=rf"{file} is corrupt \(.*\); delete it and run again"):
        data.setup("fit")


def test_an_empty_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_sets.write("MNIST", tmp_path, monkeypatch)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is corrupt"):
        MNISTData(root=tmp_path).setup("fit")


def test_images_and_labels_of_different_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("MNIST", tmp_path, monkeypatch)
    raw = tmp_path / "MNIST/raw"
    shutil.copy(raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte")
    with pytest.raises(InputError, match=r"cannot be read .*60 images, but 30 labels.*delete"):
        MNISTData(root=tmp_path).setup("fit")


def test_a_corrupt_archive_is_named_when_it_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz is corrupt"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_a_root_that_cannot_be_written_is_explained_before_any_download(
    tmp_path: Path, asked: list[str]
) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            InputError, match=r"cannot write to the data folder .*file.*--data.root"
        ):
            CIFAR10Data(root=root).prepare_data()
    assert asked == []


def test_data_in_a_folder_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_sets.write("CIFAR10", tmp_path, monkeypatch)
    monkeypatch.setattr("ncmonitor.recipes.data.downloads._check_writable", pytest.fail)
    CIFAR10Data(root=tmp_path).prepare_data()


def test_the_root_is_the_environments_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCMONITOR_DATA", str(tmp_path / "data"))
    assert MNISTData().root == tmp_path / "data"
    monkeypatch.delenv("NCMONITOR_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "ncmonitor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "ncmonitor"
    assert MNISTData(root="~/mnist").root == tmp_path / "mnist"
