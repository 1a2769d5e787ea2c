"""Inner layers in the same pass, and the features of the training steps themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn

from ncmonitor import InputError, measure_collapse
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.metrics import SHAPE, SPREAD
from toys import Toy, TrainOnly, blobs, train_loader, trainer, val_blobs, val_loader


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def monitor(**options: Any) -> NeuralCollapse:
    return NeuralCollapse(run_dir="run", verbose=False, **options)


# -- inner layers ----------------------------------------------------------------------------------


EVALUATED: list[int] = []


class Counting(Toy):
    """Counts the samples it is evaluated on; outside of itself, where no count is put back."""

    def forward(self, x: Tensor) -> Tensor:
        EVALUATED.append(0 if self.training else len(x))
        return super().forward(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def after(module: Toy, layer: int, inputs: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module.body[: layer + 1](inputs)


def test_layers_are_measured_in_the_same_pass_against_their_own_train_means() -> None:
    EVALUATED.clear()
    watch, module = monitor(layers=("body.0", "body.2")), Counting()
    trainer(watch, max_epochs=2).fit(module, train_loader(), val_loader())
    passes = [16, 16, 13, *[8, 8, 8, 6]] * 3  # of train and val, once per measurement
    probe = [size for size in EVALUATED if size][: -len(passes)]
    assert [size for size in EVALUATED if size][len(probe) :] == passes
    assert len(probe) < 20  # on one batch, or a part of it
    assert max(probe) == 16
    last = watch.history.query("epoch == 2").set_index("split")
    for layer in (0, 2):
        train = measure_collapse(after(module, layer, blobs()[0]), blobs()[1])
        inputs, labels = val_blobs()
        val = measure_collapse(after(module, layer, inputs), labels, reference=train.moments)
        for split, report in (("train", train), ("val", val)):
            row = last.loc[f"{split}/layer/body.{layer}"]
            for name, value in report.as_dict().items():
                assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-12), (split, name)
            measured = row.drop(["step", "epoch", "seconds"]).dropna().index
            assert {CATALOGUE[name].needs for name in measured} == {""}
    assert set(watch.layer_reports) == {"body.0", "body.2"}


def test_layers_are_logged_under_their_own_keys() -> None:
    fit = trainer(monitor(layers="*.2"), max_epochs=1, logger=CSVLogger("logs"))
    fit.fit(Toy(), train_loader(), val_loader())
    keys = pd.read_csv("logs/lightning_logs/version_0/metrics.csv").columns
    assert {"nc/train/layer/body.2/nc1", "nc/val/layer/body.2/ncc_accuracy"} <= set(keys)
    assert not any("layer" in key and ("error" in key or "_w" in key) for key in keys)


@pytest.mark.parametrize("layers", ["all", ("body.0",)])
def test_past_the_common_budget_the_network_runs_twice_for_the_same_numbers(layers: Any) -> None:
    def history(**options: Any) -> pd.DataFrame:
        pl.seed_everything(1, verbose=False)
        watch = monitor(layers=layers, null_seed=0, **options)
        trainer(watch, max_epochs=1).fit(Toy(), train_loader(), val_loader())
        return watch.history.drop(columns="seconds")

    kept = history()
    needed = 2 * 45 * 8 * 4  # two layers of 8 features for 45 samples, float32
    with pytest.warns(UserWarning, match=f"more than cache_bytes={needed - 1:,}"):
        read_again = history(cache_bytes=needed - 1)
    pd.testing.assert_frame_equal(kept, read_again, rtol=1e-9)


def test_a_map_is_reduced_as_asked() -> None:
    class Maps(TrainOnly):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.Flatten())

        def on_train_epoch_start(self) -> None: ...

    for reduce, dim in (("gap", 4), ("flatten", 8), (lambda maps: maps[:, :, 0], 4)):
        module = Maps()
        watch = monitor(layers=("body.1",), reduce=reduce, splits=("train",))
        trainer(watch, max_epochs=1).fit(module, train_loader())
        maps = after(module, 1, blobs()[0])
        flat = {"gap": maps.mean(2), "flatten": maps.flatten(1)}
        features = flat[reduce] if isinstance(reduce, str) else maps[:, :, 0]
        expected = measure_collapse(features, blobs()[1])
        assert watch.layer_reports["body.1"].nc1 == pytest.approx(expected.nc1, rel=1e-6)
        assert watch.layer_reports["body.1"].moments.dim == dim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("body.1", "bdy.2")}, "'bdy.2'; did you mean 'body.2'"),
        ({"layers": ("head",)}, "classifier"),
        ({"layers": ("body.1",), "reduce": "gab"}, "reduce= must be .*'gab'; did you mean 'gap'"),
    ],
)
def test_a_wrong_layer_is_refused_before_the_first_step(
    options: dict[str, Any], message: str
) -> None:
    fit = trainer(monitor(classifier="head", splits=("train",), **options))
    with pytest.raises(InputError, match=message):
        fit.fit(TrainOnly(), train_loader())
    assert fit.global_step == 0


# -- online mode -----------------------------------------------------------------------------------


class Still(TrainOnly):
    """Does not change in training, so that its features can be collected afterwards."""

    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())

    def on_train_epoch_start(self) -> None: ...


def test_online_moments_are_those_of_the_training_forward() -> None:
    module, watch = Still(), monitor(online=True, splits=("train",), metrics="all")
    trainer(watch, max_epochs=2).fit(module, train_loader())
    assert watch.history["split"].tolist() == ["train", "online", "online", "train"]
    inputs, labels = blobs()
    report = measure_collapse(
        module.body(inputs), labels, module.head.weight, module.head.bias, metrics="all"
    )
    online = watch.history.query("split == 'online'").iloc[-1]
    for name in SHAPE:
        expected = pytest.approx(getattr(report, name), rel=1e-6, abs=1e-12, nan_ok=True)
        assert online[name] == expected, name
    assert online["error"] == report.error
    assert online["cross_entropy"] == pytest.approx(report.cross_entropy, rel=1e-6)
    assert not any(name in online.dropna() for name in SPREAD)


def test_online_values_have_a_name_of_their_own_and_exact_ones_can_be_scheduled_on_top() -> None:
    watch = monitor(online=True, schedule=[2])
    fit = trainer(watch, logger=CSVLogger("logs"), max_epochs=4)
    fit.fit(Toy(), train_loader(), val_loader())
    table = pd.read_csv("logs/lightning_logs/version_0/metrics.csv").set_index("nc/epoch")
    assert table["nc/train/nc1_quotient_online"].dropna().index.tolist() == [1, 2, 3, 4]
    assert table["nc/train/nc1"].dropna().index.tolist() == [0, 2, 4]
    assert "nc/train/nc1_online" not in table  # needs a second pass
    assert watch.history.query("split == 'train'")["epoch"].tolist() == [0, 2, 4]


class Twice(TrainOnly):
    """Two views in a training step, as with contrastive losses."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]) + self(batch[0]), batch[1])


