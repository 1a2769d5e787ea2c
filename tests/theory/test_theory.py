"""Closed forms against what they stand for: minimisation, simulation, the metrics themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor
from torch.testing import assert_close

import cases
from cases import seeded
from ncmonitor import InputError, measure_collapse, theory
from ncmonitor.geometry.vectors import GramSpectrum, Vectors
from ncmonitor.metrics import equiangularity

F64 = torch.float64
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
#: Sizes of the ten training classes of MNIST.
MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def centring(num_classes: int) -> Tensor:
    return torch.eye(num_classes, dtype=F64) - 1 / num_classes


def etf_distance(rows: Tensor, *, centred: bool = False) -> float:
    return equiangularity.etf_distance(GramSpectrum.of(rows), centred=centred)


def near(value: Any) -> Any:
    """``pytest.approx`` without its absolute tolerance of 1e-12, which small numbers live in."""
    return pytest.approx(value, rel=1e-12, abs=0)


def unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm()


def rows_with(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (2, 5), (3, 2), (10, 9), (10, 64)])
def test_simplex_etf_has_its_gram_matrix(num_classes: int, dim: int, seed: int | None) -> None:
    generator = None if seed is None else seeded(seed)
    rows = theory.simplex_etf(num_classes, dim, generator=generator)
    assert (rows.shape, rows.dtype) == ((num_classes, dim), F64)
    expected = centring(num_classes) * num_classes / (num_classes - 1)
    assert_close(rows @ rows.T, expected, rtol=0, atol=1e-14)
    assert etf_distance(rows) < 1e-14
    assert equiangularity.angles(Vectors(rows))[1] < 1e-14


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("num_classes", "dim"), [(2, 2), (3, 8), (10, 10)])
def test_orthogonal_frame_is_as_far_from_an_etf_as_it_must_be(
    num_classes: int, dim: int, seed: int | None
) -> None:
    generator = None if seed is None else seeded(seed)
    rows = theory.orthogonal_frame(num_classes, dim, generator=generator)
    assert_close(rows @ rows.T, torch.eye(num_classes, dtype=F64), rtol=0, atol=1e-14)
    distance = math.sqrt(2 - 2 * math.sqrt((num_classes - 1) / num_classes))
    assert etf_distance(rows) == pytest.approx(distance, rel=1e-13)
    assert etf_distance(rows, centred=True) < 1e-14


@pytest.mark.parametrize("build", [theory.simplex_etf, theory.orthogonal_frame])
def test_position_is_the_generators_and_nothing_else_is_drawn(
    build: Callable[..., Tensor],
) -> None:
    before = torch.get_rng_state()
    fixed, again = build(4, 7), build(4, 7)
    one, two = (build(4, 7, generator=seeded(i)) for i in (0, 1))
    assert torch.equal(one, build(4, 7, generator=seeded(0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(fixed, again)
    assert float(fixed[:, 4:].abs().max()) == 0
    assert float((one - two).norm()) > 0.1


def test_random_position_is_uniform() -> None:
    generator = seeded(0)
    turns = [theory.orthogonal_frame(3, 3, generator=generator).trace() for _ in range(1000)]
    traces = torch.stack(turns)
    # A uniform rotation or reflection has E tr = 0, E tr² = 1; without the signs E tr is not 0.
    assert float(traces.mean()) == pytest.approx(0, abs=0.1)
    assert float(traces.square().mean()) == pytest.approx(1, abs=0.15)


# -- unconstrained features ------------------------------------------------------------------------


class Problem(NamedTuple):
    """The arguments of ``ufm_optimum``, in order; the last is the decay of the bias."""

    loss: Any
    num_classes: int
    dim: int
    samples_per_class: int
    decay_w: float
    decay_h: float
    decay_b: float | None = None

    def optimum(self) -> theory.UfmOptimum:
        return theory.ufm_optimum(*self[:6], weight_decay_b=self.decay_b, generator=seeded(0))

    def objective(self, weight: Tensor, features: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
        return theory.ufm_objective(
            weight,
            features,
            bias,
            y,
            loss=self.loss,
            weight_decay_w=self.decay_w,
            weight_decay_h=self.decay_h,
            weight_decay_b=self.decay_b or 0.0,
        )


PROBLEMS = [
    Problem("ce", 4, 6, 5, 1e-2, 1e-3),
    Problem("ce", 5, 4, 3, 1e-2, 2e-2, 0.0),  # d = K − 1
    Problem("ce", 2, 1, 4, 5e-2, 1e-2, 1e-2),
    Problem("mse", 4, 6, 5, 1e-2, 1e-3),
    Problem("mse", 3, 3, 2, 5e-2, 2e-2),  # d = K
    Problem("mse", 4, 3, 5, 1e-2, 1e-3, 0.0),  # d = K − 1
    Problem("mse", 4, 3, 5, 1e-2, 1e-3, 1e-2),  # bias cheaper than a common logit
    Problem("mse", 4, 5, 3, 3e-2, 2e-2, 0.5),  # bias and common logit share
]
TRIVIAL = [
    Problem("ce", 4, 2, 4, 0.15, 0.15),
    Problem("ce", 4, 5, 4, 0.15, 0.15, 0.1),
    Problem("mse", 4, 5, 4, 0.15, 0.15),
    Problem("mse", 4, 5, 4, 0.15, 0.15, 0.0),
    Problem("mse", 4, 5, 4, 0.15, 0.15, 5.0),
]


def minimise(problem: Problem, counts: Sequence[int], gradient: float = 1e-8) -> dict[str, Any]:
    """Minimise the objective by L-BFGS from a random start; returns the point and its value."""
    generator = seeded(1)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def start(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()

    weight, features = start(len(counts), problem.dim), start(len(labels), problem.dim)
    bias = None if problem.decay_b is None else start(len(counts))
    free = [p for p in (weight, features, bias) if p is not None]
    search = torch.optim.LBFGS(
        free,
        max_iter=2000,
        max_eval=4000,
        tolerance_grad=gradient,
        tolerance_change=0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = problem.objective(weight, features, bias, labels)
        torch.autograd.backward(value)
        return value.detach()

    search.step(closure)
    return {
        "value": float(closure()),
        "weight": weight.detach(),
        "features": features.detach(),
        "bias": None if bias is None else bias.detach(),
    }


@pytest.mark.parametrize("problem", PROBLEMS + TRIVIAL, ids=str)
def test_no_point_is_below_the_optimum_and_minimisation_ends_there(problem: Problem) -> None:
    optimum = problem.optimum()
    found = minimise(problem, [problem.samples_per_class] * problem.num_classes)
    assert found["value"] == pytest.approx(optimum.objective, rel=0, abs=1e-10)
    # The same up to a rotation: equal products. Gradients stop at 1e-8, curvatures are above 1e-3.
    close: dict[str, Any] = {"rtol": 0, "atol": 3e-5}
    weight, features = found["weight"], found["features"]
    assert_close(weight @ weight.T, optimum.weight @ optimum.weight.T, **close)
    assert_close(features @ features.T, optimum.features @ optimum.features.T, **close)
    assert_close(features @ weight.T, optimum.features @ optimum.weight.T, **close)
    if optimum.bias is not None:
        shift = found["bias"] - optimum.bias
        if problem.loss == "ce" and problem.decay_b == 0:
            shift = shift - shift.mean()  # softmax does not see it
        assert_close(shift, torch.zeros_like(shift), **close)


@pytest.mark.parametrize("problem", PROBLEMS + TRIVIAL, ids=str)
def test_the_matrices_attain_the_optimum_and_have_no_gradient(problem: Problem) -> None:
    optimum = problem.optimum()
    point = [optimum.weight, optimum.features, optimum.bias]
    free = [p.clone().requires_grad_() for p in point if p is not None]
    value = problem.objective(free[0], free[1], free[2] if len(free) > 2 else None, optimum.labels)
    assert value.item() == pytest.approx(optimum.objective, rel=1e-14)
    for gradient in torch.autograd.grad(value, free):
        assert float(gradient.abs().max()) < 1e-15
    rows = optimum.weight.norm(dim=1)
    assert_close(rows, torch.full_like(rows, optimum.weight_norm), rtol=1e-14, atol=0)
    lengths = optimum.features.norm(dim=1)
    assert_close(lengths, torch.full_like(lengths, optimum.feature_norm), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("problem", "objective"),
    [
        (Problem("ce", 4, 6, 5, 1e-2, 1e-3), 0.1260289434),
        (Problem("mse", 4, 6, 5, 1e-2, 1e-3), 0.0278842712),
        (Problem("mse", 4, 6, 5, 1e-2, 1e-3, 0.0), 0.0209132034),
        (Problem("ce", 10, 10, 4, 5e-3, 5e-4), 0.1918834027),
    ],
    ids=str,
)
def test_optima_found_before_by_minimisation(problem: Problem, objective: float) -> None:
    assert problem.optimum().objective == pytest.approx(objective, rel=0, abs=5e-11)


def test_norms_found_before_by_minimisation() -> None:
    optimum = PROBLEMS[0].optimum()
    assert optimum.weight_norm == pytest.approx(1.61700, abs=5e-6)
    assert optimum.feature_norm == pytest.approx(2.28678, abs=5e-6)


@pytest.mark.parametrize("num_classes", [2, 4, 100])
@pytest.mark.parametrize("decay", [1e-9, 1e-4, 2.5e-3])
def test_optimum_follows_the_formulas_in_c(num_classes: int, decay: float) -> None:
    K, n, ratio = num_classes, 4, 3.0
    c = K * math.sqrt(n * decay * ratio * decay)
    assert c < 1
    decays = (K, K, n, decay, ratio * decay)
    ce = theory.ufm_optimum("ce", *decays)
    frame = theory.ufm_optimum("mse", *decays)
    etf = theory.ufm_optimum("mse", *decays, weight_decay_b=0.0)
    assert ce.nontrivial == frame.nontrivial == etf.nontrivial is True
    assert [o.c for o in (ce, frame, etf)] == near([c] * 3)
    gap, share = math.log(K / c - K + 1), (K - 1) / K
    assert ce.logit_gap == near(gap)
    assert ce.loss_term == near(-math.log1p(-c * share))
    assert ce.objective == near(ce.loss_term + c * share * gap)
    assert ce.weight_norm**2 == near(share * gap * math.sqrt(n * ratio))
    assert ce.feature_norm**2 == near(share * gap / math.sqrt(n * ratio))
    assert frame.loss_term == near(c**2 / 2)
    assert frame.objective == near(c - c**2 / 2)
    assert frame.weight_norm**2 == near((1 - c) * math.sqrt(n * ratio))
    assert etf.loss_term == near(share * c**2 / 2)
    assert etf.objective == near(share * (c - c**2 / 2))
    assert frame.logit_gap == etf.logit_gap == near(1 - c)
    assert etf.bias is not None
    assert_close(etf.bias, torch.full((K,), 1 / K, dtype=F64))


@pytest.mark.parametrize(
    ("problem", "value"),
    [*zip(TRIVIAL, [math.log(4)] * 2 + [1 / 2, 3 / 8, 3 / 8 + 1 / 8 * 5 / 6], strict=True)],
    ids=str,
)
def test_strong_decay_leaves_nothing_but_a_bias(problem: Problem, value: float) -> None:
    optimum = problem.optimum()
    assert optimum.c > 1
    assert not optimum.nontrivial
    assert optimum.logit_gap == optimum.weight_norm == optimum.feature_norm == 0
    assert float(optimum.weight.abs().max() + optimum.means.abs().max()) == 0
    assert optimum.objective == pytest.approx(value, rel=1e-14)


def test_phase_changes_at_c_equal_to_one_without_losing_digits() -> None:
    at = theory.ufm_optimum("ce", 2, 2, 1, 0.5, 0.5)
    assert (at.c, at.nontrivial, at.logit_gap) == (1, False, 0)
    for missing in (1e-12, 3e-12, 7e-12):
        below = theory.ufm_optimum("ce", 7, 6, 1, 1 / 7, (1 - missing) / 7)
        assert below.nontrivial
        # t = log(1 + K (1 − c)/c), where log(K/c − K + 1) has four digits left
        assert below.logit_gap == pytest.approx(7 * (1 - below.c), rel=1e-9, abs=0)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_metrics_see_a_full_collapse_at_the_optimum(problem: Problem) -> None:
    optimum = problem.optimum()
    report = measure_collapse(optimum.features, optimum.labels, optimum.weight, optimum.bias)
    assert report.error == report.nc1_quotient == report.nc4_disagreement == 0
    assert report.nc2_etf_means < 1e-13
    assert report.nc3_self_duality_centered < 1e-13
    if problem.loss == "ce":
        assert report.cross_entropy == pytest.approx(optimum.loss_term, rel=1e-12)
    if problem.loss == "ce" or problem.decay_b in (0.0, 1e-2):
        assert report.nc2_etf_w < 1e-13
        assert report.w_mean_ratio < 1e-13
        assert report.nc3_self_duality < 1e-13
    elif problem.decay_b is None:
        frame = math.sqrt(2 - 2 * math.sqrt((problem.num_classes - 1) / problem.num_classes))
        assert report.nc2_etf_w == pytest.approx(frame, rel=1e-12)
        assert report.nc3_self_duality == pytest.approx(frame, rel=1e-12)
        assert report.w_mean_ratio == pytest.approx(problem.num_classes**-0.5, rel=1e-12)


def test_torch_mse_loss_is_the_same_problem_with_other_decays() -> None:
    optimum = theory.ufm_optimum("mse", 4, 4, 3, 2 * 1e-2, 2 * 1e-3)  # K/2 times the decays
    target = torch.nn.functional.one_hot(optimum.labels, 4).to(F64)
    loss = torch.nn.MSELoss()(optimum.features @ optimum.weight.T, target)
    decays = 1e-2 * optimum.weight.square().sum() + 1e-3 * optimum.features.square().sum()
    assert float(loss + decays / 2) == pytest.approx(optimum.objective * 2 / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "cosine"), [(1, -0.200), (2, -0.137), (5, -0.024), (20, 0.222), (50, 0.422)]
)
def test_minority_classifiers_move_together_with_the_imbalance(ratio: int, cosine: float) -> None:
    counts = [ratio] * 3 + [1] * 3
    problem = Problem("ce", 6, 6, 1, 5e-3, 5e-3 * 6 / sum(counts))
    rows = minimise(problem, counts)["weight"][3:]
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert float((rows @ rows.T)[0, 1]) == pytest.approx(cosine, abs=6e-4)


# -- imbalanced classes ----------------------------------------------------------------------------

COUNTS = [[8, 8, 2, 2], [5, 5, 5], [1, 2, 3, 50], [7, 3], [20, 1, 1, 1, 9, 4, 30]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_seli_grams_come_from_the_svd_of_the_centred_labels(counts: list[int]) -> None:
    num_classes = len(counts)
    labels = torch.arange(num_classes).repeat_interleave(torch.tensor(counts))
    one_hot = torch.nn.functional.one_hot(labels, num_classes).to(F64)  # (N, K)
    centred = (one_hot - 1 / num_classes).T  # (K, N)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    kept = values > 1e-9 * values[0]
    gram_w = (left[:, kept] * values[kept]) @ left[:, kept].T
    gram_h = (right[kept].T * values[kept]) @ right[kept]  # (N, N)
    firsts = [labels.tolist().index(c) for c in range(num_classes)]
    got_w, got_m = theory.seli_grams(counts)
    assert_close(got_w, gram_w, rtol=0, atol=1e-13)
    assert_close(got_m, gram_h[firsts][:, firsts], rtol=0, atol=1e-13)


@pytest.mark.parametrize("counts", [*COUNTS, MNIST, [10**9, 3, 1, 10**5]], ids=str)
def test_seli_grams_are_a_root_and_its_pseudo_inverse(counts: list[int]) -> None:
    gram_w, gram_m = theory.seli_grams(torch.tensor(counts))
    projector = centring(len(counts))
    square = projector @ torch.diag(torch.tensor(counts, dtype=F64)) @ projector
    assert float((gram_w @ gram_w - square).norm() / square.norm()) < 1e-14
    # Rounding grows with the condition number only, √(1e9): no root of it.
    assert float((gram_w @ gram_m - projector).norm()) < 1e-15 * len(counts) * (
        10 * math.sqrt(max(counts) / min(counts))
    )
    assert float(gram_w.sum(1).norm() / gram_w.norm()) < 1e-14
    assert float(gram_m.sum(1).norm() / gram_m.norm()) < 1e-14


def test_seli_of_balanced_classes_is_the_simplex_etf() -> None:
    gram_w, gram_m = theory.seli_grams([25] * 6)
    assert_close(gram_w, 5 * centring(6), rtol=0, atol=1e-13)
    assert_close(gram_m, centring(6) / 5, rtol=0, atol=1e-14)
    for limits in (theory.imbalance_limits([25] * 6), *theory.seli_limits([25] * 6)):
        assert max(limits) < 1e-14


def test_vanishing_decay_leads_to_seli_slowly_and_not_to_the_etf() -> None:
    counts = [8, 8, 2, 2]
    gram, _ = theory.seli_grams(counts)
    distances = []
    for decay in (1e-3, 1e-5, 1e-7):
        problem = Problem("ce", 4, 5, 1, decay, decay)
        weight = minimise(problem, counts, gradient=1e-4 * decay)["weight"]
        distances.append(float((unit(weight @ weight.T) - unit(gram)).norm()))
        assert etf_distance(weight) == pytest.approx(0.31, abs=0.025)
    assert distances == pytest.approx([0.073, 0.044, 0.031], abs=6e-4)


@pytest.mark.parametrize("counts", [*COUNTS, MNIST], ids=str)
def test_seli_floors_are_the_metrics_of_vectors_with_those_grams(counts: list[int]) -> None:
    for limits, gram in zip(theory.seli_limits(counts), theory.seli_grams(counts), strict=True):
        rows = rows_with(gram)
        assert limits.cov_norm == pytest.approx(
            equiangularity.equinorm(Vectors(rows)), rel=1e-10, abs=1e-13
        )
        assert limits.etf_distance == pytest.approx(etf_distance(rows), rel=1e-10, abs=1e-13)


def test_full_mnist_cannot_reach_the_etf() -> None:
    exact, means = theory.seli_limits(MNIST)
    assert exact == pytest.approx((0.0118, 0.0251), abs=5e-5)
    assert means == pytest.approx((0.0117, 0.0249), abs=5e-5)
    assert theory.imbalance_limits(MNIST) == pytest.approx((0.0119, 0.0253), abs=5e-5)


def test_first_order_floors_miss_by_the_second_order() -> None:
    pattern = torch.tensor([-3.0, 1.0, 0.5, 2.0, -0.5], dtype=F64)
    misses = []
    for step in (1e-2, 1e-3):
        counts = 1 + step * pattern
        first = torch.tensor(theory.imbalance_limits(counts), dtype=F64)
        exact = torch.tensor(theory.seli_limits(counts), dtype=F64)  # (2, 2)
        misses.append((exact / first - 1).abs().max().item())
    assert misses[0] < 0.02
    assert misses[1] == pytest.approx(misses[0] / 10, rel=0.1)


def test_two_classes_are_an_etf_whatever_their_sizes() -> None:
    for limits in (theory.imbalance_limits([90, 3]), *theory.seli_limits([90, 3])):
        assert max(limits) < 1e-15


# -- more classes than dimensions ------------------------------------------------------------------


def harmonic_frame(num_classes: int, dim: int) -> Tensor:
    """Centred, tight, unit rows: d/2 frequencies of the discrete Fourier transform."""
    turns = 2 * math.pi * torch.arange(num_classes, dtype=F64)[:, None] / num_classes
    waves = turns * torch.arange(1, dim // 2 + 1, dtype=F64)
    return torch.cat([waves.cos(), waves.sin()], dim=1) / math.sqrt(dim / 2)


@pytest.mark.parametrize(("num_classes", "dim"), [(100, 10), (5, 2), (9, 4), (40, 38), (7, 6)])
def test_a_tight_frame_attains_both_floors(num_classes: int, dim: int) -> None:
    rows = harmonic_frame(num_classes, dim)
    etf, spread = (
        f(num_classes, dim) for f in (theory.etf_distance_floor, theory.cosine_std_floor)
    )
    for centred in (False, True):
        assert etf_distance(rows, centred=centred) == pytest.approx(etf, rel=1e-12, abs=1e-13)
    assert equiangularity.angles(Vectors(rows))[0] == pytest.approx(spread, rel=1e-12, abs=1e-13)
    assert (etf > 0) == (spread > 0) == (num_classes > dim + 1)


@given(st.integers(2, 24), st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 3))
@QUICK
def test_no_vectors_are_nearer_to_an_etf_than_the_floor(
    num_classes: int, dim: int, seed: int, offset: float
) -> None:
    rows = torch.randn(num_classes, dim, generator=seeded(seed), dtype=F64) + offset
    floor = theory.etf_distance_floor(num_classes, dim) * (1 - 1e-12)
    assert etf_distance(rows, centred=False) >= floor
    assert etf_distance(rows, centred=True) >= floor


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
@QUICK
def test_no_centred_vectors_of_one_length_have_more_even_angles_than_the_floor(
    pairs: int, dim: int, seed: int
) -> None:
    half = torch.nn.functional.normalize(torch.randn(pairs, dim, generator=seeded(seed), dtype=F64))
    spread, _ = equiangularity.angles(Vectors(torch.cat([half, -half])))
    assert spread >= theory.cosine_std_floor(2 * pairs, dim) * (1 - 1e-9) - 1e-12


def test_floors_have_their_known_values() -> None:
    assert theory.etf_distance_floor(100, 10) == pytest.approx(1.168, abs=5e-4)
    assert theory.etf_distance_floor(29_233, 64) == pytest.approx(1.381, abs=5e-4)
    assert theory.etf_distance_floor(10, 9) == theory.cosine_std_floor(10, 9) == 0
    welch = (100 - 10) / (10 * 99) - 1 / 99**2
    assert theory.cosine_std_floor(100, 10) == pytest.approx(math.sqrt(welch), rel=1e-12)


def one_vs_rest(rows: Tensor) -> float:
    """Smallest distance of a row to the hull of the others, by non-negative least squares."""
    distances = []
    for k in range(len(rows)):
        others = torch.cat([rows[:k], rows[k + 1 :]])
        # a heavy row of ones makes the weights sum to one
        heavy = torch.cat([others, torch.full((len(others), 1), 1e4, dtype=F64)], dim=1)
        target = torch.cat([rows[k], torch.full((1,), 1e4, dtype=F64)])
        weights = torch.from_numpy(nnls(heavy.T.numpy(), target.numpy())[0])
        distances.append(float((others.T @ (weights / weights.sum()) - rows[k]).norm()))
    return min(distances)


def cross_polytope(num_classes: int, dim: int) -> Tensor:
    corners = torch.eye(dim, dtype=F64)
    return torch.stack([corners, -corners], dim=1).flatten(0, 1)[:num_classes]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (theory.simplex_etf(2, 3), 2),
        (theory.simplex_etf(5, 4), 5 / 4),
        (theory.simplex_etf(5, 9, generator=seeded(0)), 5 / 4),
        (cross_polytope(8, 4), 1),
        (torch.cat([cross_polytope(4, 4), torch.eye(4, dtype=F64)[2:]]), 1),  # K = d + 2
        (harmonic_frame(4, 2), 1),
        (harmonic_frame(9, 2), 1 - math.cos(2 * math.pi / 9)),
        (torch.tensor([[1.0], [1.0], [-1.0]], dtype=F64), 0),
    ],
)
def test_softmax_codes_have_the_known_one_vs_rest_distance(code: Tensor, value: float) -> None:
    assert theory.softmax_code_distance(*code.shape) == pytest.approx(value, rel=1e-12)
    assert one_vs_rest(code) == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("num_classes", "dim"), [(3, 2), (4, 3), (5, 3), (6, 3), (5, 2), (7, 2)])
def test_random_codes_stay_below_the_known_distance(num_classes: int, dim: int) -> None:
    generator = seeded(0)
    best = 0.0
    for _ in range(60):
        rows = torch.randn(num_classes, dim, generator=generator, dtype=F64)
        best = max(best, one_vs_rest(torch.nn.functional.normalize(rows)))
    assert 0.2 * theory.softmax_code_distance(num_classes, dim) < best
    assert best < theory.softmax_code_distance(num_classes, dim)


def test_distance_of_a_code_nobody_knows_is_nan() -> None:
    assert math.isnan(theory.softmax_code_distance(7, 3))
    assert theory.softmax_code_distance(6, 3) == 1


# -- no structure ----------------------------------------------------------------------------------


def unstructured(num_classes: int, dim: int, count: int, draws: int) -> dict[str, Tensor]:
    """The metrics of isotropic Gaussian features from their definitions, one entry per draw."""
    features = torch.randn(draws, num_classes, count, dim, generator=seeded(0), dtype=F64)
    rows = torch.randn(draws, num_classes, dim, generator=seeded(1), dtype=F64)
    means = features.mean(2)
    noise = (features - means[:, :, None]).flatten(1, 2)  # (draws, N, d)
    centred = means - means.mean(1, keepdim=True)  # (draws, K, d)
    within = noise.mT @ noise / (num_classes * count)
    between = centred.mT @ centred / num_classes
    rank = min(num_classes - 1, dim)
    inverse = torch.linalg.pinv(between, rtol=1e-9, hermitian=True)
    total = torch.linalg.pinv(within + between, rtol=1e-9, hermitian=True)
    trace = within.diagonal(dim1=1, dim2=2).sum(1)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:, :rank]
    variances = noise.square().sum(2).unflatten(1, (num_classes, count)).mean(2)
    gaps = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    cdnv = (variances[:, :, None] + variances[:, None]) / (2 * gaps)
    pairs = ~torch.eye(num_classes, dtype=torch.bool)
    normed = torch.nn.functional.normalize(rows, dim=2)
    cosines = (normed @ normed.mT)[:, pairs]
    overlap = (rows * centred).sum((1, 2)) / (
        rows.flatten(1).norm(dim=1) * centred.flatten(1).norm(dim=1)
    )
    return {
        "nc1": (within * inverse).sum((1, 2)) / num_classes,
        "nc1_quotient": trace / between.diagonal(dim1=1, dim2=2).sum(1),
        "within_in_span_frac": (basis @ within @ basis.mT).diagonal(dim1=1, dim2=2).sum(1) / trace,
        "nc1_cdnv": cdnv[:, pairs].mean(1),
        "vci": 1 - (total * between).sum((1, 2)) / rank,
        "nc2_max_angle_w": (cosines + 1 / (num_classes - 1)).abs().mean(1),
        "nc3_self_duality_sq": 2 - 2 * overlap,
    }


@pytest.mark.parametrize(
    ("num_classes", "dim", "count"),
    [(4, 14, 2), (5, 16, 4), (12, 5, 2), (2, 8, 3)],  # d > K; K − 1 > d + 1; K = 2
)
def test_unstructured_features_have_the_expected_metrics(
    num_classes: int, dim: int, count: int
) -> None:
    draws = 6000
    expected = theory.null_expectations(num_classes, dim, count)
    simulated = unstructured(num_classes, dim, count, draws)
    assert list(expected) == list(simulated)
    for name, values in simulated.items():
        error = float(values.std()) / math.sqrt(draws)
        assert float(values.mean()) == pytest.approx(expected[name], abs=4 * error + 1e-12), name
        # ... and that is sharp enough to tell n from n − 1 and K from K ± 1
        assert error < 0.015 * expected[name] + 1e-12, name


def test_the_simulation_measures_what_measure_collapse_does() -> None:
    features = torch.randn(1, 5, 4, 16, generator=seeded(0), dtype=F64)[0].flatten(0, 1)
    rows = torch.randn(1, 5, 16, generator=seeded(1), dtype=F64)[0]
    report = measure_collapse(features, torch.arange(5).repeat_interleave(4), rows)
    simulated = unstructured(5, 16, 4, 1)
    for name in set(simulated) & set(report.values):
        assert report.values[name] == pytest.approx(float(simulated[name]), rel=1e-10), name


def test_nc1_without_signal_tells_n_from_n_minus_one_and_d_from_its_neighbours() -> None:
    assert theory.null_nc1(10, 512, 500) == pytest.approx(499 * 9 / 502, rel=1e-15)
    assert theory.null_nc1(12, 5, 2) == pytest.approx(5 / (12 - 2 - 5), rel=1e-15)
    assert [theory.null_nc1(10, d, 2) for d in (7, 8, 9, 10, 11)] == [7, *[math.inf] * 3, 9]
    assert theory.null_nc1(10, 9, 1) == theory.null_nc1_cdnv(2, 1) == 0


def test_nulls_without_a_mean_are_infinite() -> None:
    assert theory.null_nc1_quotient(2, 2, 5) == theory.null_nc1_cdnv(2, 5) == math.inf
    assert theory.null_nc1_quotient(3, 2, 5) == 4 * 3 * 2 / 2
    assert theory.null_nc1_cdnv(3, 5) == 4 * 3 / 2


def test_vci_without_signal_vanishes_when_features_can_separate_every_sample() -> None:
    assert theory.null_vci(3, 11, 4) == theory.null_vci(3, 64, 4) == theory.null_vci(3, 2, 1) == 0
    assert theory.null_vci(3, 10, 4) == pytest.approx(1 / 11, rel=1e-14)


def test_cosine_without_signal_has_its_known_values() -> None:
    assert theory.null_abs_cosine(1) == pytest.approx(1, rel=1e-14)
    assert theory.null_abs_cosine(2) == pytest.approx(2 / math.pi, rel=1e-14)  # uniform angle
    assert theory.null_abs_cosine(3) == pytest.approx(1 / 2, rel=1e-14)  # Archimedes: uniform
    assert theory.null_abs_cosine(10_000) == pytest.approx(math.sqrt(2 / math.pi) / 100, rel=1e-4)


def test_angle_to_the_etf_without_signal_has_its_known_values() -> None:
    for dim in (1, 2, 3, 50):  # K = 2: cos + 1 is never negative
        assert theory.null_max_angle(2, dim) == pytest.approx(1, rel=1e-13)
    # d = 3: the cosine is uniform on [−1, 1], E|x + a| = (1 + a²)/2
    assert theory.null_max_angle(5, 3) == pytest.approx((1 + 1 / 16) / 2, rel=1e-13)
    assert theory.null_max_angle(4, 1) == 1
    assert theory.null_max_angle(10**6, 7) == pytest.approx(theory.null_abs_cosine(7), rel=1e-9)
    assert theory.null_max_angle(3, 10**5) == pytest.approx(1 / 2, rel=1e-9)
    rows = torch.randn(300, 6, generator=seeded(0), dtype=F64)
    assert equiangularity.angles(Vectors(rows))[1] == pytest.approx(
        theory.null_max_angle(300, 6), rel=0.02
    )


# -- bad input -------------------------------------------------------------------------------------

W, H, Y = torch.zeros(3, 4), torch.zeros(6, 4), torch.arange(3).repeat(2)


def objective(
    weight: Tensor = W, features: Tensor = H, bias: Tensor | None = None, **new: Any
) -> Any:
    rest: dict[str, Any] = {"labels": Y, "loss": "ce", "weight_decay_w": 1.0, "weight_decay_h": 1.0}
    return theory.ufm_objective(weight, features, bias, **rest | new)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.simplex_etf(10, 8), r"dim >= 9, got 8; give more dimensions"),
        (lambda: theory.simplex_etf(1, 8), r"num_classes must be .* at least 2, got 1"),
        (lambda: theory.orthogonal_frame(4, 3), r"dim >= 4, got 3; .* use simplex_etf"),
        (lambda: theory.orthogonal_frame(4.0, 5), r"must be a whole number .* got 4.0"),  # type: ignore[arg-type]
        (
            lambda: theory.ufm_optimum("mse", 4, 3, 1, 0.1, 0.1),
            r"rank 4, so dim must be at least 4, got 3",
        ),
        (
            lambda: theory.ufm_optimum("ce", 4, 2, 1, 0.1, 0.1),
            r"rank 3, so dim must be at least 3, got 2",
        ),
        (lambda: theory.ufm_optimum("l2", 4, 4, 1, 0.1, 0.1), r"'ce' or 'mse', got 'l2'"),  # type: ignore[arg-type]
        (
            lambda: theory.ufm_optimum("ce", 4, 4, 0, 0.1, 0.1),
            r"samples_per_class .* at least 1, got 0",
        ),
        (
            lambda: theory.ufm_optimum("ce", 4, 4, 1, 0.0, 0.1),
            r"weight_decay_w must be positive .* got 0.0; without",
        ),
        (
            lambda: theory.ufm_optimum("ce", 4, 4, 1, 0.1, math.nan),
            r"weight_decay_h must be positive .* got nan",
        ),
        (
            lambda: theory.ufm_optimum("mse", 4, 4, 1, 0.1, 0.1, weight_decay_b=-1.0),
            r"weight_decay_b must be at least 0 .* got -1.0; None means no bias",
        ),
        (lambda: objective(torch.zeros(3, 5)), r"weight must have shape \(K, 4\).* got \(3, 5\)"),
        (
            lambda: objective(bias=torch.zeros(4)),
            r"bias must have shape \(3,\).* got \(4,\); pass None",
        ),
        (
            lambda: objective(features=torch.zeros(5, 4)),
            r"one label per feature row, got 5 rows, 6 labels",
        ),
        (lambda: objective(labels=Y + 1), r"labels must lie in \[0, 3\), but one is 3"),
        (lambda: objective(loss="nll"), r"'ce' or 'mse', got 'nll'"),
        (lambda: theory.seli_grams([5, 0, 3]), r"counts\[1\] is 0; leave absent classes out"),
        (lambda: theory.imbalance_limits([5]), r"at least two, got shape \(1,\)"),
        (lambda: theory.seli_limits([[5, 3]]), r"one size per class, .* got shape \(1, 2\)"),  # type: ignore[list-item]
        (lambda: theory.etf_distance_floor(4, 0), r"dim must be .* at least 1, got 0"),
        (lambda: theory.null_nc1(10, 5, 0), r"samples_per_class must be .* at least 1, got 0"),
        (lambda: theory.null_abs_cosine(0), r"dim must be .* at least 1, got 0"),
    ],
)
def test_mistakes_are_told_what_was_expected(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_all_parameters_zero_cost_what_guessing_costs() -> None:
    assert objective().item() == pytest.approx(math.log(3), rel=1e-6)
    assert objective(loss="mse").item() == 0.5


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_narrow_labels_are_labels(loss: str) -> None:
    weight, features = (torch.randn(n, 4, generator=seeded(0)) for n in (3, 6))
    wide, narrow = (objective(weight, features, loss=loss, labels=y) for y in (Y, Y.to(torch.int8)))
    assert torch.equal(wide, narrow)


def test_numpy_numbers_are_whole_numbers() -> None:
    K, d = torch.tensor([4, 6]).numpy()
    assert torch.equal(theory.simplex_etf(K, d), theory.simplex_etf(4, 6))


def test_the_frames_of_the_test_cases_are_the_same_geometry() -> None:
    own, other = theory.simplex_etf(7, 9), cases.simplex_etf(7, 9, seeded(0))
    assert_close(own @ own.T, other @ other.T, rtol=0, atol=1e-14)
