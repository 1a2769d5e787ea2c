"""The two passes from end to end: sources of batches, the bank, and what is refused."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agreement import assert_agree, fast, flat
from cases import BY_NAME, Case, seeded
from ncmonitor import ClassMoments, InputError, measure_batches, measure_collapse
from ncmonitor.errors import MeasurementError
from ncmonitor.statistics.feature_cache import Budget, FeatureCache

NOISY = BY_NAME["noisy"]
X, Y = NOISY.features, NOISY.labels
W, B = cast("Tensor", NOISY.weight), cast("Tensor", NOISY.bias)
BYTES = X.numel() * 4


class Source:
    """Batches that are made anew at each reading, as a loader's are; counts the readings."""

    def __init__(self, case: Case = NOISY, size: int = 64, *, logits: bool = False) -> None:
        self.case, self.size, self.logits, self.readings = case, size, logits, 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.readings += 1
        case = self.case
        for x, y in zip(case.features.split(self.size), case.labels.split(self.size), strict=True):
            if not self.logits:
                yield x.clone(), y.clone()
            else:
                assert case.weight is not None
                assert case.bias is not None
                yield x.clone(), y.clone(), x @ case.weight.T + case.bias


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [9, 1200])
@pytest.mark.parametrize("kind", ["list", "tuple", "loader", "generator", "overflow", "logits"])
def test_batches_of_any_kind_and_size_agree_with_all_in_memory(kind: str, size: int) -> None:
    source = Source(BY_NAME["imbalanced"], size, logits=kind == "logits")
    case = source.case
    batches: Any = source
    makers: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "generator": iter}
    if kind in makers:
        batches = makers[kind](source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if kind == "overflow" else "error")
        budget = 10 if kind == "overflow" else 2**30
        report = measure_batches(batches, case.weight, case.bias, cache_bytes=budget)
    # float32 products in batches of another size are rounded otherwise
    assert_agree(flat(report), fast(case), rtol=1e-6)
    assert report.samples == len(case.labels)


def test_within_the_budget_the_source_is_read_once() -> None:
    source = Source()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_batches(source, W, B, cache_bytes=BYTES)
    assert source.readings == 1


def test_past_the_budget_the_source_is_read_twice_with_one_warning_that_names_the_cure() -> None:
    source = Source()
    with pytest.warns(UserWarning, match=rf"cache_bytes={BYTES} avoids it") as caught:
        measure_batches(source, W, B, cache_bytes=BYTES - 1)
    assert source.readings == 2
    assert len(caught) == 1
    assert caught[0].filename == __file__  # it points at the caller
    assert f"features take {BYTES:,} bytes" in str(caught[0].message)


def test_a_source_that_can_be_read_once_is_refused_past_the_budget() -> None:
    with pytest.raises(InputError, match=f"can be read only once: .* cache_bytes={BYTES}"):
        measure_batches(iter(Source()), W, B, cache_bytes=BYTES - 1)


def test_a_shuffled_second_reading_is_the_same_data() -> None:
    class Shuffled(Source):
        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
            self.readings += 1
            order = torch.randperm(500, generator=seeded(self.readings))
            yield from zip(X[order].split(64), Y[order].split(64), strict=True)

    with pytest.warns(UserWarning, match="a second time"):
        report = measure_batches(Shuffled(), W, B, cache_bytes=10)
    assert_agree(flat(report), fast(NOISY), rtol=1e-6)


@pytest.mark.parametrize("change", ["noise", "fewer", "labels"])
def test_data_that_changes_between_the_readings_is_noticed(change: str) -> None:
    class Changing(Source):
        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
            for number, (x, y) in enumerate(super().__iter__()):
                if self.readings == 1:
                    yield x, y
                elif change == "noise":
                    yield x + 0.1 * torch.randn(x.shape, generator=seeded(number)), y
                elif change == "labels":
                    yield x, y.roll(1)
                elif number:
                    yield x, y

    with (
        pytest.warns(UserWarning, match="a second time"),
        pytest.raises(MeasurementError, match=f"data changed between two .* cache_bytes={BYTES}"),
    ):
        measure_batches(Changing(), W, B, cache_bytes=10)


# -- the bank --------------------------------------------------------------------------------------


def test_batches_in_memory_are_kept_as_they_are_without_limit() -> None:
    bank = FeatureCache(Budget(1, in_memory=True))
    bank.add(X, Y, None)
    ((features, labels, _),) = bank
    assert bank.budget.enough
    assert features.data_ptr() == X.data_ptr()
    assert labels.data_ptr() == Y.data_ptr()


