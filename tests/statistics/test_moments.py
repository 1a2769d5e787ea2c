"""The algebra of ClassMoments: splits, orders, merges, copies, and what it refuses."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from cases import BY_NAME, Case, seeded
from ncmonitor import ClassMoments, InputError

#: Sums are float64; what order and reference points change is their last bits.
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-15}
#: float32 residuals about another reference point are rounded otherwise.
SINGLE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def moments(case: Case, *, scatter: bool = False) -> ClassMoments:
    return ClassMoments(case.num_classes, scatter=scatter).update(case.features, case.labels)


def assert_same(one: ClassMoments, two: ClassMoments, **tolerance: Any) -> None:
    assert one.counts.equal(two.counts)
    tolerance = tolerance or EXACT
    assert_close(one.class_means, two.class_means, equal_nan=True, **tolerance)
    assert_close(one.class_variances, two.class_variances, equal_nan=True, **tolerance)
    if one.scatter:
        assert_close(one.within, two.within, **tolerance)


def attributes(moments: ClassMoments) -> dict[str, Any]:
    """Every attribute, those of the sums among them."""
    return {k: v for k, v in vars(moments).items() if k != "sums"} | vars(moments.sums)


def state(moments: ClassMoments) -> dict[str, Any]:
    """Every attribute, tensors as bytes: nothing hides from the comparison."""
    return {
        name: (value.dtype, value.shape, value.numpy().tobytes())
        if isinstance(value, Tensor)
        else value
        for name, value in attributes(moments).items()
    }


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noisy", "imbalanced", "missing_several", "offset_float64"])
def test_means_variances_and_scatter_are_what_their_names_say(name: str) -> None:
    case = BY_NAME[name]
    got, features = moments(case, scatter=True), case.features.double()
    residuals = torch.zeros_like(features)
    for c in range(case.num_classes):
        own = case.labels == c
        assert got.counts[c] == own.sum()
        if not own.any():
            assert got.class_means[c].isnan().all()
            assert got.class_variances[c].isnan()
            continue
        mean = features[own].mean(0)
        residuals[own] = features[own] - mean
        assert_close(got.class_means[c], mean, rtol=1e-6, atol=1e-9)
        assert_close(got.class_variances[c], residuals[own].square().sum(1).mean(), **SINGLE)
    assert_close(got.within, residuals.T @ residuals / len(features), rtol=1e-6, atol=1e-8)


def test_small_spread_on_a_large_mean_keeps_its_variance() -> None:
    features = (10 + 1e-3 * torch.randn(1000, 5, generator=seeded(0))).float()
    got = ClassMoments(2).update(features, torch.zeros(1000, dtype=torch.int64))
    exact = features.double().var(0, correction=0).sum()
    assert_close(got.class_variances[0], exact, rtol=1e-6, atol=0)


def test_equal_samples_have_exactly_no_variance() -> None:
    row = torch.randn(1, 7, generator=seeded(0)) / 3
    got = ClassMoments(2, scatter=True)
    for size in (1, 5, 9):
        got.update(row.repeat(size, 1), torch.ones(size, dtype=torch.int64))
    assert got.class_variances[1] == 0
    assert got.class_means[1].equal(row[0].double())
    assert not got.within.any()
    assert got.merge(got).class_variances[1] == 0


def test_a_single_sample_is_its_own_mean() -> None:
    got = ClassMoments(3).update(torch.tensor([[0.1, 0.2]]), torch.tensor([1]))
    assert got.counts.tolist() == [0, 1, 0]
    assert got.class_means[1].equal(torch.tensor([0.1, 0.2]).double())
    assert got.class_variances[1] == 0
    assert got.class_means[[0, 2]].isnan().all()
    assert got.class_variances[[0, 2]].isnan().all()


def test_before_the_first_sample_there_is_nothing() -> None:
    got = ClassMoments(3)
    assert (got.dim, got.feature_dtype, got.neg_clips) == (0, None, 0)
    assert got.counts.tolist() == [0, 0, 0]
    assert got.class_means.shape == (3, 0)
    assert got.class_variances.isnan().all()


def test_reading_twice_gives_the_same() -> None:
    got = moments(BY_NAME["imbalanced"], scatter=True)
    before = state(got)
    for name in ("counts", "class_means", "class_variances", "within", "offsets"):
        first = getattr(got, name).clone()
        getattr(got, name).add_(1)  # what is given out is the caller's
        assert getattr(got, name).equal(first), name
    assert state(got) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_accumulates_in_double(dtype: torch.dtype) -> None:
    features = torch.full((6000, 2), 1.0, dtype=dtype)
    features[1::2] = 1.5
    got = ClassMoments(2)
    for batch in features.split(500):
        got.update(batch, torch.zeros(len(batch), dtype=torch.int64))
    assert got.class_means[0].tolist() == [1.25, 1.25]  # a bfloat16 sum stops growing at 256
    assert got.class_variances[0] == 2 * 0.25**2
    assert got.feature_dtype == dtype
    assert got.references.dtype == torch.float32


def test_neither_features_nor_labels_are_modified() -> None:
    case = BY_NAME["noisy"]
    features, labels = case.features.clone().requires_grad_(), case.labels.clone()
    got = ClassMoments(10).update(features, labels)
    assert features.detach().equal(case.features)
    assert labels.equal(case.labels)
    assert not got.class_means.requires_grad
    features.data.zero_()  # and nothing of the batch is kept
    assert_same(got, moments(case))


# -- splits, orders, merges ------------------------------------------------------------------------


def in_batches(case: Case, sizes: Sequence[int], *, scatter: bool = False) -> ClassMoments:
    got = ClassMoments(case.num_classes, scatter=scatter)
    for features, labels in zip(
        case.features.split(list(sizes)), case.labels.split(list(sizes)), strict=True
    ):
        got.update(features, labels)
    return got


@pytest.mark.parametrize("name", ["noisy", "imbalanced", "offset_1e-05", "outlier_first_1e+04"])
def test_batches_in_order_give_the_same_bits_of_reference_and_nearly_of_sums(name: str) -> None:
    case = BY_NAME[name]
    size = len(case.labels)
    for sizes in ([1] * size, [size - 1, 1], [0, size, 0], [size // 2, size - size // 2]):
        assert_same(in_batches(case, sizes, scatter=True), moments(case, scatter=True))


@pytest.mark.parametrize("name", ["noisy", "missing_several", "offset_1e-05", "collapsed_float64"])
def test_order_of_the_samples_does_not_matter(name: str) -> None:
    case = BY_NAME[name]
    order = torch.randperm(len(case.labels), generator=seeded(0))
    got = ClassMoments(case.num_classes).update(case.features[order], case.labels[order])
    want = moments(case)
    assert got.counts.equal(want.counts)
    # float32 residuals about another first sample: rounding is relative to the class's spread
    spread = want.class_variances.sqrt()[:, None]
    drift = ((got.class_means - want.class_means) / spread).nan_to_num()
    assert float(drift.abs().max()) < 1e-6
    assert_close(got.class_variances, want.class_variances, rtol=1e-6, atol=0, equal_nan=True)


COUNTS = st.lists(st.integers(0, 25), min_size=1, max_size=6)


@QUICK
@given(COUNTS, st.integers(0, 2**31), st.booleans())
def test_any_split_into_batches_is_one_batch(sizes: list[int], seed: int, scatter: bool) -> None:
    features, labels = drawn(sum(sizes), seed)
    whole = ClassMoments(4, scatter=scatter).update(features, labels)
    parts = ClassMoments(4, scatter=scatter)
    for x, y in zip(features.split(sizes), labels.split(sizes), strict=True):
        parts.update(x, y)
    if scatter and not sum(sizes):
        return
    assert_same(parts, whole)


@QUICK
@given(COUNTS, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_merging_shards_in_any_order_is_one_batch(sizes: list[int], seed: int, rng: Any) -> None:
    features, labels = drawn(sum(sizes), seed)
    whole = ClassMoments(4, scatter=True).update(features, labels)
    shards = [
        ClassMoments(4, scatter=True).update(x, y)
        for x, y in zip(features.split(sizes), labels.split(sizes), strict=True)
    ]
    rng.shuffle(shards)
    left = right = ClassMoments(4, scatter=True)
    for shard in shards:
        left, right = left.merge(shard), shard.merge(right)
    if sum(sizes):
        assert_same(left, whole)
        assert_same(right, whole)


def drawn(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four classes, often not all present, in double precision about distant means."""
    generator = seeded(seed)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    features = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return features + 5 * labels[:, None], labels


