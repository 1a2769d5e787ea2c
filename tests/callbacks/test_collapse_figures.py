"""CollapseFigures on real, tiny fits: what it keeps, draws and sends, and what it leaves alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.testing import assert_allclose
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from ncmonitor import InputError
from ncmonitor.callbacks import CollapseFigures, NeuralCollapse
from ncmonitor.callbacks.figures import gallery as figure_gallery
from ncmonitor.callbacks.figures import snapshot_accumulator as figure_sketch
from ncmonitor.callbacks.figures.drawing import DEFAULT, FIGURES
from ncmonitor.callbacks.figures.time_share import Allowance
from ncmonitor.monitor.schedule import is_due, scheduled_epochs
from ncmonitor.monitor.snapshots.snapshot import (
    SNAPSHOT_FILE,
    Snapshot,
    read_snapshots,
    take_snapshot,
)
from toys import (
    Recording,
    Toy,
    TrainOnly,
    blobs,
    measured_order,
    train_loader,
    trainer,
    val_loader,
)
from wandb_files import offline_run, records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def watch(**options: Any) -> NeuralCollapse:
    settings: dict[str, Any] = {"run_dir": "run", "verbose": False, "splits": ("train",)}
    return NeuralCollapse(**settings | options)


def quick(schedule: Any = 1, **options: Any) -> CollapseFigures:
    """Without a limit of time, and with the pictures that are drawn fastest."""
    settings: dict[str, Any] = {"figures": ("simplex", "spectrum"), "share": 1}
    return CollapseFigures(schedule, **settings | options)


def kept(schedule: Any = 1, **options: Any) -> CollapseFigures:
    """Takes snapshots and draws nothing."""
    settings: dict[str, Any] = {"figures": ()}
    return CollapseFigures(schedule, **settings | options)


def fitted(*callbacks: pl.Callback, module: Toy | None = None, **options: Any) -> pl.Trainer:
    fit = trainer(*callbacks, **options)
    fit.fit(module or TrainOnly(), train_loader())
    return fit


def epochs_of(folder: str | Path = "run") -> list[int]:
    return [snapshot.epoch for snapshot in read_snapshots(folder)]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Draw nothing from now on, and list what would have been drawn after which epoch."""
    calls: list[tuple[str, int]] = []

    def note(name: str, folder: Path, snapshot: Snapshot, history: Any, names: Any) -> Any:
        assert history["epoch"].max() == snapshot.epoch
        calls.append((name, snapshot.epoch))
        raise NotDrawnError

    monkeypatch.setattr(figure_gallery, "draw", note)
    monkeypatch.setattr(figure_gallery.Gallery, "warn", lambda *_: None)
    return calls


class NotDrawnError(Exception):
    """Instead of a picture."""


# -- it leaves no trace ----------------------------------------------------------------------------


def everything_after_a_fit(*callbacks: pl.Callback) -> dict[str, Any]:
    pl.seed_everything(7, verbose=False)
    module, data = Toy(), Recording()
    fit = trainer(*callbacks)
    fit.fit(module, train_loader(data), val_loader())
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "optimizer": fit.optimizers[0].state_dict(),
        "losses": module.losses,
        "modes": [m.training for m in module.modules()],
        "torch": torch.get_rng_state(),
        "numpy": list(np.random.get_state(legacy=False)["state"]["key"]),  # noqa: NPY002
        "python": random.getstate(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "order": data.order,
    }


def test_training_is_bit_identical_and_no_sample_is_read_for_a_picture() -> None:
    alone = everything_after_a_fit()
    monitor = watch(layers="body.2", null_seed=0)
    watched = everything_after_a_fit(monitor)
    figures = quick(3, figures="all")
    pictured_monitor = watch(run_dir="other", layers="body.2", null_seed=0)
    pictured = everything_after_a_fit(figures, pictured_monitor)
    torch.testing.assert_close(pictured, watched, rtol=0, atol=0)
    same = {k: v for k, v in pictured.items() if k != "order"}
    torch.testing.assert_close(same, {k: alone[k] for k in same}, rtol=0, atol=0)
    rows = [m.history.drop(columns="seconds") for m in (monitor, pictured_monitor)]
    assert rows[0].equals(rows[1])
    assert sorted(p.stem for p in Path("other/figures").iterdir()) == sorted(FIGURES)


