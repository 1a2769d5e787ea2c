"""SymmetryMonitor: its numbers, its promises, and what it refuses before the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import reference_symmetry as naive
from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
from ncmonitor.monitor.symmetry_table import read_symmetry, symmetry_frame
from ncmonitor.symmetry import Action, Group, circular_shifts
from ncmonitor.symmetry.rows import COLUMNS, NUMBERS
from toys import CLASSES, Recording, Toy, TrainOnly, blobs, trainer, val_loader
from wandb_files import definitions, offline_run, records, summary

SIGN = Group.of(
    "sign", [Action("minus", lambda x: -x)], kind="vectors", exact=True,
    table=torch.tensor([[0, 1], [1, 0]]),
)  # fmt: skip
ROLL = Group.of(
    "roll", [Action(f"roll{k}", partial(torch.roll, shifts=k, dims=1)) for k in (1, 2)],
    kind="vectors",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def data(samples: int = 45) -> DataLoader[Any]:
    return DataLoader(Recording(samples), batch_size=16, shuffle=True)


def watch(**changes: Any) -> SymmetryMonitor:
    settings: dict[str, Any] = {"schedule": "every_epoch", "verbose": False}
    return SymmetryMonitor(changes.pop("groups", SIGN), **(settings | changes))


def fitted(
    *callbacks: pl.Callback, module: pl.LightningModule | None = None, **changes: Any
) -> tuple[pl.Trainer, pl.LightningModule]:
    pl.seed_everything(1, verbose=False)
    module = Toy() if module is None else module
    fit = trainer(*callbacks, **{"max_epochs": 2, **changes})
    fit.fit(module, data(), val_loader())
    return fit, module


def last(monitor: SymmetryMonitor) -> Any:
    table = monitor.history
    return table[table["epoch"] == table["epoch"].max()].set_index(["split", "group", "element"])


# -- the numbers -----------------------------------------------------------------------------------


def test_the_numbers_are_those_of_features_transformed_by_hand() -> None:
    monitor = watch(groups=ROLL, samples=None, parameters=False)
    _, module = fitted(monitor)
    module.eval()
    inputs, labels = blobs()
    with torch.no_grad():
        features = np.stack(
            [module.body(g(inputs)).double().numpy() for g in ROLL]  # type: ignore[operator]
        )
        logits = np.stack([module(g(inputs)).double().numpy() for g in ROLL])
    mask = np.ones((3, len(labels)), bool)
    found = last(monitor)
    errors = naive.inv_error(features, mask)
    expected = naive.predictions(logits, labels.numpy(), mask)
    for g, name in enumerate(ROLL.names[1:], start=1):
        row = found.loc["train", "roll", name]
        assert row["inv_error"] == pytest.approx(errors[g], rel=1e-5)
        for ours, theirs in (
            ("pred_consistency", "consistency"), ("tv", "tv"), ("acc", "acc"), ("acc_drop", "drop"),
        ):  # fmt: skip
            assert row[ours] == pytest.approx(expected[theirs][g], rel=1e-5, abs=1e-7)
    whole = found.loc["train", "roll", ""]
    assert whole["acc_orbit_worst"] == pytest.approx(expected["orbit_worst"])
    assert whole["nc1_aug"] == pytest.approx(whole["orbit_nc1"] + whole["between_nc1"])
    plain = found.loc["train", "plain", ""]
    assert plain["acc"] == pytest.approx(expected["acc"][0])


class Even(Toy):
    """Invariant by construction under a change of sign."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.square())


def test_a_network_invariant_by_construction_scores_zero_and_keeps_its_accuracy() -> None:
    monitor = watch()
    fitted(monitor, module=Even())
    for split in ("train", "val"):
        row = last(monitor).loc[split, "sign", "minus"]
        assert row["inv_error"] == row["inv_error_logits"] == row["acc_drop"] == row["tv"] == 0
        assert row["pred_consistency"] == 1
        whole = last(monitor).loc[split, "sign", ""]
        assert whole["orbit_quot"] == whole["orbit_nc1"] == 0
        assert whole["acc_orbit_worst"] == last(monitor).loc[split, "plain", ""]["acc"]


