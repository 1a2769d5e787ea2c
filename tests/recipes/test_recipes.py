"""Every bundled recipe through the real command: on generated data, on real data, and misused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml

import image_sets
from ncmonitor.cli import main
from ncmonitor.monitor.history import read_history
from ncmonitor.recipes import data as data_modules
from ncmonitor.recipes.bundled import recipes
from ncmonitor.recipes.data.datamodule import ImageData, TorchvisionData
from ncmonitor.recipes.free_features import UnconstrainedFeatures
from ncmonitor.recipes.losses import ridge
from ncmonitor.recipes.module import ImageClassifier

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
    # Of runs that are cut short on purpose.
    "ignore:schedule= lists",
)
Fit = Callable[..., tuple[int, str, str]]
Step = tuple[tuple[int, ...], str]

#: Papyan, Han & Donoho 2020: the three networks of each data set.
NETWORKS: Final = {
    "mnist": {"vgg11", "resnet18", "densenet40"},
    "fashion_mnist": {"vgg11", "resnet18", "densenet250"},
    "svhn": {"vgg11", "resnet18", "densenet40"},
    "cifar10": {"vgg13", "resnet18", "densenet40"},
    "cifar100": {"vgg13", "resnet50", "densenet250"},
    "stl10": {"vgg13", "resnet50", "densenet250"},
    "imagenet": {"vgg19", "resnet152", "densenet201"},
}
#: Run by `make test`; the others take seconds on a CPU, even for a few images.
QUICK: Final = {"digits", "mnist_quick", "imbalanced", "ufm"}
CPU: Final = (
    *("--trainer.accelerator", "cpu", "--trainer.logger", "false"),
    "--figures.figures=[]",
)


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(recipes()[name].path.read_text(encoding="utf-8"))
    return config


def data_of(name: str) -> type[Any]:
    """Return the data module's class of a recipe."""
    kind = config_of(name)["data"]["class_path"].rpartition(".")[2]
    return getattr(data_modules, kind, object)


def image_shape(name: str) -> tuple[int, ...]:
    channels, side, _ = data_of(name).image_shape
    side = config_of(name)["data"]["init_args"].get("image_size", side)
    return channels, side, side


def few_images(name: str, batch: int) -> list[str]:
    """Return options that make a recipe fit 60 generated images."""
    if not issubclass(data_of(name), (TorchvisionData, data_modules.ImageFolderData)):
        return []
    given, words = config_of(name)["data"]["init_args"], ["--data.batch_size", str(batch)]
    if "per_class" in given:
        words += ["--data.per_class", "6"]
    if "imbalance" in given:
        words += ["--data.imbalance_ratio", "6"]
    if name == "imagenet":  # the ImageNet stem, but not 224 pixels
        words += ["--data.num_workers", "0", "--data.image_size", "72"]
    return words


def one_way(name: str) -> list[str]:
    """Return the option that chooses the last way of a recipe that has ways."""
    ways = recipes()[name].ways
    return ["--way", [*ways][-1]] if ways else []


@pytest.fixture
def fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plain_pages: None,
) -> Iterator[Fit]:
    """Give the command, run in an empty folder with data from ``data/`` and without network."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    monkeypatch.setenv("NCMONITOR_DATA", str(tmp_path / "data"))
    threads = torch.get_num_threads()  # which a recipe may set

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    for kind in ("mnist", "cifar", "stl10"):
        function = f"torchvision.datasets.{kind}.download_and_extract_archive"
        monkeypatch.setattr(function, refuse)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", refuse)

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", *words])
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a recipe's data set, 60 and 30 images, in ``data/``."""

    def write(name: str) -> Path:
        root, kind = tmp_path / "data", data_of(name).__name__.removesuffix("Data")
        if kind in image_sets.SHAPES:
            folder = root / "imagenet" if kind == "ImageFolder" else root
            image_sets.write(kind, folder, monkeypatch)
        return root

    return write


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """List the shape of each training batch and the network that saw it."""
    seen: list[Step] = []

    def watched(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append((tuple(batch[0].shape), getattr(self, "name", None) or type(self).__name__))
            return original(self, batch, batch_idx)

        return step

    for kind in (ImageClassifier, UnconstrainedFeatures):
        monkeypatch.setattr(kind, "training_step", watched(kind.training_step))
    return seen


# -- every recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in recipes()],
)
def test_every_recipe_trains_and_measures_through_the_real_command(
    name: str, fit: Fit, generated: Callable[[str], Path], steps: list[Step]
) -> None:
    generated(name)
    # Few for deep networks; files come class by class, six images of each.
    batch = {"cifar100": 4, "stl10": 4, "imagenet": 7}.get(name, 10)
    words = ["--trainer.fast_dev_run", "1", *CPU, *few_images(name, batch)]
    status, out, err = fit(name, *words, *one_way(name))
    assert status == 0, err
    assert [e for e in (0, 1) if re.search(rf"^ +{e} \|", out, re.MULTILINE)] == [0, 1]
    assert list(Path.cwd().iterdir()) == []  # a dry run is no run
    ((shape, network),) = steps
    config, way = config_of(name), [{}, *recipes()[name].ways.values()][-1]
    named = config["model"]["init_args"].get("name", network)
    assert network == way.get("model.name", named)
    if data_of(name) is data_modules.DigitsData:  # at hand as they are
        batch = way.get("data.batch_size", config["data"]["init_args"]["batch_size"])
    if name == "ufm":
        assert shape == (200,)
    else:
        assert shape == (batch, *((3, 72, 72) if name == "imagenet" else image_shape(name)))


