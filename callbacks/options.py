"""What the user said about model and data: checked once, documented at ``NeuralCollapse``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ncmonitor.callbacks.trainers.averaging import Weights
from ncmonitor.callbacks.trainers.batches import BatchToXY, Forward
from ncmonitor.callbacks.trainers.precision import PRECISIONS
from ncmonitor.errors import InputError, check_whole, nearest
from ncmonitor.features.pooling import Reduce
from ncmonitor.measurement.settings import Settings
from ncmonitor.statistics.feature_cache import DEFAULT_CACHE_BYTES

ON_ERROR = ("warn", "raise")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Options:
    """Parameters of ``NeuralCollapse`` and ``SymmetryMonitor`` by the same names.

    Attributes:
        samples: Measure so many samples of a split, the same ones each time; ``None``: all.
        samples_seed: Of that choice.

    Raises:
        InputError: If one of them cannot be.
    """

    classifier: str | torch.nn.Module | None = None
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    layers: str | tuple[str | torch.nn.Module, ...] = ()
    reduce: Reduce = "gap"
    dataloader: Any = None
    batch_to_xy: BatchToXY | None = None
    forward: Forward | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    precision: str = "trainer"
    weights: Weights = "validation"
    online: bool = False
    on_error: str = "warn"
    settings: Settings = field(default_factory=Settings)
    null_seed: int | None = None
    samples: int | None = None
    samples_seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a trainer."""
        for name, known in (("on_error", ON_ERROR), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in known:
                hint = nearest(value, known) if isinstance(value, str) else ""
                raise InputError(f"{name}= must be one of {known}, but is {value!r}{hint}")
        if "train" not in self.splits or not set(self.splits) <= set(SPLITS):
            raise InputError(
                f"splits= must be ('train',) or ('train', 'val'), but is {self.splits!r}: the "
                "train means are what the other split is measured against"
            )
        check_whole("cache_bytes", self.cache_bytes)
        if self.null_seed is not None:
            check_whole("null_seed", self.null_seed)
        if self.samples is not None:
            check_whole("samples", self.samples)
            if self.samples < 2:
                raise InputError(f"samples= must be at least 2, but is {self.samples}")


def layers_of(layers: str | torch.nn.Module | Sequence[Any]) -> str | tuple[Any, ...]:
    """Return layers as a tuple, or ``"all"``; one name is one layer."""
    if layers == "all":
        return "all"
    return (layers,) if isinstance(layers, (str, torch.nn.Module)) else tuple(layers)


def splits_of(splits: str | Sequence[str]) -> tuple[str, ...]:
    """Return splits as a tuple; one name is one split."""
    return (splits,) if isinstance(splits, str) else tuple(splits)
