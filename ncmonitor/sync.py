"""``ncmonitor sync``: replay what a run has left on disk into a W&B run, and later what is new."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ncmonitor import _wandb_run
from ncmonitor._checks import InputError
from ncmonitor._run_facts import facts_of, group_of, options_of, pictures_of
from ncmonitor.history import HISTORY_FILE, Row, read_history
from ncmonitor.keys import keys_of, log_values

if TYPE_CHECKING:
    import pandas as pd

NOTE_FILE: Final = "wandb_sync.json"
#: Holds offline runs, apart from those that the training itself has left in ``wandb``: whoever
#: uploads all of those should not get the same run twice.
FOLDER: Final = "wandb_sync"
PROJECT: Final = "ncmonitor"
MODES: Final = ("online", "offline")


@dataclass(frozen=True)
class Synced:
    """What a sync has done, kept in ``RUN_DIR/wandb_sync.json`` for the next one.

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


def sync_run(
    run_dir: str | Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: str | None = None,
) -> Synced:
    """Replay history, config and figures of a run folder into a W&B run.

    A second sync continues the same W&B run with the rows that are new, and does nothing if there
    are none. An offline run that is not uploaded yet is written again as a whole. If rows that were
    uploaded have changed since, W&B could not take them back, so a new W&B run is made.

    Args:
        run_dir: Folder with ``history.csv``; finished, running or killed.
        project: W&B project; as before, else ``"ncmonitor"``.
        entity: User or team; as before, else the user's default.
        mode: ``"online"`` or ``"offline"``; without it ``WANDB_MODE``, else online if there is a
            login and offline if not.

    Raises:
        InputError: If the folder holds no run, or W&B refuses; with the client's own words.
    """
    folder = Path(run_dir)
    history, before = read_history(folder), read_note(folder)
    if mode not in (None, *MODES):
        raise InputError(f"mode= must be one of {MODES}, but is {mode!r}")
    plan = Synced(
        run_id=uuid.uuid4().hex[:8],
        project=project or (before.project if before else PROJECT),
        entity=entity or (before.entity if before else None),
        mode=_mode(mode),
    )
    kept = 0
    if before is not None and (before.project, before.entity) == (plan.project, plan.entity):
        kept = _kept(folder, before, len(history))
        if kept or _is_pending(folder, before):
            plan = Synced(before.run_id, plan.project, plan.entity, plan.mode)
        if kept == len(history) and before.ended:
            return replace(before, new=0)
    done = _replay(folder, history, plan, kept, ended=before is not None and before.ended)
    if before is not None and before.folder != done.folder and _is_pending(folder, before):
        shutil.rmtree(folder / str(before.folder), ignore_errors=True)
    return done


