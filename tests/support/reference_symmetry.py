"""The naive twin of the symmetry of inputs and parameters: loops over samples, transforms, steps.

Shares nothing with ``ncmonitor``. Float64, two passes, d x d matrices written out. ``features`` is
``(m, N, d)``, the identity first; ``mask`` ``(m, N)`` says which pairs keep their label.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NAN = float("nan")


# --------------------------------------------------------------------------------------------
# Invariance
# --------------------------------------------------------------------------------------------


def total_variance(plain: Array) -> float:
    """tr Σ_T = Ave ‖h − Ave h‖²."""
    return float(np.mean(np.sum((plain - plain.mean(axis=0)) ** 2, axis=1)))


def inv_error(features: Array, mask: NDArray[np.bool_]) -> list[float]:
    """Ave ‖h(gx) − h(x)‖² / (2 tr Σ_T) over the pairs that count."""
    unit = 2 * total_variance(features[0])
    result = []
    for moved, kept in zip(features, mask, strict=True):
        squares = [np.sum((moved[i] - features[0][i]) ** 2) for i in np.flatnonzero(kept)]
        result.append(float(np.mean(squares) / unit) if squares else NAN)
    return result


def has_orbit(kept: NDArray[np.bool_]) -> bool:
    """Whether two transforms of a sample keep its label, where there are two."""
    return len(kept) == 1 or int(np.sum(kept)) > 1


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def predictions(
    logits: Array, labels: NDArray[np.int64], mask: NDArray[np.bool_]
) -> dict[str, Any]:
    """Consistency, total variation, accuracies; lists over transforms or numbers."""
    m, n = mask.shape
    choice = [[int(np.argmax(logits[g, i])) for i in range(n)] for g in range(m)]
    right = np.array([[choice[g][i] == labels[i] for i in range(n)] for g in range(m)])
    of: dict[str, Any] = {name: [] for name in ("consistency", "tv", "acc", "drop")}
    for g in range(m):
        own = [i for i in range(n) if mask[g, i]]
        if not own:
            for values in of.values():
                values.append(NAN)
            continue
        of["consistency"].append(np.mean([choice[g][i] == choice[0][i] for i in own]))
        apart = [np.abs(softmax(logits[g, i]) - softmax(logits[0, i])).sum() / 2 for i in own]
        of["tv"].append(np.mean(apart))
        of["acc"].append(np.mean(right[g, own]))
        of["drop"].append(np.mean(right[0, own]) - np.mean(right[g, own]))
    orbits = [right[mask[:, i], i] for i in range(n) if has_orbit(mask[:, i])]
    of["orbit_mean"] = np.mean([np.mean(one) for one in orbits]) if orbits else NAN
    of["orbit_worst"] = np.mean([np.all(one) for one in orbits]) if orbits else NAN
    return of


# --------------------------------------------------------------------------------------------
# Orbits
# --------------------------------------------------------------------------------------------


class Decomposition(NamedTuple):
    """d x d parts of the within-class covariance of the augmented set, and its centred means."""

    orbit: Array
    between: Array
    within: Array
    centred: Array


def decomposition(
    features: Array, labels: NDArray[np.int64], mask: NDArray[np.bool_]
) -> Decomposition:
    """Σ_orbit, Σ_between and, on its own, Σ_W^aug; classes, samples and their pairs weigh alike.

    Of the samples that have an orbit, and of the classes that have such samples.
    """
    some = [i for i in range(len(labels)) if has_orbit(mask[:, i])]
    features, labels, mask = features[:, some], labels[some], mask[:, some]
    dim, present = features.shape[2], sorted(set(labels.tolist()))
    orbit, between, within = np.zeros((3, dim, dim))
    means = []
    for c in present:
        own = np.flatnonzero(labels == c)
        orbits = [features[mask[:, i], i] for i in own]
        middle = np.stack([rows.mean(axis=0) for rows in orbits])
        mean = middle.mean(axis=0)
        means.append(mean)
        for rows, centre in zip(orbits, middle, strict=True):
            share = 1 / (len(present) * len(own))
            between += share * np.outer(centre - mean, centre - mean)
            for h in rows:
                orbit += share / len(rows) * np.outer(h - centre, h - centre)
                within += share / len(rows) * np.outer(h - mean, h - mean)
    stacked = np.stack(means)
    return Decomposition(orbit, between, within, stacked - stacked.mean(axis=0))


def orbit_numbers(parts: Decomposition) -> dict[str, float]:
    """The shares and the parts of NC1, tr(Σ (ṀṀᵀ)⁺); from the singular values of Ṁ."""
    left, values, _ = np.linalg.svd(parts.centred.T, full_matrices=False)
    rank = int(np.sum(values > 1e-12 * values[0]))
    inverse = sum(np.outer(left[:, r], left[:, r]) / values[r] ** 2 for r in range(rank))
    class_variance = np.sum(parts.centred**2) / len(parts.centred)
    return {
        "orbit_share": float(np.trace(parts.orbit) / np.trace(parts.within)),
        "orbit_quot": float(np.trace(parts.orbit) / class_variance),
        "orbit_nc1": float(np.trace(parts.orbit @ inverse)),
        "between_nc1": float(np.trace(parts.between @ inverse)),
        "nc1_aug": float(np.trace(parts.within @ inverse)),
    }


def half_square_distance(features: Array, labels: NDArray[np.int64]) -> float:
    """½ Ave ‖h(gx) − h(g′x)‖² over samples (classes alike) and all ordered pairs of transforms."""
    of_class = []
    for c in sorted(set(labels.tolist())):
        squares = [
            np.sum((features[g, i] - features[h, i]) ** 2) / 2
            for i in np.flatnonzero(labels == c)
            for g, h in itertools.product(range(len(features)), repeat=2)
        ]
        of_class.append(np.mean(squares))
    return float(np.mean(of_class))


# --------------------------------------------------------------------------------------------
# Equivariance, Lie derivative, parameters
# --------------------------------------------------------------------------------------------


def held_out_r2(plain: Array, moved: Array, fit: NDArray[np.int64]) -> float:
    """R² on the other samples of the least-squares affine map, all d directions kept."""
    test = np.setdiff1d(np.arange(len(plain)), fit)
    inputs = np.hstack([plain, np.ones((len(plain), 1))])
    matrix = np.linalg.lstsq(inputs[fit], moved[fit], rcond=None)[0]
    missed = moved[test] - inputs[test] @ matrix
    return float(1 - np.sum(missed**2) / np.sum((moved[test] - moved[fit].mean(axis=0)) ** 2))


def group_law(maps: Array, table: Sequence[Sequence[int]]) -> float:
    """Ave ‖R_g R_g′ − R_gg′‖ / ‖R_gg′‖ over g, g′ ≠ e with gg′ in the table."""
    ratios = []
    for i, j in itertools.product(range(1, len(maps)), repeat=2):
        if table[i][j] >= 0:
            product = maps[table[i][j]]
            ratios.append(np.sqrt(np.sum((maps[i] @ maps[j] - product) ** 2) / np.sum(product**2)))
    return float(np.mean(ratios))


def lie_error(ahead: Array, back: Array, step: float, plain: Array) -> float:
    """Ave ‖(f(flow(x, t)) − f(flow(x, −t))) / 2t‖² / tr Σ_T."""
    squares = [np.sum(((a - b) / (2 * step)) ** 2) for a, b in zip(ahead, back, strict=True)]
    return float(np.mean(squares) / total_variance(plain))


def decay_root(eta: float, beta: float, lam: float) -> float:
    """Largest root of r² − (1 + β − ηλ) r + β = 0 in modulus. METRICS §6."""
    return float(np.abs(np.roots([1.0, -(1 + beta - eta * lam), beta])).max())
