"""The precision of the measuring forward, beside every precision of the trainer."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TransformerEnginePrecision,
)
from torch import Tensor, nn

from ncmonitor import InputError
from ncmonitor.callbacks.base import Base
from ncmonitor.callbacks.trainers.clean_pass import evaluating
from ncmonitor.callbacks.trainers.precision import PassPrecision, check_precision
from toys import CLASSES, DIM, Recording, Toy, blobs, train_loader, trainer, val_loader

PROBE, LABELS = blobs(9, seed=3)
SINGLE, HALF = torch.float32, torch.bfloat16


class Passes(Base):
    """Runs the network at the end of each epoch in the precision that is asked for."""

    def __init__(self, choice: str, probe: Any = PROBE) -> None:
        self.choice, self.probe = choice, probe
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.weights: list[torch.dtype] = []
        self.precision: PassPrecision | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        check_precision(trainer, self.choice)
        self.precision = PassPrecision(trainer, pl_module, self.choice)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        before, objects = tensors_of(pl_module), list(pl_module.parameters())
        copies = [t.clone() for t in before]
        with evaluating(trainer, pl_module):
            self.run(pl_module)
        after = tensors_of(pl_module)
        assert all(a is b for a, b in zip(before, after, strict=True))
        assert all(a is b for a, b in zip(objects, pl_module.parameters(), strict=True))
        same(after, copies)

    def run(self, module: Any) -> None:
        assert self.precision is not None
        handle = module.head.register_forward_pre_hook(lambda m, a: self.features.append(a[0]))
        try:
            with self.precision.whole():
                self.weights.append(module.head.weight.dtype)
                batch = self.precision.convert(self.probe)
                with self.precision.forward():
                    self.logits.append(module(batch))
        finally:
            handle.remove()


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def fitted(*callbacks: Any, precision: Any = "32-true", make: Any = Toy, **changes: Any) -> Any:
    pl.seed_everything(7, verbose=False)
    module = make()
    fit = trainer(*callbacks, max_epochs=2, precision=precision, **changes)
    fit.fit(module, train_loader(Recording(augment=True)), val_loader())
    return module


# -- precisions ------------------------------------------------------------------------------------

EXPECTED = [
    ("32-true", "trainer", SINGLE),
    ("32-true", "full", SINGLE),
    ("bf16-mixed", "trainer", HALF),
    ("bf16-mixed", "full", SINGLE),
    ("bf16-true", "trainer", HALF),
    ("bf16-true", "full", SINGLE),
    ("16-true", "trainer", torch.float16),
    ("16-true", "full", SINGLE),
    ("64-true", "trainer", torch.float64),
    ("64-true", "full", torch.float64),
]


@pytest.mark.parametrize(("precision", "choice", "expected"), EXPECTED)
def test_features_have_the_precision_asked_for_and_training_does_not_notice(
    precision: str, choice: str, expected: torch.dtype
) -> None:
    passes, alone = Passes(choice), fitted(precision=precision)
    watched = fitted(passes, precision=precision)
    assert {f.dtype for f in passes.features} == {expected}
    own = watched.head.weight.dtype  # autocast leaves float32 weights alone
    assert passes.weights == [SINGLE if choice == "full" and own != torch.float64 else own] * 2
    assert watched.losses == alone.losses
    same(watched.state_dict(), alone.state_dict())
    same(
        watched.trainer.optimizers[0].state_dict(),
        alone.trainer.optimizers[0].state_dict(),
    )
    assert torch.get_default_dtype() == SINGLE


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_full_is_the_same_network_in_float32_on_the_data_as_they_are(precision: str) -> None:
    passes = Passes("full")
    module = fitted(passes, precision=precision)
    twin = Toy().eval()
    twin.load_state_dict(module.state_dict())  # up-casts
    with torch.no_grad():
        same(passes.logits[-1], twin(PROBE))


def test_trainer_is_what_validation_computes() -> None:
    class Validated(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.out = self(batch[0])

    passes = Passes("trainer", probe=next(iter(val_loader()))[0])
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        module = fitted(passes, precision=precision, make=Validated, limit_val_batches=1)
        same(passes.logits[-1], module.out)


def test_the_callback_of_one_distribution_knows_the_plugins_of_the_other() -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")
    plugins = importlib.import_module("lightning.pytorch.plugins.precision")
    other = lightning.Trainer(accelerator="cpu", precision="bf16-true", logger=False)
    check_precision(other, "full")
    precision = PassPrecision(other, Toy(), "full")
    same(precision.convert(PROBE), PROBE)
    other.strategy.precision_plugin = plugins.DeepSpeedPrecision("bf16-mixed")
    with pytest.raises(InputError, match="cannot undo what DeepSpeedPrecision does"):
        check_precision(other, "full")


# -- restoration -----------------------------------------------------------------------------------


def low_toy() -> Toy:
    return Toy().to(HALF)


def standing_in(plugin: Any = None) -> Any:
    return trainer(plugins=[HalfPrecision("bf16-true") if plugin is None else plugin])


def test_a_pass_that_fails_puts_everything_back() -> None:
    module = low_toy()
    before, names = tensors_of(module), [n for n, _ in module.named_parameters()]
    precision = PassPrecision(standing_in(), module, "full")

    def fail() -> None:
        with precision.whole(), precision.forward():
            assert torch.get_float32_matmul_precision() == "highest"
            assert {t.dtype for t in module.parameters()} == {SINGLE}
            assert module.dtype == SINGLE
            raise ZeroDivisionError

    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(a is b for a, b in zip(before, tensors_of(module), strict=True))
    assert [n for n, _ in module.named_parameters()] == names
    assert module.dtype == HALF


def test_gradient_accumulators_survive_so_distributed_training_still_reduces() -> None:
    """DistributedDataParallel hangs its reduction on these nodes."""
    module, fired = low_toy(), []
    nodes = []
    for parameter in module.parameters():
        view: Any = parameter.view_as(parameter)
        node = view.grad_fn.next_functions[0][0]
        node.register_hook(lambda *_: fired.append(1))
        nodes.append(node)
    with PassPrecision(standing_in(), module, "full").whole():
        pass
    module.eval()(PROBE.to(HALF)).sum().backward()
    assert len(fired) == len(nodes)


def test_half_precision_buffers_are_widened_and_whole_numbers_left_alone() -> None:
    module = low_toy()
    with PassPrecision(standing_in(), module, "full").whole():
        norm = module.body[1]
        assert norm.running_mean.dtype == SINGLE
        assert norm.num_batches_tracked.dtype == torch.int64
    assert module.body[1].running_mean.dtype == HALF


def test_tied_weights_stay_tied_and_recurrent_layers_run() -> None:
    class Recurrent(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LSTM(6, DIM, batch_first=True)
            self.head, self.twin = nn.Linear(DIM, CLASSES), nn.Linear(DIM, CLASSES)
            self.twin.weight = self.head.weight

        def forward(self, x: Tensor) -> Tensor:
            assert self.twin.weight is self.head.weight
            return self.head(self.body(x[:, None])[0][:, -1])

    module = Recurrent().to(HALF).eval()
    flat = module.body._flat_weights
    twin = deepcopy(module).float()
    precision = PassPrecision(standing_in(), module, "full")
    with torch.no_grad():
        expected = twin(PROBE)
        with precision.whole(), precision.forward():
            same(module(precision.convert(PROBE)), expected)
        assert module.body._flat_weights is flat
        assert all(a is b for a, b in zip(flat, module.body.parameters(), strict=True))
        assert module(PROBE.to(HALF)).dtype == HALF


def test_a_script_module_in_half_precision_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still used
        script = torch.jit.script(nn.Linear(6, CLASSES).to(HALF))
    module = low_toy()
    module.extra = script
    before = tensors_of(module)
    with (
        pytest.raises(InputError, match=r"ScriptModule \(Linear\)"),
        PassPrecision(standing_in(), module, "full").whole(),
    ):
        pass
    assert all(a is b for a, b in zip(before, tensors_of(module), strict=True))


# -- switches --------------------------------------------------------------------------------------


@contextlib.contextmanager
def switches_restored() -> Iterator[None]:
    backends: Any = torch.backends
    kinds = [backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn]
    kinds += [backends.cuda.matmul, backends.mkldnn.matmul]
    saved = [kind.fp32_precision for kind in kinds]
    try:
        yield
    finally:
        for kind, value in zip(kinds, saved, strict=True):
            kind.fp32_precision = value


def switches() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in ("cudnn", "mkldnn"):
        for kind in ("conv", "rnn"):
            backend = getattr(getattr(torch.backends, owner), kind)
            found[f"{owner}.{kind}"] = backend.fp32_precision
    found["matmul"] = torch.backends.cuda.matmul.fp32_precision
    try:
        found["common"] = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        found["common"] = "mixed"
    return found


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="switches of torch 2.9")
@pytest.mark.parametrize("setting", ["as it is", "common", "one by one"])
def test_full_switches_tf32_off_and_back_however_it_was_set(setting: str) -> None:
    backends: Any = torch.backends
    with switches_restored():
        if setting == "common":
            backends.cudnn.allow_tf32 = True
        elif setting == "one by one":
            backends.cudnn.conv.fp32_precision = "ieee"
            backends.cudnn.rnn.fp32_precision = "tf32"
            backends.mkldnn.conv.fp32_precision = "bf16"
            backends.cuda.matmul.fp32_precision = "tf32"
        before = switches()
        with PassPrecision(trainer(), Toy(), "trainer").whole():
            assert switches() == before
        with PassPrecision(trainer(), Toy(), "full").whole():
            inside = switches()
        assert switches() == before
    assert inside.pop("common") == ("mixed" if setting == "one by one" else False)
    assert inside.pop("matmul") in ("ieee", "none")
    assert set(inside.values()) == {"ieee"}


def test_the_common_switch_of_products_is_the_highest_under_full_alone() -> None:
    class Notes(Passes):
        def run(self, module: Any) -> None:
            handle = module.head.register_forward_pre_hook(
                lambda *_: seen.append(torch.get_float32_matmul_precision())
            )
            super().run(module)
            handle.remove()

    seen: list[str] = []
    torch.set_float32_matmul_precision("medium")
    try:
        for choice in ("trainer", "full"):
            fitted(Notes(choice))
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["medium"] * 2 + ["highest"] * 2


def test_autocast_around_the_whole_fit_is_off_under_full() -> None:
    passes, as_it_is = Passes("full"), Passes("trainer")
    with torch.autocast("cpu", torch.bfloat16):
        fitted(passes, as_it_is)
    assert {f.dtype for f in passes.features} == {SINGLE}
    assert {f.dtype for f in as_it_is.features} == {HALF}


class Autocasts(Toy):
    """Switches autocast on in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.body(x))


