"""Every metric: the fast code against the naive twin, closed forms, and invariances."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agreement import RELATIVE, array, assert_agree, fast, flat, naive, unsure
from cases import (
    BY_NAME,
    CASES,
    Case,
    cloud,
    orthogonal_frame,
    random_means,
    seeded,
    simplex_etf,
    train_and_validation,
)
from ncmonitor import ClassMoments, measure_batches, measure_collapse
from ncmonitor.catalogue import CATALOGUE, METRIC_NAMES, METRICS
from ncmonitor.geometry import vectors as geometry
from ncmonitor.inputs import tensors
from ncmonitor.statistics import class_means as centres

CLASSIFIER = {q.name for q in METRICS if q.needs == "classifier"}

#: Looser than the dtype's default, and why.
LOOSE: dict[str, dict[str, float]] = {
    # Two class means 1e-8 apart: their difference has 8 of float64's 16 digits, and so has NC1.
    "near_duplicates_float64": {
        "nc1": 1e-7,
        "nc1_cdnv": 1e-7,
        "nc1_cdnv_directional": 1e-7,
        "vci": 1e-7,
        "separation_fuzziness": 1e-7,
        "gnc2_log_energy": 1e-8,
        "mse_l_nc1": 1e-7,
        "mse_l_perp": 1e-8,
        "mse_l_nc23": 1e-7,
    },
}


# -- the naive twin --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_metric_agrees_with_the_naive_twin(case: Case) -> None:
    assert_agree(
        fast(case, metrics="all"),
        naive(case, metrics="all"),
        rtol=RELATIVE[case.features.dtype],
        unsure=unsure(case),
        loose=LOOSE.get(case.name),
    )


#: In double precision, where not 1e-9.
LOOSE_DOUBLE = {
    # The rounding to float32 has become signal: directions of 1e-8 of the others, inverted twice.
    "bottleneck": 1e-3,
    # One sample's variance is 1e12 times the rest's, which is what is left of their difference.
    "outlier_first_1e+02": 1e-8,
    "outlier_first_1e+04": 1e-5,
}


@pytest.mark.parametrize("case", [c for c in CASES if c.features.dtype == torch.float32], ids=str)
def test_every_metric_agrees_with_the_naive_twin_in_double_precision_too(case: Case) -> None:
    double = replace(
        case,
        features=case.features.double(),
        weight=None if case.weight is None else case.weight.double(),
        bias=None if case.bias is None else case.bias.double(),
    )
    assert_agree(
        fast(double, metrics="all"),
        naive(double, metrics="all"),
        rtol=LOOSE_DOUBLE.get(case.name, RELATIVE[torch.float64]),
        unsure=unsure(double),
    )


@pytest.mark.parametrize("pair", list(train_and_validation()), ids=lambda pair: str(pair[1]))
def test_validation_decides_by_the_train_means_and_keeps_its_own_geometry(
    pair: tuple[Case, Case],
) -> None:
    train, validation = pair
    reference = (array(train.features), array(train.labels))
    train_moments = ClassMoments(10).update(train.features, train.labels)
    got = fast(validation, reference=train_moments)
    assert_agree(
        got,
        naive(validation, reference=reference),
        rtol=1e-5,
        unsure=unsure(validation, reference=reference),
    )
    alone = fast(validation)
    own = set(METRIC_NAMES) - {"ncc_accuracy", "nc4_disagreement"}
    assert {name: got[name] for name in own} == {name: alone[name] for name in own}


def test_train_means_far_from_those_of_validation_decide() -> None:
    case = BY_NAME["noisy"]
    train_labels = (case.labels + 1) % 10  # what train calls 4 is 3 here
    swapped = ClassMoments(10).update(case.features, train_labels)
    got = fast(case, reference=swapped)
    want = naive(case, reference=(array(case.features), array(train_labels)))
    assert_agree(got, want, rtol=1e-5, unsure=unsure(case))
    assert fast(case)["ncc_accuracy"] > 0.9
    assert got["ncc_accuracy"] < 0.1
    assert got["nc4_disagreement"] > 0.9


@pytest.mark.parametrize("name", ["noisy", "offset_1e-05", "noisy_float64", "no_bias"])
def test_numpy_input_gives_the_same_numbers_as_torch(name: str) -> None:
    case = BY_NAME[name]
    assert fast(case) == fast(
        case,
        features=array(case.features),
        labels=array(case.labels),
        weight=array(case.weight),
        bias=array(case.bias),
    )


def exact_logits(case: Case) -> Tensor:
    assert case.weight is not None
    scores = case.features.double() @ case.weight.double().T
    return scores if case.bias is None else scores + case.bias.double()


@pytest.mark.parametrize("name", ["noisy", "missing_several", "noisy_float64", "relu"])
def test_given_logits_stand_for_those_of_the_classifier(name: str) -> None:
    case = BY_NAME[name]
    got = fast(case, logits=exact_logits(case))
    assert_agree(got, naive(case), rtol=RELATIVE[case.features.dtype])
    alone = fast(case, weight=None, bias=None, logits=exact_logits(case))
    assert alone == {k: v for k, v in got.items() if k not in CLASSIFIER}


def test_given_logits_win_over_the_classifier() -> None:
    case = BY_NAME["noisy"]
    got = fast(case, logits=torch.zeros(500, 10))
    assert got["error"] == pytest.approx(0.9)
    assert got["cross_entropy"] == pytest.approx(math.log(10), rel=1e-6)
    assert got["nc4_disagreement"] == pytest.approx(0.9)


@pytest.mark.filterwarnings("ignore:nc1 has fallen below")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["noisy", "collapsed_1e-03", "near_duplicates", "relu"])
def test_half_precision_features_are_read_as_the_numbers_they_are(
    name: str, dtype: torch.dtype
) -> None:
    case = BY_NAME[name]
    rounded = case.features.to(dtype)
    same = replace(case, features=rounded.float())
    got = fast(case, features=rounded)
    want = naive(same, feature_eps=torch.finfo(dtype).eps)
    assert_agree(got, want, rtol=1e-5, unsure=unsure(same))
    assert got["feature_dtype"] == {torch.float16: 11, torch.bfloat16: 8}[dtype]


def test_without_classifier_its_metrics_are_absent_also_with_a_single_class() -> None:
    for case in (BY_NAME["no_classifier"], replace(BY_NAME["one_present"], weight=None, bias=None)):
        assert set(fast(case)) == set(METRIC_NAMES) - CLASSIFIER - {"nc4_disagreement"}


def test_equal_classifier_rows_have_no_centred_duality_in_double_precision_either() -> None:
    case = BY_NAME["noisy_float64"]
    row = torch.rand(32, dtype=torch.float64, generator=seeded(0)) / 3
    got = fast(case, weight=row.repeat(10, 1))
    assert math.isnan(got["nc3_self_duality_centered"])
    assert got["w_mean_ratio"] == pytest.approx(1, rel=1e-12)


# -- splits of a single class ----------------------------------------------------------------------


def test_a_split_of_one_class_is_still_decided_by_the_train_means() -> None:
    train, own = BY_NAME["no_signal"], BY_NAME["no_signal"].labels == 3
    one = replace(train, features=train.features[own], labels=train.labels[own])
    got = fast(one, reference=ClassMoments(5).update(train.features, train.labels))
    want = naive(one, reference=(array(train.features), array(train.labels)))
    assert_agree(got, want, rtol=1e-5)
    assert 0 < got["ncc_accuracy"] < 1
    assert 0 < got["nc4_disagreement"] < 1


def test_one_train_class_decides_nothing() -> None:
    case = BY_NAME["noisy"]
    own = case.labels == 3
    got = fast(case, reference=ClassMoments(10).update(case.features[own], case.labels[own]))
    assert math.isnan(got["ncc_accuracy"])
    assert math.isnan(got["nc4_disagreement"])


@pytest.mark.parametrize(
    ("own", "other"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str
)
def test_train_means_of_another_precision_decide_alike(
    own: torch.dtype, other: torch.dtype
) -> None:
    case = BY_NAME["noisy"]
    train = ClassMoments(10).update(case.features.to(other), case.labels)
    got = fast(case, features=case.features.to(own), reference=train)
    assert got["ncc_accuracy"] == fast(case)["ncc_accuracy"]
    assert got["nc4_disagreement"] == fast(case)["nc4_disagreement"]


# -- closed forms ----------------------------------------------------------------------------------


def test_exact_etf_has_every_metric_at_its_collapse_value() -> None:
    got = fast(BY_NAME["exact_etf"])
    for name, value in got.items():
        collapse = CATALOGUE[name].collapse
        if collapse is not None:
            assert value == pytest.approx(collapse, abs=1e-13), name
    assert (got["ncc_accuracy"], got["error"], got["nc1_rank"]) == (1, 0, 9)


def test_means_and_classifier_in_one_orthogonal_frame_have_their_closed_forms() -> None:
    got = fast(BY_NAME["orthogonal_frame"])
    distance = math.sqrt(2 - 2 * math.sqrt(9 / 10))
    assert got["nc3_self_duality"] == pytest.approx(distance, rel=1e-12)
    assert got["nc3_self_duality_sq"] == pytest.approx(distance**2, rel=1e-12)
    assert got["nc3_self_duality_centered"] == pytest.approx(0, abs=1e-14)
    assert got["w_mean_ratio"] == pytest.approx(1 / math.sqrt(10), rel=1e-12)
    assert got["nc2_etf_w"] == pytest.approx(distance, rel=1e-12)
    assert got["nc2_max_angle_w"] == pytest.approx(1 / 9, rel=1e-12)
    assert got["nc2_etf_means"] == pytest.approx(0, abs=1e-13)


def test_nc1_of_two_classes_on_a_line_is_the_variance_over_the_squared_gap() -> None:
    features = torch.tensor([[-1.5], [-0.5], [0.75], [1.25]], dtype=torch.float64)
    report = measure_collapse(features, torch.tensor([0, 0, 1, 1]))
    # means −1 and 1, variances 1/4 and 1/16; ½ Ave‖·‖² / s² with Σ_B = 1
    assert report.nc1 == pytest.approx((1 / 4 + 1 / 16) / 2 / 2, rel=1e-14)
    assert report.nc1_quotient == pytest.approx((1 / 4 + 1 / 16) / 2, rel=1e-14)
    assert report.within_in_span_frac == pytest.approx(1, rel=1e-14)


def test_random_features_have_the_values_of_no_structure() -> None:
    count, num_classes, dim, draws = 10, 5, 200, 8
    labels = torch.arange(num_classes).repeat_interleave(count)
    reports = [
        measure_collapse(torch.randn(len(labels), dim, generator=seeded(i)), labels)
        for i in range(draws)
    ]

    def average(name: str) -> float:
        return sum(report.values[name] for report in reports) / draws

    nc1 = (count - 1) * (num_classes - 1) / (dim - num_classes)
    assert average("nc1") == pytest.approx(nc1, rel=0.05)
    # tr Σ_W / tr Σ_B: (1 − 1/n) over (1/n)(1 − 1/K)
    quotient = (count - 1) / (1 - 1 / num_classes)
    assert average("nc1_quotient") == pytest.approx(quotient, rel=0.05)
    assert average("within_in_span_frac") == pytest.approx((num_classes - 1) / dim, rel=0.1)


def test_random_classifier_is_near_no_etf_and_no_means() -> None:
    dim, num_classes = 2000, 10
    weight = torch.randn(num_classes, dim, generator=seeded(0))
    report = measure_collapse(
        simplex_etf(num_classes, dim, seeded(1)).repeat(2, 1),
        torch.arange(num_classes).repeat(2),
        weight,
    )
    assert report.nc3_self_duality == pytest.approx(math.sqrt(2), rel=0.05)
    assert report.nc2_equinorm_w == pytest.approx(1 / math.sqrt(2 * dim), rel=0.5)
    assert report.nc2_equiangular_std_w == pytest.approx(1 / math.sqrt(dim), rel=0.5)
    assert report.w_mean_ratio == pytest.approx(1 / math.sqrt(num_classes), rel=0.1)


# -- invariances -----------------------------------------------------------------------------------


def changed(case: Case, change: str) -> dict[str, Any]:
    """The case's features, labels, weight and logits after a change that should not matter."""
    assert case.weight is not None
    features, labels, weight = case.features.double(), case.labels, case.weight.double()
    logits, dim = exact_logits(case), features.shape[1]
    if change == "translation":
        features = features + torch.linspace(-2, 2, dim)
    elif change == "scale":
        features, weight = features * 7.3, weight * 0.11
    elif change == "rotation":
        turn = orthogonal_frame(dim, dim, seeded(0))
        features, weight = features @ turn, weight @ turn
    elif change == "classes":
        order = torch.randperm(case.num_classes, generator=seeded(0))
        labels, weight, logits = order.argsort()[labels], weight[order], logits[:, order]
    elif change == "order":
        order = torch.randperm(len(labels), generator=seeded(0))
        features, labels, logits = features[order], labels[order], logits[order]
    return {"features": features, "labels": labels, "weight": weight, "logits": logits}


