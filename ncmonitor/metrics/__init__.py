"""Pure functions from moments and geometry to numbers, one file per property of the collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.geometry.pairs import pair_count
from ncmonitor.geometry.vectors import GramSpectrum, Vectors
from ncmonitor.metrics import (
    class_symmetry,
    covariance,
    duality,
    equiangularity,
    minority,
    variability,
)
from ncmonitor.metrics.arguments import ClassGeometry, WithinClassStatistics, class_weights
from ncmonitor.theory import etf_distance_floor


def _unless(undefined: bool, value: Callable[[], float]) -> float:
    return math.nan if undefined else value()


def _self_duality(s: ClassGeometry, *, centred: bool = False, squared: bool = False) -> float:
    if s.flat or (centred and s.equal_rows):
        return math.nan
    rows = s.rows.centred if centred else s.rows.vectors
    value = duality.self_duality(rows, s.centred)
    return value**2 if squared or s.convention.nc3_squared else value


def _etf_means(s: ClassGeometry) -> float:
    if s.convention.sample_between:  # not centred on the plain mean
        return equiangularity.etf_distance(GramSpectrum.of(s.centred), centred=False)
    return equiangularity.etf_distance(s.means, centred=True)


def _raw_means(s: ClassGeometry) -> Vectors:
    """Return the class means as they are."""
    return s.means.vectors.minus(-s.origin)


def _constant(s: ClassGeometry) -> Tensor:
    assert s.constant is not None
    return s.constant


def _logit_breaking(s: ClassGeometry) -> float:
    constant = _constant(s) - _constant(s).mean()
    return class_symmetry.logit_breaking(s.means.centred, s.rows.centred, constant)


def _block_residual(s: ClassGeometry) -> float:
    blocks = minority.minority(s.counts).long() if s.blocks is None else s.blocks
    numbered = torch.unique(blocks, return_inverse=True)[1]
    return class_symmetry.block_residual(s.means, numbered)


def _s_min_ratio(s: ClassGeometry) -> float:
    values = s.span.singular_values
    return math.nan if s.span.rank == 0 else float(values[-1] / values[0])


def mantissa_bits(dtype: torch.dtype) -> float:
    """Return the significand bits of a floating-point type: 53, 24, 11 or 8."""
    return 1 - math.log2(torch.finfo(dtype).eps)


#: From the first pass alone; names as in the catalogue.
SHAPE: dict[str, Callable[[ClassGeometry], float]] = {
    "nc1_quotient": lambda s: _unless(
        s.flat or float(s.counts.max()) <= 1,
        lambda: variability.nc1_quotient(s.variances, s.weights, s.span.singular_values),
    ),
    "nc1_cdnv": lambda s: _unless(
        s.flat or float(s.counts.max()) <= 1,
        lambda: variability.nc1_cdnv(s.means.centred, s.variances, s.means.resolution),
    ),
    "nc2_equinorm_means": lambda s: _unless(
        s.flat, lambda: equiangularity.equinorm(s.centred, ddof=s.convention.ddof)
    ),
    "nc2_equinorm_w": lambda s: equiangularity.equinorm(s.rows.vectors, ddof=s.convention.ddof),
    "nc2_equiangular_std_means": lambda s: s.angles[0],
    "nc2_equiangular_std_w": lambda s: s.row_angles[0],
    "nc2_max_angle_means": lambda s: s.angles[1],
    "nc2_max_angle_w": lambda s: s.row_angles[1],
    "nc2_etf_means": lambda s: _unless(s.flat, lambda: _etf_means(s)),
    "nc2_etf_w": lambda s: equiangularity.etf_distance(s.rows, centred=False),
    "nc2_etf_w_centered": lambda s: _unless(
        s.equal_rows, lambda: equiangularity.etf_distance(s.rows, centred=True)
    ),
    "nc3_self_duality": _self_duality,
    "nc3_self_duality_sq": lambda s: _self_duality(s) ** (1 if s.convention.nc3_squared else 2),
    "nc3_self_duality_centered": lambda s: _self_duality(s, centred=True),
    "nc3_etf_product": lambda s: _unless(
        s.flat, lambda: duality.etf_product(s.rows.vectors, s.means.centred)
    ),
    "nc3_cos_mean": lambda s: s.alignment[0],
    "nc_bias": lambda s: _unless(
        s.flat or s.equal_rows,
        lambda: duality.bias_collapse(s.rows.vectors, s.means.centred, _constant(s)),
    ),
    "w_mean_ratio": lambda s: duality.row_mean_ratio(s.rows.vectors),
    "nc0_k": lambda s: duality.square_row_sum(s.rows.vectors),
    "sk_breaking_means": lambda s: _unless(
        s.flat, lambda: class_symmetry.sk_breaking(s.means, centred=True)
    ),
    "sk_breaking_norm": lambda s: _unless(s.flat, lambda: class_symmetry.sk_breaking_norm(s.means)),
    "sk_breaking_pair": lambda s: _unless(s.flat, lambda: class_symmetry.sk_breaking_pair(s.means)),
    "sk_breaking_w": lambda s: class_symmetry.sk_breaking(s.rows, centred=False),
    "of_etf_index": lambda s: _unless(s.equal_rows, lambda: class_symmetry.of_etf_index(s.rows)),
    "sk_breaking_logits": lambda s: _unless(
        s.flat or s.rows.vectors.norm == 0, lambda: _logit_breaking(s)
    ),
    "sk_residual_block": lambda s: _unless(s.flat, lambda: _block_residual(s)),
    "nc2_imbalance_floor": lambda s: minority.imbalance_floor(s.counts),
    "seli_dist_w": lambda s: minority.seli_distance(s.rows.vectors, s.counts, "w"),
    "seli_dist_means": lambda s: _unless(
        s.flat, lambda: minority.seli_distance(s.means.centred, s.counts, "means")
    ),
    "sel_logit_dist": lambda s: _unless(
        s.flat, lambda: duality.etf_product(s.rows.vectors, _raw_means(s))
    ),
    "minority_cos": lambda s: minority.minority_cosine(s.rows.vectors, s.counts),
    "norm_ratio": lambda s: minority.norm_ratio(s.rows.vectors, s.counts),
    "nc2_etf_floor": lambda s: etf_distance_floor(len(s.counts), s.centred.dim),
    "gnc2_one_vs_rest": lambda s: equiangularity.one_vs_rest(s.rows.vectors),
    "gnc2_log_energy": lambda s: _unless(
        s.means.degenerate > 0, lambda: equiangularity.log_energy(s.means.centred)
    ),
    "gnc3_align": lambda s: s.alignment[1],
    "std_log_norm": lambda s: _unless(
        s.means.degenerate > 0, lambda: equiangularity.std_log_norm(s.means.centred)
    ),
    "feature_norm_mean": lambda s: float(
        (s.feature_norms * class_weights(s.counts, samples=s.convention.sample_between)).sum()
    ),
    "w_norm": lambda s: s.rows.vectors.norm,
    "participation_ratio_means": lambda s: equiangularity.participation_ratio(s.means),
    "n_classes_present": lambda s: float(len(s.counts)),
    "min_class_count": lambda s: float(s.counts.min()),
    "n_singleton_classes": lambda s: float((s.counts == 1).sum()),
    "degenerate_classes": lambda s: float((s.centred.norms <= s.means.resolution).sum()),
    "nc1_rank": lambda s: float(s.span.rank),
    "s_min_ratio": _s_min_ratio,
    "neg_clips": lambda s: float(s.neg_clips),
    "feature_dtype": lambda s: mantissa_bits(s.feature_dtype),
    "n_pairs": lambda s: float(pair_count(len(s.counts))),
}


def _nc1(s: WithinClassStatistics) -> float:
    factor = len(s.counts) if s.convention.nc1_times_k else 1
    return variability.nc1(s.whitened, s.weights) * factor


def _directional(s: WithinClassStatistics) -> float:
    if s.undefined or s.directional is None:
        return math.nan
    return variability.nc1_cdnv_directional(s.directional)


#: From the second pass.
SPREAD: dict[str, Callable[[WithinClassStatistics], float]] = {
    "nc1": lambda s: _unless(s.undefined, lambda: _nc1(s)),
    "within_in_span_frac": lambda s: _unless(
        s.undefined,
        lambda: variability.within_in_span_frac(s.in_span, s.variances, s.weights),
    ),
    "nc1_cdnv_directional": _directional,
    "vci": lambda s: _unless(s.undefined, lambda: covariance.vci(s.moments)),
    "separation_fuzziness": lambda s: _unless(s.undefined, lambda: s.fuzziness),
    "nc4_disagreement": lambda s: s.disagreement,
    "ncc_accuracy": lambda s: s.accuracy,
    "ncc_margin": lambda s: s.margin,
    "mse_l_nc1": lambda s: s.parts.l_nc1,
    "mse_l_nc23": lambda s: s.parts.l_nc23,
    "mse_l_perp": lambda s: s.parts.l_perp,
    "central_path_dist": lambda s: s.parts.central_path_distance(len(s.counts)),
    "entropy_rank_total": lambda s: covariance.entropy_rank(s.moments),
    "numerical_rank": lambda s: covariance.numerical_rank(s.moments),
}


def applicable(names: Iterable[str], *, classifier: bool, decisions: bool) -> list[str]:
    """Return those of the names that apply, in order.

    Args:
        names: From the catalogue.
        classifier: Whether there are classifier weights.
        decisions: Whether every sample has logits.
    """
    absent = {"targets"} | ({"classifier"} if not classifier else set())
    absent |= {"decisions"} if not decisions else set()
    return [name for name in names if CATALOGUE[name].needs not in absent]
