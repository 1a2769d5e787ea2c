"""The judge is judged: the naive twin against closed forms, symmetries and 60 digits of mpmath."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from cases import (
    BY_NAME,
    CASES,
    Case,
    orthogonal_frame,
    seeded,
    simplex_etf,
    sweep,
    train_and_validation,
)
from ncmonitor.catalogue import CATALOGUE, FIT_NAMES, METRIC_NAMES, METRICS
from reference import (
    EPS64,
    Real,
    ambiguous_share,
    between_covariance,
    between_pinv,
    centred_means,
    class_means,
    jacobi_svd,
    reference_metrics,
    within_covariance,
)
from reference_optional import OF_CLASSIFIER, OF_FEATURES

#: Judged by test_reference_optional.py.
OPTIONAL = {*OF_FEATURES, *OF_CLASSIFIER}
CLASSIFIER = {q.name for q in METRICS if q.default and q.needs == "classifier"} - OPTIONAL
NC1 = {"nc1", "nc1_quotient", "within_in_span_frac"}
ANGLES_MEANS = {"nc2_equiangular_std_means", "nc2_max_angle_means"}
MEANS = ANGLES_MEANS | {"nc2_equinorm_means", "nc2_etf_means"}
ANGLES_W = {"nc2_equiangular_std_w", "nc2_max_angle_w"}
NC3 = {"nc3_self_duality", "nc3_self_duality_sq", "nc3_self_duality_centered"}
UNRESOLVED = NC1 | MEANS | NC3 | {"s_min_ratio"}

DECISIONS = {"nc4_disagreement", "ncc_accuracy"}

#: What is nan in which case; everywhere else everything is a finite number.
UNDEFINED: dict[str, set[str]] = {
    "all_singletons": NC1,
    "one_present": UNRESOLVED | CLASSIFIER | {"nc4_disagreement", "ncc_accuracy"},
    "dead_class": ANGLES_MEANS,
    "no_means": UNRESOLVED | DECISIONS,
    "all_equal": UNRESOLVED | DECISIONS,
    "all_equal_float64": UNRESOLVED | DECISIONS,
    "all_zero": UNRESOLVED | DECISIONS,
    "exact_etf": {"within_in_span_frac"},
    "exact_etf_float32": {"within_in_span_frac"},
    "orthogonal_frame": {"within_in_span_frac"},
    "zero_row": ANGLES_W,
    "zero_weight": CLASSIFIER,
    "equal_rows": {"nc3_self_duality_centered"},
}


def arrays(case: Case) -> dict[str, NDArray[Any] | None]:
    tensors = (case.features, case.labels, case.weight, case.bias)
    names = ("features", "labels", "weight", "bias")
    return {n: None if t is None else t.numpy() for n, t in zip(names, tensors, strict=True)}


def metrics(case: Case, **changes: Any) -> dict[str, float]:
    return reference_metrics(**(arrays(case) | {"num_classes": case.num_classes} | changes))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_what_is_undefined_is_nan(case: Case) -> None:
    result = metrics(case)
    expected = set(METRIC_NAMES + FIT_NAMES) - OPTIONAL
    if case.weight is None:
        expected -= CLASSIFIER | {"nc4_disagreement", *FIT_NAMES}
    assert set(result) == expected
    assert all(type(value) is float for value in result.values())
    undefined = {name for name, value in result.items() if math.isnan(value)}
    assert undefined == UNDEFINED.get(case.name, set())


def test_exact_etf_has_every_metric_at_its_collapse_value() -> None:
    result = metrics(BY_NAME["exact_etf"])
    for name, value in result.items():
        collapse = CATALOGUE[name].collapse
        if collapse is not None:
            assert value == pytest.approx(collapse, abs=1e-14), name


def test_orthogonal_frame_has_its_closed_forms() -> None:
    result = metrics(BY_NAME["orthogonal_frame"])
    raw = math.sqrt(2 - 2 * math.sqrt(0.9))
    assert result["nc3_self_duality"] == pytest.approx(raw, rel=1e-12)
    assert result["nc3_self_duality_sq"] == pytest.approx(raw**2, rel=1e-12)
    assert result["nc3_self_duality_centered"] == pytest.approx(0, abs=1e-14)
    assert result["w_mean_ratio"] == pytest.approx(math.sqrt(0.1), rel=1e-12)
    assert result["nc2_max_angle_w"] == pytest.approx(1 / 9, rel=1e-12)
    gram = np.eye(10) / math.sqrt(10) - (np.eye(10) - 0.1) / 3
    assert result["nc2_etf_w"] == pytest.approx(np.linalg.norm(gram), rel=1e-12)


def test_three_formulas_of_nc1_agree() -> None:
    case = BY_NAME["noisy_float64"]
    features, labels = case.features.numpy(), case.labels.numpy()
    means = np.stack([features[labels == c].mean(0) for c in range(10)])
    centred = means - means.mean(0)
    residuals = features - means[labels]
    within = residuals.T @ residuals / len(labels)  # balanced, so this is class-balanced too
    between = centred.T @ centred / 10
    textbook = np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / 10
    left, values, _ = np.linalg.svd(centred.T, full_matrices=False)
    in_span = sum(left[:, r] @ within @ left[:, r] / values[r] ** 2 for r in range(9))
    two_pass = np.mean(np.sum((residuals @ np.linalg.pinv(centred, rcond=1e-12)) ** 2, axis=1))
    for value in (textbook, in_span, two_pass):
        assert metrics(case)["nc1"] == pytest.approx(value, rel=1e-11)


def test_two_classes_reduce_to_one_direction() -> None:
    case = BY_NAME["two_classes"]
    features, labels = case.features.double().numpy(), case.labels.numpy()
    means = np.stack([features[labels == c].mean(0) for c in range(2)])
    gap = means[0] - means[1]
    along = (features - means[labels]) @ gap / np.linalg.norm(gap)
    assert metrics(case)["nc1"] == pytest.approx(2 * np.mean(along**2) / (gap @ gap), rel=1e-12)


def test_nc1_without_signal_has_its_inverse_wishart_mean() -> None:
    rng, (count, num_classes, dim) = np.random.default_rng(0), (10, 5, 200)
    labels = np.repeat(np.arange(num_classes), count)
    draws = [
        reference_metrics(rng.standard_normal((len(labels), dim)), labels)["nc1"] for _ in range(3)
    ]
    expected = (count - 1) * (num_classes - 1) / (dim - num_classes)
    assert np.mean(draws) == pytest.approx(expected, rel=0.15)


def _turn(case: Case) -> NDArray[Any]:
    dim = case.features.shape[1]
    return orthogonal_frame(dim, dim, seeded(0)).numpy()


@pytest.mark.parametrize("change", ["translation", "scale", "rotation", "classes", "order"])
@pytest.mark.parametrize("name", ["noisy_float64", "bottleneck_float64", "imbalanced"])
def test_what_the_papers_call_invariant_is(name: str, change: str) -> None:
    case = BY_NAME[name]
    given = arrays(case)
    assert case.weight is not None
    features, weight = case.features.double().numpy(), case.weight.double().numpy()
    labels, bias = case.labels.numpy(), given["bias"]
    eps = float(torch.finfo(case.features.dtype).eps)
    logits = features @ weight.T + bias
    before = reference_metrics(features, labels, weight, logits=logits, feature_eps=eps)
    if change == "translation":
        features = features + np.linspace(-2, 2, features.shape[1])
    elif change == "scale":
        features, weight = features * 7.3, weight * 0.11
    elif change == "rotation":
        features, weight = features @ _turn(case), weight @ _turn(case)
    elif change == "classes":
        order = np.random.default_rng(0).permutation(case.num_classes)
        labels, weight, logits = np.argsort(order)[labels], weight[order], logits[:, order]
    else:
        order = np.random.default_rng(0).permutation(len(labels))
        features, labels, logits = features[order], labels[order], logits[order]
    after = reference_metrics(features, labels, weight, logits=logits, feature_eps=eps)
    for key in before:
        assert after[key] == pytest.approx(before[key], rel=1e-9, abs=1e-14), key


def test_nc1_depends_on_the_metric_of_feature_space() -> None:
    case = BY_NAME["noisy_float64"]
    stretched = case.features.numpy() * np.linspace(0.2, 3, 32)
    ratio = metrics(case, features=stretched)["nc1"] / metrics(case)["nc1"]
    assert abs(math.log(ratio)) > 0.05


def _exact(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as mpmath numbers, in an object array."""
    return np.vectorize(mpmath.mpf, otypes=[object])(array.astype(np.float64))


