"""The law of the row mean and the balance of the layers, through real fits."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from ncmonitor.callbacks.base import Base
from ncmonitor.callbacks.symmetry.parameter_watch import ParameterWatch
from ncmonitor.symmetry.parameters import layer_balance
from toys import CLASSES, TrainOnly, train_loader, trainer

#: Float32 weights, some tens of steps: what rounding leaves of the ratio here, 6e-7 at most.
TIGHT = 3e-6


class Watching(Base):
    """Reads the watch as a monitor does: before the first step and after each epoch."""

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.reasons: list[str | None] = []
        self.numbers: dict[str, dict[str, float]] = {}
        self.state: dict[str, Any] | None = None
        self.watch: ParameterWatch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch = ParameterWatch(pl_module.head._parameters.get("weight"), pl_module)
        if self.state is not None:
            self.watch.load_state_dict(self.state)
        self.watch.begin(trainer)
        self._read()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.watch.step(trainer, optimizer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._read()

    def _read(self) -> None:
        self.numbers = self.watch.read()
        self.ratios.append(self.numbers[""]["w_mean_law_ratio"])
        self.reasons.append(self.watch.reason)

    def state_dict(self) -> dict[str, Any]:
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


class Sgd(TrainOnly):
    """The toy with an optimizer of choice and, by default, a new lr at every step."""

    kind: type[torch.optim.Optimizer] = torch.optim.SGD

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.03} | options

    def configure_optimizers(self) -> Any:
        optimizer = self.kind(self.parameters(), **self.options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def row_sum(module: Any) -> Tensor:
    total: Tensor = module.head.weight.detach().double().sum(0)
    return total


def weight_of(head: nn.Linear) -> nn.Parameter:
    weight = head._parameters["weight"]
    assert weight is not None
    return weight


def watched(module: pl.LightningModule, *, max_epochs: int = 6, **changes: Any) -> Watching:
    torch.manual_seed(1)
    watching = Watching()
    fitting = trainer(watching, max_epochs=max_epochs, **changes)
    fitting.fit(module, train_loader())
    return watching


# -- where the law holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0},
        {"nesterov": True},
        {"dampening": 0.4},
        {"weight_decay": 0.0},
        {"foreach": True},
        {"fused": True},
    ],
    ids=str,
)
def test_the_ratio_stays_one_under_sgd_with_a_schedule(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Sgd(**options)
    before = row_sum(module).norm()
    watching = watched(module)
    assert watching.ratios == pytest.approx([1] * 7, abs=TIGHT)
    assert watching.reasons == [None] * 7
    decayed = float(row_sum(module).norm() / before)
    assert decayed == pytest.approx(1, abs=1e-5) if "weight_decay" in options else decayed < 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_what_is_done_to_the_gradient_of_all_classes_alike_makes_no_difference(
    changes: dict[str, Any],
) -> None:
    watching = watched(Sgd(), **changes)
    if changes.get("gradient_clip_algorithm") == "value":  # entry by entry: rows sum to 0 no more
        assert abs(watching.ratios[-1] - 1) > 1e-3
        return
    assert watching.ratios == pytest.approx([1] * 7, abs=TIGHT)
    steps = 12 if "accumulate_grad_batches" in changes else 18
    assert watching.watch.state_dict()["law"]["steps"] == steps


def test_gradient_ascent_on_the_negative_loss_obeys_the_same_law() -> None:
    class Ascent(Sgd):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return -super().training_step(batch, batch_idx)

    assert watched(Ascent(maximize=True)).ratios == pytest.approx([1] * 7, abs=TIGHT)


def test_only_the_optimizer_and_the_group_of_the_classifier_count() -> None:
    class Two(Sgd):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            body = torch.optim.Adam(self.body.parameters(), 0.01)
            groups = [
                {"params": [self.head.bias], "weight_decay": 0.0},
                {"params": [self.head.weight], "lr": 0.05},
            ]
            return [body, torch.optim.SGD(groups, lr=0.5, momentum=0.9, weight_decay=0.1)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizers: Any = self.optimizers()
            body, head = optimizers
            loss = cross_entropy(self(batch[0]), batch[1])
            body.zero_grad()
            head.zero_grad()
            self.manual_backward(loss)
            body.step()
            if batch_idx != 1:
                head.step()

    watching = watched(Two())
    assert watching.ratios == pytest.approx([1] * 7, abs=TIGHT)
    assert watching.watch.state_dict()["law"]["steps"] == 12


def test_a_weight_without_a_gradient_is_not_stepped_not_even_by_its_decay() -> None:
    class Thawing(Sgd):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            self.head.weight.requires_grad_(self.current_epoch >= 3)

    watching = watched(Thawing())
    assert watching.ratios[:4] == [1] * 4
    assert watching.ratios == pytest.approx([1] * 7, abs=TIGHT)
    assert watching.watch.state_dict()["law"]["steps"] == 9


def test_a_training_step_that_returns_nothing_makes_no_step() -> None:
    class Choosy(Sgd):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="returned `None`"):
        watching = watched(Choosy())
    assert watching.ratios == pytest.approx([1] * 7, abs=TIGHT)
    assert watching.watch.state_dict()["law"]["steps"] == 12


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_steps_that_the_gradient_scaler_skips_do_not_count(fused: bool) -> None:
    # Twice the scale after every second step: float16 soon overflows. Not in the first step,
    # where torch's fused SGD would leave its momentum buffer uninitialised.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
    seen: list[float] = []

    class Counting(Sgd):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(scaler.get_scale())

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    torch.manual_seed(0)
    watching = watched(Counting(fused=fused), plugins=[plugin])
    scales = [2.0**14, *seen]
    made = sum(after >= before for before, after in zip(scales, seen, strict=False))
    assert 6 < made < len(seen)
    assert watching.watch.state_dict()["law"]["steps"] == made
    # float16 gradients: their rows sum to 0 to 5e-4 of their size; a step too many is worth 0.01
    assert watching.ratios == pytest.approx([1] * 7, abs=2e-3)


# -- where it does not -----------------------------------------------------------------------------


class OwnStep(torch.optim.SGD):
    """Overrides the step, as LARS does."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (torch.optim.Adam, {}, "Adam is not torch.optim.SGD"),
        (torch.optim.AdamW, {}, "AdamW is not torch.optim.SGD"),
        (torch.optim.RMSprop, {}, "RMSprop is not"),
        (OwnStep, {"momentum": 0.9}, "OwnStep has a step of its own"),
    ],
)
def test_other_optimizers_have_no_prediction(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], said: str
) -> None:
    class Other(Sgd):
        def configure_optimizers(self) -> Any:
            return kind(self.parameters(), lr=0.01, **options)  # type: ignore[call-arg]

    watching = watched(Other(), max_epochs=2)
    assert all(map(math.isnan, watching.ratios))
    assert all(reason is not None and said in reason for reason in watching.reasons)


