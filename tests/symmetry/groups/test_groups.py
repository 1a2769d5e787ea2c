"""Group axioms by brute force, for every closed group on the batches it acts on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import seeded
from ncmonitor import InputError, symmetry
from ncmonitor.symmetry import DIGITS, Action, Group, check_group, composition_table

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64]


def whole_numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randint(0, 100, shape, generator=seeded(seed)).to(dtype)


class Case(NamedTuple):
    make: Callable[[], Group]
    shape: tuple[int, ...]
    elements: int
    commutes: bool = True
    signed: bool = False


CLOSED = {
    "flip": Case(symmetry.flips, (3, 2, 4, 5), 2),
    "flip down": Case(lambda: symmetry.flips(horizontal=False, vertical=True), (3, 2, 4, 5), 2),
    "flips": Case(lambda: symmetry.flips(vertical=True), (3, 2, 4, 5), 4),
    "C4": Case(symmetry.rotations90, (3, 2, 5, 5), 4),
    "D4": Case(symmetry.dihedral, (3, 2, 4, 4), 8, commutes=False),
    "torus": Case(lambda: symmetry.circular_shifts((4, 6), 2), (3, 1, 4, 6), 6),
    "torus, all": Case(lambda: symmetry.circular_shifts(4), (2, 1, 4, 4), 16),
    "S2": Case(lambda: symmetry.permutations(2), (3, 2), 2),
    "S4": Case(lambda: symmetry.permutations(4), (3, 4, 2), 24, commutes=False),
    "cyclic": Case(lambda: symmetry.cyclic(6), (3, 6, 2), 6),
    "cyclic by 2": Case(lambda: symmetry.cyclic(6, 2), (3, 6), 3),
    "cube": Case(symmetry.cube_rotations, (2, 5, 3), 24, commutes=False, signed=True),
    "cube, both": Case(
        lambda: symmetry.cube_rotations(reflections=True), (2, 5, 3), 48, False, True
    ),
}


@pytest.fixture(params=CLOSED)
def case(request: pytest.FixtureRequest) -> Case:
    return CLOSED[request.param]


def test_a_table_is_that_of_the_actions_on_random_input_bit_by_bit(case: Case) -> None:
    group = case.make()
    assert group.exact
    assert group.closed
    assert len(group) == case.elements
    x = torch.randn(case.shape, generator=seeded(0))
    found = composition_table(group, x)
    assert found is not None
    assert group.table is not None
    assert torch.equal(found, group.table)


def test_a_table_is_associative_and_knows_the_inverses(case: Case) -> None:
    group = case.make()
    table, inverses = group.table, group.inverses
    assert table is not None
    assert inverses is not None
    assert torch.equal(table[table], table[:, table])  # (ij)k = i(jk)
    every = torch.arange(len(group))
    assert (table[every, inverses] == 0).all()
    assert (table[inverses, every] == 0).all()
    assert torch.equal(table, table.T) == case.commutes


@pytest.mark.parametrize("dtype", DTYPES)
def test_actions_keep_shape_and_dtype_and_undo_each_other(case: Case, dtype: torch.dtype) -> None:
    if case.signed and dtype == torch.uint8:
        pytest.skip("coordinates need a sign")
    group = case.make()
    x = whole_numbers(case.shape, dtype)
    before = x.clone()
    assert group.inverses is not None
    for action, inverse in zip(group, group.inverses.tolist(), strict=True):
        y = action(x)
        assert (y.shape, y.dtype, y.is_contiguous()) == (x.shape, dtype, True)
        assert torch.equal(group[inverse](y), x)
    assert torch.equal(x, before)


def test_actions_take_input_that_is_not_contiguous(case: Case) -> None:
    x = torch.randn((*case.shape[:-1], 2 * case.shape[-1]), generator=seeded(1))[..., ::2]
    assert not x.is_contiguous()
    for action in case.make():
        assert torch.equal(action(x), action(x.contiguous()))


def test_every_closed_group_passes_its_own_check(case: Case) -> None:
    check_group(case.make(), torch.randn(case.shape, generator=seeded(2)))


def test_a_group_survives_pickle_and_deepcopy(case: Case) -> None:
    group = case.make()
    x = torch.randn(case.shape, generator=seeded(3))
    for other in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
        assert other.names == group.names
        assert all(torch.equal(a(x), b(x)) for a, b in zip(group, other, strict=True))


# -- names, tables, classes ------------------------------------------------------------------------


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_the_identity_is_put_first_and_returns_its_input() -> None:
    group = Group.of("g", [Action("double", double)], kind="sets")
    assert group.names == ("identity", "double")
    x = torch.ones(2, 3)
    assert group[0](x) is x
    assert torch.equal(group["double"](x), 2 * x)
    assert [action.name for action in group] == ["identity", "double"]
    assert not group.closed
    assert group.inverses is None


def test_elements_are_found_by_name_and_position() -> None:
    group = symmetry.rotations90()
    assert [group.index(e) for e in ("rot90", 2, -1)] == [1, 2, 3]
    for wrong in ("rot9", 4, -5, 1.5):
        with pytest.raises(InputError, match="'rotations90' has no element"):
            group.index(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'rot90'"):
        group.index("rot9")


@pytest.mark.parametrize("name", ["", "a b", "a/b", 3])
def test_a_name_must_fit_the_names_of_metrics(name: str) -> None:
    with pytest.raises(InputError, match="without blanks"):
        Action(name, double)
    with pytest.raises(InputError, match="without blanks"):
        Group.of(name, [Action("double", double)], kind="sets")


def test_a_group_of_something_else_than_actions_is_refused() -> None:
    with pytest.raises(InputError, match="needs actions"):
        Group.of("g", [double], kind="sets")  # type: ignore[list-item]
    with pytest.raises(InputError, match="needs a function"):
        Action("double", 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two actions called 'double'"):
        Group.of("g", [Action("double", double)] * 2, kind="sets")
    with pytest.raises(InputError, match="must be 'identity'"):
        Group("g", (Action("double", double),), "sets")


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ([[0, 1, 2]], "must be 2 × 2"),
        ([[1, 0], [0, 1]], "the identity at position 0"),
        ([[0, 1], [1, 1]], "once in every row"),
        ([[0, 1], [1, 5]], "once in every row"),
    ],
)
def test_a_table_that_cannot_be_one_is_refused(table: list[list[int]], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Group.of("g", [Action("double", double)], kind="sets", table=torch.tensor(table))


def test_excluded_classes_are_left_out_per_element() -> None:
    group = symmetry.rotations90().excluding({"rot180": [6, 9]})
    labels = torch.arange(10, dtype=torch.uint8)
    assert group.keeps("rot90", labels).all()
    assert (~group.keeps(2, labels)).nonzero().flatten().tolist() == [6, 9]
    assert group.on(0).excluded == {"rot180": {6, 9}}


def test_excluding_what_is_no_element_or_no_class_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'rot180'"):
        symmetry.rotations90().excluding({"rot18": [6]})
    for classes in ([-1], ["six"], "69", [0.5]):
        with pytest.raises(InputError, match="whole numbers from 0"):
            symmetry.rotations90().excluding({"rot180": classes})  # type: ignore[dict-item]


def test_the_digits_left_by_each_element_keep_their_labels_under_a_subgroup() -> None:
    group = symmetry.dihedral().excluding(DIGITS)
    assert group.table is not None
    labels = torch.arange(10)
    kept = torch.stack([group.keeps(i, labels) for i in range(len(group))])  # (8, 10)
    for digit in range(10):
        inside = kept[:, digit].nonzero().flatten()
        assert kept[group.table[inside][:, inside].flatten(), digit].all()
    # A six and a nine are half a turn apart, a two and a five a reflection: no image of the
    # transformed set has both labels if no g·six equals an h·nine, that is g⁻¹h is not that one.
    assert group.inverses is not None
    for pair, between in (((6, 9), ["rot180"]), ((2, 5), ["flip_h", "flip_v"])):
        first, second = (kept[:, digit].nonzero().flatten() for digit in pair)
        met = group.table[group.inverses[first]][:, second].flatten().tolist()
        assert not {group.names[i] for i in met} & set(between)


def test_digits_serve_groups_that_have_few_of_the_elements() -> None:
    assert symmetry.flips().excluding(DIGITS).excluded == {"flip_h": {2, 5}}
    assert symmetry.shifts(1).excluding(DIGITS).excluded == {}
    assert symmetry.rotations([180, 20]).excluding(DIGITS).excluded == {"rot180": {6, 9}}


# -- parts of a batch ------------------------------------------------------------------------------


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


def test_an_action_acts_on_the_named_part_and_leaves_the_batch_as_it_was() -> None:
    x, y = torch.randn(2, 1, 3, 3), torch.arange(2)
    flip = symmetry.flips()["flip_h"]
    flipped = x.flip(-1)
    pair = flip.on(0)((x, y))
    assert isinstance(pair, tuple)
    assert torch.equal(pair[0], flipped)
    assert pair[1] is y
    assert torch.equal(flip.on(-2)([x, y])[0], flipped)
    named = flip.on(0)(Pair(x, y))
    assert isinstance(named, Pair)
    assert torch.equal(named.image, flipped)
    batch = {"image": x, "label": y, "name": "a"}
    out = flip.on("image")(batch)
    assert torch.equal(out["image"], flipped)
    assert out["name"] == "a"
    assert batch["image"] is x


def test_several_parts_go_along_and_parts_nest() -> None:
    x, mask = torch.randn(2, 4, 3), torch.rand(2, 4) > 0.5
    action = symmetry.permutations(4)[5]
    out = action.on("x", "mask")({"x": x, "mask": mask})
    assert torch.equal(out["x"], action(x))
    assert torch.equal(out["mask"], action(mask))
    inner = action.on("x").on(0)(({"x": x}, 1))
    assert torch.equal(inner[0]["x"], action(x))


def test_a_part_that_is_not_there_is_named() -> None:
    flip = symmetry.flips()["flip_h"]
    x = torch.randn(2, 1, 3, 3)
    with pytest.raises(InputError, match=r"part 'img' of a batch.*\['image'\]"):
        flip.on("img")({"image": x})
    with pytest.raises(InputError, match="a Tensor"):
        flip.on(0)(x)
    with pytest.raises(InputError, match="a tuple"):
        flip.on(2)((x, x))
    with pytest.raises(InputError, match=r"group.on\(0\)"):
        flip((x, x))
    with pytest.raises(InputError, match="needs the part"):
        flip.on()


def test_the_package_loads_its_names_on_first_use() -> None:
    assert set(symmetry.__all__) <= set(dir(symmetry))
    assert all(getattr(symmetry, name) is not None for name in symmetry.__all__)
    with pytest.raises(AttributeError, match="no attribute 'flip'"):
        symmetry.flip  # noqa: B018


def test_a_table_is_found_for_actions_of_ones_own() -> None:
    x = torch.randn(2, 3, 4, 4, generator=seeded(0))
    actions = [*symmetry.rotations90()]
    assert composition_table(actions[:2], x) is None
    found = composition_table(actions, x)
    assert found is not None
    assert_close(found, (torch.arange(4)[:, None] + torch.arange(4)) % 4)
    with pytest.raises(InputError, match="'identity' and 'rot90' do the same"):
        composition_table(actions, torch.ones(2, 3, 4, 4))
