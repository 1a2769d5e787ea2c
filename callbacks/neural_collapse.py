"""The callback: attach it to a Trainer and watch neural collapse happen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch

from ncmonitor._checks import InputError, MeasurementError, check_whole
from ncmonitor._labels import IGNORE_INDEX
from ncmonitor.bank import DEFAULT_BANK_BYTES
from ncmonitor.callbacks._base import Base
from ncmonitor.callbacks.clean_pass import BatchToXY, Forward
from ncmonitor.callbacks.console import console_lines
from ncmonitor.callbacks.ledger import Ledger
from ncmonitor.callbacks.measurement import (
    Measurement,
    Options,
    clean_test_loader,
    is_dry_run,
)
from ncmonitor.callbacks.monitors import check_monitors
from ncmonitor.callbacks.rows import (
    Row,
    log_key,
    log_values,
    metric_columns,
    names_of,
)
from ncmonitor.callbacks.run_log import RunLog, default_run_dir
from ncmonitor.callbacks.schedule import Schedule, scheduled_epochs
from ncmonitor.callbacks.wandb_axes import define_axes, record_measurement
from ncmonitor.history import NULL_SPLIT, history_frame
from ncmonitor.report import CollapseReport
from ncmonitor.settings import Settings
from ncmonitor.tap import FeatureTap

if TYPE_CHECKING:
    import pandas as pd

_ON_ERROR = ("warn", "raise")


class NeuralCollapse(Base):
    """Measure NC1-NC4 through training and log them to every logger.

    After each scheduled epoch the network runs once, in eval mode at fixed weights, over the clean
    training set and over the validation set. Training is bit-identical to training without the
    callback, for a forward and a data set without state of their own. Logged through ``log_dict``
    as ``nc/<split>/<metric>`` and ``nc/tpt/<name>`` against ``nc/epoch``, the number of completed
    epochs (0: the untrained network); kept in :attr:`history`, in the run's ``history.csv`` and in
    checkpoints.

    Args:
        classifier: The last linear layer by name or as a module, when it cannot be found.
        num_classes: Number of classes, checked against the classifier's outputs.
        schedule: ``"every_epoch"``, a period, a list of completed epochs, ``"log"`` or
            ``"papyan"``; the untrained network and the last epoch are always measured.
        splits: What to measure: ``"train"`` first, and ``"val"``.
        dataloader: Replaces the training loader for the measurement, e.g. one without random
            augmentation; a loader or a function that returns one.
        batch_to_xy: From a batch to (inputs, labels), when it is no such pair.
        forward: ``forward(module, inputs)`` runs the network, when ``module(inputs)`` does not.
        bank_bytes: Memory for features between the two looks; past it the network runs twice.
        run_dir: Folder for ``history.csv`` and ``run.json``; ``None`` puts them beside the run's
            checkpoints.
        on_error: ``"warn"`` turns a failed measurement into a row of ``nan`` and goes on;
            ``"raise"`` stops.
        prefix: First part of every log key.
        tpt_accuracy: Train accuracy that marks the effective start of the terminal phase.
        metrics: What to measure beside the default: ``"all"``, or names of metrics and groups;
            ``ncmonitor metrics`` lists them.
        convention: ``"balanced"``, ``"sample"`` or ``"papyan_demo"``, as in
            :func:`~ncmonitor.measure.measure_collapse`.
        superclasses: Block of each class, for ``sk_residual_block``.
        ridge: λ of the squared loss's decomposition, for ``mse_l_*``.
        ignore_index: Samples (tokens) with this label are left out.
        null_seed: Also measure the training set with labels shuffled by this seed, logged as
            ``nc/null/<metric>``: what no class structure looks like.
        verbose: Print one line per measured epoch.

    Attributes:
        report: The last report of the training set.
        overhead_seconds: Time spent measuring so far.

    Raises:
        InputError: Before the first training step, if the model or data cannot be measured.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from ncmonitor.callbacks import NeuralCollapse
        >>> trainer = Trainer(callbacks=[NeuralCollapse()], logger=False)
    """

    def __init__(
        self,
        classifier: str | torch.nn.Module | None = None,
        *,
        num_classes: int | None = None,
        schedule: Schedule = "every_epoch",
        splits: tuple[str, ...] = ("train", "val"),
        dataloader: Any = None,
        batch_to_xy: BatchToXY | None = None,
        forward: Forward | None = None,
        bank_bytes: int = DEFAULT_BANK_BYTES,
        run_dir: str | Path | None = None,
        on_error: str = "warn",
        prefix: str = "nc",
        tpt_accuracy: float = 0.999,
        metrics: str | list[str] = "default",
        convention: str = "balanced",
        superclasses: list[int] | None = None,
        ridge: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
        null_seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if on_error not in _ON_ERROR:
            raise InputError(f"on_error= must be one of {_ON_ERROR}, but is {on_error!r}")
        if "train" not in splits or not set(splits) <= {"train", "val"}:
            raise InputError(
                f"splits= must be ('train',) or ('train', 'val'), but is {tuple(splits)!r}: the "
                "train means are what the other split is measured against"
            )
        if not isinstance(schedule, (str, int, np.integer)):
            schedule = list(schedule)  # a generator could be read once only
        scheduled_epochs(schedule, max_epochs=1)  # a wrong schedule should fail here
        self.schedule, self.on_error, self.prefix = schedule, on_error, prefix
        self.verbose = verbose
        self._given_dir = None if run_dir is None else Path(run_dir)
        self._run_dir = self._given_dir
        self.report: CollapseReport | None = None
        check_whole("bank_bytes", bank_bytes)
        if null_seed is not None:
            check_whole("null_seed", null_seed)
        self._options = Options(
            classifier=classifier,
            num_classes=num_classes,
            splits=tuple(splits),
            dataloader=dataloader,
            batch_to_xy=batch_to_xy,
            forward=forward,
            bank_bytes=bank_bytes,
            settings=Settings.of(metrics, convention, superclasses, ridge, ignore_index),
            null_seed=None if null_seed is None else int(null_seed),
        )
        #: Called as ``listener(trainer, pl_module, epoch)`` once an epoch is in :attr:`history`.
        self.after_measurement: list[Callable[[pl.Trainer, pl.LightningModule, int], None]] = []
        self._ledger = Ledger(tpt_accuracy)
        self._measured: dict[str, torch.Tensor] = {}
        self._measurement: Measurement | None = None
        self._log: RunLog | None = None

    # -- what a user may override or read ----------------------------------------------------------

    def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
        """Decide whether to measure after ``epoch`` completed epochs; override for a policy.

        The untrained network and the last epoch are measured whatever this returns.
        """
        plan = scheduled_epochs(self.schedule, trainer.max_epochs)
        return epoch % plan == 0 if isinstance(plan, int) else epoch in plan

    @property
    def history(self) -> pd.DataFrame:
        """Everything measured so far: one row per epoch and split, columns as in the catalogue."""
        return history_frame(self._ledger.rows)

    @property
    def run_dir(self) -> Path | None:
        """Folder of this run's files: as given, else as found when training started."""
        return self._run_dir

    @run_dir.setter
    def run_dir(self, folder: str | Path) -> None:
        self._given_dir = self._run_dir = Path(folder)

    @property
    def overhead_seconds(self) -> float:
        """Time spent measuring in this process."""
        return self._ledger.seconds

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse at once what could only fail later."""
        if stage != "fit":
            return
        self._measurement = None
        if trainer.world_size > 1:
            raise InputError(
                "NeuralCollapse measures in one process, but this trainer has "
                f"{trainer.world_size}; use Trainer(devices=1)"
            )
        scheduled_epochs(self.schedule, trainer.max_epochs)
        check_monitors(trainer, self.prefix)
        FeatureTap(pl_module, self._options.classifier)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the classifier, open the files and measure the untrained network."""
        epoch = trainer.current_epoch
        self._ledger.begin(epoch, resumed=trainer.global_step > 0)
        self._measurement = Measurement(trainer, pl_module, self._options)
        self._measurement.probe()
        if "val" in self._options.splits and not trainer.enable_validation:
            warnings.warn("no validation data: only the training set is measured", stacklevel=2)
        self._open(trainer, self._measurement)
        known = self._ledger.epochs
        if not known or (epoch not in known and self.should_measure(epoch, trainer)):
            self._measure_and_log(trainer, epoch)
            self._tell(trainer, pl_module, epoch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Advance the weight-decay clock by the step that is about to be made."""
        if self._measurement is not None:
            self._ledger.step(optimizer, self._measurement.parameter)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if this epoch is scheduled, and log where monitors can see it."""
        epoch = trainer.current_epoch + 1
        if epoch == trainer.max_epochs or self.should_measure(epoch, trainer):
            values = self._measure(trainer, epoch, pl_module.print)
            if not trainer.barebones:
                _log_dict(pl_module, values)
            self._tell(trainer, pl_module, epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the last epoch if early stopping or ``max_steps`` made it the last."""
        if trainer.current_epoch > max(self._ledger.epochs, default=-1):
            self._measure_and_log(trainer, trainer.current_epoch)
            self._tell(trainer, pl_module, trainer.current_epoch)
        if self._log is not None:
            self._log.finish(self.overhead_seconds)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so if Lightning skipped the fit because there is nothing to train on."""
        if self._measurement is None and trainer.num_training_batches == 0:
            raise InputError(
                "the training loader is empty, so nothing was trained or measured: expected at "
                "least one batch (drop_last=True drops a data set smaller than one batch)"
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the test set against the last train means, as ``nc/test/...``."""
        if self.report is None or self._measurement is None or self._log is None:
            return
        if not self._at_measured_weights(pl_module):
            warnings.warn(
                "the test set is not measured: the weights are not those of the last measurement "
                "of the training set, whose class means it needs",
                stacklevel=2,
            )
            return
        self._measurement.trainer, self._measurement.module = trainer, pl_module
        rows = [self._row("test", clean_test_loader(trainer), trainer.current_epoch)]
        self._ledger.rows += rows
        self._log.append(rows)
        _log_dict(pl_module, log_values(rows, self.prefix))

    def state_dict(self) -> dict[str, Any]:
        """Return history and clocks as plain values, which load with ``weights_only=True``."""
        settings = self._options.settings
        how = {"convention": settings.convention.name, "ridge": settings.ridge}
        return self._ledger.state_dict() | {"how": how}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue history and clocks where a checkpoint left them."""
        self._ledger.load_state_dict(state_dict)
        before = state_dict.get("how", {}).get("convention")
        now = self._options.settings.convention.name
        if before not in (None, now):
            warnings.warn(
                f"the history so far has convention={before!r}, from here on it has {now!r}: "
                "its numbers do not compare",
                stacklevel=2,
            )

    # -- the work ----------------------------------------------------------------------------------

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        for listener in self.after_measurement:
            listener(trainer, module, epoch)

    def _open(self, trainer: pl.Trainer, measurement: Measurement) -> None:
        """Open the run's files and tell the loggers what will come and how it is measured."""
        facts = measurement.facts() | {"schedule": str(self.schedule)}
        names = self._options.settings.names
        self._ledger.metrics = metric_columns(names, measurement.num_classes)
        if not is_dry_run(trainer):
            # Validation may be set up only when it is first due.
            splits = dict.fromkeys([*measurement.loaders(), *self._options.splits, "test"])
            splits |= {} if self._options.null_seed is None else {NULL_SPLIT: None}
            keys = {
                log_key(self.prefix, split, name): name
                for split in splits
                for name in names_of(split, self._ledger.metrics)
            }
            define_axes(trainer.loggers, f"{self.prefix}/epoch", keys)
            record_measurement(trainer.loggers, facts)
        self._run_dir = self._given_dir or default_run_dir(trainer)
        writes = trainer.is_global_zero and not is_dry_run(trainer)
        self._log = RunLog(self._run_dir, active=writes)
        epochs = trainer.max_epochs or -1
        self._log.start(self._ledger.rows, facts, epochs, self._ledger.metrics)

    def _measure_and_log(self, trainer: pl.Trainer, epoch: int) -> None:
        """Measure outside an epoch: ``log_dict`` and the bar's ``print`` drop what they get."""
        values = self._measure(trainer, epoch, print)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _measure(
        self, trainer: pl.Trainer, epoch: int, say: Callable[[str], None]
    ) -> dict[str, float]:
        """Measure every split, keep and write the rows, and return what is to be logged."""
        assert self._measurement is not None  # made by on_train_start, as is the log
        assert self._log is not None
        position = len(self._ledger.epochs)
        rows = [self._row(*each, epoch) for each in self._loaders(epoch).items()]
        if self._options.null_seed is not None:
            step = self._measurement.trainer.global_step
            rows.append(self._ledger.row(epoch, step, NULL_SPLIT, self._null(epoch), 0.0))
        self._ledger.rows += rows
        self._log.append(rows)
        if self.verbose:
            for line in console_lines(rows[0], position):
                say(line)
        return log_values(rows, self.prefix)

    def _loaders(self, epoch: int) -> dict[str, Any]:
        assert self._measurement is not None
        try:
            return self._measurement.loaders()
        except Exception as error:
            self._excuse("train", epoch, error)
            return {"train": None}

    def _at_measured_weights(self, module: pl.LightningModule) -> bool:
        state = module.state_dict()
        return all(torch.equal(state[k], value) for k, value in self._measured.items())

    def _row(self, split: str, loader: Any, epoch: int) -> Row:
        assert self._measurement is not None
        started = time.perf_counter()
        report = self._report(split, loader, epoch)
        if split == "train":  # also if None: no split is measured against means of older weights
            self.report = report
            self._measured = self._measurement.classifier_state()
        seconds = time.perf_counter() - started
        step = self._measurement.trainer.global_step
        return self._ledger.row(epoch, step, split, report, seconds)

    def _report(self, split: str, loader: Any, epoch: int) -> CollapseReport | None:
        """Return the report of a split, or ``None`` with a warning if it cannot be had."""
        assert self._measurement is not None
        if loader is None or (split != "train" and self.report is None):
            return None  # it, or its reference, failed, which has been said
        reference = None if split == "train" or self.report is None else self.report.moments
        try:
            report = self._measurement.measure(loader, reference)
            if split == "train" and report.n_classes_present < 2:
                raise InputError("the training set holds one class; neural collapse needs two")
            return report
        except Exception as error:
            self._excuse(split, epoch, error)
            return None

    def _null(self, epoch: int) -> CollapseReport | None:
        """Return the report of the shuffled labels, measured with that of the training set."""
        assert self._options.null_seed is not None
        try:
            return None if self.report is None else self.report.null(self._options.null_seed)
        except Exception as error:
            self._excuse(NULL_SPLIT, epoch, error)
            return None

    def _excuse(self, split: str, epoch: int, error: Exception) -> None:
        """Turn a failed measurement into a warning, unless it is a mistake known from the start."""
        wrong_input = isinstance(error, InputError) and not isinstance(error, MeasurementError)
        if self.on_error == "raise" or (wrong_input and not self._ledger.rows):
            raise error
        warnings.warn(
            f"neural collapse of {split} after epoch {epoch} is nan, training goes on: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def _log_dict(module: pl.LightningModule, values: dict[str, float]) -> None:
    # As float64 tensors: Lightning would round a float to float32. MPS has no float64.
    dtype = torch.float32 if module.device.type == "mps" else torch.float64
    tensors = {key: torch.tensor(value, dtype=dtype) for key, value in values.items()}
    module.log_dict(tensors, on_step=False, on_epoch=True, batch_size=1)
