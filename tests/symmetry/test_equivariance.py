"""Learned linear maps of features, and whether they compose like the transforms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import reference_symmetry as naive
from cases import seeded
from ncmonitor import InputError
from ncmonitor.errors import MeasurementError
from ncmonitor.symmetry.equivariance import Equivariance, fit_equivariance, group_law

F64 = torch.float64
#: The quarter turns: i after j.
C4 = torch.tensor([[(i + j) % 4 for j in range(4)] for i in range(4)])


def turned(images: Tensor) -> Tensor:
    """Images ``(N, n, n)`` under the quarter turns, ``(4, N, n, n)``."""
    return torch.stack([torch.rot90(images, k, (1, 2)) for k in range(4)])


def regular(channels: int = 3, samples: int = 200, *, seed: int = 0) -> Tensor:
    """Features ``(4, N, 4c)`` equivariant by construction: ReLU channels lifted over the group."""
    images = torch.randn(samples, 5, 5, generator=seeded(seed), dtype=F64)
    weight = torch.randn(25, channels, generator=seeded(seed + 1), dtype=F64)

    def lifted(x: Tensor) -> Tensor:
        parts = [(torch.rot90(x, -k, (1, 2)).flatten(1) @ weight).relu() for k in range(4)]
        return torch.cat(parts, 1)

    return torch.stack([lifted(x) for x in turned(images)])


def same(one: Equivariance, two: Equivariance, tolerance: float = 1e-10) -> None:
    assert_close(one.r2, two.r2, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert one.group_law == pytest.approx(two.group_law, rel=tolerance, abs=tolerance)


def test_a_network_equivariant_by_construction_obeys_the_group_law() -> None:
    found = fit_equivariance(regular(), table=C4)
    assert_close(found.r2, torch.ones(4, dtype=F64), rtol=0, atol=1e-12)
    assert found.group_law < 1e-11
    assert found.group_law_scaled < 1e-11
    assert (found.components, found.reason) == (12, None)
    # four quarter turns are no turn, one is
    assert_close(found.maps[1].matrix_power(4), torch.eye(12, dtype=F64), rtol=0, atol=1e-10)
    assert (found.maps[1] - torch.eye(12)).norm() > 1


def test_maps_of_a_group_that_does_not_commute_compose_in_its_order() -> None:
    # D4: element k + 4f flips f times, then turns k times.
    def act(x: Tensor, g: int) -> Tensor:
        return torch.rot90(x.flip(2) if g >= 4 else x, g % 4, (1, 2))

    # (turn a, flip f) after (turn b, flip f'): a flip reverses the turns that came before it
    table = [
        [(g + (-h if g >= 4 else h)) % 4 + 4 * ((g >= 4) != (h >= 4)) for h in range(8)]
        for g in range(8)
    ]
    images = torch.randn(400, 5, 5, generator=seeded(0), dtype=F64)
    weight = torch.randn(25, 2, generator=seeded(1), dtype=F64)
    features = torch.stack(
        [
            torch.cat([(act(act(images, g), h).flatten(1) @ weight).relu() for h in range(8)], 1)
            for g in range(8)
        ]
    )
    found = fit_equivariance(features, table=torch.tensor(table))
    assert found.mean_r2 == pytest.approx(1, abs=1e-11)
    assert found.group_law < 1e-10
    assert found.group_law_scaled < 1e-10
    assert group_law(found.maps, torch.tensor(table).T) > 0.1


def test_directions_that_plain_features_lack_are_not_extrapolated() -> None:
    features = torch.randn(3, 200, 6, generator=seeded(2), dtype=F64)
    features[0, :, 3:] = 1e-9 * features[0, :, 3:]
    found = fit_equivariance(features)
    assert found.components == 6
    assert float(found.maps.norm()) < 10


def test_in_float32_beside_an_offset_it_obeys_up_to_rounding() -> None:
    found = fit_equivariance((regular() + 30).float(), table=C4)
    assert_close(found.r2, torch.ones(4, dtype=F64), rtol=0, atol=1e-10)
    assert found.group_law < 1e-4


def test_an_invariant_network_has_the_identity_as_its_map() -> None:
    plain = regular()[0]
    found = fit_equivariance(plain.expand(4, -1, -1), table=C4)
    assert found.mean_r2 == pytest.approx(1, abs=1e-12)
    assert found.group_law < 1e-12
    assert_close(found.maps[2], torch.eye(12, dtype=F64), rtol=0, atol=1e-12)


def test_independent_features_are_not_explained_and_their_maps_are_unrelated() -> None:
    features = torch.randn(4, 2000, 6, generator=seeded(3), dtype=F64)
    found = fit_equivariance(features, table=C4)
    assert found.r2[0] == pytest.approx(1, abs=1e-12)
    assert -0.03 < found.mean_r2 < 0.01
    assert 0.8 < found.group_law < 1.3


def test_r2_is_that_of_least_squares_on_the_raw_features() -> None:
    features = regular()
    features[1:] += 0.5 * torch.randn(3, 200, 12, generator=seeded(4), dtype=F64)
    found = fit_equivariance(features, table=C4)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    fit = order[:100].sort().values.numpy()
    for g in range(1, 4):
        expected = naive.held_out_r2(features[0].numpy(), features[g].numpy(), fit)
        assert float(found.r2[g]) == pytest.approx(expected, rel=1e-10)
    assert found.group_law == pytest.approx(naive.group_law(found.maps.numpy(), C4.tolist()), 1e-12)


def test_a_map_that_is_fitted_on_few_samples_does_not_explain_by_memory() -> None:
    # 60 fitted samples of 40 features: least squares on all of them would score about −2.
    features = torch.randn(2, 120, 40, generator=seeded(5), dtype=F64)
    features[:, :, 10:] *= 1e-3
    found = fit_equivariance(features)
    assert found.components <= 15
    assert float(found.r2[1]) > -0.6


def test_samples_below_the_dimension_are_enough_once_features_are_of_low_rank() -> None:
    wide = regular() @ torch.randn(12, 300, generator=seeded(6), dtype=F64)
    found = fit_equivariance(wide, table=C4)
    assert found.components == 12
    assert found.mean_r2 == pytest.approx(1, abs=1e-11)
    assert found.group_law < 1e-9


def test_samples_below_the_dimension_of_full_rank_features_give_a_reason() -> None:
    features = torch.randn(4, 60, 100, generator=seeded(7), dtype=F64)
    found = fit_equivariance(features, table=C4)
    assert torch.isnan(found.r2).all()
    assert math.isnan(found.group_law)
    assert found.reason is not None
    assert "30 fitted samples support 7 of 100 directions" in found.reason


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.ones(2, 40, 3), "do not vary"),
        (1e6 + 0.0625 * torch.eye(3)[torch.arange(80) % 3].view(2, 40, 3), "do not vary"),
        (torch.rand(2, 5, 3), "too few"),
        (torch.rand(2, 1, 3), "too few"),
    ],
)
def test_where_nothing_can_be_fitted_there_is_a_reason(features: Tensor, words: str) -> None:
    found = fit_equivariance(features)
    assert torch.isnan(found.r2).all()
    assert found.reason is not None
    assert words in found.reason


def test_many_features_are_searched_for_their_range() -> None:
    turn = torch.linalg.qr(torch.randn(1100, 12, generator=seeded(8), dtype=F64)).Q.T
    features = regular()
    same(fit_equivariance(features @ turn, table=C4), fit_equivariance(features, table=C4), 1e-9)


def test_excluded_pairs_take_no_part() -> None:
    features = regular()
    mask = torch.rand(4, 200, generator=seeded(9)) < 0.8
    mask[0] = True
    mask[3] = False
    features[~mask] = math.nan
    found = fit_equivariance(features, mask, C4)
    assert_close(found.r2[:3], torch.ones(3, dtype=F64), rtol=0, atol=1e-11)
    assert math.isnan(found.r2[3])
    assert found.mean_r2 == pytest.approx(1, abs=1e-11)


def test_the_split_is_seeded_and_leaves_the_global_generator_alone() -> None:
    features = regular() + 0.1 * torch.randn(4, 200, 12, generator=seeded(2), dtype=F64)
    before = torch.get_rng_state()
    one, two = (fit_equivariance(features, table=C4, seed=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.r2.tolist() == two.r2.tolist()
    assert one.r2.tolist() != fit_equivariance(features, table=C4, seed=2).r2.tolist()


# -- the group law ----------------------------------------------------------------------------


def test_the_group_law_sees_which_transform_comes_first() -> None:
    # Two reflections of the plane: a then b is a turn, b then a the turn back.
    a = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    b = torch.tensor([[-0.5, 0.75**0.5], [0.75**0.5, 0.5]])
    maps = torch.stack([torch.eye(2), a, b, b @ a])
    table = torch.tensor([[0, 1, 2, 3], [1, 0, -1, -1], [2, 3, 0, -1], [3, -1, -1, -1]])
    assert group_law(maps, table) < 1e-6
    assert group_law(maps, table.T) > 0.3


def test_directions_count_as_the_scale_says() -> None:
    maps = torch.eye(2).repeat(2, 1, 1)
    maps[1, 1, 1] = -2  # an involution on the first direction only
    table = torch.tensor([[0, 1], [1, 0]])
    assert group_law(maps, table) == pytest.approx(3 / 2**0.5, rel=1e-6)
    assert group_law(maps, table, torch.tensor([1.0, 0.0])) == 0
    assert math.isnan(group_law(maps, torch.tensor([[0, 1], [1, -1]])))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (torch.zeros(2, 2), "integers of shape"),
        (torch.zeros(3, 2, dtype=torch.int64), "integers of shape"),
        (torch.tensor([[1, 0], [0, 1]]), "identity"),
        (torch.tensor([[0, 1], [1, 2]]), "must name transforms 0 to 1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_equivariance(torch.rand(2, 40, 3), table=table)


def test_impossible_settings_and_features_are_refused() -> None:
    with pytest.raises(InputError, match="held_out="):
        fit_equivariance(torch.rand(2, 40, 3), held_out=1.0)
    features = torch.rand(2, 40, 3)
    features[1, 7] = math.nan
    with pytest.raises(MeasurementError, match="not finite"):
        fit_equivariance(features)