def shards(name: str, number: int = 3) -> list[ClassMoments]:
    case = BY_NAME[name]
    edges = [len(case.labels) * i // number for i in range(number + 1)]
    return [
        ClassMoments(case.num_classes, scatter=True).update(case.features[i:j], case.labels[i:j])
        for i, j in pairwise(edges)
    ]


@pytest.mark.parametrize("name", ["sorted", "noisy_float64", "offset_float64", "one_singleton"])
def test_merge_is_associative_and_commutative(name: str) -> None:
    a, b, c = shards(name)
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))


@pytest.mark.parametrize("name", ["sorted", "noisy", "offset_1e-05", "imbalanced"])
def test_merged_shards_agree_with_a_single_pass(name: str) -> None:
    a, b, c = shards(name)
    case = BY_NAME[name]
    got, want = a.merge(b).merge(c), moments(case)
    assert got.counts.equal(want.counts)
    spread = want.class_variances.sqrt()[:, None]
    assert float(((got.class_means - want.class_means) / spread).abs().max()) < 1e-6
    assert_close(got.class_variances, want.class_variances, rtol=1e-6, atol=0)


def test_merge_leaves_both_operands_unchanged_and_shares_no_memory() -> None:
    one, two, _ = shards("imbalanced")
    before = state(one), state(two)
    merged = one.merge(two)
    assert (state(one), state(two)) == before
    after = state(merged)
    case = BY_NAME["imbalanced"]
    for operand in (one, two):
        operand.update(case.features, case.labels)
    assert state(merged) == after
    changed = state(one), state(two)
    merged.update(case.features, case.labels)
    assert (state(one), state(two)) == changed
    assert not memory(merged) & (memory(one) | memory(two))


