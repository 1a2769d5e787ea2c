"""A measurement leaves models as they were that write on themselves in eval mode or in eval()."""

from __future__ import annotations

import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
from ncmonitor.symmetry import Action, Group
from toys import CLASSES, blobs, trainer

pytestmark = [  # which these models earn, and which other tests are about
    pytest.mark.filterwarnings("ignore:the network gives other features for the same batch"),
    pytest.mark.filterwarnings("ignore:the features of a sample depend on its batch"),
]

LARGE = 200  # 6 x 200 x 8 floats and more are beyond what is copied beforehand


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Net(pl.LightningModule):
    """A body and a head; the body is what a test is about."""

    def __init__(self, body: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.002, momentum=0.9)

    def remembered(self) -> Any:
        """What else is to be compared after the training."""


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs()), batch_size=15, shuffle=True)


def left(make: Callable[[], Net], *callbacks: pl.Callback, **changes: Any) -> dict[str, Any]:
    """Train and return everything that training has left in the module."""
    pl.seed_everything(3, verbose=False)
    module = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training")
        trainer(*callbacks, **changes).fit(module, loader())
    own = {
        f"{name}.{key}": value
        for name, each in module.named_modules()
        for key, value in vars(each).items()
        if not key.startswith("_") and not isinstance(value, nn.Module)
    }
    own["remembered"] = module.remembered()
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": [each.training for each in module.modules()],
        "random": [torch.get_rng_state(), random.getstate()],
        "own": {key: plain(value) for key, value in own.items()},
    }


def plain(value: Any) -> Any:
    """Return what can be compared."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return list(str(value.bit_generator.state).encode())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, (list, tuple, deque)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Box):
        return plain(vars(value))
    if isinstance(value, nn.Module):
        return plain(dict(value.state_dict()))
    if isinstance(value, (Tensor, np.ndarray, int, float, type(None))):
        return value
    words = value if isinstance(value, str) else type(value).__name__
    return list(words.encode())  # assert_close knows no strings


def monitor(**options: Any) -> NeuralCollapse:
    settings: dict[str, Any] = {
        "run_dir": "run",
        "verbose": False,
        "on_error": "raise",
        "splits": ("train",),
    }
    return NeuralCollapse(**(settings | options))


# -- modes with side effects -----------------------------------------------------------------------


class LoRA(nn.Linear):
    """A low-rank adapter that is merged into the weight in eval mode, as in microsoft/LoRA."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(0.3 * torch.randn(2, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> LoRA:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1) ** mode * (self.up @ self.down).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        more = 0 if self.merged else x @ self.down.T @ self.up.T
        return super().forward(x) + more


class Flagged(nn.Module):
    """Keeps a flag of its own, set by train() and eval(), beside .training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropping = nn.Linear(6, 8), True

    def train(self, mode: bool = True) -> Flagged:
        self.dropping = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.4, training=self.dropping)


class OwnEval(Net):
    """eval() of the whole model has the side effect, and makes a parameter anew."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.evaluations = 0

    def eval(self) -> OwnEval:
        self.evaluations += 1
        self.scale = nn.Parameter(self.scale.detach() * 2)
        return super().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.scale)


class Fused(nn.Module):
    """Two branches whose sum is kept as one weight in eval mode, beside them."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)

    def train(self, mode: bool = True) -> Fused:
        super().train(mode)
        if mode:
            self.__dict__.pop("fused", None)
            self._buffers.pop("bias", None)
        else:
            self.fused = (self.one.weight + self.two.weight).detach()
            self.register_buffer("bias", (self.one.bias + self.two.bias).detach())
        return self

    def forward(self, x: Tensor) -> Tensor:
        if "fused" in self.__dict__:
            return F.linear(x, self.fused, self.bias)
        return self.one(x) + self.two(x)


class FrozenNorm(nn.Sequential):
    """BatchNorm stays in eval mode whatever train() is asked for; and the first layer for ever."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self[0].eval()
        self[0].train = MethodType(lambda self, mode=True: self, self[0])  # type: ignore[method-assign]

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self[1].eval()
        return self


class RestlessNorm(FrozenNorm):
    """BatchNorm stays in training mode, and so moves its statistics in eval mode."""

    def train(self, mode: bool = True) -> RestlessNorm:
        super().train(mode)
        self[1].training = True
        return self


# -- tensors written in the forward ----------------------------------------------------------------