def test_a_subclass_of_sgd_that_leaves_the_step_alone_is_sgd() -> None:
    class Named(torch.optim.SGD):
        """With the profiler about its own step, as torch puts it there if it is made first."""

    Named.step = Named.profile_hook_step(torch.optim.SGD.step)  # type: ignore[method-assign]
    Named.step.hooked = True  # type: ignore[attr-defined]

    class Module(Sgd):
        kind = Named

    assert watched(Module()).ratios == pytest.approx([1] * 7, abs=TIGHT)


def test_the_squared_loss_shows_as_a_ratio_far_from_one() -> None:
    class Squared(Sgd):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return mse_loss(self(batch[0]), one_hot(batch[1], CLASSES).float())

    torch.manual_seed(0)
    watching = watched(Squared(lr=0.1))
    assert watching.ratios[0] == 1
    assert abs(watching.ratios[-1] - 1) > 0.03
    assert watching.reasons == [None] * 7


def test_why_there_is_no_number_is_said() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    never = ParameterWatch(weight, nn.Identity())
    assert math.isnan(never.read()[""]["w_mean_law_ratio"])
    assert never.reason == "the fit has not begun"

    class Frozen(Sgd):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.body.parameters(), lr=0.1)

    class Shared(Sgd):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    class Computed(Sgd):
        def __init__(self) -> None:
            super().__init__()
            nn.utils.parametrizations.weight_norm(self.head)

    class Unannounced(Sgd):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            cross_entropy(self(batch[0]), batch[1]).backward()
            optimizer.step()

    class Empty(Sgd):
        def __init__(self) -> None:
            super().__init__()
            nn.init.zeros_(self.head.weight)

    class Diverged(Sgd):
        def on_train_batch_end(self, *args: Any) -> None:
            self.head.weight.data.fill_(math.nan)

    told = {}
    for kind in (Frozen, Shared, Computed, Unannounced, Empty, Diverged):
        watching = watched(kind(), max_epochs=1, limit_train_batches=1)
        assert math.isnan(watching.ratios[-1]), kind
        told[kind] = watching.reasons[-1] or ""
    assert "no optimizer holds" in told[Frozen]
    assert "several optimizers hold" in told[Shared]
    assert "is computed" in told[Computed]
    assert "no step of an optimizer was announced" in told[Unannounced]
    assert re.search(r"row sum, 0.0e\+00, is below what rounding", told[Empty])
    assert "not finite" in told[Diverged]


