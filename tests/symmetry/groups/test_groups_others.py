"""Sets, graphs, sequences and points: what each action does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import seeded
from ncmonitor import InputError, symmetry
from ncmonitor.symmetry import Group, check_group, composition_table

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


# -- permutations ----------------------------------------------------------------------------------


def test_all_permutations_are_different_and_reorder_dimension_1() -> None:
    group = symmetry.permutations(4)
    x = torch.arange(4.0).expand(2, 4)
    orders = {tuple(action(x)[0].tolist()) for action in group}
    assert len(orders) == len(group) == math.factorial(4)
    assert torch.equal(group["perm1032"](x), torch.tensor([1.0, 0, 3, 2]).expand(2, 4))


def test_sampled_permutations_are_different_seeded_and_a_set() -> None:
    x = torch.arange(12).expand(2, 12)

    def orders(seed: int) -> list[list[int]]:
        before = torch.get_rng_state()
        group = symmetry.permutations(12, count=20, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        assert not group.closed
        check_group(group, x)
        return [action(x)[0].tolist() for action in group]

    first = orders(0)
    assert len({tuple(order) for order in first}) == 20
    assert first[0] == list(range(12))
    assert first == orders(0)
    assert first != orders(1)
    assert len(symmetry.permutations(3, count=6)) == 6


def test_nodes_are_renumbered_in_features_and_adjacency_alike() -> None:
    x, edges = noise(2, 4, 3), noise(2, 4, 4, seed=1)
    group = symmetry.node_permutations(4)
    message = edges @ x  # (B, n, d): equivariant, whatever the graph
    for action in group:
        turned_x, turned_edges = action((x, edges))
        alone = symmetry.permutations(4)[action.name]
        assert torch.equal(turned_x, alone(x))
        assert_close(turned_edges @ turned_x, alone(message))
    check_group(group, (x, edges))
    found = composition_table(group, (x, edges))
    assert found is not None
    assert group.table is not None
    assert torch.equal(found, group.table)


def test_graphs_may_be_dicts_with_masks_and_edge_features() -> None:
    batch = {
        "x": noise(2, 3, 5),
        "mask": noise(2, 3) > 0,
        "adj": noise(2, 3, 3),
        "edge": noise(2, 3, 3, 4),
        "y": torch.arange(2),
    }
    group = symmetry.node_permutations(3, features=("x", "mask"), adjacency=("adj", "edge"))
    out = group["perm201"](batch)
    order = [2, 0, 1]
    for key in ("x", "mask"):
        assert torch.equal(out[key], batch[key][:, order])
    for key in ("adj", "edge"):
        assert torch.equal(out[key], batch[key][:, order][:, :, order])
    assert out["y"] is batch["y"]
    check_group(group, batch)
    bare = symmetry.node_permutations(3, features=(), adjacency="adj")["perm201"](batch)
    assert torch.equal(bare["adj"], out["adj"])
    assert bare["x"] is batch["x"]


def test_a_cyclic_group_rolls() -> None:
    x = noise(2, 6, 3)
    for name, steps in (("turn2", 2), ("turn4", 4)):
        assert torch.equal(symmetry.cyclic(6, 2)[name](x), x.roll(steps, 1))


# -- sequences -------------------------------------------------------------------------------------


def test_a_delay_pads_on_the_left() -> None:
    x = noise(2, 5, 3)
    group = symmetry.time_shifts(2)
    assert group.names == ("identity", "delay1", "delay2")
    assert not group.closed
    late = group["delay2"](x)
    assert torch.equal(late[:, 2:], x[:, :3])
    assert (late[:, :2] == 0).all()
    tokens = torch.randint(5, 9, (2, 5), generator=seeded(0))
    padded = symmetry.time_shifts([3], fill=1)[1](tokens)
    assert torch.equal(padded, torch.cat([torch.ones(2, 3, dtype=torch.int64), tokens[:, :2]], 1))
    check_group(group, x)


def test_a_causal_filter_started_at_rest_is_equivariant_to_delays() -> None:
    x = noise(2, 8, 3)

    def running(values: Tensor) -> Tensor:
        return values.cumsum(1)

    for action in symmetry.time_shifts(4):
        assert_close(running(action(x)), action(running(x)))


# -- points ----------------------------------------------------------------------------------------


def test_the_cubes_symmetries_keep_distances_and_orientation() -> None:
    x = noise(2, 6, 3)
    eye = torch.eye(3, dtype=F64)[None]
    for reflections, signs in ((False, {1.0}), (True, {1.0, -1.0})):
        group = symmetry.cube_rotations(reflections=reflections)
        matrices = [action(eye)[0].T for action in group]
        assert {round(float(torch.linalg.det(m)), 9) for m in matrices} == signs
        for action, matrix in zip(group, matrices, strict=True):
            assert torch.equal(action(x), x @ matrix.T)
    quarter = symmetry.cube_rotations()["-y+x+z"](x)
    assert torch.equal(quarter, torch.stack([-x[..., 1], x[..., 0], x[..., 2]], -1))


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_random_isometries_keep_distances(dim: int) -> None:
    x = noise(2, 6, dim)
    group = symmetry.euclidean(20, dim=dim)
    check_group(group, x)
    for action in group:
        assert_close(torch.cdist(action(x), action(x)), torch.cdist(x, x))
    moved = torch.stack([action(torch.zeros_like(x))[0, 0] for action in group][1:])
    assert 0.5 < moved.std() < 1.5
    turned = symmetry.orthogonal(20, dim=dim)
    assert all(not action(torch.zeros_like(x)).any() for action in turned)


def test_orthogonal_matrices_are_uniform_seeded_and_of_both_signs() -> None:
    eye = torch.eye(3, dtype=F64)[None]

    def matrices(group: Group) -> Tensor:
        return torch.stack([action(eye)[0].T for action in group][1:])

    many = matrices(symmetry.orthogonal(400))
    assert_close(many @ many.mT, eye.expand(400, 3, 3))
    assert many.mean(0).abs().max() < 0.12  # four standard deviations of 1/√(3·400)
    assert_close((many**2).mean(0), torch.full((3, 3), 1 / 3, dtype=F64), rtol=0, atol=0.06)
    signs = torch.linalg.det(many)
    assert 0.4 < (signs > 0).double().mean() < 0.6
    rotations = matrices(symmetry.orthogonal(50, reflections=False))
    assert_close(torch.linalg.det(rotations), torch.ones(50, dtype=F64))
    assert torch.equal(matrices(symmetry.orthogonal(5)), matrices(symmetry.orthogonal(5)))
    assert not torch.equal(
        matrices(symmetry.orthogonal(5)), matrices(symmetry.orthogonal(5, seed=1))
    )


def test_the_names_tell_rotations_from_reflections() -> None:
    eye = torch.eye(3, dtype=F64)[None]
    for action in list(symmetry.orthogonal(10))[1:]:
        positive = torch.linalg.det(action(eye)[0]) > 0
        assert action.name.startswith("rotation" if positive else "reflection")
    names = [symmetry.orthogonal(reflections=both).name for both in (True, False)]
    assert names == ["O3", "SO3"]
    assert symmetry.euclidean(dim=2).name == "E2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_points_keep_their_precision_under_autocast(dtype: torch.dtype) -> None:
    x = noise(2, 4, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for action in [*symmetry.euclidean(3), *symmetry.translations(2)]:
            y = action(x)
            assert y.dtype == dtype
            assert_close(y.double(), action(x.double()), rtol=0, atol=16 * torch.finfo(dtype).eps)


# -- mistakes --------------------------------------------------------------------------------------

THREE = torch.ones(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: symmetry.permutations(6), "720 permutations; give count="),
        (lambda: symmetry.permutations(1), "at least 2"),
        (lambda: symmetry.permutations(3, count=7), "between 2 and 6"),
        (lambda: symmetry.permutations(2.5), "whole number"),  # type: ignore[arg-type]
        (lambda: symmetry.permutations(4)[1](THREE), "needs a shape (B, 4, ...), got (2, 3, 3)"),
        (lambda: symmetry.permutations(4)[1]({"x": THREE}), "got dict"),
        (lambda: symmetry.node_permutations(3)[1]((THREE, THREE[..., :2])), "(B, 3, 3, ...)"),
        (lambda: symmetry.node_permutations(3)[1](THREE), "a Tensor"),
        (lambda: symmetry.node_permutations(3, adjacency=0), "different parts"),
        (lambda: symmetry.cyclic(6, 4), "step must divide"),
        (lambda: symmetry.time_shifts(0), "at least one delay"),
        (lambda: symmetry.time_shifts([-1]), "1 or more"),
        (lambda: symmetry.time_shifts([3])[1](THREE), "leaves nothing of sequences of 3 steps"),
        (lambda: symmetry.time_shifts([1])[1](torch.ones(3)), "(B, T, ...)"),
        (lambda: symmetry.cube_rotations()[1](THREE[..., :2]), "3 coordinates"),
        (lambda: symmetry.cube_rotations()[1](THREE.byte()), "negated"),
        (lambda: symmetry.orthogonal(0), "count must be at least 1"),
        (lambda: symmetry.orthogonal(2)[1](THREE.int()), "floating point"),
        (lambda: symmetry.euclidean(2)[1]((THREE, 1)), "got tuple"),
        (lambda: symmetry.translations(reach=0.0), "reach must be"),
    ],
)
def test_mistakes_are_said(call: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=re.escape(what)):
        call()
