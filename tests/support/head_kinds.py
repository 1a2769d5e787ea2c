"""Networks whose head is easily mistaken, each with what has to come out.

``python tests/support/head_kinds.py 60`` tries every kind with 60 inits, 2, 10 and 100 classes, and
batches of 1, 8 and 64, and prints how many were silently wrong.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncmonitor import FeatureTap, InputError
from ncmonitor.features.heads.links import Link

DIM, INPUTS = 16, 12
COUNTS = (2, 10, 100)
BATCHES = (1, 8, 64)


def trunk() -> nn.Sequential:
    sizes = [INPUTS, DIM, DIM, DIM, DIM, DIM]  # with its head: six layers
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for pair in layers for part in pair))


def zeroed(layer: nn.Module) -> Any:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Net(nn.Module):
    """A trunk, a head, and what is made of the head's output."""

    def __init__(self, head: nn.Module, end: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        self.trunk, self.head, self.end = trunk(), head, end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(self.trunk(x)))


class TwoHeads(nn.Module):
    """The mean of two heads in eval mode, as in distilled DeiT and LeViT."""

    def __init__(self, count: int, zero: int = 0) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head, self.head_dist = nn.Linear(DIM, count), nn.Linear(DIM, count)
        for head in (self.head, self.head_dist)[:zero]:
            zeroed(head)

    def forward(self, x: Tensor) -> Any:
        h = self.trunk(x)
        one, two = self.head(h), self.head_dist(h)
        return (one, two) if self.training else (one + two) / 2


