"""Ending a run in the terminal phase: when it stops, what it says, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.terminal_phase import TerminalPhase
from ncmonitor.callbacks.terminal_rules import PhaseRules
from ncmonitor.monitor.history_rows import Row
from toys import CLASSES, Toy, TrainOnly, blobs, train_loader, trainer, val_loader


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Scripted(TrainOnly):
    """Makes no error after the completed epochs that ``knows`` names; the features are fixed."""

    def __init__(self, knows: Callable[[int], bool]) -> None:
        super().__init__(lr=0.0)
        self.knows = knows
        self.body, self.head = nn.Sequential(nn.Identity()), nn.Linear(6, CLASSES)
        self._learn(0)

    def _learn(self, epoch: int) -> None:
        inputs, labels = blobs()
        means = torch.stack([inputs[labels == c].mean(0) for c in range(CLASSES)])
        sign = 1.0 if self.knows(epoch) else -1.0
        with torch.no_grad():  # the nearest class mean, or the farthest
            self.head.weight.copy_(2 * sign * means)
            self.head.bias.copy_(-sign * (means**2).sum(1))

    def on_train_epoch_start(self) -> None:
        self._learn(self.current_epoch + 1)


def from_epoch(onset: int) -> Scripted:
    return Scripted(lambda epoch: epoch >= onset)


def watch(**options: Any) -> NeuralCollapse:
    settings: dict[str, Any] = {"run_dir": "run", "verbose": False, "splits": ("train",)}
    return NeuralCollapse(**(settings | options))


def epochs_of(monitor: NeuralCollapse) -> list[int]:
    return monitor.history["epoch"].tolist()


# -- the rules alone -------------------------------------------------------------------------------


def rules(**changes: Any) -> PhaseRules:
    settings: dict[str, Any] = {
        "epochs": None,
        "times": None,
        "plateau": None,
        "patience": 3,
        "min_change": 0.1,
        "start": "exact",
    }
    return PhaseRules(**(settings | changes))


def rows_of(
    values: dict[int, float], *, exact: float = 2, effective: float = 1, name: str = "nc1"
) -> list[Row]:
    """Rows with a metric by epoch, the starts known from their epochs on; other splits between."""
    rows: list[Row] = []
    for epoch, value in values.items():
        known = {
            "tpt_start_exact": exact if epoch >= exact else math.nan,
            "tpt_start_effective": effective if epoch >= effective else math.nan,
            "tpt_exits": 0.0,
        }
        rows.append({"epoch": epoch, "split": "train", name: value, **known})
        rows.append({"epoch": epoch, "split": "val", name: 0.0})
    return rows


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        ({"epochs": 1}, 3),
        ({"epochs": 4}, 6),
        ({"epochs": 4, "start": "effective"}, 5),
        ({"times": 1.5}, 3),
        ({"times": 2.25}, 5),
        ({"times": 2.25, "start": "effective"}, 3),
        ({"times": 5, "epochs": 2}, 4),
    ],
)
def test_a_rule_holds_from_the_epoch_that_it_names(rule: dict[str, Any], first: int) -> None:
    history = rows_of(dict.fromkeys(range(10), 1.0))
    due = [
        epoch
        for epoch in range(10)
        if rules(**rule).due([r for r in history if int(r["epoch"]) <= epoch], epoch)
    ]
    assert due == list(range(first, 10))


def test_an_onset_at_epoch_zero_counts_as_one_where_it_is_multiplied() -> None:
    history = rows_of({0: 1.0}, exact=0)
    assert [bool(rules(times=3).due(history, epoch)) for epoch in range(5)] == [0, 0, 0, 1, 1]
    assert [bool(rules(epochs=3).due(history, epoch)) for epoch in range(5)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "values", "stops"),
    [
        ("nc1", {2: 1.0, 3: 0.95, 4: 0.92, 5: 0.91}, True),
        ("nc1", {2: 1.0, 3: 0.95, 4: 0.92, 5: 0.89}, False),  # slow, yet a tenth in three epochs
        ("nc1", {2: 1.0, 3: 0.95, 4: 0.92}, False),  # two epochs are no patience
        ("nc1", {0: 0.1, 1: 0.1, 2: 1.0, 3: 1.0}, False),  # before the onset nothing counts
        ("nc1", {2: 1.0, 12: 0.5}, False),  # the first measurement after ten epochs is progress
        ("nc1", {2: 1.0, 12: 1.0}, True),  # epochs are counted, not measurements
        ("nc1", {2: 1.0, 3: 5.0, 4: 0.89, 6: 5.0}, False),  # the best so far is what counts
        ("nc1", {2: 0.0, 5: 0.0}, True),  # nothing can be closer than collapse itself
        ("nc1", {2: math.nan, 5: math.nan, 9: math.nan}, False),
        ("nc1", {2: 1.0, 3: math.nan, 9: math.nan}, False),
        ("nc3_cos_mean", {2: 0.5, 3: 0.6, 4: 0.7, 5: 0.8}, False),  # collapse is at 1
        ("nc3_cos_mean", {2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2}, True),
        ("ncc_margin", {2: 1.5, 3: 1.4, 4: 1.3, 5: 1.2}, False),  # from above, too
    ],
)
def test_a_plateau_is_no_approach_to_collapse_for_the_patience_in_epochs(
    name: str, values: dict[int, float], stops: bool
) -> None:
    reason = rules(plateau=name).due(rows_of(values, name=name), max(values))
    assert (reason is not None) == stops
    assert reason is None or name in reason


def test_a_plateau_is_not_concluded_from_epochs_that_were_not_measured() -> None:
    history = rows_of({2: 1.0, 4: 1.0})
    assert rules(plateau="nc1").due(history, epoch=9) is None


def test_rows_from_before_the_metric_was_asked_for_say_nothing_about_it() -> None:
    history = [*rows_of({2: 1.0, 5: 1.0}, name="vci"), *rows_of({9: 1.0})]
    assert rules(plateau="nc1").due(history, 9) is None


def test_exits_from_the_phase_restart_nothing_and_are_counted_in_the_reason() -> None:
    history = [{**row, "tpt_exits": 2.0} for row in rows_of({2: 1.0, 4: 1.0})]
    reason = rules(epochs=3).due(history, 5)
    assert reason == "the terminal phase began at epoch 2 and was left 2x, 3 epochs ago"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs= must be at least 1"),
        ({"epochs": 2.5}, "epochs= must be a whole number"),
        ({"patience": None}, "patience= must be a whole number"),
        ({"patience": 0}, "patience= must be at least 1"),
        ({"times": 1}, "times= .* above 1"),
        ({"times": math.nan}, "times= .* above 1"),
        ({"times": "2"}, "times= .*'2'"),
        ({"min_change": 1}, r"min_change= .*\[0, 1\)"),
        ({"plateau": "nc11"}, "plateau= .*'nc11'; did you mean 'nc1'"),
        ({"plateau": "w_norm"}, "plateau='w_norm' has no single number"),
        ({"plateau": "nc1_per_class"}, "plateau='nc1_per_class' has no single number"),
        ({"plateau": "nrc1"}, "plateau='nrc1' has no"),  # of regression
        ({"plateau": 3}, "plateau= .*3; `ncmonitor metrics`"),
        ({"start": "exakt"}, "start= .*'exakt'; did you mean 'exact'"),
        ({"checkpoint": False}, "would do nothing"),
        ({"epochs": 1, "checkpoint": False, "dirpath": "here"}, "dirpath= .*checkpoint= is False"),
        ({"dirpath": "s3://bucket/run"}, "dirpath= must be a local folder"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused_when_the_callback_is_made(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TerminalPhase(**wrong)


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    ("onset", "options", "stop"),
    [
        (3, {"epochs": np.int64(2)}, 5),
        (3, {"times": 2}, 6),
        (0, {"times": 3}, 3),
        (2, {"plateau": "nc1", "patience": 4}, 6),
        (3, {}, 9),
    ],
    ids=["epochs", "times", "times_from_0", "plateau", "no_rule"],
)
def test_training_stops_at_the_epoch_of_the_rule_whatever_the_order_of_the_callbacks(
    onset: int, options: dict[str, Any], stop: int, ours_first: bool
) -> None:
    monitor, phase = watch(), TerminalPhase(**options)
    callbacks = [phase, monitor] if ours_first else [monitor, phase]
    fit = trainer(*callbacks, max_epochs=9)
    fit.fit(from_epoch(onset), train_loader())
    assert fit.current_epoch == stop
    assert epochs_of(monitor) == list(range(stop + 1))
    assert phase.stopped_epoch == (stop if options else None)
    assert (phase.reason is not None) == bool(options)


def test_it_says_once_why_it_stops(capsys: pytest.CaptureFixture[str]) -> None:
    phase = TerminalPhase(epochs=2, checkpoint=False)
    trainer(watch(verbose=True), phase, max_epochs=9).fit(from_epoch(1), train_loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if "TerminalPhase" in line]
    assert lines == [f"TerminalPhase: stopping after epoch 3: {phase.reason}"]
    assert phase.reason == "the terminal phase began at epoch 1, 2 epochs ago"


def test_it_is_as_quiet_as_the_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    phase = TerminalPhase(epochs=2, checkpoint=False)
    trainer(watch(verbose=False), phase, max_epochs=9).fit(from_epoch(1), train_loader())
    assert phase.reason is not None
    assert "TerminalPhase" not in capsys.readouterr().out


def test_a_stop_between_scheduled_epochs_is_measured_as_the_last_epoch() -> None:
    monitor, phase = watch(schedule=4), TerminalPhase(epochs=2)
    trainer(monitor, phase, max_epochs=20).fit(from_epoch(3), train_loader())
    assert phase.stopped_epoch == 6  # the onset was first seen at 4
    assert epochs_of(monitor) == [0, 4, 6]


def test_the_minimum_of_epochs_is_respected() -> None:
    phase = TerminalPhase(epochs=1)
    fit = trainer(watch(), phase, max_epochs=20, min_epochs=5)
    fit.fit(from_epoch(1), train_loader())
    assert fit.current_epoch == phase.stopped_epoch == 5


def test_errors_that_come_back_do_not_hold_the_run() -> None:
    phase = TerminalPhase(epochs=4)
    fit = trainer(watch(), phase, max_epochs=20)
    fit.fit(Scripted(lambda epoch: epoch in (2, 4)), train_loader())
    assert fit.current_epoch == 6
    assert "left 2x" in str(phase.reason)


def test_a_run_that_max_steps_ended_is_not_claimed_by_its_last_measurement() -> None:
    monitor, phase = watch(schedule=[1]), TerminalPhase(plateau="nc1", patience=2)
    fit = trainer(monitor, phase, max_epochs=-1, max_steps=9)
    fit.fit(from_epoch(1), train_loader())
    assert epochs_of(monitor) == [0, 1, 3]  # at 3 nc1 has been at rest for two epochs
    assert (phase.reason, phase.stopped_epoch) == (None, None)


def test_if_another_rank_stops_so_does_this_one() -> None:
    phase = TerminalPhase(epochs=5)
    fit = trainer(watch(), phase, max_epochs=9)

    def decide(decision: bool, all: bool = True) -> bool:
        assert not all
        return decision or fit.current_epoch == 1

    fit.strategy.reduce_boolean_decision = decide  # type: ignore[method-assign]
    fit.fit(from_epoch(99), train_loader())
    assert fit.current_epoch == phase.stopped_epoch == 2


def test_it_works_in_the_other_distribution() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Other(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.toy = from_epoch(2)

        def forward(self, x: Tensor) -> Any:
            return self.toy(x)

        def on_train_epoch_start(self) -> None:
            self.toy._learn(self.current_epoch + 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    phase = TerminalPhase(epochs=1)
    saver = lightning.callbacks.ModelCheckpoint(dirpath="weights")
    fit = lightning.Trainer(
        max_epochs=9,
        callbacks=[phase, watch(), saver],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fit.fit(Other(), train_loader())
    assert fit.current_epoch == 3
    assert phase.onset_checkpoint == Path("weights/tpt-onset.ckpt").absolute()


# -- what it needs ---------------------------------------------------------------------------------


def test_a_trainer_without_the_monitor_is_refused_before_training() -> None:
    with pytest.raises(InputError, match=r"NeuralCollapse.*lacks: add it"):
        trainer(TerminalPhase(epochs=1)).fit(from_epoch(1), train_loader())


def test_a_plateau_of_a_metric_that_is_not_measured_is_refused_before_training() -> None:
    phase = TerminalPhase(plateau="nc1_cdnv", patience=2)
    with pytest.raises(InputError, match=r"NeuralCollapse\(metrics=\['nc1_cdnv'\]\)"):
        trainer(watch(), phase).fit(from_epoch(1), train_loader())
    fit = trainer(watch(metrics=["nc1_cdnv"]), phase, max_epochs=9)
    fit.fit(from_epoch(1), train_loader())
    assert fit.current_epoch == 3


def test_a_second_fit_is_heard_once_and_starts_anew() -> None:
    monitor, phase = watch(), TerminalPhase(epochs=1)
    heard: list[int] = []
    monitor.after_measurement.append(lambda trainer, module, epoch: heard.append(epoch))
    trainer(monitor, phase, max_epochs=9).fit(from_epoch(1), train_loader())
    assert "began at epoch 1" in str(phase.reason)
    assert len(monitor.after_measurement) == 1  # it listens no longer, others do
    first = phase.onset_checkpoint
    trainer(monitor, phase, max_epochs=2).fit(from_epoch(2), train_loader())
    assert (phase.reason, phase.stopped_epoch) == (None, None)
    assert phase.onset_checkpoint not in (first, None)
    assert heard == [0, 1, 2, 0, 1, 2]


def test_it_listens_no_longer_after_a_fit_that_failed() -> None:
    class Explodes(Scripted):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("boom")

    monitor = watch()
    with pytest.raises(RuntimeError, match="boom"):
        trainer(monitor, TerminalPhase(epochs=1)).fit(Explodes(lambda epoch: True), train_loader())
    assert monitor.after_measurement == []


# -- the checkpoint of the onset -------------------------------------------------------------------


class Replayable(Toy):
    """Draws the same dropout in an epoch whether or not the run was resumed before it."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 * self.current_epoch + batch_idx)


