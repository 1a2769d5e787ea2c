"""``config.yaml``: every option of a run, to run it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback

from ncmonitor.provenance import CONFIG_FILE


class SaveConfig(SaveConfigCallback):
    """Saves every option's value, given or default, in the folder of the run and with the loggers.

    A run that goes on keeps the file it has. Lightning's own refuses a second run with
    ``WandbLogger``, and sends W&B a part of the config.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Any, *, folder: Path, full: dict[str, Any]
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        del self.parser  # it knows the command, which cannot go to processes that are spawned
        self.folder, self.full = folder, full

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(self.full)
        path = self.folder / CONFIG_FILE
        if path.exists():  # of the run that goes on here
            return
        head = f"# Every option of this run. Again: ncmonitor fit --config {CONFIG_FILE}\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # a kill leaves the whole file or none
        part.write_text(head + yaml.safe_dump(self.full, sort_keys=False), encoding="utf-8")
        part.replace(path)
