"""NC2: how far K vectors are from a simplex equiangular tight frame (ETF).

Every function takes a :class:`~ncmonitor.geometry.Frame` and the choice of vectors: the *centred*
rows for class means, the rows as they are for the classifier (Papyan, Han & Donoho 2020 centre the
means and not the weights). All are 0 for a simplex ETF and invariant to scale, rotation and the
order of the classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncmonitor.geometry import BLOCK_ROWS, Frame


def equinorm(vectors: Tensor) -> float:
    """Coefficient of variation of the vectors' lengths, ``Std‖v_c‖ / Avg‖v_c‖``.

    Population standard deviation; the authors' notebook uses the sample one, larger by
    √(K/(K−1)). In ``[0, √(K−1)]``; about ``1/√(2d)`` for Gaussian vectors.

    Args:
        vectors: ``(K, d)`` float64.

    Returns:
        0 at collapse; ``nan`` if every vector is zero.

    Source: Papyan, Han & Donoho 2020, NC2 (equinorm).
    """
    norms = vectors.norm(dim=1)
    return float(norms.std(correction=0) / norms.mean())


def angles(vectors: Tensor) -> tuple[float, float]:
    """Spread of the pairwise cosines, and their mean distance from the ETF's ``−1/(K−1)``.

    Both need all ordered pairs c ≠ c′; they are taken by blocks of rows, so that no K × K matrix
    is held. The spread merges centred block sums: its rounding floor is 1e-16, where the usual
    ``E[x²] − E[x]²`` stops at 1e-8.

    Args:
        vectors: ``(K, d)`` float64, K ≥ 2. Cost K²d.

    Returns:
        ``(Std cos(v_c, v_c′), Avg |cos(v_c, v_c′) + 1/(K−1)|)``, each 0 at collapse and near
        ``(1/√d, 1/(K−1))`` for independent random vectors (the larger term counts in the second);
        ``nan`` if a vector is zero.

    Source: Papyan, Han & Donoho 2020, NC2 (equiangularity; maximal angle).
    """
    count = len(vectors)
    unit = vectors / vectors.norm(dim=1, keepdim=True)  # 0/0 is nan: the angle is undefined
    seen, mean, squares, absolute = 0, 0.0, 0.0, 0.0
    for start in range(0, count, BLOCK_ROWS):
        block = unit[start : start + BLOCK_ROWS] @ unit.T
        others = torch.ones_like(block, dtype=torch.bool)
        others.diagonal(start).fill_(False)
        excess = block[others] + 1 / (count - 1)
        number, shift = excess.numel(), float(excess.mean()) - mean
        squares += float((excess - excess.mean()).square().sum())
        squares += shift**2 * seen * number / (seen + number)
        mean += shift * number / (seen + number)
        absolute += float(excess.abs().sum())
        seen += number
    return math.sqrt(squares / seen), absolute / seen


def etf_distance(frame: Frame, *, centred: bool) -> float:
    """Frobenius distance between the unit-norm Gram matrix and that of a simplex ETF.

    ``‖G/‖G‖_F − P/√(K−1)‖_F`` with ``G = VVᵀ`` and ``P = I − 11ᵀ/K``. Split along 1 and its
    complement, G has the squared singular values λ of the centred rows, the coupling ``V_c v̄`` and
    ``K‖v̄‖²``. Summing squares of these differences keeps every digit near 0, where the textbook
    ``√(2 − 2x)`` stops at 2e-8.

    Args:
        frame: K vectors.
        centred: Whether the centred vectors are meant (class means) or the rows as they are.

    Returns:
        In [0, √2]: 0 for a simplex ETF, ``√(2 − 2√((K−1)/K))`` for an orthogonal frame; ``nan`` if
        every vector is zero.

    Source: Zhu et al. 2021 for W (uncentred); Kothapalli 2023 for the means.
    """
    eigenvalues = frame.singular_values.square()
    count = len(frame.rows)
    coupling = trivial = 0.0
    if not centred:
        coupling = 2 * count * float((frame.centred @ frame.mean).square().sum())
        trivial = count * float(frame.mean.square().sum())
    norm = math.sqrt(float(eigenvalues.square().sum()) + coupling + trivial**2)
    if norm == 0:
        return math.nan
    standard = float((eigenvalues / norm - 1 / math.sqrt(count - 1)).square().sum())
    return math.sqrt(standard + (coupling + trivial**2) / norm**2)
