"""The weights that are measured beside a callback that averages them."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from ncmonitor import InputError
from ncmonitor.callbacks.base import Base
from ncmonitor.callbacks.trainers.averaging import Weights, check_weights, measured_weights
from ncmonitor.callbacks.trainers.clean_pass import evaluating
from toys import CLASSES, DIM, Recording, Toy, blobs, train_loader, trainer, val_loader

PROBE = blobs(9, seed=3)[0]


@dataclass
class Seen:
    """One pass: when, what the record says, and what was there."""

    epoch: int
    says: str
    logits: Tensor
    state: dict[str, Tensor]
    raw: dict[str, Tensor]


class Passes(Base):
    """Runs the network inside the context where NeuralCollapse would measure."""

    def __init__(self, weights: Weights = "validation", *, at_the_end: bool = False) -> None:
        self.weights, self.at_the_end = weights, at_the_end
        self.seen: list[Seen] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        check_weights(trainer, pl_module, self.weights)

    def _look(self, trainer: Any, pl_module: Any) -> None:
        before = {k: v.clone() for k, v in pl_module.state_dict().items()}
        places = [t.data_ptr() for t in pl_module.state_dict().values()]
        with (
            evaluating(trainer, pl_module),
            measured_weights(trainer, pl_module, self.weights) as says,
        ):
            logits = pl_module(PROBE)
            state = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.seen.append(Seen(trainer.current_epoch, says, logits, state, before))
        assert [t.data_ptr() for t in pl_module.state_dict().values()] == places
        same(pl_module.state_dict(), before)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.at_the_end:
            self._look(trainer, pl_module)

    @property
    def says(self) -> list[str]:
        return [each.says for each in self.seen]


class Watched(Toy):
    """Keeps the logits of the probe, and a copy of the weights, at every validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[Tensor] = []

    def on_validation_epoch_start(self) -> None:  # called after the callbacks' hooks
        if not self.trainer.sanity_checking:
            modes = {m: m.training for m in self.modules()}
            with torch.no_grad():
                self.validated.append(self.eval()(PROBE))
            for each, mode in modes.items():
                each.training = mode


class NoNorm(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, DIM), nn.ReLU(), *(nn.Identity() for _ in range(3)))


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def differ(one: dict[str, Tensor], two: dict[str, Tensor], key: str = "head.weight") -> bool:
    return not torch.equal(one[key], two[key])


def fitted(*callbacks: Any, make: Any = Watched, max_epochs: int = 3, **changes: Any) -> Any:
    pl.seed_everything(7, verbose=False)
    module = make()
    fit = trainer(*callbacks, max_epochs=max_epochs, num_sanity_val_steps=0, **changes)
    fit.fit(module, train_loader(Recording(augment=True)), val_loader())
    return module


