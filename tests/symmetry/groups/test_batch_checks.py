"""What check_group finds before training, each mistake planted once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import seeded
from ncmonitor import InputError, symmetry
from ncmonitor.symmetry import Action, Group, check_group

IMAGES = torch.rand(6, 3, 8, 8, generator=seeded(0))


def group_of(function: Callable[[Any], Any], **fields: Any) -> Group:
    return Group.of("mine", [Action("bad", function)], kind="images", **fields)


class Alternating:
    calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls % 2 else x.flip(-1)


def in_place(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def seeded_inside(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + torch.rand_like(x)


def numpy_noise(x: Tensor) -> Tensor:
    np.random.random()  # noqa: NPY002
    return x.flip(-1)


def python_noise(x: Tensor) -> Tensor:
    random.random()
    return x.flip(-1)


def reshaping(x: Tensor) -> Tensor:
    return x.flatten(1) @ torch.ones(5, 5)


MISTAKES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: x[..., :-1], r"changes the shape from \(4, 3, 8, 8\) to \(4, 3, 8, 7\)"),
    (lambda x: x.double(), "changes the dtype from torch.float32 to torch.float64"),
    (lambda x: x.to("meta"), "changes the device|fails on inputs"),
    (lambda x: (x, x), r"a batch like the one it got \(Tensor\), got tuple"),
    (lambda x: None, "got NoneType"),
    (lambda x: (x - x) / (x - x), "nan where its input has none"),
    (Alternating(), "not deterministic"),
    (lambda x: x + torch.rand_like(x), "draws random numbers"),
    (seeded_inside, "draws random numbers"),
    (numpy_noise, "draws random numbers"),
    (python_noise, "draws random numbers"),
    (in_place, "in place"),
    (lambda x: x.flip(0), "mixes the samples"),
    (lambda x: x - x.mean(0), "mixes the samples"),
    (lambda x: torch.rot90(x[:, :, :4], 1, (2, 3)), "changes the shape"),
    (reshaping, r"fails on inputs of shape \(4, 3, 8, 8\): RuntimeError"),
]


@pytest.mark.parametrize(("function", "what"), MISTAKES)
def test_a_planted_mistake_is_found(function: Callable[[Any], Any], what: str) -> None:
    kept = IMAGES.clone()
    with pytest.raises(InputError, match=what) as caught:
        check_group(group_of(function), kept)
    assert "action 'bad' of group 'mine'" in str(caught.value)
    if function is not in_place:
        assert torch.equal(kept, IMAGES)


def test_the_seeds_stay_as_they_were() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    check_group(symmetry.dihedral(), IMAGES)
    for function in (seeded_inside, numpy_noise, python_noise):
        with pytest.raises(InputError):
            check_group(group_of(function), IMAGES)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002


def test_a_group_that_does_not_fit_is_named_with_the_reason() -> None:
    tall = torch.rand(4, 1, 8, 6, generator=seeded(0))
    with pytest.raises(InputError, match=r"'rot90' of group 'rotations90' .*needs square images"):
        check_group(symmetry.rotations90(), tall)
    with pytest.raises(InputError, match=r"'shift-6-6' of group 'shifts' .*leaves nothing"):
        check_group(symmetry.shifts(6), tall)
    with pytest.raises(InputError, match=r"acts on images \(B, C, H, W\), got the shape \(8, 6\)"):
        check_group(symmetry.flips(), tall[0, 0])
    with pytest.raises(InputError, match="with samples in it"):
        check_group(symmetry.flips(), tall[:0])
    with pytest.raises(InputError, match="got list"):
        check_group(symmetry.flips(), ["a"])
    with pytest.raises(InputError, match="expected a Group, got function"):
        check_group(symmetry.flips, tall)  # type: ignore[arg-type]


def test_an_identity_that_changes_something_is_found() -> None:
    group = Group("mine", (Action("identity", lambda x: x + 1),), "images")
    with pytest.raises(InputError, match="'identity' of group 'mine' changes its input"):
        check_group(group, IMAGES)


def test_a_table_that_is_not_that_of_the_actions_is_found() -> None:
    right = symmetry.rotations90()
    klein = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
    wrong = Group.of("mine", list(right), kind="images", exact=True, table=klein)
    with pytest.raises(InputError, match="'rot90', then 'rot90' is 'identity', but"):
        check_group(wrong, IMAGES)
    square = symmetry.dihedral()
    assert square.table is not None
    other_order = replace(square, table=square.table.T.clone())  # the actions do not commute
    with pytest.raises(InputError, match="the table of group 'dihedral'"):
        check_group(other_order, IMAGES)


def test_closed_turns_of_points_pass_within_rounding() -> None:
    flow = symmetry.point_rotation_flow()
    turns = [Action(f"fifth{i}", partial(flow, t=72.0 * i)) for i in range(1, 5)]
    table = (torch.arange(5)[:, None] + torch.arange(5)) % 5
    x = torch.rand(3, 6, 3, generator=seeded(0))
    check_group(Group.of("fifths", turns, kind="points", table=table), x)
    with pytest.raises(InputError, match="table"):  # not bit by bit, as exact says
        check_group(Group.of("fifths", turns, kind="points", table=table, exact=True), x)


def test_batches_with_labels_and_nan_in_the_input_pass() -> None:
    images = IMAGES.clone()
    images[0, 0, 0, 0] = torch.nan
    labels = torch.arange(6)
    check_group(symmetry.dihedral().on(0), (images, labels))
    check_group(symmetry.dihedral().on("x"), {"x": images, "y": labels, "ids": ["a"] * 6})
    with pytest.raises(InputError, match=r"'dihedral' .*part 'image' of a batch"):
        check_group(
            Group.of("dihedral", [symmetry.dihedral()[1].on("image")], kind="images"), {"x": images}
        )


@pytest.mark.parametrize(
    "group",
    [
        symmetry.flips(),
        symmetry.shifts(2),
        symmetry.circular_shifts(8, 1),
        symmetry.rotations(),
        symmetry.subpixel_shifts(),
        symmetry.scalings(),
    ],
    ids=lambda group: group.name,
)
def test_the_groups_of_the_package_pass(group: Group) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check_group(group, IMAGES.to(dtype))
    check_group(group, (255 * IMAGES).byte())
