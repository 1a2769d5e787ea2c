"""Ground truth you can run: what full collapse is, what no structure looks like, what can be had.

Pure functions in closed form, in float64: constructors of the limiting geometries, the exact
optima of the unconstrained-features model, the geometry of imbalanced classes, the limits where
K > d + 1, and the expectations for features without class signal. Nothing is drawn unless a
generator is passed.
"""

from ncmonitor.theory.frames import orthogonal_frame, simplex_etf
from ncmonitor.theory.many_classes import (
    cosine_std_floor,
    etf_distance_floor,
    softmax_code_distance,
)
from ncmonitor.theory.null import (
    null_abs_cosine,
    null_expectations,
    null_max_angle,
    null_nc1,
    null_nc1_cdnv,
    null_nc1_quotient,
    null_vci,
)
from ncmonitor.theory.seli import ImbalanceLimits, imbalance_limits, seli_grams, seli_limits
from ncmonitor.theory.ufm import UfmOptimum, ufm_objective, ufm_optimum

__all__ = [
    "ImbalanceLimits",
    "UfmOptimum",
    "cosine_std_floor",
    "etf_distance_floor",
    "imbalance_limits",
    "null_abs_cosine",
    "null_expectations",
    "null_max_angle",
    "null_nc1",
    "null_nc1_cdnv",
    "null_nc1_quotient",
    "null_vci",
    "orthogonal_frame",
    "seli_grams",
    "seli_limits",
    "simplex_etf",
    "softmax_code_distance",
    "ufm_objective",
    "ufm_optimum",
]
