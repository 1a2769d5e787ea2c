"""NC2: how far K vectors are from a simplex equiangular tight frame (ETF).

Every function takes the vectors, or their :class:`~ncmonitor.geometry.vectors.GramSpectrum`: the
*centred* class means, or the rows of the classifier as they are (Papyan, Han & Donoho 2020 centre
the means and not the weights). All are 0 for a simplex ETF and invariant to scale, rotation and
the order of the classes.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from ncmonitor.geometry.pairs import PAIR_CLASSES, pair_average, tiles
from ncmonitor.geometry.vectors import GramSpectrum, Vectors

#: Above so many classes :func:`one_vs_rest` is not computed.
ONE_VS_REST_CLASSES: Final = 256


def equinorm(vectors: Vectors, *, ddof: int = 0) -> float:
    """Coefficient of variation of the vectors' lengths, ``Std‖v_c‖ / Avg‖v_c‖``.

    In ``[0, √(K−1)]``; about ``1/√(2d)`` for Gaussian vectors. Cost K d.

    Args:
        vectors: K vectors.
        ddof: 0 for the population standard deviation; 1 for the sample one, as the authors'
            notebook has it, larger by √(K/(K−1)).

    Returns:
        0 at collapse; ``nan`` if every vector is zero.

    Source: Papyan, Han & Donoho 2020, NC2 (equinorm).
    """
    return float(vectors.norms.std(correction=ddof) / vectors.norms.mean())


def angles(vectors: Vectors) -> tuple[float, float]:
    """Spread of the pairwise cosines, and their mean distance from the ETF's ``−1/(K−1)``.

    Both run over ordered pairs c ≠ c′, by blocks of rows: no K × K matrix is held. The spread
    merges centred block sums: its rounding floor is 1e-16, where the usual ``E[x²] − E[x]²`` stops
    at 1e-8. Above 4096 classes the spread comes from the spectrum, exactly, and the distance from
    a seeded sample of pairs.

    Args:
        vectors: K ≥ 2 vectors. Cost K²d.

    Returns:
        ``(Std cos(v_c, v_c′), Avg |cos(v_c, v_c′) + 1/(K−1)|)``, each 0 at collapse and near
        ``(1/√d, 1/(K−1))`` for independent random vectors (the larger term counts in the second);
        ``nan`` if a vector is zero.

    Source: Papyan, Han & Donoho 2020, NC2 (equiangularity; maximal angle).
    """
    if bool((vectors.norms == 0).any()):
        return math.nan, math.nan
    unit, others = vectors.unit(), len(vectors) - 1
    if others >= PAIR_CLASSES:
        return _cosine_std(unit), pair_average(unit, lambda t: (t.inner + 1 / others).abs())
    seen, mean, squares, absolute = 0, 0.0, 0.0, 0.0
    for tile in tiles(unit):
        excess = tile.inner[tile.distinct] + 1 / others
        number, shift = excess.numel(), float(excess.mean()) - mean
        squares += float((excess - excess.mean()).square().sum())
        squares += shift**2 * seen * number / (seen + number)
        mean += shift * number / (seen + number)
        absolute += float(excess.abs().sum())
        seen += number
    return math.sqrt(squares / seen), absolute / seen


def _cosine_std(unit: Vectors) -> float:
    """Spread of the cosines of unit vectors without visiting the pairs.

    With o the mean cosine, ``K(K−1) Var = ‖UUᵀ − (1−o)I − o11ᵀ‖_F²``: the diagonal cancels, and
    the rest is a sum of squares over the spectrum.
    """
    frame, count = GramSpectrum.of(unit), len(unit)
    common = (count * frame.trivial - count) / (count * (count - 1))
    standard = float((frame.eigenvalues - (1 - common)).square().sum())
    along = frame.trivial - (1 - common) - common * count
    return math.sqrt((standard + frame.coupling + along**2) / (count * (count - 1)))


def etf_distance(frame: GramSpectrum, *, centred: bool) -> float:
    """Frobenius distance between the unit-norm Gram matrix and that of a simplex ETF.

    ``‖G/‖G‖_F − P/√(K−1)‖_F`` with ``G = VVᵀ`` and ``P = I − 11ᵀ/K``. Split along 1 and its
    complement, G has the squared singular values λ of the centred rows, the coupling ``V_c v̄`` and
    ``K‖v̄‖²``. Summing squares of these differences keeps every digit near 0, where the textbook
    ``√(2 − 2x)`` stops at 2e-8. Cost K d min(K, d), for the spectrum.

    Args:
        frame: K vectors.
        centred: Whether the centred vectors are meant (class means) or the rows as they are.

    Returns:
        In [0, √2]: 0 for a simplex ETF, ``√(2 − 2√((K−1)/K))`` for an orthogonal frame; about
        √(K/d) for K ≪ d random vectors; ``nan`` if every vector is zero.

    Source: Zhu et al. 2021 for W (uncentred), Zhou et al. 2022 (centred); Kothapalli 2023 for the
    means.
    """
    coupling, trivial = (0.0, 0.0) if centred else (frame.coupling, frame.trivial)
    norm = math.sqrt(float(frame.eigenvalues.square().sum()) + coupling + trivial**2)
    if norm == 0:
        return math.nan
    target = 1 / math.sqrt(len(frame.vectors) - 1)
    standard = float((frame.eigenvalues / norm - target).square().sum())
    return math.sqrt(standard + (coupling + trivial**2) / norm**2)


def participation_ratio(frame: GramSpectrum) -> float:
    """Number of directions that K centred vectors fill evenly, ``(Σλ)² / Σλ²``.

    Args:
        frame: The class means; λ are the squared singular values. Cost: none beyond the spectrum.

    Returns:
        In [1, K−1]: K−1 at collapse, about ``(K−1)/(1 + K/d)`` for random vectors; ``nan`` if all
        means coincide.

    Source: Gao et al. 2017, participation ratio.
    """
    values = frame.eigenvalues / frame.eigenvalues[0]
    return math.nan if frame.flat else float(values.sum().square() / values.square().sum())


def std_log_norm(vectors: Vectors) -> float:
    """Spread of the log lengths, ``Std_c log‖v_c‖``: equinorm on a scale without units.

    Args:
        vectors: The centred class means. Cost K d.

    Returns:
        0 at collapse, about ``1/√(2d)`` for Gaussian vectors; infinite if a vector is zero.

    Source: after Wu & Papyan 2024, whose coefficient of variation of log norms depends on units.
    """
    return float(vectors.norms.log().std(correction=0))


def log_energy(vectors: Vectors) -> float:
    """Mean logarithmic energy of the directions, ``Avg over c≠c′ of −log‖v̂_c − v̂_c′‖``.

    Args:
        vectors: The centred class means. Cost K²d; above 4096 classes a sample of pairs.

    Returns:
        ``−½ log(2K/(K−1))``, its minimum, for a simplex ETF; near ``−½ log 2`` for random
        directions; infinite if two directions coincide, ``nan`` if a vector is zero.

    Source: Liu et al. 2023, hyperspherical uniformity (s = 0).
    """
    return pair_average(vectors.unit(), lambda tile: -tile.square_distances.log() / 2)


def one_vs_rest(vectors: Vectors) -> float:
    """Smallest distance of a unit vector to the convex hull of the others.

    Each distance is a nonnegative least-squares problem: with u_j = v̂_j − v̂_k, the minimiser of
    ``‖Σ x_j u_j‖² + (Σ x_j − 1)²`` over x ≥ 0 points to the nearest point of the hull of the u_j.

    Args:
        vectors: Rows of the classifier. Cost: K problems of size K × d.

    Returns:
        ``K/(K−1)`` for a simplex ETF, 1 for a softmax code with d+1 < K ≤ 2d; ``nan`` if a vector
        is zero or for more than 256 classes.

    Source: Jiang et al. 2024, generalised neural collapse (GNC2).
    """
    if len(vectors) > ONE_VS_REST_CLASSES or bool((vectors.norms == 0).any()):
        return math.nan
    from scipy.optimize import nnls

    unit = vectors.unit().all()
    if vectors.dim > len(vectors):  # the same distances in K coordinates
        unit = torch.linalg.qr(unit.T, mode="r").R.T
    distances = []
    for k in range(len(unit)):
        others = torch.cat([unit[:k], unit[k + 1 :]]) - unit[k]
        system = torch.cat([others.T, torch.ones(1, len(others), dtype=torch.float64)])
        target = torch.zeros(len(system), dtype=torch.float64)
        target[-1] = 1
        shares, _ = nnls(system.numpy(), target.numpy())
        weights = torch.from_numpy(shares)
        distances.append(float((weights @ others).norm() / weights.sum()))
    return min(distances)
