"""Whatever fails during a run costs numbers and a warning, never the run, and leaks nothing."""

from __future__ import annotations

import gc
import math
import os
import pickle
import stat
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse, run_log
from ncmonitor.monitor import history
from ncmonitor.monitor.history import read_history
from toys import Recording, Toy, TrainOnly, blobs, train_loader, trainer, val_loader


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def monitor(**options: Any) -> NeuralCollapse:
    return NeuralCollapse(run_dir="run", verbose=False, **options)


def train_alone() -> Toy:
    pl.seed_everything(7, verbose=False)
    module = TrainOnly()
    trainer().fit(module, train_loader())
    return module


# -- user code -------------------------------------------------------------------------------------


class AlwaysFails(TrainOnly):
    """Cannot be evaluated after the first epoch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.trainer.global_step > 0:
            raise KeyError("a key of the user's")
        return super().forward(x)


def test_the_same_failure_is_said_once_and_summed_up_at_the_end() -> None:
    pl.seed_everything(7, verbose=False)
    module, watch = AlwaysFails(), monitor(splits=("train",))
    with pytest.warns(RuntimeWarning) as caught:
        trainer(watch).fit(module, train_loader())
    words = [str(w.message) for w in caught if "is nan" in str(w.message)]
    assert words == [
        "neural collapse of train after epoch 1 is nan, training goes on: "
        'KeyError: "a key of the user\'s"',
        'neural collapse of train is nan after epochs 1, 2, 3: KeyError: "a key of the user\'s"',
    ]
    assert watch.history["nc1"].isna().tolist() == [False, True, True, True]
    torch.testing.assert_close(module.state_dict(), train_alone().state_dict(), rtol=0, atol=0)


def test_an_interrupt_is_not_swallowed() -> None:
    class Interrupted(TrainOnly):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.trainer.global_step > 0:
                raise KeyboardInterrupt
            return super().forward(x)

    module = Interrupted()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(monitor(splits=("train",))).fit(module, train_loader())
    assert not any(m._forward_hooks for m in module.modules())


def test_a_training_step_that_fails_leaves_no_online_hook_behind() -> None:
    class Breaks(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.global_step == 2:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    module = Breaks()
    with pytest.raises(RuntimeError, match="boom"):
        trainer(monitor(splits=("train",), online=True)).fit(module, train_loader())
    assert not any(m._forward_hooks for m in module.modules())


# -- memory ----------------------------------------------------------------------------------------


class Small(TrainOnly):
    """Has memory for batches of so many."""

    room = 5

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > self.room:
            raise torch.OutOfMemoryError("no memory left")
        return super().forward(x)


def test_out_of_memory_halves_the_batches_and_changes_nothing_else() -> None:
    pl.seed_everything(7, verbose=False)
    module, watch = Small(), monitor(splits=("train",))
    with pytest.warns(RuntimeWarning, match="out of memory") as caught:
        trainer(watch).fit(module, train_loader())
    words = [str(w.message) for w in caught if "out of memory" in str(w.message)]
    assert [w.partition("with ")[2] for w in words] == [
        "batches of 16: trying 8 from here on",
        "batches of 8: trying 4 from here on",
    ]
    assert watch.history["nc1"].notna().all()
    alone = train_alone()
    torch.testing.assert_close(module.state_dict(), alone.state_dict(), rtol=0, atol=0)

    pl.seed_everything(7, verbose=False)
    roomy = monitor(splits=("train",))
    trainer(roomy).fit(TrainOnly(), train_loader())
    columns = ["nc1", "nc2_etf_means", "nc3_self_duality", "error"]
    one, two = watch.history[columns].to_numpy(), roomy.history[columns].to_numpy()
    assert one == pytest.approx(two, rel=1e-6)


def test_out_of_memory_for_a_single_sample_is_given_up() -> None:
    class Full(Small):
        def forward(self, x: Tensor) -> Tensor:
            self.room = 0 if self.trainer.global_step > 0 else 99
            return super().forward(x)

    watch = monitor(splits=("train",))
    with (
        pytest.warns(RuntimeWarning, match="OutOfMemoryError: no memory left"),
        pytest.warns(RuntimeWarning, match="trying 1 from here on"),
        pytest.warns(RuntimeWarning, match="trying [248] from here on"),
    ):
        trainer(watch, max_epochs=1).fit(Full(), train_loader())
    assert watch.history["nc1"].isna().tolist() == [False, True]


# -- loggers and disks -----------------------------------------------------------------------------


class Broken(CSVLogger):
    """Fails for the untrained network, whose row goes to the logger past Lightning's own calls."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == 0:
            raise ConnectionError("the server is away")
        super().log_metrics(metrics, step)


