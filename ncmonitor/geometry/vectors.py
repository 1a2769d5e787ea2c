"""The geometry of K vectors in R^d: class means or classifier rows, reduced to what NC2 reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

#: Rows handled at once: for many classes a second K x d in float64 is never formed.
BLOCK_ROWS = 256
#: Up to so many classes the Gram matrix of all pairs is kept: 32 MiB in float64.
GRAM_CLASSES = 2048
#: Smallest over largest singular value from which on a Gram matrix tells both.
FLAT = 0.05


@dataclass(frozen=True)
class Vectors:
    """K vectors ``scale_c (row_c − origin) − shift``, computed in float64 by blocks of rows.

    The rows stay as they are: at K = 50,000 each float64 copy of them would cost 300 MB.

    Attributes:
        rows: ``(K, d)`` floating point, on the CPU.
        origin: What is subtracted, ``(d,)`` float64; ``None`` for nothing.
        scale: Factor of each vector, ``(K,)`` float64; ``None`` for one.
        shift: What is subtracted after scaling, ``(d,)`` float64; ``None`` for nothing.
        unscaled: The same vectors before scaling, whose Gram matrix may be known.
    """

    rows: Tensor
    origin: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    unscaled: Vectors | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return K."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.rows.shape[1]

    def take(self, index: Tensor | slice) -> Tensor:
        """Return some of the vectors, ``(n, d)`` float64."""
        rows = self.rows[index]
        # A copy, so that the rest can be done in place: fresh pages cost more than sums.
        block = rows.double() if self.origin is None else rows - self.origin
        if self.scale is not None:
            factors = self.scale[index][:, None]
            block = block * factors if self.origin is None else block.mul_(factors)
        return block if self.shift is None else block - self.shift

    def all(self) -> Tensor:
        """Return all vectors, ``(K, d)`` float64; for moderate K."""
        return self.take(slice(None))

    def blocks(self, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over (which, vectors) by blocks of rows."""
        size = rows or BLOCK_ROWS
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.take(part)

    @cached_property
    def norms(self) -> Tensor:
        """Length of each vector, ``(K,)``."""
        return torch.cat([block.norm(dim=1) for _, block in self.blocks()])

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of all."""
        return float(self.norms.norm())

    @cached_property
    def sum(self) -> Tensor:
        """Sum of all, ``(d,)``."""
        return torch.stack([block.sum(0) for _, block in self.blocks()]).sum(0)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of all pairs, ``(K, K)``; for K ≤ :data:`GRAM_CLASSES` or K ≤ d."""
        if self.unscaled is not None and self.scale is not None and self.shift is None:
            return (self.unscaled.gram * self.scale).mul_(self.scale[:, None])
        whole = self.all()
        return whole @ whole.T

    def scaled(self, factors: Tensor) -> Vectors:
        """Return each vector times its factor, ``(K,)``; for vectors not scaled yet."""
        assert self.scale is None
        return replace(self, scale=factors, unscaled=self)

    def unit(self) -> Vectors:
        """Return the same directions with length one; ``nan`` where the length is zero."""
        return self.scaled(1 / self.norms.masked_fill(self.norms == 0, torch.nan))

    def minus(self, vector: Tensor) -> Vectors:
        """Return the vectors less a common one, ``(d,)``."""
        if self.scale is None:
            return replace(self, origin=vector if self.origin is None else self.origin + vector)
        return replace(self, shift=vector if self.shift is None else self.shift + vector)


@dataclass(frozen=True)
class Span:
    """What the K class means span: the spectrum of the (weighted) centred means, and its rank.

    Attributes:
        singular_values: Descending, ``(K − 1,)``, zeros included; squared and over K, they are the
            eigenvalues of Σ_B.
        basis: Orthonormal directions of the resolved ones, ``(d, rank)``.
        coordinates: The vectors along them, ``(K, rank)``, where they came with the spectrum.
    """

    singular_values: Tensor
    basis: Tensor
    coordinates: Tensor | None = None

    @classmethod
    def of(cls, centred: Vectors, resolution: float) -> Span:
        """Decompose K centred vectors; directions within the rounding of the data are left out.

        Args:
            centred: The class means about the global mean, each times ``√(K p_c)`` if class c has
                weight p_c in Σ_B.
            resolution: Rounding of the features.
        """
        values, directions, coordinates = _spectrum(centred)
        rank = resolved_rank(values, centred, resolution)
        kept = None if coordinates is None else coordinates[:, :rank]
        return cls(values, directions[:, :rank], kept)

    @property
    def rank(self) -> int:
        """Number of resolved directions."""
        return self.basis.shape[1]

    @property
    def resolved(self) -> Tensor:
        """The singular values of the resolved directions, ``(rank,)``."""
        return self.singular_values[: self.rank]