def _norms(rows: NDArray[Any]) -> NDArray[Any]:
    return np.array([mpmath.sqrt(square) for square in (rows**2).sum(1)])


def _shape(rows: NDArray[Any], suffix: str) -> dict[str, Any]:
    """NC2 by the closed forms in sums over classes, and √(2 − 2x), which here keeps 30 digits."""
    k, lengths = len(rows), _norms(rows)
    gram = rows @ rows.T
    overlap = (np.trace(gram) - gram.sum() / k) / mpmath.sqrt((gram**2).sum())
    shape = {
        f"nc2_equinorm_{suffix}": mpmath.sqrt(k * (lengths**2).sum() / lengths.sum() ** 2 - 1),
        f"nc2_etf_{suffix}": mpmath.sqrt(2 - 2 * overlap / mpmath.sqrt(k - 1)),
    }
    if min(lengths) > 0:
        cosines = (rows / lengths[:, None]) @ (rows / lengths[:, None]).T
        mean = (cosines.sum() - k) / (k * (k - 1))
        square = ((cosines**2).sum() - k) / (k * (k - 1))
        spread = [abs(cosines[i, j] + mpmath.mpf(1) / (k - 1)) for i in range(k) for j in range(i)]
        shape[f"nc2_equiangular_std_{suffix}"] = mpmath.sqrt(square - mean**2)
        shape[f"nc2_max_angle_{suffix}"] = 2 * sum(spread) / (k * (k - 1))
    return shape


