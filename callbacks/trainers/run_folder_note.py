"""Where a run's folder is, for a parent process whose children did the training.

Strategies that start processes of their own (``ddp_spawn``, ``ddp_notebook``) leave the callback
of the parent as it was before the fit: nothing that the children have measured comes back in
memory. Rank zero leaves a note where the run's files are.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from pathlib import Path
from typing import Any


def new_address() -> str:
    """Return an address that nobody else has."""
    return uuid.uuid4().hex


def leave(address: str, run_dir: Path, trainer: Any) -> None:
    """Leave a note, if this process was started by the trainer's launcher and will end with it."""
    if getattr(getattr(trainer.strategy, "launcher", None), "_start_method", None) is not None:
        with contextlib.suppress(OSError):  # the files are where they are all the same
            _note(address).write_text(str(run_dir.resolve()), encoding="utf-8")


def collect(address: str) -> Path | None:
    """Return the folder that was left at an address, and forget it."""
    note = _note(address)
    try:
        folder = Path(note.read_text(encoding="utf-8"))
        note.unlink()
    except OSError:
        return None
    return folder


def _note(address: str) -> Path:
    return Path(tempfile.gettempdir()) / f"ncmonitor-{address}"
