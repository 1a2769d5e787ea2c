"""The callback that measures how a network answers to groups that act on its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytorch_lightning as pl
import torch

from ncmonitor.callbacks.base import LENT, Base
from ncmonitor.callbacks.fit_measurements import excused
from ncmonitor.callbacks.held_out import held_out_values
from ncmonitor.callbacks.loggers.logged import log_in_epoch, log_outside
from ncmonitor.callbacks.logging_setup import grows_later
from ncmonitor.callbacks.neural_collapse import NeuralCollapse
from ncmonitor.callbacks.options import SPLITS, Options, layers_of, splits_of
from ncmonitor.callbacks.run_log import default_run_dir
from ncmonitor.callbacks.symmetry.fit_symmetry import FitSymmetry, lines
from ncmonitor.callbacks.symmetry.monitored_symmetry import SymmetryMonitors
from ncmonitor.callbacks.symmetry.parameter_watch import ParameterWatch
from ncmonitor.callbacks.symmetry.trainer_symmetry import SymmetryMeasurement
from ncmonitor.callbacks.train_means import weights_key
from ncmonitor.callbacks.trainers.averaging import Weights, check_weights
from ncmonitor.callbacks.trainers.batches import BatchToXY, Forward
from ncmonitor.callbacks.trainers.continuation import Continuation, Purpose
from ncmonitor.callbacks.trainers.precision import check_precision
from ncmonitor.callbacks.trainers.progress import Overhead
from ncmonitor.callbacks.trainers.sources import is_dry_run, kind_of
from ncmonitor.callbacks.trainers.strategies import check_strategy
from ncmonitor.errors import InputError, check_whole
from ncmonitor.features.pooling import Reduce
from ncmonitor.features.tap import FeatureTap
from ncmonitor.monitor.schedule import (
    Schedule,
    is_scheduled,
    scheduled_epochs,
    warn_unreachable,
)
from ncmonitor.monitor.symmetry_table import symmetry_frame
from ncmonitor.symmetry.groups.builders import Flows, Groups, flows_of, groups_of
from ncmonitor.symmetry.rows import keys_to_come, log_values
from ncmonitor.symmetry.transformed_outputs import TransformedOutputs
from ncmonitor.wandb_tools.axes import define_axes, record_measurement

if TYPE_CHECKING:
    import pandas as pd

#: What is taken from the ``NeuralCollapse`` of the same trainer where it is not given.
_SHARED: Final = (
    "classifier", "num_classes", "dataloader", "batch_to_xy", "forward", "precision", "weights",
    "settings",
)  # fmt: skip


class SymmetryMonitor(Base):
    """Measure symmetry through training: of inputs under groups, and of the parameters.

    At each scheduled epoch the network runs, in eval mode at fixed weights, over a fixed subset of
    the training and validation data: once as they are, once under each element of each group, and
    twice for each flow. Training is bit-identical to training without the callback. Logged as
    ``nc/<split>/symmetry/<group>/<metric>``, with the element's name at the end for one element,
    and ``nc/parameters/<metric>``, against ``nc/epoch``; kept in :attr:`history`, in
    ``symmetry.csv`` in the run's folder and in checkpoints. ``trainer.test`` and
    ``trainer.validate`` are measured too, at whatever weights. Works on one device and under DDP.

    Groups act on the inputs that the network gets, on their device: after the transforms of the
    data set, normalisation included, so that a border filled with 0 has the colour that 0 stands
    for there.

    Args:
        groups: A :class:`~ncmonitor.symmetry.Group`, the name of one in :mod:`ncmonitor.symmetry`
            that needs no arguments (``"rotations90"``), or several of these.
        flows: The same of flows, for Lie derivatives (``"translation_flow"``).
        exclude: Classes whose label an element changes, by the element's name: ``{"rot180": [6,
            9]}``. Their samples are left out under it.
        samples: Size of the subset of each split; ``None``: all of it.
        seed: Of that choice.
        schedule: As in ``NeuralCollapse``. The untrained network and the last epoch are always
            measured.
        splits: ``"train"``, ``"val"`` or both.
        layers: Inner layers to measure too, as in ``NeuralCollapse``.
        reduce: From a layer's map to features, likewise.
        parameters: Also follow what symmetry demands of the parameters: the decay of the
            classifier's mean row under SGD, and the balance of neighbouring layers.
        classifier: As in ``NeuralCollapse``. This and the next six are, where they are not given,
            those of the ``NeuralCollapse`` with the same prefix in this trainer, if there is one.
        num_classes: Likewise.
        dataloader: Likewise.
        batch_to_xy: Likewise.
        forward: Likewise.
        precision: Likewise; ``"trainer"`` without one.
        weights: Likewise; ``"validation"`` without one.
        run_dir: Folder for ``symmetry.csv``; ``None``: that of ``NeuralCollapse``, or as there.
        on_error: ``"warn"`` turns a failed measurement into ``nan`` and goes on; ``"raise"`` stops.
        prefix: First part of every log key.
        verbose: Print a line per group and measured epoch.

    Raises:
        InputError: Before the first training step, if a group does not fit the inputs, or the
            model or data cannot be measured.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
        >>> callbacks = [NeuralCollapse(), SymmetryMonitor("rotations90")]
        >>> trainer = Trainer(callbacks=callbacks, logger=False)
    """

    def __init__(
        self,
        groups: Groups,
        *,
        flows: Flows = (),
        exclude: Mapping[str, Collection[int]] | None = None,
        samples: int | None = 2000,
        seed: int = 0,
        schedule: Schedule = "log",
        splits: str | Sequence[str] = SPLITS,
        layers: str | torch.nn.Module | Sequence[str | torch.nn.Module] = (),
        reduce: Reduce = "gap",
        parameters: bool = True,
        classifier: str | torch.nn.Module | None = None,
        num_classes: int | None = None,
        dataloader: Any = None,
        batch_to_xy: BatchToXY | None = None,
        forward: Forward | None = None,
        precision: str | None = None,
        weights: Weights | None = None,
        run_dir: str | Path | None = None,
        on_error: str = "warn",
        prefix: str = "nc",
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, (str, int, np.integer)):
            schedule = list(schedule)  # a generator could be read once only
        scheduled_epochs(schedule, max_epochs=1)  # a wrong schedule should fail here
        if not prefix:
            raise InputError("prefix= is the first part of every log key, and must not be empty")
        check_whole("seed", seed)
        self.groups, self.flows = groups_of(groups, exclude), flows_of(flows)
        TransformedOutputs(self.groups, self.flows)  # checks their names
        self.schedule, self.prefix, self.verbose = schedule, prefix, verbose
        self.splits, self.parameters = splits_of(splits), parameters
        if not self.splits or not set(self.splits) <= set(SPLITS):
            raise InputError(f"splits= takes 'train', 'val' or both, but is {splits!r}")
        self._given = {
            "classifier": classifier, "num_classes": num_classes, "dataloader": dataloader,
            "batch_to_xy": batch_to_xy, "forward": forward, "precision": precision,
            "weights": weights, "layers": layers_of(layers), "reduce": reduce,
            "on_error": on_error, "samples": samples, "samples_seed": int(seed),
            "splits": SPLITS if "val" in self.splits else ("train",),
        }  # fmt: skip
        self._options = self._options_with(None)
        self._given_dir = None if run_dir is None else Path(run_dir)
        self.run_dir = self._given_dir
        self._rows: list[dict[str, float | int | str]] = []
        self._others: list[dict[str, float | int | str]] = []  # of weights not of this run
        self._loaded: list[dict[str, float | int | str]] = []
        self._measurements: FitSymmetry | None = None
        self._monitors = SymmetryMonitors(prefix)
        self._watched: Mapping[str, Any] | None = None  # what a checkpoint knows of the parameters
        self._fits = Continuation()

    # -- what a user may override or read ----------------------------------------------------------

    def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
        """Decide whether to measure after ``epoch`` completed epochs; override for a policy.

        The untrained network and the last epoch are measured whatever this returns.
        """
        return is_scheduled(self.schedule, epoch, trainer.max_epochs, endless=True)

    @property
    def history(self) -> pd.DataFrame:
        """Everything so far, as :func:`~ncmonitor.monitor.symmetry_table.read_symmetry` has it."""
        return symmetry_frame([*self._rows, *self._others])

    @property
    def overhead(self) -> Overhead:
        """What measuring has cost in this process: seconds, and their share of the fit."""
        return Overhead() if self._measurements is None else self._measurements.overhead

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints: several differ by groups and prefix."""
        names = "+".join([g.name for g in self.groups] + [f.name for f in self.flows])
        return self._generate_state_key(prefix=self.prefix, groups=names)

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse at once what could only fail later."""
        self._fits.enter(trainer, stage)
        self._options = self._options_with(_companion(trainer, self.prefix))
        if stage != "fit":
            return
        self._measurements = None
        check_strategy(trainer)
        self._check_folder(trainer)
        check_precision(trainer, self._options.precision)
        scheduled_epochs(self.schedule, trainer.max_epochs, endless=True)
        self._monitors.check(trainer)
        if not grows_later(pl_module):
            self._check_model(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what only a complete model shows; its own ``setup`` has run by now."""
        warn_unreachable(self.schedule, trainer.max_epochs)
        self._check_model(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the groups, open the file and measure the untrained network."""
        epoch = trainer.current_epoch
        goes_on = self._fits.goes_on(trainer, pl_module)
        kept = (self._loaded if self._fits.resumed else self._rows) if goes_on else []
        self._rows = [row for row in kept if int(row["epoch"]) <= epoch]
        if not goes_on:
            self._others = []
        self._fits.begin(trainer, pl_module)
        measurement = SymmetryMeasurement(
            trainer, pl_module, self._options, groups=self.groups, flows=self.flows
        )
        if "train" not in self.splits and not trainer.enable_validation:
            raise InputError("splits='val', but there is no validation data: nothing to measure")
        measurement.probe()
        self._measurements = self._opened(trainer, measurement)
        self._tell(trainer, self._measurements)
        known = {int(row["epoch"]) for row in self._rows}
        if not known or (epoch not in known and self._is_scheduled(epoch, trainer)):
            self._measure_outside(trainer, epoch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Follow the step that is about to be made."""
        if self._measurements is not None and self._measurements.watch is not None:
            self._measurements.watch.step(trainer, optimizer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if this epoch is scheduled, and log where monitors can see it."""
        if self._measurements is None:
            return
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if not (last or self._monitors.owed or self._is_scheduled(epoch, trainer)):
            return
        rows = self._measurements.measure(epoch)
        values = log_values(rows, self.prefix)
        if not trainer.barebones:
            log_in_epoch(pl_module, values)
        self._monitors.settle(trainer, values)
        self._say(pl_module.print, rows)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the last epoch if early stopping or ``max_steps`` made it the last."""
        if self._measurements is None:
            return
        if trainer.current_epoch > max((int(row["epoch"]) for row in self._rows), default=-1):
            self._measure_outside(trainer, trainer.current_epoch)
        self._measurements.finish()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the test set, as ``nc/test/symmetry/...``."""
        self._measure_held_out(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what ``trainer.validate`` validates; a fit's own validation is none of ours."""
        if trainer.state.fn == "validate" and "val" in self.splits:
            self._measure_held_out(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how far the weights have been trained, for the rows of a test."""
        self._fits.note(checkpoint, self.state_key)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note that the run is over."""
        self._fits.leave(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the trainer and its module: a callback may outlive them."""
        self._fits.leave(trainer)
        if self._measurements is not None and self._measurements.measurement.trainer is trainer:
            self._measurements.measurement.release()
        for name in LENT:
            vars(self).pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the parameters' law as values that load with ``weights_only``."""
        watch = None if self._measurements is None else self._measurements.watch
        watched = self._watched if watch is None else watch.state_dict()
        rows = [dict(row) for row in self._rows]
        return self._fits.marked({"rows": rows, "parameters": watched})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint left, if a fit continues from it."""
        if self._fits.purpose(state_dict) is not Purpose.RESUME:
            return
        self._loaded = [dict(row) for row in state_dict["rows"]]
        self._watched = state_dict["parameters"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit under way: it is not for another process."""
        kept = {name: value for name, value in vars(self).items() if name not in LENT}
        return kept | {"_measurements": None}

    # -- the work ----------------------------------------------------------------------------------

    def _options_with(self, companion: NeuralCollapse | None) -> Options:
        shared = {} if companion is None else {n: getattr(companion._options, n) for n in _SHARED}
        own = {name: value for name, value in self._given.items() if value is not None}
        return Options(**(shared | {"samples": None} | own))

    def _check_model(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        options = self._options
        check_weights(trainer, module, options.weights)
        FeatureTap(module, options.classifier, layers=options.layers, reduce=options.reduce)

    def _check_folder(self, trainer: pl.Trainer) -> None:
        """Refuse two that would write the same table."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(other, SymmetryMonitor) or other is self:
                continue
            shared = self._given_dir is not None and other._given_dir == self._given_dir
            if shared or other.prefix == self.prefix:
                raise InputError(
                    "two SymmetryMonitor callbacks would write one table and log the same keys: "
                    "give one of them all groups, SymmetryMonitor(['flips', 'rotations90']), or "
                    "each its own prefix="
                )

    def _opened(self, trainer: pl.Trainer, measurement: SymmetryMeasurement) -> FitSymmetry:
        companion, dry = _companion(trainer, self.prefix), is_dry_run(trainer)
        given = self._given_dir or (None if companion is None else companion._given_dir)
        self.run_dir = given or default_run_dir(trainer, self.prefix)
        watch = None
        if self.parameters:
            watch = ParameterWatch(measurement.parameter, measurement.module)
            resumed = self._fits.resumed and not self._fits.lost(trainer)
            if resumed and self._watched is not None:
                watch.load_state_dict(self._watched)
            watch.begin(trainer)
        folder = self.run_dir if trainer.is_global_zero and not dry else None
        return FitSymmetry(measurement, self.splits, self._rows, watch, folder)

    def _is_scheduled(self, epoch: int, trainer: pl.Trainer) -> bool:
        """Ask the user's policy, which need not be the same on every rank."""
        assert self._measurements is not None  # made by on_train_start
        ranks = self._measurements.measurement.ranks
        with ranks.together():
            wanted = self.should_measure(epoch, trainer)
        return bool(ranks.gather(wanted)[0])

    def _measure_outside(self, trainer: pl.Trainer, epoch: int) -> None:
        assert self._measurements is not None
        # WeightAveraging may have put the average into the module for good by now.
        rows = self._measurements.measure(epoch, raw=epoch == 0 or not _averages(trainer))
        values = log_values(rows, self.prefix)
        self._monitors.remember(values)
        log_outside(trainer, values, epoch)
        self._say(print if trainer.is_global_zero else None, rows)

    def _measure_held_out(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure what is tested or validated; a warning says why that cannot be."""
        try:
            rows = self._held_out_rows(trainer, module)
        except Exception as error:
            if self._options.on_error == "raise":
                raise
            if trainer.is_global_zero:
                warnings.warn(
                    f"the symmetry of the {kind_of(trainer)} set is not measured: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return
        if rows and not trainer.barebones:
            log_in_epoch(module, held_out_values(log_values(rows, self.prefix), self.prefix))

    def _held_out_rows(
        self, trainer: pl.Trainer, module: pl.LightningModule
    ) -> list[dict[str, float | int | str]]:
        check_strategy(trainer)
        check_precision(trainer, self._options.precision)
        measurement = SymmetryMeasurement(
            trainer, module, self._options, groups=self.groups, flows=self.flows
        )
        weights, measurements = weights_key(measurement.see()), self._measurements
        if measurements is not None and weights in measurements.known:
            measurements.measurement.move(trainer, module)
            return measurements.measure_held_out(*measurements.known[weights])
        measurement.probe()
        measurements = FitSymmetry(measurement, self.splits, self._others, None, None)
        return measurements.measure_held_out(*self._fits.at)

    def _tell(self, trainer: pl.Trainer, measurements: FitSymmetry) -> None:
        """Check who monitors what, and set up the charts."""
        with measurements.measurement.ranks.together():  # reads the user's loaders
            keys = keys_to_come(measurements.to_come(), self.prefix)
        self._monitors.know(trainer, keys)
        if is_dry_run(trainer) or not trainer.is_global_zero:
            return
        with excused("the W&B charts of symmetry are not set up"):
            define_axes(trainer.loggers, f"{self.prefix}/epoch", keys)
            record_measurement(trainer.loggers, measurements.facts, "ncmonitor_symmetry")

    def _say(self, say: Callable[[str], object] | None, rows: Sequence[Any]) -> None:
        if self.verbose and say is not None:
            for line in lines(rows):
                say(line)


def _averages(trainer: pl.Trainer) -> bool:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(cls.__name__ == "WeightAveraging" for c in callbacks for cls in type(c).__mro__)


def _companion(trainer: pl.Trainer, prefix: str) -> NeuralCollapse | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = [c for c in callbacks if isinstance(c, NeuralCollapse)]
    return next((each for each in monitors if each.prefix == prefix), None)