def _sixty_digits(case: Case) -> dict[str, Any]:
    """Other formulas than the twin's: Gram matrices and the two-pass NC1, in 60 digits."""
    labels, present = case.labels.numpy(), np.unique(case.labels.numpy())
    num_classes, features = len(present), _exact(case.features.numpy())
    means = np.stack([features[labels == c].sum(0) / int(np.sum(labels == c)) for c in present])
    centred = means - means.sum(0) / num_classes
    residuals = features - means[np.searchsorted(present, labels)]
    share = _exact(np.array([1.0 / np.sum(labels == c) for c in labels])) / num_classes

    gram = centred @ centred.T
    eigenvalues, vectors = mpmath.eigsy(mpmath.matrix(gram.tolist()))
    order = sorted(range(num_classes), key=lambda r: -eigenvalues[r])
    rank = int(metrics(case)["nc1_rank"])
    kept = np.array([eigenvalues[r] for r in order[:rank]], dtype=object)
    right = np.array([[vectors[c, r] for r in order[:rank]] for c in range(num_classes)])
    along = (residuals @ (centred.T @ right)) ** 2 / kept  # (u_rᵀ (h − μ_y))²
    within = (share * (residuals**2).sum(1)).sum()
    assert case.weight is not None
    weight = _exact(case.weight.numpy())[present]
    weight_centred = weight - weight.sum(0) / num_classes

    def cosine(rows: NDArray[Any]) -> Any:
        norms = mpmath.sqrt((rows**2).sum()) * mpmath.sqrt((centred**2).sum())
        return (rows * centred).sum() / norms

    return {
        "nc1": (share * (along / kept).sum(1)).sum(),
        "nc1_quotient": within / (np.trace(gram) / num_classes),
        "within_in_span_frac": (share * along.sum(1)).sum() / within,
        "s_min_ratio": mpmath.sqrt(abs(eigenvalues[order[-2]]) / kept[0]),
        **_shape(centred, "means"),
        **_shape(weight, "w"),
        "w_mean_ratio": mpmath.sqrt((weight.sum(0) ** 2).sum() / num_classes / (weight**2).sum()),
        "nc3_self_duality": mpmath.sqrt(2 - 2 * cosine(weight)),
        "nc3_self_duality_centered": mpmath.sqrt(2 - 2 * cosine(weight_centred)),
    }


