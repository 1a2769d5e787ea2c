"""Whatever fails during a run costs numbers and a warning, never the run, and leaks nothing."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from ncmonitor import InputError, history
from ncmonitor.callbacks import NeuralCollapse, run_log
from ncmonitor.history import read_history
from toys import Recording, Toy, TrainOnly, train_loader, trainer, val_loader


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
