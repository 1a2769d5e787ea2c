"""The naive twin: every default metric straight from its paper, slow, explicit and right.

Nothing here is shared with ``ncmonitor``: covariances are written out as d x d matrices, Gram
matrices as K x K matrices, the pseudo-inverse is built eigendirection by eigendirection.

The arithmetic runs in ``numpy.longdouble`` (64 significant bits on x86, more on Linux/ARM), not in
float64, for one reason. The hard cases lose up to seven digits before the first formula: a common
offset 1e3 times the class signal, a smallest singular value 1e-6 of the largest. A float64 twin
would then be no better than what it judges. LAPACK has no such type, hence the Jacobi SVD below;
``test_cases.py`` holds the whole against 60 digits of mpmath. Where ``longdouble`` is float64
(macOS on ARM, Windows) the twin still runs, a few digits poorer on those cases.

Conventions (class-balanced, population estimators): a class without samples is left out of every
class-indexed object, K counts the classes that are present, and undefined is ``nan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Real = np.longdouble
Array: TypeAlias = NDArray[np.longdouble]
Labels: TypeAlias = NDArray[np.int64]
Split: TypeAlias = "tuple[NDArray[Any], NDArray[Any]]"

EPS64 = 2.0**-52
NAN = float("nan")


# --------------------------------------------------------------------------------------------
# Linear algebra in extended precision
# --------------------------------------------------------------------------------------------


def norm(x: Array) -> np.longdouble:
    """Frobenius norm."""
    return np.sqrt(np.sum(x * x))


def row_norms(x: Array) -> Array:
    """Euclidean norm of each row."""
    return np.sqrt(np.sum(x * x, axis=1))


def jacobi_svd(matrix: Array) -> tuple[Array, Array]:
    """Singular values (descending) and left singular vectors (columns), by one-sided Jacobi.

    Hestenes 1958: rotate pairs of columns until all are orthogonal; their lengths are the singular
    values. It works on the matrix itself, never on its Gram matrix, so that a small singular value
    keeps its digits. Disjoint pairs turn together (round-robin order), which makes it quick.
    """
    rows, n = matrix.shape
    directions: Array
    if rows >= n:
        columns = _orthogonalise(matrix, rows)
        lengths = row_norms(columns.T)
        directions = np.divide(columns, lengths, out=np.zeros_like(columns), where=lengths > 0)
    else:  # the turns that make the columns of the transpose orthogonal are its directions
        turned = _orthogonalise(np.vstack([matrix.T, np.eye(rows, dtype=Real)]), n)
        lengths, directions = row_norms(turned[:n].T), turned[n:]
    order = np.argsort(-lengths, kind="stable")
    return lengths[order], directions[:, order]


def _orthogonalise(matrix: Array, rows: int) -> Array:
    """``matrix`` times the rotation that makes its columns orthogonal in their first ``rows``."""
    n = matrix.shape[1]
    eps = np.finfo(Real).eps
    # LAPACK's turns first, made orthogonal to the last digit: they leave Jacobi one or two sweeps.
    start = np.linalg.svd(matrix[:rows].astype(np.float64))[2].T.astype(Real)
    turn: Array = (start @ (3 * np.eye(n, dtype=Real) - start.T @ start)) / 2
    matrix = np.asarray(matrix @ turn, dtype=Real)
    floor = (n * eps * norm(matrix[:rows])) ** 2  # squared length of a column of mere rounding
    for _ in range(60):
        turned = False
        for left, right in _round_robin(n):
            a, b = matrix[:, left], matrix[:, right]
            aa = np.sum(a[:rows] ** 2, axis=0)
            bb = np.sum(b[:rows] ** 2, axis=0)
            ab = np.sum(a[:rows] * b[:rows], axis=0)
            todo = (np.abs(ab) > 4 * eps * np.sqrt(aa * bb)) & (np.minimum(aa, bb) > floor)
            if not todo.any():
                continue
            turned = True
            zeta = (bb - aa) / np.where(todo, 2 * ab, 1)
            tangent = np.where(zeta < 0, -1, 1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
            tangent = np.where(todo, tangent, 0)
            cosine = 1 / np.sqrt(1 + tangent * tangent)
            sine = cosine * tangent
            matrix[:, left], matrix[:, right] = cosine * a - sine * b, sine * a + cosine * b
        if not turned:
            return matrix
    raise RuntimeError("the Jacobi SVD of the reference did not converge in 60 sweeps")


def _round_robin(n: int) -> list[tuple[Labels, Labels]]:
    """Rounds of disjoint pairs in which each of n players meets each other once."""
    players = list(range(n + n % 2))  # an odd one out meets the phantom player n
    half = len(players) // 2
    rounds = []
    for _ in range(len(players) - 1):
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        met = [pair for pair in pairs if max(pair) < n]
        if met:
            rounds.append((np.array([p for p, _ in met]), np.array([q for _, q in met])))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


# --------------------------------------------------------------------------------------------
# First and second moments
# --------------------------------------------------------------------------------------------


def class_means(features: Array, labels: Labels, present: list[int]) -> Array:
    """μ_c = Ave_{y_i = c} h_i, one row per present class."""
    return np.stack([features[labels == c].mean(axis=0) for c in present])


def centred_means(means: Array) -> Array:
    """μ_c − μ_G with μ_G = Ave_c μ_c, the mean of the class means (not of the samples)."""
    return means - means.mean(axis=0)


def within_covariance(features: Array, labels: Labels, present: list[int]) -> Array:
    """Σ_W = Ave_c Ave_{y_i = c} (h_i − μ_c)(h_i − μ_c)ᵀ, d x d. Papyan et al. 2020, NC1."""
    total = np.zeros((features.shape[1],) * 2, dtype=Real)
    for c in present:
        own = features[labels == c]
        residuals = own - own.mean(axis=0)
        total += residuals.T @ residuals / len(own)
    return total / len(present)


def between_covariance(centred: Array) -> Array:
    """Σ_B = Ave_c (μ_c − μ_G)(μ_c − μ_G)ᵀ, d x d. Papyan et al. 2020, NC1."""
    total = np.zeros((centred.shape[1],) * 2, dtype=Real)
    for row in centred:
        total += np.outer(row, row)
    return total / len(centred)


def feature_resolution(features: Array, labels: Labels, present: list[int], eps: float) -> float:
    """What rounding of the features alone puts into a class mean: eps · rms‖h‖.

    The rms is class-balanced: √(Ave_c Ave_{y_i = c} ‖h_i‖²). Not divided by √n: once a class is
    collapsed to the rounding step all its samples round alike, and nothing averages out.
    """
    squares = [np.sum(features[labels == c] ** 2) / np.sum(labels == c) for c in present]
    return float(eps * np.sqrt(np.mean(squares)))


def mean_rank(values: Array, num_classes: int, dim: int, resolution: float) -> int:
    """#{r : s_r > max(K, d) · eps64 · s_1 and s_r > resolution}, at most min(K − 1, d)."""
    floor = max(max(num_classes, dim) * EPS64 * values[0], Real(resolution))
    return min(int(np.sum(values > floor)), num_classes - 1, dim)


