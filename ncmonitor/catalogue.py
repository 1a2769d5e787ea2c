"""The catalogue of quantities: one entry per name, read by reports, plots, the README and the CLI.

The name of an entry is its name everywhere: attribute of a report, log key, column, plot label.
This file imports nothing heavy, so that ``ncmonitor --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PHD = "Papyan, Han & Donoho 2020"


@dataclass(frozen=True)
class Quantity:
    """What a number is called, what it means and where it comes from.

    Attributes:
        name: The name everywhere.
        group: Family, as in ``nc1`` ... ``nc4``, ``nc0``, ``diagnostics``, ``fit``, ``phase``.
        label: Short axis label.
        definition: The formula, in words and symbols.
        collapse: Value at full collapse, or ``None`` where collapse does not fix one.
        meaning: One sentence for a reader of the log.
        source: Where it was defined.
        classifier_only: Depends on the classifier's weights alone; logged once, under ``train``.
    """

    name: str
    group: str
    label: str
    definition: str
    collapse: float | None
    meaning: str
    source: str
    classifier_only: bool = False


def _q(
    name: str,
    group: str,
    label: str,
    definition: str,
    collapse: float | None,
    meaning: str,
    source: str,
    classifier_only: bool = False,
) -> Quantity:
    return Quantity(name, group, label, definition, collapse, meaning, source, classifier_only)


#: Everything a :class:`~ncmonitor.report.CollapseReport` holds by default, in display order.
METRICS: Final[tuple[Quantity, ...]] = (
    _q("nc1", "nc1", "NC1", "tr(Σ_W Σ_B⁺) / K", 0.0,
       "Within-class variability, measured in the span of the class means.",
       f"{_PHD}, NC1"),
    _q("nc1_quotient", "nc1", "NC1 quotient", "tr Σ_W / tr Σ_B", 0.0,
       "Within-class over between-class variance, in all directions.",
       "Tirer, Huang & Niles-Weed 2023"),
    _q("within_in_span_frac", "nc1", "within-class share in span", "tr(Uᵀ Σ_W U) / tr Σ_W", None,
       "Share of the within-class variance that NC1 can see; (K−1)/d for random directions.",
       "ncmonitor"),
    _q("nc2_equinorm_means", "nc2", "NC2 equinorm (means)", "Std‖μ̇_c‖ / Avg‖μ̇_c‖", 0.0,
       "Unequal lengths of the centred class means.", f"{_PHD}, NC2"),
    _q("nc2_equinorm_w", "nc2", "NC2 equinorm (W)", "Std‖w_c‖ / Avg‖w_c‖", 0.0,
       "Unequal lengths of the classifier's rows.", f"{_PHD}, NC2", classifier_only=True),
    _q("nc2_equiangular_std_means", "nc2", "NC2 equiangularity (means)",
       "Std over c≠c′ of cos(μ̇_c, μ̇_c′)", 0.0,
       "Unequal angles between the centred class means.", f"{_PHD}, NC2"),
    _q("nc2_equiangular_std_w", "nc2", "NC2 equiangularity (W)", "Std over c≠c′ of cos(w_c, w_c′)",
       0.0, "Unequal angles between the classifier's rows.", f"{_PHD}, NC2",
       classifier_only=True),
    _q("nc2_max_angle_means", "nc2", "NC2 maximal angle (means)",
       "Avg over c≠c′ of |cos(μ̇_c, μ̇_c′) + 1/(K−1)|", 0.0,
       "Distance of the means' angles from the largest possible common angle.", f"{_PHD}, NC2"),
    _q("nc2_max_angle_w", "nc2", "NC2 maximal angle (W)",
       "Avg over c≠c′ of |cos(w_c, w_c′) + 1/(K−1)|", 0.0,
       "Distance of the rows' angles from the largest possible common angle.", f"{_PHD}, NC2",
       classifier_only=True),
    _q("nc2_etf_means", "nc2", "NC2 distance to ETF (means)",
       "‖ṀᵀṀ/‖ṀᵀṀ‖_F − P/√(K−1)‖_F", 0.0,
       "Distance of the means' Gram matrix from the simplex ETF's.", "Kothapalli 2023"),
    _q("nc2_etf_w", "nc2", "NC2 distance to ETF (W)",
       "‖WWᵀ/‖WWᵀ‖_F − P/√(K−1)‖_F", 0.0,
       "Distance of the classifier's Gram matrix from the simplex ETF's.",
       "Zhu et al. 2021", classifier_only=True),
    _q("nc3_self_duality", "nc3", "NC3 self-duality", "‖Wᵀ/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F", 0.0,
       "Distance between the classifier and the centred class means, both scaled to norm one.",
       f"{_PHD}, NC3"),
    _q("nc3_self_duality_sq", "nc3", "NC3 squared", "‖Wᵀ/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F²", 0.0,
       "The square of NC3: what the paper's Figure 5 and its authors' code show.",
       f"{_PHD}, Fig. 5"),
    _q("nc3_self_duality_centered", "nc3", "NC3 centred", "‖W_cᵀ/‖W_c‖_F − Ṁ/‖Ṁ‖_F‖_F", 0.0,
       "NC3 after removing the mean row of W, which softmax does not see.", "ncmonitor"),
    _q("nc4_disagreement", "nc4", "NC4 disagreement",
       "Ave 1[argmax_c (w_c·h + b_c) ≠ argmin_c ‖h − μ_c‖]", 0.0,
       "Share of samples on which the network and the nearest train class mean disagree.",
       f"{_PHD}, NC4"),
    _q("ncc_accuracy", "nc4", "NCC accuracy", "Ave 1[argmin_c ‖h − μ_c‖ = y]", None,
       "Accuracy of the nearest-class-centre rule with the train class means.",
       "Ben-Shaul & Dekel 2022"),
    _q("w_mean_ratio", "nc0", "NC0 row-mean ratio", "‖Wᵀ1‖ / (√K ‖W‖_F)", 0.0,
       "Share of the classifier in its mean row; 1/√K for an orthogonal frame, 1 for equal rows.",
       "Zhao et al. 2026, NC0, in scale-free form", classifier_only=True),
    _q("n_classes_present", "diagnostics", "classes present", "#{c : n_c > 0}", None,
       "Classes with at least one sample; every constant uses this K.", "ncmonitor"),
    _q("min_class_count", "diagnostics", "smallest class", "min n_c over present classes", None,
       "Samples in the smallest present class.", "ncmonitor"),
    _q("n_singleton_classes", "diagnostics", "singleton classes", "#{c : n_c = 1}", 0.0,
       "Classes with one sample: they add no within-class variance.", "ncmonitor"),
    _q("degenerate_classes", "diagnostics", "degenerate classes", "#{c : μ_c = μ_G}", 0.0,
       "Classes whose centred mean vanishes within rounding: their angles are undefined.",
       "ncmonitor"),
    _q("nc1_rank", "diagnostics", "rank of the class means", "rank Ṁ", None,
       "Directions NC1 uses; K−1 when all class means are resolved.", "ncmonitor"),
    _q("s_min_ratio", "diagnostics", "s_{K−1}/s_1 of the class means", "s_{K−1}(Ṁ) / s_1(Ṁ)", 1.0,
       "Flatness of the means' spectrum: 1 for a simplex ETF, rounding when the rank is below K−1.",
       "ncmonitor"),
    _q("neg_clips", "diagnostics", "negative variances clipped", "#{c : v_c < 0 before clipping}",
       0.0, "Rounding trouble in the streaming variances; 0 in a healthy measurement.",
       "ncmonitor"),
    _q("feature_dtype", "diagnostics", "feature precision (bits)",
       "significand bits of the features' dtype", None,
       "53 float64, 24 float32, 11 float16, 8 bfloat16: the floor under every number.",
       "ncmonitor"),
)  # fmt: skip

#: What the same pass says about the fit itself.
FIT: Final[tuple[Quantity, ...]] = (
    _q("error", "fit", "error", "Ave 1[argmax_c z_c ≠ y]", None,
       "Share of samples the network gets wrong, in eval mode, at these weights.", _PHD),
    _q("cross_entropy", "fit", "cross-entropy", "Ave −log softmax(z)_y", None,
       "Mean cross-entropy of the logits, in nats, whatever the training loss.", _PHD),
)  # fmt: skip

#: The clock of the terminal phase of training (TPT), logged as ``nc/tpt/<name>``.
PHASE: Final[tuple[Quantity, ...]] = (
    _q("tpt_active", "phase", "in the TPT", "1[train error = 0]", 1.0,
       "1 while every training sample is classified correctly.", f"{_PHD}, TPT"),
    _q("tpt_start_exact", "phase", "TPT start", "first epoch with train error = 0", None,
       "Completed epochs when the training error first vanished.", f"{_PHD}, TPT"),
    _q("tpt_start_effective", "phase", "TPT start (effective)",
       "first epoch with train accuracy ≥ 0.999", None,
       "The same with a tolerance for label noise.", f"{_PHD}, TPT"),
    _q("epochs_in_tpt", "phase", "epochs in the TPT", "epochs spent at train error = 0", None,
       "Age of the terminal phase, excursions not counted.", "ncmonitor"),
    _q("tpt_exits", "phase", "TPT exits", "returns to train error > 0", None,
       "How often the training error came back after vanishing.", "ncmonitor"),
    _q("wd_time", "phase", "weight-decay time τ", "Σ_t η_t λ / (1 − β)", None,
       "Optimiser time on the weight-decay clock; w_mean_ratio ∝ exp(−τ) under SGD.",
       "Zhao et al. 2026 (NC0 decays with weight decay alone)"),
)  # fmt: skip

METRIC_NAMES: Final[tuple[str, ...]] = tuple(q.name for q in METRICS)
FIT_NAMES: Final[tuple[str, ...]] = tuple(q.name for q in FIT)
PHASE_NAMES: Final[tuple[str, ...]] = tuple(q.name for q in PHASE)
CATALOGUE: Final[dict[str, Quantity]] = {q.name: q for q in METRICS + FIT + PHASE}
