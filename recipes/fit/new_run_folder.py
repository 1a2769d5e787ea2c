"""Which folder a run gets: named, new, that of an interrupted run, or none for a dry run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from ncmonitor.errors import InputError
from ncmonitor.recipes.fit.fit_options import check_free
from ncmonitor.recipes.fit.resume import run_to_resume
from ncmonitor.recipes.fit.run_folder import (
    RunPlace,
    dry_run_home,
    home_handed_on,
    label_of,
    new_run_folder,
)


def is_first_process() -> bool:
    """Tell whether this is rank zero, or will be: the others were started by it or with it."""
    rank: int = getattr(rank_zero_only, "rank", 0)  # of the environment, so early
    return rank == 0


def home_of_run(name: str, config: Any, options: dict[str, Any], *, resume: bool) -> RunPlace:
    """Choose the folder of a run.

    Args:
        name: Of the recipe or config.
        config: The parsed options.
        options: The same, as ``config.yaml`` has them.
        resume: Continue a run that was interrupted.

    Raises:
        InputError: If a new run would go where one is, or there is none to resume.
    """
    told, given = home_handed_on(), config.trainer.default_root_dir
    if config.trainer.fast_dev_run:
        if resume:
            raise InputError("a dry run (trainer.fast_dev_run) keeps nothing: leave out --resume")
        return dry_run_home()
    if not is_first_process() and told is not None:
        return told  # rank zero has chosen
    # torchrun starts every process at once: none of them can tell the others which folder it made.
    together = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if told is None and given is None and (together or not is_first_process()):
        raise InputError(
            "processes that were started together cannot agree on a new folder; name one with "
            "--trainer.default_root_dir"
        )
    named = told.folder if told is not None else None if given is None else Path(given)
    if resume:
        seed = config.seed_everything
        return run_to_resume(name, None if seed is False else seed, named, options)
    if named is None:
        seed = config.seed_everything
        label = label_of(config.way, None if seed is False else seed)
        return RunPlace(new_run_folder(name, label), made=True)
    if config.ckpt_path is None and is_first_process():
        check_free(named)
    return RunPlace(named, made=not named.exists())