def swa(**changes: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(**({"swa_lrs": 0.05, "swa_epoch_start": 2} | changes))


def ema(**changes: Any) -> EMAWeightAveraging:
    return EMAWeightAveraging(**({"decay": 0.7} | changes))


# -- weights that validation averages --------------------------------------------------------------


def test_training_under_an_average_is_bit_identical_with_and_without_the_passes() -> None:
    def after_a_fit(*more: Any) -> dict[str, Any]:
        average = ema()
        module = fitted(average, *more)
        assert average._average_model is not None
        optimizer = module.trainer.optimizers[0].state_dict()
        return {
            "weights": module.state_dict(),
            "average": average._average_model.state_dict(),
            "optimizer": optimizer,
            "losses": module.losses,
            "validated": module.validated,
            "random": torch.get_rng_state(),
        }

    passes = Passes()
    same(after_a_fit(passes), after_a_fit())
    assert passes.says == ["averaged"] * 4


@pytest.mark.parametrize("passes_first", [True, False])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_inside_are_the_weights_and_buffers_of_the_validation_of_that_epoch(
    passes_first: bool, device: str | None
) -> None:
    average, passes = ema(device=device), Passes()
    module = fitted(*((passes, average) if passes_first else (average, passes)))
    assert len(module.validated) == 3
    same([each.logits for each in passes.seen[1:]], module.validated)
    assert average._average_model is not None
    same(passes.seen[-1].state, average._average_model.module.state_dict())
    last = passes.seen[-1]
    assert differ(last.state, last.raw)
    assert differ(last.state, last.raw, "body.1.running_mean")


def test_an_average_updated_after_the_epoch_is_the_one_of_the_next_validation() -> None:
    class Epochwise(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None

    passes = Passes()
    module = fitted(Epochwise(), passes)
    same([each.logits for each in passes.seen[:-1]], module.validated)


@pytest.mark.parametrize("choice", ["raw", "averaged"])
def test_raw_and_averaged_are_had_by_asking(choice: str) -> None:
    passes = Passes(choice)
    fitted(ema(update_starting_at_step=3), passes)  # three steps an epoch: the second epoch
    begun = [choice] * 2 if choice == "averaged" else ["raw"] * 2
    assert passes.says == ["raw", "raw", *begun]
    for each in passes.seen:
        assert differ(each.state, each.raw) == (each.says == "averaged")


def test_before_the_first_update_validation_sees_the_untrained_network_and_so_do_we() -> None:
    passes = Passes("validation")
    module = fitted(ema(update_starting_at_step=3), passes)
    same(passes.seen[1].logits, module.validated[0])
    same(passes.seen[1].logits, passes.seen[0].logits)
    assert passes.says == ["averaged"] * 4


def test_statistics_that_are_not_averaged_are_those_of_validation() -> None:
    passes = Passes()
    module = fitted(ema(use_buffers=False), passes)
    same([each.logits for each in passes.seen[1:]], module.validated)
    last = passes.seen[-1]
    assert differ(last.state, last.raw)
    assert not differ(last.state, last.raw, "body.1.running_mean")


def test_other_precision_and_memory_order_than_the_averages_are_as_in_validation() -> None:
    class Reordered(Watched):
        def on_fit_start(self) -> None:  # after the average was copied
            first: Any = self.body[0]
            weight = first.weight
            weight.data = weight.data.t().contiguous().t()

    average, passes = ema(), Passes()
    module = fitted(average, passes, make=Reordered)
    same([each.logits for each in passes.seen[1:]], module.validated)

    half = Passes()
    low = fitted(ema(), half, make=LowPrecision, precision="bf16-true")
    assert {each.state["head.weight"].dtype for each in half.seen} == {torch.bfloat16}
    same([each.logits for each in half.seen[1:]], low.validated)


class LowPrecision(Watched):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.head.weight.dtype))


def test_a_pass_that_fails_puts_the_raw_weights_back() -> None:
    class Fails(Passes):
        def _look(self, trainer: Any, pl_module: Any) -> None:
            before = {k: v.clone() for k, v in pl_module.state_dict().items()}
            parameters = list(pl_module.parameters())
            with (
                pytest.raises(ZeroDivisionError),
                measured_weights(trainer, pl_module, self.weights),
            ):
                raise ZeroDivisionError
            same(pl_module.state_dict(), before)
            assert all(a is b for a, b in zip(parameters, pl_module.parameters(), strict=True))

    alone = fitted(ema())
    failing = fitted(ema(), Fails())
    same(failing.state_dict(), alone.state_dict())