def read_note(run_dir: Path) -> Synced | None:
    """Return what the last sync of a folder has done; ``None``: there was none that counts."""
    try:
        return Synced(**json.loads((run_dir / NOTE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, damaged, or of another version
        return None


def _mode(given: str | None) -> str:
    """Choose the mode: nobody without a login should be asked for one."""
    import wandb

    told = given or os.environ.get("WANDB_MODE", "")
    if told:
        known = {"online": "online", "offline": "offline", "dryrun": "offline"}
        if told not in known:
            raise InputError(f"WANDB_MODE={told} keeps nothing; pass --mode online or offline")
        return known[told]
    with _in_words():
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


# -- what is there already -------------------------------------------------------------------------


def _is_pending(folder: Path, before: Synced) -> bool:
    """Tell whether the last sync is an offline run that is still here and was not uploaded."""
    run = None if before.folder is None else folder / before.folder
    return run is not None and run.is_dir() and not any(run.glob("*.wandb.synced"))


def _kept(folder: Path, before: Synced, rows: int) -> int:
    """Return how many rows the W&B run has and keeps; 0: everything is to be replayed."""
    same = before.rows <= rows and _digest(folder, before.rows) == before.digest
    if not same or (_is_pending(folder, before) and before.rows < rows):
        return 0
    return before.rows


def _digest(folder: Path, rows: int) -> str:
    """Digest the first rows as they are in the file, which only grows unless a run is resumed."""
    with (folder / HISTORY_FILE).open("rb") as file:
        lines = [line for line, _ in zip(file, range(rows + 1), strict=False)]
    return hashlib.sha256(b"".join(lines[1:])).hexdigest()


# -- the replay ------------------------------------------------------------------------------------


def _replay(folder: Path, history: pd.DataFrame, plan: Synced, kept: int, *, ended: bool) -> Synced:
    facts = facts_of(folder, history)
    prefix = str(facts.get("prefix") or "nc")
    rows = cast(list[Row], history.to_dict("records"))
    with _in_words():
        run = _open(folder, plan, facts)
        done = replace(plan, rows=kept, url=run.url if plan.mode == "online" else None)
        if plan.mode == "offline":
            done = replace(done, folder=os.path.relpath(Path(run.dir).parent, folder))
        try:
            _wandb_run.fill_tags(run, facts)
            _wandb_run.fill_config(run, facts)
            _wandb_run.define_axes(run, f"{prefix}/epoch", keys_of(rows, prefix))
            for _, epoch in groupby(rows[kept:], key=lambda row: row["epoch"]):
                group = list(epoch)
                run.log(log_values(group, prefix))
                done = replace(done, rows=done.rows + len(group), new=done.new + len(group))
            _log_end(run, prefix, history, kept, ended=ended)
            _wandb_run.log_pictures(run, prefix, pictures_of(folder), float(history["epoch"].max()))
            done = replace(done, ended=True)
        finally:  # also after Ctrl-C: what was logged goes up, and the next sync goes on from there
            run.finish()
            done = replace(done, digest=_digest(folder, done.rows))
            note = json.dumps(asdict(done), indent=2) + "\n"
            (folder / NOTE_FILE).write_text(note, encoding="utf-8")
    return done


def _log_end(run: Any, prefix: str, history: pd.DataFrame, kept: int, *, ended: bool) -> None:
    """Log what stands at the end: the onset if it is new, the table, the whole run's summary."""
    marks = _wandb_run.onset_of(history)
    known = _wandb_run.onset_of(history.iloc[:kept]) if ended else None
    if marks is not None and marks != known:
        _wandb_run.mark_onset(run, prefix, *marks)
    _wandb_run.log_history(run, prefix, history)
    if kept:  # W&B knows the minima of what this process has logged
        rows = cast(list[Row], history.to_dict("records"))
        run.summary.update(_wandb_run.summary_of(rows, prefix))


def _open(folder: Path, plan: Synced, facts: Mapping[str, Any]) -> Any:
    import wandb

    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    group = os.environ.get("WANDB_RUN_GROUP") or group_of(folder, facts)
    return wandb.init(
        project=plan.project,
        entity=plan.entity,
        id=plan.run_id,
        name=folder.resolve().name,
        group=group,
        dir=place,
        mode=plan.mode,  # type: ignore[arg-type]
        resume="allow",
        config=options_of(folder),
        # Of this process, which is not the one that trained.
        settings=wandb.Settings(
            console="off", disable_git=True, save_code=False, silent=True, x_disable_meta=True,
            x_disable_stats=True,
        ),
    )  # fmt: skip


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Turn what W&B's client raises into one line: a wrong key, an entity not one's own."""
    from wandb.errors import Error

    try:
        yield
    except Error as error:
        raise InputError(f"W&B: {' '.join(str(error).split())}") from error


def closing_lines(done: Synced, run_dir: Path) -> Iterator[str]:
    """Say what was synced and where it is."""
    if done.new == 0:
        yield f"nothing new: the W&B run {done.run_id} has all {done.rows} rows"
    else:
        whole = "" if done.new == done.rows else f" of {done.rows}"
        yield f"{done.new}{whole} rows replayed into the W&B run {done.run_id} ({done.project})"
    if done.url is not None:
        yield f"  {done.url}"
    if done.folder is not None and _is_pending(run_dir, done):
        yield f"  W&B here    wandb leet {run_dir / done.folder}"
        yield f"  W&B online  wandb sync {run_dir / done.folder}"
    for live in sorted(run_dir.glob("wandb/offline-run-*")):
        yield f"  W&B's own record of this run, with losses, is another one: wandb sync {live}"