class Odd(TrainOnly):
    """Equivariant by construction: features change sign with the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh())

    def on_train_epoch_start(self) -> None: ...


def test_an_equivariant_network_is_linear_and_obeys_the_group_law() -> None:
    monitor = watch(splits="train", samples=None)
    pl.seed_everything(0, verbose=False)
    fit = trainer(monitor, max_epochs=1)
    fit.fit(Odd(), DataLoader(TensorDataset(*blobs(450)), batch_size=64))
    row = last(monitor).loc["train", "sign", ""]
    assert row["equiv_r2"] == pytest.approx(1, abs=1e-6)
    assert row["group_law_scaled"] < 1e-5
    assert row["inv_error"] > 0.1


def test_inner_layers_are_measured_without_what_needs_logits() -> None:
    monitor = watch(layers="body.0")
    fitted(monitor)
    table = monitor.history.query("layer == 'body.0' and group == 'sign'")
    assert table["inv_error"].notna().all()
    assert table["acc"].isna().all()
    assert (table.query("element == 'minus'")["inv_error"] > 0).all()


def test_classes_whose_label_changes_are_left_out_under_that_element() -> None:
    kept, every = watch(exclude={"minus": [0]}, samples=None), watch(samples=None)
    fitted(kept)
    fitted(every)
    _, labels = blobs()
    some = last(kept).loc["train", "sign", "minus"]["acc"] * (labels != 0).sum()
    assert some == pytest.approx(round(float(some)), abs=1e-9)  # of the other classes alone
    errors = [last(m).loc["train", "sign", "minus"]["inv_error"] for m in (kept, every)]
    assert errors[0] != errors[1]


def test_the_subset_is_the_same_at_each_epoch_and_of_the_size_asked_for() -> None:
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return -x

    group = Group.of("seen", [Action("minus", keep)], kind="vectors")
    monitor = watch(groups=group, splits="train", samples=20)
    pl.seed_everything(0, verbose=False)
    trainer(monitor, max_epochs=2).fit(TrainOnly(), data())
    batches = [x for x in seen if len(x) in (16, 4)][-6:]
    runs = [torch.cat(batches[k : k + 2]) for k in (0, 2, 4)]
    assert [len(run) for run in runs] == [20, 20, 20]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[1], runs[2])
    inputs, _ = blobs()
    assert not torch.equal(runs[0], inputs[:20])  # data are often sorted by class
    rows = {tuple(row.tolist()) for row in inputs}
    assert all(tuple(row.tolist()) in rows for row in runs[0])


def test_of_a_stream_the_first_samples_are_taken() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Any:
            yield from zip(*blobs(), strict=True)

    monitor = watch(splits="train", samples=20)
    trainer(monitor, max_epochs=1).fit(TrainOnly(), DataLoader(Stream(), batch_size=16))
    assert last(monitor).loc["train", "sign", ""]["inv_error"] > 0


def test_the_law_of_the_mean_row_is_checked_while_training() -> None:
    monitor = watch()
    fitted(monitor)
    assert last(monitor).loc["train", "parameters", ""]["w_mean_law_ratio"] == pytest.approx(
        1, abs=1e-4
    )
    off = watch(parameters=False)
    fitted(off)
    assert "parameters" not in set(off.history["group"])


# -- promises --------------------------------------------------------------------------------------


def test_training_with_the_monitor_is_bit_identical_to_training_without() -> None:
    def run(*callbacks: pl.Callback) -> tuple[list[float], dict[str, Any], float, Any]:
        pl.seed_everything(1, verbose=False)
        module, dataset = Toy(), Recording(augment=True)
        fit = trainer(*callbacks)
        loader = DataLoader(dataset, batch_size=16, shuffle=True)
        fit.fit(module, loader, val_loader())
        weights = dict(module.state_dict())
        state = fit.optimizers[0].state_dict()["state"]
        return module.losses, weights, float(torch.get_rng_state().sum()), state

    monitor = watch(groups=[SIGN, ROLL], layers="body.0")
    watched, alone = run(monitor), run()
    assert watched[0] == alone[0]
    torch.testing.assert_close(watched[1], alone[1], rtol=0, atol=0)
    assert watched[2] == alone[2]
    torch.testing.assert_close(watched[3], alone[3], rtol=0, atol=0)


def test_a_failing_measurement_is_nan_and_the_training_goes_on() -> None:
    class Fails(Toy):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.trainer.current_epoch == 1:
                raise RuntimeError("boom")
            return super().forward(x)

    monitor = watch(splits="train")
    pl.seed_everything(0, verbose=False)
    with pytest.warns(RuntimeWarning, match="symmetry of train after epoch 2 is nan.*boom"):
        trainer(monitor, max_epochs=3, limit_val_batches=0).fit(Fails(), data(), val_loader())
    table = monitor.history.query("group == 'plain'")
    assert table["nc1"].isna().tolist() == [False, False, True, False]
    with pytest.raises(RuntimeError, match="boom"):
        trainer(watch(on_error="raise"), max_epochs=3, limit_val_batches=0).fit(
            Fails(), data(), val_loader()
        )


def test_non_finite_features_are_nan_and_said_once() -> None:
    class Breaks(TrainOnly):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out if self.training or self.trainer.global_step == 0 else out * torch.nan

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.no_grad():
                self.head.weight.fill_(torch.nan)
            return super().training_step(batch, batch_idx)

    monitor = watch(splits="train", parameters=False)
    with pytest.warns(RuntimeWarning, match="not finite") as caught:
        trainer(monitor, max_epochs=3).fit(Breaks(), data())
    assert len([w for w in caught if "symmetry of train" in str(w.message)]) == 1
    assert monitor.history.query("epoch > 0")["inv_error"].isna().all()


def test_the_table_on_disk_is_the_history_and_says_which_groups(tmp_path: Path) -> None:
    monitor = watch(groups=[SIGN, ROLL], run_dir=tmp_path / "run")
    fitted(monitor)
    pd.testing.assert_frame_equal(
        read_symmetry(tmp_path / "run"), monitor.history, check_exact=True
    )
    assert (tmp_path / "run" / "symmetry.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    facts = json.loads((tmp_path / "run" / "symmetry.json").read_text())
    assert [group["name"] for group in facts["groups"]] == ["sign", "roll"]
    assert facts["samples"] == 2000


def test_it_writes_beside_the_history_wherever_it_is_in_the_list(tmp_path: Path) -> None:
    for number, first in enumerate((True, False)):
        collapse = NeuralCollapse(verbose=False)
        monitor = watch()
        pair = (monitor, collapse) if first else (collapse, monitor)
        fitted(*pair, default_root_dir=tmp_path / str(number))
        assert monitor.run_dir == collapse.run_dir
        names = {file.name for file in monitor.run_dir.iterdir()}  # type: ignore[union-attr]
        assert {"history.csv", "run.json", "symmetry.csv", "symmetry.json"} <= names


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    whole = watch(run_dir=tmp_path / "whole")
    fitted(whole, max_epochs=4)
    first = watch(run_dir=tmp_path / "parts")
    pl.seed_everything(1, verbose=False)
    keep = ModelCheckpoint(tmp_path / "keep", save_last=True)
    fit = trainer(first, keep, max_epochs=2, enable_checkpointing=True)
    fit.fit(Toy(), data(), val_loader())
    second = watch(run_dir=tmp_path / "parts")
    keep = ModelCheckpoint(tmp_path / "keep", save_last=True)
    fit = trainer(second, keep, max_epochs=4, enable_checkpointing=True)
    fit.fit(Toy(), data(), val_loader(), ckpt_path=tmp_path / "keep" / "last.ckpt")
    table = read_symmetry(tmp_path / "parts")
    assert table["epoch"].unique().tolist() == [0, 1, 2, 3, 4]
    law = table.query("group == 'parameters' and element == ''")["w_mean_law_ratio"]
    assert law.tolist() == pytest.approx([1] * 5, abs=1e-4)
    begun = table.query("epoch <= 2").drop(columns="seconds").reset_index(drop=True)
    unbroken = whole.history.query("epoch <= 2").drop(columns="seconds").reset_index(drop=True)
    pd.testing.assert_frame_equal(begun, unbroken, check_exact=True)


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    monitor = watch()
    fit, _ = fitted(monitor)
    fit.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"][monitor.state_key]
    assert len(state["rows"]) == len(monitor.history)


def test_every_logger_gets_the_keys_against_the_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fitted(watch(), NeuralCollapse(verbose=False), logger=logger)
    table = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    for key in (
        "nc/train/symmetry/sign/inv_error", "nc/val/symmetry/sign/acc/minus",
        "nc/train/symmetry/sign/orbit_quot", "nc/train/symmetry/plain/nc1",
        "nc/parameters/w_mean_law_ratio",
    ):  # fmt: skip
        defined = table[table[key].notna()]
        assert defined["nc/epoch"].tolist() == [0, 1, 2], key
    assert table["nc/train/nc1"].notna().sum() == 3


def test_in_wandb_every_key_is_drawn_against_the_epoch(tmp_path: Path) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    monitor = watch(layers="body.0")
    fitted(monitor, NeuralCollapse(verbose=False), logger=logger)
    logger.experiment.finish()
    run = offline_run(tmp_path)
    rows = [record["item"] for record in records(run, "history")]
    key = "nc/val/layer/body.0/symmetry/sign/inv_error/minus"
    assert [row["nc/epoch"] for row in rows if key in row] == [0, 1, 2]
    logged = {k for row in rows for k in row if "/symmetry/" in k or "/parameters/" in k}
    named = definitions(run)
    assert {named[k]["step_metric"] for k in logged} == {"nc/epoch"}
    assert summary(run)["config"]["ncmonitor_symmetry"]["groups"][0]["name"] == "sign"


def test_elements_of_large_groups_are_in_the_table_and_not_in_the_log(tmp_path: Path) -> None:
    many = Group.of(
        "many",
        [Action(f"by{k}", partial(torch.mul, other=1 + k / 50)) for k in range(9)],
        kind="vectors",
    )
    logger, monitor = CSVLogger(tmp_path), watch(groups=many, splits="train")
    trainer(monitor, max_epochs=1, logger=logger).fit(TrainOnly(), data())
    columns = pd.read_csv(Path(logger.log_dir) / "metrics.csv").columns
    assert "nc/train/symmetry/many/inv_error" in columns
    assert not any("/by" in name for name in columns)
    assert set(monitor.history["element"]) >= {f"by{k}" for k in range(9)}


def test_early_stopping_and_checkpoints_can_monitor_it(tmp_path: Path) -> None:
    stop = EarlyStopping("nc/val/symmetry/sign/inv_error", patience=1, min_delta=1e9)
    keep = ModelCheckpoint(
        tmp_path / "keep", monitor="nc/train/symmetry/sign/orbit_quot", filename="best"
    )
    callbacks = (watch(schedule=[4]), NeuralCollapse(verbose=False), stop, keep)
    fit, _ = fitted(*callbacks, max_epochs=6, enable_checkpointing=True)
    assert fit.current_epoch == 2
    assert (tmp_path / "keep" / "best.ckpt").is_file()


def test_a_key_that_is_never_logged_is_refused_with_the_nearest() -> None:
    stop = EarlyStopping("nc/val/symmetry/sign/inverror")
    with pytest.raises(InputError, match=r"never logged; did you mean.*sign/inv_error"):
        fitted(watch(), NeuralCollapse(verbose=False), stop)
    with pytest.raises(InputError, match="never logged"):
        fitted(NeuralCollapse(verbose=False), EarlyStopping("nc/val/symmetry/sign/inv_error"))


def test_the_schedule_decides_and_both_ends_are_always_measured() -> None:
    monitor = watch(schedule=[2])
    fitted(monitor, max_epochs=5)
    assert monitor.history["epoch"].unique().tolist() == [0, 2, 5]

    class Own(SymmetryMonitor):
        def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
            return epoch == 3

    own = Own(SIGN, verbose=False)
    fitted(own, max_epochs=5)
    assert own.history["epoch"].unique().tolist() == [0, 3, 5]
    stopped = watch(schedule=[9])
    fitted(stopped, max_epochs=-1, max_steps=4)
    assert stopped.history["epoch"].unique().tolist() == [0, 2]


def test_the_test_set_is_measured_too() -> None:
    monitor = watch()
    fit, module = fitted(monitor)
    [values] = fit.test(module, val_loader(), verbose=False)
    table = last(monitor)
    assert values["nc/test/symmetry/sign/inv_error"] == pytest.approx(
        table.loc["test", "sign", ""]["inv_error"]
    )
    assert table.loc["test", "sign", ""]["inv_error"] == pytest.approx(
        table.loc["val", "sign", ""]["inv_error"]
    )


def test_what_is_not_given_is_that_of_neural_collapse() -> None:
    class Named(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch["deep"][0], batch["deep"][1]), batch_idx)

    inputs, labels = blobs()
    samples = [{"deep": (x, y)} for x, y in zip(inputs, labels, strict=True)]
    loader: DataLoader[Any] = DataLoader(samples, batch_size=16)  # type: ignore[arg-type]
    options: dict[str, Any] = {"splits": "train", "verbose": False}
    collapse = NeuralCollapse(batch_to_xy=lambda batch: tuple(batch["deep"]), **options)
    monitor = watch(splits="train")
    trainer(monitor, collapse, max_epochs=1).fit(Named(), loader)
    assert last(monitor).loc["train", "sign", ""]["inv_error"] > 0


def test_it_works_in_both_distributions() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Small(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return self.head(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    monitor = watch(splits="train")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fit = lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=monitor, enable_checkpointing=False, **quiet
    )
    fit.fit(Small(), data())
    assert last(monitor).loc["train", "sign", ""]["inv_error"] > 0


def test_a_test_of_an_earlier_checkpoint_is_added_at_its_epoch(tmp_path: Path) -> None:
    monitor = watch(run_dir=tmp_path / "run")
    keep = ModelCheckpoint(tmp_path / "keep", every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit, module = fitted(monitor, keep, max_epochs=3, enable_checkpointing=True)
    before = monitor.history
    first = tmp_path / "keep" / "epoch=0.ckpt"
    fit.test(module, val_loader(), ckpt_path=first, verbose=False)
    rows = monitor.history
    assert set(rows.query("split == 'test'")["epoch"]) == {1}
    rest = rows.query("split != 'test'").reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before)
    pd.testing.assert_frame_equal(read_symmetry(tmp_path / "run"), rows)


def test_a_test_measured_twice_is_there_once(tmp_path: Path) -> None:
    monitor = watch(run_dir=tmp_path / "run")
    fit, module = fitted(monitor)
    for _ in range(2):
        fit.test(module, val_loader(), verbose=False)
    tested = monitor.history.query("split == 'test' and group == 'plain'")
    assert len(tested) == 1
    pd.testing.assert_frame_equal(read_symmetry(tmp_path / "run"), monitor.history)


def test_a_first_measurement_that_fails_does_not_end_a_monitored_run() -> None:
    class Fails(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.runs = 0

        def forward(self, x: Tensor) -> Tensor:
            # The probe runs the first batch; a measurement comes to the last, a smaller one.
            if not self.training and self.trainer.global_step == 0 and len(x) < 16:
                raise RuntimeError("boom")
            return super().forward(x)

    stop = EarlyStopping("nc/val/symmetry/sign/inv_error", patience=9)
    with pytest.warns(RuntimeWarning, match="is nan, training goes on: RuntimeError: boom"):
        fit, _ = fitted(watch(), stop, module=Fails(), max_epochs=3, num_sanity_val_steps=0)
    assert fit.current_epoch == 3
    assert stop.best_score < torch.inf


def test_a_nan_has_its_reason_on_disk(tmp_path: Path) -> None:
    class Adam(Toy):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    fitted(watch(run_dir=tmp_path / "run"), module=Adam())
    reasons = json.loads((tmp_path / "run" / "symmetry.json").read_text())["reasons"]
    assert "measure more samples" in reasons["equiv_r2 of sign (val)"]
    assert "Adam" in reasons["w_mean_law_ratio"]


def test_one_class_in_the_subset_is_said() -> None:
    inputs, labels = blobs()
    loader = DataLoader(TensorDataset(inputs[labels == 1], labels[labels == 1]), batch_size=5)
    with pytest.warns(UserWarning, match="nc1 .* is nan: the samples hold one class"):
        trainer(watch(splits="train"), max_epochs=1).fit(TrainOnly(), loader)


def test_validation_data_that_come_later_are_measured_from_then_on(tmp_path: Path) -> None:
    late: dict[str, Any] = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    logger, monitor = CSVLogger(tmp_path), watch(splits="val", parameters=False)
    fitted(monitor, max_epochs=3, logger=logger, **late)
    assert monitor.history["epoch"].unique().tolist() == [2, 3]
    assert "nc/val/symmetry/sign/acc" in pd.read_csv(Path(logger.log_dir) / "metrics.csv").columns


def test_by_default_it_measures_a_run_without_a_last_epoch_too() -> None:
    monitor = SymmetryMonitor(SIGN, verbose=False)
    fitted(monitor, max_epochs=-1, max_steps=12)
    assert monitor.history["epoch"].unique().tolist() == [0, 1, 2, 3, 4]


def test_it_travels_to_other_processes() -> None:
    import pickle

    fit, _ = fitted(watch(groups=Group.of("g", [Action("minus", torch.neg)], kind="v")))
    monitor = next(c for c in fit.callbacks if isinstance(c, SymmetryMonitor))  # type: ignore[attr-defined]
    vars(monitor)["log"] = lambda *_: None  # as Lightning lends it
    assert len(pickle.loads(pickle.dumps(monitor)).history) == len(monitor.history)


def test_with_nothing_to_measure_it_is_refused() -> None:
    fit = trainer(watch(splits="val"), max_epochs=1)
    with pytest.raises(InputError, match="there is no validation data: nothing to measure"):
        fit.fit(TrainOnly(), data())


def test_averaged_weights_are_not_held_against_the_law() -> None:
    from pytorch_lightning.callbacks import WeightAveraging

    monitor = watch(schedule=[99])
    fitted(WeightAveraging(), monitor, max_epochs=-1, max_steps=5)
    law = monitor.history.query("group == 'parameters' and element == ''")["w_mean_law_ratio"]
    assert law.tolist() == [1.0]  # before the first step, not after the last


def test_much_memory_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncmonitor.callbacks.symmetry.trainer_symmetry._MUCH", 10_000)
    with pytest.warns(UserWarning, match="2 passes over 2000 samples .* GiB of host memory"):
        fitted(watch(), max_epochs=1)


def test_a_line_for_each_group_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(watch(verbose=True), max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "| sign:" in line]
    assert len(lines) == 2
    assert "scatter along orbits" in lines[1]
    assert "all of an orbit" in lines[1]


def test_it_lets_go_of_the_trainer_and_can_be_used_again() -> None:
    monitor = watch()
    fitted(monitor)
    before = len(monitor.history)
    fitted(monitor)
    assert len(monitor.history) == before


# -- mistakes --------------------------------------------------------------------------------------


def doubling(x: Tensor) -> Tensor:
    return torch.cat([x, x], 1)


def wide(x: Tensor) -> Tensor:
    return -x.double()


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def mine(function: Callable[[Tensor], Tensor]) -> Group:
    return Group.of("mine", [Action("mine", function)], kind="vectors")


class Rejects(Toy):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < -1e3).any()):
            raise RuntimeError("cannot take that")
        return super().forward(x)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"groups": mine(doubling)}, "changes the shape"),
    ({"groups": mine(wide)}, "changes the dtype"),
    ({"groups": mine(noisy)}, "draws random numbers|not deterministic"),
    ({"groups": "rotations90"}, r"images \(B, C, H, W\)"),
    ({"samples": 2}, "samples=2 are fewer than the 3 classes"),
    ({"groups": mine(lambda x: x - 1e6)}, "the network rejects inputs under 'mine' of 'mine'"),
    ({"exclude": {"minus": [3]}}, "leaves class 3 out .* classes 0 to 2"),
    ({"layers": "bodyy"}, "bodyy"),
    ({"classifier": "nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_a_group_that_does_not_fit_is_refused_before_the_first_step(
    options: dict[str, Any], message: str
) -> None:
    fit, module = trainer(watch(**options)), Rejects()
    with pytest.raises(InputError, match=message):
        fit.fit(module, data(), val_loader())
    assert not module.losses
    assert module.training


class Squares(TrainOnly):
    """Takes images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