def test_a_logger_that_raises_costs_a_warning() -> None:
    watch = monitor()
    with pytest.warns(RuntimeWarning, match="epoch 0 is missing from Broken.*server is away"):
        trainer(watch, logger=Broken("logs")).fit(Toy(), train_loader(), val_loader())
    assert sorted(set(watch.history["epoch"])) == [0, 1, 2, 3]


@pytest.fixture
def not_the_superuser() -> Iterator[None]:
    """Nobody's rights: root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_read_only_folder_is_refused_before_the_first_step(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(stat.S_IRUSR | stat.S_IXUSR)
    fit = trainer(NeuralCollapse(run_dir=tmp_path / "run", verbose=False))
    request.getfixturevalue("not_the_superuser")
    with pytest.raises(InputError, match=r"cannot be written.*pass run_dir="):
        fit.fit(Toy(), train_loader(), val_loader())
    assert fit.global_step == 0


def test_a_folder_that_becomes_read_only_costs_warnings_and_the_file_catches_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append, locked = history.append_history, {1, 2}

    def refuses(work: Any) -> Any:
        def call(run_dir: Path, *rows: Any) -> None:
            if watch.history["epoch"].max() in locked:
                raise PermissionError(13, "Read-only file system")
            work(run_dir, *rows)

        return call

    watch = monitor()
    fit = trainer(watch, max_epochs=4)
    monkeypatch.setattr(run_log, "append_history", refuses(append))
    with pytest.warns(RuntimeWarning, match="could not be written.*Read-only"):
        fit.fit(Toy(), train_loader(), val_loader())
    assert sorted(set(read_history("run")["epoch"])) == [0, 1, 2, 3, 4]


# -- leaks -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"online": True, "layers": "all", "null_seed": 0}])
def test_fifty_measurements_grow_neither_hooks_nor_memory(options: dict[str, Any]) -> None:
    sizes: dict[int, tuple[int, int, int]] = {}

    class Scales(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch not in (30, 80):
                return
            gc.collect()
            objects = gc.get_objects()
            tensors = sum(issubclass(type(each), Tensor) for each in objects)
            hooks = sum(len(m._forward_hooks) for m in pl_module.modules())
            sizes[trainer.current_epoch] = (tensors, hooks, len(objects))

    module = TrainOnly()
    module.losses = _Forgets()
    module.on_train_epoch_start = lambda: None  # type: ignore[method-assign]
    watch = monitor(splits=("train",), schedule="every_epoch", **options)
    data = Recording(9)
    data.order = _Forgets()
    # The terminal phase begins before epoch 30: from then on nothing new is logged.
    trainer(watch, Scales(), max_epochs=81).fit(module, train_loader(data, batch_size=9))
    assert len(watch.history.query("split == 'train'")) == 82
    assert watch.history["tpt_start_exact"].max() < 30
    (tensors, hooks, objects), before = sizes[80], sizes[30]
    assert (tensors, hooks) == (before[0], 0)
    rows = len(watch.history) / 82
    assert objects - before[2] <= 50 * (rows + 1)  # the history grows by a dictionary for each row


class _Forgets(list[Any]):
    def append(self, _: Any) -> None: ...


# -- what stands around a measurement --------------------------------------------------------------


class Logs(TrainOnly):
    """Logs from within forward, as people do to watch activations."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.training or self.trainer.state.stage == "validate":
            self.log("sparsity", (hidden > 0).float().mean(), on_step=True, on_epoch=True)
        return self.head(hidden)


