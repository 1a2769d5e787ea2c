"""The orbit decomposition: identities, unbiasedness under drawn transforms, exactness."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference_symmetry as naive
from cases import seeded
from ncmonitor import InputError, measure_collapse
from ncmonitor.errors import MeasurementError
from ncmonitor.symmetry.orbits import OrbitMoments, OrbitReport, measure_orbits

F64 = torch.float64
NAMES = ["orbit_share", "orbit_quot", "orbit_nc1", "between_nc1", "nc1_aug"]


def cloud(
    m: int = 4,
    n: int = 30,
    d: int = 12,
    k: int = 3,
    *,
    spread: float = 0.3,
    offset: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features under m transforms ``(m, n, d)`` and labels, unevenly many to a class."""
    generator = seeded(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    labels = (torch.arange(n) ** 2) % (2 * k) % k
    labels[:k] = torch.arange(k)
    common = draw(m, k, d)[:, labels]  # what a transform does to a whole class
    samples = draw(k, d)[labels] + offset
    features = samples + spread * (draw(n, d) + 0.5 * common + draw(m, n, d))
    return features, labels


def full_mask(features: Tensor) -> Tensor:
    return torch.ones(features.shape[:2], dtype=torch.bool)


def class_mask(features: Tensor, labels: Tensor) -> Tensor:
    """A mask that leaves class 1 its first two transforms, and 2 only the identity and the last."""
    mask = full_mask(features)
    mask[2:, labels == 1] = False
    mask[1:-1, labels == 2] = False
    return mask


def agree(found: OrbitReport, expected: dict[str, float], rel: float) -> None:
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(expected[name], rel=rel, abs=0), name


@pytest.mark.parametrize("masked", [False, True])
def test_a_full_orbit_is_decomposed_as_the_matrices_are(masked: bool) -> None:
    features, labels = cloud()
    mask = class_mask(features, labels) if masked else full_mask(features)
    parts = naive.decomposition(features.numpy(), labels.numpy(), mask.numpy())
    batch = (features, labels, mask) if masked else (features, labels)
    agree(measure_orbits([batch], 3), naive.orbit_numbers(parts), 1e-11)


def test_the_parts_add_up_to_nc1_of_the_augmented_set() -> None:
    features, labels = cloud(k=5, n=60)
    found = measure_orbits([(features, labels)], 5)
    flat = measure_collapse(features.flatten(0, 1), labels.repeat(4), num_classes=5)
    assert found.nc1_aug == pytest.approx(flat.nc1, rel=1e-10)
    assert found.within_variance / found.between_class_variance == pytest.approx(
        flat.nc1_quotient, rel=1e-10
    )
    assert found.orbit_nc1 + found.between_nc1 == pytest.approx(flat.nc1, rel=1e-10)


@pytest.mark.parametrize(
    ("spread", "offset", "scale", "rel"),
    [(1e-5, 1.0, 1.0, 1e-8), (1e-2, 1e3, 1.0, 1e-8), (1e-5, 3.0, 1e-12, 1e-8)],
)
def test_collapse_offset_and_scale_cost_no_digits(
    spread: float, offset: float, scale: float, rel: float
) -> None:
    exact, labels = cloud(spread=spread, offset=offset)
    features = (exact * scale).float()
    parts = naive.decomposition(
        features.double().numpy(), labels.numpy(), full_mask(features).numpy()
    )
    agree(measure_orbits([(features, labels)], 3), naive.orbit_numbers(parts), rel)


def test_an_invariant_network_has_no_orbit_scatter() -> None:
    features, labels = cloud(1)
    found = measure_orbits([(features.expand(4, -1, -1), labels)], 3)
    assert (found.orbit_share, found.orbit_quot, found.orbit_nc1) == (0.0, 0.0, 0.0)
    plain = measure_collapse(features[0], labels, num_classes=3)
    assert found.nc1_aug == pytest.approx(plain.nc1, rel=1e-10)


def test_independent_features_per_transform_share_all_but_one_over_m() -> None:
    features = torch.randn(4, 4000, 5, generator=seeded(0))
    found = measure_orbits([(features, torch.arange(4000) % 2)], 2)
    assert found.orbit_share == pytest.approx(3 / 4, abs=0.01)


def test_a_split_into_batches_changes_nothing() -> None:
    features, labels = cloud()
    mask = class_mask(features, labels)
    cuts = [slice(0, 3), slice(3, 4), slice(4, 30)]
    for draws in ("full", "independent", "shared"):
        whole = measure_orbits([(features, labels, mask)], 3, draws)
        parts = [(features[:, c], labels[c], mask[:, c]) for c in cuts]
        found = measure_orbits(parts, 3, draws)
        for name, value in dataclasses.asdict(whole).items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-11), (draws, name)


