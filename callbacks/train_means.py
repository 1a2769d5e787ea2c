"""Class means of the training set, kept with the weights they belong to."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ncmonitor.measurement.report import CollapseReport
from ncmonitor.statistics.moments import ClassMoments

#: Bytes that class means may take in a checkpoint, and those of earlier epochs in memory.
LIMIT: Final = 64 * 2**20


def weights_key(fingerprint: Mapping[str, int]) -> str:
    """Return a short name for the weights of a fingerprint."""
    return hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Means:
    """Class means of the training set at some weights.

    Attributes:
        weights: Name of the weights, from :func:`weights_key`.
        epoch: Completed epochs at these weights.
        step: Optimizer steps.
        about: What the features are of: classifier and options that change them.
        moments: By layer, the classifier's own under ``""``.
    """

    weights: str
    epoch: int
    step: int
    about: Mapping[str, str | int]
    moments: Mapping[str, ClassMoments]

    @functools.cached_property
    def size(self) -> int:
        """Bytes of all moments."""
        return sum(map(_bytes, self.moments.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, which load with ``weights_only=True``."""
        return {
            "weights": self.weights,
            "epoch": self.epoch,
            "step": self.step,
            "about": dict(self.about),
            "moments": {layer: each.state_dict() for layer, each in self.moments.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Means:
        """Rebuild means from :meth:`state_dict`."""
        moments = {k: ClassMoments.from_state_dict(each) for k, each in state["moments"].items()}
        return cls(**{**state, "moments": moments})


class TrainMeans:
    """The class means of a run's measurements, found again by the weights.

    The last ones are always kept. Where checkpoints are saved, those of earlier epochs are too, as
    long as all together take at most :data:`LIMIT`: the best epoch is often not the last. A
    checkpoint holds the last ones, up to the same limit.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Means] = {}
        self._epochs: dict[str, tuple[int, int]] = {}

    def keep(
        self,
        weights: str,
        epoch: int,
        step: int,
        about: Mapping[str, str | int],
        reports: Mapping[str, CollapseReport],
        *,
        earlier: bool,
    ) -> None:
        """Keep the means of a measurement of the training set; nothing if it failed.

        Args:
            weights: Name of the weights.
            epoch: Completed epochs.
            step: Optimizer steps.
            about: What the features are of.
            reports: Of the training set, by layer.
            earlier: Whether to keep those of earlier epochs too.
        """
        if not reports:
            return
        if not earlier:
            self._kept = {}
        moments = {layer: report.moments for layer, report in reports.items()}
        means = Means(weights, epoch, step, about, moments)
        if means.size <= LIMIT:  # else they stay where the reports have them, which is no copy
            copies = {layer: each.to("cpu") for layer, each in moments.items()}
            means = Means(weights, epoch, step, about, copies)
        self.add(means)

    def add(self, means: Means) -> None:
        """Take means in as the last ones."""
        self._kept.pop(means.weights, None)
        self._kept[means.weights] = means
        self._epochs[means.weights] = (means.epoch, means.step)
        while len(self._kept) > 1 and sum(each.size for each in self._kept.values()) > LIMIT:
            del self._kept[next(iter(self._kept))]

    def find(self, weights: str) -> Means | None:
        """Return the means at some weights."""
        return self._kept.get(weights)

    def measured_at(self, weights: str) -> tuple[int, int] | None:
        """Return epoch and step at which this run has measured some weights."""
        return self._epochs.get(weights)

    def clear(self) -> None:
        """Forget all: another model is trained."""
        self._kept, self._epochs = {}, {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._kept)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the last means for a checkpoint; ``None`` without any, or past the limit."""
        last = next(reversed(self._kept.values()), None)
        return None if last is None or last.size > LIMIT else last.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Start with the means of a checkpoint."""
        self.clear()
        if state is not None:
            self.add(Means.from_state_dict(state))


def _bytes(moments: ClassMoments) -> int:
    tensors = (each for each in vars(moments.sums).values() if isinstance(each, Tensor))
    return sum(each.numel() * each.element_size() for each in tensors)