class Average(nn.Module):
    """An exponential average of what it sees, and a counter, in every mode."""

    mean: Tensor
    calls: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("bank", torch.zeros(4096, 8))  # large

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0)  # another object
            self.calls += 1
            place = int(self.calls) % 4096
            self.bank[place] = h.mean(0)
        return h - self.mean + self.bank.sum(0)


class ActNorm(nn.Module):
    """Scale and shift drawn from the first batch, as in normalising flows."""

    initialised: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(6, width)
        self.shift, self.scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))
        self.register_buffer("initialised", torch.tensor(0))
        self.narrow = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if not self.initialised:
            self.shift.data.copy_(-h.detach().mean(0))
            self.scale.data = 1 / h.detach().std(0)
            self.initialised.fill_(1)
        return self.narrow((h + self.shift) * self.scale)


class Renormed(nn.Module):
    """A large table that its own forward scales, and words that stand for the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3000, 8, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.abs() * 1000).long().clamp(max=2999)
        return self.table(words).sum(1)


# -- what is remembered from batch to batch --------------------------------------------------------


class Box:
    """An object of the model's own package."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.count = 0


class Remembers(nn.Module):
    """A hidden state as a tensor, in a list, a dictionary, a queue, an object, an array."""

    calls = 0  # of the class

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 8)
        self.state: Tensor | None = None
        self.whole: list[Tensor] = []
        self.cache: dict[str, Any] = {"sums": []}
        self.queue: deque[float] = deque(maxlen=3)
        self.box, self.array, self.seen = Box(), np.zeros(2), 0

    def forward(self, x: Tensor) -> Tensor:
        before = self.state if self.state is not None else x.new_zeros(1, 8)
        h = self.cell(x, before.expand(len(x), -1))
        self.state = h.detach().mean(0, keepdim=True)
        self.whole.append(self.state)
        self.cache["sums"].append(float(self.state.sum()))
        self.cache["last"] = self.state
        self.queue.append(float(self.state.sum()))
        self.box.last, self.box.count = self.state, self.box.count + 1
        self.array[0] += 1
        self.seen += 1
        type(self).calls += 1
        extra = sum(self.queue) + self.array[0] + self.box.count + self.seen + len(self.whole)
        return h + 0.001 * float(extra)


