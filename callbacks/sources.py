"""Which loaders of a trainer are measured, and how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import Dataset

from ncmonitor._checks import InputError
from ncmonitor.callbacks import loaders
from ncmonitor.callbacks.options import Options
from ncmonitor.ranks import Alone

#: Makes a clean loader, ``(batch_size, ranks)``: the batch size that fits into memory, ``None`` for
#: the user's own, and those that share the data.
Source = Callable[[int | None, Alone], Any]


def fit_sources(trainer: pl.Trainer, options: Options) -> dict[str, Source]:
    """Return what makes clean loaders, by split, the training set first.

    Validation loaders that Lightning has not set up yet are left out.

    Raises:
        InputError: If it is not clear which loader to read, or one may have no end.
    """
    given = options.dataloader
    key = given if isinstance(given, (str, int)) else None
    ours = given is None or key is not None
    chosen = trainer.train_dataloader if ours else given() if callable(given) else given
    if not ours:
        _check_loader(chosen)
    chosen = loaders.choose(chosen, key)
    batches = trainer.num_training_batches if ours else math.inf
    if batches == math.inf and trainer.max_epochs == -1 and length_of(chosen) is None:
        raise InputError(
            "the training data has no length and the trainer no last epoch (max_steps alone), "
            "so the data may have no end; pass dataloader= a finite loader, or "
            "Trainer(limit_train_batches=...)"
        )
    limited = is_dry_run(trainer) or bool(getattr(trainer, "overfit_batches", False))
    some = (options.samples, options.samples_seed)
    found = {"train": _source(chosen, batches, ours and limited, some)}
    if "val" in options.splits:
        found |= _numbered("val", trainer.val_dataloaders, trainer.num_val_batches, limited, some)
    return found


def test_sources(trainer: pl.Trainer, options: Options) -> dict[str, Source]:
    """Return the same of the trainer's test loaders."""
    limited, some = is_dry_run(trainer), (options.samples, options.samples_seed)
    return _numbered("test", trainer.test_dataloaders, trainer.num_test_batches, limited, some)


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Tell whether the trainer only tries a few batches (``fast_dev_run``)."""
    return bool(getattr(trainer, "fast_dev_run", False))  # set outside of Trainer's own class


def length_of(loader: Any) -> int | None:
    """Return the number of batches, ``None`` if it is not known beforehand."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _numbered(
    split: str,
    found: Any,
    counts: Any,
    limited: bool,
    some: tuple[int | None, int],
) -> dict[str, Source]:
    several = loaders.several(found)
    counts = counts or [math.inf] * len(several)
    counts = counts if isinstance(counts, list) else [counts]
    return {
        split if len(several) == 1 else f"{split}{index}": _source(loader, count, limited, some)
        for index, (loader, count) in enumerate(zip(several, counts, strict=False))
    }


def _source(loader: Any, batches: float, limited: bool, some: tuple[int | None, int]) -> Source:
    def make(batch_size: int | None, ranks: Alone) -> Any:
        return loaders.clean_loader(
            loader,
            batches,
            limited=limited,
            rank=ranks.rank,
            ranks=ranks.size,
            batch_size=batch_size,
            samples=some[0],
            seed=some[1],
        )

    return make


def _check_loader(given: Any) -> None:
    if isinstance(given, (Dataset, pl.LightningDataModule)) or not hasattr(given, "__iter__"):
        kind = "None" if given is None else f"a {type(given).__name__}"
        raise InputError(
            "dataloader= must be a loader of batches, a function that returns one, or the key of "
            f"one of several training loaders, but gave {kind}: wrap a data set in "
            "torch.utils.data.DataLoader"
        )
