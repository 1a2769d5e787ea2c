"""Features kept between the two looks, so that the network runs once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

DEFAULT_BANK_BYTES: Final = 2**30

Entry = tuple[Tensor, Tensor, "Tensor | None"]


class FeatureBank:
    """Batches of (features, labels, predictions) up to a budget of bytes.

    Features stay in their own precision, on their device while that has four times their size
    free, else on the host. Past the budget the bank empties itself and stays empty: the second
    look then runs the source again.

    Args:
        budget: Bytes of features it may hold.
        in_memory: The batches are in memory already: keep them as they are, without limit.
    """

    def __init__(self, budget: int = DEFAULT_BANK_BYTES, *, in_memory: bool = False) -> None:
        self.budget = budget
        self.in_memory = in_memory
        self.needed = 0
        self.labels: list[Tensor] = []  # of every batch, past the budget too
        self._entries: list[Entry] = []

    @property
    def complete(self) -> bool:
        """Whether everything added is still here."""
        return self.in_memory or self.needed <= self.budget

    def add(self, features: Tensor, labels: Tensor, predicted: Tensor | None) -> None:
        """Keep a batch, or note that the budget is spent."""
        self.needed += features.numel() * features.element_size()
        self.labels.append(labels)
        if not self.complete:
            self._entries.clear()
            return
        if self.in_memory:
            self._entries.append((features, labels, predicted))
            return
        if features.is_cuda and torch.cuda.mem_get_info(features.device)[0] < 4 * self.needed:
            features = features.cpu()
        # A view would keep the whole activation alive; an alias could change under our feet.
        self._entries.append((features.clone(), labels.clone(), predicted))

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the kept batches in order."""
        return iter(self._entries)
