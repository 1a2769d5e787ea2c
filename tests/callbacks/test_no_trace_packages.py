"""Adapters and fused branches of real packages: left as they were, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from toys import CLASSES, blobs, trainer


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Fine(pl.LightningModule):
    """A network with peft's LoRA on its body; ``merges``: merged in eval mode, as for speed."""

    def __init__(self, *, merges: bool) -> None:
        super().__init__()
        base = nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 8))
        import peft  # here: it takes seconds, also where this file is only collected

        config = peft.LoraConfig(r=2, target_modules=["0", "2"])
        self.body = peft.get_peft_model(base, config)
        self.head, self.merges = nn.Linear(8, CLASSES), merges

    def train(self, mode: bool = True) -> Fine:
        if self.merges and mode != self.training:
            act: Any = self.body.unmerge_adapter if mode else self.body.merge_adapter
            act()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


@pytest.mark.parametrize("merges", [False, True])
def test_an_adapter_of_peft_trains_as_without_the_monitor(merges: bool) -> None:
    states, kept = [], []
    for callbacks in ([], [NeuralCollapse("head", verbose=False, splits=("train",))]):
        pl.seed_everything(1, verbose=False)
        module = Fine(merges=merges)
        loader = DataLoader(TensorDataset(*blobs()), 15, shuffle=True)
        trainer(*callbacks).fit(module, loader)
        states.append(module.state_dict())
        layers: list[Any] = [m for m in module.modules() if hasattr(m, "merged_adapters")]
        kept.append([list(m.merged_adapters) for m in layers])
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    assert kept == [[[], []], [[], []]]


class Deployed(pl.LightningModule):
    """timm's RepVGG, whose branches are fused whenever it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.net = timm.create_model("repvgg_a0", num_classes=CLASSES)

    def train(self, mode: bool = True) -> Deployed:
        if not mode:
            from timm.utils.model import reparameterize_model

            reparameterize_model(self.net, inplace=True)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_network_of_timm_that_is_fused_in_eval_mode_is_refused_and_left_whole() -> None:
    module = Deployed()
    before = dict(module.named_parameters())
    values = {name: value.detach().clone() for name, value in before.items()}
    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % CLASSES)
    monitor = NeuralCollapse(verbose=False, splits=("train",))
    with pytest.raises(InputError, match=r"eval\(\) of the model removes parameters"):
        trainer(monitor).fit(module, DataLoader(data, 2))
    after = dict(module.named_parameters())
    assert [*after] == [*before]
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(after, values, rtol=0, atol=0)
