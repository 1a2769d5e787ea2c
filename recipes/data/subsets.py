"""Which training images are used and under which labels: balanced, imbalanced, fewer, noisy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ncmonitor.errors import InputError, check_whole, nearest

_ORDER, _NOISE, _SHUFFLE = range(3)  # streams of one seed: no choice depends on another


@dataclass(frozen=True)
class Selection:
    """A choice of images by their labels, the same for the same seed.

    Which images of a class are taken does not depend on how many: a smaller selection lies within a
    larger one of the same seed.

    Args:
        per_class: Images of every class; ``None``: all there are.
        limit: Images in all at most, the classes in proportion.
        imbalance: ``"exponential"``, ``"step"`` or ``None``; see :func:`class_sizes`.
        ratio: Largest class over smallest class R.
        minority: Share of the classes that ``"step"`` makes small.
        seed: Chooses the images.

    Raises:
        InputError: If a setting is impossible whatever the data.
    """

    per_class: int | None = None
    limit: int | None = None
    imbalance: str | None = None
    ratio: float | None = None
    minority: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no data set can give."""
        for name in ("per_class", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, but is {value}")
        _check_seed(self.seed)
        if self.imbalance is not None:
            check_one_of("imbalance", self.imbalance, tuple(PROFILES))
        if (self.imbalance is None) != (self.ratio is None):
            raise InputError(
                "imbalance and imbalance_ratio go together, but imbalance is "
                f"{self.imbalance!r} and imbalance_ratio is {self.ratio}; give both or neither"
            )
        if self.ratio is not None and not 1 <= self.ratio < float("inf"):
            raise InputError(f"imbalance_ratio must be at least 1, but is {self.ratio}")
        if not 0 < self.minority < 1:
            raise InputError(f"minority must lie in (0, 1), but is {self.minority}")

    def of(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the positions of the chosen images, ascending.

        Args:
            labels: (N,) integers in [0, K).
            num_classes: K.

        Returns:
            (n,) positions in ``labels``.

        Raises:
            InputError: If the data has too few images.
        """
        counts = torch.bincount(labels, minlength=num_classes)
        sizes = self._sizes(counts)
        if self.limit is not None and self.limit < int(sizes.sum()):
            sizes = shares(sizes, self.limit)
        if torch.equal(sizes, counts):
            return torch.arange(len(labels))
        kept = []
        for label, size in enumerate(sizes.tolist()):
            where = (labels == label).nonzero().flatten()
            order = np.random.default_rng((self.seed, _ORDER, label)).permutation(len(where))
            kept.append(where[torch.from_numpy(order[:size])])
        return torch.cat(kept).sort().values

    def _sizes(self, counts: Tensor) -> Tensor:
        smallest, label = int(counts.min()), int(counts.argmin())
        if self.per_class is not None:
            if self.per_class > smallest:
                raise InputError(
                    f"per_class is {self.per_class}, but the smallest class ({label}) has "
                    f"{smallest} training images; use {smallest} or fewer"
                )
            counts = torch.full_like(counts, self.per_class)
        if self.imbalance is None or self.ratio is None:
            return counts
        largest = self.per_class or smallest
        sizes = class_sizes(self.imbalance, len(counts), largest, self.ratio, self.minority)
        return torch.tensor(sizes)


def class_sizes(
    profile: str, num_classes: int, largest: int, ratio: float, minority: float
) -> list[int]:
    """Return the class sizes n_c of an imbalanced data set, c = 0, ..., K − 1.

    ``"exponential"``: n_c = n_max R^(−c/(K−1)). ``"step"``: n_max, and n_max/R for the last
    round(minority · K) classes. Both are rounded to whole images.

    Args:
        profile: ``"exponential"`` or ``"step"``.
        num_classes: K ≥ 2.
        largest: n_max.
        ratio: R = n_max/n_min ≥ 1.
        minority: Share of small classes, for ``"step"``.

    Raises:
        InputError: If a class would be empty, or none would be small or large.
    """
    if largest < ratio:
        raise InputError(
            f"imbalance_ratio is {ratio:g}, but the largest class has {largest} images, so the "
            f"smallest would have {largest / ratio:.2g}; use a ratio of at most {largest}"
        )
    return PROFILES[profile](num_classes, largest, ratio, minority)


def _exponential(num_classes: int, largest: int, ratio: float, minority: float) -> list[int]:
    last = max(1, num_classes - 1)
    return [round(largest * ratio ** (-label / last)) for label in range(num_classes)]


def _step(num_classes: int, largest: int, ratio: float, minority: float) -> list[int]:
    small = round(minority * num_classes)
    if not 1 <= small < num_classes:
        raise InputError(
            f"minority={minority:g} of {num_classes} classes makes {small} of them small; "
            "at least one must be small and one large"
        )
    return [largest] * (num_classes - small) + [round(largest / ratio)] * small


PROFILES: Final[dict[str, Callable[[int, int, float, float], list[int]]]] = {
    "exponential": _exponential,
    "step": _step,
}


def shares(counts: Tensor, total: int) -> Tensor:
    """Split a total in proportion to counts, by largest remainders.

    Args:
        counts: (K,) whole numbers.
        total: At most their sum.

    Returns:
        (K,) whole numbers of this sum, none above its count.
    """
    scaled = counts * total
    floors = scaled // counts.sum()
    remainders = scaled - floors * counts.sum()
    missing = total - int(floors.sum())
    first = remainders.argsort(descending=True, stable=True)[:missing]
    floors[first] += 1
    return floors


@dataclass(frozen=True)
class Relabelling:
    """Wrong labels for training images, the same for the same seed.

    Args:
        shuffled: Shuffle all labels among the images: as random as labels can be while the classes
            keep their sizes, so that no imbalance comes with it.
        noise: Share of the images that get another label, uniform over the K − 1 wrong ones.
        seed: Chooses images and labels.

    Raises:
        InputError: If a setting is impossible.
    """

    shuffled: bool = False
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _check_seed(self.seed)
        if not 0 <= self.noise <= 1:
            raise InputError(f"label_noise must lie in [0, 1], but is {self.noise}")
        if self.shuffled and self.noise:
            raise InputError(
                f"random_labels leaves no label that label_noise={self.noise} could change; "
                "give one of them"
            )

    def of(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the labels to train with.

        Args:
            labels: (N,) integers in [0, K).
            num_classes: K.

        Returns:
            (N,), a copy; ``round(noise * N)`` labels differ.
        """
        if self.shuffled:
            order = np.random.default_rng((self.seed, _SHUFFLE)).permutation(len(labels))
            return labels[torch.from_numpy(order)]
        labels = labels.clone()
        rng = np.random.default_rng((self.seed, _NOISE))
        chosen = torch.from_numpy(rng.permutation(len(labels))[: round(self.noise * len(labels))])
        shift = torch.from_numpy(rng.integers(1, num_classes, size=len(chosen)))
        labels[chosen] = (labels[chosen] + shift) % num_classes
        return labels


def check_one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of those known; near ones are offered."""
    if value not in known:
        expected = " or ".join(known) if len(known) == 2 else f"one of {', '.join(known)}"
        raise InputError(f"{option} must be {expected}, but is {value!r}{nearest(value, known)}")


def _check_seed(seed: int) -> None:
    check_whole("subset_seed", seed)
    if seed < 0:
        raise InputError(f"subset_seed must not be negative, but is {seed}")
