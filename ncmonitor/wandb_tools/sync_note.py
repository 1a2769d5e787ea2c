"""What ``ncmonitor sync`` has done with a run folder: noted for the next time, and in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ncmonitor.monitor.history import HISTORY_FILE
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE

NOTE_FILE: Final = "wandb_sync.json"


@dataclass(frozen=True)
class Synced:
    """A W&B run that a run folder was replayed into, kept in ``RUN_DIR/wandb_sync.json``.

    Attributes:
        run_id: Of the W&B run.
        project: It is in.
        entity: That owns it; ``None``: the user's default.
        mode: ``"online"`` or ``"offline"``.
        rows: Rows of the history that the run has.
        digest: Of these rows.
        folder: The offline run's, in the run folder; ``None`` online.
        url: Of the run; ``None`` offline.
        new: Rows that this sync has added.
        ended: Whether table and figures were logged after the rows.
        base: Rows that were uploaded before the offline run in ``folder`` was made.
        base_ended: Whether table and figures were among them.
        groups: Rows of the table of symmetry that the run has.
        groups_digest: Of these rows.
        groups_base: Those that were uploaded before.
    """

    run_id: str
    project: str
    entity: str | None
    mode: str
    rows: int = 0
    digest: str = ""
    folder: str | None = None
    url: str | None = None
    new: int = 0
    ended: bool = False
    base: int = 0
    base_ended: bool = False
    groups: int = 0
    groups_digest: str = ""
    groups_base: int = 0

    @property
    def whole(self) -> int:
        """Rows of both tables that the run has."""
        return self.rows + self.groups


def read_notes(run_dir: Path) -> list[Synced]:
    """Return the W&B runs that a folder was replayed into, one a target, the last one last."""
    try:
        read = json.loads((run_dir / NOTE_FILE).read_text(encoding="utf-8"))
        return [Synced(**run) for run in read["runs"]]
    except (OSError, ValueError, TypeError, KeyError):  # absent, damaged, or of another version
        return []


def write_notes(run_dir: Path, others: Sequence[Synced], last: Synced) -> None:
    """Write down what a sync has done.

    Args:
        run_dir: Folder of the run.
        others: What was noted of other W&B runs, which stays.
        last: What was done now.
    """
    note = {"runs": [asdict(run) for run in (*others, last)]}
    (run_dir / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def is_pending(folder: Path, run: Synced) -> bool:
    """Tell whether a W&B run is an offline one that is still here and was not uploaded."""
    place = None if run.folder is None else folder / run.folder
    return place is not None and place.is_dir() and not any(place.glob("*.wandb.synced"))


def is_for(folder: Path, run: Synced, project: str, entity: str | None) -> bool:
    """Tell whether a noted run is in a project; one that waits offline has any owner still."""
    mine = run.entity == entity or (run.entity is None and is_pending(folder, run))
    return run.project == project and mine


def is_unchanged(folder: Path, run: Synced, rows: int, groups: int) -> bool:
    """Tell whether the rows that a W&B run has are as they were in tables of so many rows."""
    same = run.rows <= rows and digest_of(folder, run.rows) == run.digest
    if not run.groups:
        return same
    groups_digest = digest_of(folder, run.groups, SYMMETRY_FILE)
    return same and run.groups <= groups and groups_digest == run.groups_digest


def digest_of(folder: Path, rows: int, name: str = HISTORY_FILE) -> str:
    """Digest the first rows as they are in a file, which only grows unless a run is resumed."""
    if not rows or not (folder / name).is_file():
        return hashlib.sha256(b"").hexdigest() if name == HISTORY_FILE else ""
    with (folder / name).open("rb") as file:
        lines = [line for line, _ in zip(file, range(rows + 1), strict=False)]
    return hashlib.sha256(b"".join(lines[1:])).hexdigest()


def closing_lines(done: Synced, run_dir: Path) -> Iterator[str]:
    """Say what was synced and where it is."""
    pending = is_pending(run_dir, done)
    if done.new:
        whole = "" if done.new == done.whole else f" of {done.whole}"
        yield f"{done.new}{whole} rows replayed into the W&B run {done.run_id} ({done.project})"
    elif pending:
        yield f"nothing new: the offline run {done.run_id} has all {done.whole} rows, not uploaded"
    else:
        yield f"nothing new: the W&B run {done.run_id} ({done.project}) has all {done.whole} rows"
    if done.url is not None:
        yield f"  {done.url}"
    if pending:
        yield f"  W&B here    wandb leet {run_dir / str(done.folder)}"
        yield f"  W&B online  wandb sync {run_dir / str(done.folder)}"
    elif done.folder is not None and not (run_dir / done.folder).is_dir():
        note = run_dir / NOTE_FILE
        yield f"  its offline run is gone and counts as uploaded; if it was not: rm {note}"
    for run in read_notes(run_dir):
        if run.run_id != done.run_id and is_pending(run_dir, run):
            place = run_dir / str(run.folder)
            yield f"  not uploaded, for the project {run.project}: wandb sync {place}"
    for live in sorted(run_dir.glob("wandb/offline-run-*")):
        yield f"  W&B's own record of this run, with losses, is another one: wandb sync {live}"
