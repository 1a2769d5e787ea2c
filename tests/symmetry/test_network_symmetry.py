"""Symmetry of a network without a trainer: what is run, what comes out, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import seeded
from ncmonitor import InputError, measure_collapse
from ncmonitor.errors import MeasurementError
from ncmonitor.symmetry import (
    Action,
    Group,
    flips,
    inv_error,
    lie_difference,
    measure_orbits,
    measure_symmetry,
    permutations,
    rotations90,
    time_shifts,
    translation_flow,
)
from ncmonitor.symmetry.group_numbers import group_values
from ncmonitor.symmetry.groups.builders import groups_of
from ncmonitor.symmetry.transformed_outputs import TransformedOutputs


def images(samples: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(samples, 1, 6, 6, generator=seeded(seed))
    return x, torch.arange(samples) % 3


RUNS: list[int] = []  # outside of the network, whose attributes are put back


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        RUNS.append(len(x))
        return self.head(self.body(x))


def row(table: Any, group: str, element: str = "", layer: str = "") -> Any:
    found = table.query("layer == @layer and group == @group and element == @element")
    assert len(found) == 1
    return found.iloc[0]


def test_the_numbers_are_those_of_the_features_by_hand() -> None:
    net, (x, y) = Net(), images()
    table = measure_symmetry(net, [(x[:10], y[:10]), (x[10:], y[10:])], rotations90())
    net.eval()
    with torch.no_grad():
        moved = torch.stack([net.body(g(x)) for g in rotations90()])
    errors = inv_error(moved)
    orbits = measure_orbits([(moved, y)], 3)
    for g, name in enumerate(("rot90", "rot180", "rot270"), start=1):
        assert row(table, "rotations90", name)["inv_error"] == pytest.approx(float(errors[g]))
    whole = row(table, "rotations90")
    assert whole["inv_error"] == pytest.approx(float(errors[1:].mean()))
    assert whole["orbit_nc1"] == pytest.approx(orbits.orbit_nc1)
    assert row(table, "plain")["nc1"] == pytest.approx(measure_collapse(moved[0], y).nc1)


def test_the_network_runs_once_for_each_element_and_is_left_as_it_was() -> None:
    net, (x, y) = Net(), images()
    RUNS.clear()
    net.train()
    net.body[3].eval()
    measure_symmetry(net, [(x, y)], [rotations90(), flips()], flows=translation_flow())
    once = len(RUNS)
    measure_symmetry(net, [(x, y)] * 2, [rotations90(), flips()], flows=translation_flow())
    assert (
        len(RUNS) - 2 * once  # without the first batch, on which the classifier is found
        == 1 + 3 + 1 + 2
        == TransformedOutputs([rotations90(), flips()], [translation_flow()]).forwards
    )
    assert net.training
    assert not net.body[3].training


def test_inner_layers_and_flows_have_rows_of_their_own() -> None:
    net, (x, y) = Net(), images()
    flow = translation_flow()
    table = measure_symmetry(net, [(x, y)], flips(), flows=flow, layers="body.1")
    assert row(table, "flips", layer="body.1")["inv_error"] > 0
    assert math.isnan(row(table, "flips", layer="body.1")["acc_orbit_mean"])
    net.eval()
    with torch.no_grad():
        slope = lie_difference(lambda z: net.body(z), flow, x, flow.step)
        plain = net.body(x).double()
    expected = slope.square().sum(1).mean() / (plain - plain.mean(0)).square().sum(1).mean()
    assert row(table, flow.name)["lie_error"] == pytest.approx(float(expected), rel=1e-5)
    assert row(table, flow.name)["lie_error_logits"] > 0


def test_a_network_that_writes_on_its_input_does_not_spoil_the_next_element() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.mul_(2))

    x, y = images()
    table = measure_symmetry(Writes(), [(x.clone(), y)], rotations90())
    clean = measure_symmetry(Net(), [(2 * x, y)], rotations90())
    assert row(table, "rotations90", "rot90")["inv_error"] == pytest.approx(
        row(clean, "rotations90", "rot90")["inv_error"]
    )


def test_of_a_drawn_group_the_orbit_numbers_are_unbiased_and_leave_the_identity_out() -> None:
    y = torch.arange(60) % 3
    features = torch.randn(5, 60, 4, generator=seeded(0)).double()
    drawn = permutations(6, count=5, seed=1)
    assert drawn.drawn
    values = group_values(drawn, features, None, y, 3)[0][""]
    by_hand = measure_orbits([(features[1:], y)], 3, "shared")
    assert values["orbit_share"] == pytest.approx(by_hand.orbit_share)
    full = Group.of("full", drawn.actions, kind="sets")
    biased = group_values(full, features, None, y, 3)[0][""]["orbit_share"]
    assert biased == pytest.approx(measure_orbits([(features, y)], 3).orbit_share)
    assert biased != pytest.approx(values["orbit_share"], rel=1e-3)
    with pytest.raises(InputError, match="draw at least two"):
        group_values(permutations(6, count=2), features[:2], None, y, 3)


def test_sequences_and_inputs_of_several_parts_are_taken() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, batch: Any) -> Any:
            return self.head((batch[0] * batch[1][..., None]).sum(1))

    x, mask = torch.rand(8, 5, 4, generator=seeded(0)), torch.ones(8, 5)
    group = permutations(5, count=4).on(0, 1)
    table = measure_symmetry(Masked(), [((x, mask), torch.arange(8) % 2)], group)
    assert row(table, "permutations")["inv_error"] < 1e-12
    table = measure_symmetry(Masked(), [((x, mask), torch.arange(8) % 2)], time_shifts().on(0))
    assert row(table, time_shifts().name)["inv_error"] > 1e-3


def test_mistakes_are_refused_in_words() -> None:
    net, (x, y) = Net(), images()
    with pytest.raises(InputError, match="gave no sample"):
        measure_symmetry(net, [], rotations90())
    with pytest.raises(InputError, match="square"):
        measure_symmetry(net, [(x[..., :4], y)], rotations90())
    with pytest.raises(InputError, match="one label and one feature vector for each sample"):
        measure_symmetry(net, [(x, y[:5])], rotations90())
    with pytest.raises(MeasurementError, match="not finite"):
        measure_symmetry(net, [(x / 0, y)], rotations90())
    with pytest.raises(InputError, match="'plain' is there for something else"):
        TransformedOutputs([Group.of("plain", [Action("g", torch.neg)], kind="x")])
    with pytest.raises(InputError, match=r"call it, as in rotations90\(\)"):
        groups_of([rotations90])  # type: ignore[list-item]


def test_samples_to_ignore_are_left_out() -> None:
    net, (x, y) = Net(), images()
    some = y.clone()
    some[::4] = -100
    table = measure_symmetry(net, [(x, some)], rotations90())
    kept = measure_symmetry(net, [(x[some >= 0], y[some >= 0])], rotations90())
    assert row(table, "rotations90")["orbit_quot"] == row(kept, "rotations90")["orbit_quot"]
