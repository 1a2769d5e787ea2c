"""What may be given: tokens, labels to leave out, precisions, devices, many classes, regression."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from agreement import array, assert_agree, fast, flat
from cases import BY_NAME, cloud, random_means, seeded
from ncmonitor import (
    ClassMoments,
    CollapseReport,
    InputError,
    measure_batches,
    measure_collapse,
    measure_regression,
)
from ncmonitor.geometry import pairs
from ncmonitor.inputs import labels as _labels
from ncmonitor.inputs import tensors
from ncmonitor.metrics import class_symmetry, duality, equiangularity
from reference_optional import regression_metrics

NOISY = BY_NAME["noisy"]
X, Y = NOISY.features, NOISY.labels  # (500, 32), (500,)
W, B = cast("Tensor", NOISY.weight), cast("Tensor", NOISY.bias)
Z = X @ W.T + B


def bits(report: CollapseReport) -> dict[str, str]:
    """Every number, to the last digit; nan is nan."""
    values = report.as_dict() | {"error": report.error, "cross_entropy": report.cross_entropy}
    return {name: repr(value) for name, value in values.items()} | {"n": str(report.samples)}


# -- tokens and labels to leave out ----------------------------------------------------------------


def ignoring(labels: Tensor, mark: int = -100) -> Tensor:
    """Every seventh label replaced by the mark, the first of all included."""
    return torch.where(torch.arange(labels.numel()).view(labels.shape) % 7 == 0, mark, labels)


@pytest.mark.parametrize("mark", [-100, -1, 255, 3], ids=str)
@pytest.mark.parametrize("shape", [(500,), (20, 25), (5, 4, 25)], ids=str)
@pytest.mark.parametrize("logits", [False, True], ids=["weight", "logits"])
def test_tokens_are_their_samples_without_those_to_leave_out(
    shape: tuple[int, ...], mark: int, logits: bool
) -> None:
    labels = ignoring(Y, mark)
    kept = labels != mark
    how: dict[str, Any] = {"metrics": "all", "superclasses": [0] * 5 + [1] * 5}
    head: dict[str, Any] = {} if logits else {"weight": W, "bias": B}
    x, y, z = (t.view(*shape, *t.shape[1:]) for t in (X, labels, Z))
    flat_x, flat_z = X[kept], Z[kept]  # held: a report remembers them weakly
    given: dict[str, Any] = {"logits": z} if logits else {}
    plain: dict[str, Any] = {"logits": flat_z} if logits else {}
    want = measure_collapse(flat_x, Y[kept], num_classes=10, **head, **plain, **how)
    assert want.samples < 430
    how["ignore_index"] = mark
    got = measure_collapse(x, y, num_classes=10, **head, **given, **how)
    assert bits(got) == bits(want)
    assert bits(got.null(1)) == bits(want.null(1))
    batch = (x, y, z) if logits else (x, y)
    assert bits(measure_batches([batch], num_classes=10, **head, **how)) == bits(want)


@pytest.mark.parametrize("mark", [-100, 255])
def test_moments_of_tokens_are_those_of_their_samples(mark: int) -> None:
    labels = ignoring(Y, mark)
    kept = labels != mark
    got = ClassMoments(10, scatter=True, ignore_index=mark)
    got.update(X[:250].view(10, 25, 32), labels[:250].view(10, 25))
    got.update(X[250:].view(10, 25, 32), labels[250:].view(10, 25))
    want = ClassMoments(10, scatter=True)
    want.update(X[:250][kept[:250]], Y[:250][kept[:250]])
    want.update(X[250:][kept[250:]], Y[250:][kept[250:]])
    for name in ("counts", "class_means", "class_variances", "feature_norms", "within"):
        assert getattr(got, name).equal(getattr(want, name)), name


def test_the_number_of_classes_is_found_among_the_labels_that_count() -> None:
    labels = ignoring(Y % 4, 255)
    report = measure_collapse(X.view(50, 10, 32), labels.view(50, 10), ignore_index=255)
    assert report.moments.num_classes == 4
    logits = Z[:, :6].view(50, 10, 6)
    tokens = measure_collapse(
        X.view(50, 10, 32), labels.view(50, 10), logits=logits, ignore_index=255
    )
    assert tokens.moments.num_classes == 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16], ids=str)
def test_labels_of_every_integer_type_name_the_same_classes(dtype: torch.dtype) -> None:
    # In uint8, 156 and −100 are one number.
    labels = torch.arange(157).repeat(2)
    features = torch.randn(314, 5, generator=seeded(0))
    assert measure_collapse(features, labels.to(dtype)).moments.num_classes == 157


def test_all_samples_left_out_is_nothing_to_measure() -> None:
    nothing = torch.full_like(Y, -100)
    for given in ({"weight": W}, {"num_classes": 10}, {}):
        with pytest.raises(InputError, match="nothing to measure: expected at least one sample"):
            measure_collapse(X, nothing, **given)
        with pytest.raises(InputError, match="nothing to measure: expected at least one sample"):
            measure_collapse(X.view(50, 10, 32), nothing.view(50, 10), **given)


# -- what is refused -------------------------------------------------------------------------------

META = torch.device("meta")

#: What was given, and the three parts of the answer: expected, got, what to do.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "features_integer": (
        {"features": X.long()},
        ("features must be floating point", "have dtype torch.int64", "pass features.float()"),
    ),
    "features_bool": ({"features": X > 0}, ("floating point", "torch.bool", "features.float()")),
    "labels_float": (
        {"labels": Y.float()},
        ("labels must be integers", "dtype torch.float32", "pass class indices (labels.long())"),
    ),
    "labels_bool": (
        {"labels": Y > 4},
        ("labels must be integers", "dtype torch.bool", "pass class indices (labels.long())"),
    ),
    "labels_negative": (
        {"labels": torch.where(Y == 3, -2, Y)},
        ("labels must not be negative", "one is -2", "pass ignore_index=-2 if it marks samples"),
    ),
    "labels_outside": (
        {"labels": Y + 2},
        ("labels must lie in [0, 10)", "one is 11", "pass num_classes=12 if the data has"),
    ),
    "labels_of_tokens": (
        {"features": X.view(50, 10, 32)},
        ("features must have shape (N, d)", "have shape (50, 10, 32)", "need labels (B, T), got"),
    ),
    "labels_transposed": (
        {"features": X.view(50, 10, 32), "labels": Y.view(10, 50)},
        ("must have shape (N, d)", "(50, 10, 32)", "need labels (B, T), got (10, 50)"),
    ),
    "one_class": (
        {"num_classes": 1, "weight": None, "bias": None},
        ("num_classes must be at least 2", "but is 1"),
    ),
    "one_row": ({"weight": W[:1], "bias": None, "labels": Y * 0}, ("at least 2", "but is 1")),
    "weight_shape": (
        {"weight": W.view(10, 4, 8)},
        ("weight must have shape (K, d)", "got (10, 4, 8)"),
    ),
    "weight_transposed": (
        {"weight": W.T, "bias": None},
        ("features of dimension 10 as weight has columns", "got 32"),
    ),
    "weight_integer": (
        {"weight": W.long()},
        ("weight must be floating point", "has dtype torch.int64", "pass weight.float()"),
    ),
    "bias_shape": (
        {"bias": B[:, None]},
        ("bias must have shape (10,) like the rows of weight", "got (10, 1)"),
    ),
    "logits_of_tokens": (
        {"features": X.view(50, 10, 32), "labels": Y.view(50, 10), "logits": Z[:, :9]},
        ("expected logits of shape (500, 10)", "got (500, 9)"),
    ),
    "features_elsewhere": (
        {"features": X.to(META)},
        ("features are on meta", "labels on cpu", "pass both on one device, e.g. labels.to("),
    ),
    "labels_elsewhere": (
        {"labels": Y.to(META)},
        ("features are on cpu", "labels on meta", "pass both on one device, e.g. labels.to("),
    ),
    "empty": ({"features": X[:0], "labels": Y[:0]}, ("expected at least one sample", "got none")),
    "nan": ({"features": X * math.nan}, ("features are not finite", "diverged, or the data holds")),
    "one_inf": (
        {"features": X.index_put((torch.tensor(77), torch.tensor(5)), torch.tensor(-math.inf))},
        ("features are not finite", "diverged, or the data holds"),
    ),
    "regression": ({"metrics": "regression"}, ("real-valued targets", "measure_regression(")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_with_what_to_do(name: str) -> None:
    changes, parts = REFUSED[name]
    given = {"features": X, "labels": Y, "weight": W, "bias": B} | changes
    with pytest.raises(InputError, match=".*".join(map(re.escape, parts))):
        measure_collapse(**given)


def test_one_hot_labels_are_told_apart_from_real_ones_without_a_classifier_too() -> None:
    # labels.long() would be wrong advice for one-hot labels.
    with pytest.raises(InputError, match=r"one-hot and soft labels have .* labels\.argmax\(1\)"):
        measure_collapse(X, torch.eye(10)[Y])


# -- the path of accelerators, taken on the CPU ----------------------------------------------------


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a switch: from then on the CPU is a device that must not be waited for."""
    return lambda: monkeypatch.setattr(tensors, "waits_for_nothing", lambda _: False)


