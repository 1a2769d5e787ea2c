"""Finding the classifier, catching what goes in and out, and leaving nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmonitor import FeatureTap, InputError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A trunk and a head; ``wrap`` decides what the model returns."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh())
        self.head = nn.Linear(3, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        hidden = self.trunk(x)
        logits = self.head(hidden)
        return logits if self.wrap is None else self.wrap(logits, hidden)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    note: str = ""


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "logits": lambda z, h: z,
    "tuple": lambda z, h: (z, h),
    "list_hidden_first": lambda z, h: [h, z],
    "dict": lambda z, h: {"hidden": h, "logits": z, "meta": {"size": 3}},
    "nested": lambda z, h: {"out": [(None, "text", z)]},
    "dataclass": lambda z, h: Output(None, z),
    "log_softmax": lambda z, h: functional.log_softmax(z, dim=1),
    "softmax": lambda z, h: functional.softmax(z, dim=1),
    "temperature": lambda z, h: z / 7,
    "double": lambda z, h: z.double(),
    "bfloat16_scaled": lambda z, h: {"z": (z * 8).bfloat16()},
    "view": lambda z, h: z.view(-1, 3),
    "dropout_in_eval": lambda z, h: functional.dropout(z, training=False),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_classifier_is_found_whatever_the_model_returns(kind: str) -> None:
    model = Net(OUTPUTS[kind])
    with FeatureTap(model) as tap:
        model(X)
        features, logits = tap.take()
    assert (tap.name, tap.classifier) == ("head", model.head)
    assert features.equal(model.trunk(X))
    assert logits.equal(model.head(model.trunk(X)))


def test_of_layers_with_the_same_winner_the_last_is_the_classifier() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Softmax(1))
    with torch.no_grad():
        for layer, factor in ((model[1], 2.0), (model[2], 3.0)):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(factor * torch.eye(3))
            layer.bias.zero_()
    with FeatureTap(model) as tap:
        model(X)
        tap.take()
    assert tap.name == "2"


def test_sequential_models_have_numbered_names() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with FeatureTap(model) as tap:
        model(X.view(5, 2, 2))
        features, logits = tap.take()
    assert tap.name == "3"
    assert (features.shape, logits.shape) == ((5, 6), (5, 3))


def test_a_model_that_is_the_linear_layer_itself_is_tapped() -> None:
    model = nn.Linear(4, 3)
    with FeatureTap(model) as tap:
        model(X)
        features, logits = tap.take()
    assert features.equal(X)
    assert logits.equal(model(X))


def test_a_real_resnet_is_tapped_at_its_last_layer() -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    model = resnet18(weights=None, num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), FeatureTap(model) as tap:
        output = model(images)
        features, logits = tap.take()
    assert tap.name == "fc"
    assert features.shape == (2, 512)
    assert logits.equal(output)
    torch.testing.assert_close(model.fc(features), output)


def test_deep_inside_another_module_the_name_has_its_path() -> None:
    inner = Net()
    model = nn.ModuleDict({"net": nn.ModuleDict({"inner": inner})})
    with FeatureTap(model, "net.inner.head") as tap:
        inner(X)
        assert tap.take().features.equal(inner.trunk(X))
    assert tap.classifier is inner.head


def test_a_pass_through_something_else_than_the_model_names_its_output() -> None:
    model = Net()
    model.predict = lambda x: model.head(model.trunk(x))  # type: ignore[assignment]
    with FeatureTap(model) as tap:
        output = model.predict(X)  # type: ignore[operator]
        assert tap.take(output).logits.equal(output)
        model.predict(2 * X)  # type: ignore[operator]
        assert tap.take().features.equal(model.trunk(2 * X))
    assert tap.name == "head"


def test_every_pass_gives_its_own_and_is_forgotten() -> None:
    model = Net()
    with FeatureTap(model) as tap:
        for factor in (1, 2, 3):
            model(factor * X)
            assert tap.take().features.equal(model.trunk(factor * X))
            tap_again(tap)


def tap_again(tap: FeatureTap) -> None:
    with pytest.raises(InputError, match="run once in a forward pass, but it ran 0 times"):
        tap.take()


def refusal(tap: FeatureTap, model: nn.Module) -> str:
    """What is said of the classifier after one pass."""
    with tap:
        model(X)
        with pytest.raises(InputError) as caught:
            tap.take()
    return str(caught.value)


@pytest.mark.parametrize("given", ["name", "module"])
def test_a_named_classifier_is_watched_even_if_it_is_not_the_last(given: str) -> None:
    model = Net()
    with FeatureTap(model, "trunk.2" if given == "name" else model.trunk[2]) as tap:
        model(X)
        features, logits = tap.take()
    assert tap.name == "trunk.2"
    assert features.equal(model.trunk[:2](X))
    assert logits.equal(model.trunk[:3](X))


def test_keyword_arguments_are_seen() -> None:
    class Keywords(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(input=self.trunk(x))

    model = Keywords()
    with FeatureTap(model) as tap:
        model(X)
        assert tap.take().features.equal(model.trunk(X))


def test_what_is_caught_tracks_no_gradient_but_training_does() -> None:
    model = Net()
    with FeatureTap(model) as tap:
        output = model(X)
        features, logits = tap.take()
    assert not features.requires_grad
    assert not logits.requires_grad
    output.sum().backward()
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.any()


# -- what is refused -------------------------------------------------------------------------------


def test_a_model_without_linear_layer_lists_what_it_has() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(
        InputError, match=r"has no nn.Linear.* its layers are AdaptiveAvgPool2d, Conv2d, ReLU"
    ):
        FeatureTap(model)


def test_two_heads_are_listed_with_their_sizes() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            hidden = self.trunk(x)
            return {"coarse": self.other(hidden), "fine": self.head(hidden)}

    model = Two()
    message = refusal(FeatureTap(model), model)
    assert "two or more linear layers make outputs" in message
    assert "'other' (3 to 2), 'head' (3 to 3); pass classifier=" in message
    with FeatureTap(model, "other") as tap:
        model(X)
        assert tap.take().logits.shape == (5, 2)


def test_a_model_that_returns_its_loss_lists_its_layers() -> None:
    model = Net(lambda z, h: functional.cross_entropy(z, torch.zeros(5, dtype=torch.int64)))
    message = refusal(FeatureTap(model), model)
    assert "no linear layer makes what the model returns" in message
    assert "one of 'trunk.0' (4 to 6), 'trunk.2' (6 to 3), 'head' (3 to 3)" in message


def test_without_a_pass_nothing_can_be_taken() -> None:
    with FeatureTap(Net()) as tap, pytest.raises(InputError, match="none of which ran"):
        tap.take()


def test_a_head_that_runs_twice_is_refused() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(self.trunk(x)) + self.head(self.trunk(-x))

    model = Twice()
    for classifier in ("head", model.head):
        message = refusal(FeatureTap(model, classifier), model)
        assert "'head' to run once in a forward pass, but it ran 2 times" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "haed",
            r"no module named 'haed'; did you mean 'head'.*linear layers are trunk.0, trunk.2",
        ),
        ("xyz", r"no module named 'xyz'; its linear layers are trunk.0, trunk.2, head"),
        (nn.Linear(3, 3), "classifier= is a Linear that is no part of the model"),
        ("trunk.1", r"'trunk.1' must have a weight of shape \(K, d\) .* but is a ReLU"),
    ],
    ids=["near", "far", "foreign", "no_weight"],
)
def test_a_wrong_classifier_is_refused_in_words(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureTap(Net(), given)


def test_a_convolution_is_no_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'0' must have a weight of shape .* is a Conv2d; .* 2$"):
        FeatureTap(model, "0")


# -- nothing is left -------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


@pytest.mark.parametrize("found", [False, True], ids=["before_it_is_found", "after"])
@pytest.mark.parametrize("fails", [False, True], ids=["normally", "by_an_exception"])
@pytest.mark.parametrize("classifier", [None, "head"], ids=["searched", "named"])
def test_hooks_are_gone_however_the_context_ends(
    classifier: str | None, fails: bool, found: bool
) -> None:
    model = Net()
    own = model.head.register_forward_hook(lambda *_: None)
    try:
        with FeatureTap(model, classifier) as tap:
            assert hooks(model) > 1
            model(X)
            if found:
                tap.take()
                assert hooks(model) == 2  # ours on the classifier and the user's
            if fails:
                raise ValueError("on purpose")
    except ValueError:
        assert fails
    assert hooks(model) == 1
    own.remove()


def test_hooks_are_gone_after_the_model_itself_fails() -> None:
    model = Net(lambda z, h: 1 / 0)
    with pytest.raises(ZeroDivisionError), FeatureTap(model):
        model(X)
    assert hooks(model) == 0


def test_one_tap_serves_several_contexts() -> None:
    model = Net()
    tap = FeatureTap(model)
    for _ in range(2):
        with tap:
            model(X)
            assert tap.take().features.equal(model.trunk(X))
        assert hooks(model) == 0


def test_neither_the_model_nor_what_was_caught_is_kept_alive() -> None:
    model = Net()
    with FeatureTap(model) as tap:
        output = model(X)
        left = weakref.ref(output)  # caught by the hooks, never taken
        del output
    gc.collect()
    assert left() is None
    alive = weakref.ref(model)
    del model, tap
    gc.collect()
    assert alive() is None


def test_the_tap_changes_nothing_that_the_model_computes() -> None:
    model = Net()
    before = model(X)
    with FeatureTap(model) as tap:
        assert model(X).equal(before)
        tap.take()
        assert model(X).equal(before)