# -- drawn transforms -------------------------------------------------------------------------


def drawn(
    features: Tensor, labels: Tensor, m: int, kind: Any, seed: int, mask: Tensor | None = None
) -> OrbitReport:
    """Measure m transforms drawn with replacement from the full orbit, allowed ones only."""
    generator, (order, n) = seeded(seed), features.shape[:2]
    weights = torch.ones(n, order) if mask is None else mask.T.float()
    if kind == "shared":
        rows = {int(c): torch.multinomial(weights[labels == c][0], m, True, generator=generator)
                for c in labels.unique()} if mask is not None else None  # fmt: skip
        same = torch.randint(order, (m,), generator=generator)
        picks = torch.stack([same if rows is None else rows[int(c)] for c in labels], 1)
    else:
        picks = torch.multinomial(weights, m, True, generator=generator).T  # (m, N)
    chosen = features[picks, torch.arange(n)]
    return measure_orbits([(chosen, labels)], int(labels.max()) + 1, kind)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["independent", "shared"])
def test_two_drawn_transforms_estimate_the_full_orbit_without_bias(kind: Any, masked: bool) -> None:
    features, labels = cloud(5, 12, 4, k=2, spread=1.0)
    mask = class_mask(features, labels) if masked else None
    batch = (features, labels) if mask is None else (features, labels, mask)
    truth = measure_orbits([batch], 2)
    found = [drawn(features, labels, 2, kind, seed, mask) for seed in range(300)]
    for name in ("orbit_variance", "within_variance"):
        values = torch.tensor([getattr(one, name) for one in found], dtype=F64)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - getattr(truth, name)) < 3.5 * error, name
        # without the correction: the plug-in halves the one and inflates the other
        assert 3.5 * error < 0.12 * getattr(truth, name)


def test_the_plug_in_of_two_draws_would_be_biased() -> None:
    features, labels = cloud(5, 12, 4, k=2, spread=1.0)
    truth = measure_orbits([(features, labels)], 2).orbit_variance
    generator, plug = seeded(1), []
    for _ in range(100):
        picks = torch.randint(5, (2, 12), generator=generator)
        chosen = features[picks, torch.arange(12)]
        plug.append(measure_orbits([(chosen, labels)], 2, "full").orbit_variance)
    assert sum(plug) / len(plug) == pytest.approx(truth / 2, rel=0.1)


def test_shared_and_independent_draws_differ_where_a_class_moves_as_one() -> None:
    # Every sample moves alike, so the spread of orbit means is exact under shared draws.
    labels = torch.arange(20) % 2
    samples = torch.randn(20, 3, generator=seeded(0), dtype=F64) + 5 * labels[:, None]
    steps = torch.randn(6, 1, 3, generator=seeded(1), dtype=F64)
    features = samples + steps
    truth = measure_orbits([(features, labels)], 2)
    some = features[[1, 4, 4]]
    shared = measure_orbits([(some, labels)], 2, "shared")
    between = shared.within_variance - shared.orbit_variance
    assert between == pytest.approx(truth.within_variance - truth.orbit_variance, rel=1e-12)
    wrong = measure_orbits([(some, labels)], 2, "independent")
    assert wrong.within_variance - wrong.orbit_variance < 0.9 * between


