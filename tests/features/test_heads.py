"""Heads that are easily mistaken are found rightly, or refused with what to pass."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from head_kinds import (
    BATCHES,
    COUNTS,
    DIM,
    INPUTS,
    KINDS,
    Buffer,
    LoRALinear,
    Net,
    Outside,
    Tied,
    tried,
    trunk,
    wrong,
)
from ncmonitor import FeatureTap, InputError


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", KINDS)
def test_no_kind_of_head_is_silently_wrong(name: str, count: int, batch: int) -> None:
    for seed in range(2):
        assert wrong(KINDS[name], count, batch, seed) is None


# -- what the message says leads to a measurement --------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.passed])
def test_following_the_message_gives_the_models_own_logits(name: str) -> None:
    torch.manual_seed(3)
    kind = KINDS[name]
    model, x = kind.make(5), torch.randn(8, INPUTS)
    refused = tried(model, x)
    assert isinstance(refused, InputError)
    assert kind.passed is not None
    assert kind.passed in str(refused)
    given = re.fullmatch(r"classifier=(.*)", kind.passed)
    assert given is not None
    tap = tried(model, x, eval(given[1]))  # compares the values with those of the model
    assert isinstance(tap, FeatureTap), tap
    assert tap.weight.shape == (5, DIM)


def test_messages_offer_only_layers_as_wide_as_the_logits() -> None:
    refused = str(tried(KINDS["mean of two heads"].make(5), torch.randn(8, INPUTS)))
    assert "'head' (16 to 5), 'head_dist' (16 to 5)" in refused
    assert "trunk" not in refused


@pytest.mark.parametrize("source", ["tensor", "name", "function", "of_the_model", "pattern"])
def test_a_weight_can_be_given_in_every_way(source: str) -> None:
    torch.manual_seed(0)
    model, x = Outside(F.linear, 5, DIM), torch.randn(8, INPUTS)
    given: Any = {
        "tensor": model.W,
        "function": lambda: (model.W, None),
        "of_the_model": lambda net: (net.W, torch.zeros(5)),
    }.get(source, "W")
    module: Any = "t?unk" if source == "pattern" else model.trunk
    tap = tried(model, x, (module, given))
    assert isinstance(tap, FeatureTap), tap
    assert tap.weight.equal(model.W)


def test_the_features_may_be_what_the_module_takes() -> None:
    class Before(Outside):
        def __init__(self) -> None:
            super().__init__(F.linear, 5, DIM)
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.last(self.trunk(x)), self.W)

    tap = tried(Before(), torch.randn(8, INPUTS), ("last", "W"))
    assert isinstance(tap, FeatureTap), tap


@pytest.mark.parametrize("turned", [False, True], ids=["K_by_d", "d_by_K"])
@pytest.mark.parametrize("held", ["layer", "outside"])
def test_a_square_weight_lies_as_the_values_say(held: str, turned: bool) -> None:
    torch.manual_seed(0)
    use = torch.matmul if turned else F.linear
    if held == "outside":
        model: nn.Module = Outside(use, DIM, DIM)
        weight = model.W
    else:
        model = Net(Outside(use, DIM, DIM))
        weight = model.head.W
        model.head.trunk = nn.Identity()
    tap = tried(model, torch.randn(8, INPUTS), ("trunk", "W") if held == "outside" else None)
    assert isinstance(tap, FeatureTap), tap
    torch.testing.assert_close(tap.weight, weight.T if turned else weight, rtol=1e-5, atol=1e-6)


def test_a_wrong_weight_is_refused() -> None:
    model = Outside(F.linear, 5, DIM)
    model.other = nn.Parameter(torch.randn(5, DIM))
    refused = str(tried(model, torch.randn(8, INPUTS), ("trunk", "other")))
    assert "is not W h + b" in refused
    cases: list[tuple[Any, str]] = [
        (("trunk", "V"), "'V' gave NoneType"),
        (("trunk", lambda: 3), "gave int"),
        (("trunk", torch.zeros(5)), r"gave shape \(5,\)"),
        (("trnk", "W"), "no module named 'trnk'; did you mean 'trunk'"),
        (("trunk.?", "W"), "must match one module, but matches 10"),
        (("trunk", "W", "b"), "a pair .module, weight., but got 3 entries"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            FeatureTap(model, given)


def test_a_model_that_returns_its_features_is_measured_with_the_weight_of_its_loss() -> None:
    class Embedder(nn.Module):  # as for pytorch-metric-learning, whose losses hold (d, K)
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk()
            self.loss = Buffer(DIM, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.trunk(x))

    torch.manual_seed(0)
    model, x = Embedder().eval(), torch.randn(8, INPUTS)
    with torch.no_grad(), FeatureTap(model, ("trunk", "loss.etf")) as tap:
        returned = model(x)
        features, logits = tap.take()
    torch.testing.assert_close(features, returned)
    torch.testing.assert_close(logits, returned @ model.loss.etf)


# -- effective weights -----------------------------------------------------------------------------


def test_the_weight_of_an_adapted_layer_is_the_one_that_acts() -> None:
    torch.manual_seed(0)
    model, x = Net(LoRALinear(DIM, 5)).eval(), torch.randn(8, INPUTS)
    with torch.no_grad(), FeatureTap(model) as tap:
        model(x)
        tap.take()
        head = tap.head
    nn.init.normal_(model.head.lora_B)  # type: ignore[arg-type]
    with torch.no_grad(), FeatureTap(model, head=head) as tap:
        logits = model(x)
        activations = tap.take()
    layer = model.head
    effective = layer.weight + layer.lora_B @ layer.lora_A  # type: ignore[operator]
    torch.testing.assert_close(tap.weight, effective.detach(), rtol=1e-5, atol=1e-6)
    assert activations.logits.equal(logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "saved"])
def test_heads_adapted_by_peft_have_their_effective_weight(kind: str) -> None:
    import peft

    torch.manual_seed(0)
    wrapped = ["head"] if kind != "saved" else ["trunk.8"]
    config: Any = {
        "lora": lambda: peft.LoraConfig(target_modules=wrapped, r=2),
        "dora": lambda: peft.LoraConfig(target_modules=wrapped, r=2, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=wrapped, feedforward_modules=[]),
        "saved": lambda: peft.LoraConfig(target_modules=wrapped, r=2, modules_to_save=["head"]),
    }[kind]()
    model = peft.get_peft_model(Net(nn.Linear(DIM, 5)), config).eval()
    x = torch.randn(8, INPUTS)
    with torch.no_grad(), FeatureTap(model) as tap:
        model(x)
        tap.take()
        head = tap.head
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "head" in name:
            nn.init.normal_(parameter, std=0.5)
    with torch.no_grad(), FeatureTap(model, head=head) as tap:
        logits = model(x)
        activations = tap.take()
        linear = F.linear(activations.features, tap.weight, tap.bias)
    torch.testing.assert_close(linear, logits, rtol=1e-4, atol=1e-5)
    if kind == "lora":
        layer = model.base_model.model.head
        expected = layer.base_layer.weight + layer.get_delta_weight("default")
        torch.testing.assert_close(tap.weight, expected.detach(), rtol=1e-4, atol=1e-5)


# -- one position, one logit -----------------------------------------------------------------------


class LastToken(nn.Module):
    """A linear head on every token, of which each sample's last is returned, as in GPT-2."""

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(9, DIM), nn.Linear(DIM, 5, bias=False)
        if zero:
            nn.init.zeros_(self.score.weight)

    def forward(self, ids: Tensor) -> Tensor:
        last = (ids != 0).sum(1) - 1
        return self.score(self.embed(ids).cumsum(1))[torch.arange(len(ids)), last]