HARD = (
    "offset_1e-05",
    "offset_float64",
    "collapsed_float64",
    "near_duplicates_float64",
    "outlier_first_1e+04",
    "imbalanced",
    "bottleneck",
    "dead_class",
    "common_row",
    "tiny",
)


@pytest.mark.skipif(
    bool(np.finfo(np.longdouble).eps > 1e-18), reason="longdouble is float64 on this platform"
)
@pytest.mark.parametrize("name", HARD)
def test_twin_is_right_to_ten_digits_on_the_hard_cases(name: str) -> None:
    case = BY_NAME[name]
    if name != "imbalanced":  # mpmath takes its time; every case keeps its classes and its spread
        keep = slice(None, None, 4)
        case = replace(case, features=case.features[keep], labels=case.labels[keep])
    result = metrics(case)
    with mpmath.workdps(60):
        for key, exact in _sixty_digits(case).items():
            zero = 1e-15 if key == "s_min_ratio" else 0  # below the rank it is rounding
            if not math.isnan(result[key]):
                assert result[key] == pytest.approx(float(exact), rel=1e-10, abs=zero), key


def test_jacobi_agrees_with_lapack_wide_and_tall() -> None:
    rng = np.random.default_rng(0)
    for shape in ((7, 12), (12, 7), (8, 8), (5, 1), (1, 5)):
        matrix = rng.standard_normal(shape)
        values, left = jacobi_svd(matrix.astype(Real))
        assert_allclose(values.astype(float)[: min(shape)], np.linalg.svd(matrix)[1], rtol=1e-13)
        kept = left[:, : min(shape)].astype(float)
        assert_allclose(kept.T @ kept, np.eye(min(shape)), atol=1e-15)
        assert_allclose((kept @ kept.T @ matrix)[:, : shape[1]], matrix, atol=1e-14)


def test_pseudo_inverse_meets_the_moore_penrose_conditions() -> None:
    case = BY_NAME["bottleneck_float64"]
    present, features = list(range(10)), case.features.numpy().astype(Real)
    centred = centred_means(class_means(features, case.labels.numpy(), present))
    values, left = jacobi_svd(centred.T)
    pinv, sigma = between_pinv(values, left, 3, 10), between_covariance(centred)
    for product, expected in ((sigma @ pinv @ sigma, sigma), (pinv @ sigma @ pinv, pinv)):
        assert_allclose(product.astype(float), expected.astype(float), atol=1e-13)
    assert_allclose((sigma @ pinv).astype(float), (sigma @ pinv).T.astype(float), atol=1e-15)


def test_total_covariance_is_within_plus_between() -> None:
    case = BY_NAME["noisy_float64"]
    features, labels = case.features.numpy().astype(Real), case.labels.numpy()
    centred = centred_means(class_means(features, labels, list(range(10))))
    total = np.cov(case.features.numpy().T, bias=True)
    parts = within_covariance(features, labels, list(range(10))) + between_covariance(centred)
    assert_allclose(parts.astype(float), total, atol=1e-14)


def test_fit_is_what_torch_says() -> None:
    case = BY_NAME["missing_several"]
    assert case.weight is not None
    assert case.bias is not None
    logits = case.features.double() @ case.weight.double().T + case.bias.double()
    result = metrics(case)
    expected = torch.nn.functional.cross_entropy(logits, case.labels)
    assert result["cross_entropy"] == pytest.approx(expected.item(), rel=1e-12)
    assert result["error"] == (logits.argmax(1) != case.labels).double().mean().item()


def test_decisions_use_train_means_of_present_classes_and_all_logits() -> None:
    for train, validation in train_and_validation():
        reference = (train.features.numpy(), train.labels.numpy())
        result = metrics(validation, reference=reference)
        centres = {int(c): train.features[train.labels == c].double().mean(0)
                   for c in train.labels.unique()}  # fmt: skip
        wrong, right = 0, 0
        for h, y in zip(validation.features.double(), validation.labels, strict=True):
            nearest = min(centres, key=lambda c: float((h - centres[c]).norm()))
            assert validation.weight is not None
            assert validation.bias is not None
            scores = validation.weight.double() @ h + validation.bias.double()
            wrong += int(scores.argmax()) != nearest
            right += nearest == int(y)
        assert result["nc4_disagreement"] == wrong / len(validation.labels)
        assert result["ncc_accuracy"] == right / len(validation.labels)
        assert result["nc1"] == metrics(validation)["nc1"]  # NC1 to NC3 keep their own means


