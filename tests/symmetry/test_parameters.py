"""The law of the row mean against torch's SGD, and balanced layers against gradient flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import reference_symmetry as naive
from cases import seeded
from ncmonitor import InputError
from ncmonitor.symmetry.parameters import RowMeanLaw, SgdSettings, chains, layer_balance

F64 = torch.float64
CrossEntropy = nn.functional.cross_entropy
Loss = Callable[[Tensor, Tensor], Tensor]


def head(dtype: torch.dtype = F64) -> nn.Linear:
    layer = nn.Linear(7, 4, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 7, generator=seeded(0)))
        layer.bias.zero_()
    return layer


def train(
    layer: nn.Linear,
    optimiser: torch.optim.Optimizer,
    steps: int,
    law: RowMeanLaw | None = None,
    loss: Loss = CrossEntropy,
    seed: int = 1,
) -> None:
    """Fit random labels of random features; the law follows each step."""
    generator = seeded(seed)
    for _ in range(steps):
        features = torch.randn(16, 7, generator=generator).to(layer.weight)
        labels = torch.randint(4, (16,), generator=generator)
        optimiser.zero_grad()
        loss(layer(features), labels).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
        optimiser.step()
        if law is not None:
            law.step(SgdSettings.of(optimiser.param_groups[0]))


SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9},
    {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9, "dampening": 0.3},
    {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9},
]


# -- the row mean -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_law_is_what_sgd_does(settings: dict[str, Any]) -> None:
    layer = head()
    law = RowMeanLaw(layer.weight)
    train(layer, torch.optim.SGD(layer.parameters(), **settings), 40, law)
    assert_close(layer.weight.sum(0), law.row_sum, rtol=1e-11, atol=1e-13)
    assert law.ratio(layer.weight) == pytest.approx(1, rel=1e-11)
    assert law.steps == 40


def test_a_schedule_of_every_setting_is_followed_step_by_step() -> None:
    layer = head()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    law = RowMeanLaw(layer.weight)
    changes: Sequence[dict[str, Any]] = [
        {"momentum": 0.9, "dampening": 0.5},
        {"lr": torch.tensor(0.02), "weight_decay": 0.5},
        {"momentum": 0.0},  # torch keeps the buffer meanwhile
        {"momentum": 0.8, "dampening": 0.0, "nesterov": True},
        {"weight_decay": 0.0},
    ]
    for change in changes:
        train(layer, optimiser, 5, law)
        optimiser.param_groups[0].update(change)
    train(layer, optimiser, 5, law)
    assert_close(layer.weight.sum(0), law.row_sum, rtol=1e-11, atol=1e-13)


def test_a_run_that_has_begun_is_taken_up_with_its_momentum() -> None:
    layer = head()
    optimiser = torch.optim.SGD(layer.parameters(), **SETTINGS[3])
    train(layer, optimiser, 7)
    law = RowMeanLaw(layer.weight, optimiser.state[layer.weight]["momentum_buffer"])
    blind = RowMeanLaw(layer.weight)
    train(layer, optimiser, 20, law, seed=2)
    blind.step(SgdSettings(**SETTINGS[3]), times=20)
    assert law.ratio(layer.weight) == pytest.approx(1, rel=1e-11)
    assert abs(blind.ratio(layer.weight) - 1) > 0.01


def test_data_and_losses_that_see_softmax_make_no_difference() -> None:
    def weighted(logits: Tensor, labels: Tensor) -> Tensor:
        weight = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=logits.dtype)
        return CrossEntropy(logits, labels, weight=weight, label_smoothing=0.1)

    sums = []
    for seed, loss in ((1, CrossEntropy), (2, CrossEntropy), (3, weighted)):
        layer = head()
        train(layer, torch.optim.SGD(layer.parameters(), **SETTINGS[1]), 30, loss=loss, seed=seed)
        sums.append(layer.weight.sum(0).detach())
    for one, two in pairwise(sums):
        assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_float32_follows_until_rounding_takes_over() -> None:
    layer = head(torch.float32)
    law = RowMeanLaw(layer.weight)
    optimiser = torch.optim.SGD(layer.parameters(), **SETTINGS[1])
    train(layer, optimiser, 100, law)
    assert law.norm < 0.05 * float(RowMeanLaw(head().weight).norm)
    assert law.ratio(layer.weight) == pytest.approx(1, abs=1e-4)
    law.step(SgdSettings(**SETTINGS[1]), times=400)
    assert math.isnan(law.ratio(layer.weight))


@pytest.mark.parametrize("breaker", ["mse", "adam"])
def test_the_ratio_tells_what_breaks_the_law(breaker: str) -> None:
    def mse(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(logits, nn.functional.one_hot(labels, 4).to(logits))

    layer = head()
    law = RowMeanLaw(layer.weight)
    if breaker == "mse":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(layer.parameters(), **SETTINGS[1])
        train(layer, optimiser, 40, law, loss=mse)
    else:
        train(layer, torch.optim.Adam(layer.parameters(), lr=0.1), 40)
        law.step(SgdSettings(lr=0.1), times=40)
    assert abs(law.ratio(layer.weight) - 1) > 0.05


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("eta_lambda", [0.0, 1e-4, 0.02, 0.3])
def test_the_decay_is_the_largest_root(beta: float, eta_lambda: float) -> None:
    settings = SgdSettings(lr=0.1, momentum=beta, weight_decay=10 * eta_lambda)
    expected = naive.decay_root(0.1, beta, 10 * eta_lambda)
    assert settings.decay == pytest.approx(expected, rel=1e-7)
    if eta_lambda == 1e-4 and beta < 0.99:
        assert settings.decay == pytest.approx(math.exp(-1e-4 / (1 - beta)), rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS)
def test_under_constant_settings_the_law_settles_to_its_decay(settings: dict[str, Any]) -> None:
    gentle = SgdSettings(**(settings | {"weight_decay": settings["weight_decay"] / 100}))
    law = RowMeanLaw(torch.ones(2, 3)).step(gentle, times=2000)
    before = law.norm
    assert law.step(gentle).norm / before == pytest.approx(gentle.decay, rel=1e-12)


def test_strong_decay_with_momentum_swings_under_the_root_of_momentum() -> None:
    strong = SgdSettings(lr=0.1, momentum=0.9, weight_decay=0.05)
    assert strong.decay == pytest.approx(math.sqrt(0.9))
    law = RowMeanLaw(torch.ones(2, 3))
    norms = torch.tensor([law.step(strong).norm * strong.decay**-law.steps for _ in range(600)])
    assert 0.5 < float(norms[300:].max() / norms[:300].max()) < 2


def test_weight_decay_time_runs_as_the_logarithm_of_the_row_mean() -> None:
    law = RowMeanLaw(torch.ones(2, 3))
    start = law.norm
    law.step(SgdSettings(0.1, 0.9, 1e-3), times=1500).step(SgdSettings(0.01, 0.9, 1e-3), 1500)
    assert law.wd_time == pytest.approx(1.65)
    assert -math.log(law.norm / start) == pytest.approx(1.65, rel=0.01)


def test_settings_of_adam_and_misshaped_rows_are_refused() -> None:
    group = torch.optim.Adam(head().parameters()).param_groups[0]
    with pytest.raises(InputError, match=r"no 'momentum'"):
        SgdSettings.of(group)
    with pytest.raises(InputError, match=r"weight must be floating point \(K, d\)"):
        RowMeanLaw(torch.ones(3))


# -- balance ----------------------------------------------------------------------------------


def mlp(*between: nn.Module) -> nn.Sequential:
    torch_layers = [nn.Linear(5, 6), *between, nn.Linear(6, 4), nn.LeakyReLU(), nn.Linear(4, 3)]
    model = nn.Sequential(*torch_layers).double()
    generator = seeded(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return model


def descend(model: nn.Module, steps: int, **settings: Any) -> None:
    x = torch.randn(20, 5, generator=seeded(1), dtype=F64)
    labels = torch.arange(20) % 3
    optimiser = torch.optim.SGD(model.parameters(), **settings)
    for _ in range(steps):
        optimiser.zero_grad()
        CrossEntropy(model(x), labels).backward()
        optimiser.step()


def _square_norm(model: nn.Sequential) -> float:
    first = model[0].weight
    assert isinstance(first, Tensor)
    return float(first.detach().square().sum())


def test_balance_is_the_difference_of_squared_norms() -> None:
    conv, linear = nn.Conv2d(1, 2, 3, bias=False), nn.Linear(8, 2)
    nn.init.constant_(conv.weight, 1.0)
    nn.init.constant_(linear.weight, 2.0)
    [chain] = chains(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear))
    assert layer_balance(chain) == {"0 -> 3": 64.0 - 18.0}


def test_gradient_flow_conserves_the_balance() -> None:
    model = mlp(nn.ReLU())
    before, norm = layer_balance(chains(model)[0]), _square_norm(model)
    descend(model, 300, lr=1e-3)
    after = layer_balance(chains(model)[0])
    moved = abs(_square_norm(model) - norm)
    for name, value in before.items():
        assert abs(after[name] - value) < 0.01 * moved, name


def test_weight_decay_shrinks_the_balance_at_its_own_rate() -> None:
    model = mlp(nn.ReLU())
    before = layer_balance(chains(model)[0])
    descend(model, 500, lr=1e-3, weight_decay=1.0)
    for name, value in layer_balance(chains(model)[0]).items():
        assert value == pytest.approx(before[name] * math.exp(-1), rel=0.01), name


@pytest.mark.parametrize("between", [nn.BatchNorm1d(6), nn.GELU(), nn.LayerNorm(6), nn.Softmax(1)])
def test_what_does_not_scale_voids_the_balance(between: nn.Module) -> None:
    balance = layer_balance(chains(mlp(between))[0])
    first, second = balance.values()
    assert math.isnan(first)
    assert math.isfinite(second)


def test_shared_and_reparametrised_layers_are_void() -> None:
    shared = nn.Linear(3, 3)
    assert all(map(math.isnan, layer_balance([shared, nn.ReLU(), shared]).values()))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert all(map(math.isnan, layer_balance([nn.Linear(3, 3), normed]).values()))
    assert layer_balance([nn.ReLU(), shared]) == {}


def test_chains_are_the_sequential_parts_of_a_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), block))
            self.side = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 2))})
            self.head = nn.Linear(4, 2)

    names = [list(chain) for chain in chains(Net())]
    assert names == [["body.0", "body.1.0", "body.1.1.0", "body.1.1.1"], ["side.a.0"]]
    assert list(layer_balance(chains(Net())[0])) == ["body.0 -> body.1.1.0"]