@pytest.mark.parametrize("name", ["noisy", "imbalanced", "noisy_float64", "missing_several"])
@pytest.mark.parametrize("logits", [False, True], ids=["weight", "logits"])
def test_ignored_samples_that_stay_in_the_batch_change_nothing(
    name: str, logits: bool, accelerator: Callable[[], None]
) -> None:
    case = BY_NAME[name]
    assert case.weight is not None
    labels, train = ignoring(case.labels), BY_NAME[name].labels.roll(1)
    given: dict[str, Any] = {"metrics": "all", "superclasses": [0] * 5 + [1] * 5, "ridge": 0.1}
    given |= {"weight": case.weight, "bias": case.bias, "features": case.features}
    if logits:
        given["logits"] = case.features @ case.weight.T
    reference = ClassMoments(10).update(case.features, train)
    parts = list(zip(case.features.split(61), labels.split(61), strict=True))

    def everything() -> Iterator[CollapseReport]:
        yield (own := measure_collapse(**given, labels=labels))
        yield measure_collapse(**given, labels=labels, reference=reference)
        yield measure_batches(parts, case.weight, case.bias)
        yield own.null(2)

    before = list(everything())
    accelerator()
    kept = _labels.clean_batch(case.features, labels, 10)
    assert (len(kept.labels), int(kept.labels.max())) == (len(labels), 10)  # nothing is dropped
    after = list(everything())
    for one, two in zip(after, before, strict=True):
        assert_agree(flat(one), flat(two), rtol=1e-6)
        assert one.moments.counts.equal(two.moments.counts)
        assert one.samples == two.samples == len(labels) - len(labels[::7])