def test_what_a_forward_writes_to_a_buffer_does_not_reach_the_average() -> None:
    class Counts(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.calls: Tensor

        def forward(self, x: Tensor) -> Tensor:
            if x is PROBE and self.trainer.state.stage == "validate":
                self.calls += 1000
            return super().forward(x)

    average = ema()
    fitted(average, Passes(), make=Counts, limit_val_batches=0)
    assert average._average_model is not None
    assert average._average_model.module.get_buffer("calls") < 1000


@pytest.mark.parametrize("kind", ["object", "storage"])
def test_tied_weights_stay_tied(kind: str) -> None:
    class Tied(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.twin = nn.Linear(DIM, CLASSES)
            if kind == "object":
                self.twin.weight = self.head.weight
            else:
                self.twin.weight.data = self.head.weight.data
            self.twin.weight.requires_grad_(kind == "object")

    module, passes = Tied(), Passes()
    fitted(ema(), passes, make=lambda: module)
    assert module.twin.weight.data_ptr() == module.head.weight.data_ptr()
    assert (module.twin.weight is module.head.weight) == (kind == "object")
    last = passes.seen[-1]
    assert differ(last.state, last.raw)
    same([each.logits for each in passes.seen[1:]], module.validated)


# -- weights that are averaged until the end -------------------------------------------------------


def test_stochastic_averaging_validates_raw_weights_and_can_be_asked_for_its_average() -> None:
    callback, passes, raw = swa(), Passes("averaged"), Passes()
    module = fitted(callback, passes, raw, make=NoNorm, max_epochs=4)
    assert raw.says == ["raw"] * 5
    same([each.logits for each in raw.seen[1:]], module.validated)
    assert passes.says == ["raw", "raw", "averaged", "averaged", "averaged"]
    assert callback._average_model is not None
    same(passes.seen[-1].state, callback._average_model.state_dict())
    assert differ(passes.seen[-1].state, passes.seen[-1].raw)
    same(module.state_dict(), passes.seen[-1].state)  # what Lightning left in the model

    without = fitted(swa(), make=NoNorm, max_epochs=4)
    assert module.losses == without.losses
    same(module.state_dict(), without.state_dict())


def test_the_average_without_batchnorm_statistics_is_refused_before_training() -> None:
    module = Watched()
    with pytest.raises(InputError, match=r"BatchNorm.*weights='raw'.*EMAWeightAveraging"):
        fitted(swa(), Passes("averaged"), make=lambda: module)
    assert module.losses == []


def test_the_extra_epoch_for_batchnorm_is_recorded_as_averaged() -> None:
    passes = Passes()
    module = fitted(swa(), passes, max_epochs=3)
    assert passes.says == ["raw", "raw", "raw", "raw", "averaged"]
    same(passes.seen[-1].logits, module.validated[-1])


@pytest.mark.parametrize("choice", ["validation", "raw"])
@pytest.mark.parametrize("passes_first", [True, False])
def test_the_record_says_when_lightning_has_already_put_the_average_in(
    choice: str, passes_first: bool
) -> None:
    passes = Passes(choice, at_the_end=True)
    fitted(*((passes, ema()) if passes_first else (ema(), passes)))
    raw_is_gone = choice == "validation" or not passes_first
    assert passes.says[-1] == ("averaged" if raw_is_gone else "raw")
    assert passes.says[:-1] == ["averaged" if choice == "validation" else "raw"] * 4


# -- choices ---------------------------------------------------------------------------------------


@dataclass
class OwnAverage:
    """As in torch_ema: values are copied in, and back on leaving."""

    value: float = 0.25
    calls: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def average_parameters(self, module: nn.Module, word: Any = None) -> Iterator[Any]:
        saved = [p.clone() for p in module.parameters()]
        for p in module.parameters():
            p.data.fill_(self.value)
        try:
            yield word
        finally:
            for p, value in zip(module.parameters(), saved, strict=True):
                p.data.copy_(value)


@pytest.mark.parametrize(
    ("word", "says"),
    [(None, "averaged"), ("raw", "raw"), ("averaged", "averaged"), ("?", "averaged")],
)
def test_an_average_of_the_users_own_is_measured_through_a_function(word: Any, says: str) -> None:
    own = OwnAverage()
    passes = Passes(lambda trainer, module: own.average_parameters(module, word))
    module = fitted(passes)
    assert passes.says == [says] * 4
    assert all(each.state["head.bias"].eq(0.25).all() for each in passes.seen)
    same(module.state_dict(), fitted().state_dict())


def test_without_an_averaging_callback_validation_means_raw() -> None:
    passes, asked = Passes("validation"), Passes("raw")
    fitted(passes, asked)
    assert passes.says == asked.says == ["raw"] * 4


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("averaged", "no callback that averages"),
        ("average", "did you mean 'averaged'"),
        ("ema", "must be one of"),
        (None, "but is a NoneType"),
        (0.999, "but is a float"),
        (OwnAverage().average_parameters(nn.Linear(1, 1)), "pass a function that makes one"),
        (lambda: None, "function of trainer and module"),
    ],
)
def test_a_wrong_choice_is_refused_before_training(choice: Any, words: str) -> None:
    module = Watched()
    with pytest.raises(InputError, match=words):
        fitted(Passes(choice), make=lambda: module)
    assert module.losses == []


