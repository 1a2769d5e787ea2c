"""The two looks at every feature: moments and errors first, what needs the class means second."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ncmonitor._checks import InputError, MeasurementError
from ncmonitor._tensors import as_tensor, exact_arithmetic, working_dtype
from ncmonitor.geometry import Frame
from ncmonitor.moments import BLOCK_ROWS, ClassMoments

#: Up to so many classes the distances between all class means are tabulated (16 MiB in float32).
TABLE_CLASSES = 2048


class Classifier:
    """The last linear layer, ``z = W h + b``, kept in float64.

    Args:
        weight: ``(K, d)`` floating point.
        bias: ``(K,)`` or ``None``.

    Raises:
        InputError: If the shapes do not fit.
        MeasurementError: If a number is not finite.
    """

    def __init__(self, weight: object, bias: object = None) -> None:
        self.weight = as_tensor(weight).double()
        if self.weight.ndim != 2:
            raise InputError(f"weight must have shape (K, d), got {tuple(self.weight.shape)}")
        count = self.weight.shape[0]
        self.bias = self.weight.new_zeros(count) if bias is None else as_tensor(bias).double()
        if self.bias.shape != (count,):
            raise InputError(
                f"bias must have shape ({count},) like the rows of weight, "
                f"got {tuple(self.bias.shape)}"
            )
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise MeasurementError(
                "the classifier's weight or bias is not finite (nan or inf): the network has "
                "diverged"
            )

    def check(self, features: Tensor) -> None:
        """Raise :class:`InputError` unless it takes features of this dimension."""
        if features.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"expected features of dimension {self.weight.shape[1]} as weight has columns, "
                f"got {features.shape[1]}"
            )

    def logits(self, features: Tensor, origin: Tensor) -> Tensor:
        """Return ``(N, K)`` logits; about ``origin``, so that a common offset costs no digits."""
        constant = self.weight @ origin.double() + self.bias
        weight = self.weight.to(features)
        return (features - origin.to(features)) @ weight.T + constant.to(features)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample, ``(N,)``, with full relative precision near 0.

    ``−log softmax(z)_y = softplus(logsumexp_{j≠y}(z_j − z_y))``: deep in the terminal phase the
    usual form ends in ``1 − 1`` and reads 0 or a multiple of the rounding unit.
    """
    gaps = logits - logits.gather(1, labels[:, None])
    gaps.scatter_(1, labels[:, None], -torch.inf)
    return functional.softplus(gaps.logsumexp(1))