@pytest.mark.parametrize("value", [math.nan, 1e30], ids=str)
def test_what_ignored_samples_hold_does_not_matter(
    value: float, accelerator: Callable[[], None]
) -> None:
    # Padding that is not finite must not reach the sums, and a large one not the logits' origin.
    labels = ignoring(Y)
    features = X.masked_fill((labels == -100)[:, None], value)
    before = measure_collapse(features, labels, W, B, metrics="all")
    assert_agree(flat(before), flat(measure_collapse(X, labels, W, B, metrics="all")), rtol=0)
    accelerator()
    after = measure_collapse(features, labels, W, B, metrics="all")
    assert_agree(flat(after), flat(before), rtol=1e-6)


def test_padding_that_is_not_finite_leaves_the_scatter_alone(
    accelerator: Callable[[], None],
) -> None:
    # 0 · nan is nan: weighing such rows with 0 is not enough.
    accelerator()
    labels = ignoring(Y)
    features = X.masked_fill((labels == -100)[:, None], math.nan)
    moments = ClassMoments(10, scatter=True).update(features, labels)
    assert moments.class_means.isfinite().all()
    assert moments.within.isfinite().all()


def test_all_samples_left_out_is_nothing_to_measure_there_either(
    accelerator: Callable[[], None],
) -> None:
    accelerator()
    for given in ({"weight": W}, {"num_classes": 10}):
        with pytest.raises(InputError, match="nothing to measure: expected at least one sample"):
            measure_collapse(X, torch.full_like(Y, -100), **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(10, r"must lie in \[0, 10\), but one is 10"), (-7, "pass ignore_index=-7 if it marks")],
)
def test_a_label_out_of_range_is_reported_when_the_moments_are_read(
    wrong: int, message: str, accelerator: Callable[[], None]
) -> None:
    labels = torch.where(torch.arange(500) == 123, wrong, ignoring(Y))
    with pytest.raises(InputError, match=message):
        ClassMoments(10).update(X, labels)  # on the CPU: at once
    accelerator()
    moments = ClassMoments(10, scatter=True).update(X, labels)
    merged = ClassMoments(10, scatter=True).update(X, Y).merge(moments)
    carried = ClassMoments.from_state_dict(moments.state_dict())
    for each in (moments, merged, carried, moments.to("cpu")):
        for name in ("counts", "within"):
            with pytest.raises(InputError, match=message):
                getattr(each, name)
    calls: list[Callable[[], Any]] = [
        lambda: measure_collapse(X, labels, W, B),
        lambda: measure_batches([(X, Y), (X, labels)], num_classes=10),
        lambda: measure_collapse(X, Y, reference=moments),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("name", ["class_means", "class_variances", "feature_norms"])
def test_no_reading_of_moments_is_silent_about_a_label_out_of_range(
    name: str, accelerator: Callable[[], None]
) -> None:
    # Whatever is read first has to say so.
    accelerator()
    moments = ClassMoments(10).update(X, torch.where(torch.arange(500) == 123, 10, Y))
    with pytest.raises(InputError, match=r"must lie in \[0, 10\), but one is 10"):
        getattr(moments, name)


# -- half precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread", "bfloat16", "float16"),
    # NC1 as measured over the true one: METRICS, section 13.5, to its order of magnitude
    [(1e-2, (0.9, 1.1), (0.99, 1.01)), (1e-3, (1.5, 6), (1.01, 1.1)), (1e-4, (8, 80), (1.8, 8))],
)
def test_half_precision_puts_a_floor_under_nc1(
    spread: float, bfloat16: tuple[float, float], float16: tuple[float, float]
) -> None:
    means = torch.randn(10, 512, dtype=torch.float64, generator=seeded(0)).clamp_min(0)
    size = float((means - means.mean(0)).norm(dim=1).mean())
    case = cloud(
        "floor", "ReLU-like means", means, 50, spread=1.5 * size * spread, dtype=torch.float64
    )
    true = fast(case)["nc1"]
    ranges = {torch.bfloat16: (8, bfloat16), torch.float16: (11, float16)}
    for dtype, (significand, (low, high)) in ranges.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = fast(case, features=case.features.to(dtype))
        assert got["feature_dtype"] == significand
        assert low < got["nc1"] / true < high
        floor = {torch.bfloat16: 1e-6, torch.float16: 1e-8}[dtype]
        assert [f"below {floor:g}" in str(w.message) for w in caught] == [True] * (
            got["nc1"] < floor
        )