@pytest.mark.parametrize(
    ("group", "shape", "message"),
    [
        ("rotations90", (1, 2, 3), "square"),
        (circular_shifts(4), (1, 2, 3), "4"),
    ],
)
def test_images_that_a_group_does_not_fit_are_refused(
    group: Any, shape: tuple[int, ...], message: str
) -> None:
    inputs, labels = blobs()
    loader = DataLoader(TensorDataset(inputs.reshape(-1, *shape), labels), batch_size=16)
    with pytest.raises(InputError, match=message):
        trainer(watch(groups=group, splits="train")).fit(Squares(), loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "rotation90"}, "did you mean 'rotations90'"),
        ({"groups": []}, "needs at least one"),
        ({"groups": [SIGN, SIGN]}, "'sign' is there twice"),
        ({"groups": 3}, "takes Group objects, or names"),
        ({"groups": Group.of("one", [], kind="x")}, "no element but the identity"),
        ({"flows": "translation"}, "did you mean 'translation_flow'"),
        ({"exclude": {"plus": [1]}}, "no element of these groups"),
        ({"splits": "test"}, "'train', 'val' or both"),
        ({"samples": 1}, "at least 2"),
        ({"samples": 2.5}, "whole number"),
        ({"schedule": 0}, "at least 1 epoch"),
        ({"on_error": "rise"}, "did you mean 'raise'"),
        ({"prefix": ""}, "must not be empty"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        watch(**options)


def test_two_that_would_write_one_table_are_refused() -> None:
    with pytest.raises(InputError, match="would write one table and log the same keys"):
        fitted(watch(), watch(groups=ROLL))
    with pytest.raises(InputError, match="each its own prefix="):
        fitted(watch(run_dir="a"), watch(groups=ROLL, run_dir="b"))
    with pytest.raises(InputError, match="each its own prefix="):
        fitted(watch(run_dir="a"), watch(groups=ROLL, run_dir="a", prefix="roll"))
    fitted(watch(), watch(groups=ROLL, prefix="roll"), max_epochs=1)


def test_rows_have_the_columns_of_the_table() -> None:
    frame = symmetry_frame([])
    assert list(frame.columns) == list(COLUMNS)
    assert set(NUMBERS) < set(COLUMNS)