def memory(moments: ClassMoments) -> set[int]:
    tensors = [t for t in attributes(moments).values() if isinstance(t, Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors}


@pytest.mark.parametrize("scatter", [False, True], ids=["plain", "scatter"])
def test_empty_state_is_the_identity_of_merge_and_shares_nothing_either(scatter: bool) -> None:
    full = moments(BY_NAME["imbalanced"], scatter=scatter)
    empty = ClassMoments(10, scatter=scatter)
    for merged in (full.merge(empty), empty.merge(full)):
        assert state(merged) == state(full)
        assert not memory(merged) & memory(full)
    twice = empty.merge(ClassMoments(10, scatter=scatter))
    assert state(twice) == state(empty)
    assert empty.dim == 0


def test_an_empty_batch_changes_nothing_but_fixes_the_dimension() -> None:
    got = ClassMoments(3).update(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert (got.dim, int(got.counts.sum())) == (5, 0)
    full = moments(BY_NAME["all_equal"]).merge(
        ClassMoments(3).update(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    )
    assert_same(full, moments(BY_NAME["all_equal"]))


# -- carrying --------------------------------------------------------------------------------------


def through_disk(original: ClassMoments) -> ClassMoments:
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    return ClassMoments.from_state_dict(torch.load(file, weights_only=True))


CARRIERS = {
    "state_dict": lambda m: ClassMoments.from_state_dict(m.state_dict()),
    "weights_only_file": through_disk,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "to": lambda m: m.to("cpu"),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("empty", [False, True], ids=["full", "empty"])
def test_a_carried_copy_is_equal_and_independent(carrier: str, empty: bool) -> None:
    case = BY_NAME["imbalanced"]
    original = ClassMoments(10, scatter=True)
    if not empty:
        original.update(case.features, case.labels)
    before = state(original)
    copied = CARRIERS[carrier](original)
    assert state(copied) == before
    assert isinstance(copied.feature_dtype, torch.dtype) is not empty
    copied.update(case.features, case.labels)
    assert state(original) == before
    assert state(copied) != before
    again = CARRIERS[carrier](original)
    original.update(case.features, case.labels)
    assert state(again) == before


def test_a_state_dict_does_not_change_with_later_updates() -> None:
    original = moments(BY_NAME["noisy"])
    kept = original.state_dict()
    frozen = state(ClassMoments.from_state_dict(kept))
    original.update(BY_NAME["noisy"].features, BY_NAME["noisy"].labels)
    assert state(ClassMoments.from_state_dict(kept)) == frozen


# -- what it refuses -------------------------------------------------------------------------------

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (X, torch.tensor([0, 1, 3, 1]), "labels must lie in [0, 3), but one is 3; pass num_cl"),
        (X, torch.tensor([0, -1, 2, 1]), "labels must not be negative, but one is -1"),
        (X, Y.float(), "labels must be integers, but have dtype torch.float32"),
        (X, Y > 0, "labels must be integers, but have dtype torch.bool"),
        (X, torch.eye(4, 3).long(), "of shape (N,), but have shape (4, 3); multi-label"),
        (X, torch.tensor(1), "labels must be class indices of shape (N,), but have shape ()"),
        (X, Y[:3], "expected one label per feature row, got 4 rows, 3 labels"),
        (X[0], Y, "features must have shape (N, d), but have shape (3,); flatten"),
        (X[:, :, None], Y, "features must have shape (N, d), but have shape (4, 3, 1)"),
        (X.long(), Y, "features must be floating point, but have dtype torch.int64"),
        (X[:, :2], Y, "expected features of dimension 3 as before, got 2"),
        (X.double(), Y, "expected torch.float32 features as before, got torch.float64"),
        (X.half(), Y, "expected torch.float32 features as before, got torch.float16"),
        ("cat", Y, "expected a torch tensor or an array of numbers, got str"),
        (X, np.array(["a", "b", "c", "b"]), "expected a torch tensor or an array of numbers"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_wrong_batch_is_refused_in_words_and_leaves_the_state(
    features: Any, labels: Any, message: str
) -> None:
    got = ClassMoments(3).update(X, Y)
    before = state(got)
    with pytest.raises(InputError, match=re.escape(message)):
        got.update(features, labels)
    assert state(got) == before


def test_a_refused_first_batch_fixes_nothing() -> None:
    got = ClassMoments(3)
    with pytest.raises(InputError, match="must not be negative"):
        got.update(X, Y - 5)
    assert got.update(X.double()[:, :2], Y).dim == 2


@pytest.mark.parametrize("number", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(number: int) -> None:
    with pytest.raises(InputError, match=f"num_classes must be at least 2, but is {number}"):
        ClassMoments(number)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ClassMoments(4), "expected moments of 3 classes with scatter=False, got 4 classes"),
        (ClassMoments(3, scatter=True), "got 3 classes with scatter=True"),
        (ClassMoments(3).update(X[:, :2], Y), "dimension 3, got torch.float32 of dimension 2"),
        (ClassMoments(3).update(X.double(), Y), "expected torch.float32 features of dimension 3"),
    ],
    ids=["classes", "scatter", "dimension", "precision"],
)
def test_moments_that_do_not_fit_are_not_merged(other: ClassMoments, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ClassMoments(3).update(X, Y).merge(other)


def test_within_without_scatter_says_what_to_write() -> None:
    with pytest.raises(InputError, match=r"needs ClassMoments\(..., scatter=True\)"):
        _ = ClassMoments(3).update(X, Y).within


UNUSUAL: dict[str, NDArray[Any]] = {
    "reversed": np.arange(12, dtype=np.float32).reshape(4, 3)[::-1],
    "big_endian": np.arange(12, dtype=">f4").reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3)),
    "float16": np.arange(12, dtype=np.float16).reshape(4, 3),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_numpy_arrays_of_any_layout_are_read(name: str) -> None:
    features = UNUSUAL[name]
    got = ClassMoments(3).update(features, Y.numpy())
    assert got.class_means[1].tolist() == ((features[1] + features[3]) / 2).tolist()


def test_read_only_arrays_are_read_without_a_warning() -> None:
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    features.setflags(write=False)
    got = ClassMoments(3).update(features, Y.numpy())
    assert got.class_means[1].tolist() == [6, 7, 8]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"])
def test_labels_of_every_integer_type_are_read(dtype: str) -> None:
    got = ClassMoments(3).update(X, Y.numpy().astype(dtype))
    assert got.counts.tolist() == [1, 2, 1]
