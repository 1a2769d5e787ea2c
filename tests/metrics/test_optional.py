"""What has to be asked for: conventions, opt-in metrics and their choices, against the twin."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from agreement import RELATIVE, array, assert_agree, fast, naive, unsure
from cases import BY_NAME, Case, cloud, random_means, seeded, train_and_validation
from ncmonitor import ClassMoments, InputError, measure_batches, measure_collapse
from ncmonitor.catalogue import CATALOGUE, GROUPS, METRIC_NAMES, METRICS, chosen
from ncmonitor.measurement.settings import Settings
from reference_optional import MSE, convention_metrics, optional_metrics, per_class_nc1

CHANGED = {  # by a convention that the twin knows
    "per_sample": {
        *("nc1", "nc1_quotient", "within_in_span_frac", "nc2_equinorm_means", "nc2_etf_means"),
        *("nc2_equiangular_std_means", "nc2_max_angle_means", "nc3_self_duality", "nc1_rank"),
        *("nc3_self_duality_sq", "nc3_self_duality_centered", "s_min_ratio", "feature_norm_mean"),
    },
    "papyan_code": {
        *("nc1", "nc1_quotient", "within_in_span_frac", "nc2_equinorm_means", "nc2_equinorm_w"),
        *("nc3_self_duality", "nc3_self_duality_centered"),
    },
}


def given(case: Case) -> dict[str, Any]:
    names = ("features", "labels", "weight", "bias")
    return {name: array(getattr(case, name)) for name in names}


def doubled(case: Case) -> Case:
    """The same numbers in double precision."""
    assert case.weight is not None
    assert case.bias is not None
    return replace(
        case,
        features=case.features.double(),
        weight=case.weight.double(),
        bias=case.bias.double(),
    )


# -- conventions -----------------------------------------------------------------------------------

CONVENTION_CASES = [
    *("imbalanced", "missing_class", "missing_several", "one_singleton", "all_singletons"),
    *("two_present", "one_present", "noisy", "noisy_float64", "offset_1e-02", "offset_float64"),
    *("collapsed_1e-05", "bottleneck", "more_classes_than_features", "dead_class", "no_means"),
    *("zero_weight", "equal_rows", "no_classifier"),
]


@pytest.mark.parametrize("convention", CHANGED)
@pytest.mark.parametrize("name", CONVENTION_CASES)
def test_a_convention_agrees_with_the_twin(name: str, convention: str) -> None:
    case = BY_NAME[name]
    other = convention_metrics(**given(case), convention=convention)
    if convention == "per_sample":
        norms = case.features.double().norm(dim=1)
        other["feature_norm_mean"] = float(norms.mean())
    want = naive(case) | other
    got = fast(case, convention=convention)
    assert set(other) <= CHANGED[convention]
    assert_agree(got, want, rtol=RELATIVE[case.features.dtype], unsure=unsure(case))


def test_a_convention_changes_what_it_says_and_not_a_bit_of_the_rest() -> None:
    case = BY_NAME["imbalanced"]
    balanced = fast(case, metrics="all")
    for convention, names in CHANGED.items():
        other = fast(case, metrics="all", convention=convention)
        same = {name for name in balanced if other[name] == balanced[name]}
        assert not names & same - {"nc1_rank"}
        # Σ_B of the samples has another basis of the same span: rounded otherwise, no more.
        rounded = set(balanced) - names - same
        spread = {"nc1_cdnv_directional", "separation_fuzziness"}
        assert rounded <= (spread if convention == "per_sample" else set())
        for name in rounded:
            assert other[name] == pytest.approx(balanced[name], rel=1e-6)


def test_conventions_are_one_where_classes_are_equally_large() -> None:
    case = BY_NAME["noisy_float64"]
    assert_agree(fast(case, convention="per_sample"), fast(case), rtol=1e-12)
    demo, balanced = fast(case, convention="papyan_code"), fast(case)
    assert demo["nc1"] == pytest.approx(10 * balanced["nc1"], rel=1e-14)
    for name in ("nc2_equinorm_means", "nc2_equinorm_w"):
        assert demo[name] == pytest.approx(math.sqrt(10 / 9) * balanced[name], rel=1e-14)
    for name in ("nc3_self_duality", "nc3_self_duality_centered"):
        assert demo[name] == pytest.approx(balanced[name] ** 2, rel=1e-14)


def notebook(case: Case) -> dict[str, float]:
    """What the notebook of Papyan, Han & Donoho prints, as it computes it."""
    assert case.weight is not None
    features, labels, rows, count = case.features, case.labels, case.weight, case.num_classes
    means = torch.stack([features[labels == c].mean(0) for c in range(count)])
    within = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for c in range(count):
        centred = features[labels == c] - means[c]
        within += (centred[:, :, None] @ centred[:, None, :]).sum(0)
    within /= len(features)
    means_ = means - means.mean(0)
    values, vectors = torch.linalg.eigh(means_.T @ means_ / count)
    values, vectors = values[-(count - 1) :], vectors[:, -(count - 1) :]
    inverse = vectors @ torch.diag(1 / values) @ vectors.T

    def coherence(vectors: Tensor) -> float:
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        gram = unit @ unit.T + 1 / (count - 1)
        gram -= torch.diag(gram.diagonal())
        return float(gram.abs().sum() / (count * (count - 1)))

    lengths, row_lengths = means_.norm(dim=1), rows.norm(dim=1)
    apart = rows.T / rows.norm() - means_.T / means_.norm()
    return {
        "nc1": float(torch.trace(within @ inverse)),
        "nc2_equinorm_means": float(torch.std(lengths) / lengths.mean()),
        "nc2_equinorm_w": float(torch.std(row_lengths) / row_lengths.mean()),
        "nc2_max_angle_means": coherence(means_),
        "nc2_max_angle_w": coherence(rows),
        "nc3_self_duality": float(apart.norm() ** 2),
    }


@pytest.mark.parametrize("name", ["imbalanced", "one_singleton", "noisy_float64", "three_classes"])
def test_papyan_code_prints_what_the_notebook_does(name: str) -> None:
    case = doubled(BY_NAME[name])
    got = fast(case, convention="papyan_code")
    for metric, value in notebook(case).items():
        assert got[metric] == pytest.approx(value, rel=1e-9), metric


def test_the_report_says_which_convention_it_follows() -> None:
    case = BY_NAME["imbalanced"]
    for convention in ("per_class", "per_sample", "papyan_code"):
        report = measure_collapse(case.features, case.labels, convention=convention)
        assert report.convention == convention
        assert f"({convention})" in str(report)
    with pytest.raises(InputError, match=r"got 'samples'; did you mean 'per_sample'\?"):
        measure_collapse(case.features, case.labels, convention="samples")


# -- one number per class --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["noisy", "imbalanced", "missing_several", "one_singleton", "offset_float64"]
)
def test_nc1_of_each_class_agrees_with_the_twin_and_averages_to_nc1(name: str) -> None:
    case = BY_NAME[name]
    report = measure_collapse(
        case.features, case.labels, num_classes=case.num_classes, metrics=["nc1_per_class"]
    )
    values, want = report.nc1_per_class, per_class_nc1(array(case.features), array(case.labels))
    assert (values.shape, values.dtype) == ((case.num_classes,), torch.float64)
    assert set(values.isfinite().nonzero().squeeze(1).tolist()) == set(want)
    rtol = RELATIVE[case.features.dtype]
    for c, value in want.items():
        assert float(values[c]) == pytest.approx(value, rel=rtol, abs=1e-28), c
    assert float(values.nanmean()) == pytest.approx(report.nc1, rel=1e-14)


@pytest.mark.parametrize("name", ["all_singletons", "no_means", "one_present"])
def test_nc1_of_each_class_is_nan_where_nc1_is(name: str) -> None:
    case = BY_NAME[name]
    report = measure_collapse(case.features, case.labels, metrics=["nc1_per_class"])
    assert report.nc1_per_class.isnan().all()


@pytest.mark.parametrize("count", [3, 100, 101])
def test_numbers_per_class_are_spelled_out_up_to_100_classes(count: int) -> None:
    case = cloud("wide", "many classes", random_means(count, 16, seeded(0)), 2)
    plain = measure_collapse(case.features, case.labels)
    report = measure_collapse(case.features, case.labels, metrics=["nc1_per_class"])
    values = report.vectors["nc1_per_class"]
    assert values.shape == (count,)
    spelled = {f"nc1_per_class/{c}": float(values[c]) for c in range(count if count <= 100 else 0)}
    assert report.as_dict() == plain.as_dict() | spelled
    prefixed = {f"nc/{name}": value for name, value in report.as_dict().items()}
    assert report.as_dict("nc/") == prefixed
    assert "nc1_per_class" not in plain.vectors


# -- super-classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noisy", "imbalanced", "missing_several", "noisy_float64"])
@pytest.mark.parametrize("blocks", [[0, 0, 1, 1, 2, 2, 2, 0, 1, 7], [-3] * 4 + [5] * 6])
def test_superclasses_agree_with_the_twin(name: str, blocks: list[int]) -> None:
    case, wanted = BY_NAME[name], ["sk_residual_block"]
    got = fast(case, metrics=wanted, superclasses=blocks)["sk_residual_block"]
    want = optional_metrics(**given(case), superclasses=blocks)["sk_residual_block"]
    assert got == pytest.approx(want, rel=RELATIVE[case.features.dtype])
    assert got != fast(case, metrics=wanted)["sk_residual_block"]
    for same in (tuple(blocks), torch.tensor(blocks), torch.tensor(blocks).numpy()):
        assert fast(case, superclasses=same)["sk_residual_block"] == got  # they ask for it


def test_blocks_of_one_class_leave_nothing_and_a_single_block_everything() -> None:
    case = BY_NAME["noisy_float64"]
    alone = fast(case, metrics="symmetry", superclasses=list(range(10)))
    together = fast(case, metrics="symmetry", superclasses=[4] * 10)
    assert alone["sk_residual_block"] == pytest.approx(0, abs=1e-15)
    whole = together["sk_breaking_means"]
    assert together["sk_residual_block"] == pytest.approx(whole, rel=1e-12)


def test_without_superclasses_the_blocks_are_minority_and_majority() -> None:
    case = BY_NAME["imbalanced"]  # 500 ... 3 samples: √(500·3) = 38.7
    rare = [int(count < 38.7) for count in case.labels.bincount().tolist()]
    assert sum(rare) == 5
    got = fast(case, metrics="symmetry")["sk_residual_block"]
    assert got == fast(case, metrics="symmetry", superclasses=rare)["sk_residual_block"]


def test_superclasses_that_do_not_fit_are_refused() -> None:
    case = BY_NAME["noisy"]
    with pytest.raises(InputError, match=r"for each of the 10 classes, got 3"):
        fast(case, superclasses=[0, 1, 1])
    with pytest.raises(InputError, match=r"for each of the 10 classes, got 11"):
        measure_batches([(case.features, case.labels)], num_classes=10, superclasses=[0] * 11)
    with pytest.raises(InputError, match="must be one whole number per class, got 5"):
        fast(case, superclasses=5)
    with pytest.raises(InputError, match="must be one whole number per class"):
        fast(case, superclasses=["vehicle"] * 10)


@pytest.mark.parametrize("wrong", [0.5, math.inf], ids=str)
def test_superclasses_that_are_no_whole_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="must be one whole number per class"):
        fast(BY_NAME["noisy"], superclasses=[wrong] + [0] * 9)


# -- the squared loss with weight decay ------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
@pytest.mark.parametrize(
    "name",
    [
        *("noisy", "imbalanced", "missing_several", "one_singleton", "noisy_float64"),
        *("collapsed_1e-05", "offset_1e-02", "offset_float64", "bottleneck", "exact_etf"),
        *("more_classes_than_features", "two_classes", "no_bias", "zero_weight"),
    ],
)
def test_the_squared_loss_with_decay_agrees_with_the_twin_and_sums_up(
    name: str, ridge: float
) -> None:
    case, rtol = BY_NAME[name], RELATIVE[BY_NAME[name].features.dtype]
    got = fast(case, metrics="loss_aware", ridge=ridge)
    want = optional_metrics(**given(case), ridge=ridge)
    for metric in MSE:
        assert got[metric] == pytest.approx(want[metric], rel=rtol, abs=1e-15), metric
    parts = sum(got[metric] for metric in MSE[:3])
    assert parts == pytest.approx(squared_loss(case, ridge), rel=rtol)
    assert got["central_path_dist"] == pytest.approx(got["mse_l_perp"] / parts, rel=1e-14)


def squared_loss(case: Case, ridge: float) -> float:
    """``½ Ave‖Wh + b − e_y‖² + (λ/2)(‖W‖² + ‖b‖²)``, every present class weighing the same."""
    assert case.weight is not None
    present = case.labels.unique()
    rows = case.weight.double()[present]
    bias = torch.zeros(len(rows)) if case.bias is None else case.bias.double()[present]
    which = torch.searchsorted(present, case.labels)
    target = one_hot(which, len(present))
    errors = (case.features.double() @ rows.T + bias - target).square().sum(1)
    fit = torch.stack([errors[which == c].mean() for c in range(len(present))]).mean()
    return float(fit + ridge * (rows.square().sum() + bias.square().sum())) / 2


def test_a_ridge_that_is_no_weight_decay_is_refused() -> None:
    for ridge in (-1e-9, math.nan, math.inf, "1e-3", None):
        with pytest.raises(InputError, match=f"a number and at least 0, got {ridge!r}: it is λ"):
            fast(BY_NAME["noisy"], ridge=ridge)


# -- margins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", list(train_and_validation()), ids=lambda pair: str(pair[1]))
def test_margins_are_those_of_the_train_means(pair: tuple[Case, Case]) -> None:
    train, validation = pair
    moments = ClassMoments(10).update(train.features, train.labels)
    got = fast(validation, reference=moments, metrics=["ncc_margin"])["ncc_margin"]
    split = (array(train.features), array(train.labels))
    want = optional_metrics(**given(validation), reference=split)["ncc_margin"]
    assert got == pytest.approx(want, rel=1e-5)
    assert abs(got - fast(validation, metrics=["ncc_margin"])["ncc_margin"]) > 1e-4


def test_one_train_class_leaves_no_margin() -> None:
    case = BY_NAME["noisy"]
    own = case.labels == 3
    moments = ClassMoments(10).update(case.features[own], case.labels[own])
    assert math.isnan(fast(case, reference=moments, metrics=["ncc_margin"])["ncc_margin"])


# -- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["vci", ["vci"], ("vci", "nc0_k"), "imbalance", "nc1", "all"])
def test_what_is_chosen_is_there_in_the_order_of_the_catalogue(choice: Any) -> None:
    case = BY_NAME["imbalanced"]
    words = {choice} if isinstance(choice, str) else set(choice)
    wanted = [
        q.name
        for q in METRICS
        if q.default or (words & {q.name, q.group, "all"} and q.needs != "targets")
    ]
    report = measure_collapse(case.features, case.labels, case.weight, case.bias, metrics=choice)
    assert [*report.values] == [name for name in wanted if not CATALOGUE[name].vector]
    assert [*report.vectors] == [name for name in wanted if CATALOGUE[name].vector]
    assert chosen(choice) == tuple(wanted) == Settings.of(choice).names


def test_the_default_is_the_default_under_every_name() -> None:
    spelled_out = [name for name in METRIC_NAMES if name != "nc1"]
    every: list[Any] = ["default", ["default"], [], (), ["nc1_quotient"], spelled_out]
    for choice in every:
        assert chosen(choice) == METRIC_NAMES
    assert chosen(["all", "vci"]) == tuple(q.name for q in METRICS if q.needs != "targets")


def test_a_name_that_is_a_metric_and_a_group_stands_for_the_group() -> None:
    own = [q.name for q in METRICS if q.default or q.group == "nc1"]
    assert chosen("nc1") == tuple(own)
    assert {"vci", "nc1_cdnv"} <= set(own)


@pytest.mark.parametrize("name", ["imbalanced", "offset_1e-05", "missing_several", "dead_class"])
def test_asking_for_more_changes_no_bit_of_the_default(name: str) -> None:
    case = BY_NAME[name]
    default, everything = fast(case), fast(case, metrics="all")
    kept = {metric: everything[metric] for metric in default}
    assert list(map(repr, kept.values())) == list(map(repr, default.values()))  # nan is nan
    for group in GROUPS[:-1]:
        some = fast(case, metrics=[group])
        assert all(repr(some[metric]) == repr(everything[metric]) for metric in some)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("vcl", r"but got 'vcl'; did you mean 'vci'\?"),
        (["nc1", "imbalence"], r"but got 'imbalence'; did you mean 'imbalance' or"),
        ("zzz", "but got 'zzz'; `ncmonitor metrics` lists them"),
        ([None], "but got None; `ncmonitor metrics` lists them"),
        ("", "but got ''"),
        (["nc1_per_class/3"], "but got 'nc1_per_class/3'; did you mean 'nc1_per_class'"),
        ("tpt_active", "but got 'tpt_active'"),
        ("regression", r"needs real-valued targets: use ncmonitor\.measure_regression\("),
        (["nrc2"], r"'nrc2' is for regression .* use ncmonitor\.measure_regression\("),
    ],
)
def test_what_nobody_knows_is_refused_with_what_is_close(choice: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fast(BY_NAME["noisy"], metrics=choice)


@pytest.mark.parametrize("choice", [None, 5])
def test_what_is_no_choice_at_all_is_refused_in_words(choice: Any) -> None:
    with pytest.raises(InputError, match="metrics= takes"):
        fast(BY_NAME["noisy"], metrics=choice)


def test_what_was_not_asked_for_says_how_to_ask() -> None:
    case = BY_NAME["noisy"]
    report = measure_collapse(case.features, case.labels)
    with pytest.raises(AttributeError, match=r'ask for it with metrics=\["vci"\]'):
        _ = report.vci
