"""The naive twin of the opt-in metrics, straight from their papers.

Like ``reference.py`` it shares nothing with ``ncmonitor``, runs in ``numpy.longdouble`` and writes
K x K matrices out. ``reference_total.py`` holds what needs more than class means and W.

Class-balanced unless said; absent classes are left out, and their rows of W and b; undefined is
``nan``. With fewer than two classes all is, but for ``feature_norm_mean`` and ``n_pairs``, and
``ncc_margin`` where the train split has two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import (
    EPS64,
    NAN,
    Array,
    Cloud,
    Labels,
    Real,
    Split,
    _as_exact,
    _classifier_group,
    _cloud,
    _nc2_group,
    _present,
    between_pinv,
    centred_rows,
    class_means,
    etf_distance,
    jacobi_svd,
    mean_rank,
    norm,
    pair_cosines,
    row_norms,
    self_duality,
    squared_distances,
    within_in_span_frac,
)
from reference_total import (
    fuzziness,
    margin,
    mse_decomposition,
    one_vs_rest,
    pairs,
    regression_metrics,
    spectrum,
    vci,
    within_factor,
)

__all__ = ["convention_metrics", "optional_metrics", "per_class_nc1", "regression_metrics"]

MSE = ("mse_l_nc1", "mse_l_nc23", "mse_l_perp", "central_path_dist")
OF_FEATURES = (
    *("nc1_cdnv", "nc1_cdnv_directional", "vci", "separation_fuzziness", "ncc_margin"),
    *("sk_breaking_means", "sk_breaking_norm", "sk_breaking_pair", "sk_residual_block"),
    *("nc2_imbalance_floor", "seli_dist_means", "nc2_etf_floor", "gnc2_log_energy"),
    *("std_log_norm", "feature_norm_mean", "participation_ratio_means", "entropy_rank_total"),
    *("numerical_rank", "n_pairs"),
)
OF_CLASSIFIER = (
    *("nc0_k", "nc2_etf_w_centered", "nc3_etf_product", "nc3_cos_mean", "gnc3_align", "nc_bias"),
    *("sk_breaking_w", "of_etf_index", "sk_breaking_logits", "seli_dist_w", "sel_logit_dist"),
    *("minority_cos", "norm_ratio", "gnc2_one_vs_rest", "w_norm", *MSE),
)


@dataclass(frozen=True)
class Head:
    """The classifier's rows of the present classes, and which of them are no direction."""

    rows: Array  # (K, d)
    bias: Array  # (K,)

    @property
    def zero(self) -> bool:
        return bool(np.all(self.rows == 0))

    @property
    def zero_row(self) -> bool:
        return bool(np.any(row_norms(self.rows) == 0))

    @property
    def equal_rows(self) -> bool:
        """Nothing but float64 rounding is left after centring; true of W = 0."""
        centred = norm(centred_rows(self.rows))
        return bool(centred <= len(self.rows) * EPS64 * norm(self.rows))


# --------------------------------------------------------------------------------------------
# K x K matrices
# --------------------------------------------------------------------------------------------


def centring(count: int) -> Array:
    """P = I − 11ᵀ/K."""
    return np.eye(count, dtype=Real) - Real(1) / count


def relative(gram: Array, invariant: Array) -> float:
    """‖G − R(G)‖_F / ‖G‖_F."""
    return float(norm(gram - invariant) / norm(gram))


def distance(gram: Array, target: Array) -> float:
    """‖G/‖G‖_F − T/‖T‖_F‖_F."""
    return float(norm(gram / norm(gram) - target / norm(target)))


def block_mean(gram: Array, groups: Sequence[int] | Labels) -> Array:
    """Average over the class permutations that keep every group, a Young subgroup of S_K."""
    member, result = np.asarray(groups), np.zeros_like(gram)
    same = np.eye(len(gram), dtype=bool)
    for a in np.unique(member):
        for b in np.unique(member):
            block = np.outer(member == a, member == b)
            for orbit in (block & same, block & ~same):
                if orbit.any():
                    result[orbit] = gram[orbit].mean()
    return result


