"""Inner layers in the same forward pass: which, what is kept of them, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ncmonitor import FeatureTap, InputError
from ncmonitor.features.tap import Activations


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Convolutions with in-place ReLU, a branch that never runs and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.twice = nn.Conv2d(4, 4, 1)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(self.act(self.norm(self.stem(x))))
        return self.head(self.twice(self.twice(hidden)).mean((2, 3)))


def taken(model: nn.Module, x: Any, **settings: Any) -> Activations:
    with torch.no_grad(), FeatureTap(model.eval(), **settings) as tap:
        model(x)
        return tap.take()


# -- which -----------------------------------------------------------------------------------------


def test_layers_are_caught_in_the_pass_that_gives_the_features() -> None:
    model = Net().eval()
    activations = taken(model, images(), layers=["stem", "body"])
    features, logits = activations
    assert logits.equal(model(images()))
    torch.testing.assert_close(model.head(features), logits)
    expected = {
        "stem": model.stem(images()).mean((2, 3)),
        "body": model.body(model.act(model.norm(model.stem(images())))).mean((2, 3)),
    }
    assert not any(value.requires_grad for value in activations.layers.values())
    torch.testing.assert_close(activations.layers, expected)


def test_without_layers_there_are_none() -> None:
    assert taken(Net(), images()).layers == {}
    assert Activations(images(), images()).layers == {}
    assert FeatureTap(Net()).layer_names == ()


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["stem", "body.0"], ("stem", "body.0")),
        (["body.0", "stem", "stem", "s*m"], ("stem", "body.0")),
        ("body.*", ("body.0", "body.1", "body.2")),
        ("stem", ("stem",)),
        (["body.[02]", "norm"], ("norm", "body.0", "body.2")),
        ([], ()),
    ],
    ids=["names", "model_order", "pattern", "one_name", "set", "empty"],
)
def test_names_and_patterns_give_layers_in_the_models_order(
    layers: Any, names: tuple[str, ...]
) -> None:
    model = Net()
    tap = FeatureTap(model, layers=layers)
    assert tap.layer_names == names
    with tap:
        model(images())
        assert tuple(tap.take().layers) == names


def test_modules_are_layers_too() -> None:
    model = Net()
    assert FeatureTap(model, layers=[model.body, model.stem]).layer_names == ("stem", "body")
    assert FeatureTap(model, layers=model.body[0]).layer_names == ("body.0",)


def test_all_means_every_layer_with_a_weight_that_runs_once() -> None:
    model = Net()
    with FeatureTap(model, layers="all") as tap:
        asked = ("stem", "body.0", "body.2", "twice", "unused", "head")
        assert tap.layer_names == asked
        for _ in range(3):
            model(images())
            assert list(tap.take().layers) == ["stem", "body.0", "body.2"]
            assert list(tap.layer_names) == ["stem", "body.0", "body.2"]
    assert FeatureTap(model, "head", layers="all").layer_names == asked[:-1]
    with tap:  # settled for good
        model(images())
        assert tuple(tap.take().layers) == ("stem", "body.0", "body.2")


def test_all_finds_weights_of_every_kind_but_no_norms_and_no_other_parameters() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 3, 4))
            self.words = nn.Embedding(9, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.norm = nn.LayerNorm(4)
            self.memory = nn.LSTM(4, 4, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.words(x) + self.position
            hidden = self.norm(self.attention(hidden, hidden, hidden)[0])
            return self.head(self.normed(self.memory(hidden)[0][:, -1]))

    activations = taken(Kinds(), torch.arange(15).view(5, 3) % 9, layers="all")
    assert list(activations.layers) == ["words", "attention", "memory", "normed"]
    assert {value.shape for value in activations.layers.values()} == {(5, 4)}


def test_all_leaves_out_layers_whose_rows_are_no_samples() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window, self.body, self.head = nn.Linear(2, 4), nn.Linear(12, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.window(x.view(-1, 4, 2)).mean(1)  # three for each sample
            return self.head(self.body(windows.view(len(x), -1)))

    model, x = Windows(), torch.randn(5, 24)
    assert list(taken(model, x, layers="all").layers) == ["body"]
    with pytest.raises(InputError, match=r"'window' gives 15 rows for 5 of features"):
        taken(model, x, layers=["window"])


# -- what is kept ----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A layer with a given output before the head; ``give`` makes it of the input."""

    def __init__(self, layer: nn.Module, give: Callable[[Any], Any] = lambda y: y) -> None:
        super().__init__()
        self.inner, self.give, self.head = layer, give, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.give(self.inner(x))
        return self.head(x.flatten(1)[:, :6].float())


