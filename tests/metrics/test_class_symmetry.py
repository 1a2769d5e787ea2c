"""Symmetry of the classes against its definition: all permutations of up to six classes.

The twin averages K! permuted matrices, in float64 and with no formula of the fast code; irreducible
representations are cut out by their characters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cases import cloud, orthogonal_frame, random_means, seeded, simplex_etf
from ncmonitor import CollapseReport, measure_collapse

Array = NDArray[np.float64]
Order = tuple[int, ...]
F64 = torch.float64


def close(value: float, *, rel: float = 1e-9) -> object:
    return pytest.approx(value, rel=rel, abs=1e-13)


# -- the twin --------------------------------------------------------------------------------------


def projected(matrix: Array, character: Callable[[Order], float] = lambda order: 1) -> Array:
    """Mean over S_K of the character times the permuted matrix; without one, Reynolds' operator."""
    orders = list(itertools.permutations(range(len(matrix))))
    moved = [character(order) * matrix[np.ix_(order, order)] for order in orders]
    return np.asarray(sum(moved) / len(orders))


def broken(matrix: Array) -> float:
    return float(np.linalg.norm(matrix - projected(matrix)) / np.linalg.norm(matrix))


def fixed_points(order: Order) -> int:
    return sum(i == j for i, j in enumerate(order))


def swapped_pairs(order: Order) -> int:
    return sum(i < j and order[j] == i for i, j in enumerate(order))


def standard(matrix: Array) -> Array:
    """Part in copies of the standard representation: character f − 1, dimension K − 1."""
    return (len(matrix) - 1) * projected(matrix, lambda order: fixed_points(order) - 1)


def pairs(matrix: Array) -> Array:
    """Part in copies of (K−2, 2): of pairs {i, j}, what singletons i do not have; K(K−3)/2."""
    count = len(matrix)

    def character(order: Order) -> float:
        fixed = fixed_points(order)
        return math.comb(fixed, 2) + swapped_pairs(order) - fixed

    return count * (count - 3) / 2 * projected(matrix, character)


# -- what is measured ------------------------------------------------------------------------------


def geometry(count: int, seed: int = 0, dim: int = 7) -> tuple[Array, Array, Array, CollapseReport]:
    """Class means, rows of a classifier and its bias, of unequal length, and their report."""
    generator = seeded(seed)
    means = random_means(count, dim, generator) * torch.linspace(1, 2, count)[:, None]
    case = cloud("few", "few classes", means, (5, 8, 4, 7, 6, 5)[:count], spread=0.4, dtype=F64)
    weight = torch.randn(count, dim, generator=generator, dtype=F64)
    bias = torch.randn(count, generator=generator, dtype=F64)
    report = measure_collapse(
        case.features, case.labels, weight, bias, metrics="all", superclasses=range_of(count)
    )
    own = torch.stack([case.features[case.labels == c].mean(0) for c in range(count)])
    return own.numpy(), weight.numpy(), bias.numpy(), report


def range_of(count: int) -> list[int]:
    return [0, 1, 0, 1, 1, 2][:count]


def gram(rows: Array, *, centred: bool = True) -> Array:
    kept = rows - rows.mean(0) if centred else rows
    return np.asarray(kept @ kept.T)


def variance(values: Array) -> float:
    return float(((values - values.mean()) ** 2).mean())


COUNTS = pytest.mark.parametrize("count", [2, 3, 4, 5])


# -- Reynolds' operator ----------------------------------------------------------------------------


@COUNTS
def test_what_all_permutations_leave_is_a_mean_diagonal_and_a_mean_off_it(count: int) -> None:
    means, *_ = geometry(count)
    matrix = gram(means, centred=False)
    others = ~np.eye(count, dtype=bool)
    on, off = np.diag(matrix).mean(), matrix[others].mean()
    kept = projected(matrix)
    np.testing.assert_allclose(kept, (on - off) * np.eye(count) + off, rtol=1e-12)
    residual = count * variance(np.diag(matrix)) + count * (count - 1) * variance(matrix[others])
    assert np.linalg.norm(matrix - kept) ** 2 == close(residual, rel=1e-12)


@COUNTS
def test_breaking_of_means_classifier_and_logits_is_what_all_permutations_change(
    count: int,
) -> None:
    means, weight, bias, report = geometry(count)
    centring = np.eye(count) - 1 / count
    logits = centring @ (weight @ means.T + bias[:, None])
    assert report.sk_breaking_means == close(broken(gram(means)))
    assert report.sk_breaking_w == close(broken(gram(weight, centred=False)))
    assert report.sk_breaking_logits == close(broken(logits))
    if count > 2:
        shown = (report.sk_breaking_means, report.sk_breaking_w, report.sk_breaking_logits)
        assert min(shown) > 0.05


