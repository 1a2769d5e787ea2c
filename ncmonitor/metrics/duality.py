"""NC3 and NC0: the classifier against the class means, and its mean row."""

from __future__ import annotations

import math

from torch import Tensor


def self_duality(weight: Tensor, centred_means: Tensor) -> float:
    """Distance between classifier and class means, ``‖W/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F``.

    Computed as the difference it is: ``√(2 − 2 cos)`` would lose half the digits at collapse.

    Args:
        weight: Rows of the classifier, ``(K, d)``; pass them centred for the variant that is
            blind, as softmax is, to a row added to all.
        centred_means: Class means minus their mean, ``(K, d)``.

    Returns:
        In [0, 2]: 0 at collapse, near √2 for unrelated vectors; ``√(2 − 2√((K−1)/K))`` for an
        orthogonal-frame W (the bias-free MSE optimum) with collapsed features. ``nan`` if either
        is zero.

    Source: Papyan, Han & Donoho 2020, NC3. Their Fig. 5 and notebook show the square.
    """
    return float((weight / weight.norm() - centred_means / centred_means.norm()).norm())


def row_mean_ratio(weight: Tensor) -> float:
    """Share of the classifier that lies in its mean row, ``‖Wᵀ1‖ / (√K ‖W‖_F)``.

    Softmax cross-entropy gives the row mean no gradient: under SGD it only decays, at a rate set
    by weight decay alone.

    Args:
        weight: Rows of the classifier, ``(K, d)``.

    Returns:
        In [0, 1]: 0 at collapse, ``1/√K`` for an orthogonal frame, 1 if all rows are equal;
        ``nan`` for a zero classifier.

    Source: Zhao et al. 2026 (NC0 = ‖Wᵀ1‖²), in scale-free form.
    """
    return float(weight.sum(0).norm() / (math.sqrt(len(weight)) * weight.norm()))