def test_the_bank_keeps_copies_that_hold_no_larger_memory_alive() -> None:
    bank, features, labels = FeatureCache(Budget()), X.clone(), Y.clone()
    bank.add(features[:10, :4], labels[:10], None)
    features.zero_()  # a loader that reuses its buffer
    labels.zero_()
    ((kept, kept_labels, _),) = bank
    assert kept.equal(X[:10, :4])
    assert kept_labels.equal(Y[:10])
    assert kept.untyped_storage().nbytes() == 10 * 4 * 4


def test_the_bank_empties_itself_past_its_budget_and_counts_on() -> None:
    budget = Budget(2 * 320)
    bank = FeatureCache(budget)
    for number in (1, 2):
        bank.add(X[:5, :16], Y[:5], None)
        assert (budget.enough, budget.needed) == (True, number * 320)
    for number in (3, 4):
        bank.add(X[:5, :16], Y[:5], None)
        assert (budget.enough, budget.needed, list(bank)) == (False, number * 320, [])


# -- what comes out --------------------------------------------------------------------------------


def test_inputs_are_left_alone_and_nothing_tracks_gradients() -> None:
    features = nn.Parameter(X.clone())
    weight, bias = nn.Parameter(W.clone()), nn.Parameter(B.clone())
    logits = (X @ W.T + B).requires_grad_()
    labels, kept = Y.clone(), logits.detach().clone()
    report = measure_collapse(features, labels, weight, bias, logits=logits)
    for given, before in ((features, X), (labels, Y), (weight, W), (bias, B), (logits, kept)):
        assert given.detach().equal(before)
        assert given.grad is None
    assert not any(
        value.requires_grad for value in vars(report.moments).values() if isinstance(value, Tensor)
    )
    assert {type(value) for value in report.values.values()} == {float}
    assert torch.is_grad_enabled()


def test_the_number_of_classes_is_found_where_it_can_be() -> None:
    labels = Y % 3
    assert measure_collapse(X, labels).moments.num_classes == 3
    assert measure_collapse(X, labels, W).moments.num_classes == 10
    assert measure_collapse(X, labels, logits=X[:, :7]).moments.num_classes == 7
    assert measure_collapse(X, labels, reference=ClassMoments(10).update(X, Y)).values[
        "n_classes_present"
    ] == 3  # fmt: skip
    assert measure_collapse(X, labels, num_classes=5).moments.num_classes == 5
    with pytest.raises(InputError, match=r"every label is 0.*pass num_classes="):
        measure_collapse(X, labels * 0)


def test_a_single_class_has_diagnostics_and_no_geometry() -> None:
    report = measure_collapse(X[:7], torch.full((7,), 2), W, B)
    assert report.n_classes_present == 1
    assert report.min_class_count == 7
    assert report.degenerate_classes == 1
    assert report.feature_dtype == 24
    assert math.isnan(report.nc1)
    assert math.isnan(report.nc2_etf_w)
    assert 0 <= report.error <= 1
    assert report.cross_entropy > 0


def test_features_alone_have_neither_error_nor_loss() -> None:
    report = measure_collapse(X, Y)
    assert math.isnan(report.error)
    assert math.isnan(report.cross_entropy)
    assert report.samples == 500


def test_a_batch_without_logits_leaves_the_decisions_undefined() -> None:
    halves = [(X[:250], Y[:250], X[:250] @ W.T), (X[250:], Y[250:])]
    report = measure_batches(halves, num_classes=10)
    assert "nc4_disagreement" not in report.values
    assert math.isnan(report.error)
    assert report.nc1 == pytest.approx(measure_collapse(X, Y).nc1, rel=1e-6)


# -- what is refused -------------------------------------------------------------------------------