def replayed(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> dict[str, Any]:
    torch.manual_seed(3)
    module = Replayable()
    fit = trainer(*callbacks, max_epochs=6)
    fit.fit(module, train_loader(shuffle=False), val_loader(), ckpt_path=ckpt_path)
    assert fit.global_step == 18
    return {
        "weights": module.state_dict(),
        "optimizer": fit.optimizers[0].state_dict(),
        "schedule": fit.lr_scheduler_configs[0].scheduler.state_dict(),
    }


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_run_resumed_from_the_onset_is_the_run_that_was_not_interrupted(
    ours_first: bool,
) -> None:
    def callbacks(folder: str) -> tuple[NeuralCollapse, TerminalPhase, list[pl.Callback]]:
        monitor, phase = watch(run_dir=folder), TerminalPhase()
        return monitor, phase, [phase, monitor] if ours_first else [monitor, phase]

    whole, phase, both = callbacks("whole")
    expected = replayed(*both)
    saved = phase.onset_checkpoint
    assert saved == Path("whole/tpt-onset.ckpt")
    onset = whole.history["tpt_start_exact"].max()
    assert 0 < onset < 5, "the toy must reach zero error within the run"

    state = torch.load(saved, weights_only=True)["callbacks"]["NeuralCollapse"]
    assert state["rows"][-1]["epoch"] == state["rows"][-1]["tpt_start_exact"] == onset

    resumed, phase, both = callbacks("resumed")
    torch.testing.assert_close(replayed(*both, ckpt_path=saved), expected, rtol=0, atol=0)
    assert phase.onset_checkpoint == saved  # known from the checkpoint, not saved again
    assert [p.name for p in Path.cwd().rglob("tpt-onset*")] == ["tpt-onset.ckpt"]
    columns = whole.history.columns.drop("seconds")
    assert resumed.history[columns].equals(whole.history[columns])


def test_a_checkpoint_at_which_a_rule_holds_already_is_not_trained_on() -> None:
    def go(phase: TerminalPhase, ckpt_path: str | None = None) -> tuple[pl.Trainer, NeuralCollapse]:
        monitor = watch()
        fit = trainer(phase, monitor, Saver(), max_epochs=9)
        fit.fit(from_epoch(1), loader, ckpt_path=ckpt_path)
        return fit, monitor

    class Saver(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.save_checkpoint("last.ckpt")

    phase, again, longer = (TerminalPhase(epochs=epochs) for epochs in (2, 2, 4))
    loader = train_loader()
    go(phase)
    fit, monitor = go(again, "last.ckpt")
    assert (fit.global_step, again.stopped_epoch, again.reason) == (9, 3, phase.reason)
    assert epochs_of(monitor) == [0, 1, 2, 3]
    fit, monitor = go(longer, "last.ckpt")
    assert fit.current_epoch == longer.stopped_epoch == 5
    assert epochs_of(monitor) == [0, 1, 2, 3, 4, 5]


def test_the_checkpoint_lies_beside_those_of_the_run_or_where_it_was_asked_for() -> None:
    def saved(*others: pl.Callback, **options: Any) -> Path:
        phase = TerminalPhase(**options)
        changes = {"enable_checkpointing": bool(others)}
        trainer(watch(), phase, *others, max_epochs=1, **changes).fit(from_epoch(1), train_loader())
        assert phase.onset_checkpoint is not None
        assert phase.onset_checkpoint.is_file()
        return phase.onset_checkpoint

    assert saved() == Path("run/tpt-onset.ckpt")
    assert saved(ModelCheckpoint()) == Path("checkpoints/tpt-onset.ckpt").absolute()
    assert saved(ModelCheckpoint("weights"), dirpath="mine") == Path("mine/tpt-onset.ckpt")


def test_a_checkpoint_of_an_earlier_run_is_not_overwritten() -> None:
    Path("mine").mkdir()
    for name in ("tpt-onset.ckpt", "tpt-onset-v1.ckpt"):
        Path("mine", name).write_text("earlier")
    phase = TerminalPhase(dirpath="mine")
    trainer(watch(), phase, max_epochs=3).fit(from_epoch(1), train_loader())
    assert phase.onset_checkpoint == Path("mine/tpt-onset-v2.ckpt")
    assert Path("mine/tpt-onset-v1.ckpt").read_text() == "earlier"


@pytest.mark.parametrize(
    ("onset", "settings", "epoch"),
    [
        (0, {"max_epochs": 2}, 0),  # before the first step
        (2, {"max_epochs": -1, "max_steps": 9}, 3),  # seen only when max_steps ended the run
    ],
)
def test_an_onset_before_the_first_or_after_the_last_epoch_is_saved_and_stops_nothing(
    onset: int, settings: dict[str, Any], epoch: int
) -> None:
    phase = TerminalPhase(times=1.1, plateau="nc1", epochs=9)
    trainer(watch(schedule=[0]), phase, **settings).fit(from_epoch(onset), train_loader())
    assert phase.onset_checkpoint is not None
    state = torch.load(phase.onset_checkpoint, weights_only=True)["callbacks"]["NeuralCollapse"]
    assert state["rows"][-1]["epoch"] == epoch
    if onset:
        assert phase.reason is None


def test_a_dry_run_saves_nothing() -> None:
    phase = TerminalPhase(dirpath="mine")
    trainer(watch(), phase, fast_dev_run=True).fit(from_epoch(0), train_loader())
    assert phase.onset_checkpoint is None
    assert not list(Path.cwd().rglob("*.ckpt"))


def test_no_checkpoint_is_saved_unless_asked_for() -> None:
    phase = TerminalPhase(epochs=1, checkpoint=False)
    trainer(watch(), phase, max_epochs=9).fit(from_epoch(1), train_loader())
    assert phase.onset_checkpoint is None
    assert not list(Path.cwd().rglob("*.ckpt"))


def test_a_disk_that_fails_costs_the_checkpoint_and_not_the_run() -> None:
    Path("mine").write_text("a file where the folder should be")
    phase = TerminalPhase(epochs=2, dirpath="mine")
    fit = trainer(watch(), phase, max_epochs=9)
    with pytest.warns(RuntimeWarning, match="onset could not be saved as mine.*training goes on"):
        fit.fit(from_epoch(1), train_loader())
    assert phase.onset_checkpoint is None
    assert fit.current_epoch == 3
