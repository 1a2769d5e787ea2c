"""The callback in a LightningCLI of one's own, of both distributions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.monitor.history import read_history
from toys import blobs, val_blobs

pytestmark = [
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning.cli"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.pytorch.cli"),
]
CALLBACK = "ncmonitor.callbacks.NeuralCollapse"
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=4",
)


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def cli(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, type, type]:
    """Return LightningCLI, a module and a data module of one distribution, in an empty folder."""
    lightning: ModuleType = pytest.importorskip(request.param)
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit.py"])  # or LightningCLI warns that args= replace it

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, width), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(x).relu())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Blobs(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(*blobs()), 15)

        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(*val_blobs()), 15)

    return importlib.import_module(f"{request.param}.cli").LightningCLI, Net, Blobs


def run(cli: tuple[Any, type, type], *words: str) -> NeuralCollapse:
    make, module, data = cli
    done = make(
        module, data, save_config_callback=None, seed_everything_default=False,
        args=["fit", *QUIET, *words],
    )  # fmt: skip
    (monitor,) = (each for each in done.trainer.callbacks if isinstance(each, NeuralCollapse))
    return monitor


def test_appended_on_the_command_line(cli: tuple[Any, type, type]) -> None:
    monitor = run(
        cli,
        f"--trainer.callbacks+={CALLBACK}",
        "--trainer.callbacks.schedule=2",
        "--trainer.callbacks.run_dir=run",
        "--trainer.callbacks.metrics=[vci]",
        "--trainer.callbacks.verbose=false",
    )
    assert monitor.history["epoch"].tolist() == [0, 0, 2, 2, 4, 4]
    assert monitor.history["split"].tolist() == ["train", "val"] * 3
    assert monitor.history.query("split == 'train'")["vci"].notna().all()
    assert read_history("run")["epoch"].tolist() == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [("every_epoch", [0, 1, 2, 3, 4]), (3, [0, 3, 4]), ([1, 2], [0, 1, 2, 4]), ("log", None)],
)
def test_from_a_file(cli: tuple[Any, type, type], schedule: Any, epochs: list[int] | None) -> None:
    options = {
        "schedule": schedule, "splits": ["train"], "run_dir": "run", "classifier": "head",
        "num_classes": 3, "null_seed": 1, "verbose": False, "on_error": "raise",
    }  # fmt: skip
    callbacks = [{"class_path": CALLBACK, "init_args": options}]
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    monitor = run(cli, "--config=mine.yaml")
    history = monitor.history.query("split == 'train'")
    assert history["epoch"].tolist() == (epochs or [0, 1, 2, 3, 4])
    assert set(monitor.history["split"]) == {"train", "null"}
    assert monitor.run_dir == Path("run")


def test_beside_a_monitor_of_the_same_distribution(cli: tuple[Any, type, type]) -> None:
    package = cli[0].__module__.removesuffix(".cli")
    callbacks = [
        {
            "class_path": f"{package}.callbacks.EarlyStopping",
            "init_args": {"monitor": "nc/train/nc1", "stopping_threshold": 1e9},
        },
        {"class_path": CALLBACK, "init_args": {"run_dir": "run", "verbose": False}},
    ]
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert run(cli, "--config=mine.yaml").history["epoch"].tolist() == [0, 0, 1, 1]


def test_help_is_the_docstring(
    cli: tuple[Any, type, type], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(cli, "--trainer.callbacks.help", CALLBACK)
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    lines = str(NeuralCollapse.__doc__).splitlines()
    assert lines[0].removesuffix(".") in text
    for option in ("num_classes", "splits", "prefix", "verbose"):
        (words,) = (
            line.partition(": ")[2] for line in lines if line.strip().startswith(f"{option}:")
        )
        assert words in text
    for option in ("schedule", "dataloader", "batch_to_xy", "on_error", "null_seed"):
        assert f"--trainer.callbacks.{option}" in text


@pytest.mark.parametrize("wrong", ["schedule=sometimes", "splits=[val]", "on_error=never"])
def test_a_wrong_option_stops_before_the_fit(cli: tuple[Any, type, type], wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong.partition('=')[0]}= must be"):
        run(cli, f"--trainer.callbacks+={CALLBACK}", f"--trainer.callbacks.{wrong}")
    assert not [*Path.cwd().iterdir()]
