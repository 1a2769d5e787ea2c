"""Alerts: once each, at the onset and where a metric crosses a threshold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.loggers.alerts import WandbAlerts
from ncmonitor.errors import InputError
from toys import Toy, train_loader, trainer, val_loader
from wandb_files import offline_run, records

EPOCHS = 6


class Recorder:
    """Stands for a W&B run: keeps the alerts."""

    def __init__(self) -> None:
        self.id, self.tags, self.config, self.summary = "an-id", ("mine",), self, self
        self.alerts: list[tuple[str, str]] = []

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def update(self, *_: Any, **__: Any) -> None: ...
    def define_metric(self, *_: Any, **__: Any) -> None: ...
    def log(self, *_: Any, **__: Any) -> None: ...


class Logger(type("WandbLogger", (CSVLogger,), {})):  # type: ignore[misc]
    """A logger that is W&B's by name, with a recorder for a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._run = Recorder()

    @property
    def experiment(self) -> Any:
        return self._run

    def log_metrics(self, *_: Any, **__: Any) -> None: ...
    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...
    def save(self) -> None: ...


def fit(
    folder: Path, alerts: WandbAlerts, epochs: int = EPOCHS, ckpt: Path | None = None
) -> tuple[pl.Trainer, NeuralCollapse, Recorder]:
    torch.manual_seed(0)
    logger = Logger(folder)
    monitor = NeuralCollapse(run_dir=folder / "nc", verbose=False)
    fitting = trainer(alerts, monitor, max_epochs=epochs, logger=logger)
    fitting.fit(Toy(), train_loader(), val_loader(), ckpt_path=ckpt)
    return fitting, monitor, logger._run


def test_the_onset_and_each_threshold_is_sent_once(tmp_path: Path) -> None:
    thresholds = {"nc1": 0.03, "nc/tpt/epochs_in_tpt": 3, "val/nc1": 0.0}
    _, monitor, run = fit(tmp_path, WandbAlerts(thresholds=thresholds))
    train = monitor.history.query("split == 'train'").set_index("epoch")
    onset = int(train["tpt_start_exact"].iloc[-1])
    below = train.index[train["nc1"] <= 0.03][0]
    assert 0 < onset < onset + 3 < EPOCHS
    assert 0 < below < EPOCHS
    assert run.alerts == [
        ("Terminal phase reached", f"The training error first vanished after {onset} epochs."),
        ("train/nc1 reached 0.03", f"train/nc1 is {train['nc1'][below]:.3g} after {below} epochs."),
        ("train/epochs_in_tpt reached 3", f"train/epochs_in_tpt is 3 after {onset + 3} epochs."),
    ]  # the third threshold is never reached


def test_a_resumed_run_does_not_repeat_what_was_sent(tmp_path: Path) -> None:
    thresholds = {"train/nc1": 0.03, "train/cross_entropy": 1e-9}
    fitting, _, run = fit(tmp_path, WandbAlerts(thresholds=thresholds))
    assert {title for title, _ in run.alerts} == {
        "Terminal phase reached",
        "train/nc1 reached 0.03",
    }
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    alerts = WandbAlerts(thresholds=thresholds)
    _, _, again = fit(tmp_path, alerts, EPOCHS + 2, tmp_path / "last.ckpt")
    assert again.alerts == []


def test_a_new_fit_with_the_same_callback_sends_again(tmp_path: Path) -> None:
    alerts = WandbAlerts()
    for name in ("a", "b"):
        assert len(fit(tmp_path / name, alerts)[2].alerts) == 1


def test_the_real_client_keeps_an_alert_offline(tmp_path: Path) -> None:
    monitor = NeuralCollapse(run_dir=tmp_path, verbose=False)
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    fitting = trainer(WandbAlerts(), monitor, max_epochs=EPOCHS, logger=logger)
    fitting.fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    [alert] = records(offline_run(tmp_path), "alert")
    assert (alert["title"], alert["level"]) == ("Terminal phase reached", "INFO")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"thresholds": {"train/nc_1": 0.1}}, "did you mean 'nc1'"),
        ({"thresholds": {"train/nc1": "low"}}, "needs a number for 'train/nc1', but got 'low'"),
        ({"thresholds": {"nc1": float("nan")}}, "needs a number"),
        ({"onset": False}, "would do nothing"),
    ],
)
def test_a_wrong_alert_is_explained(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        WandbAlerts(**settings)


def test_alerts_without_monitor_wandb_or_metric_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which this trainer lacks"):
        trainer(WandbAlerts()).fit(Toy(), train_loader(), val_loader())
    monitor = NeuralCollapse(run_dir=tmp_path, verbose=False)
    with pytest.raises(InputError, match=r"pass logger=WandbLogger\(\.\.\.\)"):
        trainer(WandbAlerts(), monitor).fit(Toy(), train_loader(), val_loader())
    alerts = WandbAlerts(thresholds={"nc1_cdnv": 0.1})
    with pytest.raises(InputError, match=r"NeuralCollapse\(metrics=\['nc1_cdnv'\]\)"):
        fit(tmp_path, alerts)


def test_a_dry_run_sends_nothing_and_needs_no_logger(tmp_path: Path) -> None:
    monitor = NeuralCollapse(run_dir=tmp_path, verbose=False)
    trainer(WandbAlerts(), monitor, fast_dev_run=2).fit(Toy(), train_loader(), val_loader())


def test_an_alert_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Recorder, title: str, text: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(Recorder, "alert", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, monitor, _ = fit(tmp_path, WandbAlerts())
    said = [str(w.message) for w in caught if "is not sent" in str(w.message)]
    assert said == [
        "the alert 'Terminal phase reached' is not sent, training goes on: OSError: no network"
    ]
    assert monitor.history["epoch"].max() == EPOCHS
