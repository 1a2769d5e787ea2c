"""The symmetry zoo: theory at random weights, verdicts that can fail, training that is seeded."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ncmonitor.recipes.zoo import geometric
from ncmonitor.recipes.zoo import zoo_data as data
from ncmonitor.recipes.zoo import zoo_groups as groups
from ncmonitor.recipes.zoo import zoo_networks as networks
from ncmonitor.recipes.zoo.predictions import EXACT, Claim, Theory, agrees
from ncmonitor.recipes.zoo.zoo_data import Inputs, taken
from ncmonitor.recipes.zoo.zoo_entries import Entry, entries
from ncmonitor.recipes.zoo.zoo_measurement import Result, Trained, measure, run, train, verdicts
from ncmonitor.symmetry import check_group, circular_shifts, rotations90

KNOWN = entries()
needs_geometric = pytest.mark.skipif(not geometric.is_there(), reason="needs torch_geometric")
EACH = [
    pytest.param(entry, marks=[needs_geometric] if entry.extra else [], id=name)
    for name, entry in KNOWN.items()
]


def few(entry: Entry, count: int = 24) -> Inputs:
    return taken(entry.task().test, slice(count))


def untrained(entry: Entry, seed: int = 3) -> networks.ZooNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return entry.build()


def result_of(name: str, group: str, before: float, after: float | None = None) -> Result:
    """A result of made numbers."""
    claim = next(claim for claim in KNOWN[name].claims if claim.group.name == group)
    first, last = (
        dict.fromkeys(("features", "logits"), value)
        for value in (before, before if after is None else after)
    )
    return Result(KNOWN[name], claim, first, last, Trained(1.0, 1.0, 1, 1.0))


# -- what theory says ------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", EACH)
def test_at_random_weights_what_must_be_0_is_0_and_what_is_free_is_not(entry: Entry) -> None:
    net = untrained(entry)
    for claim in entry.claims:
        for where, error in measure(net, claim, few(entry)).items():
            theory = claim.of(where)
            if theory is Theory.ZERO:
                assert error < 1e-20, (claim.group.name, where)
            else:
                assert error > 1e-3, (claim.group.name, where)


@pytest.mark.parametrize("entry", EACH)
def test_every_group_fits_what_it_acts_on(entry: Entry) -> None:
    inputs = few(entry, 4)
    inner = untrained(entry).eval().encoder(inputs).detach()
    for claim in entry.claims:
        check_group(claim.group, inputs)
        if claim.acts is not None:
            check_group(claim.acts, inner)
            assert claim.acts.names == claim.group.names


def test_every_kind_of_claim_is_made() -> None:
    claims = [claim for entry in KNOWN.values() for claim in entry.claims]
    assert {claim.output for claim in claims} == set(Theory)
    assert all((claim.inner is None) == (claim.acts is None) for claim in claims)
    before: set[str] = set()
    for name, entry in KNOWN.items():  # a reference is measured first, under the same group
        for claim in entry.claims:
            assert (claim.output is Theory.SMALL) == bool(claim.below)
            assert not claim.below or claim.below in before
            assert not claim.below or claim.group.name in {
                other.group.name for other in KNOWN[claim.below].claims
            }
        before.add(name)


def test_an_inner_map_that_turns_otherwise_is_not_equivariant() -> None:
    entry = KNOWN["p4_net"]
    claim = replace(entry.claims[0], acts=rotations90())  # without the shift of orientations
    assert measure(untrained(entry), entry.claims[0], few(entry))["inner"] < 1e-20
    assert measure(untrained(entry), claim, few(entry))["inner"] > 0.1


@pytest.mark.parametrize(
    ("theory", "error", "reference", "verdict"),
    [
        (Theory.ZERO, 0.0, None, True),
        (Theory.ZERO, EXACT, None, True),
        (Theory.ZERO, 1e-12, None, False),
        (Theory.ZERO, 0.3, None, False),
        (Theory.FREE, 0.3, None, True),
        (Theory.FREE, 40.0, None, True),
        (Theory.FREE, 1e-30, None, False),
        (Theory.SMALL, 0.1, 0.2, True),
        (Theory.SMALL, 0.3, 0.2, False),
        (Theory.SMALL, 1e-30, 0.2, False),
        (Theory.SMALL, 0.1, None, None),
        (Theory.SMALL, 0.1, math.nan, None),
        (Theory.ZERO, math.nan, None, None),
        (Theory.FREE, math.nan, None, None),
    ],
)
def test_agreement_follows_the_size_of_the_error(
    theory: Theory, error: float, reference: float | None, verdict: bool | None
) -> None:
    assert agrees(theory, error, reference) is verdict


def test_a_network_that_breaks_its_claim_is_found_out() -> None:
    entry = KNOWN["cnn_gap"]
    broken = untrained(replace(entry, build=partial(networks.cnn, padding="zeros")))
    errors = measure(broken, entry.claims[0], few(entry))
    result = Result(entry, entry.claims[0], errors, errors, Trained(1.0, 1.0, 1, 1.0))
    (told,) = verdicts([result])
    assert {where: (v.before, v.after) for where, v in told.items()} == dict.fromkeys(
        ("features", "logits", "inner"), (False, False)
    )


def test_a_nearly_invariant_network_is_held_against_the_one_without_the_construction() -> None:
    group = "circular_shifts"
    small = result_of("cnn_maxpool", group, 0.9, 0.2)
    dense = result_of("cnn_dense", group, 0.8, 0.8)
    told = verdicts([dense, small])[1]["features"]
    assert (told.before, told.after) == (False, True)
    alone = verdicts([small])[0]["features"]
    assert (alone.before, alone.after) == (None, None)


# -- networks --------------------------------------------------------------------------------------


def test_packed_states_are_those_of_the_sequence_without_its_padding() -> None:
    torch.manual_seed(0)
    states = networks.States(9, packed=True)
    x = few(KNOWN["gru"], 5)
    assert isinstance(x, Tensor)
    delayed = x.roll(3, dims=1)  # padding on both sides
    found = states(delayed)
    expected = states.gru(x[:, : data.SIDE])[0]
    torch.testing.assert_close(found[:, 3 : 3 + data.SIDE], expected)
    assert not found[:, :3].any()
    assert not found[:, 3 + data.SIDE :].any()


def test_the_feature_of_packed_states_is_the_last_that_is_not_padding() -> None:
    net = untrained(KNOWN["gru_packed"])
    x = taken(few(KNOWN["gru_packed"]), slice(5))
    torch.testing.assert_close(net.pool(net.encoder(x)), net.encoder(x)[:, data.SIDE - 1])


def test_blur_pooling_keeps_constants_and_moves_with_even_shifts() -> None:
    pool = networks.MaxBlurPool().double()
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(pool(torch.full_like(maps, 2.5)), maps.new_full((2, 3, 4, 4), 2.5))
    torch.testing.assert_close(pool(maps.roll(2, dims=2)), pool(maps).roll(1, dims=2))


def test_blur_pooling_moves_less_than_max_pooling_under_odd_shifts() -> None:
    maps = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def moved(pool: nn.Module) -> float:
        plain = pool(maps)
        return float((pool(maps.roll(1, dims=3)) - plain).square().sum() / plain.var())

    assert moved(networks.MaxBlurPool()) < 0.7 * moved(nn.MaxPool2d(2))


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [data.graphs, data.clouds, data.digits])
def test_held_out_samples_are_of_all_classes(task: object) -> None:
    assert callable(task)
    made = task()
    counts = torch.bincount(made.test_labels)
    assert len(counts) == made.classes == len(made.train_labels.unique())
    assert counts.min() > 0.9 * counts.max()


def test_graphs_have_as_many_edges_and_no_loops() -> None:
    _, adjacency = data.graphs().train
    assert (adjacency == adjacency.mT).all()
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    assert (adjacency.sum((1, 2)) == 2 * 15).all()


def test_the_forms_of_the_digits_hold_the_same_pixels() -> None:
    images = data.digits().test
    assert isinstance(images, Tensor)
    flat = images.flatten(1)
    sets = data.pixels().test
    assert isinstance(sets, Tensor)
    places = 8 * sets[..., 1:9].argmax(2) + sets[..., 9:].argmax(2)
    assert torch.equal(flat.gather(1, places), sets[..., 0])
    rows, patches = data.sequences().test, data.patches().test
    assert isinstance(rows, Tensor)
    assert isinstance(patches, Tensor)
    assert torch.equal(rows[:, :8, :8].flatten(1), flat)
    assert torch.equal(patches[:, 0], images[:, 0, :2, :2].flatten(1))
    assert torch.equal(patches.flatten(1).sort().values, flat.sort().values)
    framed = data.images().test
    assert isinstance(framed, Tensor)
    assert torch.equal(framed[..., 2:-2, 2:-2], images)
    assert framed.sum() == images.sum()


def test_shifts_within_the_margin_cut_nothing_off() -> None:
    x = few(KNOWN["cnn_gap"])
    assert isinstance(x, Tensor)
    for action in groups.margin_shifts():
        assert torch.equal(action(x).flatten(1).sort().values, x.flatten(1).sort().values)


# -- training --------------------------------------------------------------------------------------


def test_a_network_learns_its_task() -> None:
    entry = KNOWN["pointnet"]
    net = untrained(entry)
    before = train(net, entry.task(), 0, 0).test_accuracy
    assert before < 0.6
    assert train(net, entry.task(), 2, 0).test_accuracy > 0.9


def test_runs_of_one_seed_are_equal_and_those_of_two_are_not() -> None:
    entry = KNOWN["pointnet"]
    state = torch.get_rng_state()
    first, again, other = (run(entry, seed, 1) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert [r.after for r in first] == [r.after for r in again]
    assert [r.before for r in first] != [r.before for r in other]


def test_measuring_leaves_the_network_as_it_is() -> None:
    entry = KNOWN["p4_net"]
    net = untrained(entry).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure(net, entry.claims[0], few(entry))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_error_of_independent_features_is_one() -> None:
    class Noise(nn.Module):
        """Answers each call with numbers of its own."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 64, dtype=x.dtype)

    torch.manual_seed(0)
    net = networks.ZooNetwork(Noise(), nn.Identity(), 64, 10)
    claim = Claim(circular_shifts(data.CANVAS, step=3), Theory.FREE)
    inputs = taken(data.images().test, slice(128))
    assert measure(net, claim, inputs)["features"] == pytest.approx(1.0, abs=0.05)
