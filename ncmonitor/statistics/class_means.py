"""Class means as the second pass uses them: to subtract, to project on, to measure against."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from ncmonitor.geometry import vectors as geometry
from ncmonitor.geometry.pairs import square_distances
from ncmonitor.geometry.vectors import Span, Vectors
from ncmonitor.inputs.tensors import Scratch
from ncmonitor.statistics.moments import ClassMoments

#: Up to so many classes the distances between all class means are tabulated (16 MiB in float32).
TABLE_CLASSES: Final = 2048


class GlobalMean(NamedTuple):
    """The global mean, given in two parts of which the first takes a common offset out exactly.

    Attributes:
        origin: Point that the class means are given relative to, ``(d,)`` float64.
        mean: Mean of the class means relative to it, ``(d,)``.
    """

    origin: Tensor
    mean: Tensor

    def means(self, moments: ClassMoments, classes: Tensor) -> Tensor:
        """Return means of some classes about the global mean, ``(n, d)`` float64."""
        return moments.sums.means_about(self.origin, classes) - self.mean


class ClassMeans:
    """Class means ready for subtraction from features without losing the small difference.

    Args:
        moments: Of the split whose class means these are.
        centre: Where its global mean is.
        span: Span of its present classes' means.
        present: Indices of those classes, ``(K_S,)``.
    """

    def __init__(
        self, moments: ClassMoments, centre: GlobalMean, span: Span, present: Tensor
    ) -> None:
        references = moments.references
        self.moments, self.device = moments, references.device
        self._scratch = Scratch()
        self.present = present.to(self.device)
        # In units of the largest direction: squares stay in the range of float32.
        self.unit = float(span.singular_values[0]) if span.rank else 1.0
        self.inverse = (self.unit / span.resolved).to(references)
        basis = span.basis / self.unit
        self.basis = basis.to(references)
        self.coordinates = references.new_empty(len(present), span.rank)
        squares = torch.empty(len(present), dtype=torch.float64)
        table = len(present) <= TABLE_CLASSES
        exact = torch.empty(len(present) if table else 0, span.rank, dtype=torch.float64)
        for start in range(0, len(present), geometry.BLOCK_ROWS):
            part = slice(start, start + geometry.BLOCK_ROWS)
            if span.coordinates is None:
                inside = centre.means(moments, present[part]) @ basis
            else:
                inside = span.coordinates[part] / self.unit
            self.coordinates[part] = inside.to(references)
            squares[part] = inside.square().sum(1)
            if table:
                exact[part] = inside
        halves = square_distances(Vectors(exact)) if table else squares
        self._minus_halves = (halves / -2).to(references)  # −½‖a_c − a_c′‖², or −½‖a_c‖²
        # Position of every class among the present ones. An absent class (train lacks it, this
        # split has it) borrows the first: any centre will do to measure distances from.
        self.position = torch.zeros(moments.num_classes + 1, dtype=torch.int64, device=self.device)
        self.position[self.present] = torch.arange(len(present), device=self.device)

    def residuals(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features minus the (borrowed) class mean, float64, in a buffer; and its position.

        Args:
            features: ``(n, d)``.
            labels: ``(n,)``.
        """
        position = self.position[labels]
        anchors = self.present[position]
        return self.moments.sums.residuals(features, anchors, self._scratch), position

    def project(self, residuals: Tensor) -> Tensor:
        """Return residuals in coordinates of the means' span, in a buffer.

        Args:
            residuals: ``(n, d)`` float64.

        Returns:
            ``(n, r)`` in the precision features are read in, in :attr:`unit`.
        """
        get, shape, dtype = self._scratch.get, residuals.shape, self.basis.dtype
        narrow = get("narrow", residuals, *shape, dtype=dtype).copy_(residuals)
        out = get("projected", residuals, shape[0], self.basis.shape[1], dtype=dtype)
        return torch.mm(narrow, self.basis, out=out)

    def scores(self, projected: Tensor, position: Tensor) -> Tensor:
        """Return ``(n, K_S)`` numbers that are largest for the nearest class mean, in a buffer.

        With p the residual about μ_y, ``argmin_c ‖h − μ_c‖ = argmax_c p·μ̇_c − ½‖μ_c − μ_y‖²``,
        inside the span: the rest of the distance is the same for all classes. Nothing here is of
        the size of the means once features collapse, so means that nearly coincide are told apart;
        above :data:`TABLE_CLASSES` only up to the rounding of the means.
        """
        shape, dtype = (len(projected), len(self.present)), projected.dtype
        out = self._scratch.get("scores", projected, *shape, dtype=dtype)
        if self._minus_halves.ndim == 1:
            about_mean = projected + self.coordinates[position]
            return torch.addmm(self._minus_halves, about_mean, self.coordinates.T, out=out)
        torch.index_select(self._minus_halves, 0, position, out=out)
        return out.addmm_(projected, self.coordinates.T)