@dataclass(frozen=True)
class GramSpectrum:
    """K vectors, their mean, and the spectrum about it: what the Gram matrix knows.

    Along 1 and its complement the Gram matrix ``VVᵀ`` has the squared singular values of the
    centred vectors, a coupling, and one trivial eigenvalue: K numbers instead of K x K.

    Attributes:
        vectors: The vectors; class means are given relative to some common point.
        mean: Their plain mean, ``(d,)``.
        centred: The vectors minus their mean.
        singular_values: Of the vectors minus their mean, descending, ``(K − 1,)``, zeros included.
        resolution: Length below which a centred vector is rounding of the data.
    """

    vectors: Vectors
    mean: Tensor
    centred: Vectors
    singular_values: Tensor
    resolution: float = 0.0

    @classmethod
    def of(cls, rows: Tensor | Vectors) -> GramSpectrum:
        """Build the frame of K ≥ 2 vectors."""
        vectors = rows if isinstance(rows, Vectors) else Vectors(rows.detach().cpu())
        mean = vectors.sum / len(vectors)
        centred = vectors.minus(mean)
        return cls(vectors, mean, centred, _singular_values(centred))

    @cached_property
    def degenerate(self) -> int:
        """Number of centred vectors whose length is not above :attr:`resolution`."""
        return int((self.centred.norms <= self.resolution).sum())

    @property
    def flat(self) -> bool:
        """Whether all vectors coincide within :attr:`resolution`."""
        return self.degenerate == len(self.vectors)

    @property
    def eigenvalues(self) -> Tensor:
        """Of the centred Gram matrix on the complement of 1, ``(K − 1,)``."""
        return self.singular_values.square()

    @cached_property
    def coupling(self) -> float:
        """``2K ‖V_c v̄‖²``: the squared entries of the Gram matrix between 1 and its complement."""
        products = [(block @ self.mean).square().sum() for _, block in self.centred.blocks()]
        return 2 * len(self.vectors) * float(torch.stack(products).sum())

    @cached_property
    def trivial(self) -> float:
        """Eigenvalue of the Gram matrix along 1, ``K ‖v̄‖²``."""
        return len(self.vectors) * float(self.mean.square().sum())


def resolved_rank(values: Tensor, vectors: Vectors, resolution: float) -> int:
    """Number of singular values that the data resolves, at most d.

    One counts when it exceeds both the rounding of the float64 SVD and the rounding of the
    features that the vectors are means of: inverting one below it would turn rounding noise into a
    huge NC1.
    """
    if not len(values):
        return 0
    floor = max(len(vectors), vectors.dim) * torch.finfo(torch.float64).eps * values[0]
    return min(int(((values > floor) & (values > resolution)).sum()), vectors.dim)


def _spectrum(vectors: Vectors) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return singular values ``(K − 1,)``, right singular vectors ``(d, m)``, m ≤ min(K − 1, d).

    Where they are at hand, also the vectors along them, ``(K, m)``.

    From the Gram matrix of the smaller side where its spectrum is flat enough to keep the digits;
    else the vectors themselves are decomposed.
    """
    wide = vectors.dim >= len(vectors)
    values, axes = torch.linalg.eigh(_gram(vectors))
    found = _roots(values, len(vectors))
    if found is not None:
        axes = axes.flip(1)[:, : len(found)]
        if not wide:
            return _padded(found, len(vectors)), axes, None
        # From the side of the classes to that of the features.
        directions = vectors.all().T @ (axes / found)
        return _padded(found, len(vectors)), directions, axes * found
    if wide:
        basis, factor = torch.linalg.qr(vectors.all().T)
        left, values, _ = torch.linalg.svd(factor, full_matrices=False)
        axes = basis @ left
    else:
        _, values, right = torch.linalg.svd(_factor(vectors), full_matrices=False)
        axes = right.T
    return _padded(values, len(vectors)), axes, None


def _singular_values(vectors: Vectors) -> Tensor:
    """Return the singular values alone, ``(K − 1,)``."""
    found = _roots(torch.linalg.eigvalsh(_gram(vectors)), len(vectors))
    if found is None:
        found = torch.linalg.svdvals(_factor(vectors))
    return _padded(found, len(vectors))


def _gram(vectors: Vectors) -> Tensor:
    """Return the Gram matrix of the smaller side, K × K or d × d."""
    if vectors.dim >= len(vectors):
        return vectors.gram
    total = torch.zeros(vectors.dim, vectors.dim, dtype=torch.float64)
    for _, block in vectors.blocks():
        total.addmm_(block.T, block)
    return total


def _roots(eigenvalues: Tensor, count: int) -> Tensor | None:
    """Return singular values from ascending eigenvalues of a Gram matrix, if they are exact.

    Its eigenvalues carry an error of ``eps λ_1``; relative to the smallest that is ``eps / FLAT²``,
    5e-14. One of K centred vectors' eigenvalues is 0 and left out.
    """
    kept = eigenvalues.flip(0)[: min(count - 1, len(eigenvalues))]
    if not len(kept) or not float(kept[-1]) > FLAT**2 * float(kept[0]):
        return None
    return kept.sqrt()


def _factor(vectors: Vectors) -> Tensor:
    """Return the triangular factor of the vectors (of their transpose for d ≥ K).

    It has their singular values and, for K > d, their right singular vectors. By blocks of rows:
    for K far above d neither the vectors in float64 nor an orthogonal factor is ever held.
    """
    if vectors.dim >= len(vectors):
        right: Tensor = torch.linalg.qr(vectors.all().T, mode="r").R
        return right
    factor = vectors.take(slice(0, 0))
    for _, block in vectors.blocks(max(BLOCK_ROWS, vectors.dim)):
        factor = torch.linalg.qr(torch.cat([factor, block]), mode="r").R
    return factor


def _padded(values: Tensor, count: int) -> Tensor:
    spectrum = torch.zeros(count - 1, dtype=torch.float64)
    kept = min(len(values), len(spectrum))  # a K-th value is rounding: centred rows sum to 0
    spectrum[:kept] = values[:kept]
    return spectrum