REAL: Final = [
    name
    for name in recipes()
    if data_of(name).__name__ in ("MNISTData", "FashionMNISTData", "CIFAR10Data")
]


@pytest.fixture
def real(
    request: pytest.FixtureRequest, image_root: Callable[[str], Path]
) -> tuple[str, tuple[str, ...]]:
    """Give a recipe and the options that make it find its real images."""
    root = image_root(data_of(request.param).__name__.removesuffix("Data"))
    return request.param, ("--data.root", str(root), "--data.download", "false")


@pytest.mark.parametrize(
    "real",
    [
        pytest.param(
            n,
            marks=[]
            if n in ("mnist_quick", "cifar10_quick", "fashion_mnist")
            else [pytest.mark.slow],
        )
        for n in REAL
    ],
    indirect=True,
)
def test_recipes_of_real_images_take_two_steps(
    real: tuple[str, tuple[str, ...]],  # before fit, which hides where the real images are
    fit: Fit,
    steps: list[Step],
) -> None:
    name, where = real
    limit = "300" if "imbalance" in config_of(name)["data"]["init_args"] else "32"
    few = ["--data.limit", limit, "--data.val_limit", "16", "--data.batch_size", "16"]
    words = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", *few]
    words += ["--trainer.callbacks", "null", *one_way(name)]
    status, _, err = fit(name, *CPU, *words, *where)
    assert status == 0, err
    assert [shape for shape, _ in steps] == [(16, *image_shape(name))] * 2
    (folder,) = Path.cwd().glob(f"runs/{name}/*")
    last = read_history(folder).query("split == 'train'").iloc[-1]
    assert (last["epoch"], last["step"]) == (1, 2)
    assert 0 <= last["error"] <= 1
    assert np.isfinite(last[["nc1", "nc2_etf_means", "nc3_self_duality"]].astype(float)).all()


# -- what the recipes are --------------------------------------------------------------------------


def test_the_papers_networks_are_those_that_the_claims_name() -> None:
    assert {n: set(r.networks) for n, r in recipes().items() if r.networks} == NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"),
    [(n, network) for n, networks in NETWORKS.items() for network in sorted(networks)],
)
def test_every_network_of_a_recipe_maps_its_images_to_logits(name: str, network: str) -> None:
    options = config_of(name)["model"]["init_args"] | {"name": network}
    data: type[ImageData] = data_of(name)
    shape = image_shape(name)
    with torch.device("meta"):  # shapes without numbers: ResNet-152 in no time
        model = ImageClassifier(**options, classes=data.num_classes, image_shape=shape)
        logits = model(torch.empty(2, *shape))
    assert logits.shape == (2, data.num_classes)
    assert model.classifier.out_features == data.num_classes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_papers_recipes_follow_its_protocol(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", name, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    large = name == "imagenet"
    assert [model["name"]] == [network for network in NETWORKS[name] if "resnet" in network]
    assert (model["loss"], model["optimizer"], model["momentum"]) == ("cross_entropy", "sgd", 0.9)
    assert model["weight_decay"] == (1e-4 if large else 5e-4)
    assert model["schedule"] == "papyan"
    assert model["milestones"] == ([1 / 2, 3 / 4] if large else None)
    assert config["trainer"]["max_epochs"] == (300 if large else 350)
    assert data["batch_size"] == (256 if large else 128)
    assert data["per_class"] == {"mnist": 5000, "svhn": 4600, "imagenet": 600}.get(name)
    assert (data["augment"], data["random_labels"], data["label_noise"]) == (False, False, 0)
    assert data["drop_last"] is True  # as the authors' notebook
    assert config["nc"]["schedule"] == "papyan"


def test_recipes_on_data_in_memory_name_its_download() -> None:
    for name, recipe in recipes().items():
        size = getattr(data_of(name), "megabytes", None)
        expected = {"imagenet": "by hand"}.get(name, f"{size:,} MB" if size else "none")
        assert recipe.short("download") == expected, name


def test_the_squared_loss_is_decomposed_with_the_lambda_it_is_trained_with() -> None:
    config = config_of("mnist_mse")
    model = config["model"]["init_args"]
    classes = data_of("mnist_mse").num_classes
    assert config["nc"]["ridge"] == ridge(
        model["loss"], weight_decay=model["weight_decay"], classes=classes
    )


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("mnist_mse", ["mse_l_nc1", "mse_l_nc23", "mse_l_perp", "central_path_dist"]),
        ("imbalanced", ["minority_cos", "norm_ratio", "seli_dist_w", "nc2_imbalance_floor"]),
    ],
)
def test_a_recipe_measures_what_it_is_about(
    name: str, columns: list[str], fit: Fit, generated: Callable[[str], Path]
) -> None:
    generated(name)
    words = ["--trainer.max_epochs", "1", "--trainer.callbacks", "null", "--model.name", "convnet"]
    assert fit(name, *CPU, *words, *few_images(name, batch=10))[0] == 0
    (folder,) = Path.cwd().glob(f"runs/{name}/*")
    train = read_history(folder).query("split == 'train'")
    assert np.isfinite(train[columns].to_numpy(dtype=float)).all()
    assert len(train) == 2