def test_autocast_inside_the_model_is_told_once() -> None:
    module = Autocasts().eval()
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    precision = PassPrecision(trainer(), module, "full")
    for expected in (1, 0, 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with precision.whole(), precision.forward():
                module(PROBE)
        assert len([w for w in caught if "autocast on itself around 'body'" in str(w.message)]) == (
            expected
        )
        assert not hooks
    with PassPrecision(trainer(), module, "trainer").forward():
        module(PROBE)  # as the loops do, and no warning
    plain = PassPrecision(trainer(), Toy(), "full")
    with plain.whole(), plain.forward():
        Toy().eval()(PROBE)


def test_a_forward_that_fails_leaves_no_hook_behind() -> None:
    precision = PassPrecision(trainer(), Toy(), "full")
    with pytest.raises(ZeroDivisionError), precision.whole(), precision.forward():
        raise ZeroDivisionError
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_tensors_made_in_a_forward_are_float32_under_full() -> None:
    torch.set_default_dtype(HALF)
    try:
        precision = PassPrecision(trainer(), Toy(), "full")
        with precision.whole(), precision.forward():
            assert torch.ones(1).dtype == SINGLE
        assert torch.get_default_dtype() == HALF
    finally:
        torch.set_default_dtype(SINGLE)


def test_tensors_made_in_a_forward_are_float64_where_the_trainer_has_it() -> None:
    precision = PassPrecision(trainer(precision="64-true"), Toy(), "full")
    with precision.whole(), precision.forward():
        assert torch.ones(1).dtype == torch.float64
    assert torch.get_default_dtype() == SINGLE


# -- batches ---------------------------------------------------------------------------------------


def test_batches_of_any_shape_are_converted_and_whole_numbers_are_not() -> None:
    batch = {"x": [PROBE.half(), PROBE.double()], "y": LABELS, "name": "a"}

    def dtypes(plugin: Any) -> list[torch.dtype]:
        done = PassPrecision(standing_in(plugin), Toy(), "full").convert(batch)
        assert done["name"] == "a"
        return [done["x"][0].dtype, done["x"][1].dtype, done["y"].dtype]

    double = torch.float64
    assert dtypes(HalfPrecision("bf16-true")) == [SINGLE, SINGLE, torch.int64]
    assert dtypes(MixedPrecision("bf16-mixed", "cpu")) == [SINGLE, double, torch.int64]
    assert dtypes(Precision()) == [SINGLE, double, torch.int64]


# -- choices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "words"),
    [("fulll", "did you mean 'full'"), ("32", "must be one of"), (32, "but is 32"), (None, "None")],
)
def test_a_wrong_choice_is_refused_before_training(choice: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fitted(Passes(choice))


class OwnArithmetic(Precision):
    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


class OwnClipping(HalfPrecision):
    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        return


@pytest.mark.parametrize(
    "plugin",
    [
        FSDPPrecision("32-true"),
        DeepSpeedPrecision("bf16-mixed"),
        object.__new__(BitsandbytesPrecision),  # without the packages that they need
        object.__new__(TransformerEnginePrecision),
        OwnArithmetic(),
    ],
    ids=lambda plugin: type(plugin).__name__,
)
def test_precision_that_cannot_be_undone_is_refused_under_full_only(plugin: Any) -> None:
    fit = trainer()
    fit.strategy.precision_plugin = plugin
    check_precision(fit, "trainer")
    with pytest.raises(InputError, match=f"{type(plugin).__name__}.*precision='trainer'"):
        check_precision(fit, "full")


def test_a_plugin_of_the_users_that_leaves_the_forward_alone_is_accepted() -> None:
    check_precision(standing_in(OwnClipping("bf16-true")), "full")
