"""NC3 and NC0: the classifier against the class means, its mean row and its bias."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ncmonitor.geometry import vectors as geometry
from ncmonitor.geometry.pairs import PAIR_CLASSES
from ncmonitor.geometry.vectors import Vectors


def _paired(weight: Vectors, means: Vectors) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over blocks of corresponding rows."""
    for part, rows in weight.blocks():
        yield rows, means.take(part)


def inner_product(weight: Vectors, means: Vectors) -> float:
    """Sum of the inner products of paired vectors, ``Σ_c w_c·v_c``: what NC3 is made of.

    Args:
        weight: One vector per class, ``(K, d)``.
        means: Likewise.

    Returns:
        ``‖W‖ ‖Ṁ‖`` at collapse.

    Source: Papyan, Han & Donoho 2020, NC3, multiplied out.
    """
    return float(torch.stack([(a * b).sum() for a, b in _paired(weight, means)]).sum())


def self_duality(weight: Vectors, centred_means: Vectors) -> float:
    """Distance between classifier and class means, ``‖W/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F``.

    Computed as the difference it is: ``√(2 − 2 cos)`` would lose half the digits at collapse.

    Args:
        weight: Rows of the classifier, K vectors; pass them centred for the variant that is
            blind, as softmax is, to a row added to all. Cost K d.
        centred_means: Class means minus their mean, K vectors.

    Returns:
        In [0, 2]: 0 at collapse, near √2 for unrelated vectors; ``√(2 − 2√((K−1)/K))`` for an
        orthogonal-frame W (the bias-free MSE optimum) with collapsed features. ``nan`` if either
        is zero.

    Source: Papyan, Han & Donoho 2020, NC3. Their Fig. 5 and notebook show the square.
    """
    one, two = weight.norm, centred_means.norm
    if one == 0 or two == 0:
        return math.nan
    parts = [(a / one - b / two).square().sum() for a, b in _paired(weight, centred_means)]
    return math.sqrt(float(torch.stack(parts).sum()))


def cosines(weight: Vectors, centred_means: Vectors) -> tuple[float, float]:
    """Mean cosine of a classifier row and its class mean, and one minus it.

    The second is ``Avg ½‖ŵ_c − v̂_c‖²``, which keeps its digits at collapse.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.
        centred_means: Class means minus their mean.

    Returns:
        ``(1, 0)`` at collapse, ``(0, 1)`` on average for unrelated vectors; ``nan`` if a vector is
        zero.

    Source: ncmonitor; Jiang et al. 2024, GNC3.
    """
    pairs = list(_paired(weight.unit(), centred_means.unit()))
    cosine = float(torch.cat([(a * b).sum(1) for a, b in pairs]).mean())
    return cosine, float(torch.cat([(a - b).square().sum(1) for a, b in pairs]).mean()) / 2


def etf_product(weight: Vectors, means: Vectors) -> float:
    """Distance of the products from those of dual ETFs, ``‖A/‖A‖_F − P/√(K−1)‖_F``, A = WMᵀ.

    Up to 4096 classes as the difference it is, by blocks of rows. Above, where a simplex ETF takes
    d ≥ 4096, by ``‖WMᵀ‖_F² = tr(WᵀW MᵀM)`` and the like, whose rounding stops at 1e-8.

    Args:
        weight: Rows of the classifier, K vectors. Cost K²d; K d² above 4096 classes.
        means: Class means, centred for Zhu et al.'s NC3, as they are for the SEL matrix.

    Returns:
        In [0, 2]: 0 at collapse, near √2 for unrelated vectors; ``nan`` if A is zero to rounding.

    Source: Zhu et al. 2021, NC3; Thrampoulidis et al. 2022 (logits of the SELI geometry).
    """
    count = len(weight)
    size = _product_norm(weight, means)
    if size <= count * torch.finfo(torch.float64).eps * weight.norm * means.norm:
        return math.nan
    if count > PAIR_CLASSES:
        aligned = inner_product(weight, means) - float(weight.sum @ means.sum) / count
        return math.sqrt(max(0.0, 2 - 2 * aligned / (size * math.sqrt(count - 1))))
    target, whole, squares = 1 / math.sqrt(count - 1), means.all().T, 0.0
    for part, rows in weight.blocks():
        difference = rows @ whole / size + target / count
        difference.diagonal(part.start).sub_(target)
        squares += float(difference.square().sum())
    return math.sqrt(squares)


def _product_norm(weight: Vectors, means: Vectors) -> float:
    if len(weight) <= PAIR_CLASSES:
        whole = means.all().T
        return math.sqrt(sum(float((rows @ whole).square().sum()) for _, rows in weight.blocks()))
    one, two = (_moment(vectors) for vectors in (weight, means))
    return math.sqrt(max(0.0, float((one * two).sum())))


def _moment(vectors: Vectors) -> Tensor:
    total = torch.zeros(vectors.dim, vectors.dim, dtype=torch.float64)
    for _, block in vectors.blocks(geometry.BLOCK_ROWS):
        total.addmm_(block.T, block)
    return total


def row_mean_ratio(weight: Vectors) -> float:
    """Share of the classifier that lies in its mean row, ``‖Wᵀ1‖ / (√K ‖W‖_F)``.

    Softmax cross-entropy gives the row mean no gradient: under SGD it only decays, at a rate set
    by weight decay alone.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.

    Returns:
        In [0, 1]: 0 at collapse, ``1/√K`` for an orthogonal frame, 1 if all rows are equal;
        ``nan`` for a zero classifier.

    Source: Zhao et al. 2026 (NC0 = ‖Wᵀ1‖²), in scale-free form.
    """
    if weight.norm == 0:
        return math.nan
    return float(weight.sum.norm()) / (math.sqrt(len(weight)) * weight.norm)


def square_row_sum(weight: Vectors) -> float:
    """Squared sum of the classifier's rows over K, ``‖Wᵀ1‖²/K``: NC0.

    Under softmax cross-entropy and SGD it obeys a linear recursion that only weight decay drives,
    whatever the data; it has the units of W, unlike :func:`row_mean_ratio`.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.

    Returns:
        0 at collapse, about ``‖W‖_F²/K`` for random rows.

    Source: Zhao et al. 2026, NC0.
    """
    return float(weight.sum.square().sum()) / len(weight)


def bias_collapse(weight: Vectors, centred_means: Vectors, constant: Tensor) -> float:
    """What the bias leaves of the global mean, in units of the margin at the class means.

    ``‖P(b + Wμ_G)‖ / Avg_c(z_cc − mean_{j≠c} z_jc)`` with ``z_jc = w_j·μ_c + b_j``. Cross-entropy
    fixes b + Wμ_G up to a constant only, which P removes.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.
        centred_means: Class means about the global mean.
        constant: ``b + Wμ_G``, ``(K,)``.

    Returns:
        0 at collapse; ``nan`` where the mean margin is not positive, as for a random classifier in
        half of the draws.

    Source: Zhu et al. 2021 (bias collapse ‖b + Wμ_G‖), made independent of scale and of a constant
    logit.
    """
    count = len(weight)
    own = inner_product(weight, centred_means) / count
    every = float(weight.sum @ centred_means.sum) / count
    # Averaged over classes the constant drops out: z_cc and the mean of the others both have it.
    margin = own - (every - own) / (count - 1)
    return float((constant - constant.mean()).norm()) / margin if margin > 0 else math.nan