def test_the_first_of_drawn_transforms_is_like_any_other() -> None:
    features, labels = cloud(4)
    mask = full_mask(features)
    mask[0, ::2] = False
    found = measure_orbits([(features, labels, mask)], 3, "independent")
    back = measure_orbits([(features.flip(0), labels, mask.flip(0))], 3, "independent")
    features[~mask] = math.nan
    again = measure_orbits([(features, labels, mask)], 3, "independent")
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(back, name), rel=1e-11), name
    assert again == found


# -- samples without an orbit -----------------------------------------------------------------


@pytest.mark.parametrize("draws", ["full", "independent"])
def test_samples_without_two_transforms_are_left_out_and_counted(draws: Any) -> None:
    features, labels = cloud(3)
    mask = full_mask(features)
    mask[1:, [4, 9]] = False
    kept = torch.ones(30, dtype=torch.bool)
    kept[[4, 9]] = False
    found = measure_orbits([(features, labels, mask)], 3, draws)
    rest = measure_orbits([(features[:, kept], labels[kept])], 3, draws)
    assert found.left_out == 2
    assert dataclasses.replace(found, left_out=0) == rest


@pytest.mark.parametrize("draws", ["full", "independent", "shared"])
def test_a_class_that_every_transform_changes_drops_out_of_the_average(draws: Any) -> None:
    features, labels = cloud(k=4, n=40)
    mask = full_mask(features)
    mask[1:, labels == 2] = False
    batches = [(features[:, i], labels[i], mask[:, i]) for i in (labels == 2, labels != 2)]
    found = measure_orbits(batches, 4, draws)  # nothing is left of the first batch
    rest = measure_orbits([(features[:, labels != 2], labels[labels != 2])], 4, draws)
    assert found.left_out == int((labels == 2).sum())
    assert dataclasses.replace(found, left_out=0) == rest
    assert found.rank == 2


def test_the_parts_add_up_on_the_samples_that_remain() -> None:
    features, labels = cloud(k=5, n=60)
    mask = class_mask(features, labels)
    mask[1:, labels == 4] = False
    mask[1:, (labels == 0).nonzero()[:3, 0]] = False
    remain = mask & (mask.sum(0) > 1)
    assert sorted(labels[remain.any(0)].unique().tolist()) == [0, 1, 2, 3]
    found = measure_orbits([(features, labels, mask)], 5)
    assert found.left_out == int((labels == 4).sum()) + 3

    # NC1 of the remaining pairs by themselves, of which a class has equally many per sample
    flat = measure_collapse(features[remain], labels.expand(4, -1)[remain], num_classes=5)
    assert found.orbit_nc1 + found.between_nc1 == pytest.approx(flat.nc1, rel=1e-10)
    assert found.within_variance / found.between_class_variance == pytest.approx(
        flat.nc1_quotient, rel=1e-10
    )
    parts = naive.decomposition(features.numpy(), labels.numpy(), mask.numpy())
    np.testing.assert_allclose(parts.orbit + parts.between, parts.within, rtol=0, atol=1e-14)
    agree(found, naive.orbit_numbers(parts), 1e-11)
    assert found.orbit_variance == pytest.approx(np.trace(parts.orbit), rel=1e-12)
    assert found.within_variance == pytest.approx(np.trace(parts.within), rel=1e-12)


@pytest.mark.parametrize("draws", ["full", "independent", "shared"])
def test_no_sample_with_an_orbit_leaves_every_number_undefined(draws: Any) -> None:
    features, labels = cloud()
    mask = full_mask(features)
    mask[1:] = False
    found = measure_orbits([(features, labels, mask)], 3, draws)
    assert found.left_out == 30
    numbers = {k: v for k, v in dataclasses.asdict(found).items() if isinstance(v, float)}
    assert len(numbers) == 8
    assert all(math.isnan(value) for value in numbers.values())


