"""Monitors of our keys: those that see the epoch's value, and those refused before a step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.trainers.monitored_keys import check_monitors, monitors_of
from toys import blobs

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]
KEY = "nc/train/nc1"
KEYS = {KEY, "nc/epoch", "nc/train/w_norm", "nc/train/error", "nc/val0/nc1", "nc/tpt/wd_time"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


def lightning(package: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{package}.callbacks"), name)


class Monitored(NeuralCollapse):
    """Knows its keys, as the fit does once training starts."""

    asked: tuple[str, ...] = ()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        check_monitors(trainer, self.prefix, KEYS)
        self.asked = tuple(monitors_of(trainer, self.prefix))
        super().on_train_start(trainer, pl_module)


def net(package: str, scheduler: dict[str, Any] | None) -> Any:
    class Net(importlib.import_module(package).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.steps = 0
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(x).relu())

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.seen.append(float(metric))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            if scheduler is None:
                return optimizer
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": KEY, **scheduler},
            }

    return Net()


def fit(
    package: str,
    *callbacks: Any,
    validate: bool = True,
    scheduler: dict[str, Any] | None = None,
    module: Any = None,
    max_epochs: int = 4,
    **changes: Any,
) -> Any:
    module = net(package, scheduler) if module is None else module
    if not validate:
        del type(module).validation_step  # or Lightning warns
    loader = DataLoader(TensorDataset(*blobs()), 12)
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1,
        "enable_checkpointing": any(hasattr(c, "save_top_k") for c in callbacks),
    }  # fmt: skip
    trainer = importlib.import_module(package).Trainer(
        max_epochs=max_epochs, callbacks=list(callbacks), **(settings | changes)
    )
    trainer.fit(module, loader, loader if validate else None)
    return module


def collapse(**options: Any) -> Monitored:
    return Monitored(run_dir="run", verbose=False, splits=("train",), **options)


def measured(monitor: NeuralCollapse) -> list[float]:
    return monitor.history.query("epoch > 0")["nc1"].tolist()


def stopping(package: str, **options: Any) -> Any:
    """Return an EarlyStopping that keeps every value it looks at."""

    class Stopping(lightning(package, "EarlyStopping")):  # type: ignore[misc]
        def _evaluate_stopping_criteria(self, current: Tensor) -> Any:
            self.seen = [*getattr(self, "seen", []), float(current)]
            return super()._evaluate_stopping_criteria(current)

    return Stopping(**{"monitor": KEY, "patience": 100, **options})


def saving(package: str, **options: Any) -> Any:
    settings = {"monitor": KEY, "dirpath": "checkpoints", "save_top_k": -1, "filename": "{epoch}"}
    return lightning(package, "ModelCheckpoint")(**(settings | options))


Make = Callable[..., Any]
Options = dict[str, Any]
STOP: Options = {"check_on_train_epoch_end": True}
SAVE: Options = {"save_on_train_epoch_end": True}
MID: Options = {"val_check_interval": 0.5}
SPARSE: Options = {"check_val_every_n_epoch": 3}
BATCHES: Options = {"check_val_every_n_epoch": None, "val_check_interval": 3}
TIME: Options = {"val_check_interval": timedelta(hours=1)}

# -- accepted: the value of the same epoch ---------------------------------------------------------

SEEN: dict[str, tuple[Make, Options, Options]] = {
    "stopping": (stopping, {}, {}),
    "stopping, no validation": (stopping, {}, {"validate": False}),
    "stopping, validation within the epoch": (stopping, STOP, MID),
    "stopping, validation between epochs": (stopping, STOP, SPARSE),
    "stopping, validation by batches": (stopping, STOP, BATCHES),
    "stopping, validation by the clock": (stopping, STOP, TIME),
    "saving": (saving, {}, {}),
    "saving, no validation": (saving, {}, {"validate": False}),
    "saving, no validation to be within the epoch": (saving, {}, {"validate": False, **MID}),
    "saving, validation within the epoch": (saving, SAVE, MID),
    "saving, validation between epochs": (saving, SAVE, SPARSE),
    "saving, validation by batches": (saving, SAVE, BATCHES),
    "saving, validation by the clock": (saving, SAVE, TIME),
}


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("name", list(SEEN))
def test_an_accepted_monitor_sees_the_value_of_the_same_epoch(
    name: str, first: bool, package: str
) -> None:
    make, options, changes = SEEN[name]
    monitor, ours = make(package, **options), collapse()
    fit(package, *((monitor, ours) if first else (ours, monitor)), max_epochs=3, **changes)
    values = measured(ours)
    assert len(values) == len(set(values)) == 3
    if make is stopping:
        assert monitor.seen == pytest.approx(values, rel=1e-12)
    else:
        saved = [float(value) for value in monitor.best_k_models.values()]
        assert saved == pytest.approx(values, rel=1e-12)
        assert float(monitor.best_model_score) == pytest.approx(min(values), rel=1e-12)
    assert ours.asked == (KEY,)


def test_on_an_unmeasured_epoch_monitors_see_the_last_measured_value(package: str) -> None:
    stop, save, ours = stopping(package), saving(package), collapse(schedule=[1, 3])
    module = fit(package, stop, ours, save, scheduler={}, max_epochs=5)
    one, three, five = measured(ours)
    assert stop.seen == pytest.approx([one, one, three, three, five], rel=1e-12)
    assert module.seen == stop.seen
    saved = [float(value) for value in save.best_k_models.values()]
    assert saved == pytest.approx(stop.seen, rel=1e-12)


# -- refused: nothing, or the value of the epoch before --------------------------------------------

LATE: dict[str, tuple[Make, Options, Options, str]] = {
    "stopping within": (stopping, {}, MID, r"\(val_check_interval=0.5\).*: set check_on_train_ep"),
    "stopping within, no validation": (stopping, {}, {"validate": False, **MID}, "set check_on"),
    "stopping between": (stopping, {}, SPARSE, r"\(check_val_every_n_epoch=3\).*: set check_on_tr"),
    "stopping by batches": (stopping, {}, BATCHES, r"\(check_val_every_n_epoch=None\)"),
    "stopping not at the end": (stopping, {"check_on_train_epoch_end": False}, {},
        r"\(check_on_train_epoch_end=False\), .*: set check_on_train_epoch_end=True"),
    "stopping, not strict": (stopping, {"strict": False}, MID, "check_on_train_epoch_end=True"),
    "saving within": (saving, {}, MID, r"\(val_check_interval=0.5\).*: set save_on_train_epoch"),
    "saving between": (saving, {}, SPARSE, r"\(check_val_every_n_epoch=3\).*: set save_on_train_e"),
    "saving by batches": (saving, {}, BATCHES, "set save_on_train_epoch_end=True"),
    "saving by the clock": (saving, {}, TIME, r"\(a val_check_interval in time\).*: set save_on_t"),
    "saving not at the end": (saving, {"save_on_train_epoch_end": False}, {},
        r"\(save_on_train_epoch_end=False\), .*: set save_on_train_epoch_end=True"),
    "saving after steps": (saving, {"every_n_train_steps": 4}, {},
        r"after training steps \(every_n_train_steps=4\), .*: set every_n_epochs=1 instead"),
    "saving after steps, at the end": (saving, {"every_n_train_steps": 4, **SAVE}, {}, "every_n_e"),
    "saving after minutes": (saving, {"train_time_interval": timedelta(minutes=5)}, {},
        r"after training steps \(train_time_interval\), .*: set every_n_epochs=1 instead"),
}  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("name", list(LATE))
def test_a_monitor_that_looks_too_early_is_refused_before_a_step(
    name: str, first: bool, package: str
) -> None:
    make, options, changes, words = LATE[name]
    monitor, ours = make(package, **options), collapse()
    callbacks = (monitor, ours) if first else (ours, monitor)
    module = net(package, None)
    with pytest.raises(InputError, match=words) as raised:
        fit(package, *callbacks, module=module, **changes)
    assert f"{type(monitor).__name__}(monitor='{KEY}') would look " in str(raised.value)
    assert module.steps == 0


def test_early_stopping_by_the_clock_is_refused_where_lightning_itself_would_fail(
    package: str,
) -> None:
    # Its own setup, if it comes first, asks the trainer for a setting that is not there then.
    with pytest.raises(InputError, match=r"val_check_interval in time.*check_on_train_epoch_end=T"):
        fit(package, collapse(), stopping(package), **TIME)


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("make", [stopping, saving])
def test_a_monitor_of_the_other_distribution_is_refused_whatever_the_order(
    make: Make, first: bool, package: str
) -> None:
    other = next(name for name in PACKAGES if name != package)
    pytest.importorskip(other)
    monitor, ours = make(other), collapse()
    module = net(package, None)
    with pytest.raises(InputError, match=f"is none of {package}, .*: import it from {package}.c"):
        fit(package, *((monitor, ours) if first else (ours, monitor)), module=module)
    assert module.steps == 0


def test_monitors_of_other_keys_are_none_of_our_business(package: str) -> None:
    within = stopping(package, monitor="val_loss")
    ours = collapse()
    fit(package, within, saving(package, monitor="val_loss"), ours, max_epochs=1, **MID)
    assert len(within.seen) == 2
    assert ours.asked == ()
    fit(package, stopping(package, monitor=KEY), collapse(prefix="ours"), max_epochs=0, **MID)


# -- keys that never come --------------------------------------------------------------------------

NEVER = {
    "nc/train/nc_1": r"never logged; did you mean 'nc/train/nc1'",
    "nc/trian/nc1": r"this run measures no 'trian'; did you mean .*'nc/train/nc1'",
    "nc/val/nc1": r"this run measures no 'val'; did you mean .*'nc/val0/nc1'",
    "nc/val0/w_norm": r"never logged; did you mean 'nc/train/w_norm'\?",
    "nc/train/vci": r"pass metrics=\['vci'\] to NeuralCollapse",
    "nc/train/nc1_per_class/2": r"pass metrics=\['nc1_per_class'\] to NeuralCollapse",
    "nc/nothing": r"never logged; (did you mean|the keys are)",
}


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("key", list(NEVER))
def test_a_key_that_is_never_logged_is_refused_with_the_nearest(key: str, first: bool) -> None:
    package = "pytorch_lightning"
    for make in (stopping, saving):
        monitor, ours, module = make(package, monitor=key), collapse(), net(package, None)
        with pytest.raises(InputError, match=NEVER[key]):
            fit(package, *((monitor, ours) if first else (ours, monitor)), module=module)
        assert module.steps == 0


# -- schedulers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, MID, SPARSE, BATCHES, {"validate": False}])
def test_a_plateau_scheduler_is_stepped_with_the_value_of_the_same_epoch(
    changes: dict[str, Any], package: str
) -> None:
    ours = collapse()
    module = fit(package, ours, scheduler={}, max_epochs=3, **changes)
    assert module.seen == pytest.approx(measured(ours), rel=1e-12)
    assert ours.asked == (KEY,)


@pytest.mark.parametrize("scheduler", [{}, {"frequency": 4}, {"strict": False}])
def test_a_plateau_scheduler_stepped_within_the_epoch_is_refused(
    scheduler: dict[str, Any], package: str
) -> None:
    module = net(package, {"interval": "step", **scheduler})
    words = r"ReduceLROnPlateau \(monitor 'nc/train/nc1'\) would .*: set \"interval\": \"epoch\""
    with pytest.raises(InputError, match=words):
        fit(package, collapse(), module=module)
    assert module.steps == 0


def test_a_scheduler_with_a_key_that_never_comes_is_refused(package: str) -> None:
    module = net(package, {"monitor": "nc/train/ncl"})
    with pytest.raises(InputError, match=r"ReduceLROnPlateau .* did you mean 'nc/train/nc1'"):
        fit(package, collapse(), module=module)
    assert module.steps == 0


def test_schedulers_of_an_earlier_fit_are_not_those_of_this_one(package: str) -> None:
    trainer = importlib.import_module(package).Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*blobs()), 12)
    stale = net(package, {"interval": "step", "strict": False})
    with pytest.warns(RuntimeWarning, match="ReduceLROnPlateau conditioned on"):
        trainer.fit(stale, loader, loader)
    trainer.callbacks.append(collapse())
    trainer.fit_loop.max_epochs = 2
    module = net(package, None)
    trainer.fit(module, loader, loader)
    assert module.steps == 4
