"""The callback: attach it to a Trainer and watch neural collapse happen."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch

from ncmonitor.callbacks.base import LENT, Base
from ncmonitor.callbacks.fit_measurements import FitMeasurements, excused
from ncmonitor.callbacks.held_out import HeldOut, held_out_values
from ncmonitor.callbacks.loggers.logged import log_in_epoch, log_outside
from ncmonitor.callbacks.loggers.wandb_runs import WandbRuns
from ncmonitor.callbacks.logging_setup import (
    facts,
    grows_later,
    keys_to_come,
    monitorable,
    tell_loggers,
)
from ncmonitor.callbacks.options import Options, layers_of, splits_of
from ncmonitor.callbacks.run_log import RunLog, default_run_dir
from ncmonitor.callbacks.run_state import RunState
from ncmonitor.callbacks.train_means import TrainMeans
from ncmonitor.callbacks.trainer_measurement import Measurement
from ncmonitor.callbacks.trainers import run_folder_note
from ncmonitor.callbacks.trainers.averaging import Weights, check_weights
from ncmonitor.callbacks.trainers.batches import BatchToXY, Forward
from ncmonitor.callbacks.trainers.continuation import Continuation, Purpose
from ncmonitor.callbacks.trainers.monitored_keys import check_monitors, monitors_of
from ncmonitor.callbacks.trainers.precision import check_precision
from ncmonitor.callbacks.trainers.progress import Overhead
from ncmonitor.callbacks.trainers.sources import is_dry_run
from ncmonitor.callbacks.trainers.strategies import check_strategy
from ncmonitor.errors import InputError
from ncmonitor.features.pooling import Reduce
from ncmonitor.features.tap import FeatureTap
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.measurement.settings import Settings
from ncmonitor.monitor.history import history_frame, read_history
from ncmonitor.monitor.history_rows import log_keys, log_values, metric_columns
from ncmonitor.monitor.schedule import (
    Schedule,
    is_scheduled,
    scheduled_epochs,
    warn_unreachable,
)
from ncmonitor.statistics.feature_cache import DEFAULT_CACHE_BYTES
from ncmonitor.statistics.passes import AccumulatorFactory

if TYPE_CHECKING:
    import pandas as pd


class NeuralCollapse(Base):
    """Measure NC1-NC4 through training and log them to every logger.

    After each scheduled epoch the network runs once, in eval mode at fixed weights, over the clean
    training set and over the validation set. Training is bit-identical to training without the
    callback, but for what README's Limits list. Logged through ``log_dict``
    as ``nc/<split>/<metric>`` and ``nc/tpt/<name>`` against ``nc/epoch``, the number of completed
    epochs (0: the untrained network); kept in :attr:`history`, in the run's ``history.csv`` and in
    checkpoints. ``trainer.test`` and ``trainer.validate`` are measured too, against the class means
    of the training set at the same weights: of the fit, of the checkpoint, or of ``dataloader=``;
    without any, against their own, which a warning says. Works on one device and under DDP with
    any number of ranks, whose shares of the data are measured together; sharded strategies are
    refused.

    Args:
        classifier: The last linear layer by name, shell pattern or as a module, when it cannot be
            found; or ``(module, weight)``, as in :class:`~ncmonitor.features.tap.FeatureTap`.
        num_classes: Number of classes, checked against the classifier's outputs.
        schedule: ``"every_epoch"`` (the default), a period, a list of completed epochs, ``"log"``
            or ``"papyan"``; the untrained network and the last epoch are always measured, with
            ``online=True`` by default nothing else. If another callback monitors one of our keys,
            the first epoch is measured too.
        splits: What to measure: ``"train"`` first, and ``"val"``.
        layers: Inner layers to measure in the same pass, by name, pattern or as modules, or
            ``"all"``: logged as ``nc/<split>/layer/<layer>/<metric>``.
        reduce: From a layer's map to features: ``"gap"``, the mean over positions, ``"flatten"``,
            ``"tokens"``, every position a sample with a label of its own, or a function.
        dataloader: What to measure instead of the training loader, e.g. one without random
            augmentation: a loader, a function that returns one, or the key of one of several.
        batch_to_xy: From a batch to (inputs, labels), when they cannot be told.
        forward: ``forward(module, inputs)`` runs the network, when ``module(inputs)`` does not.
        cache_bytes: Memory on each rank for the features of all layers between the two passes; past
            it the network runs twice.
        precision: ``"trainer"`` runs the network as the trainer does, ``"full"`` in float32
            without autocast and TF32. Sums and metrics are float64 in either case.
        weights: ``"validation"``, the weights that Lightning validates (averaged ones under
            ``WeightAveraging``), ``"raw"``, ``"averaged"``, or a function of trainer and module
            that returns a context manager which puts them there.
        online: Also take moments of the features that the training steps themselves see, without
            a pass, logged as ``nc/train/<metric>_online``: moving weights, training mode.
        run_dir: Folder for ``history.csv`` and ``run.json``; ``None`` puts them beside the run's
            checkpoints, under another prefix in a folder of that name.
        on_error: ``"warn"`` turns a failed measurement into a row of ``nan`` and goes on;
            ``"raise"`` stops.
        prefix: First part of every log key; several monitors in one trainer need different ones.
        tpt_accuracy: Train accuracy that marks the effective start of the terminal phase.
        metrics: What to measure beside the default: ``"all"``, or names of metrics and groups;
            ``ncmonitor metrics`` lists them.
        convention: ``"per_class"``, ``"per_sample"`` or ``"papyan_code"``, as in
            :func:`~ncmonitor.measurement.measure.measure_collapse`.
        superclasses: Block of each class: asks for ``sk_residual_block``.
        ridge: λ of the squared loss's decomposition, for ``mse_l_*``.
        ignore_index: Samples (tokens) with this label are left out.
        null_seed: Also measure the training set with labels shuffled by this seed, logged as
            ``nc/null/<metric>``: what no class structure looks like.
        verbose: Print one line per measured epoch.

    Attributes:
        after_measurement: Functions of ``(trainer, pl_module, epoch)``, called once an epoch is
            in :attr:`history`.
        factories: Of what else looks at every feature of the training set, in the same pass.
        recipe: What the run is called in its record, for grouping; ``None``: nothing.

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
        schedule: Schedule | None = None,
        splits: str | Sequence[str] = ("train", "val"),
        layers: str | torch.nn.Module | Sequence[str | torch.nn.Module] = (),
        reduce: Reduce = "gap",
        dataloader: Any = None,
        batch_to_xy: BatchToXY | None = None,
        forward: Forward | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        precision: str = "trainer",
        weights: Weights = "validation",
        online: bool = False,
        run_dir: str | Path | None = None,
        on_error: str = "warn",
        prefix: str = "nc",
        tpt_accuracy: float = 0.999,
        metrics: str | list[str] = "default",
        convention: str = "per_class",
        superclasses: list[int] | None = None,
        ridge: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
        null_seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if schedule is None:
            schedule = [] if online else "every_epoch"
        if not isinstance(schedule, (str, int, np.integer)):
            schedule = list(schedule)  # a generator could be read once only
        scheduled_epochs(schedule, max_epochs=1)  # a wrong schedule should fail here
        if not prefix:
            raise InputError("prefix= is the first part of every log key, and must not be empty")
        self.schedule, self.prefix, self.verbose = schedule, prefix, verbose
        self.after_measurement: list[Callable[[pl.Trainer, pl.LightningModule, int], None]] = []
        self.factories: list[AccumulatorFactory] = []
        self._options = Options(
            classifier=classifier,
            num_classes=num_classes,
            splits=splits_of(splits),
            layers=layers_of(layers),
            reduce=reduce,
            dataloader=dataloader,
            batch_to_xy=batch_to_xy,
            forward=forward,
            cache_bytes=cache_bytes,
            precision=precision,
            weights=weights,
            online=online,
            on_error=on_error,
            settings=Settings.of(metrics, convention, superclasses, ridge, ignore_index),
            null_seed=null_seed,
        )
        self._given_dir = None if run_dir is None else Path(run_dir)
        self._run_dir = self._given_dir
        self._address, self._home = run_folder_note.new_address(), os.getpid()
        self._run_state = RunState(tpt_accuracy)
        self._measurements: FitMeasurements | None = None
        self.recipe: str | None = None
        self._wandb, self._wandb_ids = WandbRuns(), list[str]()
        self._owed: list[str] = []  # keys that other callbacks monitor and that have no value yet
        self._fits = Continuation()
        self._means = TrainMeans()  # of this run's measurements
        self._loaded = TrainMeans()  # of a checkpoint whose weights are tested

    # -- what a user may override or read ----------------------------------------------------------

    def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
        """Decide whether to measure after ``epoch`` completed epochs; override for a policy.

        The untrained network and the last epoch are measured whatever this returns.
        """
        return is_scheduled(self.schedule, epoch, trainer.max_epochs)

    @property
    def report(self) -> CollapseReport | None:
        """The last report of the training set; ``None`` before the first, or if it failed."""
        return None if self._measurements is None else self._measurements.trained.get("")

    @property
    def layer_reports(self) -> dict[str, CollapseReport]:
        """The last reports of the inner layers on the training set, by name."""
        trained = {} if self._measurements is None else self._measurements.trained
        return {layer: report for layer, report in trained.items() if layer}

    @property
    def history(self) -> pd.DataFrame:
        """Everything measured so far: one row per epoch and split, columns as in the catalogue.

        What was tested or validated at weights that this run has not measured, or against other
        class means than the training set's, comes last: its epoch is −1 where nobody knows it.
        """
        folder = None if self._run_state.rows else self.run_dir
        if folder is not None and self._measurements is None and (folder / "history.csv").is_file():
            trained = read_history(folder)  # of processes that trained for this one
            if not self._run_state.others:
                return trained
            rows = [{str(k): x for k, x in row.items()} for row in trained.to_dict("records")]
            return history_frame([*rows, *self._run_state.others])
        return history_frame([*self._run_state.rows, *self._run_state.others])

    @property
    def run_dir(self) -> Path | None:
        """Folder of this run's files: as given, else as found when training started."""
        if os.getpid() == self._home:  # a child leaves the note, and must not take it
            self._run_dir = run_folder_note.collect(self._address) or self._run_dir
        return self._run_dir

    @run_dir.setter
    def run_dir(self, folder: str | Path) -> None:
        self._given_dir = self._run_dir = Path(folder)

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints: several monitors differ by their prefix."""
        own = self.prefix != "nc"  # else by the class alone, as without this
        return self._generate_state_key(prefix=self.prefix) if own else super().state_key

    @property
    def overhead(self) -> Overhead:
        """What measuring has cost in this process: seconds, and their share of the fit."""
        return self._run_state.overhead

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse at once what could only fail later."""
        self._fits.enter(trainer, stage)
        self._loaded = TrainMeans()
        if stage != "fit":
            return
        self._measurements = None
        check_strategy(trainer)
        self._check_folder(trainer)
        check_precision(trainer, self._options.precision)
        scheduled_epochs(self.schedule, trainer.max_epochs)
        check_monitors(trainer, self.prefix)
        if trainer.world_size > 1:  # every rank logs the same number: nothing to synchronise
            said = rf"It is recommended to use `self\.log\('{re.escape(self.prefix)}/"
            warnings.filterwarnings("ignore", message=said)
        if not grows_later(pl_module):
            self._check_model(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what only a complete model shows; its own ``setup`` has run by now."""
        warn_unreachable(self.schedule, trainer.max_epochs)
        self._check_model(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the classifier, open the files and measure the untrained network."""
        epoch = trainer.current_epoch
        goes_on = self._fits.goes_on(trainer, pl_module)
        self._run_state.begin(epoch, resumed=goes_on)
        if not goes_on:
            self._means.clear()
        if self._fits.lost(trainer):
            warnings.warn(
                "the checkpoint's weights are loaded, but the trainer starts at epoch 0 (as after "
                "a LearningRateFinder or BatchSizeFinder), and so does the history: run the finder "
                "apart, Tuner(trainer).lr_find(model), to go on where the checkpoint is",
                stacklevel=2,
            )
        self._fits.begin(trainer, pl_module)
        measurement = Measurement(trainer, pl_module, self._options)
        measurement.probe()
        if "val" in self._options.splits and not trainer.enable_validation:
            warnings.warn("no validation data: only the training set is measured", stacklevel=2)
        self._measurements = self._opened(trainer, measurement)
        before = self._wandb_ids if goes_on else []
        for line in self._wandb.resume(before, self._run_state.rows):
            print(f"NeuralCollapse: {line}")
        self._wandb_ids = self._wandb.ids or before
        if self._options.online:
            self._measurements.listen()
        known = self._run_state.epochs
        if not known or (epoch not in known and self._is_scheduled(epoch, trainer)):
            self._measure_outside(trainer, pl_module, epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the training step, in online mode."""
        if self._measurements is not None and self._measurements.online is not None:
            self._measurements.online.before()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in what the training step has seen, in online mode."""
        if self._measurements is not None and self._measurements.online is not None:
            self._measurements.online.after(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Advance the weight-decay clock by the step that is about to be made."""
        if self._measurements is not None:
            self._run_state.step(optimizer, self._measurements.measurement.parameter)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if this epoch is scheduled, and log where monitors can see it."""
        if self._measurements is None:
            return
        epoch = trainer.current_epoch + 1
        rows = self._measurements.measure_online(epoch)
        last = epoch == trainer.max_epochs
        due = last or bool(self._owed) or self._is_scheduled(epoch, trainer)
        if due:
            rows += self._measurements.measure(epoch, pl_module.print if self.verbose else None)
        values = log_values(rows, self.prefix)
        if rows and not trainer.barebones:
            log_in_epoch(pl_module, values)
        self._settle(trainer, values)
        if due:
            self._tell(trainer, pl_module, epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the last epoch if early stopping or ``max_steps`` made it the last."""
        if self._measurements is None:
            return
        if trainer.current_epoch > max(self._run_state.epochs, default=-1):
            self._measure_outside(trainer, pl_module, trainer.current_epoch)
        self._run_state.end()
        self._measurements.finish()
        self._wandb.finish(self._run_state.rows)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off a module whose training step has failed; what there is goes to W&B."""
        self._fits.leave(trainer)
        self._wandb.finish(self._run_state.rows)
        if self._measurements is not None and self._measurements.online is not None:
            self._measurements.online.stop()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so if Lightning skipped the fit because there is nothing to train on."""
        if self._measurements is None and trainer.num_training_batches == 0:
            raise InputError(
                "the training loader is empty, so nothing was trained or measured: expected at "
                "least one batch (drop_last=True drops a data set smaller than one batch)"
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the trainer and its module: a callback may outlive them."""
        self._fits.leave(trainer)
        if self._measurements is not None and self._measurements.measurement.trainer is trainer:
            self._measurements.release()
        self._wandb = WandbRuns()
        for name in LENT:
            vars(self).pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit under way: it is not for another process."""
        kept = {name: value for name, value in vars(self).items() if name not in LENT}
        return kept | {"_measurements": None, "_wandb": WandbRuns()}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the test set, as ``nc/test/...``."""
        self._measure_held_out(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what ``trainer.validate`` validates; a fit's own validation is none of ours."""
        if trainer.state.fn == "validate" and "val" in self._options.splits:
            self._measure_held_out(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how far the weights have been trained, for the rows of a test."""
        self._fits.note(checkpoint, self.state_key)

    def state_dict(self) -> dict[str, Any]:
        """Return history and clocks as plain values, which load with ``weights_only=True``."""
        settings = self._options.settings
        how = {"convention": settings.convention.name, "ridge": settings.ridge}
        rest = {"how": how, "wandb": list(self._wandb_ids), "means": self._means.state_dict()}
        return self._fits.marked(self._run_state.state_dict() | rest)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue history and clocks where a checkpoint left them, if a fit continues from it."""
        purpose = self._fits.purpose(state_dict)
        if purpose is Purpose.UNDO:
            return  # nothing of ours has changed since
        if purpose is Purpose.LOOK:
            self._loaded.load_state_dict(state_dict.get("means"))
            return
        self._means.load_state_dict(state_dict.get("means"))
        self._run_state.load_state_dict(state_dict)
        self._wandb_ids = list(state_dict.get("wandb", ()))
        before = state_dict.get("how", {}).get("convention")
        now = self._options.settings.convention.name
        if before not in (None, now):
            warnings.warn(
                f"the history so far has convention={before!r}, from here on it has {now!r}: "
                "its numbers do not compare",
                stacklevel=2,
            )

    # -- the work ----------------------------------------------------------------------------------

    def _check_model(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        options = self._options
        check_weights(trainer, module, options.weights)
        FeatureTap(module, options.classifier, layers=options.layers, reduce=options.reduce)

    def _opened(self, trainer: pl.Trainer, measurement: Measurement) -> FitMeasurements:
        """Open the run's files and tell the loggers what will come and how it is measured."""
        dry, prefix, ranks = is_dry_run(trainer), self.prefix, measurement.ranks
        names = self._options.settings.names
        self._run_state.metrics = metric_columns(names, measurement.num_classes)
        with ranks.together():  # reads the user's loaders
            how = facts(measurement) | {
                "schedule": str(self.schedule), "prefix": prefix, "recipe": self.recipe
            }  # fmt: skip
            keys = keys_to_come(measurement, prefix, self._run_state.metrics)
        check_monitors(trainer, prefix, monitorable(keys, prefix))
        self._owed = monitors_of(trainer, prefix)
        if not dry:
            later = log_keys(prefix, ["test"], self._run_state.metrics)
            self._wandb = tell_loggers(trainer, prefix, keys | later, how)
        self._run_dir = self._given_dir or default_run_dir(trainer, prefix)
        log = RunLog(self._run_dir, active=trainer.is_global_zero and not dry)
        with ranks.together():  # only rank zero finds out that it cannot write
            log.start(self._run_state.rows, how, trainer.max_epochs or -1, self._run_state.metrics)
        if log.active:
            run_folder_note.leave(self._address, self._run_dir, trainer)
        return FitMeasurements(measurement, self._run_state, log, self.factories, self._means)

    def _is_scheduled(self, epoch: int, trainer: pl.Trainer) -> bool:
        """Ask the user's policy, which need not be the same on every rank."""
        assert self._measurements is not None  # made by on_train_start
        ranks = self._measurements.measurement.ranks
        with ranks.together():
            wanted = self.should_measure(epoch, trainer)
        return bool(ranks.gather(wanted)[0])

    def _measure_outside(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        """Measure outside an epoch: ``log_dict`` and the bar's ``print`` drop what they get."""
        assert self._measurements is not None
        say = print if self.verbose and trainer.is_global_zero else None
        values = log_values(self._measurements.measure(epoch, say), self.prefix)
        log_outside(trainer, values, epoch)
        self._tell(trainer, module, epoch)

    def _measure_held_out(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        held_out = HeldOut(
            trainer,
            module,
            self._options,
            self._run_state,
            run=self._means,
            loaded=self._loaded,
            measurements=self._measurements,
            at=self._fits.at,
        )
        rows = held_out.measure()
        if rows and not trainer.barebones:
            values = log_values(rows, self.prefix)
            log_in_epoch(module, held_out_values(values, self.prefix))

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        with excused("the onset is missing from W&B"):
            self._wandb.measured(self._run_state.rows)
        for listener in self.after_measurement:
            if self._options.on_error == "raise":
                listener(trainer, module, epoch)
                continue
            with excused(f"a listener of epoch {epoch} has failed"):
                listener(trainer, module, epoch)

    def _settle(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Give monitors what they need in the first epoch: if that failed, the value before it."""
        for key in self._owed:
            if key not in values:
                split, _, name = key.removeprefix(f"{self.prefix}/").rpartition("/")
                known = self._run_state.last_value("train" if split == "tpt" else split, name)
                if not math.isnan(known):
                    trainer.callback_metrics[key] = torch.tensor(known)
        self._owed = [key for key in self._owed if key not in values]

    def _check_folder(self, trainer: pl.Trainer) -> None:
        """Refuse two monitors that would write the same table."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            mine = isinstance(other, NeuralCollapse) and other is not self
            if mine and self._given_dir is not None and other._given_dir == self._given_dir:
                raise InputError(
                    f"two NeuralCollapse callbacks write to run_dir={str(self._given_dir)!r}: give "
                    "each its own, or leave run_dir out"
                )
