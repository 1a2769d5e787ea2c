"""Moves of features, logits and predictions under transforms, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import reference_symmetry as naive
from cases import seeded
from ncmonitor import InputError
from ncmonitor.symmetry.invariance import FeatureInvariance, PredictionInvariance, inv_error

F64 = torch.float64


def moved(
    m: int = 4, n: int = 50, d: int = 6, *, seed: int = 0, dtype: torch.dtype = F64
) -> Tensor:
    """Features under m transforms, the further along the more they move."""
    generator = seeded(seed)
    plain = torch.randn(n, d, generator=generator, dtype=F64)
    noise = torch.randn(m, n, d, generator=generator, dtype=F64)
    return (plain + noise * torch.arange(m).view(m, 1, 1) / m).to(dtype)


def some_pairs(m: int, n: int, *, seed: int = 5) -> Tensor:
    mask = torch.rand(m, n, generator=seeded(seed)) < 0.7
    mask[0] = True
    return mask


def everything(found: PredictionInvariance) -> list[Tensor]:
    return [
        found.logit_errors,
        found.consistency,
        found.total_variation,
        found.accuracy,
        found.accuracy_drop,
        torch.tensor([found.orbit_mean, found.orbit_worst]),
    ]


# -- features ---------------------------------------------------------------------------------


def test_errors_are_those_of_loops_over_the_pairs_that_count() -> None:
    features, mask = moved(), some_pairs(4, 50)
    mask[2] = False
    expected = naive.inv_error(features.numpy(), mask.numpy())
    found = inv_error(features, mask)
    assert_close(found, torch.tensor(expected, dtype=F64), equal_nan=True, rtol=1e-12, atol=0)
    assert math.isnan(found[2])


def test_an_invariant_network_scores_exactly_zero() -> None:
    plain = moved(1, dtype=torch.float32)
    assert inv_error(plain.expand(3, -1, -1)).tolist() == [0.0, 0.0, 0.0]


def test_an_independent_copy_scores_one() -> None:
    features = torch.randn(2, 20_000, 4, generator=seeded(1)) + 7
    assert float(inv_error(features)[1]) == pytest.approx(1, abs=0.02)


def test_a_split_into_batches_changes_nothing() -> None:
    features, mask = moved(), some_pairs(4, 50)
    found = FeatureInvariance()
    for part in (slice(0, 1), slice(1, 33), slice(33, 50)):
        found.update(features[:, part], mask[:, part])
    assert_close(found.errors, inv_error(features, mask), rtol=1e-13, atol=0)
    assert found.error == pytest.approx(float(found.errors[1:].mean()), rel=1e-13)


def test_small_moves_keep_their_digits_beside_a_huge_offset() -> None:
    features = moved(dtype=F64) * 1e-5
    features = (features + 100).float()  # a spread of about eighty rounding steps
    mask = torch.ones(4, 50, dtype=torch.bool)
    expected = naive.inv_error(features.double().numpy(), mask.numpy())
    assert_close(FeatureInvariance().update(features).moves.sqrt()[0], torch.tensor(0.0, dtype=F64))
    # in a coarser view the variance counts as rounding, so compare the parts
    found = FeatureInvariance().update(features.double())
    assert_close(found.errors, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=0)


def test_features_that_vary_by_rounding_alone_have_no_error() -> None:
    features = torch.full((2, 10, 3), 1000.0)
    features[:, ::2, 0] = 1000.0 + 2**-14  # one rounding step
    assert features[0].unique().numel() == 2
    assert torch.isnan(inv_error(features)).all()
    assert math.isnan(FeatureInvariance().total_variance)
    assert not torch.isnan(inv_error(features.double())).any()


def test_what_excluded_pairs_hold_does_not_matter() -> None:
    features, mask = moved(), some_pairs(4, 50)
    expected = inv_error(features, mask)
    features[~mask] = math.nan
    assert_close(inv_error(features, mask), expected, rtol=0, atol=0)


# -- predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_predictions_are_those_of_loops(masked: bool) -> None:
    logits, labels = moved(d=3, seed=2), torch.arange(50) % 3
    mask = some_pairs(4, 50) if masked else torch.ones(4, 50, dtype=torch.bool)
    mask[1:, : 4 * masked] = False  # samples of which no transform keeps the label
    found = PredictionInvariance().update(logits, labels, mask if masked else None)
    expected = naive.predictions(logits.numpy(), labels.numpy(), mask.numpy())
    centred = (logits - logits.mean(2, keepdim=True)).numpy()
    pairs = {
        "consistency": found.consistency,
        "tv": found.total_variation,
        "acc": found.accuracy,
        "drop": found.accuracy_drop,
    }
    for name, values in pairs.items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.logit_errors, naive.inv_error(centred, mask.numpy()), 1e-12)
    assert found.orbit_mean == pytest.approx(expected["orbit_mean"], rel=1e-12)
    assert found.orbit_worst == pytest.approx(expected["orbit_worst"], rel=1e-12)


def test_a_constant_added_to_all_logits_of_a_sample_changes_nothing() -> None:
    logits, labels = moved(d=3), torch.arange(50) % 3
    shift = 8 * torch.randn(4, 50, 1, generator=seeded(3), dtype=F64)
    one = everything(PredictionInvariance().update(logits, labels))
    two = everything(PredictionInvariance().update(logits + shift, labels))
    for a, b in zip(one, two, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_predictions_of_batches_are_those_of_the_whole() -> None:
    logits, labels, mask = moved(d=3), torch.arange(50) % 3, some_pairs(4, 50)
    found = PredictionInvariance()
    for part in (slice(0, 20), slice(20, 50)):
        found.update(logits[:, part], labels[part], mask[:, part])
    whole = PredictionInvariance().update(logits, labels, mask)
    for a, b in zip(everything(found), everything(whole), strict=True):
        assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_the_drop_compares_the_samples_whose_label_is_kept() -> None:
    logits = torch.eye(2)[[0, 1, 1]].expand(2, 3, 2)  # the third sample is always wrong
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = PredictionInvariance().update(logits, torch.tensor([0, 1, 0]), mask)
    assert found.accuracy.tolist() == [pytest.approx(2 / 3), 1.0]
    assert found.accuracy_drop.tolist() == [0.0, 0.0]


def test_samples_of_which_the_identity_alone_keeps_the_label_have_no_orbit() -> None:
    logits, labels = moved(d=3, seed=2), torch.arange(50) % 3
    mask = torch.ones(4, 50, dtype=torch.bool)
    mask[1:, labels == 1] = False
    found = PredictionInvariance()
    for own in (labels == 1, labels != 1):  # nothing of the first batch counts
        found.update(logits[:, own], labels[own], mask[:, own])
        assert math.isnan(found.orbit_mean) == math.isnan(found.orbit_worst) == bool(own[1])
    others = PredictionInvariance().update(logits[:, labels != 1], labels[labels != 1])
    assert found.orbit_mean == pytest.approx(others.orbit_mean, rel=1e-14)
    assert found.orbit_worst == pytest.approx(others.orbit_worst, rel=1e-14)
    assert 0 < found.orbit_worst < found.orbit_mean < 1
    assert found.accuracy[0] == (logits[0].argmax(1) == labels).double().mean()  # of them all


@pytest.mark.parametrize("masked", [False, True])
def test_the_orbit_of_a_group_of_one_is_the_sample(masked: bool) -> None:
    logits, labels = moved(1, d=3), torch.arange(50) % 3
    mask = torch.ones(1, 50, dtype=torch.bool) if masked else None
    found = PredictionInvariance().update(logits, labels, mask)
    assert found.orbit_mean == found.orbit_worst == float(found.accuracy[0])


def test_an_invariant_network_has_one_accuracy() -> None:
    logits, labels = moved(1, d=3), torch.arange(50) % 3
    found = PredictionInvariance().update(logits.expand(5, -1, -1), labels)
    assert found.consistency.tolist() == [1.0] * 5
    assert found.total_variation.tolist() == [0.0] * 5
    assert found.orbit_mean == pytest.approx(float(found.accuracy[0]), rel=1e-14)
    assert found.orbit_worst == found.accuracy[0]


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "mask", "words"),
    [
        (torch.zeros(3, 4), None, r"shape \(m, B, d\)"),
        (torch.zeros(2, 0, 4), None, r"shape \(m, B, d\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), None, "floating point"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], None, "one shape under all transforms"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "mask must be bool"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), "identity comes first"),
    ],
)
def test_misshaped_features_are_refused(features: Tensor, mask: Tensor | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        FeatureInvariance().update(features, mask)


def test_a_batch_with_other_transforms_is_refused() -> None:
    with pytest.raises(InputError, match="expected 4 transforms of 6 features as before"):
        FeatureInvariance().update(moved()).update(moved(3))


def test_labels_beyond_the_logits_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels must lie in \[0, 3\)"):
        PredictionInvariance().update(moved(d=3), torch.full((50,), 3))
