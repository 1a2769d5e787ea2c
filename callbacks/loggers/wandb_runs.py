"""The W&B runs of a trainer: told of the onset, given a table at the end, found again on resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ncmonitor.callbacks.fit_measurements import excused
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import history_frame
from ncmonitor.monitor.history_rows import Row
from ncmonitor.monitor.provenance import describe_environment, remote_url
from ncmonitor.redact import redacted, redacted_text
from ncmonitor.wandb_tools import run_record
from ncmonitor.wandb_tools.axes import define_axes, is_wandb, record_measurement

#: What the environment adds to the config: W&B records machine and command itself.
_KEPT = ("ncmonitor", "versions", "commit", "dirty")
#: When the terminal phase began, in the config too: there runs can be grouped and filtered by it.
_STARTS = ("tpt_start_exact", "tpt_start_effective")


class WandbRuns:
    """What one monitor tells the trainer's W&B runs beside its numbers; nothing off rank zero.

    Args:
        loggers: The trainer's; others than W&B's are passed over.
        prefix: First part of every log key.
        active: Whether this process logs.
    """

    def __init__(self, loggers: Iterable[Any] = (), prefix: str = "nc", *, active: bool = True):
        self._loggers = [logger for logger in loggers if active and is_wandb(logger)]
        self._prefix = prefix
        self._facts: dict[str, Any] = {}
        self._marked: set[str] = set()
        self._resumed: set[str] = set()

    @property
    def ids(self) -> list[str]:
        """The runs' ids, for checkpoints."""
        return [str(run.id) for run in self._runs]

    @property
    def _runs(self) -> list[Any]:
        return [logger.experiment for logger in self._loggers]

    def start(self, keys: Mapping[str, str], how: Mapping[str, Any]) -> None:
        """Set up the charts and record how the run is measured, with which versions.

        Args:
            keys: Every key that will be logged, with the name of its quantity.
            how: How it is measured.
        """
        if not self._loggers:
            return
        with excused("the W&B charts are not set up"):
            environment = describe_environment()
            self._facts = {**how, **{name: environment[name] for name in _KEPT}}
            define_axes(self._loggers, f"{self._prefix}/epoch", keys)
            record_measurement(self._loggers, self._facts)
            for run in self._runs:
                run_record.fill_tags(run, self._facts)

    def resume(self, before: Sequence[str], rows: Sequence[Row]) -> list[str]:
        """Take up what a checkpoint knows; return a line for each run that does not go on.

        Args:
            before: Ids of the runs that the checkpoint was saved in.
            rows: The history up to it.
        """
        self._resumed = set(before) & set(self.ids)
        found = _starts(rows)
        if found:  # now known from the beginning of this run
            with excused("the onset is missing from the W&B config"):
                self._note_starts(found)
        if "tpt_start_exact" in found:
            self._marked |= self._resumed
        others = [run_id for run_id in self.ids if before and run_id not in before]
        return [
            f"the W&B run {before[0]} of the checkpoint goes on as a new one, {run_id}; to go on "
            f"in the same: WandbLogger(id={before[0]!r})"
            for run_id in others
        ]

    def measured(self, rows: Sequence[Row]) -> None:
        """Tell of the onset of the terminal phase, once.

        Args:
            rows: The whole history, with the epoch that was just measured.
        """
        if not self._loggers:
            return
        found = _starts(rows)
        if any(self._facts.get(name) != epoch for name, epoch in found.items()):
            self._note_starts(found)
        new = [run for run in self._runs if str(run.id) not in self._marked]
        if "tpt_start_exact" not in found or not new:
            return
        marks = run_record.onset_of(history_frame(rows))
        for run in new:
            self._marked.add(str(run.id))
            if marks is not None:
                run_record.mark_onset(run, self._prefix, *marks)

    def finish(self, rows: Sequence[Row]) -> None:
        """Log the table of the whole history; the summary of a run that went on is of all of it.

        Args:
            rows: One per epoch and split.
        """
        if not self._loggers or not rows:
            return
        with excused("the table is missing from W&B"):
            for run in self._runs:
                run_record.log_history(run, self._prefix, history_frame(rows))
                if str(run.id) in self._resumed:  # W&B knows the minima of this process alone
                    run.summary.update(run_record.summary_of(rows, self._prefix))

    def _note_starts(self, found: Mapping[str, float]) -> None:
        self._facts |= found
        record_measurement(self._loggers, self._facts)


def _starts(rows: Sequence[Row]) -> dict[str, float]:
    """Return when the terminal phase began, as far as the last row of the training set knows."""
    last: Row = next((row for row in reversed(rows) if row["split"] == "train"), {})
    values = {name: float(last.get(name, "nan")) for name in _STARTS}
    return {name: value for name, value in values.items() if value == value}


# -- on resume -------------------------------------------------------------------------------------


def wandb_id(checkpoint: str | Path) -> str | None:
    """Return the id of the W&B run that a checkpoint was saved in.

    ``WandbLogger`` makes its run before Lightning reads the checkpoint, so the run to go on in has
    to be known earlier: ``WandbLogger(id=wandb_id("last.ckpt"))``.

    Args:
        checkpoint: A file that a trainer with :class:`~ncmonitor.callbacks.NeuralCollapse` and a
            ``WandbLogger`` has saved.

    Returns:
        The id; ``None`` if the checkpoint holds none.

    Raises:
        InputError: If the file cannot be read, or holds other than plain values and tensors.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{checkpoint} is no checkpoint that can be read: {reason}") from error
    states = saved.get("callbacks", {}) if isinstance(saved, dict) else {}
    for name, state in states.items():
        if name.startswith("NeuralCollapse") and isinstance(state, dict) and state.get("wandb"):
            return str(state["wandb"][0])
    return None


def continue_run(loggers: Iterable[Any], checkpoint: str | Path) -> None:
    """Let W&B loggers go on in the run that a checkpoint was saved in, unless told otherwise.

    Args:
        loggers: Of a trainer that has not started; those with a run or an id of their own, and
            other loggers, are left alone.
        checkpoint: What the trainer continues from.
    """
    fresh = [x for x in loggers if is_wandb(x) and x._experiment is None and x._id is None]
    if not fresh or not Path(checkpoint).is_file():
        return
    try:
        found = wandb_id(checkpoint)
    except InputError:  # the trainer says what is wrong with it
        return
    for logger in fresh if found is not None else ():
        logger._id = logger._wandb_init["id"] = found


def keep_secrets_from(given: dict[str, Any]) -> None:
    """Leave secrets out of what a W&B run begins with.

    W&B records the address of the working directory's repository. It leaves out a password there,
    but not the name before it, which may be a token.

    Args:
        given: Arguments of ``wandb.init``; changed.
    """
    if given.get("config"):
        given["config"] = redacted(given["config"])
    url = remote_url()
    if url is not None and redacted_text(url) != url and given.get("settings") is None:
        given["settings"] = {"git_remote_url": redacted_text(url)}
