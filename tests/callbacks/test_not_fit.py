"""What is tested or validated outside of a fit is measured, and restoring is not resuming.

| what is called | what is measured, and kept |
|---|---|
| `test`, `validate` with a fresh callback | measured, against its own means, which is said |
| `test(ckpt_path=)` in another process | against the train means in the checkpoint |
| `test(ckpt_path=)` of an earlier epoch | against that epoch's means; the history stays whole |
| a checkpoint saved before its epoch was measured | own means, said; in memory the right ones |
| `dataloader=` and unknown weights | the train means are measured first |
| `predict`, a fit's own validation | nothing |
| data that cannot be measured | one warning that says what to do; the test goes on |
| another model, also with a learning-rate finder | a new history, clock and terminal phase |
| the same model in the same trainer, or `fit(ckpt_path=)` | goes on, also with a finder |
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from pytorch_lightning.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError, measure_collapse
from ncmonitor.callbacks import CollapseFigures, NeuralCollapse, SymmetryMonitor, TerminalPhase
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.symmetry_table import read_symmetry
from ncmonitor.recipes.fit.random_state import Randomness
from ncmonitor.symmetry import Action, Group
from toys import Recording, Toy, TrainOnly, blobs, train_loader, trainer, val_blobs, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:no validation data"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:the classifier has 1000 outputs"),
]

OWN = "measured against its own class means"
SIGN = Group.of("sign", [Action("minus", lambda x: -x)], kind="vectors", exact=True)
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def monitor(**settings: Any) -> NeuralCollapse:
    return NeuralCollapse(**{"run_dir": "run", "verbose": False, **settings})


def saves(**settings: Any) -> ModelCheckpoint:
    every = {
        "save_top_k": -1,
        "every_n_epochs": 1,
        "save_on_train_epoch_end": True,
        "monitor": None,
    }
    return ModelCheckpoint("kept", filename="{epoch}", **(every | settings))


def features(module: Toy, inputs: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module.body(inputs)


def by_hand(module: Toy, data: tuple[Tensor, Tensor] | None = None, *, trained: bool) -> Any:
    """Measure some data with the module's weights, against its training set's means or its own."""
    inputs, labels = val_blobs() if data is None else data
    reference = None
    if trained:
        reference = measure_collapse(features(module, blobs()[0]), blobs()[1]).moments
    head, body = module.head, features(module, inputs)
    return measure_collapse(body, labels, head.weight, head.bias, reference=reference)


def at_epoch(epoch: int, *, kind: type[Toy] = Toy) -> Toy:
    module = kind()
    saved = torch.load(f"kept/epoch={epoch}.ckpt", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    return module


def check(values: Mapping[str, float], expected: Any, split: str = "test") -> None:
    for name in ("nc1", "nc2_etf_means", "nc4_disagreement", "ncc_accuracy", "error"):
        found = values[f"nc/{split}/{name}"]
        assert found == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-7), name


@pytest.fixture
def no_warning() -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if "class means" in str(w.message)]


def test_the_two_references_decide_differently_here() -> None:
    torch.manual_seed(0)
    module = Toy()
    own, trained = by_hand(module, trained=False), by_hand(module, trained=True)
    assert own.ncc_accuracy != trained.ncc_accuracy


# -- test and validate with a fresh callback -------------------------------------------------------


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(("call", "split"), [("test", "test"), ("validate", "val")])
def test_a_fresh_callback_measures_what_it_is_asked_to(call: str, split: str, online: bool) -> None:
    watch, module = NeuralCollapse(verbose=False, online=online), Toy()
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.warns(RuntimeWarning, match=OWN) as caught:
        [values] = getattr(trainer(watch), call)(module, val_loader(), verbose=False)
    said = [str(w.message) for w in caught if OWN in str(w.message)]
    assert len(said) == 1
    assert "dataloader=train_loader" in said[0]
    check(values, by_hand(module, trained=False), split)
    assert "nc/epoch" not in values  # nobody knows how far these weights were trained
    assert watch.history[["epoch", "step", "split"]].values.tolist() == [[-1, -1, split]]
    assert not list(Path().rglob("*.csv"))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_several_loaders_are_several_splits() -> None:
    class Indexed(Toy):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    watch, module = monitor(), Indexed()
    both = [val_loader(), train_loader(shuffle=False)]
    with pytest.warns(RuntimeWarning, match=OWN):
        values = trainer(watch).test(module, both, verbose=False)[0]
    check(values, by_hand(module, trained=False), "test0")
    check(values, by_hand(module, blobs(), trained=False), "test1")


def test_a_test_shuffles_limits_and_repeats_nothing() -> None:
    watch, module = monitor(), Toy()
    loader = DataLoader(TensorDataset(*val_blobs()), 7, shuffle=True, drop_last=True)
    with pytest.warns(RuntimeWarning, match=OWN):
        [values] = trainer(watch).test(module, loader, verbose=False)
    check(values, by_hand(module, trained=False))
    with pytest.warns(RuntimeWarning, match=OWN):
        trainer(watch).test(module, loader, verbose=False)
    assert len(watch.history) == 1


def test_the_train_means_are_measured_where_their_loader_is_given(no_warning: Any) -> None:
    watch, module = monitor(dataloader=lambda: train_loader()), Toy()
    [values] = trainer(watch).test(module, val_loader(), verbose=False)
    check(values, by_hand(module, trained=True))
    assert no_warning() == []


def test_symmetry_is_measured_too() -> None:
    fitted, module = signs(schedule=[], run_dir="sym"), Toy()
    fit = trainer(fitted, saves(), max_epochs=2, enable_checkpointing=True)
    fit.fit(module, train_loader(), val_loader())
    at_end = fitted.history.query("split == 'val' and epoch == 2 and element == '' and layer == ''")
    whole = fitted.history
    for call, split in (("test", "test"), ("validate", "val")):
        fresh = signs()
        [values] = getattr(trainer(fresh), call)(
            module, val_loader(), ckpt_path="kept/epoch=1.ckpt", verbose=False
        )
        expected = at_end.query("group == 'sign'")["inv_error"].item()
        assert values[f"nc/{split}/symmetry/sign/inv_error"] == pytest.approx(expected)
        assert set(fresh.history["epoch"]) == {2}
    # An earlier checkpoint: measured, its rows beside those of its epoch, and nothing is lost.
    fit.test(module, val_loader(), ckpt_path="kept/epoch=0.ckpt", verbose=False)
    rows = fitted.history
    pd.testing.assert_frame_equal(
        rows.query("split != 'test'").reset_index(drop=True), whole, check_like=True
    )


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "split"), [("test", "test"), ("validate", "val")])
def test_a_checkpoint_brings_its_train_means(call: str, split: str, no_warning: Any) -> None:
    fit = trainer(monitor(), saves(), max_epochs=3, enable_checkpointing=True)
    fit.fit(Toy(), train_loader(), val_loader())
    fresh = monitor(run_dir="other")
    [values] = getattr(trainer(fresh), call)(
        Toy(), val_loader(), ckpt_path="kept/epoch=1.ckpt", weights_only=True, verbose=False
    )
    check(values, by_hand(at_epoch(1), trained=True), split)
    assert values["nc/epoch"] == 2
    assert fresh.history[["epoch", "step", "split"]].values.tolist() == [[2, 6, split]]
    assert no_warning() == []
    assert not Path("other").exists()


def test_a_test_of_an_earlier_checkpoint_leaves_history_and_clock_whole(no_warning: Any) -> None:
    watch, phase, figures = monitor(), TerminalPhase(epochs=90), CollapseFigures(figures=[])
    module = Toy()
    fit = trainer(watch, phase, figures, saves(), max_epochs=5, enable_checkpointing=True)
    fit.fit(module, train_loader(), val_loader())
    before, clock, onset = (
        watch.history,
        watch._run_state.state_dict()["clock"],
        phase.onset_checkpoint,
    )
    taken = figures.state_dict()["taken"]
    [values] = fit.test(module, val_loader(), ckpt_path="kept/epoch=1.ckpt", verbose=False)
    check(values, by_hand(at_epoch(1), trained=True))
    history = watch.history
    tested = history.query("split == 'test'")
    assert tested[["epoch", "step"]].values.tolist() == [[2, 6]]
    rest = history.query("split != 'test'").reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before)
    assert history["epoch"].is_monotonic_increasing
    pd.testing.assert_frame_equal(read_history("run"), history)
    assert watch._run_state.state_dict()["clock"] == clock
    assert (phase.onset_checkpoint, figures.state_dict()["taken"]) == (onset, taken)
    assert no_warning() == []
    # Once more, of the same epoch and of the last one: no row is there twice.
    fit.test(module, val_loader(), ckpt_path="kept/epoch=1.ckpt", verbose=False)
    fit.test(module, val_loader(), ckpt_path="kept/epoch=4.ckpt", verbose=False)
    assert watch.history.query("split == 'test'")["epoch"].tolist() == [2, 5]
    pd.testing.assert_frame_equal(read_history("run"), watch.history)


@pytest.mark.parametrize("light", [False, True])
def test_the_best_by_validation_is_tested_right(light: bool, no_warning: Any) -> None:
    """Saved by the validation, before the epoch is measured: the means are not in the file."""
    best = ModelCheckpoint(
        "kept", filename="{epoch}", monitor="val_loss", mode="max", save_weights_only=light,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    watch, module = monitor(), Toy()
    fit = trainer(watch, best, max_epochs=3, enable_checkpointing=True)
    fit.fit(module, train_loader(), val_loader())
    epoch = int(Path(best.best_model_path).stem.removeprefix("epoch="))
    [values] = fit.test(module, val_loader(), ckpt_path="best", verbose=False)
    check(values, by_hand(at_epoch(epoch), trained=True))
    assert values["nc/epoch"] == epoch + 1
    assert no_warning() == []


def test_a_file_without_its_own_means_says_how_to_save_better_ones() -> None:
    best = saves(save_on_train_epoch_end=False)
    fit = trainer(monitor(), best, max_epochs=2, enable_checkpointing=True)
    fit.fit(Toy(), train_loader(), val_loader())
    with pytest.warns(RuntimeWarning, match=r"save_on_train_epoch_end=True"):
        [values] = trainer(monitor()).test(
            Toy(), val_loader(), ckpt_path="kept/epoch=1.ckpt", verbose=False
        )
    check(values, by_hand(at_epoch(1), trained=False))
    assert values["nc/epoch"] == 2  # of these weights, though saved before the epoch was over


def test_a_checkpoint_of_a_run_without_the_monitor_is_measured() -> None:
    fit = trainer(saves(), max_epochs=2, enable_checkpointing=True)
    fit.fit(Toy(), train_loader(), val_loader())
    with pytest.warns(RuntimeWarning, match=OWN):
        [values] = trainer(monitor()).test(
            Toy(), val_loader(), ckpt_path="kept/epoch=1.ckpt", verbose=False
        )
    check(values, by_hand(at_epoch(1), trained=False))
    assert values["nc/epoch"] == 2


def test_large_class_means_are_not_saved() -> None:
    class Wide(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6000), nn.Linear(6000, 1000)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def test_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    watch = monitor(splits=("train",), schedule=[], metrics=["nc4"])
    fit, module = trainer(watch, max_epochs=1), Wide()
    fit.fit(module, train_loader())
    assert watch.state_dict()["means"] is None  # 1000 x 6000 x 12 bytes are above 64 MiB
    fit.save_checkpoint("wide.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=OWN)
        fit.test(module, val_loader(), verbose=False)  # in memory they are
    with pytest.warns(RuntimeWarning, match=OWN):
        trainer(monitor()).test(Wide(), val_loader(), ckpt_path="wide.ckpt", verbose=False)


def test_weights_of_no_measurement_are_measured_against_their_own_means() -> None:
    watch, module = monitor(), Toy()
    fit = trainer(watch, max_epochs=2)
    fit.fit(module, train_loader(), val_loader())
    on_disk = Path("run/history.csv").read_text()
    with torch.no_grad():
        next(module.body.parameters()).mul_(2)
    with pytest.warns(RuntimeWarning, match=OWN):
        [values] = fit.test(module, val_loader(), verbose=False)
    check(values, by_hand(module, trained=False))
    assert watch.history.query("split == 'test'")["epoch"].tolist() == [-1]
    assert Path("run/history.csv").read_text() == on_disk
    assert "test" not in {row["split"] for row in watch.state_dict()["rows"]}


def test_new_running_statistics_are_other_features() -> None:
    watch, module = monitor(), Toy()
    fit = trainer(watch, max_epochs=1)
    fit.fit(module, train_loader(), val_loader())
    with torch.no_grad():
        module.body[1].get_buffer("running_mean").add_(1)  # as torch.optim.swa_utils.update_bn does
    with pytest.warns(RuntimeWarning, match=OWN):
        [values] = fit.test(module, val_loader(), verbose=False)
    check(values, by_hand(module, trained=False))


# -- validate and fit do not mix -------------------------------------------------------------------


def other_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs(24, seed=9, noise=4.0)), batch_size=8)


def test_validate_measures_its_own_loader_and_leaves_the_fits_rows(no_warning: Any) -> None:
    watch, module = monitor(), Toy()
    fit = trainer(watch, max_epochs=2)
    fit.fit(module, train_loader(), val_loader())
    before = watch.history
    [values] = fit.validate(module, other_loader(), verbose=False)
    check(values, by_hand(module, blobs(24, seed=9, noise=4.0), trained=True), "val")
    pd.testing.assert_frame_equal(watch.history, before)
    pd.testing.assert_frame_equal(read_history("run"), before)
    assert no_warning() == []


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_fit_after_validate_measures_the_fits_loader(sanity: int) -> None:
    watch, module = monitor(), Toy()
    fit = trainer(watch, max_epochs=1, num_sanity_val_steps=sanity)
    with pytest.warns(RuntimeWarning, match=OWN):
        fit.validate(module, other_loader(), verbose=False)
    expected = by_hand(module, trained=True)
    fit.fit(module, train_loader(), val_loader())
    first = watch.history.query("epoch == 0 and split == 'val'").iloc[0]
    assert first["nc1"] == pytest.approx(expected.nc1, rel=1e-5)


def test_a_fits_own_validation_and_predict_measure_nothing(no_warning: Any) -> None:
    watch, module = monitor(schedule=[]), Toy()
    fit = trainer(watch, max_epochs=4, val_check_interval=1)
    fit.fit(module, train_loader(), val_loader())
    assert watch.history["epoch"].tolist() == [0, 0, 4, 4]
    fresh = monitor(run_dir="fresh")
    trainer(fresh).predict(module, unlabelled())
    assert len(fresh.history) == 0
    assert no_warning() == []


def test_a_split_that_is_left_out_is_not_validated() -> None:
    watch = monitor(splits=("train",))
    [values] = trainer(watch).validate(Toy(), val_loader(), verbose=False)
    assert set(values) == {"val_loss"}


# -- what cannot be measured -----------------------------------------------------------------------


class Bare(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


def unlabelled() -> DataLoader[Any]:
    return DataLoader(Bare(val_blobs()[0]), batch_size=8)


class Inputs(Toy):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mean", self(batch).mean())


def test_data_without_labels_cost_one_warning() -> None:
    watch = monitor()
    with pytest.warns(RuntimeWarning, match="the test set is not measured.*batch_to_xy"):
        [values] = trainer(watch).test(Inputs(), unlabelled(), verbose=False)
    assert set(values) == {"mean"}
    assert len(watch.history) == 0
    with pytest.raises(InputError, match="batch_to_xy"):
        trainer(monitor(on_error="raise")).test(Inputs(), unlabelled(), verbose=False)


def test_a_head_that_cannot_be_found_costs_one_warning() -> None:
    class Quadratic(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[:, :3].square()

    with pytest.warns(RuntimeWarning, match="the test set is not measured.*classifier="):
        [values] = trainer(monitor()).test(Quadratic(), val_loader(), verbose=False)
    assert set(values) == {"test_loss"}


# -- another fit -----------------------------------------------------------------------------------


def hard_loader() -> DataLoader[Any]:
    inputs, _ = blobs()
    labels = torch.randint(3, (45,), generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(inputs, labels), 16, shuffle=True)


class Steady(TrainOnly):
    """Without dropout, and with a rate that a finder can set."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3] = nn.Identity()