@pytest.mark.parametrize("change", ["translation", "scale", "rotation", "classes", "order"])
@pytest.mark.parametrize(
    "name", ["noisy_float64", "imbalanced", "missing_several", "three_classes"]
)
def test_nothing_changes_with_translation_scale_rotation_or_order(name: str, change: str) -> None:
    case = BY_NAME[name]
    before, after = (
        flat(measure_collapse(**changed(case, how), num_classes=case.num_classes))
        for how in ("", change)
    )
    moving = {
        "translation": {"feature_norm_mean", "sk_breaking_logits"},  # the bias does not follow
        "scale": {"feature_norm_mean", "w_norm"},
    }
    for name_of_length in moving.get(change, ()):
        assert after.pop(name_of_length) != before.pop(name_of_length)
    assert_agree(after, before, rtol=1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30], ids=str)
def test_size_of_float32_features_does_not_matter(size: float) -> None:
    case = BY_NAME["no_signal"]
    got = fast(case, features=(case.features.double() * size).float(), logits=exact_logits(case))
    want = fast(case, logits=exact_logits(case))
    assert got.pop("feature_norm_mean") == pytest.approx(want.pop("feature_norm_mean") * size)
    # The logits at the class means hold the bias, which is not scaled.
    assert got.pop("sk_breaking_logits") != want.pop("sk_breaking_logits")
    # rounding to float32 once more, on features that are all noise
    assert_agree(got, want, rtol=1e-5, unsure=0.004)