def between_pinv(values: Array, directions: Array, rank: int, num_classes: int) -> Array:
    """Σ_B⁺ = Σ_{r ≤ rank} u_r u_rᵀ / λ_r with λ_r = s_r² / K, the eigenvalues of Σ_B.

    s_r and u_r come from Ṁ. An eigendecomposition of the matrix Σ_B has the same answer on paper,
    but its small eigenvalues carry an error of eps · λ_1, that is, half their digits.
    """
    total = np.zeros((len(directions),) * 2, dtype=Real)
    for r in range(rank):
        total += np.outer(directions[:, r], directions[:, r]) * num_classes / values[r] ** 2
    return total


# --------------------------------------------------------------------------------------------
# NC1
# --------------------------------------------------------------------------------------------


def nc1(within: Array, pinv: Array, num_classes: int) -> float:
    """tr(Σ_W Σ_B⁺) / K. Papyan, Han & Donoho 2020, NC1."""
    return float(np.trace(within @ pinv) / num_classes)


def nc1_quotient(within: Array, between: Array) -> float:
    """tr Σ_W / tr Σ_B. Tirer, Huang & Niles-Weed 2023."""
    return float(np.trace(within) / np.trace(between))


def within_in_span_frac(within: Array, directions: Array, rank: int) -> float:
    """tr(Uᵀ Σ_W U) / tr Σ_W, U the first ``rank`` left singular vectors of Ṁ; nan if Σ_W = 0."""
    total = np.trace(within)
    if total == 0:
        return NAN
    return float(sum(u @ within @ u for u in directions[:, :rank].T) / total)


# --------------------------------------------------------------------------------------------
# NC2, for the centred means and for the rows of W alike
# --------------------------------------------------------------------------------------------


