"""``config.yaml``: every option of a run, to run it again, but no secret; what loggers get."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback

from ncmonitor.errors import InputError
from ncmonitor.monitor.provenance import CONFIG_FILE
from ncmonitor.redact import MARK, holding_mark, redacted


class SaveConfig(SaveConfigCallback):
    """Saves every option's value, given or default, in the folder of the run and with the loggers.

    Secrets are left out there, and out of what ``save_hyperparameters`` of a model or data module
    sends to loggers and checkpoints: ``self.hparams`` still has them. A run that goes on keeps the
    file it has. Lightning's own refuses a second run with ``WandbLogger``, and sends W&B a part of
    the config.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Any, *, folder: Path, full: dict[str, Any]
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        del self.parser  # it knows the command, which cannot go to processes that are spawned
        self.folder, self.full = folder, redacted(full)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave secrets out of hyperparameters, just before Lightning sends them to the loggers."""
        found = False
        for part in (pl_module, getattr(trainer, "datamodule", None)):
            if part is None or not part.hparams:
                continue
            part._hparams_initial = redacted(part.hparams_initial)
            found |= redacted(part.hparams) is not part.hparams
        if found:  # the last hook before a checkpoint is written, in whatever way that is
            saved = pl_module.on_save_checkpoint
            pl_module.on_save_checkpoint = partial(_on_save_checkpoint, saved)  # type: ignore[method-assign]

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(self.full)
        path = self.folder / CONFIG_FILE
        if path.exists():  # of the run that goes on here
            return
        again = " ".join(f"{as_option(name)} VALUE" for name in holding_mark(self.full))
        command = f"ncmonitor fit --config {CONFIG_FILE} {again}".strip()
        head = f"# Every option of this run. Again: {command}\n"
        head += f"# {MARK} stands for secrets, which are not saved.\n" if again else ""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # a kill leaves the whole file or none
        part.write_text(head + yaml.safe_dump(self.full, sort_keys=False), encoding="utf-8")
        part.replace(path)


def as_option(name: str) -> str:
    """Return how an option is given on the command line, by its name in a config."""
    return "--" + name.replace(".init_args.", ".")


def refuse_mark(options: Any) -> None:
    """Refuse options that hold the mark of a secret in place of the secret.

    Raises:
        InputError: Naming them.
    """
    missing = [as_option(name) for name in holding_mark(options)]
    if missing:
        raise InputError(
            f"{MARK!r} stands for a secret, which is not saved with a run: give "
            f"{', '.join(missing)} again, with its value, on the command line or in the config"
        )


def _on_save_checkpoint(own: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]) -> None:
    own(checkpoint)
    for part in (pl.LightningModule, pl.LightningDataModule):
        key = part.CHECKPOINT_HYPER_PARAMS_KEY
        saved = checkpoint.get(key)
        clean = None if saved is None else redacted(saved)
        if clean is not saved:
            checkpoint[key] = clean
            checkpoint.pop(part.CHECKPOINT_HYPER_PARAMS_TYPE, None)  # it is a plain dict now