# -- misused ---------------------------------------------------------------------------------------


def refused(result: tuple[int, str, str]) -> str:
    """Return the one line in which a command was refused; nothing may be left behind."""
    status, out, err = result
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("ncmonitor: error: ")]
    assert "Traceback" not in out + err
    assert list(Path.cwd().iterdir()) == []
    return line


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10_quick", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat"),
        ("stl10", "stl10_binary.tar.gz"),
    ],
)
def test_missing_data_without_network_says_what_to_put_where(
    name: str, archive: str, fit: Fit, tmp_path: Path
) -> None:
    line = refused(fit(name, *CPU))
    assert "no route to host" in line
    assert archive in line
    assert str(tmp_path / "data") in line
    assert "--data.root or NCMONITOR_DATA" in line


def test_missing_photographs_say_which_folders_are_expected(fit: Fit, tmp_path: Path) -> None:
    line = refused(fit("imagenet", *CPU))
    assert f"expected images in {tmp_path}/data/imagenet/train/CLASS/" in line
    assert "--data.root" in line


def test_a_corrupt_archive_is_named(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    line = refused(fit("cifar10", *CPU))
    assert f"{tmp_path}/data/cifar-10-python.tar.gz is corrupt (its md5 sum is not" in line


def test_a_corrupt_file_is_named(fit: Fit, generated: Callable[[str], Path]) -> None:
    path = generated("mnist_quick") / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    assert f"{path} is corrupt (it does not have the size" in refused(fit("mnist_quick", *CPU))


def test_a_root_that_cannot_be_written_is_refused(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    line = refused(fit("svhn", *CPU))
    assert f"cannot write to the data folder {tmp_path}/data" in line
    assert "--data.root or NCMONITOR_DATA" in line


MISTAKES: Final = {
    "stl10 --model.stem small": "resnet50 with the small-image stem computes its first stage at 96",
    "stl10 --model.name vgg13 --model.stem small": "vgg13 has no choice of stems",
    "mnist --data.image_size 16 --model.name vgg11": "pad them (--data.image_size 32)",
    "mnist --data.per_class 7": "per_class is 7, but the smallest class (0) has 6 training images",
    "imbalanced --data.imbalance_ratio 7 --data.per_class 6": "use a ratio of at most 6",
    "imbalanced --data.imbalance steps": "imbalance must be exponential or step, but is 'steps'; "
    "did you mean 'step'?",
    "mnist --model.name resnet19": "unknown network 'resnet19'",
    "mnist_mse --model.loss mse_meen": "unknown loss 'mse_meen'",
    "fashion-mnist": "did you mean 'fashion_mnist'",
    "mnist --model.schedule papian": "did you mean 'papyan'?",
    "mnist_mse --nc.metrics [loss_awareness]": "did you mean 'loss_aware'",
    "cifar10 --data.normalize pixels": "did you mean 'pixel'",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_what_cannot_work_is_refused_in_one_line(
    words: str, fit: Fit, generated: Callable[[str], Path]
) -> None:
    name, *options = words.split()
    if name in recipes():
        generated(name)
        options = [*CPU, *few_images(name, batch=10), *options]
    assert MISTAKES[words] in refused(fit(name, *options))
