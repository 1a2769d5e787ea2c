"""The callback in every kind of training: nothing changes, and the numbers are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import matrix
from matrix_data import WIDTH
from matrix_models import Net
from matrix_settings import SETTINGS, Setting
from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from toys import CLASSES


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


#: torch 2.6 runs a submodule that was compiled in place as it is, with the monitor as without.
_OLD_TORCH = not hasattr(torch.backends, "fp32_precision")


def _case(setting: Setting) -> Any:
    marks = [pytest.mark.slow] if setting.slow else []
    return pytest.param(setting, id=f"{setting.group}: {setting.name}", marks=marks)


@pytest.mark.parametrize("setting", [_case(each) for each in SETTINGS])
def test_training_is_untouched_and_the_numbers_are_those_collected_by_hand(
    setting: Setting, tmp_path: Path
) -> None:
    shown = matrix.outcome(setting, tmp_path / "run")
    assert shown.traces == []
    assert shown.passes == 1
    if not (setting.name == "body.compile()" and _OLD_TORCH):
        assert (shown.graphs > 0) == ("compile" in setting.name)
    assert {"train/nc1", "train/nc3_self_duality", "train/error"} <= shown.differences.keys()
    tolerance = setting.by_hand.tolerance
    assert {k: v for k, v in shown.differences.items() if not v <= tolerance} == {}


def test_every_setting_has_a_name_of_its_own() -> None:
    names = [(each.group, each.name) for each in SETTINGS]
    assert len(set(names)) == len(names)


# -- the matrix can fail ---------------------------------------------------------------------------


class Careless(pl.Callback):
    """Does what a careless monitor would."""

    def __init__(self, harm: str) -> None:
        self.harm = harm

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        if self.harm == "draws":
            torch.rand(1)
        elif self.harm == "modes":
            module.body[1].train()
        elif self.harm == "hooks":
            module.head.register_forward_hook(lambda *_: None)
        else:
            module.train()
            module(torch.ones(4, 6))  # moves BatchNorm's statistics


@pytest.mark.parametrize(
    ("harm", "seen"), [("draws", "torch"), ("modes", "modes"), ("hooks", "hooks"), ("", "buffers")]
)
def test_a_careless_monitor_would_be_seen(
    harm: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    careless = Careless(harm)
    measure = NeuralCollapse.on_train_epoch_end

    def and_harm(self: Any, trainer: Any, pl_module: Any) -> None:
        measure(self, trainer, pl_module)
        careless.on_train_epoch_end(trainer, pl_module)

    monkeypatch.setattr(NeuralCollapse, "on_train_epoch_end", and_harm)
    frozen = next(each for each in SETTINGS if each.name == "frozen BatchNorm")
    assert seen in matrix.outcome(frozen, tmp_path / "run").traces


def test_other_features_would_be_seen(tmp_path: Path) -> None:
    other = dataclasses.replace(
        SETTINGS[0].by_hand, features=lambda module, x: module.body(x * (1 + 1e-4))
    )
    shown = matrix.outcome(dataclasses.replace(SETTINGS[0], by_hand=other), tmp_path / "run")
    assert 1e-6 < max(shown.differences.values()) < 1e-1


# -- what is refused -------------------------------------------------------------------------------


def test_lazy_layers_that_no_batch_has_gone_through_are_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    """The measuring pass would draw their first weights, and so change the training."""
    untouched = Setting(
        "lazy layers, no sanity check",
        "",
        lambda: Net(head=lambda: nn.LazyLinear(CLASSES)),
        trainer={"num_sanity_val_steps": 0},
        warns=["Lazy", "uninitialized"],
    )
    with pytest.raises(InputError, match=r"lazy layers .*'head\.bias'.*num_sanity_val_steps=2"):
        matrix.fit(untouched, tmp_path / "run")

    def filled() -> Net:
        net = Net(head=lambda: nn.LazyLinear(CLASSES))
        net.head(torch.zeros(1, WIDTH))
        return net

    shown = matrix.outcome(dataclasses.replace(untouched, module=filled), tmp_path / "run")
    assert shown.traces == []
