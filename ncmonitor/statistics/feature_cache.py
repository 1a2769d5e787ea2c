"""Features kept between the two passes, so that the network runs once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

DEFAULT_CACHE_BYTES: Final = 2**30

Entry = tuple[Tensor, Tensor, "Tensor | None"]


class Budget:
    """Bytes that all features kept between two passes may take together.

    Args:
        limit: How many.
        in_memory: The features are in memory already: keep them as they are, without limit.

    Attributes:
        needed: Bytes of everything that was to be kept.
    """

    def __init__(self, limit: int = DEFAULT_CACHE_BYTES, *, in_memory: bool = False) -> None:
        self.limit, self.in_memory, self.needed = limit, in_memory, 0

    @property
    def enough(self) -> bool:
        """Whether everything could be kept."""
        return self.in_memory or self.needed <= self.limit


class FeatureCache:
    """Batches of (features, labels, predictions), as far as a budget reaches.

    Features stay in their own precision, on their device while that has four times their size
    free, else on the host. Past the budget every bank that shares it empties itself and stays
    empty: the second pass then runs the source again.

    Args:
        budget: What it may take, shared between the layers of a network.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.labels: list[Tensor] = []  # of every batch, past the budget too
        self._entries: list[Entry] = []

    def add(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        """Keep a batch, or note that the budget is spent."""
        budget = self.budget
        budget.needed += features.numel() * features.element_size()
        self.labels.append(labels)
        if not budget.enough:
            self._entries.clear()
            return
        if budget.in_memory:
            self._entries.append((features, labels, predicted))
            return
        if features.is_cuda and torch.cuda.mem_get_info(features.device)[0] < 4 * budget.needed:
            features = features.cpu()
        # A view would keep the whole activation alive; an alias could change under our feet.
        self._entries.append((features.clone(), labels.clone(), predicted))

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the kept batches in order."""
        return iter(self._entries)