def equinorm(rows: Array) -> float:
    """Std_c ‖v_c‖ / Avg_c ‖v_c‖, population std. Papyan et al. 2020, NC2."""
    lengths = row_norms(rows)
    return float(np.std(lengths) / np.mean(lengths))


def pair_cosines(rows: Array) -> Array:
    """cos(v_c, v_c′) over all ordered pairs c ≠ c′."""
    unit = rows / row_norms(rows)[:, None]
    return (unit @ unit.T)[~np.eye(len(rows), dtype=bool)]


def equiangular_std(rows: Array) -> float:
    """Std over c ≠ c′ of cos(v_c, v_c′), population std. Papyan et al. 2020, NC2."""
    return float(np.std(pair_cosines(rows)))


def max_angle(rows: Array) -> float:
    """Avg over c ≠ c′ of |cos(v_c, v_c′) + 1/(K − 1)|. Papyan et al. 2020, NC2."""
    return float(np.mean(np.abs(pair_cosines(rows) + Real(1) / (len(rows) - 1))))


def etf_distance(rows: Array) -> float:
    """‖VVᵀ/‖VVᵀ‖_F − (I − 11ᵀ/K)/√(K − 1)‖_F, rows as given (W is not centred).

    Zhu et al. 2021, NC2 for W; Kothapalli 2023 for the centred means.
    """
    count = len(rows)
    gram = rows @ rows.T
    target = (np.eye(count, dtype=Real) - Real(1) / count) / np.sqrt(Real(count - 1))
    return float(norm(gram / norm(gram) - target))


# --------------------------------------------------------------------------------------------
# NC3, NC0
# --------------------------------------------------------------------------------------------


def self_duality(rows: Array, centred: Array) -> float:
    """‖Wᵀ/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F. Papyan et al. 2020, NC3 (its Figure 5 shows the square)."""
    return float(norm(rows / norm(rows) - centred / norm(centred)))


def centred_rows(rows: Array) -> Array:
    """W − 1 w̄ᵀ, the part of the classifier that softmax sees."""
    return rows - rows.mean(axis=0)


def w_mean_ratio(rows: Array) -> float:
    """‖Wᵀ1‖ / (√K ‖W‖_F). NC0 of Zhao et al. 2026 in scale-free form."""
    return float(norm(rows.sum(axis=0)) / (np.sqrt(Real(len(rows))) * norm(rows)))


# --------------------------------------------------------------------------------------------
# NC4 and the fit
# --------------------------------------------------------------------------------------------


def squared_distances(features: Array, means: Array) -> Array:
    """‖h_i − μ_c‖², N x K."""
    return np.stack([np.sum((features - mean) ** 2, axis=1) for mean in means], axis=1)


def nearest_centres(features: Array, means: Array, present: list[int]) -> Labels:
    """argmin_c ‖h_i − μ_c‖ over the present classes; the first of equals."""
    return np.array(present)[np.argmin(squared_distances(features, means), axis=1)]


def disagreement(logits: Array, nearest: Labels) -> float:
    """Ave_i 1[argmax_c z_c ≠ argmin_c ‖h_i − μ_c‖]. Papyan et al. 2020, NC4."""
    return float(np.mean(np.argmax(logits, axis=1) != nearest))


def cross_entropy(logits: Array, labels: Labels) -> float:
    """Ave_i (log Σ_c exp z_c − z_y), in nats."""
    top = logits.max(axis=1)
    log_sum = top + np.log(np.sum(np.exp(logits - top[:, None]), axis=1))
    return float(np.mean(log_sum - logits[np.arange(len(labels)), labels]))


# --------------------------------------------------------------------------------------------
# Everything at once
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cloud:
    """What the metrics of one split need, each entry spelled out."""

    present: list[int]
    counts: list[int]
    centred: Array  # (K, d)
    within: Array  # (d, d)
    resolution: float
    values: Array  # singular values of Ṁ, descending
    directions: Array  # (d, min(K, d)), left singular vectors of Ṁ
    rank: int

    @property
    def degenerate(self) -> int:
        """Classes with ‖μ_c − μ_G‖ within the rounding of the features."""
        return int(np.sum(row_norms(self.centred) <= self.resolution))

    @property
    def unresolved(self) -> bool:
        """Whether Ṁ as a whole is zero within the rounding of the features."""
        return self.degenerate == len(self.present)