def test_what_a_forward_logs_is_what_training_logs() -> None:
    def logged(*callbacks: pl.Callback) -> float:
        pl.seed_everything(7, verbose=False)
        fit = trainer(*callbacks)
        fit.fit(Logs(), train_loader())
        return float(fit.callback_metrics["sparsity_epoch"])

    assert logged(monitor(splits=("train",))) == logged()


def test_a_log_function_of_the_modules_own_is_put_back() -> None:
    module, seen = TrainOnly(), []
    own: Any = lambda name, *_, **__: seen.append(name)  # noqa: E731
    vars(module)["log"] = own
    trainer(monitor(splits=("train",)), max_epochs=1).fit(module, train_loader())
    assert vars(module)["log"] is own
    assert "log_dict" not in vars(module)


def test_a_lazy_layer_that_never_runs_is_no_obstacle() -> None:
    class Spare(TrainOnly):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.LazyLinear(3)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], 0.05)

    watch = monitor(splits=("train",))
    trainer(watch, max_epochs=1).fit(Spare(), train_loader())
    assert watch.history["nc1"].notna().all()


def test_a_listener_that_fails_costs_a_warning() -> None:
    watch = monitor(splits=("train",))

    def listener(*_: Any) -> None:
        raise KeyError("of a listener")

    watch.after_measurement.append(listener)
    with (
        pytest.warns(RuntimeWarning, match="a listener of epoch 0 has failed"),
        pytest.warns(RuntimeWarning, match="a listener of epoch 1 has failed.*of a listener"),
    ):
        trainer(watch, max_epochs=1).fit(TrainOnly(), train_loader())
    assert watch.history["epoch"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["stopping", "saving"])
def test_a_first_measurement_that_fails_does_not_end_a_monitored_run(kind: str) -> None:
    class FailsFirst(TrainOnly):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.trainer.global_step == 3:
                raise RuntimeError("boom")
            return super().forward(x)

    watch = monitor(splits=("train",), schedule=[])
    other: Any = pl.callbacks.EarlyStopping("nc/train/nc1", patience=99)
    if kind == "saving":
        other = pl.callbacks.ModelCheckpoint("kept", monitor="nc/train/nc1")
    fit = trainer(watch, other, max_epochs=4, enable_checkpointing=kind == "saving")
    with pytest.warns(RuntimeWarning, match="after epoch 1 is nan.*boom"):
        fit.fit(FailsFirst(), train_loader())
    assert watch.history["epoch"].tolist() == [0, 1, 2, 4]  # the value is owed until it is there
    best = other.best_score if kind == "stopping" else other.best_model_score
    assert float(best) == pytest.approx(watch.history["nc1"].min(), rel=1e-6)


def test_a_warning_of_every_measurement_is_said_once_per_fit() -> None:
    watch = monitor(splits=("train",), cache_bytes=10)
    with pytest.warns(UserWarning, match="more than cache_bytes=10") as caught:
        trainer(watch, max_epochs=4).fit(TrainOnly(), train_loader())
    assert len([w for w in caught if "cache_bytes" in str(w.message)]) == 1


# -- a callback's life -----------------------------------------------------------------------------


def test_a_callback_lets_go_of_trainer_and_model_and_travels_light() -> None:
    watch, module = monitor(splits=("train",), online=True), TrainOnly()
    fit = trainer(watch, max_epochs=1)
    fit.fit(module, train_loader())
    gone = weakref.ref(module)
    twin = pickle.loads(pickle.dumps(watch))
    assert len(pickle.dumps(watch)) < 60_000
    pd.testing.assert_frame_equal(twin.history, watch.history)
    del fit, module
    gc.collect()
    assert gone() is None
    assert watch.report is not None
    assert math.isfinite(watch.report.nc1)


