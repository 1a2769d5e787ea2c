"""The networks of the recipes: sizes, heads, stems, and the images that they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import seeded
from ncmonitor import FeatureTap, InputError
from ncmonitor.recipes.networks.image_networks import NETWORKS, ConvNet, network

# The data of the paper, and the quick recipes: name, channels, image size, classes, features.
SMALL = [
    ("mlp", 1, 8, 10, 256),
    ("convnet", 1, 28, 10, 128),
    ("convnet", 3, 32, 10, 128),
    ("p4net", 1, 8, 8, 128),
    ("p4net", 3, 28, 10, 128),
    ("vgg11", 1, 32, 10, 512),  # MNIST padded, as in the authors' demonstration
    ("vgg13", 3, 32, 10, 512),
    ("vgg13", 3, 96, 10, 4096),  # STL10
    ("resnet18", 1, 28, 10, 512),
    ("resnet34", 3, 32, 10, 512),
    ("resnet50", 3, 32, 100, 2048),
    ("resnet50", 3, 96, 10, 2048),
    ("densenet40", 1, 28, 10, 448),
    ("densenet40", 3, 32, 10, 448),
    ("densenet40", 3, 96, 10, 448),
    ("densenet121", 3, 32, 10, 1024),
]
LARGE = [  # seconds on a CPU, so their shapes are worked out without numbers
    ("densenet250", 1, 28, 10, 1734),
    ("densenet250", 3, 32, 100, 1734),
    ("densenet250", 3, 96, 10, 1734),
    ("vgg16", 3, 64, 200, 512),
    ("vgg19", 3, 224, 1000, 4096),
    ("resnet101", 3, 224, 1000, 2048),
    ("resnet152", 3, 224, 1000, 2048),
    ("densenet201", 3, 224, 1000, 1920),
]
# Without the classifier where that differs: published, or of the reference implementations.
PARAMETERS = {
    ("resnet18", 32, 10): 11_173_962,  # He et al.'s with the CIFAR stem: 11.17 M
    ("resnet34", 32, 10): 21_282_122,
    ("resnet50", 32, 10): 23_520_842,
    ("densenet40", 32, 10): 1_019_722,  # DenseNet's table 1: 1.0 M
    ("densenet250", 32, 10): 15_324_406,  # 15.3 M
    ("resnet152", 224, 1000): 60_192_808,  # torchvision's
    ("densenet121", 224, 1000): 7_978_856,
    ("densenet201", 224, 1000): 20_013_928,
    ("vgg19", 224, 1000): 143_678_248 + 4 * 4096,  # and normalisation in place of dropout
    ("vgg11", 32, 10): 9_758_474,
}


def make(name: str, channels: int, size: int, classes: int, **stem: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(name, classes=classes, channels=channels, image_size=size, **stem)


def images(channels: int, size: int) -> Tensor:
    return torch.randn(2, channels, size, size, generator=seeded(0))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "size", "classes", "features"), SMALL)
def test_every_layer_learns_and_the_features_are_the_input_of_classifier(
    name: str, channels: int, size: int, classes: int, features: int
) -> None:
    model = make(name, channels, size, classes)
    with FeatureTap(model) as tap:
        logits = model(images(channels, size))
        activations = tap.take()
    assert tap.name == "classifier"
    assert tap.classifier is model.get_submodule("classifier")
    assert activations.features.shape == (2, features)
    assert (activations.features >= 0).all()  # after a ReLU
    assert torch.equal(activations.logits, logits)
    assert logits.shape == (2, classes)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "size", "classes", "features"), LARGE)
def test_large_networks_have_the_right_shapes(
    name: str, channels: int, size: int, classes: int, features: int
) -> None:
    with torch.device("meta"):
        model = make(name, channels, size, classes)
        logits = model(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, classes)
    head = model.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    assert head.in_features == features


def test_every_network_is_tested() -> None:
    assert {name for name, *_ in SMALL + LARGE} == set(NETWORKS)


@pytest.mark.parametrize(("name", "size", "classes"), list(PARAMETERS))
def test_parameters_are_as_many_as_published(name: str, size: int, classes: int) -> None:
    with torch.device("meta"):
        model = make(name, 3, size, classes)
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS[name, size, classes]


@pytest.mark.parametrize("name", NETWORKS)
def test_there_is_normalisation_and_no_dropout(name: str) -> None:
    with torch.device("meta"):
        model = make(name, 3, 32, 10)
    modules = list(model.modules())
    assert any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for m in modules)
    assert not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in modules)
    assert not any(getattr(module, "drop_rate", 0) for module in modules)  # torchvision's DenseNet


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet40", "densenet121", "convnet"])
def test_training_mode_draws_no_random_numbers(name: str) -> None:
    model = make(name, 3, 32, 10).train()
    batch = images(3, 32)
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("name", ["resnet18", "densenet40", "densenet121"])
def test_the_stem_follows_the_image_size(name: str) -> None:
    first: dict[int, torch.Size] = {}
    for size in (32, 64, 96):
        with torch.device("meta"):
            model = make(name, 3, size, 10)
            seen: list[Tensor] = []
            first_conv = next(m for n, m in model.named_modules() if n.endswith(("conv1", "conv0")))
            assert isinstance(first_conv, nn.Conv2d)
            second = next(
                m for m in model.modules() if isinstance(m, nn.Conv2d) and m is not first_conv
            )
            second.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            model(torch.zeros(2, 3, size, size))
        first[size] = seen[0].shape[2:]
    # Small images reach the first block whole, large ones at a quarter of their size.
    assert first == {32: (32, 32), 64: (64, 64), 96: (24, 24)}


def test_the_stem_can_be_chosen() -> None:
    with torch.device("meta"):
        small, large = (make("resnet18", 3, 64, 10, stem=s) for s in ("small", "imagenet"))
    assert small.get_submodule("body.conv1").kernel_size == (3, 3)
    assert large.get_submodule("body.conv1").kernel_size == (7, 7)


def test_convnet_takes_any_widths_and_sizes() -> None:
    model = ConvNet(channels=2, image_size=9, widths=(4, 6), features=7, classes=3)
    assert model(torch.zeros(2, 2, 9, 9)).shape == (2, 3)
    with pytest.raises(InputError, match=r"every size must be at least 1, but .*widths=\[4, 0\]"):
        ConvNet(widths=(4, 0))


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("resnet19", 32, {}, "unknown network 'resnet19', .* did you mean 'resnet18'"),
        ("vgg11", 8, {}, "vgg11 halves images 5 times, so they need at least 32 pixels a side"),
        ("vgg11", 28, {}, "but these have 28; pad them .--data.image_size 32., or use mlp"),
        ("resnet18", 4, {}, "need at least 8 pixels"),
        ("resnet18", 16, {"stem": "imagenet"}, "with the ImageNet stem .* at least 32 pixels"),
        ("resnet50", 96, {"stem": "small"}, "first stage at 96×96, 9 times the memory and time"),
        ("densenet40", 224, {"stem": "small"}, "leave out stem= for the ImageNet stem"),
        ("resnet18", 32, {"stem": "tiny"}, r"stem must be one of \('small', 'imagenet'\)"),
        ("vgg11", 32, {"stem": "small"}, "vgg11 has no choice of stems; leave out stem='small'"),
        ("mlp", 0, {}, "mlp: image_size must be at least 1, but is 0"),
    ],
)
def test_what_cannot_work_is_refused_in_words(
    name: str, size: int, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(name, 3, size, 10, **options)
