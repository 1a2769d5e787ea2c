"""The naive twin of the opt-in metrics, second part: more than class means and Gram matrices.

Distances and variances of samples, total covariance (VCI, the spectrum of Σ_T, the decomposition
of the squared loss), hulls of classifier rows, regression, and their linear algebra. Like
``reference.py`` it shares nothing with ``ncmonitor`` and runs in ``numpy.longdouble``. Covariances
are kept as factors F with FᵀF = Σ: a Householder triangle of the data keeps all digits of a small
eigenvalue, the matrix Σ itself keeps half of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from reference import (
    EPS64,
    NAN,
    Array,
    Cloud,
    Labels,
    Real,
    _cloud,
    _present,
    class_means,
    jacobi_svd,
    norm,
    row_norms,
    squared_distances,
)

# --------------------------------------------------------------------------------------------
# Linear algebra in extended precision
# --------------------------------------------------------------------------------------------


def triangularise(matrix: Array, columns: int) -> Array:
    """``matrix`` times the reflections that make its first ``columns`` upper triangular.

    Householder 1958. The error of a column is relative to that column: badly scaled columns do
    not spoil each other.
    """
    result: Array = np.array(matrix, dtype=Real)
    for j in range(min(columns, len(result))):
        mirror = result[j:, j].copy()
        length = norm(mirror)
        if length == 0:
            continue
        mirror[0] += np.copysign(length, mirror[0])
        mirror /= norm(mirror)
        result[j:, j:] -= 2 * np.outer(mirror, mirror @ result[j:, j:])
        result[j + 1 :, j] = 0
    return result


def solve_upper(upper: Array, right: Array) -> Array:
    """x of U x = right, back substitution; ``right`` is a vector or a matrix."""
    x = np.zeros_like(right)
    for i in reversed(range(len(upper))):
        x[i] = (right[i] - upper[i, i + 1 :] @ x[i + 1 :]) / upper[i, i]
    return x


def solve_gram(upper: Array, right: Array) -> Array:
    """x of UᵀU x = right."""
    lower = upper.T[::-1, ::-1]  # turned upside down, a lower triangle is an upper one
    return solve_upper(upper, solve_upper(lower, right[::-1])[::-1])


def least_squares(matrix: Array, right: Array) -> Array:
    """argmin ‖matrix · x − right‖ for a vector ``right`` and independent columns."""
    columns = matrix.shape[1]
    reduced = triangularise(np.column_stack([matrix, right]), columns)
    return solve_upper(reduced[:columns, :columns], reduced[:columns, columns])


def complement(basis: Array) -> Array:
    """(d, d − r): orthonormal columns that complete those of ``basis``, (d, r)."""
    dim, rank = basis.shape
    turned = triangularise(np.hstack([basis, np.eye(dim, dtype=Real)]), rank)
    return turned[rank:, rank:].T


# --------------------------------------------------------------------------------------------
# Within against between
# --------------------------------------------------------------------------------------------


def pairs(features: Array, labels: Labels, cloud: Cloud) -> dict[str, float]:
    """CDNV (Galanti et al. 2022) and its directional form, over all ordered pairs."""
    names, count = ("nc1_cdnv", "nc1_cdnv_directional"), len(cloud.present)
    means = class_means(features, labels, cloud.present)
    others = ~np.eye(count, dtype=bool)
    squares = squared_distances(means, means)
    if max(cloud.counts) == 1 or np.any(np.sqrt(squares[others]) <= cloud.resolution):
        return dict.fromkeys(names, NAN)
    variance, along = np.zeros(count, dtype=Real), np.zeros((count, count), dtype=Real)
    for i, c in enumerate(cloud.present):
        residuals = features[labels == c] - means[i]
        variance[i] = np.mean(row_norms(residuals) ** 2)
        along[i] = np.mean((residuals @ (means[i] - means).T) ** 2, axis=0)  # δᵀ Σ_c δ
    cdnv = (variance[:, None] + variance) / (2 * np.where(others, squares, 1))
    directional = along / np.where(others, squares, 1) ** 2
    return dict(zip(names, (float(np.mean(x[others])) for x in (cdnv, directional)), strict=True))


def fuzziness(features: Array, labels: Labels, cloud: Cloud) -> float:
    """tr(S_w S_b⁺), both sums over samples. He & Su 2023."""
    if cloud.rank == 0 or max(cloud.counts) == 1:
        return NAN
    means = class_means(features, labels, cloud.present)
    root = np.sqrt(np.array(cloud.counts, dtype=Real))[:, None]
    values, directions = jacobi_svd((root * (means - features.mean(axis=0))).T)
    residuals = features - means[np.searchsorted(cloud.present, labels)]
    along = np.sum((residuals @ directions[:, : cloud.rank]) ** 2, axis=0)
    return float(np.sum(along / values[: cloud.rank] ** 2))


def margin(features: Array, train: Array, train_labels: Labels, eps: float) -> float:
    """Median over the samples of (d₂ − d₁)/(d₂ + d₁), distances to the train class means."""
    present = _present(train_labels)
    if len(present) < 2 or _cloud(train, train_labels, eps).unresolved:
        return NAN
    squares = squared_distances(features, class_means(train, train_labels, present))
    nearest = np.sqrt(np.sort(squares, axis=1)[:, :2])
    gap, total = nearest[:, 1] - nearest[:, 0], nearest.sum(axis=1)
    return float(np.median(np.where(total > 0, gap / np.where(total > 0, total, 1), 0)))


# --------------------------------------------------------------------------------------------
# The total covariance
# --------------------------------------------------------------------------------------------


def within_factor(features: Array, labels: Labels, present: list[int]) -> Array:
    """F with FᵀF = Σ_W, class-balanced; at most d rows."""
    parts = []
    for c in present:
        own = features[labels == c]
        parts.append((own - own.mean(axis=0)) / np.sqrt(Real(len(present) * len(own))))
    dim = features.shape[1]
    return triangularise(np.vstack(parts), dim)[:dim]


def total_factor(cloud: Cloud, factor: Array) -> Array:
    """T with TᵀT = Σ_T = Σ_W + Σ_B; ``factor`` is that of Σ_W."""
    return np.vstack([factor, cloud.centred / np.sqrt(Real(len(cloud.present)))])


def kept_outside(cloud: Cloud, factor: Array) -> Array:
    """(d, k): eigendirections of Σ_W in the complement of the span U that are more than rounding.

    Their eigenvalue exceeds max(resolution², max(K, d) · eps64 · λ_max), λ_max the largest of the
    restriction of Σ_W to that complement.
    """
    dim = factor.shape[1]
    outside = complement(cloud.directions[:, : cloud.rank])
    if outside.shape[1] == 0:
        return outside
    values, directions = jacobi_svd((factor @ outside).T)
    eigenvalues = values**2
    relative = max(len(cloud.present), dim) * EPS64 * eigenvalues[0]
    keep = eigenvalues > max(Real(cloud.resolution) ** 2, relative)
    return outside @ directions[:, : len(keep)][:, keep]


def vci(cloud: Cloud, factor: Array) -> float:
    """1 − tr(Σ_T⁺ Σ_B)/rank(Σ_B). Xu & Liu 2023.

    By Schur's complement Σ_T⁺ acts on the span U as (Λ + S)⁻¹, Λ = diag(s²/K) the restriction of
    Σ_B and S = RᵀR the within-class covariance along U that regression on the kept directions
    outside U leaves over. With t the singular values of R Λ^{-1/2} the trace falls short of the
    rank by Σ t²/(1 + t²): no difference of near-equal numbers, however small the variance is.
    """
    if cloud.rank == 0 or max(cloud.counts) == 1:
        return NAN
    rank, kept = cloud.rank, kept_outside(cloud, factor)
    outside = kept.shape[1]
    columns = factor @ np.hstack([kept, cloud.directions[:, :rank]])
    left_over = triangularise(columns, outside + rank)[outside : outside + rank, outside:]
    scale = cloud.values[:rank] / np.sqrt(Real(len(cloud.present)))
    squares = jacobi_svd(left_over / scale)[0] ** 2
    return float(np.sum(squares / (1 + squares)) / rank)


def spectrum(cloud: Cloud, factor: Array) -> dict[str, float]:
    """Effective ranks of Σ_T: exp of the entropy of its spectrum, and the count above 1e-3."""
    names = ("entropy_rank_total", "numerical_rank")
    total = total_factor(cloud, factor)
    if norm(total) ** 2 <= Real(cloud.resolution) ** 2:
        return dict.fromkeys(names, NAN)
    dim = total.shape[1]
    eigenvalues = jacobi_svd(triangularise(total, dim)[:dim])[0] ** 2
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    entropy = -np.sum(share * np.log(share))
    count = np.sum(eigenvalues > Real("1e-3") * eigenvalues[0])
    return dict(zip(names, (float(np.exp(entropy)), float(count)), strict=True))


def mse_decomposition(
    cloud: Cloud, factor: Array, centre: Array, rows: Array, bias: Array, ridge: float
) -> dict[str, float]:
    """L_NC1, L_NC2/3, L_⊥ and L_⊥'s share of their sum. Han, Papyan & Donoho 2022.

    At λ = 0 features and W are projected on the span of the class means and the kept directions
    outside it; W μ_G + b keeps the full W.

    Args:
        cloud: The class means.
        factor: F with FᵀF = Σ_W.
        centre: μ_G.
        rows: (K, d), the classifier.
        bias: (K,).
        ridge: λ >= 0.
    """
    names = ("mse_l_nc1", "mse_l_nc23", "mse_l_perp", "central_path_dist")
    if cloud.unresolved:
        return dict.fromkeys(names, NAN)
    lam, output, centred = Real(ridge), rows @ centre + bias, cloud.centred
    if ridge == 0:
        span, kept = cloud.directions[:, : cloud.rank], kept_outside(cloud, factor)
        basis = np.hstack([span, kept])
        # The class means lie in the span; their rounding outside it would be divided by Σ_W.
        centred = np.hstack([centred @ span, np.zeros((len(rows), kept.shape[1]), dtype=Real)])
        factor, rows, centre = factor @ basis, rows @ basis, centre @ basis
    total = np.vstack([factor, centred / np.sqrt(Real(len(rows)))])
    weight, best_output = _ridge_solution(total, centre, centred, lam)
    best_bias = best_output - weight @ centre

    fit = weight @ centred.T + best_output[:, None] - np.eye(len(centred), dtype=Real)
    delta = rows - weight  # tr(Δ A Δᵀ) is a sum of four squares
    excess = norm(total @ delta.T) ** 2 + norm(output - best_output) ** 2
    excess += lam * (norm(delta) ** 2 + norm(bias - best_bias) ** 2)
    decay = lam * (norm(weight) ** 2 + norm(best_bias) ** 2)
    l_nc1, l_perp = (norm(factor @ weight.T) ** 2 + decay) / 2, excess / 2
    l_nc23 = norm(fit) ** 2 / (2 * len(centred))
    whole = l_nc1 + l_nc23 + l_perp
    rounding = (len(rows) * EPS64) ** 2  # a loss that float64 cannot tell from zero
    share = Real(NAN) if whole <= rounding else l_perp / whole
    return dict(zip(names, map(float, (l_nc1, l_nc23, l_perp, share)), strict=True))


def _ridge_solution(
    total: Array, centre: Array, centred: Array, lam: np.longdouble
) -> tuple[Array, Array]:
    """W_LS and W_LS μ_G + b_LS, with the last row of A eliminated by hand.

    That leaves Σ_T + λI + λ/(1+λ) μ_Gμ_Gᵀ: a large common mean then costs no digits.
    """
    count, dim = len(centred), len(centre)
    pull = np.sqrt(lam / (1 + lam)) * centre
    stack = np.vstack([total, np.sqrt(lam) * np.eye(dim, dtype=Real), pull])
    upper = triangularise(stack, dim)[:dim]
    right: Array = (centred + lam / (1 + lam) * centre) / Real(count)
    weight = solve_gram(upper, right.T).T
    return weight, (Real(1) / count + lam * (weight @ centre)) / (1 + lam)


# --------------------------------------------------------------------------------------------
# Convex hulls
# --------------------------------------------------------------------------------------------


def shortest_in_hull(points: Array, start: list[int]) -> np.longdouble:
    """min ‖x‖ over the convex hull of the rows. Wolfe 1976, from the corral ``start``."""
    eps, size = np.finfo(Real).eps, row_norms(points).max()
    corral, shares = list(start), np.full(len(start), Real(1) / len(start))
    for _ in range(20 * len(points) + 20):
        affine = _affine_shares(points[corral])
        if affine.min() < 0:  # outside: go as far as the hull reaches, drop who stops us
            falling = affine < 0
            steps = shares[falling] / (shares[falling] - affine[falling])
            shares = shares + steps.min() * (affine - shares)
            gone = np.flatnonzero(falling)[np.argmin(steps)]
            corral.pop(int(gone))
            shares = np.delete(shares, gone)
            continue
        shares = affine
        x: Array = shares @ points[corral]
        products = points @ x
        worst = int(np.argmin(products))
        slack = 64 * eps * size * norm(x)
        if products[worst] >= x @ x - slack or norm(x) <= 64 * eps * size or worst in corral:
            return norm(x)
        corral.append(worst)
        shares = np.append(shares, Real(0))
    raise RuntimeError("the minimum-norm point of the reference did not converge")


def _affine_shares(points: Array) -> Array:
    """Affine weights of the point of the affine hull that is next to the origin."""
    system = np.vstack([points.T, np.ones(len(points), dtype=Real)])
    target = np.zeros(len(system), dtype=Real)
    target[-1] = 1  # min ‖Σ y_j p_j‖² + (Σ y_j − 1)²: its y is proportional to the weights
    y = least_squares(system, target)
    return y / y.sum()


def one_vs_rest(rows: Array) -> float:
    """min_k dist(ŵ_k, conv{ŵ_j : j ≠ k}). Jiang et al. 2024, GNC2.

    nan with a zero row, and beyond 256 classes, where it takes too long. Non-negative least
    squares with a row of ones finds each hull's nearest face in float64; the faces that may hold
    the minimum start an extended-precision search.
    """
    if len(rows) > 256 or np.any(row_norms(rows) == 0):
        return NAN
    unit = rows / row_norms(rows)[:, None]
    hulls, faces, distances = [], [], []
    for k in range(len(unit)):
        points = np.delete(unit, k, axis=0) - unit[k]
        rounded = points.astype(np.float64)
        system = np.vstack([rounded.T, np.ones(len(points))])
        shares = nnls(system, np.eye(len(system))[-1])[0]
        hulls.append(points)
        faces.append([int(j) for j in np.flatnonzero(shares)])
        distances.append(np.linalg.norm(shares @ rounded) / shares.sum())
    near = [k for k in range(len(unit)) if distances[k] <= min(distances) + 1e-7]
    return float(min(shortest_in_hull(hulls[k], faces[k]) for k in near))


# --------------------------------------------------------------------------------------------
# Regression
# --------------------------------------------------------------------------------------------


def regression_metrics(
    features: NDArray[Any], targets: NDArray[Any], weight: NDArray[Any]
) -> dict[str, float]:
    """NRC1 to NRC3. Andriopoulos et al. 2024.

    Args:
        features: (N, d).
        targets: (N, n).
        weight: (n, d).
    """
    h, y = np.asarray(features).astype(Real), np.asarray(targets).astype(Real)
    rows = np.asarray(weight).astype(Real)
    lengths = row_norms(h)
    silent, no_weight = bool(np.any(lengths == 0)), bool(np.all(rows == 0))
    unit = h / np.where(lengths == 0, 1, lengths)[:, None]
    count = rows.shape[0]
    return {
        "nrc1": NAN if silent else _outside(unit, h - h.mean(axis=0), count),
        "nrc2": NAN if silent or no_weight else _outside(unit, rows, count),
        "nrc3": NAN if no_weight or count == 1 else _nrc3(rows, y - y.mean(axis=0)),
    }


def _outside(unit: Array, rows: Array, count: int) -> float:
    """Ave ‖h̃ − its projection‖² on the first ``count`` principal directions of ``rows``.

    Directions in which the rows have no extent beyond rounding are not directions.
    """
    dim = rows.shape[1]
    values, directions = jacobi_svd(triangularise(rows, dim)[:dim].T)
    kept = np.flatnonzero(values > max(count, dim) * EPS64 * values[0])[:count]
    basis = directions[:, kept]
    return float(np.mean(row_norms(unit - unit @ basis @ basis.T) ** 2))


def _nrc3(rows: Array, centred: Array) -> float:
    """min over t = √γ of ‖WWᵀ/‖·‖ − (S − tI)/‖·‖‖², S = Σ^{1/2}, 0 <= t <= its least eigenvalue.

    The cosine between both is (a − αt)/√(s₂ − 2 s₁t + nt²), with one stationary point at most: the
    minimum is there or at an end.
    """
    n = len(rows)
    values, directions = jacobi_svd(triangularise(centred, n)[:n].T / np.sqrt(Real(len(centred))))
    if values[0] == 0:
        return NAN
    root = directions * values @ directions.T
    gram = rows @ rows.T / norm(rows @ rows.T)
    least = values[n - 1] if len(values) >= n else Real(0)
    a, alpha, s1, s2 = np.sum(gram * root), np.trace(gram), np.trace(root), np.sum(root * root)
    ends = [Real(0), least]
    slope = alpha * s1 - n * a
    if slope != 0:
        ends.append(np.clip((alpha * s2 - a * s1) / slope, Real(0), least))
    shifted = [root - t * np.eye(n, dtype=Real) for t in ends]
    shifted = [b for b in shifted if norm(b) > n * EPS64 * norm(root)]  # 0/0 if Σ ∝ I at the end
    return float(min(norm(gram - b / norm(b)) ** 2 for b in shifted))
