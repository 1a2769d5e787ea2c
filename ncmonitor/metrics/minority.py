"""Imbalanced classes: distance to the geometry their sizes prescribe, and minority collapse."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from torch import Tensor

from ncmonitor.geometry.vectors import Vectors
from ncmonitor.theory import seli_grams, seli_limits

#: Above so many classes the K × K eigenproblem of the SELI geometry is not solved.
SELI_CLASSES: Final = 2048


def minority(counts: Tensor) -> Tensor:
    """Tell which classes are in the minority: ``n_c² < n_min n_max``, ``(K,)`` bool.

    That is, below the geometric mean of the extremes; none if all sizes are equal.

    Args:
        counts: Samples per class, ``(K,)``.

    Returns:
        ``(K,)`` bool. It knows no features, so it has no value at collapse.

    Source: ncmonitor; for step imbalance the two groups of Fang, He, Long & Su 2021.
    """
    return counts.square() < counts.min() * counts.max()


def imbalance_floor(counts: Tensor) -> float:
    """Distance to the simplex ETF that these class sizes leave the classifier at the end.

    Args:
        counts: Samples per class, ``(K,)``. Cost K³.

    Returns:
        0 for equal sizes; compare with ``nc2_etf_w``. ``nan`` above 2048 classes.

    Source: Thrampoulidis et al. 2022; see :func:`ncmonitor.theory.seli_limits`.
    """
    return math.nan if len(counts) > SELI_CLASSES else seli_limits(counts)[0].etf_distance


def seli_distance(vectors: Vectors, counts: Tensor, which: Literal["w", "means"]) -> float:
    """Distance of a Gram matrix from the SELI geometry's, both of norm one.

    Args:
        vectors: Rows of the classifier, or centred class means; K vectors. Cost K²(K + d).
        counts: Samples per class, ``(K,)``.
        which: Which of the two Gram matrices to compare with.

    Returns:
        In [0, √2]: 0 at the limit of vanishing decay; the distance to the simplex ETF for equal
        sizes. ``nan`` if every vector is zero, or above 2048 classes.

    Source: Thrampoulidis, Kini, Vakilian & Behnia 2022, SELI geometry.
    """
    if len(vectors) > SELI_CLASSES or vectors.norm == 0:
        return math.nan
    target = seli_grams(counts)[0 if which == "w" else 1]
    rows = vectors.all() / vectors.norm
    gram = rows @ rows.T
    return float((gram / gram.norm() - target / target.norm()).norm())


def minority_cosine(weight: Vectors, counts: Tensor) -> float:
    """Mean cosine between the classifier rows of minority classes.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.
        counts: Samples per class, ``(K,)``.

    Returns:
        ``−1/(K−1)`` for a simplex ETF, 1 at minority collapse, 0 on average for random rows;
        ``nan`` with fewer than two minority classes or a zero row among them.

    Source: Fang, He, Long & Su 2021.
    """
    few = minority(counts).nonzero().squeeze(1)
    if len(few) < 2:
        return math.nan
    unit = torch.nn.functional.normalize(weight.take(few), eps=0)  # 0/0 is nan
    number = len(few)
    return float((unit.sum(0).square().sum() - number) / (number * (number - 1)))


def norm_ratio(weight: Vectors, counts: Tensor) -> float:
    """Mean length of the majority's classifier rows over that of the minority's.

    Args:
        weight: Rows of the classifier, K vectors. Cost K d.
        counts: Samples per class, ``(K,)``.

    Returns:
        1 for an ETF or random rows, above 1 when the minority is squeezed; ``nan`` without a
        minority, or if its rows are zero.

    Source: Fang, He, Long & Su 2021.
    """
    few = minority(counts)
    small = float(weight.norms[few].mean()) if bool(few.any()) else math.nan
    return float(weight.norms[~few].mean()) / small if small else math.nan
