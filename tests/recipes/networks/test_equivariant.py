"""The group convolutions: every layer turns with the image, and the network does not notice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import seeded
from ncmonitor import FeatureTap, InputError
from ncmonitor.recipes.networks.equivariant import P4Conv, P4Lift, P4Net, P4Pool, quarter_turned
from ncmonitor.recipes.networks.image_networks import ConvNet
from ncmonitor.symmetry import composition_table, rotations90

TURNS = (1, 2, 3)
GRIDS = [  # side, kernel, stride, padding
    (8, 3, 1, 1),
    (8, 3, 1, 0),
    (8, 4, 2, 1),
    (7, 3, 2, 1),
    (28, 4, 2, 1),
    (7, 7, 1, 0),
    (9, 3, 3, 0),
]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 2e-6)]


def turned(images: Tensor, turns: int) -> Tensor:
    return torch.rot90(images, turns, (-2, -1))


def trained(module: nn.Module) -> nn.Module:
    """Give normalisation the statistics and scales of a network that has been trained."""
    draws = seeded(5)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = torch.randn(part.num_features, generator=draws)
            part.running_var = 0.1 + torch.rand(part.num_features, generator=draws)
            nn.init.normal_(part.weight, 1, 0.3, generator=draws)
            nn.init.normal_(part.bias, 0, 0.3, generator=draws)
    return module.eval()


def distance(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("side", "kernel", "stride", "padding"), GRIDS)
@pytest.mark.parametrize("turns", TURNS)
def test_every_layer_turns_with_the_image(
    turns: int, side: int, kernel: int, stride: int, padding: int, dtype: torch.dtype,
    tolerance: float,
) -> None:  # fmt: skip
    grid = {"kernel_size": kernel, "stride": stride, "padding": padding}
    torch.manual_seed(0)
    lift, conv = P4Lift(3, 5, **grid).to(dtype), P4Conv(3, 5, **grid).to(dtype)
    images = torch.randn(2, 3, side, side, generator=seeded(1), dtype=dtype)
    maps = torch.randn(2, 3, 4, side, side, generator=seeded(2), dtype=dtype)
    norm = trained(nn.BatchNorm3d(5)).to(dtype)
    for layer in (nn.Sequential(lift), nn.Sequential(lift, norm)):
        found = layer(turned(images, turns))
        assert distance(found, quarter_turned(layer(images), turns)) < tolerance
    for layer in (nn.Sequential(conv), nn.Sequential(conv, norm)):
        found = layer(quarter_turned(maps, turns))
        assert distance(found, quarter_turned(layer(maps), turns)) < tolerance
        assert distance(found, layer(maps)) > 0.1  # the turn is seen
    pool = P4Pool()
    assert torch.equal(pool(quarter_turned(maps, turns)), turned(pool(maps), turns))


def test_turning_maps_is_the_cyclic_group_of_four() -> None:
    maps = torch.randn(2, 3, 4, 5, 5, generator=seeded(0))
    once = quarter_turned(maps)
    assert not torch.equal(once, maps)
    assert torch.equal(quarter_turned(once), quarter_turned(maps, 2))
    assert torch.equal(quarter_turned(maps, 4), maps)


def test_normalisation_in_training_turns_with_the_image() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(P4Lift(1, 4, 4, stride=2, padding=1), nn.BatchNorm3d(4)).double()
    images = torch.randn(6, 1, 8, 8, generator=seeded(1), dtype=torch.float64)
    found = block(turned(images, 1))
    assert distance(found, quarter_turned(block(images))) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("side", [8, 28, 32, 9])
def test_features_and_logits_stay_when_the_image_turns(
    side: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    network = trained(P4Net(2, side, widths=(3, 4, 5), features=16, classes=6)).to(dtype)
    images = torch.randn(4, 2, side, side, generator=seeded(1), dtype=dtype)
    group = rotations90()
    assert composition_table(group, images) is not None
    with FeatureTap(network) as tap:
        logits = network(images)
        features = tap.take().features
        for action in list(group)[1:]:
            assert distance(network(action(images)), logits) < tolerance
            assert distance(tap.take().features, features) < tolerance
        network(images.flip(-1))  # a reflection is none of the group
        assert distance(tap.take().features, features) > 0.01


def test_an_ordinary_network_of_the_same_form_notices() -> None:
    torch.manual_seed(0)
    network = trained(ConvNet(1, 8))
    images = torch.randn(4, 1, 8, 8, generator=seeded(1))
    assert distance(network(turned(images, 1)), network(images)) > 0.05


def test_gradients_reach_every_parameter_and_are_those_of_the_turned_image() -> None:
    torch.manual_seed(0)
    network = trained(P4Net(1, 8, classes=3)).double()
    images = torch.randn(4, 1, 8, 8, generator=seeded(1), dtype=torch.float64)
    gradients = []
    for turns in (0, 1):
        network.zero_grad()
        loss = nn.functional.cross_entropy(
            network(turned(images, turns)), torch.tensor([0, 1, 2, 0])
        )
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters()})  # type: ignore[union-attr]
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert distance(gradients[1][name], gradient) < 1e-10, name


@pytest.mark.parametrize(("side", "share"), [(8, 0.78), (28, 1.04)])
def test_it_has_about_as_many_parameters_as_the_ordinary_network(side: int, share: float) -> None:
    ours, plain = P4Net(1, side), ConvNet(1, side)
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, plain)]
    assert count == {8: [86_326, 110_826], 28: [371_126, 356_586]}[side]
    assert count[0] / count[1] == pytest.approx(share, abs=0.01)
    assert all(f"{number:,}" in (P4Net.__doc__ or "") for number in count)


@pytest.mark.parametrize(("side", "kernel"), [(8, 3), (7, 4), (28, 3)])
def test_a_stride_that_misses_the_far_border_is_refused(side: int, kernel: int) -> None:
    with pytest.raises(InputError, match="take kernel_size 3 for odd sides and 4 for even ones"):
        P4Lift(1, 2, kernel, stride=2, padding=1)(torch.zeros(1, 1, side, side))
    with pytest.raises(InputError, match=f"a kernel of {kernel} with stride 2 and padding 1"):
        P4Conv(1, 2, kernel, stride=2, padding=1)(torch.zeros(1, 1, 4, side, side))


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"expected images \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        P4Lift(1, 2, 3)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"maps \(N, 3, 4, H, W\), got \(2, 3, 1, 8, 8\)"):
        P4Conv(3, 2, 3)(torch.zeros(2, 3, 1, 8, 8))
    with pytest.raises(InputError, match="a kernel of 9 with stride 1 and padding 0 does not end"):
        P4Lift(1, 2, 9)(torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"expected images of 8×8 pixels, got \(2, 1, 9, 9\)"):
        P4Net(1, 8)(torch.zeros(2, 1, 9, 9))
    with pytest.raises(InputError, match=r"every size must be at least 1, but .*widths=\[4, 0\]"):
        P4Net(widths=(4, 0))
    with pytest.raises(InputError, match=r"at least 1, but .*widths=\[\]"):
        P4Net(widths=())
    with pytest.raises(InputError, match=r"filters are \(2, 1, 3, 3\), stride=0"):
        P4Lift(1, 2, 3, stride=0)
