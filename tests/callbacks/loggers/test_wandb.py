"""The W&B offline run, read back with W&B's own reader."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

import ncmonitor
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.loggers.wandb_runs import continue_run, wandb_id
from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, PHASE_NAMES
from ncmonitor.errors import InputError
from toys import CLASSES, Toy, train_loader, trainer, val_loader
from wandb_files import definitions, offline_run, records, summary

EPOCHS = 6


def fitted(folder: Path, monitor: NeuralCollapse, *callbacks: pl.Callback) -> Path:
    """Train with a W&B logger in a folder and return the offline run."""
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    fit = trainer(monitor, *callbacks, max_epochs=EPOCHS, logger=logger)
    fit.fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    return offline_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NeuralCollapse]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wandb")
    monitor = NeuralCollapse(run_dir=folder, verbose=False)
    return fitted(folder, monitor), monitor


def keys(monitor: NeuralCollapse) -> set[str]:
    names = [*FIT_NAMES, *METRIC_NAMES]
    expected = {f"nc/train/{name}" for name in names} | {f"nc/tpt/{name}" for name in PHASE_NAMES}
    return expected | {f"nc/val/{n}" for n in names if not CATALOGUE[n].once}


def test_every_epoch_is_there_under_exactly_the_keys_of_the_design(
    run: tuple[Path, NeuralCollapse],
) -> None:
    folder, monitor = run
    rows = [record["item"] for record in records(folder, "history")]
    measured = [row for row in rows if "nc/train/nc1" in row]
    assert [row["nc/epoch"] for row in measured] == list(range(EPOCHS + 1))
    logged = {key for row in measured for key in row if key.startswith("nc/")}
    assert logged == keys(monitor) | {"nc/epoch"}
    train = monitor.history.query("split == 'train'")
    assert [row["nc/train/nc1"] for row in measured] == train["nc1"].tolist()


def test_every_chart_has_completed_epochs_as_its_x_axis(run: tuple[Path, NeuralCollapse]) -> None:
    folder, monitor = run
    named = definitions(folder)
    assert {key for key in named if key.startswith("nc/")} >= keys(monitor)
    assert {named[key]["step_metric"] for key in keys(monitor)} == {"nc/epoch"}
    assert not any(r.get("glob_name", "").startswith("nc") for r in records(folder, "metric"))


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
    assert config["convention"] == "per_class"
    assert config["prefix"] == "nc"
    assert config["versions"]["wandb"] == metadata.version("wandb")
    assert config["ncmonitor"] == ncmonitor.__version__


def test_the_onset_is_a_step_in_the_charts_and_a_number_in_config_and_summary(
    run: tuple[Path, NeuralCollapse],
) -> None:
    folder, monitor = run
    onset = monitor.history["tpt_start_exact"].iloc[-2]
    assert 0 < onset < EPOCHS
    whole = summary(folder)
    assert whole["config"]["ncmonitor"]["tpt_start_exact"] == onset
    assert whole["summary"]["nc/tpt/tpt_start_exact"] == {"last": onset}
    rows = [record["item"] for record in records(folder, "history")]
    step = [(row["nc/epoch"], row["nc/tpt/onset"]) for row in rows if "nc/tpt/onset" in row]
    assert step == [(onset - 1, 0.001), (onset, 1)]
    [definition] = [m for m in records(folder, "metric") if m.get("name") == "nc/tpt/onset"]
    assert definition["step_metric"] == "nc/epoch"


def test_the_table_at_the_end_is_the_history(run: tuple[Path, NeuralCollapse]) -> None:
    folder, monitor = run
    kept = summary(folder)["summary"]
    table = json.loads((folder / "files" / kept["nc_media/history"]["path"]).read_text())
    frame = pd.DataFrame(table["data"], columns=table["columns"])
    history = monitor.history.dropna(axis="columns", how="all")
    pd.testing.assert_frame_equal(frame, history, check_dtype=False)


def test_the_chart_at_the_end_has_the_onset_as_a_vertical_line(
    run: tuple[Path, NeuralCollapse],
) -> None:
    folder, monitor = run
    kept = summary(folder)["summary"]["nc_media/collapse_table"]
    table = json.loads((folder / "files" / kept["path"]).read_text())
    frame = pd.DataFrame(table["data"], columns=table["columns"])
    train = monitor.history.query("split == 'train'")
    nc1 = frame.query("lineKey == 'NC1'")
    assert nc1["step"].tolist() == train["epoch"].tolist()
    assert nc1["lineVal"].tolist() == pytest.approx(np.log10(train["nc1"]).tolist(), rel=1e-12)
    line = frame.query("lineKey == 'start of the terminal phase'")
    assert line["step"].tolist() == [monitor.history["tpt_start_exact"].iloc[-2]] * 2
    assert line["lineVal"].tolist() == sorted([frame["lineVal"].min(), frame["lineVal"].max()])


def test_a_run_without_tags_gets_some(run: tuple[Path, NeuralCollapse]) -> None:
    assert summary(run[0])["tags"] == ["neural-collapse", "convention:per_class"]


def test_tags_and_group_of_the_user_stay_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_TAGS", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "my-sweep")
    monitor = NeuralCollapse(run_dir=tmp_path, verbose=False)
    monitor.recipe = "digits"
    folder = fitted(tmp_path, monitor)
    assert summary(folder)["tags"] == ["mine"]
    assert summary(folder)["config"]["ncmonitor"]["recipe"] == "digits"
    assert records(folder, "run")[-1]["run_group"] == "my-sweep"


def test_a_user_stop_keeps_the_table(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("power cut")

    monitor = NeuralCollapse(run_dir=tmp_path, verbose=False)
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(monitor, Stop(), logger=logger).fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    kept = summary(offline_run(tmp_path))["summary"]["nc_media/history"]
    assert kept["nrows"] == 4  # two epochs of two splits


# -- resume ----------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint after two epochs in the W&B run ``first``."""
    monitor = NeuralCollapse(run_dir=tmp_path / "nc", verbose=False)
    logger = WandbLogger(project="test", save_dir=tmp_path / "before", offline=True, id="first")
    fit = trainer(monitor, max_epochs=2, logger=logger)
    fit.fit(Toy(), train_loader(), val_loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    logger.experiment.finish()
    return tmp_path / "last.ckpt"


@pytest.mark.slow
def test_a_resumed_fit_goes_on_in_the_run_of_its_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wandb_id(checkpoint) == "first"
    logger = WandbLogger(project="test", save_dir=tmp_path / "after", offline=True)
    continue_run([logger], checkpoint)
    monitor = NeuralCollapse(run_dir=tmp_path / "nc", verbose=False)
    fit = trainer(monitor, max_epochs=EPOCHS, logger=logger)
    fit.fit(Toy(), train_loader(), val_loader(), ckpt_path=checkpoint)
    logger.experiment.finish()
    folder = offline_run(tmp_path / "after")
    assert "goes on as a new one" not in capsys.readouterr().out
    run = records(folder, "run")[-1]
    assert (run["run_id"], run["resume"]) == ("first", True)
    rows = [record["item"] for record in records(folder, "history")]
    assert [r["nc/epoch"] for r in rows if "nc/train/nc1" in r] == list(range(3, EPOCHS + 1))
    # The summary is that of the whole run: some minima are those of the part before.
    history = monitor.history.query("split == 'train'")
    falling = [name for name in METRIC_NAMES if CATALOGUE[name].collapse == 0]
    least = {name: history[name].min() for name in falling}
    whole = summary(folder)["summary"]
    assert {name: whole[f"nc/train/{name}"]["min"] for name in falling} == least
    assert any(history[name].iloc[:3].min() == least[name] for name in falling)
    # The onset was logged once: here, or in the part before the checkpoint.
    parts = [folder, offline_run(tmp_path / "before")]
    marks = [r["item"] for p in parts for r in records(p, "history") if "nc/tpt/onset" in r["item"]]
    assert len(marks) == 2


def test_a_resumed_fit_in_a_new_run_says_how_to_go_on_in_the_old_one(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path / "after", offline=True, id="second")
    continue_run([logger], checkpoint)  # an id of the user's own stays
    monitor = NeuralCollapse(run_dir=tmp_path / "nc", verbose=False)
    fit = trainer(monitor, max_epochs=3, logger=logger)
    fit.fit(Toy(), train_loader(), val_loader(), ckpt_path=checkpoint)
    said = "the W&B run first of the checkpoint goes on as a new one, second"
    assert f"{said}; to go on in the same: WandbLogger(id='first')" in capsys.readouterr().out
    logger.experiment.finish()
    assert monitor.state_dict()["wandb"] == ["second"]


def test_the_id_survives_a_part_of_the_run_without_wandb(checkpoint: Path, tmp_path: Path) -> None:
    monitor = NeuralCollapse(run_dir=tmp_path / "nc", verbose=False)
    trainer(monitor, max_epochs=3).fit(Toy(), train_loader(), val_loader(), ckpt_path=checkpoint)
    assert monitor.state_dict()["wandb"] == ["first"]


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"last\.ckpt is no checkpoint that can be read"):
        wandb_id(path)
    torch.save({"state_dict": {}}, path)
    assert wandb_id(path) is None