# -- more classes than pairs can be visited --------------------------------------------------------


def test_above_a_number_of_classes_averages_run_over_a_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    means = random_means(40, 24, seeded(3))
    case = cloud("many", "40 classes", means, 12, spread=0.6, dtype=torch.float64)
    exact = fast(case, metrics="all")
    for module in (pairs, class_symmetry, equiangularity, duality):
        monkeypatch.setattr(module, "PAIR_CLASSES", 20)
    got = fast(case, metrics="all")
    assert (exact.pop("n_pairs"), got.pop("n_pairs")) == (40 * 39, pairs.SAMPLED_PAIRS)
    # 2²⁰ pairs of 1560: the standard error is a thousandth of the pairs' spread, itself at most
    # twice the average here. Five standard errors: 1 %.
    paired = {"nc2_max_angle_means", "nc2_max_angle_w", "nc1_cdnv", "gnc2_log_energy"}
    # 20²/40 = 10 of the 40 classes: √(3/4 · 1/10) = 27 % of the spread between classes, which is
    # 14 % for the logits and 26 % for the directional variance. Three standard errors.
    sampled = {"sk_breaking_logits": 0.12, "nc1_cdnv_directional": 0.21}
    sampled |= dict.fromkeys(paired | {"sk_residual_block"}, 0.01)
    for name, tolerance in sampled.items():
        assert got[name] == pytest.approx(exact[name], rel=tolerance), name
        assert got.pop(name) != exact.pop(name), name
    for name in ("nc2_equiangular_std_w", "nc3_etf_product", "sel_logit_dist", "sk_breaking_pair"):
        assert got[name] == pytest.approx(exact[name], rel=1e-9), name
    assert_agree(got, exact, rtol=1e-9)


