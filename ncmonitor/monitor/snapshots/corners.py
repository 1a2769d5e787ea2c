"""The frame of the simplex picture: the space of a few class means, turned to the ideal corners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Directions weaker than this, relative to the strongest, are rounding of the means.
_RESOLVED = 1e-7


def ideal_corners(count: int) -> NDArray[np.float64]:
    """Return the corners of the regular simplex about 0 at distance 1, the first one on top.

    Args:
        count: 2 (a line, the first corner left), 3 (a triangle, clockwise) or 4 (a tetrahedron).

    Returns:
        ``(count, count − 1)``.
    """
    if count == 2:
        return np.array([[-1.0], [1.0]])
    if count == 3:
        side = np.sqrt(0.75)
        return np.array([[0.0, 1.0], [side, -0.5], [-side, -0.5]])
    base = np.sqrt(8 / 9)
    around = 2 * np.pi * np.arange(3) / 3
    below = np.column_stack([base * np.cos(around), base * np.sin(around), np.full(3, -1 / 3)])
    return np.concatenate([[[0.0, 0.0, 1.0]], below])


@dataclass(frozen=True)
class CornerFrame:
    """Coordinates in which m class means lie as near as possible to the ideal corners.

    Attributes:
        centre: Mean of the m means, ``(d,)``.
        axes: What maps a vector from there to its coordinates, ``(d, m − 1)``; ``nan`` where the
            means coincide, for no direction is theirs then.
        unit: Mean distance of the means from their centre, in units of the features.
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    unit: float

    @classmethod
    def of(cls, means: NDArray[np.float64]) -> CornerFrame:
        """Find the frame of m class means.

        An orthonormal basis of the means about their centre, turned (or reflected) by orthogonal
        Procrustes. A rotation of the features changes nothing, so that pictures of one run can be
        laid over each other.

        Args:
            means: ``(m, d)``, m from 2 to 4.
        """
        corners = len(means)
        centre = means.mean(axis=0)
        centred = means - centre
        unit = float(np.linalg.norm(centred, axis=1).mean())
        nowhere = np.full((means.shape[1], corners - 1), np.nan)
        size = float(np.linalg.norm(means, axis=1).max())
        if not np.isfinite(size) or unit <= 64 * np.finfo(float).eps * size:
            return cls(centre, nowhere, np.nan)
        # In too few dimensions the missing ones are empty.
        wide = np.pad(centred, ((0, 0), (0, max(0, corners - 1 - means.shape[1]))))
        _, strengths, directions = np.linalg.svd(wide, full_matrices=False)
        basis = directions[: corners - 1].T  # (d, m − 1)
        basis = basis * (strengths[: corners - 1] > _RESOLVED * strengths[0])
        left, _, right = np.linalg.svd((wide @ basis).T @ ideal_corners(corners))
        return cls(centre, (basis @ left @ right)[: means.shape[1]] / unit, unit)

    def place(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return coordinates of vectors ``(n, d)``, ``(n, m − 1)``."""
        placed: NDArray[np.float64] = (vectors - self.centre) @ self.axes
        return placed

    def place_rows(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return coordinates of classifier rows ``(m, d)`` about their mean, at mean length 1.

        The length is taken before the projection: a row that leans out of the means' space shows
        as a shorter one.
        """
        centred = rows - rows.mean(axis=0)
        length = float(np.linalg.norm(centred, axis=1).mean())
        scale = self.unit / length if length > 0 else np.nan
        placed: NDArray[np.float64] = (centred * scale) @ self.axes
        return placed