def test_nc1_changes_under_a_random_invertible_map_and_the_decisions_too() -> None:
    case = BY_NAME["noisy_float64"]
    stretch = torch.randn(32, 32, dtype=torch.float64, generator=seeded(0))
    ratio = fast(case, features=case.features @ stretch)["nc1"] / fast(case)["nc1"]
    assert abs(math.log(ratio)) > 0.05


# -- paths that only large problems take -----------------------------------------------------------


def many_classes() -> Case:
    return cloud("tall", "K = 40 in d = 4", random_means(40, 4, seeded(0)), 6, spread=0.05)


def test_many_classes_in_few_dimensions_agree_with_the_twin() -> None:
    case = many_classes()
    assert_agree(fast(case), naive(case), rtol=1e-5, unsure=unsure(case))
    assert fast(case)["nc1_rank"] == 4


@pytest.mark.parametrize("case", [many_classes(), BY_NAME["imbalanced"]], ids=str)
def test_block_sizes_do_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fast(case)
    monkeypatch.setattr(geometry, "BLOCK_ROWS", 7)
    monkeypatch.setattr(tensors, "block_rows", lambda *_: 7)
    # sums and products in another order, in float32
    assert_agree(fast(case), before, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["noisy", "offset_1e-05", "missing_several", "huge", "two_present"]
)
def test_decisions_without_the_table_of_distances_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME[name]
    before = fast(case)
    monkeypatch.setattr(centres, "TABLE_CLASSES", 1)
    assert fast(case) == before


def test_two_looks_at_batches_agree_with_one_at_all() -> None:
    case = BY_NAME["imbalanced"]
    batches = list(zip(case.features.split(50), case.labels.split(50), strict=True))
    got = flat(measure_batches(batches, case.weight, case.bias))
    assert_agree(got, fast(case), rtol=1e-6)