def test_the_sample_is_the_same_at_every_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cloud("many", "40 classes", random_means(40, 24, seeded(3)), 3)
    for module in (pairs, class_symmetry, equiangularity, duality):
        monkeypatch.setattr(module, "PAIR_CLASSES", 20)
    state = torch.get_rng_state()
    one = fast(case, metrics="all")
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(7)
    assert list(map(repr, fast(case, metrics="all").values())) == list(map(repr, one.values()))


# -- regression ------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def assert_same_regression(features: Tensor, targets: Tensor, weight: Tensor, **how: Any) -> None:
    columns = targets[:, None] if targets.ndim == 1 else targets
    want = regression_metrics(array(features), array(columns), array(weight))
    got = measure_regression(features, targets, weight)
    assert list(got) == ["nrc1", "nrc2", "nrc3"]
    for name, value in want.items():
        assert got[name] == pytest.approx(
            value, **({"rel": 1e-9, "abs": 1e-14, "nan_ok": True} | how)
        )
    alone = measure_regression(array(features), array(targets))
    assert list(alone) == ["nrc1"]
    assert repr(alone["nrc1"]) == repr(got["nrc1"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [1, 2, 4, 9])
def test_regression_agrees_with_the_twin(number: int, seed: int) -> None:
    features = normal(60, 8, seed=seed) + 1
    mixed = normal(60, number, seed=seed + 10) @ normal(number, number, seed=seed + 20)
    assert_same_regression(features, mixed, normal(number, 8, seed=seed + 30))
    single = mixed.float() if number > 1 else mixed.float().squeeze(1)
    assert_same_regression(features.float(), single, normal(number, 8, seed=seed + 30).float())


def test_collapsed_regression_has_zeros() -> None:
    latent = normal(60, 3)
    latent -= latent.mean(0)
    weight = normal(3, 9, seed=1)
    got = measure_regression(latent @ weight, latent, weight)
    assert got["nrc1"] == pytest.approx(0, abs=1e-28)
    assert got["nrc2"] == pytest.approx(0, abs=1e-28)
    assert_same_regression(latent @ weight, latent, weight)
    values, axes = torch.linalg.eigh(latent.T @ latent / 60)
    shifted = axes @ torch.diag((values.sqrt() - 0.5 * values[0].sqrt()).sqrt()) @ axes.T
    frame = torch.linalg.qr(normal(9, 3, seed=2)).Q.T
    assert measure_regression(latent @ weight, latent, 5 * shifted @ frame)["nrc3"] < 1e-20


@pytest.mark.parametrize(
    ("features", "targets", "weight", "undefined"),
    [
        (normal(20, 5), normal(20), normal(1, 5), "nrc3"),
        (normal(20, 5).index_fill(0, torch.tensor(3), 0), normal(20, 2), normal(2, 5), "nrc1 nrc2"),
        (normal(20, 5), normal(20, 2), torch.zeros(2, 5, dtype=torch.float64), "nrc2 nrc3"),
        (normal(20, 5), torch.ones(20, 2, dtype=torch.float64), normal(2, 5), "nrc3"),
        (normal(1, 5), normal(1, 2), normal(2, 5), "nrc3"),
        (normal(20, 5), normal(20, 1).repeat(1, 3), normal(3, 5), ""),  # a covariance of rank 1
        (normal(20, 5), normal(20, 3), normal(1, 5).repeat(3, 1), ""),  # W of rank 1
    ],
    ids=["one_target", "zero_feature", "zero_W", "constant", "one_sample", "equal", "rank_1"],
)
def test_regression_is_nan_where_the_twin_says(
    features: Tensor, targets: Tensor, weight: Tensor, undefined: str
) -> None:
    got = measure_regression(features, targets, weight)
    assert {name for name, value in got.items() if math.isnan(value)} == set(undefined.split())
    # a zero eigenvalue is 1e-16 by rounding, and its root 1e-8
    assert_same_regression(features, targets, weight, rel=1e-7)


def test_white_targets_have_the_identity_for_a_covariance() -> None:
    # At γ = λ_min the rest of Σ^½ is rounding; scaled to norm one it would be any direction, and W
    # of rank 1 may lie in it: near 0 instead of 2 − √2.
    for seed in range(20):
        targets = normal(50, 2, seed=seed)
        targets -= targets.mean(0)
        values, axes = torch.linalg.eigh(targets.T @ targets / 50)
        white = targets @ axes / values.sqrt() @ axes.T
        weight = torch.zeros(2, 5, dtype=torch.float64)
        weight[0] = normal(5, seed=seed + 20)
        want = regression_metrics(array(normal(50, 5)), array(white), array(weight))["nrc3"]
        assert want == pytest.approx(2 - math.sqrt(2), rel=1e-9)
        assert measure_regression(normal(50, 5), white, weight)["nrc3"] == pytest.approx(want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": normal(20)}, "features must have shape (N, d), but have shape (20,)"),
        ({"features": normal(20, 5).long()}, "must be floating point, but have dtype torch.int64"),
        ({"targets": normal(19, 2)}, "targets must have shape (N, n) like features (N, d), got"),
        ({"targets": normal(20, 2, 1)}, "targets must have shape (N, n) like features (N, d), got"),
        ({"weight": normal(2, 4)}, "weight must have shape (2, 5), one row per target and as wide"),
        ({"weight": normal(5, 2)}, "as wide as the features, got (5, 2)"),
        ({"weight": normal(5)}, "as wide as the features, got (5,)"),
        ({"features": normal(0, 5), "targets": normal(0, 2)}, "there is nothing to measure"),
        ({"features": normal(20, 5) / 0}, "the features or targets are not finite"),
        ({"targets": normal(20, 2) * math.nan}, "the features or targets are not finite"),
        ({"targets": "cat"}, "expected a torch tensor or an array of numbers, got str"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_regression_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"features": normal(20, 5), "targets": normal(20, 2)}
    given |= {"weight": normal(2, 5)} | changes
    with pytest.raises(InputError, match=re.escape(message)):
        measure_regression(**given)


def test_regression_leaves_its_input_alone() -> None:
    features, targets, weight = normal(20, 5), normal(20, 2), normal(2, 5).requires_grad_()
    kept = (features.clone(), targets.clone(), weight.detach().clone())
    values = measure_regression(features, targets, weight)
    assert {type(value) for value in values.values()} == {float}
    assert all(now.equal(then) for now, then in zip((features, targets, weight), kept, strict=True))