def _cloud(features: Array, labels: Labels, eps: float) -> Cloud:
    present = _present(labels)
    means = class_means(features, labels, present)
    centred = centred_means(means)
    resolution = feature_resolution(features, labels, present, eps)
    values, directions = jacobi_svd(centred.T)
    return Cloud(
        present=present,
        counts=[int(np.sum(labels == c)) for c in present],
        centred=centred,
        within=within_covariance(features, labels, present),
        resolution=resolution,
        values=values,
        directions=directions,
        rank=mean_rank(values, len(present), features.shape[1], resolution),
    )


def _present(labels: Labels) -> list[int]:
    return [int(c) for c in np.unique(labels)]


def _nc1_group(cloud: Cloud) -> dict[str, float]:
    num_classes = len(cloud.present)
    names = ("nc1", "nc1_quotient", "within_in_span_frac")
    if num_classes < 2 or max(cloud.counts) == 1:
        return dict.fromkeys(names, NAN)
    pinv = between_pinv(cloud.values, cloud.directions, cloud.rank, num_classes)
    spanned = cloud.rank > 0
    return {
        "nc1": nc1(cloud.within, pinv, num_classes) if spanned else NAN,
        "nc1_quotient": NAN
        if cloud.unresolved
        else nc1_quotient(cloud.within, between_covariance(cloud.centred)),
        "within_in_span_frac": within_in_span_frac(cloud.within, cloud.directions, cloud.rank)
        if spanned
        else NAN,
    }


def _nc2_group(rows: Array, suffix: str, *, zero: bool, zero_row: bool) -> dict[str, float]:
    """The four NC2 measures; ``zero``: all rows vanish, ``zero_row``: at least one does."""
    no_shape = len(rows) < 2 or zero
    no_angles = no_shape or zero_row
    return {
        f"nc2_equinorm_{suffix}": NAN if no_shape else equinorm(rows),
        f"nc2_equiangular_std_{suffix}": NAN if no_angles else equiangular_std(rows),
        f"nc2_max_angle_{suffix}": NAN if no_angles else max_angle(rows),
        f"nc2_etf_{suffix}": NAN if no_shape else etf_distance(rows),
    }


def _classifier_group(rows: Array, cloud: Cloud) -> dict[str, float]:
    """NC2 of W, NC3 and NC0, on the rows of the present classes."""
    lengths = row_norms(rows)
    zero = bool(np.all(lengths == 0))
    undefined = len(rows) < 2 or zero
    no_duality = undefined or cloud.unresolved
    centred = centred_rows(rows)
    # Equal rows leave rounding behind when centred in float64; that is not a direction.
    equal_rows = undefined or bool(norm(centred) <= len(rows) * EPS64 * norm(rows))
    duality = NAN if no_duality else self_duality(rows, cloud.centred)
    return {
        **_nc2_group(rows, "w", zero=zero, zero_row=bool(np.any(lengths == 0))),
        "nc3_self_duality": duality,
        "nc3_self_duality_sq": duality**2,
        "nc3_self_duality_centered": NAN
        if no_duality or equal_rows
        else self_duality(centred, cloud.centred),
        "w_mean_ratio": NAN if undefined else w_mean_ratio(rows),
    }


def _diagnostics(cloud: Cloud, dim: int, eps: float) -> dict[str, float]:
    num_classes = len(cloud.present)
    return {
        "n_classes_present": float(num_classes),
        "min_class_count": float(min(cloud.counts)),
        "n_singleton_classes": float(sum(count == 1 for count in cloud.counts)),
        "degenerate_classes": float(cloud.degenerate),
        "nc1_rank": float(cloud.rank),
        "s_min_ratio": _s_min_ratio(cloud, num_classes, dim),
        "neg_clips": 0.0,  # nothing is clipped: each variance is a mean of squares
        "feature_dtype": float(1 - np.log2(eps)),
    }


def _s_min_ratio(cloud: Cloud, num_classes: int, dim: int) -> float:
    """s_{K−1} / s_1, unrounded also below the rank; 0 where d < K − 1, nan where s_1 is noise."""
    if num_classes < 2 or cloud.values[0] == 0 or cloud.values[0] <= cloud.resolution:
        return NAN
    if dim < num_classes - 1:
        return 0.0
    return float(cloud.values[num_classes - 2] / cloud.values[0])


def _logits(
    features: Array,
    weight: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    logits: NDArray[Any] | None,
) -> Array | None:
    if logits is not None:
        return np.asarray(logits).astype(Real)
    if weight is None:
        return None
    scores: Array = features @ np.asarray(weight).astype(Real).T
    return scores if bias is None else scores + np.asarray(bias).astype(Real)


