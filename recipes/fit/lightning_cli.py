"""LightningCLI with the monitor attached, a folder per run, and one-line errors."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
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
)
from pytorch_lightning.loggers import WandbLogger

# Imported for their names: the command accepts the bare name of a class that is loaded.
from ncmonitor.callbacks import CollapseFigures, NeuralCollapse
from ncmonitor.callbacks.loggers.wandb_runs import continue_run, keep_secrets_from
from ncmonitor.callbacks.trainers.strategies import check_strategy
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.words import shown
from ncmonitor.recipes.fit.fit_options import Expectation, check_config, place
from ncmonitor.recipes.fit.new_run_folder import home_of_run, is_first_process
from ncmonitor.recipes.fit.parser_messages import explain
from ncmonitor.recipes.fit.random_state import Randomness
from ncmonitor.recipes.fit.resume import record_end
from ncmonitor.recipes.fit.run_folder import RunPlace, closing_lines, holding
from ncmonitor.recipes.fit.saved_config import SaveConfig, refuse_mark
from ncmonitor.recipes.module import ImageClassifier
from ncmonitor.redact import MARK, reason_of

_HELP: Final = (
    "Train a recipe (ncmonitor fit NAME) or a config of your own (ncmonitor fit --config FILE), "
    "measured every epoch; every option below overrides it. --seeds N trains it N times and "
    "compares; a recipe with ways trains all of them and compares, or one with --way NAME; "
    "--resume continues the latest run that was interrupted."
)
#: Said when a run goes on in its folder, or in one that was moved.
_RESUMED: Final = (r"Checkpoint directory .* exists and is not empty", r"The dirpath has changed")
#: Of the command, taken out of the words before the options below are parsed.
_OWN: Final = ("seeds", "resume")  # and way, which is recorded as well


class FitCLI(LightningCLI):
    """LightningCLI for ``fit`` alone; ``NeuralCollapse`` is attached, its options are ``nc``.

    Args:
        name: Names the folder of the run, together with time and seed.
        words: Options, at least those that say which model to use.
        resume: Continue a run that was interrupted.
    """

    def __init__(self, name: str, words: Sequence[str], *, resume: bool = False) -> None:
        self.name, self.resume = name, resume
        self.while_running = ExitStack()
        # An abbreviated option is a misspelt one.
        strict = {"exit_on_error": False, "allow_abbrev": False}
        described = {**strict, "description": _HELP}
        with self.while_running:
            super().__init__(
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                # The measurement of the untrained network checks more, and explains what it finds.
                trainer_defaults={"num_sanity_val_steps": 0},
                parser_kwargs={"prog": "ncmonitor", **strict, "fit": described},
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
        parser.add_argument(
            "--expect",
            type=Expectation,
            default=None,
            help="What the run should reach, for its report: epoch, the completed epochs, and for "
            "a metric of the training set, or split/metric, the most, or [least, most].",
        )
        parser.add_argument(
            "--ways",
            type=dict[str, Any] | None,
            default=None,
            help="In a config: names of variants, each with the options that make it another.",
        )
        parser.add_argument(
            "--way", type=str | None, default=None, help="The one to train; null: all of them."
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
        # --figures.figures [] draws none and keeps the snapshots for the report.
        parser.add_class_arguments(CollapseFigures, "figures", fail_untyped=False, skip={"prefix"})
        parser.callback_keys.append("figures")
        self.options = [*parser.get_defaults().as_flat().__dict__, *_OWN]
        self.options.remove("ways")  # of config files

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Not super(): it warns whenever words are passed on while sys.argv has words, too.
        try:
            self.config = parser.parse_args(cast(list[str], args))
        except argparse.ArgumentError as error:
            if MARK in str(error.message):
                raise InputError(
                    f"{explain(str(error.message), self.options)}: it stands for a secret, which "
                    "is not saved with a run: give it again"
                ) from error
            raise InputError(explain(str(error.message), self.options)) from error
        if self.resume and self.config.fit.seed_everything is True:
            raise InputError(
                "--resume cannot know a seed that was drawn; add --seed_everything and the number "
                "at the end of the run's folder"
            )

    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        # Before the folder is filled in: running the saved config again makes a folder of its own.
        self.full = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))["fit"]
        ways, way = self.full.pop("ways"), self.full.get("way")
        if way is None:
            del self.full["way"]
        refuse_mark(self.full)
        if ways and way is None:  # of a config file, one has been chosen
            raise InputError("ways are read from a config file (--config FILE), not from --ways")
        check_config(config, resume=self.resume)
        if config.trainer.enable_progress_bar is None:  # in a file, a bar is a thousand lines
            config.trainer.enable_progress_bar = sys.stdout.isatty()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.home = self.choose_home()
        if self.home.checkpoint is not None:
            config.ckpt_path = str(self.home.checkpoint)
        place(config.trainer, self.home.folder)
        self.save_config_kwargs = {"folder": self.home.folder, "full": self.full}

    def choose_home(self) -> RunPlace:
        """Find or make the folder of the run, and hold it while the run goes on."""
        home = home_of_run(self.name, self.config.fit, self.full, resume=self.resume)
        if is_first_process():
            self.while_running.enter_context(holding(home.folder))
        return home

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            if isinstance(self.model, ImageClassifier):
                self.model.check(self.datamodule)
        except Exception as error:
            self.home.forget()
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
        self._prepare()
        try:
            with self.home.handed_on(), warnings.catch_warnings():
                for message in _RESUMED if kwargs.get("ckpt_path") else ():
                    warnings.filterwarnings("ignore", message=message)
                self.trainer.fit(**kwargs)
            if self.home.checkpoint is not None and self.trainer.is_global_zero:
                record_end(self.home.folder)
        finally:  # also after Ctrl-C, and after an error half-way
            if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.home.forget()
            if self.trainer.is_global_zero:
                self._conclude()

    def _prepare(self) -> None:
        """Set up what only exists now, before the trainer starts processes of its own."""
        folder, trainer = self.home.folder, self.trainer
        try:
            check_strategy(trainer)
        except InputError:
            self.home.forget()
            raise
        trainer.callbacks.insert(0, Randomness())  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NeuralCollapse):
                callback.run_dir = folder
                callback.recipe = self.name
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # WandbLogger passes on an option that W&B has retired, and W&B warns each time.
                logger._wandb_init.pop("anonymous", None)
                keep_secrets_from(logger._wandb_init)
                if not os.environ.get("WANDB_RUN_GROUP"):
                    logger._wandb_init["group"] = logger._wandb_init.get("group") or self.name
        if self.config.fit.ckpt_path:
            continue_run(trainer.loggers, self.config.fit.ckpt_path)
        if self.resume and is_first_process():
            if self.home.checkpoint is None:
                (folder / HISTORY_FILE).unlink(missing_ok=True)  # of the untrained network alone
            print(f"{shown(folder)} goes on", flush=True)

    def _conclude(self) -> None:
        """Write the report of what was measured and say where everything is."""
        if wandb.run is not None:
            wandb.run.finish()  # now, so that its last words come before ours
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print("dry run: nothing kept", flush=True)
            return
        folder = self.home.folder
        try:
            read_history(folder)
        except InputError as error:
            if _holds_nothing(folder):  # stopped before the first step
                self.home.forget()
            else:
                warnings.warn(f"no report: {error}", stacklevel=2)
            return
        from ncmonitor.reports.run_page import write_report

        report = None
        try:
            report = write_report(folder)
        except Exception as error:
            # The run is on disk and must not be lost behind a picture that could not be drawn.
            warnings.warn(f"no report: {reason_of(error)}", stacklevel=2)
        print("\n".join(["", *closing_lines(folder, report)]), flush=True)


def _holds_nothing(folder: Path) -> bool:
    """Tell whether a run left neither a measured row nor a checkpoint."""
    history = folder / HISTORY_FILE
    rows = history.read_text(encoding="utf-8", errors="replace") if history.exists() else ""
    return rows.count("\n") < 2 and not any(folder.rglob("*.ckpt"))