def reynolds(gram: Array) -> Array:
    """Average over all class permutations: one number on the diagonal, one off it."""
    return block_mean(gram, [0] * len(gram))


def seli_gram(counts: list[int], power: int) -> Array:
    """(P D P)^{power/2} with D = diag(n_c) on its K − 1 directions; power is 1 or -1.

    Thrampoulidis et al. 2022. The singular values of P D^{1/2} are those roots: nothing is
    squared, and the direction 1 is left out by its number, not by a threshold.
    """
    root = np.sqrt(np.array(counts, dtype=Real))
    values, directions = jacobi_svd(centring(len(counts)) * root)
    kept = directions[:, : len(counts) - 1]
    return kept * values[: len(counts) - 1] ** power @ kept.T


def minority(counts: list[int]) -> NDArray[np.bool_]:
    """Classes with n_c below the geometric mean of the smallest and the largest count."""
    limit = min(counts) * max(counts)
    return np.array([n * n < limit for n in counts])


# --------------------------------------------------------------------------------------------
# Features alone
# --------------------------------------------------------------------------------------------


def _symmetry(cloud: Cloud, superclasses: Sequence[int] | Labels | None) -> dict[str, float]:
    """What class permutations change in the Gram matrix of the centred means."""
    norm_pair = ("sk_breaking_norm", "sk_breaking_pair")
    if cloud.unresolved:
        return dict.fromkeys(("sk_breaking_means", *norm_pair, "sk_residual_block"), NAN)
    if superclasses is None:
        groups = minority(cloud.counts).astype(np.int64)
    else:
        groups = np.asarray(superclasses)[cloud.present]
    gram = cloud.centred @ cloud.centred.T
    return {
        "sk_breaking_means": relative(gram, reynolds(gram)),
        "sk_residual_block": relative(gram, block_mean(gram, groups)),
        **dict(zip(norm_pair, _irreps(gram), strict=True)),
    }


def _irreps(gram: Array) -> tuple[float, float]:
    """The residual's standard part (lengths) and (K − 2, 2) part (pairs); 0 for two classes."""
    count = len(gram)
    if count == 2:
        return 0.0, 0.0
    others = ~np.eye(count, dtype=bool)
    x = np.diag(gram) - np.diag(gram).mean()
    pair = gram - gram[others].mean() + (x[:, None] + x) / (count - 2)
    size = norm(gram)
    lengths = np.sqrt(Real(count) / (count - 2)) * norm(x) / size
    return float(lengths), float(norm(np.where(others, pair, 0)) / size)


def _shape(cloud: Cloud) -> dict[str, float]:
    """Lengths, angles and spectrum of the centred means, and what counts and room allow."""
    rows, count = cloud.centred, len(cloud.present)
    lengths, squares = row_norms(rows), cloud.values**2
    energy = spread = NAN
    if not cloud.degenerate:
        unit = rows / lengths[:, None]
        apart = squared_distances(unit, unit)[~np.eye(count, dtype=bool)]
        with np.errstate(divide="ignore"):  # two means in the same direction: infinite energy
            energy = float(np.mean(-np.log(np.sqrt(apart))))
        spread = float(np.std(np.log(lengths)))
    filled = Real(min(rows.shape[1], count - 1)) / (count - 1)
    pinv_root = seli_gram(cloud.counts, -1)
    flat = cloud.unresolved
    return {
        "gnc2_log_energy": energy,
        "std_log_norm": spread,
        "participation_ratio_means": NAN
        if flat
        else float(squares.sum() ** 2 / np.sum(squares**2)),
        "nc2_etf_floor": float(np.sqrt(2 - 2 * np.sqrt(filled))),
        "nc2_imbalance_floor": distance(seli_gram(cloud.counts, 1), centring(count)),
        "seli_dist_means": NAN if flat else distance(rows @ rows.T, pinv_root),
        "n_pairs": float(count * (count - 1)),
    }