def test_no_setting_of_matplotlib_changes_and_no_figure_stays_open() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = mpl.rcParams.copy()
    fitted(watch(), CollapseFigures(figures="all"), max_epochs=1)
    assert mpl.rcParams == before
    assert pyplot.get_fignums() == []


# -- the snapshots ---------------------------------------------------------------------------------


def by_hand(module: Toy, epoch: int, **options: Any) -> Snapshot:
    inputs, labels = (each[measured_order(45)] for each in blobs())  # the first are shown
    module.eval()
    with torch.no_grad():
        features = module.body(inputs)
    return take_snapshot(features, labels, module.head.weight, epoch=epoch, **options)


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for name, value in vars(other).items():
        if isinstance(value, np.ndarray):
            scale = float(np.abs(value).max())
            assert_allclose(getattr(one, name), value, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        else:
            assert getattr(one, name) == value, name


@pytest.mark.parametrize(
    ("options", "figures_first"),
    [
        ({}, False),
        ({}, True),
        ({"cache_bytes": 0}, True),
        ({"layers": "all", "null_seed": 0}, False),
        ({"online": True}, False),
        ({"convention": "per_sample", "metrics": "all"}, False),
    ],
)
def test_a_snapshot_is_that_of_features_collected_by_hand(
    options: dict[str, Any], figures_first: bool
) -> None:
    callbacks: list[pl.Callback] = [watch(**options), kept(corners=[2, 0], points_per_class=4)]
    module = TrainOnly()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "features take .* the network runs a second time")
        fitted(*(callbacks[::-1] if figures_first else callbacks), module=module)
    last = read_snapshots("run")[-1]
    assert last.epoch == 3
    assert last.points.shape == (8, 1)
    assert_same(last, by_hand(module, 3, corners=[2, 0], points_per_class=4))


def test_the_first_three_classes_are_the_corners() -> None:
    module = TrainOnly()
    fitted(watch(), kept(), module=module)
    assert_same(read_snapshots("run")[-1], by_hand(module, 3))