def test_a_group_of_the_identity_alone_leaves_nothing_out() -> None:
    features, labels = cloud(1)
    found = measure_orbits([(features, labels, full_mask(features))], 3)
    assert found == measure_orbits([(features, labels)], 3)
    plain = measure_collapse(features[0], labels, num_classes=3)
    assert (found.left_out, found.orbit_share) == (0, 0.0)
    assert found.nc1_aug == pytest.approx(plain.nc1, rel=1e-10)


# -- the certificate --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 3), st.floats(-4, 2), st.booleans()
)
def test_half_the_square_distance_of_transforms_is_at_most_the_within_class_variance(
    seed: int, m: int, k: int, power: float, rounded: bool
) -> None:
    features, labels = cloud(m, 12, 5, k, spread=10.0**power, seed=seed)
    features = features.float() if rounded else features
    found = measure_orbits([(features, labels)], k)
    half = naive.half_square_distance(features.double().numpy(), labels.numpy())
    assert found.orbit_variance == pytest.approx(half, rel=1e-9, abs=1e-20)
    assert found.orbit_variance <= found.within_variance * (1 + 1e-12)
    if m > 1:
        assert 0 < found.orbit_share < 1


# -- undefined and refused --------------------------------------------------------------------


def test_full_collapse_leaves_the_share_undefined_and_the_quotient_zero() -> None:
    labels = torch.arange(8) % 2
    features = torch.eye(3)[labels].expand(4, -1, -1)
    found = measure_orbits([(features, labels)], 2)
    assert math.isnan(found.orbit_share)
    assert (found.orbit_quot, found.nc1_aug) == (0.0, 0.0)


def test_classes_in_one_place_leave_everything_but_the_share_undefined() -> None:
    steps = torch.randn(4, 1, 3, generator=seeded(0)).expand(4, 6, 3)
    found = measure_orbits([(steps, torch.arange(6) % 2)], 2)
    assert found.orbit_share == pytest.approx(1)
    assert found.rank == 0
    assert all(math.isnan(v) for v in (found.orbit_quot, found.orbit_nc1, found.nc1_aug))


def test_class_means_a_rounding_step_apart_are_one_place() -> None:
    features, labels = cloud(k=2)
    features = (1e-5 * features).float() + 1000
    features[:, labels == 1, 0] += 2**-14
    found = measure_orbits([(features, labels)], 2)
    assert found.rank == 0
    assert math.isnan(found.orbit_quot)
    assert math.isnan(found.nc1_aug)
    assert measure_orbits([(features.double(), labels)], 2).rank == 1


def test_a_single_class_has_a_share_alone() -> None:
    features, labels = cloud(k=1, n=8)
    found = measure_orbits([(features, labels)], 2)
    assert 0 < found.orbit_share < 1
    assert math.isnan(found.nc1_aug)


def test_excluded_pairs_may_hold_anything() -> None:
    features, labels = cloud()
    mask = class_mask(features, labels)
    expected = measure_orbits([(features, labels, mask)], 3)
    features[~mask] = math.nan
    assert measure_orbits([(features, labels, mask)], 3) == expected


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = cloud()
    features[1, 3, 0] = math.inf
    with pytest.raises(MeasurementError, match="not finite"):
        measure_orbits([(features, labels)], 3)


def test_one_drawn_transform_says_nothing_of_orbits() -> None:
    features, labels = cloud(1)
    with pytest.raises(InputError, match="at least 2 transforms"):
        measure_orbits([(features, labels)], 3, "independent")


def test_a_mask_within_a_class_does_not_go_with_shared_draws() -> None:
    features, labels = cloud()
    mask = full_mask(features)
    mask[1, int((labels == 0).nonzero()[0])] = False
    with pytest.raises(InputError, match="differs within a class"):
        measure_orbits([(features, labels, mask)], 3, "shared")


def test_unknown_draws_iterators_and_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="draws= must be one of"):
        OrbitMoments(3, "all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two passes"):
        measure_orbits(iter([cloud()]), 3)
    with pytest.raises(InputError, match="none came"):
        measure_orbits([], 3)
