"""The W&B offline run, read back with W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import WandbLogger

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, PHASE_NAMES
from toys import CLASSES, Toy, train_loader, trainer, val_loader

EPOCHS = 6


def inspect(run: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, inspect(run).splitlines())
    return [record[kind] for record in lines if record["type"] == kind]


def summary(run: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(inspect(run, "--summary"))
    return whole


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NeuralCollapse]:
    folder = tmp_path_factory.mktemp("wandb")
    monitor = NeuralCollapse(run_dir=folder, verbose=False)
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    trainer(monitor, max_epochs=EPOCHS, logger=logger).fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    return next((folder / "wandb").glob("offline-run-*")), monitor


def keys(monitor: NeuralCollapse) -> set[str]:
    names = [*FIT_NAMES, *METRIC_NAMES]
    expected = {f"nc/train/{name}" for name in names} | {f"nc/tpt/{name}" for name in PHASE_NAMES}
    return expected | {f"nc/val/{n}" for n in names if not CATALOGUE[n].once}


def test_every_epoch_is_there_under_exactly_the_keys_of_the_design(
    run: tuple[Path, NeuralCollapse],
) -> None:
    folder, monitor = run
    rows = [record["item"] for record in records(folder, "history")]
    measured = [row for row in rows if "nc/epoch" in row]
    assert [row["nc/epoch"] for row in measured] == list(range(EPOCHS + 1))
    logged = {key for row in measured for key in row if key.startswith("nc/")}
    assert logged == keys(monitor) | {"nc/epoch"}
    train = monitor.history.query("split == 'train'")
    assert [row["nc/train/nc1"] for row in measured] == train["nc1"].tolist()


def test_every_chart_has_completed_epochs_as_its_x_axis(run: tuple[Path, NeuralCollapse]) -> None:
    folder, monitor = run
    metrics = records(folder, "metric")
    named = {record["name"]: record for record in metrics if "name" in record}
    assert {key for key in named if key.startswith("nc/")} >= keys(monitor)
    assert {named[key]["step_metric"] for key in keys(monitor)} == {"nc/epoch"}
    assert not any(r.get("glob_name", "").startswith("nc") for r in metrics)


def test_the_summary_keeps_the_best_and_the_last_value(run: tuple[Path, NeuralCollapse]) -> None:
    folder, monitor = run
    kept = summary(folder)["summary"]
    nc1 = monitor.history.query("split == 'train'")["nc1"]
    assert kept["nc/train/nc1"] == {"min": nc1.min(), "last": nc1.iloc[-1]}
    assert kept["nc/train/ncc_accuracy"] == {"last": 1.0}


def test_the_config_says_how_it_was_measured(run: tuple[Path, NeuralCollapse]) -> None:
    folder, _ = run
    config = summary(folder)["config"]["ncmonitor"]
    assert config["classifier"] == "head"
    assert config["num_classes"] == CLASSES
    assert config["convention"] == "balanced"
