"""The callback on real, tiny fits: what it leaves alone, what it logs, what it survives."""

from __future__ import annotations

import math
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from ncmonitor import InputError, measure_collapse
from ncmonitor.callbacks import NeuralCollapse, run_log
from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, PHASE_NAMES
from ncmonitor.monitor import history
from ncmonitor.monitor.history import COLUMNS, read_history
from ncmonitor.monitor.provenance import read_run
from toys import (
    CLASSES,
    Recording,
    Toy,
    TrainOnly,
    blobs,
    measured_order,
    train_loader,
    trainer,
    val_blobs,
    val_loader,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fitted(*, max_epochs: int = 3, loader: Any = None, **options: Any) -> NeuralCollapse:
    monitor = NeuralCollapse(run_dir="run", verbose=False, **options)
    trainer(monitor, max_epochs=max_epochs).fit(Toy(), loader or train_loader(), val_loader())
    return monitor


# -- it leaves no trace ----------------------------------------------------------------------------


def everything_after_a_fit(*monitors: pl.Callback) -> dict[str, Any]:
    pl.seed_everything(7, verbose=False)
    module, data = Toy(), Recording(augment=True)
    fit = trainer(*monitors)
    fit.fit(module, train_loader(data), val_loader())
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "optimizer": fit.optimizers[0].state_dict(),
        "scheduler": fit.lr_scheduler_configs[0].scheduler.state_dict(),
        "losses": module.losses,
        "modes": [m.training for m in module.modules()],
        "torch": torch.get_rng_state(),
        "numpy": list(np.random.get_state(legacy=False)["state"]["key"]),  # noqa: NPY002
        "python": random.getstate(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "order": data.order,
    }


def without_measuring(order: list[int], size: int, epochs: int) -> list[int]:
    """Drop what the measurement read: each pass reads each sample once, around the epochs."""
    passes = measured_order(size).tolist()
    twice = [passes[place] for place in (0, size // 2, size - 1) for _ in range(2)]
    probe = [*passes[:16], *twice]  # a batch; and is there augmentation?
    assert order[: len(probe)] == probe
    rest = order[len(probe) :]
    kept: list[int] = []
    for epoch in range(epochs + 1):
        assert rest[:size] == passes
        kept += rest[size : 2 * size] if epoch < epochs else []
        rest = rest[2 * size :]
    assert not rest
    return kept


def test_training_with_the_monitor_is_bit_identical_to_training_without() -> None:
    alone = everything_after_a_fit()
    with pytest.warns(UserWarning, match="read twice differs .*pass dataloader="):
        watched = everything_after_a_fit(NeuralCollapse(run_dir="run", verbose=False))
    watched["order"] = without_measuring(watched["order"], size=45, epochs=3)
    torch.testing.assert_close(watched, alone, rtol=0, atol=0)


class Explodes(TrainOnly):
    """Fails in the middle of a measuring pass, after drawing from every generator."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.trainer.current_epoch == 1 and self.trainer.global_step > 3:
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
            raise RuntimeError("boom")
        return super().forward(x)


def test_a_failing_measurement_is_a_row_of_nan_and_the_training_goes_on_untouched() -> None:
    pl.seed_everything(7, verbose=False)
    monitor, module = NeuralCollapse(run_dir="run", verbose=False, splits=("train",)), Explodes()
    with pytest.warns(RuntimeWarning, match=r"train after epoch 2 is nan.*RuntimeError: boom"):
        trainer(monitor).fit(module, train_loader())
    failed = monitor.history.query("epoch == 2").iloc[0]
    assert failed[[*METRIC_NAMES, *FIT_NAMES, "tpt_active"]].isna().all()
    assert failed["wd_time"] > 0  # the clocks did not stop
    assert monitor.history.query("epoch == 3")["nc1"].notna().all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())

    pl.seed_everything(7, verbose=False)
    alone = TrainOnly()
    trainer().fit(alone, train_loader())
    assert module.losses == alone.losses
    torch.testing.assert_close(module.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_a_split_is_never_measured_against_the_means_of_older_weights() -> None:
    class FailsOnTrain(Toy):
        def forward(self, x: Tensor) -> Tensor:
            measuring = not self.training and self.trainer.state.stage == "validate"
            if measuring and self.trainer.global_step == 6 and len(x) == 16:
                raise RuntimeError("boom")
            return super().forward(x)

    monitor = NeuralCollapse(run_dir="run", verbose=False)
    with pytest.warns(RuntimeWarning, match="train after epoch 2"):
        trainer(monitor).fit(FailsOnTrain(), train_loader(), val_loader())
    assert monitor.history.groupby("epoch")["ncc_accuracy"].count().tolist() == [2, 2, 0, 2]


def test_a_loader_of_the_users_that_fails_later_is_a_row_of_nan() -> None:
    calls: list[int] = []

    def loader() -> DataLoader[Any]:
        calls.append(1)
        if len(calls) == 5:  # twice before training, then once per measurement
            raise OSError("the disk is gone")
        return train_loader()

    monitor = NeuralCollapse(run_dir="run", verbose=False, splits=("train",), dataloader=loader)
    with pytest.warns(RuntimeWarning, match="OSError: the disk is gone"):
        trainer(monitor).fit(TrainOnly(), train_loader())
    assert monitor.history["nc1"].isna().sum() == 1
    assert monitor.history["epoch"].tolist() == [0, 1, 2, 3]


def test_a_failing_measurement_can_be_made_to_stop_the_run() -> None:
    monitor = NeuralCollapse(run_dir="run", verbose=False, splits=("train",), on_error="raise")
    with pytest.raises(RuntimeError, match="boom"):
        trainer(monitor).fit(Explodes(), train_loader())


def test_non_finite_features_are_a_warning_and_nan() -> None:
    class Diverges(TrainOnly):
        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.inf)

    monitor = NeuralCollapse(run_dir="run", verbose=False, splits=("train",))
    with pytest.warns(RuntimeWarning, match="not finite"):
        trainer(monitor, max_epochs=2).fit(Diverges(), train_loader())
    assert monitor.history["nc1"].isna().tolist() == [False, False, True]


# -- it is exact -----------------------------------------------------------------------------------


def by_hand(module: Toy, inputs: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module.body(inputs)


def test_the_numbers_are_those_of_features_collected_by_hand() -> None:
    monitor, module = NeuralCollapse(run_dir="run", verbose=False), Toy()
    trainer(monitor).fit(module, train_loader(drop_last=True), val_loader())
    inputs, labels = blobs()
    head = (module.head.weight, module.head.bias)
    train = measure_collapse(by_hand(module, inputs), labels, *head)
    val_inputs, val_labels = val_blobs()
    features = by_hand(module, val_inputs)
    val = measure_collapse(features, val_labels, *head, reference=train.moments)
    own = measure_collapse(features, val_labels, *head)
    assert own.ncc_accuracy != val.ncc_accuracy  # or the reference could be left out unseen
    last = monitor.history.query("epoch == 3").set_index("split")
    for split, report in (("train", train), ("val", val)):
        row = last.loc[split]
        fit = {"error": report.error, "cross_entropy": report.cross_entropy}
        expected = {**report.as_dict(), **fit}
        for name, value in expected.items():
            if split == "val" and CATALOGUE[name].once:
                assert bool(pd.isna(row[name]))
            else:
                assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-12), (split, name)


def test_a_parametrised_head_is_read_anew_at_every_measurement() -> None:
    monitor, module = NeuralCollapse(run_dir="run", verbose=False), Toy()
    module.head = nn.utils.parametrizations.weight_norm(module.head)
    trainer(monitor).fit(module, train_loader(), val_loader())
    train = monitor.history.query("split == 'train'")
    rows = module.head.weight.detach().double()
    expected = rows.sum(0).norm() / (math.sqrt(CLASSES) * rows.norm())
    assert train["w_mean_ratio"].iloc[-1] == pytest.approx(expected.item(), rel=1e-6)
    assert train["wd_time"].isna().tolist() == [False, True, True, True]


def test_a_head_that_changes_when_it_is_read_is_left_alone() -> None:
    def train(*monitors: pl.Callback) -> Toy:
        pl.seed_everything(7, verbose=False)
        module = Toy()
        module.head = nn.utils.parametrizations.spectral_norm(module.head)  # type: ignore[assignment]
        trainer(*monitors).fit(module, train_loader(), val_loader())
        return module

    watched = train(NeuralCollapse(run_dir="run", verbose=False))
    torch.testing.assert_close(watched.state_dict(), train().state_dict(), rtol=0, atol=0)


def test_a_subset_sampler_keeps_its_subset() -> None:
    data = Recording()
    train = train_loader(data, shuffle=False, sampler=SubsetRandomSampler(range(30)))
    val = DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(range(30, 45)))
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    trainer(monitor, max_epochs=1).fit(Toy(), train, val)
    counts = monitor.history.query("epoch == 1").set_index("split")["min_class_count"]
    assert counts.to_dict() == {"train": 10, "val": 5}


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        while True:
            yield from zip(*blobs(), strict=True)


def test_data_without_an_end_is_measured_as_far_as_the_trainer_reads() -> None:
    monitor = NeuralCollapse(run_dir="run", verbose=False, splits=("train",))
    fit = trainer(monitor, max_epochs=1, limit_train_batches=3)
    fit.fit(TrainOnly(), DataLoader(Endless(), batch_size=15))
    assert monitor.history["min_class_count"].tolist() == [15, 15]

    monitor = NeuralCollapse(run_dir="other", verbose=False, splits=("train",))
    endless = trainer(monitor, max_epochs=-1, max_steps=4)
    with pytest.raises(InputError, match=r"may have no end.*limit_train_batches"):
        endless.fit(TrainOnly(), DataLoader(Endless(), batch_size=15))


def test_the_terminal_phase_is_timed_in_completed_epochs() -> None:
    monitor = fitted(max_epochs=12)
    train = monitor.history.query("split == 'train'").set_index("epoch")
    start = train.index[train["error"] == 0][0]
    assert train["tpt_start_exact"].dropna().unique().tolist() == [start]
    assert train["tpt_start_exact"].isna().sum() == start
    inside = (train["error"] == 0).to_numpy()
    assert train["epochs_in_tpt"].iloc[-1] == (inside[1:] & inside[:-1]).sum()


def test_weight_decay_time_counts_every_optimizer_step() -> None:
    train = fitted(max_epochs=2).history.query("split == 'train'")
    rates = [0.05 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(2)]
    steps = 3  # 45 samples in batches of 16
    assert train["wd_time"].iloc[-1] == pytest.approx(sum(rates) * steps * 1e-2 / (1 - 0.9))
    assert train["step"].tolist() == [0, 3, 6]


# -- it logs ---------------------------------------------------------------------------------------


def expected_keys() -> set[str]:
    names = [*FIT_NAMES, *METRIC_NAMES]
    keys = {f"nc/train/{n}" for n in names} | {f"nc/tpt/{n}" for n in PHASE_NAMES}
    keys |= {f"nc/val/{n}" for n in names if not CATALOGUE[n].once}
    return keys | {"nc/epoch"}


def test_the_csv_logger_has_exactly_the_keys_of_the_design_and_every_epoch() -> None:
    logger = CSVLogger(".")
    monitor = NeuralCollapse(verbose=False)
    trainer(monitor, max_epochs=6, logger=logger).fit(Toy(), train_loader(), val_loader())
    table = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert {c for c in table.columns if c.startswith("nc/")} == expected_keys()
    written = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "nan" not in written  # a start not yet reached is not logged
    rows = table.dropna(subset=["nc/epoch"])
    assert rows["nc/epoch"].tolist() == list(range(7))
    mine = monitor.history.query("split == 'train'")
    # float64, not rounded on the way; pandas 2 reads decimals to some 13 digits.
    assert rows["nc/train/nc1"].tolist() == pytest.approx(mine["nc1"].tolist(), rel=1e-12)
    assert monitor.run_dir == Path(logger.log_dir)


def test_a_dry_run_on_data_sorted_by_class_is_fine(tmp_path: Path) -> None:
    inputs, labels = blobs()
    order = labels.argsort(stable=True)
    data = TensorDataset(inputs[order], labels[order])
    monitor = NeuralCollapse(run_dir=tmp_path)
    fit = trainer(monitor, fast_dev_run=1)
    fit.fit(Toy(), DataLoader(data, 15), val_loader())  # a class a batch
    train = monitor.history.query("split == 'train'")
    assert list(train["n_classes_present"]) == [1, 1]
    assert train["nc1"].isna().all()


def test_the_sanity_check_and_a_dry_run_leave_nothing() -> None:
    monitor = NeuralCollapse(verbose=False)
    fit = trainer(monitor, fast_dev_run=2, logger=CSVLogger("."))
    fit.fit(Toy(), train_loader(), val_loader())
    assert monitor.history["epoch"].unique().tolist() == [0, 1]
    assert monitor.history.query("split == 'train'")["min_class_count"].max() < 15  # two batches
    assert not list(Path().rglob("history.csv"))

    monitor = NeuralCollapse(run_dir="run", verbose=False)
    trainer(monitor, num_sanity_val_steps=2, max_epochs=1).fit(Toy(), train_loader(), val_loader())
    assert monitor.history["epoch"].tolist() == [0, 0, 1, 1]


def test_the_run_folder_holds_the_history_and_where_it_comes_from() -> None:
    monitor = fitted()
    table = read_history("run")
    pd.testing.assert_frame_equal(table, monitor.history)
    assert list(table.columns) == list(COLUMNS)
    facts = read_run("run")
    assert facts["measurement"]["classifier"] == "head"
    assert facts["measurement"]["num_classes"] == CLASSES
    assert facts["finished"] is not None
    assert 0 < facts["timing"]["monitor_seconds"] < facts["timing"]["fit_seconds"]


def test_a_disk_that_fails_for_an_epoch_costs_a_warning_and_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = history.append_history

    def full(run_dir: Path, rows: Any, columns: Any, name: str) -> None:
        if rows[0]["epoch"] == 2:
            with (run_dir / name).open("a") as file:
                file.write("2,6,train,0.1")  # as far as it went
            raise OSError("No space left on device")
        written(run_dir, rows, columns, name)

    monkeypatch.setattr(run_log, "append_history", full)
    with pytest.warns(RuntimeWarning, match="training goes on: No space left"):
        monitor = fitted(max_epochs=4)
    pd.testing.assert_frame_equal(read_history("run"), monitor.history)
    assert monitor.history["epoch"].max() == 4


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step() -> None:
    Path("taken").write_text("a file")
    fit = trainer(NeuralCollapse(run_dir="taken/run", verbose=False))
    with pytest.raises(InputError, match=r"cannot be written.*run_dir="):
        fit.fit(Toy(), train_loader(), val_loader())
    assert fit.global_step == 0


def test_a_second_run_in_the_same_folder_keeps_the_first_ones_history() -> None:
    first = fitted(max_epochs=1).history
    fitted(max_epochs=2)
    kept = [path for path in Path("run").iterdir() if path.suffix == ".csv"]
    assert len(kept) == 2
    older = next(path for path in kept if path.name != "history.csv")
    known = pytest.approx(first["nc1"].tolist(), rel=1e-12)
    assert pd.read_csv(older)["nc1"].tolist() == known


@pytest.mark.parametrize("bar", [None, TQDMProgressBar, RichProgressBar])
def test_one_line_per_measured_epoch_is_printed_whatever_the_bar(
    bar: type[pl.Callback] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = [] if bar is None else [bar()]
    monitor = NeuralCollapse(run_dir="run", schedule=2)
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0, check_on_train_epoch_end=True)
    fit = trainer(monitor, stop, *bars, max_epochs=9, enable_progress_bar=bar is not None)
    fit.fit(Toy(), train_loader(), val_loader())
    out = capsys.readouterr().out
    lines = re.findall(r"(\d+) \| +[\d.e+-]+ \| +[\d.]+% \| +[\d.]+e", out)
    assert lines == ["0", "2"]
    assert out.count("terminal phase") == 1


@pytest.mark.parametrize("late", [True, False], ids=["monitor_last", "monitor_first"])
def test_early_stopping_and_checkpoints_can_monitor_it(late: bool) -> None:
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    stop = EarlyStopping("nc/train/nc1", divergence_threshold=-1.0)  # stops at its first check
    best = ModelCheckpoint(dirpath="best", monitor="nc/val/error", filename="best")
    callbacks = [stop, best, monitor] if late else [monitor, stop, best]
    fit = trainer(*callbacks, max_epochs=5, enable_checkpointing=True)
    fit.fit(Toy(), train_loader(), val_loader())
    assert fit.current_epoch == 1
    assert Path("best/best.ckpt").is_file()


# -- when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        (4, [0, 4, 8, 10]),
        ([1, 3], [0, 1, 3, 10]),
        ((epoch for epoch in (1, 3)), [0, 1, 3, 10]),
        ("every_epoch", list(range(11))),
    ],
    ids=["period", "list", "generator", "every_epoch"],
)
def test_the_schedule_decides_and_both_ends_are_always_measured(
    schedule: Any, epochs: list[int]
) -> None:
    monitor = fitted(max_epochs=10, schedule=schedule)
    assert monitor.history["epoch"].unique().tolist() == epochs


def test_the_policy_can_be_overridden_in_python() -> None:
    class Odd(NeuralCollapse):
        def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
            return epoch % 2 == 1

    monitor = Odd(run_dir="run", verbose=False)
    trainer(monitor, max_epochs=6).fit(Toy(), train_loader(), val_loader())
    assert monitor.history["epoch"].unique().tolist() == [0, 1, 3, 5, 6]


def test_the_last_epoch_is_measured_however_the_run_ends() -> None:
    by_steps = NeuralCollapse(run_dir="a", verbose=False, schedule=100)
    trainer(by_steps, max_epochs=-1, max_steps=4).fit(Toy(), train_loader(), val_loader())
    assert by_steps.history["step"].unique().tolist() == [0, 4]

    stopped = NeuralCollapse(run_dir="b", verbose=False, schedule=100)
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    logger = CSVLogger("logs")
    trainer(stopped, stop, max_epochs=50, logger=logger).fit(Toy(), train_loader(), val_loader())
    assert stopped.history["epoch"].unique().tolist() == [0, 2]
    logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")["nc/epoch"].dropna()
    assert logged.tolist() == [0, 2]


class Steady(TrainOnly):
    """Without dropout: Lightning's checkpoints do not hold random states."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3] = nn.Identity()


def test_a_resumed_run_continues_history_clock_and_schedule() -> None:
    def run(folder: str, epochs: int, checkpoint: str | None = None) -> pd.DataFrame:
        pl.seed_everything(3, verbose=False)
        monitor = NeuralCollapse(run_dir=folder, verbose=False, schedule=2, splits=("train",))
        fit = trainer(monitor, max_epochs=epochs)
        loader = train_loader(shuffle=False)
        fit.fit(Steady(), loader, ckpt_path=checkpoint, weights_only=True)
        fit.save_checkpoint(f"{folder}.ckpt")
        return monitor.history.drop(columns="seconds")

    whole = run("whole", 8)
    run("part", 3)
    resumed = run("rest", 8, "part.ckpt")
    assert resumed["epoch"].tolist() == [0, 2, 3, 4, 6, 8]  # 3 was the end of the first part
    assert whole["tpt_active"].iloc[-1] == 1  # or the clock would have nothing to continue
    continued = resumed.query("epoch != 3").reset_index(drop=True)
    pd.testing.assert_frame_equal(continued, whole, rtol=1e-9)
    pd.testing.assert_frame_equal(read_history("rest").drop(columns="seconds"), resumed)


def test_a_resumed_run_in_anothers_folder_keeps_the_others_history() -> None:
    other = fitted(max_epochs=2).history
    part = NeuralCollapse(run_dir="part", verbose=False)
    fit = trainer(part, max_epochs=1)
    fit.fit(Toy(), train_loader(), val_loader())
    fit.save_checkpoint("part.ckpt")
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    trainer(monitor, max_epochs=2).fit(
        Toy(), train_loader(), val_loader(), ckpt_path="part.ckpt", weights_only=True
    )
    kept = pd.read_csv("run/history.1.csv")["nc1"].tolist()
    assert kept == pytest.approx(other["nc1"].tolist(), rel=1e-12)
    pd.testing.assert_frame_equal(read_history("run"), monitor.history)


def test_one_callback_in_two_trainers_writes_two_folders() -> None:
    monitor = NeuralCollapse(verbose=False)
    for name in ("a", "b"):
        fit = trainer(monitor, max_epochs=1, logger=CSVLogger(name))
        fit.fit(Toy(), train_loader(), val_loader())
    assert len(list(Path().rglob("history.csv"))) == 2


def test_a_test_at_other_weights_is_said_and_no_part_of_the_run() -> None:
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    fit = trainer(monitor, max_epochs=1)
    fit.fit(Toy(), train_loader(), val_loader())
    with pytest.warns(RuntimeWarning, match="measured against its own class means"):
        fit.test(Toy(), val_loader(), verbose=False)
    assert "test" in monitor.history["split"].unique()
    assert "test" not in read_history("run")["split"].unique()


@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
def test_a_monitor_that_would_look_too_early_is_refused(callback: type[pl.Callback]) -> None:
    early = callback(monitor="nc/train/nc1")  # type: ignore[call-arg]
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    fit = trainer(early, monitor, val_check_interval=2, enable_checkpointing=True)
    with pytest.raises(InputError, match=r"set (check|save)_on_train_epoch_end=True"):
        fit.fit(Toy(), train_loader(), val_loader())


def test_the_test_set_is_measured_against_the_last_train_means() -> None:
    monitor, module = NeuralCollapse(run_dir="run", verbose=False), Toy()
    fit = trainer(monitor, max_epochs=1)
    fit.fit(module, train_loader(), val_loader())
    fit.test(module, val_loader(), verbose=False)
    inputs, labels = val_blobs()
    assert monitor.report is not None
    expected = measure_collapse(
        by_hand(module, inputs), labels, module.head.weight, reference=monitor.report.moments
    )
    row = monitor.history.query("split == 'test'").iloc[0]
    assert row["ncc_accuracy"] == expected.ncc_accuracy
    assert fit.callback_metrics["nc/test/nc1"] == pytest.approx(expected.nc1, rel=1e-6)
    assert read_history("run")["split"].tolist()[-1] == "test"


# -- bad input -------------------------------------------------------------------------------------


class Regression(TrainOnly):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


class TwoHeads(TrainOnly):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.head(features), self.other(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])[0].mean()


class NoLinear(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(6, 3, 3, padding=1), nn.Flatten())
        del self.head

    def on_train_epoch_start(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[..., None]).square()


class Tokens(Regression):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, None].expand(-1, 4, -1))