@pytest.mark.parametrize("zero", [False, True], ids=["random", "zero"])
def test_the_features_are_those_of_the_position_that_is_returned(zero: bool) -> None:
    torch.manual_seed(0)
    model = LastToken(zero=zero)
    ids = torch.tensor([[3, 4, 5, 0], [3, 4, 5, 6], [1, 0, 0, 0], [7, 8, 0, 0]])
    with torch.no_grad(), FeatureTap(model) as tap:
        logits = model(ids)
        activations = tap.take()
        again = model(ids.flip(0))
        flipped = tap.take()
    h = model.embed(ids).cumsum(1)
    expected = torch.stack([h[0, 2], h[1, 3], h[2, 0], h[3, 1]])
    assert activations.features.equal(expected)
    assert flipped.features.equal(expected.flip(0))
    assert activations.logits.equal(logits)
    assert flipped.logits.equal(again)


@pytest.mark.parametrize("end", ["as_it_is", "squeezed", "sigmoid"])
def test_one_logit_is_two_classes(end: str) -> None:
    torch.manual_seed(0)
    ends = {"as_it_is": lambda z: z, "squeezed": lambda z: z[:, 0], "sigmoid": torch.sigmoid}
    model = Net(nn.Linear(DIM, 1), ends[end])
    with torch.no_grad(), FeatureTap(model) as tap:
        model(x := torch.randn(8, INPUTS))
        activations = tap.take()
        z = model.head(model.trunk(x))
    torch.testing.assert_close(activations.logits, torch.cat([-z, z], 1) / 2)
    head: Any = model.head
    assert tap.weight.equal(torch.cat([-head.weight, head.weight]) / 2)
    assert tap.bias is not None
    assert tap.bias.equal(torch.cat([-head.bias, head.bias]) / 2)