SHAPES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {  # module, input, channels first
    "rows": (nn.Linear(6, 4), (5, 6), False),
    "conv1d": (nn.Conv1d(2, 4, 1), (5, 2, 6), True),
    "batch_norm1d": (nn.BatchNorm1d(3), (5, 3, 6), True),
    "max_pool1d": (nn.MaxPool1d(2), (5, 3, 6), True),
    "sequential_conv1d": (nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU()), (5, 2, 6), True),
    "tokens": (nn.Linear(6, 4), (5, 3, 6), False),
    "tokens_normed": (nn.LayerNorm(6), (5, 3, 6), False),
    "sequential_tokens": (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (5, 3, 6), False),
    "unknown_of_three": (nn.Identity(), (5, 3, 6), False),
    "conv2d": (nn.Conv2d(2, 4, 1), (5, 2, 3, 6), True),
    "conv3d": (nn.Conv3d(2, 4, 1), (5, 2, 3, 2, 2), True),
    "unknown_of_four": (nn.Identity(), (5, 2, 3, 6), True),
    "linear_on_a_map": (nn.Linear(6, 4), (5, 2, 3, 6), False),
    "layer_norm_on_a_map": (nn.LayerNorm(6), (5, 2, 3, 6), False),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_gap_averages_positions_and_tokens_puts_channels_last(kind: str) -> None:
    layer, shape, first = SHAPES[kind]
    model, x = Fixed(layer), torch.randn(shape)
    tokens = taken(model, x, layers="inner", reduce="tokens").layers["inner"]
    assert tokens.equal(model.last.movedim(1, -1) if first else model.last)
    gap = taken(model, x, layers="inner").layers["inner"]
    torch.testing.assert_close(gap, tokens.flatten(1, -2).mean(1) if tokens.ndim > 2 else tokens)
    flat = taken(model, x, layers="inner", reduce="flatten").layers["inner"]
    assert flat.equal(model.last.flatten(1))


def test_layers_that_have_time_first_are_turned() -> None:
    model, x = Fixed(nn.GRU(2, 4)), torch.randn(6, 5, 2)
    model.forward = lambda x: model.head(model.inner(x)[0].transpose(0, 1)[:, :, :1].flatten(1))  # type: ignore[method-assign]
    gap = taken(model, x, layers="inner").layers["inner"]
    torch.testing.assert_close(gap, model.inner(x)[0].mean(0).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(5, 2, 40, 40).to(dtype) + 3
    gap = taken(Fixed(nn.Identity()), x, layers="inner").layers["inner"]
    assert gap.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = x.double().mean((2, 3))
    torch.testing.assert_close(gap.double(), expected, rtol=1e-6, atol=0)


def test_a_function_reduces_as_it_likes() -> None:
    model = Net()
    activations = taken(model, images(), layers=["stem"], reduce=lambda z: z.amax((2, 3)))
    assert activations.layers["stem"].equal(model.stem(images()).amax((2, 3)))


@pytest.mark.parametrize("reduce", ["flatten", "tokens", lambda z: z[:, :, 0, 0]])
def test_what_is_kept_is_not_touched_by_operations_in_place(reduce: Any) -> None:
    model = Net().eval()
    kept = taken(model, images(), layers=["norm"], reduce=reduce).layers["norm"]
    output = model.norm(model.stem(images()))
    named = {"flatten": output.flatten(1), "tokens": output.movedim(1, -1)}
    assert kept.equal(reduce(output) if callable(reduce) else named[reduce])
    assert (kept < 0).any()  # a ReLU follows


def test_the_first_tensor_of_a_nested_output_is_taken() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"none": None, "first": (x * 2, x)}

    x = torch.randn(5, 6)
    assert taken(Fixed(Nested()), x, layers="inner").layers["inner"].equal(2 * x)


def test_whole_maps_do_not_outlive_the_layer() -> None:
    model, maps = Net(), []
    model.stem.register_forward_hook(lambda m, a, out: maps.append(weakref.ref(out)))
    for reduce in ("gap", lambda z: z[:, :, 0, 0]):
        with torch.no_grad(), FeatureTap(model, "head", layers=["stem"], reduce=reduce) as tap:
            model(images())
            assert maps[-1]() is None
            kept = tap.take().layers["stem"]
            assert kept.untyped_storage().nbytes() == 4 * kept.numel()