def finder() -> LearningRateFinder:
    return LearningRateFinder(num_training_steps=5, update_attr=False)


def signs(**settings: Any) -> SymmetryMonitor:
    given: dict[str, Any] = {"verbose": False, "schedule": "every_epoch", "parameters": False}
    return SymmetryMonitor(SIGN, **(given | settings))


@pytest.mark.parametrize("finds", [False, True])
def test_another_model_in_another_trainer_starts_a_new_history(finds: bool) -> None:
    def fit(callbacks: list[pl.Callback], loader: DataLoader[Any]) -> pl.Trainer:
        torch.manual_seed(1)
        more = [finder()] if finds else []
        made = trainer(*more, *callbacks, max_epochs=6, num_sanity_val_steps=0)
        made.fit(Steady(), loader)
        return made

    watch, phase, sign = monitor(run_dir=None), TerminalPhase(epochs=2, checkpoint=False), signs()
    figures = CollapseFigures("every_epoch", figures=[])
    fit([watch, phase, sign, figures], train_loader())
    assert phase.reason is not None  # or there would be nothing to forget
    second = fit([watch, phase, sign, figures], hard_loader())
    fresh, sign_fresh = monitor(run_dir="fresh"), signs(run_dir="signs")
    fit([fresh, sign_fresh], hard_loader())
    assert [second.current_epoch, phase.reason, phase.stopped_epoch] == [6, None, None]
    drop = ["seconds"]
    pd.testing.assert_frame_equal(
        watch.history.drop(columns=drop), fresh.history.drop(columns=drop)
    )
    pd.testing.assert_frame_equal(
        sign.history.drop(columns=drop), sign_fresh.history.drop(columns=drop)
    )
    assert watch.run_dir is not None
    lines = (watch.run_dir / "snapshots.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]


def test_another_model_in_the_same_trainer_starts_a_new_history() -> None:
    watch, sign = monitor(), signs()
    phase = TerminalPhase(start="effective")
    fit = trainer(watch, sign, phase, max_epochs=3)
    fit.fit(Steady(), train_loader())
    phase.onset_checkpoint = Path("of-the-first.ckpt")
    fit.fit_loop.max_epochs = 5
    fit.fit(Steady(), hard_loader())
    assert watch.history["epoch"].tolist() == [3, 4, 5]  # Lightning counts on
    assert sorted(set(sign.history["epoch"])) == [3, 4, 5]
    assert phase.onset_checkpoint != Path("of-the-first.ckpt")
    assert len(list(Path("run").glob("history*.csv"))) == 2  # the first one is set aside


def test_the_same_model_goes_on_in_the_same_trainer() -> None:
    watch, sign, module = monitor(), signs(), Steady()
    fit = trainer(watch, sign, max_epochs=2)
    fit.fit(module, train_loader())
    fit.test(module, val_loader(), verbose=False)
    fit.fit_loop.max_epochs = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(module, train_loader())
    assert watch.history.query("split == 'train'")["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(set(sign.history["epoch"])) == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("tunes", [False, True])
def test_a_resume_goes_on_also_after_the_tuner(tunes: bool) -> None:
    def run(folder: str, epochs: int, checkpoint: str | None = None) -> tuple[Any, Any]:
        pl.seed_everything(3, verbose=False)
        watch, sign = monitor(run_dir=folder, splits=("train",)), signs(run_dir=folder)
        module = Steady()
        fit = trainer(watch, sign, Randomness(), max_epochs=epochs, num_sanity_val_steps=0)
        if tunes and checkpoint:
            Tuner(fit).lr_find(module, train_loader(), num_training=5, update_attr=False)
        fit.fit(module, train_loader(), ckpt_path=checkpoint, weights_only=True)
        fit.save_checkpoint(f"{folder}.ckpt")
        return watch.history.drop(columns="seconds"), sign.history.drop(columns="seconds")

    whole, part = run("whole", 5), run("part", 3)
    assert part[0]["epoch"].tolist() == [0, 1, 2, 3]
    rest = run("rest", 5, "part.ckpt")
    for resumed, unbroken in zip(rest, whole, strict=True):
        pd.testing.assert_frame_equal(resumed, unbroken, rtol=1e-9)
    pd.testing.assert_frame_equal(read_history("rest").drop(columns="seconds"), rest[0])
    assert len(read_symmetry("rest")) == len(rest[1])


def test_a_finder_in_a_resumed_fit_starts_the_history_where_lightning_starts() -> None:
    """It makes Lightning forget the progress in the checkpoint: the weights alone are loaded."""
    first = trainer(saves(), monitor(run_dir="first"), max_epochs=3, enable_checkpointing=True)
    first.fit(Steady(), train_loader())
    watch, sign = monitor(), signs()
    fit = trainer(finder(), watch, sign, max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="starts at epoch 0"):
        fit.fit(Steady(), train_loader(), ckpt_path="kept/epoch=2.ckpt")
    assert watch.history["epoch"].tolist() == [0, 1] == sorted(set(sign.history["epoch"]))
    module = at_epoch(2, kind=Steady)
    expected = by_hand(module, blobs(), trained=False)
    assert watch.history["nc1"].iloc[0] == pytest.approx(expected.nc1, rel=1e-5)


def test_a_finder_in_the_middle_of_a_fit_changes_nothing() -> None:
    class Later(LearningRateFinder):
        def on_fit_start(self, *_: Any) -> None: ...

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                self.lr_find(trainer, pl_module)

    watch = monitor()
    later = Later(num_training_steps=5, update_attr=False)
    trainer(watch, later, max_epochs=4).fit(Steady(), train_loader(shuffle=False))
    assert watch.history["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert read_history("run")["epoch"].tolist() == [0, 1, 2, 3, 4]


# -- the tuner -------------------------------------------------------------------------------------


class Sized(Steady):
    """Makes its own loaders, of a size that a finder can set."""

    test_step = Toy.test_step
    validation_step = Toy.validation_step

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 8

    def train_dataloader(self) -> Any:
        return train_loader(Recording(), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*val_blobs()), batch_size=self.batch_size)

    test_dataloader = val_dataloader


def sizes() -> BatchSizeFinder:
    return BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2)


@pytest.mark.slow
def test_the_tuner_leaves_no_rows_and_takes_none() -> None:
    watch, sign, module = monitor(), signs(), Sized()
    fit = trainer(watch, sign, max_epochs=2)
    tuner = Tuner(fit)
    tuner.lr_find(module, num_training=5)
    tuner.scale_batch_size(module, steps_per_trial=1, init_val=4, max_trials=2)
    tuner.scale_batch_size(module, method="test", steps_per_trial=1, init_val=4, max_trials=2)
    assert len(watch.history) + len(sign.history) == 0
    fit.fit(module)
    train = "split == 'train'"
    assert watch.history.query(train)["epoch"].tolist() == [0, 1, 2]
    tuner.lr_find(module, num_training=5)
    tuner.scale_batch_size(module, method="validate", steps_per_trial=1, init_val=4, max_trials=2)
    assert watch.history.query(train)["epoch"].tolist() == [0, 1, 2]
    assert sorted(set(sign.history["epoch"])) == [0, 1, 2]
    # Another trainer's tuner does not end what is known of the first, either.
    Tuner(trainer(watch, sign)).lr_find(Sized(), num_training=5)
    assert watch.history.query(train)["epoch"].tolist() == [0, 1, 2]
    [values] = fit.test(module, verbose=False)
    check(values, by_hand(module, trained=True))


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fit", "validate", "test"])
def test_a_batch_size_finder_beside_the_monitor(call: str, no_warning: Any) -> None:
    first = monitor(run_dir="first")
    fit = trainer(first, saves(), max_epochs=2, enable_checkpointing=True)
    fit.fit(Sized())
    watch, module = monitor(), Sized()
    again = trainer(sizes(), watch, max_epochs=2)
    if call == "fit":
        again.fit(module)
        assert watch.history.query("split == 'train'")["epoch"].tolist() == [0, 1, 2]
        return
    [values] = getattr(again, call)(module, ckpt_path="kept/epoch=1.ckpt", verbose=False)
    # What the finder has put back is not what the test looks at.
    check(
        values, by_hand(at_epoch(1, kind=Sized), trained=True), call[:3] if call != "test" else call
    )
    assert values["nc/epoch"] == 2
    assert no_warning() == []


def test_what_is_tested_does_not_set_the_random_state_of_the_next_fit() -> None:
    fit = trainer(Randomness(), saves(), max_epochs=1, enable_checkpointing=True)
    fit.fit(Steady(), train_loader())

    def order(*, tests: bool) -> list[int]:
        made, data = trainer(Randomness(), max_epochs=1), Recording()
        if tests:
            made.test(Steady(), val_loader(), ckpt_path="kept/epoch=0.ckpt", verbose=False)
        torch.manual_seed(7)
        module = Steady()
        made.fit(module, train_loader(data))
        return data.order

    assert order(tests=True) == order(tests=False)


# -- several processes -----------------------------------------------------------------------------

WORKER = """
import json, sys
import pytorch_lightning as pl
from torch.utils.data import DataLoader, TensorDataset
from ncmonitor.callbacks import NeuralCollapse
from toys import Toy, blobs, train_loader, trainer

if __name__ == "__main__":
    pl.seed_everything(1, verbose=False)
    watch, module = NeuralCollapse(run_dir="ddp", verbose=False), Toy()
    two = trainer(watch, devices=2, strategy="ddp", max_epochs=1)
    odd = DataLoader(TensorDataset(*blobs(31, seed=4, noise=2.5)), batch_size=8)
    ckpt = sys.argv[1] if len(sys.argv) > 1 else None
    [values] = two.test(module, odd, ckpt_path=ckpt, verbose=False)
    with open(f"{two.global_rank}.json", "w") as file:
        json.dump([values, watch.history.fillna(-9).to_dict("records")], file)
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_test_every_sample_once() -> None:
    pl.seed_everything(1, verbose=False)
    fit = trainer(monitor(), saves(), max_epochs=1, enable_checkpointing=True)
    fit.fit(Toy(), train_loader(), val_loader())
    Path("worker.py").write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    done = subprocess.run(
        [sys.executable, "worker.py", "kept/epoch=0.ckpt"],
        capture_output=True, text=True, timeout=200, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (values, rows), (_, others) = (json.loads(Path(f"{r}.json").read_text()) for r in (0, 1))
    check(values, by_hand(at_epoch(0), blobs(31, seed=4, noise=2.5), trained=True))
    assert rows == others
    [row] = rows
    counts = torch.bincount(blobs(31, seed=4)[1])
    assert (row["split"], row["epoch"]) == ("test", 1)
    assert row["min_class_count"] == int(counts.min())