class Ensemble(nn.Module):
    def __init__(self, count: int, *, zero: bool = False, probabilities: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(Net(nn.Linear(DIM, count)) for _ in range(3))
        self.probabilities = probabilities
        for member in self.members if zero else ():
            zeroed(member.head)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([member(x) for member in self.members])
        return (logits.softmax(-1) if self.probabilities else logits).mean(0)


class LoRALinear(nn.Linear):
    """As in microsoft/LoRA: a frozen layer that is its own adapter, of no effect at first."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, dim))
        self.lora_B = nn.Parameter(torch.zeros(count, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class Around(nn.Module):
    """As in peft: an adapter around a frozen layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = zeroed(nn.Linear(2, layer.out_features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Cosine(nn.Module):
    def __init__(self, count: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(count, DIM)), scale

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(h), F.normalize(self.weight))


class Buffer(nn.Module):
    """A fixed head in a buffer, ``(K, d)`` or ``(d, K)``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.turned = shape[0] == DIM
        self.etf: Tensor
        self.register_buffer("etf", torch.randn(*shape))

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.etf if self.turned else h @ self.etf.T


class Outside(nn.Module):
    """A weight that is held by the network itself, and what is made of features and weight."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.trunk, self.make = trunk(), make
        self.W = nn.Parameter(0.5 * torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self.trunk(x), self.W)


class BesideZero(Outside):
    """A layer, and a second head of zeros that no module holds."""

    def __init__(self, count: int) -> None:
        super().__init__(F.linear, count, DIM)
        nn.init.zeros_(self.W)
        self.head = nn.Linear(DIM, count)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return self.head(h) + F.linear(h, self.W)


class Bilinear(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Bilinear(DIM, DIM, count)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return self.head(h, h)


class Crops(nn.Module):
    """The mean of one head's logits over three views."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(DIM, count)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(torch.stack([x, x + 1, 2 * x], 1))).mean(1)


class Tied(nn.Module):
    """Logits by the rows of an embedding."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.names, self.trunk = nn.Embedding(count, DIM), trunk()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.trunk(x), self.names.weight)


class Kind(NamedTuple):
    """A network of K classes.

    ``head`` is the name that has to be found; ``None``: it must be refused, and ``passed`` is then
    what the message says to pass.
    """

    make: Callable[[int], nn.Module]
    head: str | None = None
    passed: str | None = None


def _masked(count: int) -> Callable[[Tensor], Tensor]:
    mask = torch.tensor([0.0] * count + [-torch.inf] * 3)
    return lambda z: z + mask


KINDS: dict[str, Kind] = {
    "mean of two heads": Kind(TwoHeads),
    "mean, one is zero": Kind(lambda k: TwoHeads(k, 1)),
    "mean, both are zero": Kind(lambda k: TwoHeads(k, 2)),
    "ensemble": Kind(Ensemble),
    "ensemble of zero heads": Kind(lambda k: Ensemble(k, zero=True)),
    "ensemble of probabilities": Kind(lambda k: Ensemble(k, probabilities=True)),
    "a zero head outside of a layer": Kind(BesideZero),
    "mean over views": Kind(Crops),
    "bilinear": Kind(Bilinear),
    "F.linear": Kind(lambda k: Outside(F.linear, k, DIM), None, "classifier=('trunk', 'W')"),
    "h @ W": Kind(lambda k: Outside(torch.matmul, DIM, k), None, "classifier=('trunk', 'W')"),
    "tied embedding": Kind(Tied, None, "classifier=('trunk', 'names.weight')"),
    "cosine by hand": Kind(
        lambda k: Outside(lambda h, w: 9 * F.linear(F.normalize(h), F.normalize(w)), k, DIM),
        None,
        "classifier=('trunk', 'W')",
    ),
    "distance to prototypes": Kind(
        lambda k: Outside(lambda h, w: -(h[:, None] - w).square().sum(-1), k, DIM),
        None,
        "classifier=('trunk', lambda model: (2 * model.W, -model.W.square().sum(1)))",
    ),
    "linear": Kind(lambda k: Net(nn.Linear(DIM, k)), "head"),
    "zero-initialised": Kind(lambda k: Net(zeroed(nn.Linear(DIM, k))), "head"),
    "LoRA layer": Kind(lambda k: Net(LoRALinear(DIM, k)), "head"),
    "adapter around a layer": Kind(lambda k: Net(Around(nn.Linear(DIM, k))), "head"),
    "cosine head": Kind(lambda k: Net(Cosine(k)), "head"),
    "buffer (K, d)": Kind(lambda k: Net(Buffer(k, DIM)), "head"),
    "buffer (d, K)": Kind(lambda k: Net(Buffer(DIM, k)), "head"),
    "temperature": Kind(lambda k: Net(nn.Linear(DIM, k), lambda z: z / 3.3), "head"),
    "in place": Kind(lambda k: Net(nn.Linear(DIM, k), lambda z: z.div_(2)), "head"),
    "softmax": Kind(lambda k: Net(nn.Linear(DIM, k), lambda z: z.softmax(-1)), "head"),
    "log-softmax": Kind(lambda k: Net(nn.Linear(DIM, k), lambda z: z.log_softmax(-1)), "head"),
    "softcap": Kind(lambda k: Net(nn.Linear(DIM, k), lambda z: 30 * (z / 30).tanh()), "head"),
    "mask": Kind(lambda k: Net(nn.Linear(DIM, k + 3), _masked(k)), "head"),
    "padded": Kind(lambda k: Net(nn.Linear(DIM, k + 3), lambda z: z[:, :-3]), "head"),
}


def returned_of(link: Link, linear: Tensor) -> Tensor:
    """Return what a model returns, of ``W h + b``, which has factor and mask in it."""
    if link.kind == "scale":
        return linear
    if link.kind == "mask":
        assert link.fixed is not None
        return linear.where(link.fixed.isnan(), link.fixed.to(linear))
    return link.apply(linear)


def tried(model: nn.Module, x: Tensor, classifier: Any = None) -> FeatureTap | InputError:
    """Return the tap after a batch, or the refusal.

    Raises:
        AssertionError: If features, weight and bias do not give what the model returns.
    """
    model.eval()
    with torch.no_grad(), FeatureTap(model, classifier) as tap:
        returned = model(x)
        try:
            activations = tap.take()
        except InputError as error:
            return error
        kept = model(x)  # the tap has changed nothing
        assert torch.equal(kept, returned) or not kept.isfinite().all()
        assert tap.head is not None
        assert tap.head.link is not None
        linear = activations.features.double() @ tap.weight.double().T
        linear = linear if tap.bias is None else linear + tap.bias.double()
        made = returned_of(tap.head.link, linear)
        if tap.head.link.kind == "shift":
            made, kept = (z - z.mean(1, keepdim=True) for z in (made, kept.double()))
        torch.testing.assert_close(made, kept.double(), rtol=1e-4, atol=1e-4)
    return tap


def wrong(kind: Kind, count: int, batch: int, seed: int) -> str | None:
    """Return what is wrong with what comes out; ``None``: nothing."""
    torch.manual_seed(seed)
    model = kind.make(count)
    try:
        tap = tried(model, torch.randn(batch, INPUTS))
    except AssertionError as error:
        return f"silently wrong: {str(error)[:60]}"
    if kind.head is None:
        return None if isinstance(tap, InputError) else f"silently wrong: {tap.name!r} is taken"
    if isinstance(tap, InputError):
        return "wrongly refused"
    return None if tap.name == kind.head else f"silently wrong: {tap.name!r} is taken"


def main() -> None:
    inits = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    total: Counter[str] = Counter()
    for name, kind in KINDS.items():
        found = Counter(
            wrong(kind, count, batch, seed) or "right"
            for count in COUNTS
            for batch in BATCHES
            for seed in range(inits)
        )
        total += found
        said = "refused" if kind.head is None else f"{kind.head!r} is found"
        print(f"{name:32} {said:18} {dict(found)}", flush=True)
    print("all:", dict(total))


if __name__ == "__main__":
    main()