def test_tokens_fit_features_that_the_model_flattened() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Flatten(0, 1), nn.Linear(6, 3))
    activations = taken(model, torch.randn(5, 7, 4), layers=["0"], reduce="tokens")
    assert activations.features.shape == (35, 6)
    assert activations.layers["0"].flatten(0, 1).equal(activations.features)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["stme"], r"no module named 'stme'; did you mean 'stem'"),
        (["zzz"], r"no module named 'zzz'; layers= takes names"),
        (["bdy.*"], r"no module that matches 'bdy\.\*'; did you mean 'body"),
        ([nn.Linear(2, 2)], "layers= is a Linear that is no part of the model"),
        ([3], "layers= takes names, patterns and modules, but got 3"),
    ],
    ids=["near", "far", "pattern", "foreign", "number"],
)
def test_a_layer_that_does_not_exist_is_refused_at_once(layers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureTap(Net(), layers=layers)


@pytest.mark.parametrize(("name", "times"), [("twice", 2), ("unused", 0), ("act", 2)])
def test_a_named_layer_must_run_exactly_once(name: str, times: int) -> None:
    model = Net()
    if name == "act":
        model.body[1] = model.act
    message = f"the layer '{name}' must run once in a forward pass, but ran {times} times"
    with pytest.raises(InputError, match=message):
        taken(model, images(), layers=["stem", name])


def test_a_layer_of_all_that_fails_later_is_named() -> None:
    class Sometimes(Net):
        skip = False

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x)
            return self.head((hidden if self.skip else self.body(hidden)).mean((2, 3)))

    model = Sometimes()
    with FeatureTap(model, layers="all") as tap:
        model(images())
        assert list(tap.take().layers) == ["stem", "body.0", "body.2"]
        model.skip = True
        model(images())
        with pytest.raises(InputError, match=r"the layer 'body.0' must run once.*ran 0 times"):
            tap.take()


@pytest.mark.parametrize("classifier", [None, "head"], ids=["searched", "named"])
@pytest.mark.parametrize("layers", ["head", "*e*"])
def test_the_classifier_is_no_inner_layer(classifier: str | None, layers: str) -> None:
    model = Net()
    with pytest.raises(InputError, match="the layer 'head' is the classifier"):
        taken(model, images(), classifier=classifier, layers=layers)
    assert hooks(model) == 0


def test_a_layer_without_real_numbers_is_refused_by_name_and_left_out_of_all() -> None:
    class Ranks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argsort(1)

    model, x = Fixed(Ranks(6, 4)), torch.randn(5, 6)
    with pytest.raises(InputError, match="'inner' gives no floating-point tensor"):
        taken(model, x, layers="inner")
    assert taken(model, x, layers="all").layers == {}


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        ("gpa", r"'gap', 'flatten', 'tokens' or a function, but is 'gpa'; did you mean 'gap'"),
        (None, "or a function, but is None"),
        (lambda z: z.mean((2, 7)), r"failed on the output \(5, 4, 4, 4\) of .* 'stem': IndexError"),
        (lambda z: z.mean(), r"must return a tensor \(B, d'\), but gave shape \(\) for .* 'stem'"),
        (lambda z: 3, "but gave int for the output"),
    ],
    ids=["unknown", "none", "raises", "scalar", "number"],
)
def test_a_wrong_reduction_is_refused_in_words(reduce: Any, message: str) -> None:
    model = Net()
    with pytest.raises(InputError, match=message):
        taken(model, images(), layers=["stem"], reduce=reduce)
    assert hooks(model) == 0


# -- nothing is left -------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("layers", ["all", ["stem", "body"]], ids=["all", "named"])
@pytest.mark.parametrize("fails", [False, True], ids=["normally", "by_an_exception"])
def test_hooks_on_layers_are_gone_however_the_context_ends(layers: Any, fails: bool) -> None:
    model = Net()
    try:
        with FeatureTap(model, layers=layers) as tap:
            model(images())
            tap.take()
            assert hooks(model) == 2 + len(tap.layer_names)
            model(images())
            left = [weakref.ref(value[0]) for value in tap._seen.values()]
            assert len(left) == len(tap.layer_names)
            if fails:
                raise ValueError("on purpose")
    except ValueError:
        assert fails
    assert hooks(model) == 0
    gc.collect()
    assert not any(reference() is not None for reference in left)


def test_hooks_are_gone_if_one_of_them_cannot_be_placed() -> None:
    class NoHooks(nn.Identity):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no hooks here")

    model = nn.Sequential(nn.Linear(4, 4), NoHooks(), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="no hooks here"), FeatureTap(model, layers=["1"]):
        pass
    assert hooks(model) == 0


def test_layers_change_nothing_that_the_model_computes_or_learns() -> None:
    model, plain = Net(), Net()
    plain.load_state_dict(model.state_dict())
    with FeatureTap(model, layers="all", reduce="tokens") as tap:
        output = model(images())
        tap.take()
    output.sum().backward()
    plain(images()).sum().backward()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or (two.grad is not None and one.grad.equal(two.grad))
