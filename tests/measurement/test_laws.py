"""Laws that hold between metrics, at closed forms, without structure, in training, under change."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import one_hot

from agreement import assert_agree, fast, flat
from cases import BY_NAME, Case, cloud, orthogonal_frame, random_means, seeded, simplex_etf
from ncmonitor import ClassMoments, CollapseReport, InputError, measure_batches, measure_collapse
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.theory import null_expectations

F64 = torch.float64
FEW = settings(max_examples=8, deadline=None, derandomize=True)


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-14)


def small(seed: int, counts: Sequence[int] = (12, 12, 11, 4, 4), dim: int = 8) -> Case:
    """A noisy cloud of few classes in double precision, with a head halfway to self-duality."""
    means = random_means(len(counts), dim, seeded(seed))
    return cloud(f"law_{seed}", "of few classes", means, counts, spread=0.7, dtype=F64)


def class_means(case: Case) -> Tensor:
    return torch.stack([case.features[case.labels == c].mean(0) for c in range(case.num_classes)])


# -- symmetry of the classes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["noisy", "imbalanced", "etf_nearly", "three_classes", "more_classes_than_features"]
)
def test_breaking_etf_distance_and_participation_ratio_are_one_angle(name: str) -> None:
    case = replace(BY_NAME[name], features=BY_NAME[name].features.double())
    got, count = fast(case, metrics="all"), case.num_classes
    means = class_means(case)
    gram = (means - means.mean(0)) @ (means - means.mean(0)).T
    theta = math.acos(min(1.0, float(gram.trace() / gram.norm()) / math.sqrt(count - 1)))
    rel = 1e-5 if name == "etf_nearly" else 1e-9  # an angle of 1e-4 from its cosine
    assert got["sk_breaking_means"] == pytest.approx(math.sin(theta), rel=rel)
    angle = math.asin(got["sk_breaking_means"])
    assert got["nc2_etf_means"] == close(2 * math.sin(angle / 2))
    assert got["participation_ratio_means"] == close((count - 1) * math.cos(angle) ** 2)
    parts = got["sk_breaking_norm"] ** 2 + got["sk_breaking_pair"] ** 2
    assert parts == close(got["sk_breaking_means"] ** 2)
    index = got["of_etf_index"]
    assert got["w_mean_ratio"] ** 2 == close(index / (index + count - 1))


def average(gram: Tensor, orders: Iterable[Sequence[int]]) -> Tensor:
    """Mean of the matrix over these permutations of its rows and columns: no formula."""
    moved = [gram[list(order)][:, list(order)] for order in orders]
    return torch.stack(moved).mean(0)


def broken(gram: Tensor, orders: Iterable[Sequence[int]]) -> float:
    return float((gram - average(gram, orders)).norm() / gram.norm())


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_symmetry_breaking_is_what_all_permutations_change(count: int) -> None:
    case = small(count, counts=(9, 8, 7, 6, 5)[:count])
    assert case.weight is not None
    assert case.bias is not None
    blocks = (0, 1, 0, 1, 1)[:count]
    got = fast(case, metrics="symmetry", superclasses=blocks)
    means, rows = class_means(case), case.weight
    centred = means - means.mean(0)
    logits = rows @ means.T + case.bias[:, None]
    every = list(itertools.permutations(range(count)))
    within = [o for o in every if all(blocks[i] == blocks[j] for i, j in enumerate(o))]
    want = {
        "sk_breaking_means": broken(centred @ centred.T, every),
        "sk_breaking_w": broken(rows @ rows.T, every),
        "sk_breaking_logits": broken(logits - logits.mean(0), every),
        "sk_residual_block": broken(centred @ centred.T, within),
    }
    for name, value in want.items():
        assert got[name] == close(value), name
    assert all(value > 0.01 for name, value in want.items() if count > 3)


# -- linear maps and probes ------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(30,) * 5, (50, 30, 12, 9, 5)], ids=["equal", "unequal"])
def test_vci_is_the_error_of_the_best_linear_probe(counts: Sequence[int]) -> None:
    case = small(0, counts=counts)
    target = one_hot(case.labels, 5).double()
    root = (1 / (5 * torch.tensor(counts).double())).sqrt()[case.labels, None]  # every class 1/K
    inputs = torch.cat([case.features, torch.ones(len(target), 1)], dim=1)
    probe = torch.linalg.lstsq(root * inputs, root * target).solution
    error = float((root * (inputs @ probe - target)).square().sum())
    assert fast(case, metrics="nc1")["vci"] == close(5 / 4 * error)


def test_vci_ignores_an_invertible_map_and_nc1_does_not() -> None:
    case = small(1)
    stretch = torch.randn(8, 8, dtype=F64, generator=seeded(1))
    before = fast(case, metrics="nc1")
    after = fast(case, features=case.features @ stretch, metrics="nc1")
    assert after["vci"] == close(before["vci"])
    for name in ("nc1", "nc1_quotient", "nc1_cdnv", "nc1_cdnv_directional"):
        assert abs(math.log(after[name] / before[name])) > 0.05, name


def test_three_kinds_of_nc1_are_one_number_for_isotropic_noise_around_an_etf() -> None:
    count, dim, radius, spread = 6, 40, 2.0, 1.0
    means = radius * simplex_etf(count, dim, seeded(0))
    got = fast(cloud("isotropic", "noise around an ETF", means, 2000, spread=spread), metrics="nc1")
    ratio = (spread / radius) ** 2
    # 12,000 samples in at least 5 directions: a relative error of √(2/60,000) = 0.6 %; five of it
    assert got["nc1_quotient"] == pytest.approx(ratio, rel=0.03)
    assert got["nc1_cdnv"] == pytest.approx((count - 1) / (2 * count) * ratio, rel=0.03)
    assert got["nc1"] == pytest.approx((count - 1) ** 2 / (count * dim) * ratio, rel=0.03)
    assert got["within_in_span_frac"] == pytest.approx((count - 1) / dim, rel=0.03)
    directional = (count - 1) / (2 * count) * ratio / dim
    assert got["nc1_cdnv_directional"] == pytest.approx(directional, rel=0.03)


# -- closed forms ----------------------------------------------------------------------------------


def test_an_exact_etf_has_every_metric_at_its_collapse_value() -> None:
    case = BY_NAME["exact_etf"]
    report = measure_collapse(case.features, case.labels, case.weight, case.bias, metrics="all")
    off_path = {"mse_l_perp", "central_path_dist"}  # W is three times the means
    checked = set()
    for name, value in report.as_dict().items():
        collapse = CATALOGUE[name.partition("/")[0]].collapse
        if collapse is not None and name not in off_path:
            assert value == pytest.approx(collapse, abs=1e-13), name
            checked.add(name)
    assert len(checked) > 40
    assert report.participation_ratio_means == close(9)
    assert report.entropy_rank_total == close(9)
    assert report.numerical_rank == 9
    assert report.gnc2_log_energy == close(-math.log(20 / 9) / 2)


def test_at_the_best_classifier_nothing_of_the_squared_loss_is_off_the_central_path() -> None:
    case, ridge = BY_NAME["exact_etf"], 1e-2
    # Without decay WM + b1ᵀ = I at W = 0.9 M, b = 1/K. Decay shrinks each of nine directions, of
    # variance 1/9, by 1/9 / (1/9 + λ), and b, as there is no global mean, by 1/(1 + λ).
    scale = 1 / (1 + 9 * ridge)
    weight, bias = 0.9 * scale * case.features[::20], torch.full((10,), 0.1 / (1 + ridge))
    got = fast(case, weight=weight, bias=bias, metrics="loss_aware", ridge=ridge)
    assert got["mse_l_perp"] == pytest.approx(0, abs=1e-15)
    assert got["central_path_dist"] == pytest.approx(0, abs=1e-14)
    assert got["mse_l_nc1"] > 1e-3


def test_an_orthogonal_frame_has_its_closed_forms() -> None:
    got = fast(BY_NAME["orthogonal_frame"], metrics="all")
    gap = math.sqrt(2 - 2 * math.sqrt(9 / 10))
    assert got["of_etf_index"] == close(1)
    assert got["nc3_self_duality"] == close(gap)
    assert got["nc3_cos_mean"] == close(math.sqrt(0.9))
    assert got["gnc3_align"] == close(1 - math.sqrt(0.9))
    assert got["sel_logit_dist"] == close(gap)
    assert got["gnc2_one_vs_rest"] == close(math.sqrt(1 + 1 / 9))
    zero = ("sk_breaking_w", "nc2_etf_w_centered", "nc_bias", "sk_breaking_logits")
    for name in (*zero, "mse_l_perp", "mse_l_nc1", "mse_l_nc23", "nc3_self_duality_centered"):
        assert got[name] == pytest.approx(0, abs=1e-13), name


def polygon(count: int) -> Tensor:
    angles = 2 * math.pi * torch.arange(count, dtype=F64) / count
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize(
    ("code", "distance"),
    [
        (simplex_etf(7, 9, seeded(0)), 7 / 6),
        (simplex_etf(4, 3, seeded(1)), 4 / 3),
        (torch.cat([torch.eye(4), -torch.eye(4)]).to(F64), 1.0),
        (polygon(5), 1 - math.cos(2 * math.pi / 5)),
        (polygon(12), 1 - math.cos(2 * math.pi / 12)),
        (polygon(8)[:6], 1 - math.cos(2 * math.pi / 8)),  # the two at the gap are farther
    ],
    ids=["etf", "full_etf", "cross_polytope", "pentagon", "dodecagon", "open_octagon"],
)
def test_one_vs_rest_distance_of_softmax_codes(code: Tensor, distance: float) -> None:
    count, dim = code.shape
    lengths = torch.linspace(1, 3, count, dtype=F64)[:, None]  # directions count alone
    features = torch.randn(2 * count, dim, dtype=F64, generator=seeded(0))
    labels = torch.arange(count).repeat(2)
    report = measure_collapse(features, labels, lengths * code, metrics=["gnc2_one_vs_rest"])
    assert report.gnc2_one_vs_rest == close(distance)


def test_minority_cosine_and_norm_ratio_by_hand() -> None:
    # sizes 8, 8, 2, 2, 2: below √16 = 4 are the last three
    labels = torch.tensor([0, 1] * 8 + [2, 3, 4] * 2)
    rows = torch.tensor([[3.0, 0, 0], [0, 3, 4], [1, 0, 0], [0, 2, 0], [-1, 0, 0]], dtype=F64)
    features = torch.randn(22, 3, dtype=F64, generator=seeded(0))
    got = measure_collapse(features, labels, rows, metrics="imbalance")
    assert got.minority_cos == close((0 + 0 - 1) / 3)
    assert got.norm_ratio == close(4 / (4 / 3))
    even = measure_collapse(features[:10], torch.arange(5).repeat(2), rows, metrics="imbalance")
    assert math.isnan(even.minority_cos)
    assert math.isnan(even.norm_ratio)


# -- no structure ----------------------------------------------------------------------------------

NULLS = ("nc1", "nc1_quotient", "within_in_span_frac", "nc1_cdnv", "vci")


@pytest.mark.parametrize("structured", [False, True], ids=["random", "structured"])
def test_shuffled_labels_have_the_expectations_of_no_structure(structured: bool) -> None:
    count, dim, per_class, draws = 5, 40, 20, 80
    labels = torch.arange(count).repeat_interleave(per_class)
    real, nulls = [], []
    for seed in range(draws):
        features = torch.randn(len(labels), dim, generator=seeded(seed))
        if structured:  # isotropic as before, but the label is read off the feature
            features = features[features[:, 0].argsort()]
        report = measure_collapse(features, labels, metrics="nc1")
        real.append(report)
        nulls.append(report.null(seed))
    for name, expected in null_expectations(count, dim, per_class).items():
        if name not in NULLS:
            continue
        values = torch.tensor([null.values[name] for null in nulls], dtype=F64)
        error = float(values.std()) / math.sqrt(draws)
        assert error < 0.02 * expected  # so that the next line says something
        assert abs(float(values.mean()) - expected) < 4 * error, name
        plain = sum(report.values[name] for report in real) / draws
        assert (abs(plain - expected) > 10 * error) == structured, name


NOISY = BY_NAME["noisy"]


def numbers(report: CollapseReport) -> dict[str, Any]:
    return dict(report.values) | {"error": report.error, "samples": report.samples}


def test_a_null_is_its_seeds_and_leaves_everything_else_alone() -> None:
    case = NOISY
    report = measure_collapse(case.features, case.labels, case.weight, case.bias, metrics="nc1")
    before = (case.features.clone(), case.labels.clone(), dict(report.values))
    state = torch.get_rng_state()
    one, again, other = report.null(), report.null(0), report.null(1)
    assert torch.get_rng_state().equal(state)
    assert case.features.equal(before[0])
    assert case.labels.equal(before[1])
    assert report.values == before[2]
    assert numbers(one) == numbers(again)
    assert one.vectors["nc1_per_class"].equal(again.vectors["nc1_per_class"])
    assert one.nc1 != other.nc1
    assert list(one.values) == list(report.values)
    for null in (one, other):
        assert null.moments.counts.equal(report.moments.counts)
        assert null.feature_norm_mean == pytest.approx(report.feature_norm_mean, rel=1e-12)
        assert null.w_norm == report.w_norm
        assert null.nc1 > 10 * report.nc1
        assert 0.8 < null.error < 1  # the predictions stay: 1 − 1/K
        assert math.isnan(null.cross_entropy)


def test_a_report_does_not_keep_its_features() -> None:
    features, labels = NOISY.features.clone(), NOISY.labels.clone()
    report = measure_collapse(features, labels)
    assert report.null().nc1 > report.nc1
    del features
    gc.collect()
    with pytest.raises(InputError, match="the features of this report are gone"):
        report.null()
    with pytest.raises(InputError, match="pass null_seed= to measure_batches"):
        measure_batches([(NOISY.features, labels)], num_classes=10).null()


def test_labels_of_tokens_and_a_square_weight_are_remembered_as_others_are() -> None:
    # Both have as many rows as the features, and nobody else holds them.
    features = NOISY.features.view(20, 25, 32)
    report = measure_collapse(features, NOISY.labels.view(20, 25))
    assert report.null().nc1 > report.nc1
    few, means = torch.arange(10) % 5, NOISY.features[:10]
    report = measure_collapse(means, few, torch.eye(10, 32), metrics="nc1")
    assert report.null().w_norm == report.w_norm


def test_a_null_measured_on_the_way_is_the_one_measured_afterwards() -> None:
    x, y, w, b = NOISY.features, NOISY.labels, NOISY.weight, NOISY.bias
    wanted: dict[str, Any] = {"metrics": "all", "superclasses": [0] * 5 + [1] * 5, "ridge": 0.1}
    later = measure_collapse(x, y, w, b, **wanted).null(3)
    way = measure_batches([(x, y)], w, b, null_seed=3, **wanted)
    assert list(map(repr, numbers(way.null(3)).values())) == [
        repr(value) for value in numbers(later).values()
    ]
    with pytest.raises(InputError, match=r"measured with seed 3, not 0: ask for null\(3\)"):
        way.null(0)
    parts = list(zip(x.split(64), y.split(64), strict=True))
    in_parts = measure_batches(parts, w, b, null_seed=3, **wanted)
    assert_agree(flat(in_parts.null(3)), flat(later), rtol=1e-5)
    assert_agree(
        flat(in_parts),
        flat(measure_batches([(x, y)], w, b, **wanted)),
        rtol=1e-5,
    )


def test_a_null_past_the_budget_reads_four_times() -> None:
    readings = []

    class Source:
        def __iter__(self) -> Any:
            readings.append(1)
            yield from zip(NOISY.features.split(64), NOISY.labels.split(64), strict=True)

    with pytest.warns(UserWarning, match="the network runs 4 times"):
        report = measure_batches(Source(), num_classes=10, null_seed=3, cache_bytes=10)
    assert len(readings) == 4
    want = measure_collapse(NOISY.features, NOISY.labels).null(3)
    assert_agree(flat(report.null(3)), flat(want), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:features take")
@pytest.mark.parametrize("ignored", [False, True])
def test_the_null_of_a_source_that_shuffles_is_refused_past_the_budget(ignored: bool) -> None:
    # Shuffled labels go by position, where a loader that shuffles has another sample each time.
    labels = (
        torch.where(torch.arange(500) % 7 == 0, -100, NOISY.labels) if ignored else NOISY.labels
    )
    readings: list[int] = []

    class Shuffling:
        def __iter__(self) -> Any:
            readings.append(1)
            order = torch.randperm(500, generator=seeded(len(readings)))
            features = NOISY.features[order, :8]
            yield from zip(features.split(64), labels[order].split(64), strict=True)

    report = measure_batches(Shuffling(), num_classes=10, null_seed=3, cache_bytes=10)
    # the means span all 8 dimensions, and so do the residuals: the measurement itself is right
    assert report.within_in_span_frac == pytest.approx(1, rel=1e-6)
    with pytest.raises(InputError, match="in another order at each reading"):
        report.null(3)


# -- training: the row mean knows weight decay alone -----------------------------------------------

RATE, MOMENTUM, DECAY, STEPS = 0.1, 0.9, 5e-3, 150


def trained(labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """‖Wᵀ1‖ before and after training a real network, from its reports."""
    torch.manual_seed(0)
    inputs = torch.randn(96, 6, generator=seeded(0))
    body, head = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 4)
    optimizer = torch.optim.SGD(
        [*body.parameters(), *head.parameters()], RATE, momentum=MOMENTUM, weight_decay=DECAY
    )

    def row_sum() -> float:
        features = body.eval()(inputs)
        body.train()
        report = measure_collapse(features, labels, head.weight, head.bias, metrics=["nc0_k"])
        assert report.nc0_k == pytest.approx(report.w_mean_ratio**2 * report.w_norm**2, rel=1e-12)
        return math.sqrt(4 * report.nc0_k)

    before = row_sum()
    for step in range(STEPS):
        part = slice(32 * (step % 3), 32 * (step % 3) + 32)
        optimizer.zero_grad()
        loss(head(body(inputs[part])), labels[part]).backward()
        optimizer.step()
    return before, row_sum()


def test_the_row_mean_decays_by_weight_decay_alone_whatever_the_labels() -> None:
    velocity, factor = 0.0, 1.0
    for _ in range(STEPS):
        velocity = MOMENTUM * velocity + DECAY * factor
        factor -= RATE * velocity
    assert 0.3 < factor < 0.7
    teacher = torch.randn(6, 4, generator=seeded(1))
    real = (torch.randn(96, 6, generator=seeded(0)) @ teacher).argmax(1)
    chance = torch.randint(4, (96,), generator=seeded(2))
    cross_entropy = nn.CrossEntropyLoss()
    for labels in (real, chance):
        before, after = trained(labels, cross_entropy)
        assert after / before == pytest.approx(factor, rel=1e-4)
    squared = nn.MSELoss()
    before, after = trained(real, lambda z, y: squared(z, one_hot(y, 4).float()))
    assert abs(after / before / factor - 1) > 0.01  # nothing protects it there


# -- what leaves every metric alone ----------------------------------------------------------------

#: Change -> metrics that are not invariant to it. Features times a, W times c, b times ac.
MOVES: dict[str, set[str]] = {
    "order": set(),
    "rotation": set(),
    "classes": set(),
    "scale": {
        *("feature_norm_mean", "w_norm", "nc0_k", "cross_entropy"),
        *("mse_l_perp", "central_path_dist"),
    },
    "translation": {"feature_norm_mean", "sel_logit_dist"},
}
BLOCKS = torch.tensor([0, 1, 1, 0, 1])


def moved(case: Case, change: str, seed: int) -> tuple[dict[str, Any], Tensor]:
    """The case after a change, and where each class went."""
    assert case.weight is not None
    assert case.bias is not None
    x, y, w, b, blocks, place = (
        *(case.features, case.labels, case.weight, case.bias, BLOCKS),
        torch.arange(5),
    )
    if change == "order":
        order = torch.randperm(len(y), generator=seeded(seed))
        x, y = x[order], y[order]
    elif change == "rotation":
        turn = orthogonal_frame(8, 8, seeded(seed))
        x, w = x @ turn, w @ turn
    elif change == "classes":
        order = torch.randperm(5, generator=seeded(seed))
        place = order.argsort()
        y, w, b, blocks = place[y], w[order], b[order], blocks[order]
    elif change == "scale":
        a, c = (torch.rand(2, generator=seeded(seed), dtype=F64) * 4).exp().tolist()
        x, w, b = a * x, c * w, a * c * b
    elif change == "translation":
        shift = torch.randn(8, generator=seeded(seed), dtype=F64)
        x, b = x + shift, b - w @ shift
    given = {"features": x, "labels": y, "weight": w, "bias": b, "superclasses": blocks}
    return given | {"metrics": "all"}, place


@pytest.mark.parametrize("change", MOVES)
@given(seed=st.integers(0, 10**6))
@FEW
def test_only_what_it_must_changes_with_the_frame_of_reference(change: str, seed: int) -> None:
    case = small(seed)
    before, _ = moved(case, "", seed)
    after, place = moved(case, change, seed)
    one, two = measure_collapse(**before), measure_collapse(**after)
    old, new = flat(one), flat(two)
    for name in MOVES[change]:
        assert abs(old.pop(name) / new.pop(name) - 1) > 1e-6, name
    assert_agree(new, old, rtol=1e-9)
    torch.testing.assert_close(two.nc1_per_class[place], one.nc1_per_class, rtol=1e-9, atol=0)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 43), max_size=4))
@FEW
def test_batches_and_merged_moments_leave_every_metric_alone(seed: int, cuts: list[int]) -> None:
    case, train = small(seed), small(seed + 1)
    ends = [0, *sorted(cuts), 43]
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    whole = ClassMoments(5).update(train.features, train.labels)
    merged = ClassMoments(5)
    for part in reversed(parts):
        merged = merged.merge(ClassMoments(5).update(train.features[part], train.labels[part]))
    batches = [(case.features[part], case.labels[part]) for part in parts]
    how: dict[str, Any] = {"superclasses": BLOCKS, "metrics": "all", "ridge": 0.01}
    one = measure_collapse(
        case.features, case.labels, case.weight, case.bias, reference=whole, **how
    )
    two = measure_batches(batches, case.weight, case.bias, reference=merged, **how)
    assert_agree(flat(two), flat(one), rtol=1e-9)
    torch.testing.assert_close(two.nc1_per_class, one.nc1_per_class, rtol=1e-9, atol=0)