def with_value(value: float) -> Tensor:
    features = X.clone()
    features[7, 3] = value
    return features


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no_samples": (
        {"features": X[:0], "labels": Y[:0]},
        "there is nothing to measure: expected at",
    ),
    "labels_out_of_range": ({"labels": Y + 1}, "labels must lie in [0, 10), but one is 10; pass"),
    "labels_negative": ({"labels": Y - 1}, "labels must not be negative, but one is -1"),
    "labels_real": (
        {"labels": Y.double()},
        "labels must be integers, but have dtype torch.float64",
    ),
    "labels_nan": ({"labels": Y * math.nan, "weight": None, "bias": None}, "must be integers"),
    "labels_one_hot": (
        {"labels": torch.eye(10)[Y]},
        "multi-label, one-hot and soft labels have no",
    ),
    "labels_too_few": ({"labels": Y[1:]}, "got 500 rows, 499 labels"),
    "features_3d": ({"features": X[..., None]}, "features must have shape (N, d), but have shape"),
    "features_integer": ({"features": X.int()}, "features must be floating point, but have dtype"),
    "features_text": ({"features": ["a"]}, "expected a torch tensor or an array of numbers"),
    "weight_1d": ({"weight": W[0]}, "weight must have shape (K, d), got (32,)"),
    "weight_narrow": ({"weight": W[:, :5]}, "dimension 5 as weight has columns, got 32"),
    "weight_narrow_with_logits": (
        {"weight": W[:, :5], "logits": X @ W.T},
        "expected features of dimension 5 as weight has columns, got 32",
    ),
    "weight_short": ({"weight": W[:3], "bias": None}, "labels must lie in [0, 3), but one is 9"),
    "weight_one_row": ({"weight": W[:1], "bias": None, "labels": Y * 0}, "at least 2, but is 1"),
    "bias_short": ({"bias": B[:3]}, "bias must have shape (10,) like the rows of weight, got (3,)"),
    "classes_and_weight": ({"num_classes": 12}, "num_classes=12, but weight has 10 rows"),
    "classes_and_weight_with_logits": (
        {"num_classes": 12, "logits": torch.zeros(500, 12)},
        "num_classes=12, but weight has 10 rows",
    ),
    "one_class": ({"num_classes": 1, "weight": None, "bias": None}, "at least 2, but is 1"),
    "logits_narrow": ({"logits": X[:, :9]}, "expected logits of shape (500, 10), got (500, 9)"),
    "logits_1d": ({"logits": X[:, 0]}, "expected logits of shape (500, 10), got (500,)"),
    "logits_0d": ({"logits": X[0, 0], "weight": None, "bias": None}, "shape (500, 10), got ()"),
    "reference_report": ({"reference": measure_collapse(X, Y)}, "(report.moments), got a Collapse"),
    "reference_empty": ({"reference": ClassMoments(10)}, "reference holds no sample"),
    "reference_other": (
        {"reference": ClassMoments(11).update(X[:, :4], Y)},
        "reference has 11 classes of dimension 4, the features have 10 of dimension 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(name: str) -> None:
    changes, message = REFUSED[name]
    given = {"features": X, "labels": Y, "weight": W, "bias": B} | changes
    with pytest.raises(InputError, match=re.escape(message)):
        measure_collapse(**given)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": with_value(math.nan)},
        {"features": with_value(math.inf)},
        {"features": with_value(math.nan).roll(-7, 0)},  # the class's reference point itself
        {"weight": W * math.nan},
        {"weight": W / 0, "logits": X @ W.T},
        {"bias": B * math.inf},
    ],
    ids=["nan", "inf", "nan_first", "weight_nan", "weight_inf", "bias_inf"],
)
def test_what_is_not_finite_cannot_be_measured(changes: dict[str, Any]) -> None:
    given = {"features": X, "labels": Y, "weight": W, "bias": B} | changes
    with pytest.raises(MeasurementError, match=r"(is|are) not finite \(nan or inf\)"):
        measure_collapse(**given)


def test_logits_that_are_not_finite_only_spoil_what_reads_them() -> None:
    logits = X @ W.T
    logits[3, 4] = math.nan
    report = measure_collapse(X, Y, W, B, logits=logits)
    assert math.isnan(report.cross_entropy)
    assert math.isnan(report.error)
    assert math.isnan(report.nc4_disagreement)
    assert report.ncc_accuracy == measure_collapse(X, Y, W, B).ncc_accuracy
    assert report.nc1 == measure_collapse(X, Y, W, B).nc1


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is nothing to measure"),
        (X, "or (features, labels, logits), got a Tensor"),
        ([(X,)], "or (features, labels, logits), got a tuple of 1"),
        ([[X, Y, X, Y]], "or (features, labels, logits), got a list of 4"),
        ([{"x": X, "y": Y}], "or (features, labels, logits), got a dict"),
        ([(X, Y), (X[:, :5], Y)], "expected features of dimension 32 as before, got 5"),
    ],
    ids=["none", "tensor", "one", "four", "dict", "dimensions"],
)
def test_batches_that_are_none_are_refused(batches: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        measure_batches(batches, num_classes=10)


def test_an_unknown_number_of_classes_says_what_to_pass() -> None:
    with pytest.raises(InputError, match="pass num_classes= or weight="):
        measure_batches([(X, Y)])


def test_memory_maps_are_measured_where_they_lie(tmp_path: Any) -> None:
    np.save(tmp_path / "features.npy", X.numpy())
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert measure_collapse(mapped, Y.numpy()).as_dict() == measure_collapse(X, Y).as_dict()
