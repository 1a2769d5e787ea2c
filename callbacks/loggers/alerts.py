"""W&B alerts: a message when the terminal phase begins, and when a metric crosses a threshold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from ncmonitor.callbacks.after_measurement import AfterMeasurement, monitor_of
from ncmonitor.callbacks.fit_measurements import excused
from ncmonitor.callbacks.trainers.sources import is_dry_run
from ncmonitor.catalogue import FIT_NAMES, PHASE_NAMES, hint_of, quantity_of
from ncmonitor.errors import InputError
from ncmonitor.monitor.history_rows import Row
from ncmonitor.wandb_tools.axes import is_wandb

if TYPE_CHECKING:
    from ncmonitor.callbacks.neural_collapse import NeuralCollapse

#: Name of the alert at the onset, among the thresholds.
_ONSET = "onset"
#: Longest title that W&B takes.
_TITLE = 63


class WandbAlerts(AfterMeasurement):
    """Send each alert once, by the channels that the user's W&B settings name (e-mail, Slack).

    Offline, alerts are kept in the run and sent by ``wandb sync``. What was sent is part of
    checkpoints, so that a run that is resumed does not repeat it.

    Args:
        onset: Alert when the training error first vanishes.
        thresholds: Alert when a metric reaches a value from the side of its first measurement:
            ``{"train/nc1": 0.01, "val/error": 0.05}``; keys are ``split/metric``, or a metric of
            the training set.

    Raises:
        InputError: For an unknown metric or a threshold that is no number; before training, without
            ``NeuralCollapse`` or ``WandbLogger`` in the trainer.

    Example:
        >>> from ncmonitor.callbacks import NeuralCollapse
        >>> from ncmonitor.callbacks.loggers.alerts import WandbAlerts
        >>> callbacks = [NeuralCollapse(), WandbAlerts(thresholds={"train/nc1": 0.01})]
    """

    def __init__(
        self, *, onset: bool = True, thresholds: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.onset = onset
        self.thresholds = {_full(key): _number(key, x) for key, x in (thresholds or {}).items()}
        if not onset and not self.thresholds:
            raise InputError(
                "WandbAlerts would do nothing: leave onset on, or pass thresholds={'train/nc1': x}"
            )
        self._sent: list[str] = []
        self._first: dict[str, float] = {}

    # -- Lightning's hooks -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the monitor and listen to it, wherever in the list of callbacks it is."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._unsubscribe()
        monitor = monitor_of(trainer, "WandbAlerts learns what is measured from")
        if is_dry_run(trainer):
            return
        if not any(map(is_wandb, trainer.loggers)):
            raise InputError(
                "WandbAlerts sends alerts through W&B: pass logger=WandbLogger(...) to the trainer"
            )
        self._check_measured(monitor)
        self._listen(monitor)

    def state_dict(self) -> dict[str, Any]:
        """Return what was sent, and from which side each metric comes."""
        return self._fits.marked({"sent": list(self._sent), "first": dict(self._first)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, if a fit does: what was sent is not sent again."""
        if self._resumes(state_dict):
            self._sent, self._first = list(state_dict["sent"]), dict(state_dict["first"])

    def _start_anew(self) -> None:
        self._sent, self._first = [], {}

    # -- the work ----------------------------------------------------------------------------------

    def _check_measured(self, monitor: NeuralCollapse) -> None:
        asked = set(monitor._options.settings.names) | {*FIT_NAMES, *PHASE_NAMES}
        for key in self.thresholds:
            name = _parts(key)[1].partition("/")[0]
            if name not in asked:
                raise InputError(
                    f"thresholds= names {key!r}, and {name} is not measured by default: ask for it "
                    f"with NeuralCollapse(metrics=[{name!r}])"
                )

    def _on_measured(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        rows: dict[str, Row] = {}
        for row in itertools.takewhile(lambda row: row["epoch"] == epoch, reversed(self._rows)):
            rows.setdefault(str(row["split"]), row)
        start = float(rows.get("train", {}).get("tpt_start_exact", math.nan))
        if self.onset and start == epoch:
            self._send(trainer, _ONSET, "Terminal phase reached", _onset_words(epoch))
        for key, threshold in self.thresholds.items():
            value = _value(rows, key)
            if not math.isnan(value) and self._crossed(key, value, threshold):
                title = f"{key} reached {threshold:g}"
                self._send(trainer, key, title, f"{key} is {value:.3g} after {epoch} epochs.")

    def _crossed(self, key: str, value: float, threshold: float) -> bool:
        first = self._first.setdefault(key, value)
        return value <= threshold if first >= threshold else value >= threshold

    def _send(self, trainer: pl.Trainer, name: str, title: str, text: str) -> None:
        if name in self._sent:
            return
        self._sent.append(name)
        if not trainer.is_global_zero:
            return
        for logger in filter(is_wandb, trainer.loggers):
            with excused(f"the alert {title!r} is not sent"):
                logger.experiment.alert(title=title[:_TITLE], text=text)  # type: ignore[attr-defined]


def _onset_words(epoch: int) -> str:
    return f"The training error first vanished after {epoch} epochs."


def _full(key: str) -> str:
    """Return a key with its split, checked."""
    split, name = _parts(key)
    if quantity_of(name) is None:
        raise InputError(
            f"thresholds= takes names of metrics, as 'nc1' or 'val/nc1', but got {key!r}"
            f"{hint_of(name)}"
        )
    return f"{split}/{name}"


def _parts(key: str) -> tuple[str, str]:
    """Return split and column: ``train/nc1_per_class/3``, ``train/layer/body.2/nc1``."""
    words = str(key).removeprefix("nc/").split("/")
    width = 2 if words[-1].isdecimal() else 1
    split, name = "/".join(words[:-width]) or "train", "/".join(words[-width:])
    return ("train" if split == "tpt" else split), name


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"thresholds= needs a number for {key!r}, but got {value!r}")
    return float(value)


def _value(rows: Mapping[str, Row], key: str) -> float:
    split, name = _parts(key)
    return float(rows.get(split, {}).get(name, math.nan))
