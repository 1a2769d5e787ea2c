"""Symmetry of the classes: how far a Gram matrix is from its average over permutations.

S_K acts on K × K Gram matrices by permuting classes. Those it leaves alone are span{I, 11ᵀ}, so
that for centred vectors NC2 says: the map from class to mean is equivariant under S_K. The
residual splits over irreducible representations into a part of unequal norms and a part of
particular pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncmonitor.geometry import vectors as geometry
from ncmonitor.geometry.pairs import PAIR_CLASSES, pair_average, sampled_columns
from ncmonitor.geometry.vectors import GramSpectrum, Vectors


def sk_breaking(frame: GramSpectrum, *, centred: bool) -> float:
    """Distance of a Gram matrix from its average over permutations, ``‖G − R(G)‖_F/‖G‖_F``.

    On the complement of 1, R(G) has the mean of the eigenvalues; along 1 it keeps the trivial one;
    the coupling is residual. Cost: none beyond the spectrum.

    Args:
        frame: K vectors, G = VVᵀ.
        centred: Whether the centred vectors are meant (class means) or the rows as they are.

    Returns:
        In [0, 1): 0 for a simplex ETF and, uncentred, for an orthogonal frame; about √(K/d) for
        K ≪ d random vectors. ``sin θ`` where the distance of centred vectors to the ETF is
        ``2 sin(θ/2)``. ``nan`` if every vector is zero.

    Source: ncmonitor (Reynolds operator of S_K on Gram matrices).
    """
    values = frame.eigenvalues
    coupling, trivial = (0.0, 0.0) if centred else (frame.coupling, frame.trivial)
    residual = float((values - values.mean()).square().sum()) + coupling
    total = float(values.square().sum()) + coupling + trivial**2
    return math.sqrt(residual / total) if total > 0 else math.nan


def sk_breaking_norm(frame: GramSpectrum) -> float:
    """Part of the breaking that unequal lengths explain, ``√(K/(K−2) Σ(G_cc − Ḡ)²)/‖G‖_F``.

    The standard representation: deviations of the diagonal and the row effects they force.

    Args:
        frame: The class means, centred. Cost K d.

    Returns:
        0 at collapse and for K = 2; at most :func:`sk_breaking`; about √(2/d) for random vectors.

    Source: ncmonitor (irreducible representations of S_K).
    """
    count = len(frame.vectors)
    if count == 2:
        return 0.0
    diagonal = frame.centred.norms.square()
    excess = float((diagonal - diagonal.mean()).square().sum())
    total = float(frame.eigenvalues.square().sum())
    return math.sqrt(count / (count - 2) * excess / total)


def sk_breaking_pair(frame: GramSpectrum) -> float:
    """Rest of the breaking: similarity between particular classes.

    The representation (K−2, 2): off the diagonal ``E_ij = G_ij − ō + (x_i + x_j)/(K−2)`` with
    ``x_i = G_ii − Ḡ``, summed as it is, so that a small rest beside unequal lengths keeps its
    digits. Above 4096 classes: the difference of squares.

    Args:
        frame: The class means, centred. Cost K²d.

    Returns:
        0 at collapse and for K ≤ 3; about √(K/d) for 3 ≪ K ≪ d random vectors.

    Source: ncmonitor (irreducible representations of S_K).
    """
    count = len(frame.vectors)
    if count <= 3:
        return 0.0
    if count > PAIR_CLASSES:
        squares = sk_breaking(frame, centred=True) ** 2 - sk_breaking_norm(frame) ** 2
        return math.sqrt(max(0.0, squares))
    diagonal = frame.centred.norms.square()
    row = (diagonal - diagonal.mean()) / (count - 2)
    mean = -float(diagonal.mean()) / (count - 1)  # the rows of a centred Gram matrix sum to 0
    average = pair_average(
        frame.centred, lambda t: (t.inner - mean + row[t.first] + row[t.second]).square()
    )
    return math.sqrt(average * count * (count - 1) / float(frame.eigenvalues.square().sum()))


def of_etf_index(frame: GramSpectrum) -> float:
    """Trivial over mean standard eigenvalue of the Gram matrix: where between ETF and frame.

    ``(1ᵀG1/K) / ((tr G − 1ᵀG1/K)/(K−1))`` for G = VVᵀ. Cost: none beyond the spectrum.

    Args:
        frame: Of K vectors, as they are.

    Returns:
        0 for a simplex ETF, 1 for an orthogonal frame, about 1 for random vectors; infinite for
        equal ones (a report says ``nan``).

    Source: ncmonitor; ``w_mean_ratio² = t/(t + K − 1)``.
    """
    standard = float(frame.eigenvalues.mean())
    return frame.trivial / standard if standard > 0 else math.inf


def block_residual(frame: GramSpectrum, blocks: Tensor) -> float:
    """What is left of the breaking when blocks of classes may differ, ``‖G − R_Y(G)‖_F/‖G‖_F``.

    R_Y averages over permutations within each block: diagonals by block, the rest by pair of
    blocks.

    Args:
        frame: The class means. Cost K²d; above 4096 classes a sample of pairs.
        blocks: Block of each class, ``(K,)``, numbered from 0.

    Returns:
        0 at collapse; :func:`sk_breaking` for a single block, 0 if every class is its own.

    Source: after Hong & Ling 2023 (block structure under imbalance); ncmonitor.
    """
    centred, count = frame.centred, len(frame.vectors)
    sizes = torch.bincount(blocks).double()
    diagonal = centred.norms.square()
    own = torch.zeros_like(sizes).index_add_(0, blocks, diagonal)
    sums = torch.zeros(len(sizes), centred.dim, dtype=torch.float64)
    for part, block in centred.blocks():
        sums.index_add_(0, blocks[part], block)
    number = sizes[:, None] * sizes - sizes.diag()
    means = (sums @ sums.T - own.diag()) / number.clamp(min=1)
    off = pair_average(
        centred, lambda t: (t.inner - means[blocks[t.first], blocks[t.second]]).square()
    )
    on = float((diagonal - (own / sizes)[blocks]).square().sum())
    total = float(frame.eigenvalues.square().sum())
    return math.sqrt((on + off * count * (count - 1)) / total)


def logit_breaking(classes: Vectors, weight: Vectors, constant: Tensor) -> float:
    """Distance of the class-mean logits from S_K symmetry, ``‖Z − R(Z)‖_F/‖Z‖_F``.

    ``Z = P(WM + b1ᵀ)``; permutations of the classes act on both sides, and R(Z) is again in
    span{I, 11ᵀ}. Centred over the outputs, so that the constant softmax ignores drops out.

    Args:
        classes: Class means about the global mean, K vectors. Cost K²d; above 4096 classes the
            columns of a seeded sample of classes.
        weight: Centred rows of the classifier, ``W_c = PW``.
        constant: ``P(b + Wμ_G)``, ``(K,)``.

    Returns:
        0 at collapse; near 1 for an unrelated classifier.

    Source: ncmonitor.
    """
    count = len(classes)
    columns = sampled_columns(count)
    diagonal = constant[columns] + _row_products(classes, weight, columns)
    # Columns sum to 0 over the outputs, so the rest of a column averages −z_cc/(K−1).
    on = float(diagonal.mean())
    off = -on / (count - 1)
    residual = total = 0.0
    for part in torch.split(columns, max(1, geometry.BLOCK_ROWS * 4096 // count)):
        logits = torch.cat([rows @ classes.take(part).T for _, rows in weight.blocks()])
        logits += constant[:, None]
        total += float(logits.square().sum())
        logits -= off
        logits[part, torch.arange(len(part))] -= on - off
        residual += float(logits.square().sum())
    return math.sqrt(residual / total) if total > 0 else math.nan


def _row_products(one: Vectors, two: Vectors, index: Tensor) -> Tensor:
    parts = torch.split(index, geometry.BLOCK_ROWS)
    return torch.cat([(one.take(part) * two.take(part)).sum(1) for part in parts])