def test_a_function_without_a_context_manager_is_refused() -> None:
    nothing: Any = lambda trainer, module: None  # noqa: E731
    with pytest.raises(InputError, match="must return a context manager, but returned a NoneType"):
        fitted(Passes(nothing))


def test_two_averages_are_refused_where_one_must_be_meant() -> None:
    class Slower(EMAWeightAveraging):
        """Lightning itself refuses two of one class."""

    with pytest.raises(InputError, match="EMAWeightAveraging and Slower"):
        fitted(ema(), Slower(), Passes())
    with pytest.raises(InputError, match="EMAWeightAveraging and StochasticWeightAveraging"):
        fitted(ema(), swa(), Passes("averaged"), make=NoNorm)
    check_weights(trainer(ema(), swa()), NoNorm(), "validation")
    check_weights(trainer(ema(), Slower()), NoNorm(), "raw")


def test_a_lightning_that_renamed_its_average_is_told_at_setup() -> None:
    class Renamed(EMAWeightAveraging):
        def __init__(self) -> None:
            super().__init__()
            del self._average_model

    with pytest.raises(InputError, match=r"keeps its average elsewhere.*_average_model"):
        check_weights(trainer(Renamed()), Toy(), "validation")
    check_weights(trainer(Renamed()), Toy(), "raw")


def test_a_model_that_grew_after_setup_is_told_apart_from_its_average() -> None:
    class Grows(Toy):
        def on_train_start(self) -> None:
            self.late = nn.Linear(2, 2)

    with pytest.raises(InputError, match="must keep its layers after setup"):
        fitted(ema(use_buffers=False), Passes(), make=Grows, limit_val_batches=0)


def test_outside_a_fit_the_weights_stay_those_of_the_checkpoint() -> None:
    class Tests(Passes):
        def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self._look(trainer, pl_module)

    passes, average = Tests(), ema()
    module = Watched()
    fit = trainer(average, passes, max_epochs=2)
    fit.fit(module, train_loader(), val_loader())
    fit.test(module, val_loader(), verbose=False)
    assert passes.says[-1] == "averaged"  # Lightning has left the average in the model
    with torch.no_grad():
        module.head.weight.mul_(2)  # as by a checkpoint
    fit.test(module, val_loader(), verbose=False)
    assert passes.says[-1] == "raw"
    same(passes.seen[-1].state, passes.seen[-1].raw)


def test_averages_of_the_other_distribution_are_found_too() -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")

    class Other(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, DIM), nn.Linear(DIM, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(x))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    for average, says in (
        (callbacks.EMAWeightAveraging(decay=0.7), ["averaged", "averaged", "averaged"]),
        (callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1), ["raw"] + ["averaged"] * 2),
    ):
        passes = Passes("averaged" if says[0] == "raw" else "validation")
        fit = lightning.Trainer(
            max_epochs=2,
            callbacks=[average, passes],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        fit.fit(Other(), train_loader())
        assert passes.says == says
        assert differ(passes.seen[-1].state, passes.seen[-1].raw)