class NoForward(Regression):
    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(self.body(batch[0])).mean()


class OneOutput(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1)


def labelled(labels: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(blobs(len(labels))[0], labels), batch_size=16)


_, LABELS = blobs()
UNKNOWN = DataLoader([{"a": 1.0}] * 4)  # type: ignore[arg-type,var-annotated]


@pytest.mark.parametrize(
    ("module", "loader", "options", "message"),
    [
        (NoLinear, None, {}, "no linear layer makes what the model returns"),
        (TwoHeads, None, {}, r"two or more.*'head' \(8 to 3\), 'other' \(8 to 5\)"),
        (Regression, labelled(LABELS + 1), {}, r"labels must lie in \[0, 3\), but one is 3"),
        (Regression, labelled(LABELS - 1), {}, "labels must not be negative, but one is -1"),
        (Regression, labelled(LABELS.float()), {}, "float32, but classes are integers"),
        (Regression, labelled(torch.ones(45, 3)), {}, r"shape \(16, 3\).*pass batch_to_xy="),
        (Regression, labelled(torch.ones(45, dtype=torch.int64)), {}, "one class"),
        (Tokens, None, {}, r"features must have shape \(N, d\).*\(16, 4, 8\)"),
        (OneOutput, None, {}, "one output, a logit .* must be 0 or 1"),
        (NoForward, None, {}, "not define forward.*pass forward="),
        (TrainOnly, None, {"classifier": "haed"}, "no module named 'haed'; did you mean 'head'"),
        (TrainOnly, None, {"num_classes": 7}, "num_classes=7.*'head' has 3 outputs"),
        (TrainOnly, UNKNOWN, {}, "holds no labels.*a: Tensor"),
    ],
    ids=[
        "no_linear", "two_heads", "labels_too_large", "labels_negative", "labels_real",
        "labels_multi", "one_class", "features_3d", "one_output", "no_forward", "wrong_name",
        "wrong_num_classes", "unknown_batch",
    ],
)  # fmt: skip
def test_a_misconfiguration_is_refused_before_the_first_step(
    module: type[Toy], loader: Any, options: dict[str, Any], message: str
) -> None:
    network = module()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit = trainer(NeuralCollapse(run_dir="run", verbose=False, splits=("train",), **options))
    with pytest.raises(InputError, match=message):
        fit.fit(network, loader or train_loader())
    assert fit.global_step == 0
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_an_empty_loader_is_an_error_not_a_silent_nothing() -> None:
    loader = train_loader(Recording(3), drop_last=True)
    fit = trainer(NeuralCollapse(run_dir="run", verbose=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Total length of `.*Loader`", UserWarning)
        with pytest.raises(InputError, match="training loader is empty"):
            fit.fit(TrainOnly(), loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error=.*'warn', 'raise'.*'ignore'"),
        ({"splits": ("val",)}, "splits=.*train"),
        ({"schedule": "daily"}, "schedule=.*'papyan'.*'daily'"),
        ({"schedule": 0}, "at least 1"),
        ({"schedule": [1, -2]}, "got -2"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeuralCollapse(**options)


def test_a_missing_validation_set_is_said_once() -> None:
    with pytest.warns(UserWarning, match="no validation data") as caught:
        trainer(NeuralCollapse(run_dir="run", verbose=False)).fit(TrainOnly(), train_loader())
    assert len([w for w in caught if "no validation data" in str(w.message)]) == 1


def test_a_batch_that_is_a_mapping_is_understood_and_a_hook_takes_any_other() -> None:
    class Dicts(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    rows = [{"image": x, "label": y} for x, y in zip(*blobs(), strict=True)]
    known = NeuralCollapse(run_dir="a", verbose=False, splits=("train",))
    trainer(known, max_epochs=1).fit(Dicts(), DataLoader(rows, batch_size=16))  # type: ignore[arg-type]

    class Odd(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch["q"]), batch["z"])

    odd = [{"q": x, "z": y} for x, y in zip(*blobs(), strict=True)]
    hooked = NeuralCollapse(
        run_dir="b", verbose=False, splits=("train",), batch_to_xy=lambda b: (b["q"], b["z"])
    )
    trainer(hooked, max_epochs=1).fit(Odd(), DataLoader(odd, batch_size=16))  # type: ignore[arg-type]
    for monitor in (known, hooked):
        assert monitor.history["min_class_count"].tolist() == [15, 15]


def test_a_forward_of_the_users_own_is_used() -> None:
    monitor = NeuralCollapse(
        run_dir="run",
        verbose=False,
        splits=("train",),
        forward=lambda module, x: Toy.forward(module, x),  # type: ignore[arg-type]
    )
    trainer(monitor, max_epochs=1).fit(NoForward(), train_loader())
    assert monitor.history["nc1"].notna().all()


def test_it_works_alone_and_in_a_list_in_both_distributions() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Other(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.toy = Toy()

        def forward(self, x: Tensor) -> Any:
            return self.toy(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    for number, pass_alone in enumerate((True, False)):
        monitor = NeuralCollapse(run_dir=f"run{number}", verbose=False, splits=("train",))
        fit = lightning.Trainer(
            max_epochs=1,
            callbacks=monitor if pass_alone else [monitor],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        fit.fit(Other(), train_loader())
        assert monitor.history["epoch"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"null_seed": "a"},
        {"null_seed": 1.5},
        {"null_seed": 2**70},
        {"cache_bytes": "a"},
        {"ignore_index": None},
        {"superclasses": [0, 2**65]},
        {"metrics": "nc9"},
        {"convention": "mixed"},
        {"ridge": -1},
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused_when_the_callback_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        NeuralCollapse(**wrong)


def test_opt_in_metrics_and_the_null_are_in_the_history_and_in_the_run() -> None:
    seed: Any = np.int64(3)
    monitor = fitted(max_epochs=2, metrics=["imbalance", "nc1"], null_seed=seed)
    table = monitor.history
    assert set(table["split"]) == {"train", "val", "null"}
    null = table[table["split"] == "null"].iloc[-1]
    train = table[table["split"] == "train"].iloc[-1]
    assert null["nc1"] > 3 * train["nc1"]
    assert math.isnan(null["nc2_etf_w"])  # the classifier does not see the labels
    columns = [f"nc1_per_class/{c}" for c in range(CLASSES)]
    assert train[columns].astype(float).mean() == pytest.approx(train["nc1"])
    pd.testing.assert_frame_equal(read_history("run"), table)
    facts = read_run(Path("run"))["measurement"]
    assert facts["null_seed"] == 3
    assert facts["convention"] == "per_class"
    assert "seli_dist_w" in facts["metrics"]


def test_two_monitors_under_different_prefixes_keep_their_own_files_and_states() -> None:
    def monitors() -> list[NeuralCollapse]:
        return [
            NeuralCollapse(verbose=False, splits=("train",)),
            NeuralCollapse(verbose=False, splits=("train",), prefix="raw", schedule=2),
        ]

    logger, first = CSVLogger("logs"), monitors()
    checkpoint = ModelCheckpoint("kept", save_last=True)
    settings: dict[str, Any] = {"logger": logger, "enable_checkpointing": True}
    trainer(*first, checkpoint, **settings).fit(TrainOnly(), train_loader())
    again = monitors()
    kept = ModelCheckpoint("kept", save_last=True)
    fit = trainer(*again, kept, max_epochs=4, enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*kept.* not empty", UserWarning)
        fit.fit(TrainOnly(), train_loader(), ckpt_path="kept/last.ckpt")
    assert again[0].history["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert again[1].history["epoch"].tolist() == [0, 2, 3, 4]
    folder = Path(logger.log_dir)
    assert read_history(folder)["epoch"].tolist() == [0, 1, 2, 3]
    assert read_history(folder / "raw")["epoch"].tolist() == [0, 2, 3]
