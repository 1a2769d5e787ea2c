"""LightningCLI with the monitor attached, a folder per run, and one-line errors."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import pytorch_lightning as pl
import torch
import wandb
import yaml
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.loggers import WandbLogger

# Imported for their names: the command accepts the bare name of a class that is loaded.
import ncmonitor.recipes.data
import ncmonitor.recipes.models
import ncmonitor.recipes.module
import ncmonitor.recipes.ufm  # noqa: F401
from ncmonitor._checks import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.history import HISTORY_FILE, read_history
from ncmonitor.recipes.explain import explain
from ncmonitor.recipes.run_folder import (
    CONFIG_FILE,
    closing_lines,
    new_run_folder,
    remove_run_folder,
)

_HELP: Final = (
    "Train a recipe (ncmonitor fit NAME) or a config of your own (ncmonitor fit --config FILE), "
    "measured every epoch; every option below overrides it."
)


class FitCLI(LightningCLI):
    """LightningCLI for ``fit`` alone; ``NeuralCollapse`` is attached, its options are ``nc``.

    Args:
        name: Names the folder of the run, together with time and seed.
        words: Options, at least those that say which model to use.
    """

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name
        # An abbreviated option is a misspelt one.
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            # The measurement of the untrained network checks more, and explains what it finds.
            trainer_defaults={"num_sanity_val_steps": 0},
            parser_kwargs={"prog": "ncmonitor", **strict, "fit": {**strict, "description": _HELP}},
            auto_configure_optimizers=False,
            args=["fit", *words],
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--threads", type=int | None, default=None, help="CPU threads; null: PyTorch's choice."
        )
        # As add_lightning_class_args does, without what a command line cannot say (a loader) or
        # says elsewhere (--trainer.default_root_dir).
        skip: set[str | int] = {"dataloader", "run_dir", "classifier"}
        parser.add_class_arguments(NeuralCollapse, "nc", fail_untyped=False, skip=skip)
        # Which may also be a module; --help would list every nn.Module there is.
        parser.add_argument(
            "--nc.classifier",
            type=str | None,
            default=None,
            help="The last linear layer by name, when it cannot be found.",
        )
        parser.callback_keys.append("nc")
        self.options = [*parser.get_defaults().as_flat().__dict__]

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Not super(): it warns whenever words are passed on while sys.argv has words, too.
        try:
            self.config = parser.parse_args(cast(list[str], args))
        except argparse.ArgumentError as error:
            raise InputError(explain(str(error.message), self.options)) from error

    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        # Before the folder is filled in: running the saved config again makes a folder of its own.
        full = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))["fit"]
        _check_config(config)
        if config.trainer.enable_progress_bar is None:  # in a file, a bar is a thousand lines
            config.trainer.enable_progress_bar = sys.stdout.isatty()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.made_folder = config.trainer.default_root_dir is None
        if self.made_folder:
            seed = config.seed_everything
            self.folder = new_run_folder(self.name, None if seed is False else seed)
        else:
            self.folder = Path(config.trainer.default_root_dir)
        _place(config.trainer, self.folder)
        self.save_config_kwargs = {"folder": self.folder, "full": full}

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            self._forget()
            # jsonargparse hides what a constructor raises behind the alternatives it tried.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error  # noqa: B904 - both are already in flight

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:  # what Trainer raises for a value it cannot use
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error

    def fit(self, **kwargs: Any) -> None:
        """Train; called by LightningCLI for the command of this name."""
        if self.trainer.num_devices * self.trainer.num_nodes > 1:  # before it starts processes
            self._forget()
            raise InputError(
                f"the trainer would use {self.trainer.num_devices} devices, but collapse is "
                "measured in one process; use --trainer.devices 1"
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NeuralCollapse):
                callback.run_dir = self.folder
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                # WandbLogger passes on an option that W&B has retired, and W&B warns each time.
                logger._wandb_init.pop("anonymous", None)
        try:
            self.trainer.fit(**kwargs)
        finally:  # also after Ctrl-C, and after an error half-way
            if self.trainer.is_global_zero:
                self._conclude()

    def _conclude(self) -> None:
        """Write the report of what was measured and say where everything is."""
        if wandb.run is not None:
            wandb.run.finish()  # now, so that its last words come before ours
        try:
            read_history(self.folder)
        except InputError as error:
            if _holds_nothing(self.folder):  # a dry run, or stopped before the first step
                self._forget()
            else:
                warnings.warn(f"no report: {error}", stacklevel=2)
            return
        from ncmonitor.html import write_report

        report = None
        try:
            report = write_report(self.folder)
        except Exception as error:
            # The run is on disk and must not be lost behind a picture that could not be drawn.
            warnings.warn(f"no report: {type(error).__name__}: {error}", stacklevel=2)
        print("\n".join(["", *closing_lines(self.folder, report)]), flush=True)

    def _forget(self) -> None:
        """Remove the folder of a run that never started, if it was made for it."""
        if self.made_folder:
            remove_run_folder(self.folder)


def _holds_nothing(folder: Path) -> bool:
    """Tell whether a run left neither a measured row nor a checkpoint."""
    history = folder / HISTORY_FILE
    rows = history.read_text(encoding="utf-8", errors="replace") if history.exists() else ""
    return rows.count("\n") < 2 and not any(folder.rglob("*.ckpt"))


def _check_config(config: Any) -> None:
    """Refuse what would fail, or overwrite another run, only later."""
    for option in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(config.trainer, option) == 0:
            raise InputError(f"trainer.{option} is 0, so there is nothing to train or measure")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads must be at least 1, but is {config.threads}")
    folder, ckpt = config.trainer.default_root_dir, config.ckpt_path
    if ckpt is None and folder is not None and Path(folder, HISTORY_FILE).exists():
        raise InputError(
            f"{folder} already holds a run; name another folder with --trainer.default_root_dir, "
            "or continue that run with --ckpt_path"
        )
    if ckpt is not None and Path(ckpt).suffix == ".ckpt" and not Path(ckpt).is_file():
        raise InputError(f"there is no checkpoint {str(ckpt)!r} to continue from")
    for callback in _each(config.trainer.callbacks):
        if _kind(callback) == "NeuralCollapse":
            raise InputError(
                "ncmonitor fit attaches NeuralCollapse by itself; move its options from "
                "trainer.callbacks to nc"
            )


def _each(option: Any) -> list[Any]:
    """Return the classes given for an option that takes one, several or none (also as false)."""
    specs = option if isinstance(option, list) else [option]
    return [spec for spec in specs if hasattr(spec, "class_path")]


def _kind(spec: Any) -> str:
    return str(spec.class_path).rpartition(".")[2]


def _place(trainer: Any, folder: Path) -> None:
    """Point the trainer, its loggers and its checkpoints to the folder of the run."""
    trainer.default_root_dir = str(folder)
    for logger in _each(trainer.logger):
        if logger.init_args.get("save_dir") == ".":
            logger.init_args.save_dir = str(folder)
    for callback in _each(trainer.callbacks):
        if _kind(callback) == "ModelCheckpoint" and callback.init_args.dirpath is None:
            callback.init_args.dirpath = str(folder / "checkpoints")


class _SaveConfig(SaveConfigCallback):
    """Saves every option's value, given or default, in the folder of the run and with the loggers.

    Lightning's own refuses a second run with ``WandbLogger``, and sends W&B a part of the config.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Any, *, folder: Path, full: dict[str, Any]
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder, self.full = folder, full

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        path = self.folder / CONFIG_FILE
        head = f"# Every option of this run. Again: ncmonitor fit --config {CONFIG_FILE}\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(head + yaml.safe_dump(self.full, sort_keys=False), encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(self.full)
