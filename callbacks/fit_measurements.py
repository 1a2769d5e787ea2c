"""One fit under watch: what is measured when asked, kept, written and told."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from ncmonitor.callbacks.options import Options
from ncmonitor.callbacks.run_log import RunLog
from ncmonitor.callbacks.run_state import RunState
from ncmonitor.callbacks.train_means import TrainMeans, weights_key
from ncmonitor.callbacks.trainer_measurement import Measurement, Reports
from ncmonitor.callbacks.trainers.batches import default_batch_to_xy
from ncmonitor.callbacks.trainers.online import Online, check_online
from ncmonitor.callbacks.trainers.sources import Source, is_dry_run
from ncmonitor.errors import InputError, MeasurementError, said_once
from ncmonitor.measurement.limits import class_facts
from ncmonitor.measurement.report import CollapseReport
from ncmonitor.monitor.console import console_lines
from ncmonitor.monitor.history import NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.monitor.history_rows import Row, layer_split
from ncmonitor.redact import reason_of
from ncmonitor.statistics.passes import AccumulatorFactory

#: So many epochs are named in the summary of what failed.
_NAMED: Final = 10


class FitMeasurements:
    """Measures a trainer's splits, and keeps and writes what comes out.

    Every rank takes every step; rank zero's rows are everybody's.

    Args:
        measurement: Of the trainer and module of this fit.
        run_state: Keeps the rows.
        log: Writes them.
        factories: Of what else is to see the features of the training set.
        means: Keeps the class means of the training set.

    Attributes:
        trained: The last reports of the training set, by layer; empty if they failed.
    """

    def __init__(
        self,
        measurement: Measurement,
        run_state: RunState,
        log: RunLog,
        factories: Sequence[AccumulatorFactory],
        means: TrainMeans,
    ) -> None:
        self.measurement, self.run_state, self.log = measurement, run_state, log
        self._factories, self._means = factories, means
        self.trained: Reports = {}
        self.online: Online | None = None
        self._failures: dict[tuple[str, str], list[int]] = {}
        self._said: set[str] = set()
        self._noted = False

    @property
    def options(self) -> Options:
        """The user's."""
        return self.measurement.options

    def measure(self, epoch: int, say: Callable[[str], None] | None = None) -> list[Row]:
        """Measure every split after ``epoch`` completed epochs and return the rows.

        Args:
            epoch: Completed epochs.
            say: Prints a line; ``None`` for silence.
        """
        position = len(self.run_state.epochs)
        rows: list[Row] = []
        for split, source in self._sources(epoch).items():
            rows += self._rows(split, source, epoch)
        if self.options.null_seed is not None:
            rows.append(self._row(epoch, NULL_SPLIT, self._null(epoch)))
        rows = self._keep(rows)
        if say is not None:
            for line in console_lines(rows[0], position):
                say(line)
        return rows

    def measure_online(self, epoch: int) -> list[Row]:
        """Return the row of what the epoch's own training steps have seen, if anybody listened."""
        if self.online is None:
            return []
        try:
            report = self.online.report(self.measurement.ranks)
        except Exception as error:
            self._excuse(ONLINE_SPLIT, epoch, error)
            return self._keep([self._row(epoch, ONLINE_SPLIT, None)])
        return self._keep([self._row(epoch, ONLINE_SPLIT, report)])

    def listen(self) -> None:
        """Listen to the training steps from now on.

        Raises:
            InputError: If the classifier cannot be heard.
        """
        measurement, options = self.measurement, self.options
        check_online(measurement.module, measurement.classifier)
        self.online = Online(
            measurement.module,
            measurement.classifier,
            measurement.num_classes,
            options.settings,
            self._split_batch,
        )

    def _split_batch(self, batch: Any) -> tuple[Any, Any]:
        """Split what a training step gets: with several loaders, the part that is measured."""
        key, split = self.options.dataloader, self.options.batch_to_xy or default_batch_to_xy
        return split(batch[key] if isinstance(key, (str, int)) else batch)

    def finish(self) -> None:
        """Close the files and say what has failed more than once."""
        self.log.finish(self.run_state.seconds)
        for (split, words), epochs in self._failures.items():
            if len(epochs) > 1:
                named = ", ".join(map(str, epochs[:_NAMED])) + (", ..." * (len(epochs) > _NAMED))
                self._warn(f"neural collapse of {split} is nan after epochs {named}: {words}")
        self._failures = {}

    def release(self) -> None:
        """Let go of the trainer and its module."""
        self.measurement.release()
        self.online = None

    # -- the work ----------------------------------------------------------------------------------

    def _keep(self, rows: Iterable[Row]) -> list[Row]:
        agreed: list[Row] = self.measurement.ranks.gather(list(rows))[0]
        self.run_state.rows += agreed
        self.log.append(agreed)
        return agreed

    def _row(
        self, epoch: int, split: str, report: CollapseReport | None, seconds: float = 0.0
    ) -> Row:
        step = self.measurement.trainer.global_step
        return self.run_state.row(epoch, step, split, report, seconds)

    def _sources(self, epoch: int) -> dict[str, Source | None]:
        try:
            with self.measurement.ranks.together():
                return dict(self.measurement.sources())
        except Exception as error:
            self._excuse("train", epoch, error)
            return {"train": None}

    def _rows(self, split: str, source: Source | None, epoch: int) -> list[Row]:
        started = time.perf_counter()
        reports = self._reports(split, source, epoch)
        # Also if it failed: nothing is measured against means of older weights.
        if split == "train":
            self.trained = reports
            self._keep_means(epoch)
            self._note_classes()
        seconds = time.perf_counter() - started
        own = self._row(epoch, split, reports.get(""), seconds)
        layers = self.measurement.layers
        return [own, *(self._row(epoch, layer_split(split, n), reports.get(n)) for n in layers)]

    def _keep_means(self, epoch: int) -> None:
        measurement = self.measurement
        weights, step = weights_key(measurement.seen), measurement.trainer.global_step
        saves = bool(measurement.trainer.checkpoint_callbacks)
        self._means.keep(weights, epoch, step, measurement.about, self.trained, earlier=saves)

    def _note_classes(self) -> None:
        """Record the class sizes and what they leave of collapse, once they are known."""
        if not self.trained or self._noted:
            return
        self._noted = True
        report = self.trained[""]
        outputs, present = self.measurement.num_classes, int(report.n_classes_present)
        if present < outputs and not is_dry_run(self.measurement.trainer):
            self._warn(
                f"the classifier has {outputs} outputs, but the training set holds samples of "
                f"{present} classes: the others are left out of the metrics. If the model returns "
                "an embedding, not logits, pass forward= a function that returns the logits, "
                "and classifier=(module, weight) with the loss's weight"
            )
        if self.log.active:
            with excused("class sizes and limits are not recorded"):
                self.log.note(class_facts(report, self.options.settings))

    def _reports(self, split: str, source: Source | None, epoch: int) -> Reports:
        """Return the reports of a split; none, with a warning, if they cannot be had."""
        train = split == "train"
        if source is None or not (train or self.trained):
            return {}  # it, or its reference, failed, which has been said
        references = None if train else {k: report.moments for k, report in self.trained.items()}
        try:
            with said_once(self._said):
                share, factories = self.run_state.overhead.share, self._factories if train else ()
                reports = self.measurement.measure(source, references, share, factories)
            dry = is_dry_run(self.measurement.trainer)  # a first batch may well hold one class
            if train and not dry and reports[""].n_classes_present < 2:
                raise InputError("the training set holds one class; neural collapse needs two")
            return reports
        except Exception as error:
            self._excuse(split, epoch, error)
            return {}

    def _null(self, epoch: int) -> CollapseReport | None:
        """Return the report of the shuffled labels, measured with that of the training set."""
        assert self.options.null_seed is not None
        try:
            return self.trained[""].null(self.options.null_seed) if self.trained else None
        except Exception as error:
            self._excuse(NULL_SPLIT, epoch, error)
            return None

    def _excuse(self, split: str, epoch: int, error: Exception) -> None:
        """Turn a failed measurement into a warning, unless it is a mistake known from the start.

        The same failure, epoch after epoch, is said once and summed up at the end.
        """
        wrong_input = isinstance(error, InputError) and not isinstance(error, MeasurementError)
        if self.options.on_error == "raise":
            raise error
        if wrong_input and not self.run_state.rows:
            if split == "train":
                raise error
            raise InputError(
                f"the {split} data cannot be measured: {error}; splits=('train',) leaves it out"
            ) from error
        words = reason_of(error)
        epochs = self._failures.setdefault((split, words), [])
        epochs.append(epoch)
        if len(epochs) == 1:
            self._warn(
                f"neural collapse of {split} after epoch {epoch} is nan, training goes on: {words}"
            )

    def _warn(self, message: str) -> None:
        if self.measurement.trainer.is_global_zero:
            warnings.warn(message, RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def excused(what: str) -> Iterator[None]:
    """Turn what loggers and listeners raise into a warning: the numbers are kept elsewhere."""
    try:
        yield
    except Exception as error:
        warnings.warn(
            f"{what}, training goes on: {reason_of(error)}",
            RuntimeWarning,
            stacklevel=3,
        )