def _feature_norm(features: Array, labels: Labels, convention: str) -> float:
    lengths = row_norms(features)
    if convention == "per_sample":
        return float(np.mean(lengths))
    return float(np.mean([lengths[labels == c].mean() for c in _present(labels)]))


# --------------------------------------------------------------------------------------------
# With the classifier
# --------------------------------------------------------------------------------------------


def _weights(head: Head, counts: list[int]) -> dict[str, float]:
    """What needs W alone."""
    rows, few = head.rows, minority(counts)
    gram, lengths = rows @ rows.T, row_norms(rows)
    trivial = norm(rows.sum(axis=0)) ** 2 / len(rows)
    standard = norm(centred_rows(rows)) ** 2 / (len(rows) - 1)  # (tr G − λ_triv)/(K − 1)
    rare = lengths[few]
    no_cosine = len(rare) < 2 or bool(np.any(rare == 0))
    no_ratio = len(rare) == 0 or not np.any(rare)
    return {
        "nc0_k": float(trivial),
        "w_norm": float(norm(rows)),
        "nc2_etf_w_centered": NAN if head.equal_rows else etf_distance(centred_rows(rows)),
        "sk_breaking_w": NAN if head.zero else relative(gram, reynolds(gram)),
        "of_etf_index": NAN if head.equal_rows else float(trivial / standard),
        "seli_dist_w": NAN if head.zero else distance(gram, seli_gram(counts, 1)),
        "minority_cos": NAN if no_cosine else float(np.mean(pair_cosines(rows[few]))),
        "norm_ratio": NAN if no_ratio else float(lengths[~few].mean() / rare.mean()),
        "gnc2_one_vs_rest": one_vs_rest(rows),
    }


def _duality(head: Head, cloud: Cloud, means: Array) -> dict[str, float]:
    """W against the class means, centred and raw, and the logits at them."""
    rows, target = head.rows, centring(len(head.rows))
    product, raw = rows @ cloud.centred.T, rows @ means.T
    logits = target @ (raw + head.bias[:, None])
    limit, flat = len(rows) * EPS64 * norm(rows), cloud.unresolved
    dull = flat or norm(product) <= limit * norm(cloud.centred)
    dull_raw = flat or head.zero or norm(raw) <= limit * norm(means)
    noise = limit * norm(means) + len(rows) * EPS64 * norm(head.bias)
    dull_logits = flat or head.zero or norm(logits) <= noise
    cosine = align = NAN
    if not cloud.degenerate and not head.zero_row:
        w, v = (x / row_norms(x)[:, None] for x in (rows, cloud.centred))
        cosine, align = float(np.mean(np.sum(w * v, axis=1))), float(norm(w - v) ** 2 / 2 / len(w))
    return {
        "nc3_etf_product": NAN if dull else distance(product, target),
        "nc3_cos_mean": cosine,
        "gnc3_align": align,
        "nc_bias": NAN if flat or head.equal_rows else _bias(head, logits, means),
        "sk_breaking_logits": NAN if dull_logits else relative(logits, reynolds(logits)),
        "sel_logit_dist": NAN if dull_raw else distance(raw, target),
    }


def _bias(head: Head, logits: Array, means: Array) -> float:
    """‖P(b + W μ_G)‖ in units of the mean logit gap at the class means.

    ``logits`` are centred over the classes, which leaves every gap as it is.
    """
    count = len(logits)
    gap = np.mean(np.diag(logits)) - np.mean(logits[~np.eye(count, dtype=bool)])
    if gap <= 0:
        return NAN
    common = centring(count) @ (head.bias + head.rows @ means.mean(axis=0))
    return float(norm(common) / gap)


# --------------------------------------------------------------------------------------------
# Everything at once
# --------------------------------------------------------------------------------------------