@COUNTS
def test_the_block_residual_is_what_permutations_within_superclasses_change(count: int) -> None:
    means, *_, report = geometry(count)
    blocks, matrix = np.array(range_of(count)), gram(means)
    orders = [o for o in itertools.permutations(range(count)) if (blocks[list(o)] == blocks).all()]
    kept = np.mean([matrix[np.ix_(o, o)] for o in orders], axis=0)
    want = np.linalg.norm(matrix - kept) / np.linalg.norm(matrix)
    assert report.sk_residual_block == close(float(want))
    assert report.sk_residual_block < report.sk_breaking_means or count == 2
    assert want > 0.05 or count == 2


# -- the same angle --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5, 6, 12])
def test_breaking_is_the_sine_of_the_angle_to_the_etf_and_the_variation_of_the_spectrum(
    count: int,
) -> None:
    generator = seeded(count)
    means = random_means(count, 15, generator)
    report = measure_collapse(
        means.repeat_interleave(2, 0), torch.arange(count).repeat_interleave(2), metrics="all"
    )
    matrix = gram(means.numpy())
    etf = np.eye(count) - 1 / count
    cosine = float((matrix * etf).sum() / np.linalg.norm(matrix) / np.linalg.norm(etf))
    theta = math.acos(cosine)
    values = np.linalg.eigvalsh(matrix)[1:]
    variation = values.std() / values.mean()
    assert report.sk_breaking_means == close(math.sin(theta))
    assert report.sk_breaking_means**2 == close(variation**2 / (1 + variation**2))
    assert report.nc2_etf_means == close(2 * math.sin(theta / 2))
    assert report.participation_ratio_means == close((count - 1) * math.cos(theta) ** 2)
    assert report.participation_ratio_means == close(values.sum() ** 2 / (values**2).sum())
    assert theta > 0.1


# -- irreducible representations -------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_is_the_projection_on_each_irreducible_representation(
    count: int, seed: int
) -> None:
    means, weight, _, report = geometry(count, seed)
    matrix = gram(means)
    size = float(np.linalg.norm(matrix))
    parts = projected(matrix), standard(matrix), pairs(matrix)
    np.testing.assert_allclose(parts[0] + parts[1] + parts[2], matrix, atol=1e-12 * size)
    for one, two in itertools.combinations(parts, 2):
        assert (one * two).sum() == pytest.approx(0, abs=1e-11 * size**2)
    assert report.sk_breaking_norm == close(float(np.linalg.norm(parts[1]) / size))
    assert report.sk_breaking_pair == close(float(np.linalg.norm(parts[2]) / size))
    assert min(report.sk_breaking_norm, report.sk_breaking_pair) > 0.05
    square = report.sk_breaking_norm**2 + report.sk_breaking_pair**2
    assert square == close(report.sk_breaking_means**2)
    rows = gram(weight, centred=False)  # not centred: the standard representation occurs twice
    rest = np.linalg.norm(standard(rows)) ** 2 + np.linalg.norm(pairs(rows)) ** 2
    assert report.sk_breaking_w**2 == close(float(rest / np.linalg.norm(rows) ** 2))


def test_a_pair_can_break_nothing_and_three_classes_by_their_lengths_alone() -> None:
    *_, two = geometry(2)
    assert (two.sk_breaking_norm, two.sk_breaking_pair) == (0, 0)
    assert two.sk_breaking_means == pytest.approx(0, abs=1e-14)
    means, *_, three = geometry(3)
    np.testing.assert_allclose(pairs(gram(means)), 0)
    assert three.sk_breaking_pair == 0
    assert three.sk_breaking_norm == close(three.sk_breaking_means)
    assert three.sk_breaking_means > 0.05


def of_gram(matrix: Array, weight: Tensor | None = None) -> CollapseReport:
    """Report of class means with this Gram matrix, two samples each."""
    values, vectors = np.linalg.eigh(matrix)
    rows = torch.from_numpy(vectors * np.sqrt(values.clip(0)))
    labels = torch.arange(len(rows)).repeat_interleave(2)
    return measure_collapse(rows.repeat_interleave(2, 0), labels, weight, metrics="all")


def test_superclasses_of_equal_size_are_pure_pair_structure() -> None:
    blocks = np.array([0, 0, 1, 1, 2, 2])
    same = (blocks[:, None] == blocks).astype(float)
    matrix = np.eye(6) - 1 / 6 + 0.2 * (same - 1 / 3)  # rows sum to 0, the diagonal is constant
    report = of_gram(matrix)
    assert report.sk_breaking_norm == pytest.approx(0, abs=1e-14)
    assert report.sk_breaking_pair == close(broken(matrix))
    assert broken(matrix) > 0.1


