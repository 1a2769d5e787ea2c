"""What a trainer tests or validates outside of a fit, measured at whatever weights it has."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import pytorch_lightning as pl

from ncmonitor.callbacks.fit_measurements import FitMeasurements
from ncmonitor.callbacks.options import Options
from ncmonitor.callbacks.run_state import RunState
from ncmonitor.callbacks.train_means import LIMIT, Means, TrainMeans, weights_key
from ncmonitor.callbacks.trainer_measurement import Measurement
from ncmonitor.callbacks.trainers import loaders
from ncmonitor.callbacks.trainers.continuation import UNKNOWN
from ncmonitor.callbacks.trainers.precision import check_precision
from ncmonitor.callbacks.trainers.sources import Source, given_source, gives_loader, kind_of
from ncmonitor.callbacks.trainers.strategies import check_strategy
from ncmonitor.errors import said_once
from ncmonitor.monitor.history_rows import Row, history_row, layer_split, metric_columns
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.process_group import SINGLE_PROCESS

_NO_MEANS: Final = "no class means of a training set come with these weights"
_OTHER_WEIGHTS: Final = (
    "the class means in the checkpoint are not of its own weights, as it was saved before that "
    "epoch was measured (ModelCheckpoint(save_on_train_epoch_end=True) saves after it)"
)
_NOT_KEPT: Final = (
    "those of earlier epochs are kept where the trainer saves checkpoints, up to "
    f"{LIMIT // 2**20} MiB in all"
)


class HeldOut:
    """Measures the loaders of one ``trainer.test`` or ``trainer.validate``.

    The nearest class means, in ``nc4_disagreement`` and the ``ncc`` metrics, are those of the
    training set at the same weights: kept from the fit, or in the checkpoint, or measured now on
    ``dataloader=``. Where there are none they are the split's own, which a warning says.

    Args:
        trainer: Tests or validates.
        module: Its module.
        options: The user's.
        run_state: Keeps the rows.
        run: Train means of the fit in this process.
        loaded: Train means of the checkpoint that is tested.
        measurements: The fit in this process; ``None`` without.
        at: Completed epochs and steps of the weights, where a checkpoint tells.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        options: Options,
        run_state: RunState,
        *,
        run: TrainMeans,
        loaded: TrainMeans,
        measurements: FitMeasurements | None,
        at: tuple[int, int],
    ) -> None:
        self.trainer, self.module, self.options = trainer, module, options
        self._run_state, self._measurements = run_state, measurements
        self._run, self._loaded = run, loaded
        self._epoch, self._step = at
        self._mine = False  # whether the weights are those of a measurement of this very run

    def measure(self) -> list[Row]:
        """Return the rows, the same on every rank; none, with a warning, if that cannot be."""
        try:
            check_strategy(self.trainer)
            check_precision(self.trainer, self.options.precision)
            measurement, references = self._ready()
            with measurement.ranks.together():
                sources = measurement.sources()
        except Exception as error:
            self._excuse(f"the {kind_of(self.trainer)} set is not measured", error)
            return []
        rows: list[Row] = []
        for split, source in sources.items():
            rows += self._rows(measurement, split, source, references)
        agreed: list[Row] = measurement.ranks.gather(rows)[0]
        self._file(agreed, trained=bool(references))
        return agreed

    def _ready(self) -> tuple[Measurement, Mapping[str, ClassMoments]]:
        """Find the classifier and the class means for these weights."""
        measurement = Measurement(self.trainer, self.module, self.options)
        weights = weights_key(measurement.see())
        means = self._run.find(weights) or self._loaded.find(weights)
        known = self._run.measured_at(weights) or (means and (means.epoch, means.step))
        mine = self._measurements is not None and self._run.measured_at(weights) is not None
        have = measurement.ranks.gather((means is not None, mine))  # no rank goes another way
        means = means if all(each for each, _ in have) else None
        self._mine = all(each for _, each in have)
        self._epoch, self._step = known or (self._epoch, self._step)
        if self._mine and self._measurements is not None:
            measurement = self._measurements.measurement
            measurement.move(self.trainer, self.module)
        else:
            measurement.probe()
            self._warn_of_streams(measurement)
        return measurement, self._references(measurement, means)

    def _warn_of_streams(self, measurement: Measurement) -> None:
        if measurement.ranks.rank == 0:
            made = {
                split: make(None, SINGLE_PROCESS) for split, make in measurement.sources().items()
            }
            loaders.warn_streams_per_rank(made, measurement.ranks.size)

    def _references(
        self, measurement: Measurement, means: Means | None
    ) -> Mapping[str, ClassMoments]:
        """Return the moments of the training set by layer; none, with a warning."""
        if means is not None and dict(means.about) == measurement.about:
            return self._all_layers(measurement, means.moments)
        why = _OTHER_WEIGHTS if self._loaded else _NO_MEANS
        if means is not None:
            why = f"the class means kept are of {dict(means.about)}, not of {measurement.about}"
        elif self._mine:
            why = f"the class means of epoch {self._epoch} were not kept ({_NOT_KEPT})"
        if gives_loader(self.options):
            try:
                with measurement.ranks.together():
                    source = given_source(self.options)
                reports = measurement.measure(source)
            except Exception as error:
                self._excuse("dataloader= is not measured at these weights", error)
                why = "dataloader= could not be measured"
            else:
                return {layer: report.moments for layer, report in reports.items()}
        kind = kind_of(self.trainer)
        self._warn(
            f"the {kind} set is measured against its own class means, and so are nc4_disagreement "
            f"and the ncc metrics, which elsewhere compare to those of the training set: {why}. "
            "Pass NeuralCollapse(dataloader=train_loader) to measure them at these weights first"
        )
        return {}

    def _all_layers(
        self, measurement: Measurement, moments: Mapping[str, ClassMoments]
    ) -> Mapping[str, ClassMoments]:
        missing = [layer for layer in measurement.layers if layer not in moments]
        if missing:
            self._warn(
                f"no class means of the training set are kept of the layers {missing}: their "
                f"{kind_of(self.trainer)} features are measured against their own"
            )
        return moments

    def _rows(
        self,
        measurement: Measurement,
        split: str,
        source: Source,
        references: Mapping[str, ClassMoments],
    ) -> list[Row]:
        started, said = time.perf_counter(), set[str]()
        try:
            with said_once(said):
                reports = measurement.measure(source, references)
        except Exception as error:
            self._excuse(f"neural collapse of {split} is nan", error)
            reports = {}
        seconds = time.perf_counter() - started
        metrics = metric_columns(self.options.settings.names, measurement.num_classes)
        names = {"": split, **{each: layer_split(split, each) for each in measurement.layers}}
        return [
            history_row(self._epoch, self._step, name, reports.get(layer), {}, taken, metrics)
            for (layer, name), taken in zip(
                names.items(), [seconds, *[0.0] * len(measurement.layers)], strict=True
            )
        ]

    def _file(self, rows: Sequence[Row], *, trained: bool) -> None:
        """Add the rows to those of the run, if they belong there, and to its table.

        What a fit has measured of its own validation set stays as it is.
        """
        run_state, measurements = self._run_state, self._measurements
        if not (self._mine and trained) or measurements is None:
            new = {(row["epoch"], row["split"]) for row in rows}
            kept = [row for row in run_state.others if (row["epoch"], row["split"]) not in new]
            run_state.others = [*kept, *rows]
            return
        if self.trainer.state.fn == "validate":
            known = {(row["epoch"], row["split"]) for row in run_state.rows}
            rows = [row for row in rows if (row["epoch"], row["split"]) not in known]
        if not rows:
            return
        if run_state.insert(rows):
            measurements.log.append(rows)
        else:
            measurements.log.rewrite()

    def _excuse(self, what: str, error: Exception) -> None:
        if self.options.on_error == "raise":
            raise error
        self._warn(f"{what}: {type(error).__name__}: {error}")

    def _warn(self, message: str) -> None:
        if self.trainer.is_global_zero:
            warnings.warn(message, RuntimeWarning, stacklevel=2)


def held_out_values(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return what to log of held-out data: no epoch where it is not known."""
    epoch = f"{prefix}/epoch"
    return {k: value for k, value in values.items() if (k, value) != (epoch, UNKNOWN)}