def optional_metrics(
    features: NDArray[Any],
    labels: NDArray[Any],
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    *,
    reference: Split | None = None,
    convention: str = "per_class",
    superclasses: Sequence[int] | Labels | None = None,
    ridge: float = 0.0,
    feature_eps: float | None = None,
) -> dict[str, float]:
    """Every opt-in metric under its catalogue name; without ``weight`` those of W are absent.

    Args:
        features: (N, d), as for ``reference_metrics``, and so are the next three.
        labels: (N,).
        weight: (K, d).
        bias: (K,), zero where absent.
        reference: (features, labels) whose class means ``ncc_margin`` uses; default: the same.
        convention: ``"per_class"``, ``"per_sample"`` or ``"papyan_code"``.
        superclasses: One group number per class, for ``sk_residual_block``.
        ridge: λ of the decomposition of the squared loss.
        feature_eps: Machine epsilon of the features.
    """
    exact, classes = _as_exact((features, labels))
    eps = _eps(features, feature_eps)
    train, train_labels = (exact, classes) if reference is None else _as_exact(reference)
    train_eps = eps if reference is None else _eps(reference[0], feature_eps)
    cloud = _cloud(exact, classes, eps)
    names = OF_FEATURES if weight is None else OF_FEATURES + OF_CLASSIFIER
    result = dict.fromkeys(names, NAN) | {"n_pairs": 0.0}
    result["feature_norm_mean"] = _feature_norm(exact, classes, convention)
    result["ncc_margin"] = margin(exact, train, train_labels, train_eps)
    if len(cloud.present) < 2:
        return result

    factor = within_factor(exact, classes, cloud.present)
    result |= pairs(exact, classes, cloud) | _symmetry(cloud, superclasses) | _shape(cloud)
    result |= spectrum(cloud, factor) | {"vci": vci(cloud, factor)}
    result["separation_fuzziness"] = fuzziness(exact, classes, cloud)
    if weight is not None:
        head = _head(weight, bias, cloud.present)
        means = class_means(exact, classes, cloud.present)
        result |= _weights(head, cloud.counts) | _duality(head, cloud, means)
        centre = means.mean(axis=0)
        result |= mse_decomposition(cloud, factor, centre, head.rows, head.bias, ridge)
    return result


def _eps(features: NDArray[Any], given: float | None) -> float:
    return float(np.finfo(features.dtype).eps) if given is None else given


def _head(weight: NDArray[Any], bias: NDArray[Any] | None, present: list[int]) -> Head:
    rows = np.asarray(weight).astype(Real)[present]
    if bias is None:
        return Head(rows, np.zeros(len(rows), dtype=Real))
    return Head(rows, np.asarray(bias).astype(Real)[present])


def per_class_nc1(
    features: NDArray[Any], labels: NDArray[Any], *, feature_eps: float | None = None
) -> dict[int, float]:
    """tr(Σ_c Σ_B⁺)/K of each present class; their average is NC1, and nan is where NC1 is."""
    exact, classes = _as_exact((features, labels))
    cloud = _cloud(exact, classes, _eps(features, feature_eps))
    if len(cloud.present) < 2 or max(cloud.counts) == 1 or cloud.rank == 0:
        return dict.fromkeys(cloud.present, NAN)
    basis = cloud.directions[:, : cloud.rank] / cloud.values[: cloud.rank]
    result = {}
    for c in cloud.present:
        own = exact[classes == c]
        result[c] = float(np.mean(row_norms((own - own.mean(axis=0)) @ basis) ** 2))
    return result


