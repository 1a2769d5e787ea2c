"""Heads in a fit: what is logged is the model's own, or nothing is trained."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError, measure_collapse
from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
from ncmonitor.monitor.provenance import read_run

CLASSES, DIM, INPUTS = 5, 32, 20


def data(labels: str = "five") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = 2 if labels == "two" else CLASSES
    y = torch.arange(120) % count
    x = 2 * torch.randn(count, INPUTS, generator=generator)[y]
    return x + 0.5 * torch.randn(120, INPUTS, generator=generator), y


class Model(pl.LightningModule):
    """A body, and logits that a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.bb = nn.Sequential(nn.Linear(INPUTS, DIM), nn.ReLU())

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    module: pl.LightningModule, *callbacks: pl.Callback, y: Tensor | None = None, epochs: int = 3
) -> pl.LightningModule:
    inputs, labels = data()
    loader = DataLoader(TensorDataset(inputs, labels if y is None else y), 20, shuffle=True)
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    options: dict[str, Any] = dict.fromkeys(quiet, False)
    pl.Trainer(
        max_epochs=epochs, callbacks=[*callbacks], accelerator="cpu", log_every_n_steps=1, **options
    ).fit(module, loader)
    return module.eval()


def monitor(folder: Path, classifier: Any = None, **options: Any) -> NeuralCollapse:
    return NeuralCollapse(classifier, splits="train", run_dir=folder, verbose=False, **options)


def own_error(module: pl.LightningModule) -> float:
    inputs, labels = data()
    with torch.no_grad():
        return float((module(inputs).argmax(1) != labels).double().mean())


def last(nc: NeuralCollapse) -> Any:
    return nc.history.query("split == 'train'").iloc[-1]


# -- heads that are none ---------------------------------------------------------------------------


class Distilled(Model):
    """Two heads, zero at first, whose mean is returned in eval mode, as in DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(DIM, CLASSES), nn.Linear(DIM, CLASSES)
        for parameter in (*self.head.parameters(), *self.head_dist.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bb(x)
        return (self.head(h) + self.head_dist(h)) / 2


@pytest.mark.parametrize("classifier", [None, "head"])
def test_a_mean_of_heads_is_refused_before_the_first_step(
    classifier: str | None, tmp_path: Path
) -> None:
    module = Distilled()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(InputError, match="'head'"):
        fit(module, monitor(tmp_path, classifier))
    assert all(p.equal(b) for p, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_timms_networks_of_two_heads_are_refused(name: str, tmp_path: Path) -> None:
    import timm

    class Module(Model):
        def __init__(self) -> None:
            super().__init__()
            size: dict[str, Any] = {} if name == "levit_128s" else {"img_size": 32}
            self.net = timm.create_model(name, num_classes=CLASSES, **size)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    size = 224 if name == "levit_128s" else 32
    loader = DataLoader(TensorDataset(torch.randn(4, 3, size, size), torch.arange(4)), 2)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[monitor(tmp_path)], logger=False, enable_checkpointing=False
    )
    with pytest.raises(InputError, match="a mean of heads"):
        trainer.fit(Module(), loader)


def test_a_layer_that_the_user_names_is_compared_too(tmp_path: Path) -> None:
    class Plain(Model):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(DIM, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.bb(x))

    with pytest.raises(InputError, match=r"'bb.0' gives .20, 32., and the model returns .20, 5."):
        fit(Plain(), monitor(tmp_path, "bb.0"))


# -- heads of every kind, measured -----------------------------------------------------------------


class Outside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(CLASSES, DIM) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.bb(x), self.W)


class Prototypes(Outside):
    def forward(self, x: Tensor) -> Tensor:
        return -(self.bb(x)[:, None] - self.W).square().sum(-1)


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(DIM, CLASSES).requires_grad_(False)
        self.down, self.up = nn.Linear(DIM, 2, bias=False), nn.Linear(2, CLASSES, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h) + self.up(self.down(h))


class Adapted(Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = Adapter()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bb(x))


def test_what_the_message_says_is_measured_rightly(tmp_path: Path) -> None:
    for kind in (Outside, Prototypes):
        pl.seed_everything(1, verbose=False)
        with pytest.raises(InputError) as caught:
            fit(kind(), monitor(tmp_path))
        said = re.search(r"pass classifier=(.*)\Z", str(caught.value))
        assert said is not None, caught.value
        nc = monitor(tmp_path, eval(said[1]))
        module: Any = fit(kind(), nc)
        assert last(nc).error == own_error(module) < 0.5
        inputs, labels = data()
        with torch.no_grad():
            h, w = module.bb(inputs), module.W
            weight = w if kind is Outside else 2 * w
            bias = None if kind is Outside else -w.square().sum(1)
            expected = measure_collapse(h, labels, weight, bias, logits=module(inputs))
        for name in ("nc1", "nc3_self_duality", "nc4_disagreement", "w_mean_ratio"):
            assert last(nc)[name] == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-9)


def test_an_adapted_head_is_measured_with_its_effective_weight(tmp_path: Path) -> None:
    nc = monitor(tmp_path)
    module = fit(Adapted(), nc)
    inputs, labels = data()
    head: Any = module.head
    with torch.no_grad():
        weight = head.base.weight + head.up.weight @ head.down.weight
        assert (weight - head.base.weight).norm() > 0.1
        expected = measure_collapse(module.bb(inputs), labels, weight, head.base.bias)  # type: ignore[operator]
    assert last(nc).error == own_error(module)
    for name in ("nc3_self_duality", "nc4_disagreement", "cross_entropy"):
        assert last(nc)[name] == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-9)
    assert read_run(tmp_path)["measurement"]["classifier"] == "head"


def test_a_disagreement_later_is_a_row_of_nan_and_one_warning(tmp_path: Path) -> None:
    class Gated(Adapted):
        """A second head that a schedule brings in after the first step."""

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.late = 0.0, nn.Linear(DIM, CLASSES)

        def on_train_batch_end(self, *_: Any) -> None:
            self.gate = 0.1

        def forward(self, x: Tensor) -> Tensor:
            h = self.bb(x)
            return self.head(h) + self.gate * self.late(h)

    nc = monitor(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Gated(), nc, epochs=4)
    errors = nc.history.query("split == 'train'").error.tolist()
    assert len(errors) == 5
    assert not math.isnan(errors[0])
    assert all(map(math.isnan, errors[1:]))
    told = [str(w.message) for w in said if "is not made by its classifier" in str(w.message)]
    assert len([line for line in told if "after epoch 1 is nan" in line]) == 1
    assert len(told) == 2  # and the summary when the fit ends


# -- one logit -------------------------------------------------------------------------------------


class OneLogit(Model):
    def __init__(self, end: str) -> None:
        super().__init__()
        self.fc, self.end = nn.Linear(DIM, 1), end

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(self.bb(x))
        return z[:, 0] if self.end == "squeezed" else z

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]).view(-1), batch[1].view(-1))


@pytest.mark.parametrize("end", ["column", "squeezed"])
def test_a_head_with_one_logit_is_measured_as_two_classes(end: str, tmp_path: Path) -> None:
    inputs, y = data()[0], (data()[1] > 1).float()
    nc = monitor(tmp_path)
    module: Any = fit(OneLogit(end), nc, y=y[:, None] if end == "column" else y)
    with torch.no_grad():
        z, fc = module(inputs).view(-1), module.fc
        error = float(((z > 0) != (y > 0.5)).double().mean())
        loss = float(F.binary_cross_entropy_with_logits(z.double(), y.double()))
        weight, bias = (torch.cat([-each, each]) / 2 for each in (fc.weight, fc.bias))
        expected = measure_collapse(module.bb(inputs), y.long(), weight, bias)
    assert last(nc).error == error
    assert last(nc).cross_entropy == pytest.approx(loss, rel=1e-5)
    for name in ("nc1", "nc3_self_duality", "nc4_disagreement"):
        assert last(nc)[name] == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-9)
    facts = read_run(tmp_path)["measurement"]
    assert facts["one_logit"] is True
    assert facts["num_classes"] == 2


def test_one_output_with_real_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one output.*must be 0 or 1.*regression"):
        fit(OneLogit("squeezed"), monitor(tmp_path), y=torch.randn(120))


# -- what is said, and what is tried before the first step -----------------------------------------


def test_more_outputs_than_classes_are_said_once(tmp_path: Path) -> None:
    class Embedder(Model):
        """Returns an embedding of 16, as in metric learning."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(DIM, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(self.bb(x))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Embedder(), monitor(tmp_path))
    told = [str(w.message) for w in said if "has 16 outputs" in str(w.message)]
    assert len(told) == 1
    assert "samples of 5 classes" in told[0]
    assert "returns an embedding" in told[0]