def test_given_logits_win_over_the_weights() -> None:
    case = BY_NAME["noisy"]
    logits = np.zeros((500, 10))
    result = metrics(case, logits=logits)
    assert result["error"] == pytest.approx(0.9)
    assert result["cross_entropy"] == pytest.approx(math.log(10), rel=1e-15)
    assert result["nc4_disagreement"] > 0.8
    alone = metrics(case, weight=None, bias=None, logits=logits)
    assert alone["nc4_disagreement"] == result["nc4_disagreement"]
    assert not CLASSIFIER & set(alone)


def test_precision_of_the_features_sets_what_is_resolved() -> None:
    case = BY_NAME["collapsed_1e-03"]
    coarse = metrics(case, feature_eps=2.0**-7)
    assert (coarse["feature_dtype"], metrics(case)["feature_dtype"]) == (8.0, 24.0)
    half = metrics(case, features=case.features.numpy().astype(np.float16))
    assert half["feature_dtype"] == 11.0
    close = BY_NAME["near_duplicates"]
    assert metrics(close)["nc1_rank"] == 9
    assert metrics(close, feature_eps=2.0**-7)["nc1_rank"] == 8


def test_order_of_the_samples_does_not_matter() -> None:
    before, after = metrics(BY_NAME["sorted"]), metrics(BY_NAME["shuffled"])
    for key in before:
        assert after[key] == pytest.approx(before[key], rel=1e-14, abs=1e-16), key


def test_frames_are_what_they_are_called() -> None:
    for num_classes, dim in ((2, 1), (3, 2), (10, 9), (10, 64)):
        etf = simplex_etf(num_classes, dim, seeded(0)).numpy()
        gram = (np.eye(num_classes) * num_classes - 1) / (num_classes - 1)
        assert_allclose(etf @ etf.T, gram, atol=1e-14)
    frame = orthogonal_frame(4, 6, seeded(0)).numpy()
    assert_allclose(frame @ frame.T, np.eye(4), atol=1e-14)


def test_cases_are_well_formed_and_have_unique_names() -> None:
    swept = list(sweep())
    clouds = [*CASES, *swept]
    assert len({case.name for case in clouds}) == len(clouds)
    assert len(swept) == 54
    for case in clouds:
        assert case.features.dtype in (torch.float32, torch.float64)
        assert case.labels.dtype == torch.int64
        assert len(case.labels) == len(case.features)
        assert 0 <= int(case.labels.min()) <= int(case.labels.max()) < case.num_classes
        assert case.weight is None or case.weight.shape == (
            case.num_classes,
            *case.features[0].shape,
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_case_sits_on_the_edge_of_the_rank_rule(case: Case) -> None:
    """Two right implementations must count the same rank and the same degenerate classes."""
    labels, features = case.labels.numpy(), case.features.numpy()
    present = np.unique(labels)
    means = class_means(features.astype(Real), labels, list(present))
    centred = centred_means(means).astype(np.float64)
    squares = [np.mean(np.sum(features[labels == c].astype(float) ** 2, 1)) for c in present]
    resolution = np.finfo(features.dtype).eps * np.sqrt(np.mean(squares))
    values = np.linalg.svd(centred, compute_uv=False)[: max(len(present) - 1, 1)]
    sizes = np.concatenate([values, np.linalg.norm(centred, axis=1)])
    threshold = max(resolution, max(centred.shape) * EPS64 * values[0])
    assert not np.any((sizes > 0.5 * threshold) & (sizes < 2 * threshold) & (threshold > 0))


def test_ambiguous_share_counts_ties_and_close_calls() -> None:
    for name, expected in (("all_equal", 1.0), ("noisy", 0.0), ("near_duplicates", 0.2)):
        given: dict[str, Any] = arrays(BY_NAME[name])
        assert ambiguous_share(**given) == pytest.approx(expected)
