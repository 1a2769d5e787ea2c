"""Networks whose features of a sample depend on the samples beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.base import Base
from ncmonitor.callbacks.trainers.batch_dependence import check_batch_dependence
from ncmonitor.callbacks.trainers.clean_pass import CleanPass, evaluating
from ncmonitor.callbacks.trainers.precision import PassPrecision
from ncmonitor.features.tap import FeatureTap
from toys import trainer

CLASSES = 4


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Net(pl.LightningModule):
    def __init__(self, *body: nn.Module, rate: float = 0.1) -> None:
        super().__init__()
        self.body, self.head, self.rate = nn.Sequential(*body), nn.Linear(8, CLASSES), rate

    def forward(self, x: Any) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.rate)


def by_class() -> tuple[Tensor, Tensor]:
    """Four classes of 60, sorted by class, as image folders are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) // 60
    means = 3 * torch.randn(CLASSES, 6, generator=generator)
    return means[labels] + 0.3 * torch.randn(240, 6, generator=generator), labels


# -- measured in one shuffled order ----------------------------------------------------------------


def test_data_sorted_by_class_are_measured_in_mixed_batches() -> None:
    """At 246cf17 the logged error is .74."""
    torch.manual_seed(0)
    inputs, labels = by_class()
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    module = Net(nn.Linear(6, 8), norm, nn.ReLU())
    monitor = NeuralCollapse(verbose=False, splits=("train",))
    loader = DataLoader(TensorDataset(inputs, labels), 30, shuffle=True)
    with pytest.warns(UserWarning, match="the features of a sample depend on its batch") as said:
        trainer(monitor, max_epochs=10).fit(module, loader)
    assert len([w for w in said if "depend on its batch" in str(w.message)]) == 1

    order = np.random.default_rng(5).permutation(240)  # another one than ours
    wrong = []
    with torch.no_grad():
        for part in torch.from_numpy(order).split(30):
            wrong += (module.eval()(inputs[part]).argmax(1) != labels[part]).tolist()
    assert np.mean(wrong) < 0.02
    last = monitor.history.iloc[-1]
    assert abs(last["error"] - np.mean(wrong)) < 0.02
    assert last["nc1"] < 0.1


# -- warned of -------------------------------------------------------------------------------------


class Ask(Base):
    """Asks at the start of a fit, where a measurement would."""

    def __init__(self, inputs: Any) -> None:
        self.inputs, self.said = inputs, "not asked"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        precision = PassPrecision(trainer, pl_module)
        tap = FeatureTap(pl_module, "head")
        with evaluating(trainer, pl_module), tap:
            reading = CleanPass(trainer, pl_module, [], tap, precision)
            self.said = check_batch_dependence(reading, self.inputs) or ""
            self.activations = reading.run(self.inputs)  # the tap is ready for what comes


def said(module: Net, inputs: Any = None, **changes: Any) -> str:
    ask = Ask(by_class()[0][::5] if inputs is None else inputs)
    data = TensorDataset(*by_class())
    trainer(ask, max_steps=1, **changes).fit(module, DataLoader(data, 30))
    return ask.said


class AcrossBatch(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return (h - h.mean(0)) / h.norm()


class Noisy(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, training=True)


class Stateful(nn.Module):
    last: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        before, self.last = self.last, h.detach().mean(0)
        return h if before is None else h + before


class Overwrites(nn.Module):
    """Writes on its inputs, as torch.nn.ReLU(inplace=True) at the beginning does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8, track_running_stats=False), AcrossBatch(), nn.BatchNorm1d(8)]
)
def test_features_that_change_with_the_batch_are_warned_of(norm: nn.Module) -> None:
    if isinstance(norm, nn.BatchNorm1d):
        norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    words = said(Net(nn.Linear(6, 8), norm))
    assert "features of a sample depend on its batch: with 12 of 48 samples" in words


@pytest.mark.parametrize("layer", [Noisy(), Stateful()])
def test_features_that_change_with_nothing_are_warned_of(layer: nn.Module) -> None:
    assert "other features for the same batch" in said(Net(nn.Linear(6, 8), layer))


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ([nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout()], {}),
        ([nn.Linear(6, 512), nn.LayerNorm(512), nn.GELU(), nn.Linear(512, 8)], {}),
        ([nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 8)],
         {"precision": "bf16-mixed"}),
        ([nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 8)], {"precision": "bf16-true"}),
        ([nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 8)], {"precision": "64-true"}),
        ([Overwrites(), nn.Linear(6, 8)], {}),
    ],
)  # fmt: skip
def test_ordinary_networks_are_not_warned_of(body: Any, changes: dict[str, Any]) -> None:
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(
        changes.get("precision", ""), torch.float32
    )
    assert said(Net(*body, rate=0.0), by_class()[0][::5].to(dtype), **changes) == ""


class OfAPair(Net):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x["one"] + x["two"][0] if isinstance(x, dict) else x)


def test_nests_of_tensors_are_split_and_others_left_alone() -> None:
    inputs = by_class()[0][::5]
    depends = nn.BatchNorm1d(8, track_running_stats=False)

    def asked(given: Any) -> str:
        return said(OfAPair(nn.Linear(6, 8), depends), given)

    assert "depend on its batch" in asked({"one": inputs, "two": (inputs, None), "scale": 1.0})
    assert asked({"one": inputs, "two": [inputs[:1]]}) == ""  # lengths differ
    assert asked({"one": inputs, "two": [inputs], "graph": object()}) == ""
    assert asked(inputs[:2]) == ""  # a network that rejects one sample alone