def convention_metrics(
    features: NDArray[Any],
    labels: NDArray[Any],
    weight: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    convention: str,
    *,
    feature_eps: float | None = None,
) -> dict[str, float]:
    """The default metrics that are other numbers under ``"per_sample"`` and ``"papyan_code"``."""
    del bias  # no default metric that changes depends on it
    exact, classes = _as_exact((features, labels))
    cloud = _cloud(exact, classes, _eps(features, feature_eps))
    means = class_means(exact, classes, cloud.present)
    residuals = exact - means[np.searchsorted(cloud.present, classes)]
    within: Array = residuals.T @ residuals / Real(len(exact))
    cloud = replace(cloud, within=within)
    rows = None if weight is None else np.asarray(weight).astype(Real)[cloud.present]
    if convention == "papyan_code":
        return _demo(cloud, rows)
    if convention != "per_sample":
        raise ValueError(f"unknown convention {convention!r}")
    return _sample(cloud, rows, means - exact.mean(axis=0))


def _sample(cloud: Cloud, rows: Array | None, centred: Array) -> dict[str, float]:
    """Each sample counts the same; the global mean is that of the samples."""
    count, dim = centred.shape
    share = np.array(cloud.counts, dtype=Real) / sum(cloud.counts)
    scaled = np.sqrt(count * share)[:, None] * centred  # its Gram matrix is K Σ_B
    values, directions = jacobi_svd(scaled.T)
    rank = mean_rank(values, count, dim, cloud.resolution)
    cloud = replace(cloud, centred=centred, values=values, directions=directions, rank=rank)
    result = _nc2_group(
        centred, "means", zero=cloud.unresolved, zero_row=cloud.degenerate > 0
    ) | _within(cloud, norm(scaled) ** 2 / count, Real(count))
    result["nc1_rank"] = float(rank)
    known = count >= 2 and values[0] > cloud.resolution
    small = values[count - 2] if dim >= count - 1 else Real(0)
    result["s_min_ratio"] = float(small / values[0]) if known else NAN
    if rows is not None:
        own = _classifier_group(rows, cloud)
        result |= {name: own[name] for name in own if name.startswith("nc3_")}
    return result


def _demo(cloud: Cloud, rows: Array | None) -> dict[str, float]:
    """The notebook of Papyan, Han & Donoho: mixed weights, no 1/K, sample std, squared NC3."""
    count = len(cloud.present)
    result = _within(cloud, norm(cloud.centred) ** 2 / count, Real(1))
    result["nc2_equinorm_means"] = _demo_equinorm(cloud.centred, zero=cloud.unresolved)
    if rows is None:
        return result
    head = Head(rows, np.zeros(count, dtype=Real))
    result["nc2_equinorm_w"] = _demo_equinorm(rows, zero=head.zero)
    result["nc3_self_duality"] = result["nc3_self_duality_centered"] = NAN
    if count >= 2 and not cloud.unresolved and not head.zero:
        result["nc3_self_duality"] = self_duality(rows, cloud.centred) ** 2
        if not head.equal_rows:
            centred = centred_rows(rows)
            result["nc3_self_duality_centered"] = self_duality(centred, cloud.centred) ** 2
    return result


def _demo_equinorm(rows: Array, *, zero: bool) -> float:
    if len(rows) < 2 or zero:
        return NAN
    lengths = row_norms(rows)
    return float(np.std(lengths, ddof=1) / np.mean(lengths))


def _within(cloud: Cloud, between: np.longdouble, divisor: np.longdouble) -> dict[str, float]:
    """The NC1 group from the cloud's Σ_W and spectrum and tr Σ_B; NC1 is divided by ``divisor``."""
    count = len(cloud.present)
    names = ("nc1", "nc1_quotient", "within_in_span_frac")
    if count < 2 or max(cloud.counts) == 1:
        return dict.fromkeys(names, NAN)
    spanned = cloud.rank > 0
    pinv = between_pinv(cloud.values, cloud.directions, cloud.rank, count)
    span_frac = within_in_span_frac(cloud.within, cloud.directions, cloud.rank)
    return {
        "nc1": float(np.trace(cloud.within @ pinv) / divisor) if spanned else NAN,
        "nc1_quotient": NAN if cloud.unresolved else float(np.trace(cloud.within) / between),
        "within_in_span_frac": span_frac if spanned else NAN,
    }