def test_a_used_callback_begins_anew_in_another_trainer() -> None:
    keep = pl.callbacks.ModelCheckpoint("kept", save_last=True)
    trainer(keep, max_epochs=2, enable_checkpointing=True).fit(TrainOnly(), train_loader())
    watch = monitor(splits=("train",))
    trainer(watch, max_epochs=1).fit(TrainOnly(), train_loader())
    keep = pl.callbacks.ModelCheckpoint("kept", save_last=True)
    fit = trainer(watch, keep, max_epochs=4, enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder is not empty
        fit.fit(TrainOnly(), train_loader(), ckpt_path="kept/last.ckpt")
    assert watch.history["epoch"].tolist() == [2, 3, 4]


def test_a_second_fit_of_the_same_trainer_goes_on() -> None:
    watch, module = monitor(splits=("train",)), TrainOnly()
    fit = trainer(watch, max_epochs=1)
    fit.fit(module, train_loader())
    fit.fit_loop.max_epochs = 3
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in eval mode at the start", UserWarning)
        fit.fit(module, train_loader())
    assert watch.history["epoch"].tolist() == [0, 1, 2, 3]


def test_two_monitors_that_would_write_one_table_are_refused() -> None:
    fit = trainer(monitor(), monitor(prefix="raw"))
    with pytest.raises(InputError, match="write to run_dir='run': give each its own"):
        fit.fit(TrainOnly(), train_loader())


# -- the test set ----------------------------------------------------------------------------------


def after_a_test(module: Toy, loaders: Any, **settings: Any) -> NeuralCollapse:
    watch = monitor(splits=("train",))
    trainer(watch).fit(module, train_loader())
    other = trainer(watch, **settings)  # has seen no epoch itself
    other.test(module, loaders, verbose=False)
    return watch


def test_the_test_rows_have_the_epoch_of_the_weights_and_a_split_for_each_loader() -> None:
    class Indexed(TrainOnly):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    rows = after_a_test(Indexed(), [val_loader(), train_loader(shuffle=False)]).history
    last = rows.query("split.str.startswith('test')")
    assert last["split"].tolist() == ["test0", "test1"]
    assert last["epoch"].tolist() == [3, 3]
    assert last["step"].tolist() == [9, 9]


def test_a_test_set_without_end_is_measured_as_far_as_the_trainer_reads() -> None:
    class Endless(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Any:
            while True:
                yield from zip(*blobs(), strict=True)

    rows = after_a_test(
        TrainOnly(), DataLoader(Endless(), batch_size=15), limit_test_batches=2
    ).history
    assert rows.query("split == 'test'")["min_class_count"].tolist() == [10]


def test_a_frozen_head_does_not_make_other_weights_the_same() -> None:
    watch, module = monitor(splits=("train",)), TrainOnly()
    module.head.requires_grad_(requires_grad=False)
    fit = trainer(watch, max_epochs=1)
    fit.fit(module, train_loader())
    with torch.no_grad():
        next(module.body.parameters()).mul_(2)
    with pytest.warns(RuntimeWarning, match="measured against its own class means"):
        fit.test(module, val_loader(), verbose=False)
    assert set(read_history("run")["split"]) == {"train"}


# -- wrong options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind"),
    [(lambda: None, "None"), (TensorDataset(*blobs()), "TensorDataset")],
)
def test_what_is_no_loader_is_refused_in_words(given: Any, kind: str) -> None:
    fit = trainer(monitor(splits="train", dataloader=given))
    with pytest.raises(InputError, match=rf"dataloader= must be a loader.*{kind}.*DataLoader"):
        fit.fit(TrainOnly(), train_loader())


def test_an_unlabelled_validation_set_is_named_with_the_way_around_it() -> None:
    fit = trainer(monitor())
    bare = DataLoader(TensorDataset(blobs()[0]), batch_size=8)

    class Unlabelled(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    with pytest.raises(InputError, match=r"the val data cannot be measured.*splits=\('train',\)"):
        fit.fit(Unlabelled(), train_loader(), bare)
    with pytest.raises(InputError, match="prefix= "):
        NeuralCollapse(prefix="")
