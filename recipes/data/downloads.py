"""torchvision's data sets on disk: the files they need, fetching them, what is wrong with them."""

from __future__ import annotations

import os
import pickle
import tempfile
from http.client import HTTPException
from math import prod
from pathlib import Path
from tarfile import TarError
from typing import Any, Final
from urllib.error import URLError

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from ncmonitor.errors import InputError
from ncmonitor.recipes.data.image_samples import ImageTensors

DATA_VARIABLE: Final = "NCMONITOR_DATA"
_FETCHING = (URLError, HTTPException, TarError, OSError, EOFError, RuntimeError)
_READING = (
    *(RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError),
    *(OSError, EOFError, pickle.UnpicklingError),
)


class LabelledSTL10(datasets.STL10):  # type: ignore[misc]  # torchvision is untyped
    """STL10 without its 100,000 unlabelled images, which take 2.7 GB and seconds to check."""

    train_list = datasets.STL10.train_list[:2]


def default_root() -> Path:
    """Return the folder of all data: ``NCMONITOR_DATA``, or a folder in the user's cache."""
    if given := os.environ.get(DATA_VARIABLE):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ncmonitor"


def files_of(dataset: type[Any]) -> dict[str, str | None]:
    """Return the files that a data set is read from, below its root, with their md5 sums."""
    if hasattr(dataset, "resources"):  # MNIST and its likes; the sums are of the archives
        return {f"{_raw(dataset)}/{Path(name).stem}": None for name, _ in dataset.resources}
    if hasattr(dataset, "split_list"):  # SVHN
        return {name: md5 for _, name, md5 in _svhn(dataset)}
    files = dict((*dataset.train_list, *dataset.test_list))
    if hasattr(dataset, "meta"):  # CIFAR
        files[dataset.meta["filename"]] = dataset.meta["md5"]
    return {f"{dataset.base_folder}/{name}": md5 for name, md5 in files.items()}


def archives_of(dataset: type[Any]) -> dict[str, tuple[str, str]]:
    """Return what is downloaded: names below the root, each with its address and md5 sum."""
    if hasattr(dataset, "resources"):
        url, raw = dataset.mirrors[0], _raw(dataset)
        return {f"{raw}/{name}": (f"{url}{name}", md5) for name, md5 in dataset.resources}
    if hasattr(dataset, "split_list"):
        return {name: (url, md5) for url, name, md5 in _svhn(dataset)}
    return {dataset.filename: (dataset.url, dataset.tgz_md5)}


def missing(dataset: type[Any], root: Path) -> list[str]:
    """Return those of a data set's files that are not there."""
    return [name for name in files_of(dataset) if not (root / name).is_file()]


def fetch(dataset: type[Any], root: Path, megabytes: int) -> None:
    """Download a data set with torchvision, unless its files are there.

    Raises:
        InputError: If ``root`` cannot be written to, or the download fails.
    """
    if not missing(dataset, root):
        return
    _check_writable(root)
    try:
        for split in _splits(dataset):
            dataset(root, **split, download=True)
    except _FETCHING as error:
        _refuse_corrupt(dataset, root)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{_name(dataset)} is not in {root}, and the download ({megabytes:,} MB) failed: "
            f"{reason}. {_advice(dataset, root)}"
        ) from error


def load(dataset: type[Any], root: Path) -> tuple[ImageTensors, ImageTensors]:
    """Read training and test set into memory.

    Raises:
        InputError: If files are missing or corrupt.
    """
    if absent := missing(dataset, root):
        raise InputError(
            f"{_name(dataset)} is not in {root}: there is no {', no '.join(absent)}. Use "
            f"--data.download true, which also unpacks archives that are there. "
            f"{_advice(dataset, root)}"
        )
    try:
        train, test = (_tensors(dataset(root, **split)) for split in _splits(dataset))
    except _READING as error:
        _refuse_corrupt(dataset, root)
        raise InputError(
            f"{_name(dataset)} in {root} cannot be read ({type(error).__name__}: {error}); delete "
            f"{', '.join(files_of(dataset))} there and run again"
        ) from error
    return train, test


def _tensors(data: Any) -> ImageTensors:
    """Take images and labels out of one of torchvision's data sets, as (N, C, H, W) bytes."""
    labels = torch.as_tensor(data.targets if hasattr(data, "targets") else data.labels)
    images = torch.as_tensor(np.asarray(data.data))
    if images.ndim == 3:  # MNIST
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:  # CIFAR
        images = images.permute(0, 3, 1, 2)
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    return ImageTensors(images.contiguous(), labels.long())


def _splits(dataset: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if issubclass(dataset, (datasets.SVHN, datasets.STL10)):
        return {"split": "train"}, {"split": "test"}
    return {"train": True}, {"train": False}


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the data folder {root} ({error.strerror or error}); name another "
            f"with --data.root or {DATA_VARIABLE}"
        ) from error


def _refuse_corrupt(dataset: type[Any], root: Path) -> None:
    """Name the file that is not what it should be, if that can be told."""
    sums = files_of(dataset) | {name: md5 for name, (_, md5) in archives_of(dataset).items()}
    for name, md5 in sums.items():
        path = root / name
        if path.is_file() and not (check_integrity(path, md5) if md5 else _idx_is_whole(path)):
            what = f"its md5 sum is not {md5}" if md5 else "it does not have the size it states"
            raise InputError(f"{path} is corrupt ({what}); delete it and run again")


def _idx_is_whole(path: Path) -> bool:
    """Tell whether an IDX file has the size that its header says."""
    data = np.fromfile(path, dtype=">i4", count=4)
    dims = int(data[0]) % 256 if len(data) else 4
    if len(data) <= dims:
        return False
    size: int = 4 * (dims + 1) + prod(data[1 : dims + 1].tolist())
    return path.stat().st_size == size


def _advice(dataset: type[Any], root: Path) -> str:
    names = archives_of(dataset)
    folders = {str((root / name).parent) for name in names}
    plain = ", ".join(Path(name).name for name in names)
    source = next(iter(names.values()))[0].rpartition("/")[0]
    return (
        f"Or put {plain} (from {source}) into {' and '.join(folders)} yourself, or name the folder "
        f"that has the data with --data.root or {DATA_VARIABLE}"
    )


def _svhn(dataset: type[Any]) -> list[list[str]]:
    return [dataset.split_list["train"], dataset.split_list["test"]]


def _raw(dataset: type[Any]) -> str:
    return f"{dataset.__name__}/raw"


def _name(dataset: type[Any]) -> str:
    return dataset.__name__.removeprefix("Labelled")
