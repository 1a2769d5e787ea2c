"""Finding the classifier, catching what goes in and out, and leaving nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmonitor import FeatureTap, InputError
from ncmonitor.inputs.labels import flatten_tokens

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
    "softcap": lambda z, h: 5 * (z / 5).tanh(),
    "mask": lambda z, h: z + torch.tensor([0.0, 0.0, -torch.inf]),
    "padded": lambda z, h: z[:, :2],
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
    expected = model.head(model.trunk(X))
    if kind in ("temperature", "softcap", "mask", "padded", "double", "bfloat16_scaled"):
        returned = OUTPUTS[kind](expected, features)  # what the model decides by
        expected = returned["z"] if kind == "bfloat16_scaled" else returned
    assert logits.equal(expected)
    assert len(tap.weight) == logits.shape[1]


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
        with pytest.raises(InputError, match="a function that runs the same forward pass"):
            tap.take(output)
        output = model.predict(X)  # type: ignore[operator]
        assert tap.take(output, lambda: model.predict(X)).logits.equal(output)  # type: ignore[operator]
        output = model.predict(2 * X)  # type: ignore[operator]
        assert tap.take(output).features.equal(model.trunk(2 * X))
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
def test_a_named_layer_that_does_not_make_the_logits_is_refused(given: str) -> None:
    model = Net()
    message = refusal(FeatureTap(model, "trunk.2" if given == "name" else model.trunk[2]), model)
    assert (
        "'trunk.2' gives (5, 3), and the model returns (5, 3), which is not made of it" in message
    )
    assert "made by 'head': leave classifier= out" in message


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


# -- 1x1 convolutions ------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """A map of 6 channels, a 1x1 convolution to 3 classes; ``end`` makes the output of its map."""

    def __init__(self, end: Callable[[Tensor], Any], *, dims: int = 2, pool: bool = False) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        mean = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](1)
        self.trunk = nn.Sequential(convolution(2, 6, 3, padding=1), nn.Tanh())
        self.pool = mean if pool else nn.Identity()
        self.head = convolution(6, 3, 1)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(self.pool(self.trunk(x))))


def images(dims: int = 2, size: int = 4) -> Tensor:
    return torch.randn(5, 2, *[size] * dims, generator=torch.Generator().manual_seed(1))


POOLED: dict[str, Callable[[Tensor], Any]] = {
    "flatten": lambda z: z.flatten(1),
    "squeeze": lambda z: z.squeeze(),
    "index": lambda z: z[..., 0] if z.ndim == 3 else z[:, :, 0, 0],
    "view_in_a_dict": lambda z: {"hidden": z + 1, "out": [z.view(5, 3)]},
    "as_it_is": lambda z: z,
    "log_softmax": lambda z: functional.log_softmax(z.flatten(1), 1),
    "double": lambda z: z.double().flatten(1),
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("given", [None, "head"], ids=["searched", "named"])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_convolution_after_pooling_is_a_linear_classifier(
    dims: int, given: str | None, kind: str
) -> None:
    model = ConvNet(POOLED[kind], dims=dims, pool=True)
    with FeatureTap(model, given) as tap:
        model(images(dims))
        features, logits = tap.take()
    assert tap.name == "head"
    assert features.equal(model.pool(model.trunk(images(dims))).flatten(1))
    linear = functional.linear(features, tap.weight, tap.bias)
    torch.testing.assert_close(logits.float(), linear)


@pytest.mark.parametrize("given", [None, "head"], ids=["searched", "named"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dense_prediction_gives_channels_last(dims: int, given: str | None) -> None:
    model = ConvNet(lambda z: {"out": z}, dims=dims)
    with FeatureTap(model, given) as tap:
        for x in (images(dims), images(dims, 2)):
            output = model(x)["out"]
            features, logits = tap.take()
            assert features.equal(model.trunk(x).movedim(1, -1))
            assert logits.equal(output.movedim(1, -1))
            torch.testing.assert_close(logits, functional.linear(features, tap.weight, tap.bias))
    labels = torch.zeros(5, *[2] * dims, dtype=torch.int64)
    assert flatten_tokens(features, labels)[0].shape == (5 * 2**dims, 6)


def test_dense_probabilities_are_dense_prediction_too() -> None:
    model = ConvNet(lambda z: z.softmax(1))
    with FeatureTap(model) as tap:
        model(images())
        assert tap.take().logits.equal(model.head(model.trunk(images())).movedim(1, -1))


UNLIKE: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda z: z.mean((2, 3)),
    "average_pool": lambda z: functional.adaptive_avg_pool2d(z, 1),
    "one_after_another": lambda z: (z.mean(3).mean(2), z.detach().amax((2, 3))),
    "bfloat16": lambda z: z.bfloat16().mean((2, 3)),
    "relu": lambda z: z.relu().mean((2, 3)),
    "relu_in_place": lambda z: z.relu_().mean((2, 3)),
    "maximum": lambda z: z.amax((2, 3)),
    "bilinear": lambda z: functional.interpolate(z, scale_factor=2.0, mode="bilinear"),
    "nearest": lambda z: functional.interpolate(z, scale_factor=2.0),
}


@pytest.mark.parametrize("kind", UNLIKE)
@pytest.mark.parametrize("given", [None, "head"], ids=["searched", "named"])
def test_a_map_that_is_not_returned_as_it_is_is_refused(given: str | None, kind: str) -> None:
    model = ConvNet(UNLIKE[kind])
    with FeatureTap(model, given) as tap:
        model(images())
        with pytest.raises(InputError, match=r"'head'") as caught:
            tap.take()
    if given is None:
        assert "mean of heads, positions or crops, upsampling" in str(caught.value)
    if kind == "mean" and given is None:
        assert "pool the features before the 1x1 convolution" in str(caught.value)


# -- real models -----------------------------------------------------------------------------------


def torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    if name == "vit":  # vit_b_16 at a size for tests
        sizes = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
        return models.VisionTransformer(image_size=32, num_classes=7, **sizes).eval()
    quick = {"init_weights": False} if name == "vgg11" else {}
    return getattr(models, name)(weights=None, num_classes=7, **quick).eval()


@pytest.mark.parametrize(
    ("name", "head", "width"),
    [
        ("resnet18", "fc", 512),
        ("vgg11", "classifier.6", 4096),
        ("densenet121", "classifier", 1024),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("convnext_tiny", "classifier.2", 768),
        ("vit", "heads.head", 8),
    ],
)
def test_the_classifiers_of_torchvision_are_found(name: str, head: str, width: int) -> None:
    model = torchvision(name)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), FeatureTap(model) as tap:
        output = model(x)
        features, logits = tap.take()
    assert tap.name == head
    assert features.shape == (2, width)
    assert logits.equal(output)
    torch.testing.assert_close(functional.linear(features, tap.weight, tap.bias), output)


@pytest.mark.parametrize("size", [32, 64], ids=["one_position", "a_map"])
@pytest.mark.parametrize("given", [None, "classifier.1"], ids=["searched", "named"])
def test_squeezenet_is_refused_for_its_relu(given: str | None, size: int) -> None:
    model = torchvision("squeezenet1_1")
    with torch.no_grad(), FeatureTap(model, given) as tap:
        model(torch.randn(2, 3, size, size))
        with pytest.raises(InputError, match=r"'classifier.1'"):
            tap.take()


class Timm(nn.Module):
    """As timm builds models: pooling inside ``forward_head``, ``get_classifier`` on top."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.neck = nn.Linear(6, 6)
        self.head_drop = nn.Dropout(0.0)
        self.fc = nn.Linear(6, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Any:
        embedding = self.neck(self.global_pool(self.stem(x)))
        return embedding, self.fc(self.head_drop(embedding))


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in_a_child"])
def test_get_classifier_decides_between_layers_that_make_outputs(inside: bool) -> None:
    net = Timm()
    model = nn.Sequential(net) if inside else net
    with FeatureTap(model) as tap:
        model(images())
        assert tap.take().logits.shape == (5, 3)
    assert tap.classifier is net.fc
    net.get_classifier = lambda index: net.fc  # type: ignore[assignment,misc]  # another protocol
    with FeatureTap(model) as tap:
        model(images())
        with pytest.raises(InputError, match="two or more linear layers"):
            tap.take()


class ModelOutput(OrderedDict[str, Any]):
    """What Hugging Face models return: fields that are set are entries, attributes and items."""

    def __post_init__(self) -> None:
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if value is not None:
                super().__setitem__(entry.name, value)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class SequenceClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ForSequenceClassification(nn.Module):
    """Tokens in, the first token's features to the classifier, loss and hidden states beside."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 4)
        self.dense = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        hidden = self.dense(self.embeddings(input_ids))
        logits = self.classifier(hidden[:, 0])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss, logits, (hidden,))


@pytest.mark.parametrize("labelled", [False, True], ids=["no_loss", "with_loss"])
def test_the_layer_that_makes_an_output_called_logits_is_the_classifier(labelled: bool) -> None:
    model, tokens = ForSequenceClassification(), torch.arange(20).view(5, 4) % 11
    with FeatureTap(model) as tap:
        output = model(input_ids=tokens, labels=torch.zeros(5).long() if labelled else None)
        features, logits = tap.take()
    assert tap.name == "classifier"
    assert output.hidden_states is not None
    assert features.equal(output.hidden_states[0][:, 0])
    assert logits.equal(output[1 if labelled else 0])


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["*.fc", "*f?", "stem*.fc", "stem.[ef]c"])
def test_a_pattern_that_matches_one_linear_layer_names_it(given: str) -> None:
    model = nn.Sequential()
    model.add_module("stem", Timm())
    with FeatureTap(model, given) as tap:
        model(images())
        assert tap.take().logits.shape == (5, 3)
    assert tap.name == "stem.fc"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("*.head", r"no linear layer that matches '\*.head'.*are trunk.0, trunk.2, head"),
        ("hea?s", r"no linear layer that matches 'hea\?s'; did you mean 'head'"),
        ("trunk.?", r"must match one linear layer, but matches 2: trunk.0, trunk.2; pass"),
        (3, "takes names, patterns and modules, but got 3"),
    ],
    ids=["none", "near", "two", "number"],
)
def test_a_pattern_must_match_exactly_one_linear_layer(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureTap(Net(), given)


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = torch.compile(Net())

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize(
    "given",
    [None, "net.head", "net._orig_mod.head", "*.head", "net._orig_mod.h*", "module", "wrapper"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["part", "whole"])
def test_compiled_modules_keep_their_names(whole: bool, given: Any) -> None:
    inner = Compiled()
    inner.net._orig_mod.head = torch.compile(inner.net.head)
    head = inner.net._orig_mod.head
    model: Any = torch.compile(inner) if whole else inner
    given = {"module": head._orig_mod, "wrapper": head}.get(given, given)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for again in (given, "net.head"):
            with FeatureTap(model, again, layers=["net.trunk.0"]) as tap:
                output = model(X)
                activations = tap.take()
            assert (tap.name, tap.classifier) == ("net.head", head._orig_mod)
            assert activations.logits.equal(output)
            assert list(activations.layers) == ["net.trunk.0"]
    assert hooks(model) == 0


def test_a_second_name_of_the_classifier_is_a_name_too() -> None:
    model = Net()
    model.alias = model.head
    with FeatureTap(model, "alias") as tap:
        model(X)
        tap.take()
    assert (tap.name, tap.classifier) == ("alias", model.head)


# -- weight and bias -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "convolution", "parametrised", "without_bias"])
def test_weight_and_bias_have_the_shapes_of_a_linear_layer(kind: str) -> None:
    head: nn.Module = nn.Linear(3, 2, bias=kind != "without_bias")
    if kind == "convolution":
        head = nn.Conv2d(3, 2, 1)
    if kind == "parametrised":
        head = nn.utils.parametrizations.weight_norm(head)
    tap = FeatureTap(nn.Sequential(head), "0")
    assert tap.weight.shape == (2, 3)
    assert tap.weight.flatten().equal(head.weight.flatten())  # type: ignore[operator]
    assert not tap.weight.requires_grad
    if kind == "without_bias":
        assert tap.bias is None
    else:
        assert tap.bias is not None
        assert tap.bias.equal(head.bias)  # type: ignore[arg-type]
    if kind in ("linear", "convolution"):
        assert tap.weight.data_ptr() == head.weight.data_ptr()  # type: ignore[operator]


def test_weight_and_bias_are_refused_before_the_classifier_is_known() -> None:
    tap = FeatureTap(Net())
    for read in (lambda: tap.weight, lambda: tap.bias):
        with pytest.raises(InputError, match="not known before the first take"):
            read()
    with tap:
        tap.model(X)
        tap.take()
    assert tap.weight.shape == (3, 3)


class Own(nn.Module):
    """A classifier of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize(
    ("kind", "given"),
    [*((lambda: nn.Linear(4, 3), given) for given in (None, "0", "?")), (Own, "0"), (Own, "?")],
)
def test_tapping_computes_no_parametrised_weight(
    kind: Callable[[], nn.Module], given: str | None
) -> None:
    head = nn.utils.parametrizations.spectral_norm(kind())
    model = nn.Sequential(head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with FeatureTap(model, given, layers="all"):
        pass
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


# -- written to afterwards -------------------------------------------------------------------------


class Overwriting(Net):
    """Uses the hidden layer once more after the head, in place."""

    def forward(self, x: Tensor) -> Any:
        hidden = self.trunk(x)
        logits = self.head(hidden)
        hidden.mul_(2)
        return logits


@pytest.mark.parametrize("given", [None, "head"], ids=["searched", "named"])
def test_features_that_were_overwritten_after_the_head_ran_are_refused(given: str | None) -> None:
    model = Overwriting()
    with torch.no_grad(), FeatureTap(model, given) as tap:
        model(X)
        with pytest.raises(InputError, match=r"'head' was overwritten in place.*out of place"):
            tap.take()


def test_in_place_operations_before_the_head_are_nobodys_business() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    with torch.no_grad(), FeatureTap(model) as tap:
        model(X)
        assert tap.take().features.equal(model[:2](X))


def test_tensors_of_inference_mode_are_caught_though_they_count_no_writes() -> None:
    model = Net()
    with torch.inference_mode(), FeatureTap(model) as tap:
        model(X)
        assert tap.take().features.equal(model.trunk(X))


def test_what_a_failed_pass_left_can_be_forgotten() -> None:
    model = Net()
    with FeatureTap(model, "head") as tap:
        model(-X)
        tap.forget()
        model(X)
        assert tap.take().features.equal(model.trunk(X))


# -- what is refused -------------------------------------------------------------------------------


def test_a_model_without_any_linear_map_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with FeatureTap(model) as tap:
        model(torch.randn(2, 3, 8, 8))
        with pytest.raises(InputError, match=r"no linear layer makes what the model returns"):
            tap.take()


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


def test_two_heads_stay_two_when_the_model_returns_views_of_their_outputs() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            tokens = self.trunk(x)[:, None].expand(-1, 4, -1)
            return self.head(tokens).view(-1, 3), self.other(tokens).view(-1, 2)

    model = Two()
    message = refusal(FeatureTap(model), model)
    assert "two or more linear layers make outputs of the model: 'head' (3 to 3), 'o" in message


def test_a_model_that_returns_its_loss_asks_for_the_logits() -> None:
    model = Net(lambda z, h: functional.cross_entropy(z, torch.zeros(5, dtype=torch.int64)))
    assert "forward=, a function of module and inputs that returns them" in refusal(
        FeatureTap(model), model
    )


def test_without_a_pass_nothing_can_be_taken() -> None:
    with FeatureTap(Net()) as tap, pytest.raises(InputError, match="run the model itself"):
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
        ("trunk.1", r"'trunk.1' must hold a weight \(K, d\) .* but is a ReLU"),
    ],
    ids=["near", "far", "foreign", "no_weight"],
)
def test_a_wrong_classifier_is_refused_in_words(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureTap(Net(), given)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_size": 3}, {"stride": 2}, {"padding": 1}, {"groups": 2}, {"kernel_size": (1, 3)}],
    ids=str,
)
def test_a_convolution_that_mixes_positions_or_skips_some_is_no_classifier(
    changes: dict[str, Any],
) -> None:
    convolution = nn.Conv2d(4, 4, **({"kernel_size": 1} | changes))
    model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'0' must hold a weight .* is a Conv2d; .* 2\. For"):
        FeatureTap(model, "0")


def test_an_embedding_is_no_classifier_though_its_weight_has_two_dimensions() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"'0' must hold a weight .* but is a Embedding"):
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
                assert hooks(model) == 3  # ours on classifier and model, and the user's
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
