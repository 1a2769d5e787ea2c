"""The network and the LightningModule of the recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError
from ncmonitor.recipes.models import MLP
from ncmonitor.recipes.module import ImageClassifier


def test_mlp_has_the_stated_layers() -> None:
    model = MLP(inputs=64, hidden=(32, 16), classes=10)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(64, 32), (32, 16), (16, 10)]
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_features_are_the_input_of_the_classifier() -> None:
    model = ImageClassifier(MLP(hidden=(32, 16))).eval()
    seen: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(torch.randn(5, 1, 8, 8))
    assert seen[0].shape == (5, 16)
    assert (seen[0] >= 0).all()  # after the ReLU
    torch.testing.assert_close(logits, model.classifier(seen[0]))


def test_mlp_explains_impossible_sizes_and_images() -> None:
    with pytest.raises(InputError, match=r"hidden=\[16, 0\]"):
        MLP(hidden=(16, 0))
    with pytest.raises(InputError, match=r"expected images of 64 pixels, got \(3, 8, 8\), .* 192"):
        MLP()(torch.zeros(2, 3, 8, 8))


def trained(folder: Path, epochs: int, **options: float) -> tuple[ImageClassifier, list[float]]:
    """Train on ten random images; return the module and its learning rate in each epoch."""

    class Rates(pl.Callback):
        rates: list[float]

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    rates.rates = []
    module = ImageClassifier(MLP(hidden=(8,)), **options)
    loader = DataLoader(TensorDataset(torch.randn(10, 1, 8, 8), torch.arange(10)), 5)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[rates],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    return module, rates.rates


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*smaller than the logging interval"
)


def test_the_learning_rate_falls_along_a_cosine(tmp_path: Path) -> None:
    _, rates = trained(tmp_path, 4, lr=0.2)
    assert rates == pytest.approx([0.2, 0.1 + 0.1 * 0.5**0.5, 0.1, 0.1 - 0.1 * 0.5**0.5])


def test_momentum_and_weight_decay_reach_the_optimiser(tmp_path: Path) -> None:
    module, _ = trained(tmp_path, 1, lr=0.1, momentum=0.5, weight_decay=0.25)
    (group,) = module.trainer.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)
    assert len(group["params"]) == len(list(module.parameters()))


def test_a_cosine_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set --trainer\.max_epochs"):
        trained(tmp_path, -1)