def test_a_weight_handed_over_in_the_middle_is_followed_from_there() -> None:
    class Late(Sgd):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.body.parameters(), lr=0.3, weight_decay=0.03)

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            if self.current_epoch == 3:
                optimizer = self.trainer.optimizers[0]
                optimizer.add_param_group({"params": [self.head.weight], "momentum": 0.5})

    watching = watched(Late())
    assert all(map(math.isnan, watching.ratios[:4]))
    assert watching.ratios[4:] == pytest.approx([1] * 3, abs=TIGHT)


def test_an_optimizer_that_cannot_be_read_stops_nothing() -> None:
    head = nn.Linear(4, CLASSES)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    fitting = trainer()
    fitting.strategy.optimizers = [optimizer]
    watch = ParameterWatch(weight_of(head), head)
    watch.begin(fitting)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.1, 0.2])
    head.weight.grad = torch.zeros_like(head.weight)
    watch.step(fitting, optimizer)
    assert math.isnan(watch.read()[""]["w_mean_law_ratio"])
    assert "a step of SGD is not understood" in str(watch.reason)


# -- resuming, and leaving no trace ----------------------------------------------------------------


def fitted(epochs: int, *, save: Path | None = None, resume: Path | None = None) -> Watching:
    torch.manual_seed(0)
    watching = Watching()
    fitting = trainer(watching, max_epochs=epochs)
    fitting.fit(Sgd(), train_loader(shuffle=False), ckpt_path=resume)
    if save is not None:
        fitting.save_checkpoint(save)
    return watching


def test_a_resumed_run_goes_on_with_the_law_from_its_start_bit_for_bit(tmp_path: Path) -> None:
    checkpoint = tmp_path / "begun.ckpt"
    whole = fitted(6)
    fitted(3, save=checkpoint)
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded["callbacks"]["Watching"]["law"]["steps"] == 9
    # Checkpoints hold no random state: dropout, and so the data's part of W, is another; no matter.
    rest = fitted(6, resume=checkpoint)
    one, two = (watching.watch.state_dict()["law"] for watching in (whole, rest))
    assert one["steps"] == 18
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, Tensor) else value == two[name]
        assert same, name
    assert rest.ratios[0] == whole.ratios[3]
    assert rest.ratios == pytest.approx([1] * 4, abs=TIGHT)


def test_a_run_that_was_begun_without_the_watch_is_taken_up_with_its_momentum(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "begun.ckpt"
    fitted(3, save=checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["callbacks"].pop("Watching")
    torch.save(content, checkpoint)
    rest = fitted(6, resume=checkpoint)
    assert rest.watch.state_dict()["law"]["steps"] == 9
    assert rest.ratios == pytest.approx([1] * 4, abs=TIGHT)


def test_what_was_once_broken_stays_so_after_resuming() -> None:
    head = nn.Linear(4, CLASSES)
    fitting = trainer()
    fitting.strategy.optimizers = [torch.optim.Adam(head.parameters())]
    before = ParameterWatch(weight_of(head), head)
    before.begin(fitting)
    fitting.strategy.optimizers = [torch.optim.SGD(head.parameters(), lr=0.1)]
    after = ParameterWatch(weight_of(head), head)
    after.load_state_dict(before.state_dict())
    after.begin(fitting)
    assert math.isnan(after.read()[""]["w_mean_law_ratio"])
    assert "Adam" in str(after.reason)


def test_the_watch_leaves_no_trace() -> None:
    class Silent(Watching):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None: ...
        def on_before_optimizer_step(self, *args: Any) -> None: ...
        def on_train_epoch_end(self, *args: Any) -> None: ...
        def state_dict(self) -> dict[str, Any]:
            return {}

    states = []
    for callback in (Watching(), Silent()):
        torch.manual_seed(0)
        module = Sgd()
        entries: list[int] = []

        class Entries(Base):
            def on_train_start(self, trainer: Any, pl_module: Any, to: Any = entries) -> None:
                to.append(len(trainer.optimizers[0].state))

        trainer(callback, Entries()).fit(module, train_loader())
        states.append((module.state_dict(), torch.get_rng_state(), module.losses, entries))
    one, two = states
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert torch.equal(one[1], two[1])
    assert one[2:] == two[2:]
    assert one[3] == [0]


# -- balance ---------------------------------------------------------------------------------------


def test_the_balance_is_read_for_each_pair_of_neighbours_by_name() -> None:
    class Deep(Sgd):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
            self.more = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

        def on_train_epoch_start(self) -> None: ...

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.more(self.body(x)))

    module = Deep()
    watching = watched(module, max_epochs=1)
    first, second = module.body[0], module.body[2]
    want = layer_balance([first, nn.ReLU(), second])["0 -> 2"]
    assert watching.numbers["body.0 -> body.2"] == {"layer_balance": want}
    assert math.isnan(watching.numbers["more.0 -> more.2"]["layer_balance"])
    assert list(watching.numbers) == ["", "body.0 -> body.2", "more.0 -> more.2"]
