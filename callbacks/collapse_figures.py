"""Pictures of the collapse while it happens: drawn from the monitor's own measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl

from ncmonitor.callbacks.after_measurement import AfterMeasurement, monitor_of
from ncmonitor.callbacks.figures.drawing import DEFAULT, figures_of
from ncmonitor.callbacks.figures.gallery import Gallery
from ncmonitor.callbacks.figures.snapshot_accumulator import Sketch
from ncmonitor.callbacks.trainers.progress import Overhead
from ncmonitor.callbacks.trainers.sources import is_dry_run
from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.monitor.schedule import Schedule, is_due, scheduled_epochs
from ncmonitor.monitor.snapshots.snapshot import Snapshot, SnapshotBuilder
from ncmonitor.redact import reason_of
from ncmonitor.statistics.class_means import ClassMeans

if TYPE_CHECKING:
    from ncmonitor.statistics.passes import FirstPass


class CollapseFigures(AfterMeasurement):
    """Draw the collapse while it happens, from what ``NeuralCollapse`` measures anyway.

    Of every measured epoch that is due, a snapshot of the training set's geometry is appended to
    ``snapshots.jsonl`` in the run's folder, taken in the measuring pass itself. Where time allows,
    it is drawn at once: the pictures go to W&B, TensorBoard and MLflow as
    ``nc_media/<figure>``, and as PNG files to ``figures/`` in the run's folder, where those of a
    later epoch replace them. Only rank zero draws. Training is bit-identical to training without;
    a picture that fails costs a warning.

    Args:
        schedule: When: any schedule of ``NeuralCollapse``. Nothing is measured on its behalf: where
            an epoch of it is not measured, the next one that is counts. The first and the last
            measured epoch are always due.
        figures: Which: ``"curves"``, ``"gram"``, ``"simplex"``, ``"spectrum"``, ``"phase"``,
            ``"irrep_budget"``, ``"layers"`` (with ``NeuralCollapse(layers=...)``) and
            ``"animation"``, a GIF made when the fit ends; or ``"all"``. Without any, snapshots are
            taken all the same.
        corners: Two to four classes for the simplex picture; ``None``: the first three that have
            samples.
        points_per_class: How many features of each are shown, the first ones in the data.
        names: What to call the classes, by class index; else their numbers.
        share: Share of the fit's time that drawing may take, in [0, 1]. An epoch that would
            exceed it is kept in ``snapshots.jsonl`` and not drawn; the last one is always drawn.
            1 draws whatever is due. The animation, asked for, comes on top.
        prefix: That of the monitor to draw, where there are several; ``None``: the first.

    Raises:
        InputError: For impossible settings; before training, without ``NeuralCollapse`` in the
            trainer, or if a corner class has no sample.

    Example:
        >>> from ncmonitor.callbacks import CollapseFigures, NeuralCollapse
        >>> callbacks = [NeuralCollapse(), CollapseFigures(corners=[3, 5, 8])]
    """

    def __init__(
        self,
        schedule: Schedule = "log",
        *,
        figures: str | Sequence[str] = DEFAULT,
        corners: Sequence[int] | None = None,
        points_per_class: int = 50,
        names: Sequence[str] | None = None,
        share: float = 0.05,
        prefix: str | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule if isinstance(schedule, (str, int, np.integer)) else list(schedule)
        scheduled_epochs(self.schedule, 1, endless=True)  # a wrong schedule should fail here
        self.figures = figures_of(figures)
        SnapshotBuilder(corners=corners, points_per_class=points_per_class)  # checks them
        self.corners = None if corners is None else tuple(corners)
        self.points_per_class = points_per_class
        self.names = None if names is None else tuple(map(str, names))
        if self.names is not None and len(self.names) <= max(self.corners or (0,)):
            raise InputError(
                f"names= must have a name for each class, but has {len(self.names)}, and corners= "
                f"takes class {max(self.corners or (0,))}"
            )
        if not 0 <= share <= 1:
            raise InputError(f"share= must lie in [0, 1], but is {share}")
        self.share, self.prefix = share, prefix
        self._taken: int | None = None  # epoch that was due last
        self._sketch: Sketch | None = None
        self._last: Snapshot | None = None  # of the last measured epoch, due or not
        self._refusal: Exception | None = None
        self._gallery = Gallery(self.figures, self.names, share)

    # -- what a user may read ----------------------------------------------------------------------

    @property
    def overhead(self) -> Overhead:
        """What drawing has cost in this process: seconds, and their share of the fit."""
        return self._gallery.allowance.overhead

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints: several differ by their monitors."""
        own = self.prefix is not None
        return self._generate_state_key(prefix=self.prefix) if own else super().state_key

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the monitor and listen to it, wherever in the list of callbacks it is."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._unsubscribe()
        monitor = monitor_of(trainer, "CollapseFigures draws from", self.prefix)
        if is_dry_run(trainer):
            return
        scheduled_epochs(self.schedule, trainer.max_epochs, endless=True)
        self._gallery = Gallery(self.figures, self.names, self.share, monitor.prefix)
        self._sketch = self._last = self._refusal = None
        monitor.factories.append(self._make)
        self._listen(monitor)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse corners that the first measurement has found to be empty."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what was measured last, and the animation."""
        last, gallery = self._last, self._gallery
        gallery.allowance.end()
        if last is None:
            return
        if last.epoch != self._taken:
            gallery.keep(self._folder, last)
        if last.epoch != gallery.shown:
            gallery.show(trainer, self._folder, last, self._rows)
        gallery.close(trainer, self._folder, last)

    def state_dict(self) -> dict[str, Any]:
        """Return when the last snapshot was due."""
        return self._fits.marked({"taken": self._taken})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the schedule, if a fit does."""
        if self._resumes(state_dict):
            self._taken = state_dict["taken"]

    def _start_anew(self) -> None:
        self._taken = None

    # -- the monitor's measurements ----------------------------------------------------------------

    def _make(self, first: FirstPass, own: ClassMeans) -> Sketch:
        self._sketch = Sketch(first, own, self.corners, self.points_per_class)
        return self._sketch

    def _on_measured(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        sketch, self._sketch = self._sketch, None
        if sketch is None or self._monitor is None or self._monitor.report is None:
            return  # the measurement has failed, which has been said
        if sketch.failure is not None:
            self._note(sketch.failure, trainer)
            return
        due = is_due(self.schedule, epoch, self._taken, trainer.max_epochs)
        self._taken = epoch if due else self._taken  # on every rank
        if sketch.snapshot is None:  # not rank zero
            return
        self._last = replace(sketch.snapshot, epoch=epoch)
        if due:
            self._gallery.keep(self._folder, self._last)
            self._gallery.offer(trainer, self._folder, self._last, self._rows)

    def _note(self, failure: Exception, trainer: pl.Trainer) -> None:
        wrong_input = isinstance(failure, InputError) and not isinstance(failure, MeasurementError)
        if wrong_input and trainer.global_step == 0:
            self._refusal = failure  # raised here, it would be excused as a listener's
        elif trainer.is_global_zero:
            words = f"no snapshot is taken, training goes on: {reason_of(failure)}"
            self._gallery.warn("sketch", words)

    @property
    def _folder(self) -> Path:
        assert self._monitor is not None
        assert self._monitor.run_dir is not None  # known once something was measured
        return self._monitor.run_dir

    def _unsubscribe(self) -> None:
        super()._unsubscribe()
        if self._monitor is not None and self._make in self._monitor.factories:
            self._monitor.factories.remove(self._make)
        self._sketch = self._last = None