class FirstLook:
    """Counts, means, variances, errors and loss of a stream of features.

    Args:
        num_classes: Number of classes K.
        classifier: Gives the logits where the stream has none; ``None`` for features alone.
    """

    def __init__(self, num_classes: int, classifier: Classifier | None = None) -> None:
        self.moments = ClassMoments(num_classes)
        self.classifier = classifier
        self.samples = 0
        self.decides = True
        self._origin: Tensor | None = None
        self._wrong = torch.zeros((), dtype=torch.int64)
        self._loss = torch.zeros((), dtype=torch.float64)

    def update(
        self, features: Tensor, labels: Tensor, logits: Tensor | None = None
    ) -> Tensor | None:
        """Take in a batch and return what the network predicts on it, ``(N,)`` or ``None``."""
        self.moments.update(features, labels)
        self.samples += len(labels)
        if self.classifier is not None:
            self.classifier.check(features)
        with exact_arithmetic(features.device):
            return self._decide(features, labels, logits)

    def _decide(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor | None:
        scores = self._scores(features) if logits is None else logits
        if scores is None:
            self.decides = False
            return None
        if scores.shape != (len(labels), self.moments.num_classes):
            raise InputError(
                f"expected logits of shape {(len(labels), self.moments.num_classes)}, "
                f"got {tuple(scores.shape)}"
            )
        scores, labels = scores.to(working_dtype(scores)), labels.long()
        predicted = scores.argmax(1)
        device = scores.device  # sums stay where the data is: no synchronisation per batch
        self._wrong = self._wrong.to(device) + (predicted != labels).sum()
        self._loss = self._loss.to(device) + cross_entropy(scores, labels).double().sum()
        return predicted

    def _scores(self, features: Tensor) -> Tensor | None:
        if self.classifier is None:
            return None
        features = features.to(working_dtype(features))
        if self._origin is None:
            self._origin = features[:1].mean(0)  # a fresh tensor, whatever happens to the batch
        return self.classifier.logits(features, self._origin)

    @property
    def error(self) -> float:
        """Share of samples predicted wrongly."""
        return int(self._wrong) / self.samples

    @property
    def cross_entropy(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self._loss) / self.samples


class Centres:
    """Class means ready for subtraction from features without losing the small difference.

    A float64 mean rounded to float32 costs 7e-4 at spread 1e-5, so it is subtracted as reference
    plus correction, two nearly exact float32 steps.

    Args:
        moments: Of the split whose class means these are.
        frame: The means of its present classes.
        present: Indices of those classes, ``(K_S,)``.
    """

    def __init__(self, moments: ClassMoments, frame: Frame, present: Tensor) -> None:
        references = moments.references
        self.present = present.to(references.device)
        self.references = references
        self.corrections = moments.offsets.to(references.dtype)
        self.basis = frame.basis.to(references)
        # In units of the largest direction: squares stay in the range of float32.
        self.unit = float(frame.singular_values[0]) if frame.rank else 1.0
        coordinates = frame.coordinates / self.unit  # (K_S, r)
        self.coordinates = coordinates.to(references)
        self.half_squares = _half_squares(coordinates).to(references)
        # Position of every class among the present ones. An absent class (train lacks it, this
        # split has it) borrows the first: any centre will do to measure distances from.
        self.position = torch.zeros(
            moments.num_classes, dtype=torch.int64, device=references.device
        )
        self.position[self.present] = torch.arange(len(present), device=references.device)

    def project(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return residuals about the (borrowed) class mean, ``(N, r)`` in the span; position."""
        position = self.position[labels]
        anchor = self.present[position]
        residuals = (features - self.references[anchor]) - self.corrections[anchor]
        return residuals @ self.basis.to(residuals), position  # train's dtype may be another

    def nearest(self, projected: Tensor, position: Tensor) -> Tensor:
        """Return the class whose mean is nearest, ``(N,)``.

        With p the residual about μ_y, ``argmin_c ‖h − μ_c‖ = argmax_c p·μ̇_c − ½‖μ_c − μ_y‖²``,
        inside the span: the rest of the distance is the same for all classes. Nothing here is of
        the size of the means once features collapse, so means that nearly coincide are told apart.
        """
        projected = projected.to(self.coordinates) / self.unit
        if self.half_squares.ndim == 2:
            scores = projected @ self.coordinates.T - self.half_squares[position]
        else:
            scores = (projected + self.coordinates[position]) @ self.coordinates.T
            scores -= self.half_squares
        return self.present[scores.argmax(1)]


def _half_squares(coordinates: Tensor) -> Tensor:
    """Return ``½‖a_c − a_c′‖²``, ``(K, K)``; for many classes ``½‖a_c‖²``, ``(K,)``."""
    if len(coordinates) > TABLE_CLASSES:
        return coordinates.square().sum(1) / 2
    # By differences: the expansion of the square, cdist's own choice, cancels.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(coordinates, coordinates, compute_mode=exact).square() / 2


class SecondLook:
    """What needs the final means: NC1 per class, nearest class centres, agreement.

    Args:
        num_classes: Number of classes K.
        own: This split's centres.
        inverse: ``1/s_r`` of the own frame, ``(r,)``.
        train: Centres that decide the nearest class.
    """

    def __init__(self, num_classes: int, own: Centres, inverse: Tensor, train: Centres) -> None:
        device = own.references.device
        self.own, self.train = own, train
        self._inverse = inverse.to(own.references)
        self.whitened = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.in_span = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._disagreements = torch.zeros((), dtype=torch.int64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0

    def update(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        """Take in a batch of the stream that the first look saw."""
        device, dtype = self.whitened.device, self.own.references.dtype
        with exact_arithmetic(device):
            for start in range(0, len(labels), BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                self._absorb(
                    features[block].to(device, dtype),
                    labels[block].to(device).long(),
                    None if predicted is None else predicted[block].to(device),
                )

    def _absorb(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        projected, position = self.own.project(features, labels)
        whitened = (projected * self._inverse).double().square().sum(1)
        self.whitened.index_add_(0, labels, whitened)
        self.in_span.index_add_(0, labels, projected.double().square().sum(1))
        if self.train is not self.own:
            projected, position = self.train.project(features, labels)
        nearest = self.train.nearest(projected, position)
        self._correct += (nearest == labels).sum()
        if predicted is not None:
            self._disagreements += (nearest != predicted).sum()
        self.samples += len(labels)

    @property
    def disagreement(self) -> float:
        """Share of samples on which the network and the nearest class mean differ (NC4)."""
        return self._share(self._disagreements)

    @property
    def accuracy(self) -> float:
        """Share of samples whose nearest class mean is that of their own class (NCC)."""
        return self._share(self._correct)

    def _share(self, count: Tensor) -> float:
        """Return a share of all samples; ``nan`` if there is no second mean to choose."""
        return int(count) / self.samples if len(self.train.present) > 1 else math.nan