class Quantised(nn.Module):
    """A head in int8, as dynamic quantisation makes it: weights and activations are rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.002), requires_grad=False)
        self.register_buffer("weight", torch.randint(-90, 90, (CLASSES, DIM), dtype=torch.int8))

    def forward(self, h: Tensor) -> Tensor:
        step = h.detach().abs().amax() / 127 + 1e-9
        rounded = (h / step).round() * step
        return F.linear(rounded, self.weight.float() * self.scale)  # type: ignore[operator]


class Int8(Model):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bb(x))


@pytest.mark.parametrize("schedule", ["every_epoch", [3], "online"])
def test_a_head_that_cannot_be_measured_is_refused_whatever_the_schedule(
    schedule: Any, tmp_path: Path
) -> None:
    how = {"online": True} if schedule == "online" else {"schedule": schedule}
    with pytest.raises(InputError, match="no linear layer makes what the model returns"):
        fit(Int8(Quantised()), monitor(tmp_path, **how))


def test_an_int8_weight_under_a_linear_map_is_measured(tmp_path: Path) -> None:
    class Packed(Quantised):
        def forward(self, h: Tensor) -> Tensor:
            return F.linear(h, self.weight.float() * self.scale)  # type: ignore[operator]

    nc = monitor(tmp_path)
    module = fit(Int8(Packed()), nc)
    assert last(nc).error == own_error(module)
    assert not math.isnan(last(nc).nc3_self_duality)


def test_one_batch_is_measured_before_the_first_step(tmp_path: Path) -> None:
    def broken(output: Tensor) -> Tensor:
        return output.mean((1, 2))  # of rows, which have one axis

    module = Adapted()
    before = [p.clone() for p in module.parameters()]
    watch = monitor(tmp_path, schedule=[2], layers="bb", reduce=broken)
    with pytest.raises(InputError, match="reduce= failed on the output"):
        fit(module, watch)
    assert all(p.equal(b) for p, b in zip(module.parameters(), before, strict=True))


def test_symmetries_are_measured_of_such_heads_too(tmp_path: Path) -> None:
    from ncmonitor.symmetry import Action, Group

    sign = Group.of("sign", [Action("minus", lambda x: -x)], kind="vectors", exact=True)
    y = (data()[1] > 1).float()
    symmetry = SymmetryMonitor([sign], run_dir=tmp_path, verbose=False)
    fit(OneLogit("squeezed"), symmetry, y=y, epochs=1)
    assert len(symmetry.history) > 0