# -- values are compared at every take -------------------------------------------------------------


def test_a_second_head_that_wakes_up_is_noticed() -> None:
    class Gated(Tied):
        """A second head that a schedule brings in."""

        def __init__(self) -> None:
            super().__init__(5)
            self.gate, self.head = 0.0, nn.Linear(DIM, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x)
            return self.head(h) + self.gate * F.linear(h, self.names.weight)

    model, x = Gated(), torch.randn(8, INPUTS)
    with torch.no_grad(), FeatureTap(model) as tap:
        model(x)
        tap.take()
        model.gate = 0.1
        model(x)
        with pytest.raises(InputError, match="is not made by its classifier 'head' alone"):
            tap.take()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_alone_is_no_disagreement(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for end in (lambda z: z / 7, lambda z: z.softmax(-1), lambda z: 30 * (z / 30).tanh()):
        model = Net(nn.Linear(DIM, 10), end).to(dtype)
        nn.init.normal_(model.head.weight, std=3)  # type: ignore[arg-type]
        with torch.no_grad(), FeatureTap(model) as tap:
            for size in (1, 64, 300):
                model(torch.randn(size, INPUTS, dtype=dtype))
                tap.take()
        assert tap.name == "head"


def test_a_learnt_temperature_may_move_between_measurements_but_not_within_one() -> None:
    model = Net(nn.Linear(DIM, 5))
    model.t = t = nn.Parameter(torch.tensor(2.0))
    model.end = lambda z: t * z
    x = torch.randn(8, INPUTS)
    with torch.no_grad(), FeatureTap(model) as tap:
        model(x)
        tap.take()
    with torch.no_grad(), FeatureTap(model, head=tap.head) as tap:
        t.fill_(5)
        returned = model(x)
        assert tap.take().logits.equal(returned)
        t.fill_(6)
        model(x)
        with pytest.raises(InputError, match="changing factor may stand between"):
            tap.take()


# -- what a review has found -----------------------------------------------------------------------


class Exits(nn.Module):
    """Two outputs, of which a single head makes one only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.trunk, self.kind = trunk(), kind
        self.a, self.b, self.c = (nn.Linear(DIM, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        h = self.trunk(x)
        early, one = self.c(h), self.a(h)
        if self.kind == "hidden":
            return one, h, F.normalize(h)
        mean = (one + self.b(h)) / 2
        if self.kind == "exit":
            return {"final": mean, "exit": one}
        return (early, mean) if self.kind == "early" else (mean, early)


@pytest.mark.parametrize("kind", ["exit", "projection", "early"])
def test_another_output_that_no_head_makes_asks_for_a_name(kind: str) -> None:
    refused = tried_any(Exits(kind))
    assert isinstance(refused, InputError)
    assert "the name of the one to watch" in str(refused)


def test_hidden_layers_beside_the_logits_ask_for_nothing() -> None:
    tap = tried_any(Exits("hidden"))
    assert isinstance(tap, FeatureTap), tap
    assert tap.name == "a"


def tried_any(model: nn.Module, classifier: Any = None) -> FeatureTap | InputError:
    torch.manual_seed(0)
    with torch.no_grad(), FeatureTap(model.eval(), classifier) as tap:
        model(torch.randn(8, INPUTS))
        try:
            tap.take()
        except InputError as error:
            return error
    return tap


@pytest.mark.parametrize("given", ["v", "w"])
def test_one_logit_takes_its_own_weight_alone(given: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk()
            self.w, self.v = (nn.Parameter(torch.randn(1, DIM)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.trunk(x), self.w)

    tap = tried_any(One(), ("trunk", given))
    assert isinstance(tap, FeatureTap) == (given == "w")


def test_logits_and_features_need_the_weight_of_the_logits() -> None:
    class Both(Outside):
        def __init__(self) -> None:
            super().__init__(F.linear, 5, DIM)
            self.b = nn.Parameter(torch.randn(5))
            self.wrong = nn.Parameter(torch.randn(5, DIM))

        def forward(self, x: Tensor) -> Any:
            h = self.trunk(x)
            return F.linear(h, self.W, self.b), h

    for given in ("W", "wrong"):
        assert isinstance(tried_any(Both(), ("trunk", given)), InputError)
    tap = tried_any(Both(), ("trunk", lambda model: (model.W, model.b)))
    assert isinstance(tap, FeatureTap), tap
    refused = str(tried_any(Both()))
    assert "classifier=('trunk', lambda model: (model.W, model.b))" in refused


def test_the_name_of_a_layers_weight_brings_its_bias() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.fc = trunk(), nn.Linear(DIM, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.trunk(x), self.fc.weight, self.fc.bias)

    model = Functional()
    assert "classifier=('trunk', 'fc.weight')" in str(tried_any(model))
    tap = tried_any(model, ("trunk", "fc.weight"))
    assert isinstance(tap, FeatureTap), tap
    assert tap.bias is not None
    assert tap.bias.equal(model.fc.bias)


@pytest.mark.parametrize("kind", ["vector", "zero_residual", "gate", "noisy"])
def test_what_does_nothing_yet_is_no_part_of_a_head(kind: str) -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = trunk(), nn.Linear(DIM, 5)
            self.w, self.g = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(()))
            self.late = nn.Linear(5 if kind == "zero_residual" else DIM, 5)
            if kind != "gate":
                nn.init.zeros_(self.late.weight)
                nn.init.zeros_(self.late.bias)

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x)
            h = F.dropout(h, 0.2, training=True) if kind == "noisy" else h
            z = self.head(h)
            if kind == "vector":
                return z * self.w
            if kind == "zero_residual":
                return z + self.late(z)
            return z + (self.g if kind == "gate" else 1) * self.late(h)

    assert isinstance(tried_any(Later()), InputError)


def test_a_norm_behind_the_layer_is_part_of_the_head() -> None:
    head = nn.Sequential(nn.Linear(DIM, 5), nn.BatchNorm1d(5))
    model, x = Net(head), torch.randn(40, INPUTS)
    model.train()
    for _ in range(50):
        model(x)  # moves the running statistics
    tap = tried(model, x)
    assert isinstance(tap, FeatureTap), tap
    assert tap.name == "head"


@pytest.mark.parametrize("end", ["fill", "prior", "cap_of_last"])
def test_masks_caps_and_priors_are_told_apart(end: str) -> None:
    prior = torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0])
    ends: dict[str, Any] = {
        "fill": lambda z: z.masked_fill(torch.tensor([0, 0, 0, 1, 1]).bool(), -100.0),
        "prior": lambda z: z + prior,
        "cap_of_last": lambda z: (10 * (z / 10).tanh()).view(4, 2, 5)[:, 1],
    }
    model = Net(nn.Linear(DIM, 5), ends[end])
    if end == "cap_of_last":
        model.trunk = nn.Sequential(trunk(), nn.Unflatten(0, (4, 2)))
    tap = tried_any(model)
    assert isinstance(tap, FeatureTap), tap
    if end == "prior":
        assert tap.bias is not None
        torch.testing.assert_close(tap.bias, model.head.bias + prior)  # type: ignore[operator]


def test_a_learnt_factor_that_is_one_today_is_a_factor() -> None:
    model = Net(nn.Linear(DIM, 5))
    model.t = t = nn.Parameter(torch.tensor(1.0))
    model.end = lambda z: t * z
    tap = tried_any(model)
    assert isinstance(tap, FeatureTap), tap
    assert tap.head is not None
    assert tap.head.link is not None
    assert tap.head.link.kind == "scale"


@pytest.mark.parametrize(
    "source",
    [None, [1.0], nn.Linear(DIM, 5), lambda: 1 / 0, lambda a, b: None, torch.zeros],
    ids=["none", "list", "module", "raises", "two_arguments", "builtin"],
)
def test_a_weight_that_is_none_is_refused_in_words(source: Any) -> None:
    with pytest.raises(InputError, match=r"takes as weight a tensor \(K, d\)"):
        FeatureTap(Outside(F.linear, 5, DIM), ("trunk", source))
