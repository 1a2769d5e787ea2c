"""Which loaders of a trainer are measured, and how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import Dataset

from ncmonitor.callbacks.options import Options
from ncmonitor.callbacks.trainers import loaders
from ncmonitor.errors import InputError
from ncmonitor.statistics.process_group import ProcessGroup

#: Makes a clean loader, ``(batch_size, ranks)``: the batch size that fits into memory, ``None`` for
#: the user's own, and those that share the data.
Source = Callable[[int | None, ProcessGroup], Any]


def fit_sources(trainer: pl.Trainer, options: Options) -> dict[str, Source]:
    """Return what makes clean loaders, by split, the training set first.

    Validation loaders that Lightning has not set up yet are left out.

    Raises:
        InputError: If it is not clear which loader to read, or one may have no end.
    """
    ours = not gives_loader(options)
    key = options.dataloader if ours else None
    chosen = loaders.choose(trainer.train_dataloader, key) if ours else _given(options)
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
        # ``trainer.val_dataloaders`` may be those of an earlier ``trainer.validate``.
        val = _loaders_of(trainer.fit_loop.epoch_loop.val_loop)
        found |= _numbered("val", val, trainer.num_val_batches, limited, some)
    return found


def held_out_sources(trainer: pl.Trainer, options: Options) -> dict[str, Source]:
    """Return the same of what the trainer tests or validates, outside of a fit."""
    limited, some = is_dry_run(trainer), (options.samples, options.samples_seed)
    if trainer.state.fn == "validate":
        found, counts = _loaders_of(trainer.validate_loop), trainer.num_val_batches
        return _numbered("val", found, counts, limited, some)
    return _numbered("test", trainer.test_dataloaders, trainer.num_test_batches, limited, some)


def given_source(options: Options) -> Source:
    """Return what makes clean loaders of ``dataloader=``; see :func:`gives_loader`.

    Raises:
        InputError: If it is no loader.
    """
    return _source(_given(options), math.inf, False, (options.samples, options.samples_seed))


def gives_loader(options: Options) -> bool:
    """Tell whether ``dataloader=`` is a loader, or makes one: a key only chooses the trainer's."""
    return options.dataloader is not None and not isinstance(options.dataloader, (str, int))


def kind_of(trainer: pl.Trainer) -> str:
    """Return what the trainer's data are called in messages: training, validation or test."""
    names = {"test": "test", "validate": "validation"}
    return next((kind for fn, kind in names.items() if trainer.state.fn == fn), "training")


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
    def make(batch_size: int | None, ranks: ProcessGroup) -> Any:
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


def _loaders_of(loop: Any) -> Any:
    combined = loop._combined_loader
    return None if combined is None else combined.iterables


def _given(options: Options) -> Any:
    given = options.dataloader() if callable(options.dataloader) else options.dataloader
    if isinstance(given, (Dataset, pl.LightningDataModule)) or not hasattr(given, "__iter__"):
        kind = "None" if given is None else f"a {type(given).__name__}"
        raise InputError(
            "dataloader= must be a loader of batches, a function that returns one, or the key of "
            f"one of several training loaders, but gave {kind}: wrap a data set in "
            "torch.utils.data.DataLoader"
        )
    return loaders.choose(given)