def test_one_class_that_is_longer_is_pure_norm_structure() -> None:
    x = np.array([4.0, -1, -1, -1, -1])
    one = np.ones(5)
    # E_ii = x_i, rows sum to 0: off the diagonal −(x_i + x_j)/(K−2)
    part = np.diag(x) - (np.outer(x, one) + np.outer(one, x) - 2 * np.diag(x)) / 3
    matrix = np.eye(5) - 1 / 5 + 0.05 * part
    report = of_gram(matrix)
    assert report.sk_breaking_pair == pytest.approx(0, abs=1e-14)
    assert report.sk_breaking_norm == close(broken(matrix))
    assert broken(matrix) > 0.1


# -- equivariance ----------------------------------------------------------------------------------


def _best_rotation(rows: Array, order: Sequence[int]) -> tuple[Array, float]:
    """The orthogonal map that takes each vector closest to that of its new class, and the rest."""
    left, _, right = np.linalg.svd(rows.T @ rows[list(order)])
    turn = left @ right
    return turn, float(np.linalg.norm(rows @ turn - rows[list(order)]) / np.linalg.norm(rows))


def test_no_breaking_means_that_the_map_from_class_to_mean_is_equivariant() -> None:
    etf = simplex_etf(5, 4, seeded(0)).numpy()
    orders = list(itertools.permutations(range(5)))
    turns = {order: _best_rotation(etf, order) for order in orders}
    assert max(rest for _, rest in turns.values()) < 1e-12
    for one, two in itertools.product(orders[::17], repeat=2):  # a representation: ρ(πσ) = ρ(π)ρ(σ)
        both = tuple(one[i] for i in two)
        np.testing.assert_allclose(turns[two][0] @ turns[one][0], turns[both][0], atol=1e-12)
    means, *_, report = geometry(5)
    centred = means - means.mean(0)
    assert max(_best_rotation(centred, order)[1] for order in orders) > 0.1
    assert report.sk_breaking_means > 0.1
    symmetric = of_gram(etf @ etf.T)
    assert symmetric.sk_breaking_means == pytest.approx(0, abs=1e-14)


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5])
def test_breaking_of_the_cosines_is_the_spread_of_the_angles(count: int) -> None:
    means, weight, _, report = geometry(count)
    centred = means - means.mean(0)
    for rows, spread in (
        (centred, report.nc2_equiangular_std_means),
        (weight, report.nc2_equiangular_std_w),
    ):
        unit = rows / np.linalg.norm(rows, axis=1)[:, None]
        cosines = unit @ unit.T
        residual = float(np.linalg.norm(cosines - projected(cosines)))
        assert residual == close(math.sqrt(count * (count - 1)) * spread)
        assert residual > 0.05


@COUNTS
def test_the_index_between_etf_and_frame_is_read_off_the_averaged_gram_matrix(count: int) -> None:
    _, weight, _, report = geometry(count)
    kept = projected(gram(weight, centred=False))
    one = np.ones(count) / math.sqrt(count)
    other = np.zeros(count)
    other[:2] = 1 / math.sqrt(2), -1 / math.sqrt(2)
    trivial, common = one @ kept @ one, other @ kept @ other  # its two eigenvalues
    index = float(trivial / common)
    assert report.of_etf_index == close(index)
    assert report.w_mean_ratio**2 == close(index / (index + count - 1))
    assert abs(index - 1) > 0.05


@pytest.mark.parametrize("index", [0.0, 0.25, 1.0, 4.0])
def test_the_classifier_is_symmetric_anywhere_between_etf_and_frame(index: float) -> None:
    frame = orthogonal_frame(5, 8, seeded(0))
    mean = frame.mean(0)
    weight = frame - mean + math.sqrt(index) * mean
    features = torch.randn(10, 8, dtype=F64, generator=seeded(1))
    report = measure_collapse(features, torch.arange(10) % 5, weight, metrics="all")
    assert report.sk_breaking_w == pytest.approx(0, abs=1e-14)
    assert report.of_etf_index == close(index)


def test_breaking_of_the_logits_knows_no_gauge_and_no_alignment() -> None:
    generator = seeded(3)
    etf = simplex_etf(5, 8, generator)
    labels = torch.arange(5).repeat(2)
    moved = etf + torch.randn(1, 8, generator=generator)  # all rows by the same
    stretch = torch.linspace(0.5, 2, 8, dtype=F64)

    def breaking(weight: Tensor, means: Tensor, bias: float) -> float:
        report = measure_collapse(
            means.repeat(2, 1), labels, weight, torch.full((5,), bias), metrics="all"
        )
        return report.sk_breaking_logits

    plain = breaking(etf + 0.1 * torch.randn(5, 8, generator=generator), etf, 0.0)
    assert plain > 0.02
    assert breaking(moved, etf, 3.0) == pytest.approx(0, abs=1e-13)
    means, weight = etf * stretch, etf / stretch  # far from self-dual, the same logits
    assert breaking(weight, means, 0.0) == pytest.approx(0, abs=1e-13)
    report = measure_collapse(means.repeat(2, 1), labels, weight, metrics="all")
    assert report.nc3_self_duality > 0.3