class Draws(nn.Module):
    """Noise from three generators of its own, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.torch = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.python = random.Random(1)
        self.inside = {"more": [torch.Generator().manual_seed(2)]}

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(8, generator=self.torch) + self.numpy.random() + self.python.random()
        return self.linear(x) + noise + torch.rand(8, generator=self.inside["more"][0])


class Hidden(nn.Module):
    """A second network outside of modules(), with statistics that its forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.others = nn.Linear(6, 8), [nn.BatchNorm1d(8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.others[0](self.linear(x)).detach()


class Metered(Net):
    """Metrics that the forward updates, in every mode."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8))
        self.mean = torchmetrics.MeanMetric()
        self.every = torchmetrics.CatMetric()
        several: Any = {"sum": torchmetrics.SumMetric(), "max": torchmetrics.MaxMetric()}
        self.several = torchmetrics.MetricCollection(several)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.mean(logits.detach().mean())
        self.every.update(logits.detach().mean(1))
        self.several(logits.detach().mean())
        return logits

    def remembered(self) -> Any:
        metrics = [self.mean, self.every, *self.several.values()]
        return [[each._update_count, each.compute()] for each in metrics]


BODIES: dict[str, Callable[[], nn.Module]] = {
    "an adapter that is merged": lambda: LoRA(6, 8),
    "a large adapter": lambda: nn.Sequential(
        nn.Linear(6, LARGE), LoRA(LARGE, LARGE), nn.Linear(LARGE, 8)
    ),
    "a flag beside training": Flagged,
    "branches fused beside": Fused,
    "BatchNorm kept in eval mode": FrozenNorm,
    "BatchNorm kept in training mode": RestlessNorm,
    "averages and counters": Average,
    "data-dependent initialisation": lambda: ActNorm(5),
    "data-dependent initialisation of large layers": lambda: ActNorm(30000),
    "a table that is scaled": Renormed,
    "states and caches": Remembers,
    "generators": Draws,
    "a network outside of modules()": Hidden,
}


@pytest.mark.parametrize("name", BODIES)
def test_training_and_everything_the_model_remembers_are_as_without_the_monitor(name: str) -> None:
    def make() -> Net:
        Remembers.calls = 0
        return Net(BODIES[name]())

    alone, calls = left(make), Remembers.calls
    watched = left(make, monitor())
    torch.testing.assert_close(watched, alone, rtol=0, atol=0, equal_nan=True)
    assert Remembers.calls == calls


@pytest.mark.parametrize("make", [Metered, OwnEval])
def test_a_whole_model_that_does_so_is_as_without_the_monitor(make: Callable[[], Net]) -> None:
    torch.testing.assert_close(left(make, monitor()), left(make), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["an adapter that is merged", "states and caches", "generators"])
def test_symmetries_leave_no_trace_either(name: str) -> None:
    def make() -> Net:
        return Net(BODIES[name]())

    group = SymmetryMonitor([negation()], run_dir="run", verbose=False, samples=20)
    torch.testing.assert_close(left(make, group), left(make), rtol=0, atol=0)


def negation() -> Any:
    actions = [Action("same", lambda x: x), Action("negated", torch.neg)]
    return Group.of("sign", actions, kind="finite")


# -- online mode -----------------------------------------------------------------------------------


class AdaptedHead(Net):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8))
        self.head = LoRA(8, CLASSES)


def test_online_mode_reads_the_merged_weight_and_leaves_the_adapter_apart() -> None:
    kept: list[Any] = []

    class Norms(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            head = pl_module.head
            kept.append((head.weight + head.up @ head.down).detach().norm().item())
            assert not head.merged

    watch = monitor(online=True)
    watched = left(AdaptedHead, Norms(), watch)
    torch.testing.assert_close(watched, left(AdaptedHead), rtol=0, atol=0)
    rows = watch.history.query("split == 'online'")
    assert rows["w_norm"].tolist() == pytest.approx(kept, rel=1e-6)


# -- refused ---------------------------------------------------------------------------------------


class Reparametrised(nn.Module):
    """Two branches that eval() replaces by one, as RepVGG's switch to deployment does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)

    def train(self, mode: bool = True) -> Reparametrised:
        super().train(mode)
        if not mode and "one" in self._modules:
            self.whole = nn.Linear(6, 8)
            self.whole.weight.data = self.one.weight.data + self.two.weight.data
            del self.one, self.two
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x) if "one" in self._modules else self.whole(x)


class Grows(nn.Linear):
    """The switch to eval mode makes the weight larger."""

    def __init__(self) -> None:
        super().__init__(6, 8)

    def train(self, mode: bool = True) -> Grows:
        if not mode:
            self.weight.data = torch.cat([self.weight.data, self.weight.data])
            self.bias.data = torch.cat([self.bias.data, self.bias.data])
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :8]


@pytest.mark.parametrize(
    ("body", "words"),
    [(Reparametrised, r"removes parameters \('body\.one"), (Grows, r"reshapes .*'body\.weight'")],
)
def test_an_eval_that_changes_the_parameters_is_refused_and_undone(body: Any, words: str) -> None:
    module = Net(body())
    before = dict(module.named_parameters())
    values = {name: value.detach().clone() for name, value in before.items()}
    with pytest.raises(InputError, match=rf"eval\(\) of the model {words}.*fusing branches"):
        trainer(monitor()).fit(module, loader())
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(after, values, rtol=0, atol=0, check_stride=True)
    assert module.losses == []


# -- what cannot be put back -----------------------------------------------------------------------


class Counts(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 8)
        self.ticket = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        next(self.ticket)
        return super().forward(x)


def test_what_cannot_be_put_back_is_said_once_by_its_name() -> None:
    with pytest.warns(RuntimeWarning, match=r"changed 'body\.ticket' of the model") as caught:
        trainer(monitor()).fit(Net(Counts()), loader())
    assert len([each for each in caught if "cannot be put back" in str(each.message)]) == 1


class WritesLate(nn.Module):
    """Writes on a large weight in the second batch of a pass, behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.narrow = nn.Linear(6, 4000), nn.Linear(4000, 8)
        self.first: Tensor | None = None  # sample of the first batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.first = x[0] if self.first is None else self.first
            if not x[0].equal(self.first):
                self.large.weight.data[0] += 1
        return self.narrow(self.large(x))


def test_a_weight_that_a_later_batch_writes_on_is_named_and_from_then_on_put_back() -> None:
    seen: list[float] = []

    class Weights(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.body.large.weight.sum().item())

    class Still(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    with pytest.warns(RuntimeWarning, match=r"changed 'body\.large\.weight'") as caught:
        trainer(Weights(), monitor()).fit(Still(WritesLate()), loader())
    assert len([each for each in caught if "cannot be put back" in str(each.message)]) == 1
    assert len(set(seen)) == 1