def test_a_training_step_that_cannot_be_heard_is_nan_and_the_training_goes_on() -> None:
    module = Twice()
    watch = monitor(online=True, splits=("train",))
    with pytest.warns(RuntimeWarning, match=r"of online .* nan.*ran 2 times") as caught:
        trainer(watch).fit(module, train_loader())
    said = [str(w.message) for w in caught if "of online" in str(w.message)]
    assert [" after epoch 1 " in said[0], "after epochs 1, 2, 3" in said[1]] == [True, True]
    assert len(said) == 2
    assert watch.history.query("split == 'online'")["nc1_quotient"].isna().all()
    assert watch.history.query("split == 'train'")["nc1"].notna().all()


@pytest.mark.parametrize("whole", [True, False])
def test_online_mode_refuses_a_compiled_classifier(whole: bool) -> None:
    module: Any = TrainOnly()
    if whole:
        module = torch.compile(module, backend="eager")
    else:
        module.head = torch.compile(module.head, backend="eager")
    fit = trainer(monitor(online=True, splits=("train",)))
    with pytest.raises(InputError, match="online=True cannot see into a compiled model"):
        fit.fit(module, train_loader())
    assert fit.global_step == 0


def test_a_compiled_body_can_be_heard() -> None:
    module = Still()
    module.body = torch.compile(module.body, backend="eager")  # type: ignore[assignment]
    watch = monitor(online=True, splits=("train",))
    trainer(watch, max_epochs=1).fit(module, train_loader())
    assert watch.history.query("split == 'online'")["nc1_quotient"].notna().all()


# -- schedules -------------------------------------------------------------------------------------


def test_listed_epochs_that_the_run_does_not_reach_are_said_once() -> None:
    watch = monitor(schedule=[1, 7, 9], splits=("train",))
    with pytest.warns(UserWarning, match="lists 7, 9, but the run ends after max_epochs=2"):
        trainer(watch, max_epochs=2).fit(TrainOnly(), train_loader())
    assert watch.history["epoch"].tolist() == [0, 1, 2]


def test_a_monitored_key_is_measured_in_the_first_epoch_whatever_the_schedule() -> None:
    stop = pl.callbacks.EarlyStopping("nc/train/nc1", patience=99)
    watch = monitor(schedule=[], splits=("train",))
    trainer(watch, stop, max_epochs=4).fit(TrainOnly(), train_loader())
    assert watch.history["epoch"].tolist() == [0, 1, 4]


def test_a_key_of_a_split_that_is_not_measured_is_refused() -> None:
    stop = pl.callbacks.EarlyStopping("nc/val/nc1")
    fit = trainer(monitor(splits=("train",)), stop)
    with pytest.raises(InputError, match="measures no 'val'"):
        fit.fit(Toy(), train_loader(), val_loader())
    assert fit.global_step == 0


class Skips(TrainOnly):
    """Leaves out a batch before its step, and another within it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.where == "before" and batch_idx == 1 else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.where == "within" and batch_idx == 1:
            return None
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("where", ["before", "within"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_batch_that_the_training_skips_is_skipped_online(where: str) -> None:
    module, watch = Skips(where), monitor(online=True, splits=("train",))
    trainer(watch).fit(module, train_loader())
    online = watch.history.query("split == 'online'")
    assert online["nc1_quotient"].notna().all()
    assert not any(m._forward_hooks for m in module.modules())


def test_online_mode_hears_the_loader_that_is_measured() -> None:
    class Pairs(TrainOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["labelled"], batch_idx)

    watch = monitor(online=True, splits=("train",), dataloader="labelled")
    loaders = CombinedLoader({"labelled": train_loader(), "other": train_loader()}, "min_size")
    trainer(watch, max_epochs=1).fit(Pairs(), loaders)
    assert watch.history.query("split == 'online'")["nc1_quotient"].notna().all()
