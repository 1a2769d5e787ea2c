"""What a snapshot is computed from and with: arrays of any origin, Gram matrices, spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ncmonitor.errors import InputError, is_whole
from ncmonitor.inputs.conventions import IGNORE_INDEX

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: So many singular values at most.
SHOWN_VALUES: Final = 256
#: Directions of the class means weaker than this, relative to the strongest, count as none.
_RESOLVED: Final = 1e-6


def array_of(values: Any) -> NDArray[Any]:
    """Return as numpy an array, a tensor of any device and dtype, or a list."""
    if hasattr(values, "detach"):  # a tensor: torch need not be imported to read it
        values = values.detach().cpu()
        short = values.is_floating_point() and values.dtype.itemsize < 4  # numpy has no bfloat16
        values = (values.float() if short else values).numpy()
    return np.asarray(values)


def floats_of(values: Any) -> FloatArray:
    """Return as numpy in float64; tensors of float64 keep their digits."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def samples_of(features: Any, labels: Any) -> tuple[NDArray[Any], IntArray]:
    """Return features ``(N, d)`` and labels ``(N,)`` of the samples that count."""
    rows, classes = array_of(features), array_of(labels)
    if rows.ndim < 2 or rows.shape[:-1] != classes.shape or not rows.shape[-1]:
        raise InputError(
            "features must have shape (N, d) and labels (N,), or (B, T, d) and (B, T), "
            f"but they have {rows.shape} and {classes.shape}"
        )
    rows, classes = rows.reshape(-1, rows.shape[-1]), classes.reshape(-1)
    if classes.dtype.kind not in "iu":
        raise InputError(f"labels must be class indices, but have dtype {classes.dtype}")
    counted = classes != IGNORE_INDEX
    if not counted.all():
        rows, classes = rows[counted], classes[counted]
    if len(classes) and classes.min() < 0:
        raise InputError(f"labels must not be negative, but one is {classes.min()}")
    return rows, classes.astype(np.int64)


def checked_corners(corners: Sequence[int]) -> tuple[int, ...]:
    """Return the corner classes of the simplex picture, or raise what is wrong with them."""
    chosen = list(corners)
    whole = all(is_whole(c) and not isinstance(c, bool) and c >= 0 for c in chosen)
    if not whole or not 2 <= len(set(chosen)) == len(chosen) <= 4:
        raise InputError(f"corners= takes two to four different classes, got {chosen!r}")
    return tuple(int(c) for c in chosen)


def checked_rows(weight: Any, means: FloatArray) -> FloatArray:
    """Return the rows of the classifier, one for every class mean, in float64."""
    rows = floats_of(weight)
    if rows.ndim != 2 or rows.shape[1] != means.shape[1] or len(rows) < len(means):
        raise InputError(
            f"weight must have shape (K, {means.shape[1]}) with a row for each of at least "
            f"{len(means)} classes, but has {rows.shape}"
        )
    return rows[: len(means)]


def class_means(
    rows: NDArray[Any], classes: IntArray
) -> tuple[FloatArray, IntArray, list[IntArray]]:
    """Return the mean, the count and the places of every class up to the largest label."""
    total = int(classes.max()) + 1 if len(classes) else 1
    order = np.argsort(classes, kind="stable").astype(np.int64)
    ends = np.searchsorted(classes[order], np.arange(total + 1))
    groups = [order[ends[c] : ends[c + 1]] for c in range(total)]
    means = np.zeros((total, rows.shape[1]))
    for c, group in enumerate(groups):
        if len(group):
            means[c] = rows[group].mean(axis=0, dtype=np.float64)
    return means, np.diff(ends).astype(np.int64), groups


def evenly_spaced(values: IntArray, count: int) -> IntArray:
    """Return at most ``count`` of the values, evenly spaced, first and last among them."""
    if len(values) <= count:
        return values
    chosen: IntArray = values[np.linspace(0, len(values) - 1, count).round().astype(int)]
    return chosen


def scaled_gram(vectors: FloatArray, shown: FloatArray) -> FloatArray:
    """Return inner products of the shown vectors over the mean square length of all.

    Args:
        vectors: ``(K, d)``.
        shown: ``(C, d)``.

    Returns:
        ``(C, C)``, ``nan`` where all lengths are zero.
    """
    square = float(np.mean(np.sum(vectors**2, axis=1)))
    return (shown @ shown.T) / (square if square > 0 else np.nan)


def cosines(rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Return cosines of each row with each column, ``(C, C)``; ``nan`` for vectors of length 0."""
    return _unit(rows) @ _unit(columns).T


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, np.nan)


def singular_values(vectors: FloatArray) -> FloatArray:
    """Return the singular values of ``(K, d)``, descending, ``(min(K, d),)``.

    From the Gram matrix of the smaller side: what is below 1e-8 of the largest is rounding, and
    stays below any line of a picture.
    """
    if not np.isfinite(vectors).all():
        return np.full(min(vectors.shape), np.nan)
    wide = vectors.shape[1] >= vectors.shape[0]
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T if wide else vectors.T @ vectors)
    values: FloatArray = np.sqrt(np.clip(eigenvalues[::-1], 0, None))
    return values


def within_spectrum(
    rows: NDArray[Any], groups: Sequence[IntArray], means: FloatArray
) -> FloatArray | None:
    """Return the eigenvalues of Σ_W in the span of the centred class means, descending.

    Every class weighs the same. ``None`` where the means are not finite or span nothing.

    Args:
        rows: All features, ``(N, d)``.
        groups: Places of each class in them.
        means: Means of the same classes, ``(K, d)``.
    """
    centred = means - means.mean(axis=0)
    if not np.isfinite(centred).all():
        return None
    _, strengths, directions = np.linalg.svd(centred, full_matrices=False)
    basis = directions[(strengths > _RESOLVED * strengths[0])][:SHOWN_VALUES].T  # (d, r)
    if not basis.shape[1]:
        return None
    total = np.zeros((basis.shape[1], basis.shape[1]))
    for group, mean in zip(groups, means, strict=True):
        inside = (rows[group] - mean) @ basis
        total += inside.T @ inside / len(group)
    eigenvalues = np.linalg.eigvalsh(total / len(groups))
    return np.clip(eigenvalues[::-1], 0, None)