def test_a_snapshot_has_the_weights_that_are_measured() -> None:
    @contextmanager
    def turned(trainer: pl.Trainer, module: Any) -> Iterator[None]:
        with torch.no_grad():
            module.head.weight.neg_()
        yield
        with torch.no_grad():
            module.head.weight.neg_()

    module = TrainOnly()
    fitted(watch(weights=turned), kept(), module=module)
    last, plain = read_snapshots("run")[-1], by_hand(module, 3)
    assert last.cross is not None
    assert plain.cross is not None
    assert_allclose(last.cross, -plain.cross, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("drawn_at", "schedule", "expected"),
    [
        (2, 1, [0, 2, 4, 6, 7]),
        ([3, 5], 1, [0, 3, 5, 7]),
        ([2, 5], [1, 3, 4, 6], [0, 3, 6, 7]),  # the next measured epoch stands for one that is not
        (1, 3, [0, 3, 6, 7]),  # nothing is measured on its behalf
        ("log", 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_its_schedule_chooses_among_the_measured_epochs(
    drawn_at: Any, schedule: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn(monkeypatch)
    monitor = watch(schedule=schedule)
    fitted(monitor, quick(drawn_at, figures="simplex"), max_epochs=7)
    assert epochs_of() == expected
    assert calls == [("simplex", epoch) for epoch in expected]
    measured = range(8) if schedule == 1 else {0, 7, *([3, 6] if schedule == 3 else schedule)}
    assert monitor.history["epoch"].tolist() == sorted(measured)


def test_the_last_epoch_is_there_when_training_stops_early() -> None:
    stop = EarlyStopping("nc/train/nc1", patience=1, min_delta=10.0)
    fitted(watch(), kept([4]), stop, max_epochs=9)
    assert epochs_of() == [0, 2]


def test_a_run_without_an_end_has_a_logarithmic_schedule_too() -> None:
    plan = scheduled_epochs("log", -1, endless=True)
    assert isinstance(plan, frozenset)
    assert {1, 2, 3, 4, 5, 6} <= plan
    assert 40 < len([epoch for epoch in plan if epoch <= 1000]) < 60
    fitted(watch(), kept("log"), max_epochs=-1, max_steps=6)
    assert epochs_of() == [0, 1, 2]


def test_what_is_due_is_what_was_scheduled_since() -> None:
    assert is_due(10, 20, 19, 100)
    assert is_due(10, 23, 19, 100)
    assert not is_due(10, 29, 20, 100)
    assert is_due([7], 9, 6, 100)
    assert not is_due([7], 9, 7, 100)
    assert is_due([7], 100, 99, 100)
    assert is_due([7], 1, None, 100)


def test_a_failed_measurement_has_no_snapshot_and_the_next_one_has() -> None:
    class Fails(TrainOnly):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and self.trainer.global_step == 6:
                raise RuntimeError("boom")
            return super().forward(x)

    with pytest.warns(RuntimeWarning, match="train after epoch 2 is nan"):
        fitted(watch(), kept(), module=Fails())
    assert epochs_of() == [0, 1, 3]


# -- files -----------------------------------------------------------------------------------------


def test_a_resumed_run_continues_its_snapshots_and_drops_those_past_the_checkpoint() -> None:
    fit = fitted(watch(), kept([6]), max_epochs=3)
    fit.save_checkpoint("three.ckpt")
    whole = trainer(watch(), kept([6]), max_epochs=8)
    whole.fit(TrainOnly(), train_loader(), ckpt_path="three.ckpt")
    assert epochs_of() == [0, 3, 6, 8]

    class Stops(TrainOnly):
        def on_train_epoch_start(self) -> None:
            assert epochs_of() == [0, 3]
            raise KeyboardInterrupt

    again = trainer(watch(), kept([6]), max_epochs=8)
    with pytest.raises(SystemExit):
        again.fit(Stops(), train_loader(), ckpt_path="three.ckpt")
    assert epochs_of() == [0, 3]


def test_another_run_in_the_same_folder_sets_the_snapshots_aside() -> None:
    fitted(watch(), kept(), max_epochs=2)
    before = Path("run", SNAPSHOT_FILE).read_bytes()
    fitted(watch(), kept(2), max_epochs=3)
    assert epochs_of() == [0, 2, 3]
    assert Path("run/snapshots.1.jsonl").read_bytes() == before
    assert Path("run/history.1.csv").exists()


def test_stale_or_damaged_lines_do_not_survive_the_start_of_a_run() -> None:
    Path("run").mkdir()
    Path("run", SNAPSHOT_FILE).write_text('{"epoch": 0}\nnot json\n{"epoch": 5, "spl')
    fitted(watch(), kept(), max_epochs=1)
    assert epochs_of() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_is_a_file_and_shows_something(name: str) -> None:
    fitted(watch(layers="body.2"), CollapseFigures(1, figures=name), max_epochs=2)
    [path] = Path("run/figures").iterdir()
    assert path.name == (f"{name}.gif" if name == "animation" else f"{name}.png")
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == (3 if name == "animation" else 1)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels != 255).any(axis=1).mean() > 0.005
    assert len(np.unique(pixels, axis=0)) > 10


def test_layers_are_left_out_where_none_are_measured() -> None:
    fitted(watch(), quick(figures=["layers", "simplex"]), max_epochs=1)
    assert [path.name for path in Path("run/figures").iterdir()] == ["simplex.png"]


def test_without_figures_there_are_snapshots_alone() -> None:
    fitted(watch(), kept(), max_epochs=1)
    assert {path.name for path in Path("run").iterdir()} == {
        "history.csv", "run.json", SNAPSHOT_FILE,
    }  # fmt: skip


def test_a_dry_run_leaves_nothing() -> None:
    fitted(watch(), quick(), fast_dev_run=2)
    assert not Path("run").exists()


# -- loggers ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_has_every_picture_in_a_row_with_its_epoch() -> None:
    logger = WandbLogger(project="test", save_dir=".", offline=True)
    fit = trainer(watch(layers="body.2"), quick(3, figures="all"), logger=logger)
    fit.fit(TrainOnly(), train_loader())
    logger.experiment.finish()
    rows = [record["item"] for record in records(offline_run(Path()), "history")]
    pictured = [row for row in rows if "nc_media/simplex.path" in row]
    assert [row["nc/epoch"] for row in pictured] == [0, 3]
    still = [name for name in FIGURES if name != "animation"]
    for row in pictured:
        assert {row[f"nc_media/{name}._type"] for name in still} == {"image-file"}
    [last] = [row for row in rows if "nc_media/animation.path" in row]
    assert (last["nc_media/animation._type"], last["nc/epoch"]) == ("video-file", 3)
    files = offline_run(Path()) / "files"
    assert (files / last["nc_media/animation.path"]).read_bytes()[:3] == b"GIF"
    different = {(files / row["nc_media/simplex.path"]).read_bytes() for row in pictured}
    assert len(different) == 2
    measured = [row["nc/epoch"] for row in rows if "nc/train/nc1" in row]
    assert measured == [0, 1, 2, 3]  # no row was lost to a picture


def test_tensorboard_has_the_pictures_under_the_same_keys() -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(".")
    fit = trainer(watch(), quick(2), logger=[CSVLogger("."), logger])
    fit.fit(TrainOnly(), train_loader())
    logger.finalize("success")
    log = events.EventAccumulator(str(logger.log_dir), {"images": 0}).Reload()
    assert sorted(log.Tags()["images"]) == ["nc_media/simplex", "nc_media/spectrum"]
    shown = log.Images("nc_media/simplex")
    assert [event.step for event in shown] == [0, 6, 9]
    with Image.open("run/figures/simplex.png") as image:
        assert (shown[-1].width, shown[-1].height) == image.size


class MLFlowLogger(CSVLogger):
    """MLflow's by name, with a client that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(".")
        self.run_id = "an-id"
        self.got: list[tuple[str, ...]] = []

    @property
    def experiment(self) -> Any:
        return self

    def log_metrics(self, *_: Any, **__: Any) -> None: ...
    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...
    def save(self) -> None: ...

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        figure.savefig("figure.png")
        self.got.append((run_id, artifact_file))

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
        self.got.append((run_id, Path(local_path).name, artifact_path))


def test_mlflow_gets_figures_and_the_animation() -> None:
    logger = MLFlowLogger()
    fit = trainer(watch(), quick(3, figures=["simplex", "animation"]), logger=logger)
    fit.fit(TrainOnly(), train_loader())
    assert logger.got == [
        ("an-id", "nc_media/simplex/epoch-00000.png"),
        ("an-id", "nc_media/simplex/epoch-00003.png"),
        ("an-id", "animation.gif", "nc_media/animation"),
    ]


def test_each_of_two_monitors_has_pictures_of_its_own() -> None:
    monitors = [watch(), watch(run_dir="other", prefix="nc_raw")]
    fitted(*monitors, kept(2), kept(3, prefix="nc_raw"))
    assert (epochs_of(), epochs_of("other")) == ([0, 2, 3], [0, 3])


# -- what fails ------------------------------------------------------------------------------------


def test_a_picture_that_fails_is_one_warning_and_the_others_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("ncmonitor.plots.simplex", broken)
    with pytest.warns(RuntimeWarning) as caught:
        fit = fitted(watch(on_error="raise"), quick())
    said = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert said == ["the figure 'simplex' is not drawn, training goes on: RuntimeError: no ink"]
    assert fit.current_epoch == 3
    assert [path.name for path in Path("run/figures").iterdir()] == ["spectrum.png"]


@pytest.mark.parametrize("place", ["_begin", "_finished"])
def test_a_snapshot_that_fails_is_one_warning_and_the_numbers_are_there(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(figure_sketch.Sketch, place, broken)
    monitor = watch(on_error="raise")
    with pytest.warns(RuntimeWarning, match="no snapshot is taken.*boom") as caught:
        fitted(monitor, kept())
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert monitor.history["nc1"].notna().all()


def test_a_disk_or_a_logger_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    class Full(MLFlowLogger):
        log_figure = full

    monkeypatch.setattr(figure_gallery, "append_snapshot", full)
    fit = trainer(watch(), quick(), logger=Full())
    with pytest.warns(RuntimeWarning) as caught:
        fit.fit(TrainOnly(), train_loader())
    assert [str(w.message) for w in caught if "no space" in str(w.message)] == [
        "a snapshot is not written, training goes on: OSError: no space left",
        "MLFlowLogger gets no pictures, training goes on: OSError: no space left",
    ]
    assert Path("run/figures/simplex.png").exists()


def test_a_fit_that_fails_leaves_the_monitor_as_it_was() -> None:
    class Breaks(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("a bug")

    monitor = watch()
    with pytest.raises(RuntimeError, match="a bug"):
        fitted(monitor, kept(), module=Breaks())
    assert (monitor.factories, monitor.after_measurement) == ([], [])
    fitted(monitor, kept())
    assert (monitor.factories, monitor.after_measurement) == ([], [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "weekly"}, "schedule= must be 'every_epoch'.*'weekly'"),
        ({"schedule": 0}, "schedule= as a period"),
        ({"figures": "simplx"}, "got 'simplx'; did you mean 'simplex'"),
        ({"corners": [1]}, "two to four different classes"),
        ({"points_per_class": -1}, "at least 0"),
        ({"share": 5}, r"share= must lie in \[0, 1\], but is 5"),
        ({"corners": [0, 2], "names": ["a", "b"]}, "has 2, and corners= takes class 2"),
    ],
)
def test_a_wrong_setting_is_explained_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CollapseFigures(**settings)


def test_it_is_refused_before_training_without_its_monitor_or_its_corners() -> None:
    with pytest.raises(InputError, match="which this trainer lacks"):
        fitted(kept())
    with pytest.raises(InputError, match=r"prefix= .*\('nc'\), but is 'other'"):
        fitted(watch(), kept(prefix="other"))
    module = TrainOnly()
    with pytest.raises(InputError, match="class 7 has none in train; choose among 0, 1, 2"):
        fitted(watch(), kept(corners=[0, 7]), module=module)
    assert not module.losses


# -- time ------------------------------------------------------------------------------------------


def test_a_short_fit_draws_its_last_epoch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch)
    fitted(watch(), CollapseFigures(1))
    assert epochs_of() == [0, 1, 2, 3]
    assert calls == [(name, 3) for name in DEFAULT]


def test_the_first_snapshot_is_drawn_before_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch)
    answers = iter([False, False, True, True, False])
    monkeypatch.setattr(Allowance, "covers", lambda self: next(answers))
    fitted(watch(), CollapseFigures(1, figures="phase"), max_epochs=4)
    assert [epoch for _, epoch in calls] == [0, 3, 4]


def test_drawing_stays_within_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    allowance, times = Allowance(0.05), []
    while now[0] < 1000:
        now[0] += 1
        if allowance.covers():
            times.append(now[0])
            with allowance.drawing():
                now[0] += 3
    with allowance.drawing():
        now[0] += 3
    allowance.end()
    assert len(times) > 13
    assert 0.04 < allowance.overhead.share <= 0.05
    assert allowance.overhead.seconds == 3 * (len(times) + 1)


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.ddp
@pytest.mark.slow
def test_under_ddp_the_snapshots_are_those_of_one_process(tmp_path: Path) -> None:
    worker = ROOT / "tests" / "support" / "figures_worker.py"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{worker.parent}"}
    command = [sys.executable, str(worker), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    snapshots = read_snapshots(tmp_path / "run")
    assert [snapshot.epoch for snapshot in snapshots] == [0, 1, 2, 3]
    module = Toy()
    module.load_state_dict(torch.load(tmp_path / "figures.pt", weights_only=True))
    inputs, labels = blobs()
    order = labels.argsort(stable=True)  # rank zero has no sample of class 2
    module.eval()
    with torch.no_grad():
        features = module.body(inputs[order])
    expected = take_snapshot(
        features, labels[order], module.head.weight, epoch=3, corners=[2, 1], points_per_class=9
    )
    assert expected.points.shape == (18, 1)
    assert_same(snapshots[-1], expected)
    told = [json.loads((tmp_path / f"{fit}.json").read_text()) for fit in ("alone", "figures")]
    assert told[0] == told[1]
    weights = [
        torch.load(tmp_path / f"{fit}.pt", weights_only=True) for fit in ("alone", "figures")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    # A rank on which the snapshot fails takes it, and nothing else, from all.
    failed = json.loads((tmp_path / "fails.json").read_text())
    assert failed["nc1"] == 4
    assert failed["warnings"] == [
        "no snapshot is taken, training goes on: MeasurementError: on rank 1: no sketch here"
    ]
    assert not (tmp_path / "fails" / SNAPSHOT_FILE).exists()
    assert failed["refused"].startswith("InputError: corners= must be classes with samples")