def reference_metrics(
    features: NDArray[Any],
    labels: NDArray[Any],
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    *,
    logits: NDArray[Any] | None = None,
    num_classes: int | None = None,
    reference: Split | None = None,
    feature_eps: float | None = None,
) -> dict[str, float]:
    """Every default metric, ``error`` and ``cross_entropy``, under their catalogue names.

    Args:
        features: (N, d), float16, float32 or float64; taken as exact numbers.
        labels: (N,), integers.
        weight: (K, d) of the classifier. Without it the classifier's metrics are absent.
        bias: (K,).
        logits: (N, K), the network's own; ``features @ weight.T + bias`` where absent.
        num_classes: K, only checked against the labels: absent classes are left out anyway.
        reference: (features, labels) whose class means NC4 and NCC use; default: the same split.
        feature_eps: Machine epsilon of the dtype the features were computed in, 2**-7 for
            bfloat16; default: that of the array.
    """
    eps = float(np.finfo(features.dtype).eps) if feature_eps is None else feature_eps
    exact = np.asarray(features).astype(Real)
    classes = np.asarray(labels).astype(np.int64)
    if num_classes is not None and int(classes.max()) >= num_classes:
        raise ValueError(f"label {int(classes.max())} with num_classes={num_classes}")

    cloud = _cloud(exact, classes, eps)
    result = _nc1_group(cloud)
    result |= _nc2_group(
        cloud.centred, "means", zero=cloud.unresolved, zero_row=cloud.degenerate > 0
    )
    if weight is not None:
        result |= _classifier_group(np.asarray(weight).astype(Real)[cloud.present], cloud)

    train, train_labels = (exact, classes) if reference is None else _as_exact(reference)
    train_present = _present(train_labels)
    nearest = nearest_centres(exact, class_means(train, train_labels, train_present), train_present)
    # With one centre there is nothing to choose, nor where all centres coincide.
    enough = len(train_present) >= 2 and not _cloud(train, train_labels, eps).unresolved
    result["ncc_accuracy"] = float(np.mean(nearest == classes)) if enough else NAN
    scores = _logits(exact, weight, bias, logits)
    if scores is not None:
        result["nc4_disagreement"] = disagreement(scores, nearest) if enough else NAN
        result["error"] = float(np.mean(np.argmax(scores, axis=1) != classes))
        result["cross_entropy"] = cross_entropy(scores, classes)
    return result | _diagnostics(cloud, exact.shape[1], eps)


def _as_exact(split: Split) -> tuple[Array, Labels]:
    return np.asarray(split[0]).astype(Real), np.asarray(split[1]).astype(np.int64)


def ambiguous_share(
    features: NDArray[Any],
    labels: NDArray[Any],
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    *,
    logits: NDArray[Any] | None = None,
    reference: Split | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Share of samples on which rounding may decide: how far NC4, NCC and error may differ.

    A sample counts when its two nearest class means, or its two largest logits, are closer than
    ``tolerance`` times the size of the products whose difference decides. Ties count too.
    """
    exact = np.asarray(features).astype(Real)
    train, train_labels = _as_exact((features, labels) if reference is None else reference)
    means = class_means(train, train_labels, _present(train_labels))
    centred, offset = centred_means(means), exact - means.mean(axis=0)
    size = row_norms(offset) * row_norms(centred).max() + row_norms(centred).max() ** 2
    # (‖h − μ_2‖² − ‖h − μ_1‖²)/2 is the difference of ⟨h − μ_G, μ̇_c⟩ − ‖μ̇_c‖²/2
    unsure = _top_gap(-squared_distances(exact, means)) / 2 <= tolerance * size
    scores = _logits(exact, weight, bias, logits)
    if scores is not None:
        size = np.abs(scores).max(axis=1)
        if logits is None and weight is not None:
            size = size + row_norms(exact) * row_norms(np.asarray(weight).astype(Real)).max()
        unsure |= _top_gap(scores) <= tolerance * size
    return float(np.mean(unsure))


def _top_gap(scores: Array) -> Array:
    """Largest minus second largest of each row; infinite where there is only one."""
    if scores.shape[1] < 2:
        return np.full(len(scores), np.inf, dtype=Real)
    ordered = np.sort(scores, axis=1)
    return ordered[:, -1] - ordered[:, -2]
