"""``ncmonitor sync``: replay what a run has left on disk into a W&B run, and later what is new."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ncmonitor.errors import InputError
from ncmonitor.monitor.run_info import facts_of, group_of, options_of, pictures_of
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.wandb_tools import run_record
from ncmonitor.wandb_tools.sync_note import (
    Synced,
    digest_of,
    is_for,
    is_pending,
    is_unchanged,
    read_notes,
    write_notes,
)
from ncmonitor.wandb_tools.sync_rows import Recorded, read_recorded

#: Holds offline runs, apart from those that the training itself has left in ``wandb``: whoever
#: uploads all of those should not get the same run twice.
FOLDER: Final = "wandb_sync"
PROJECT: Final = "ncmonitor"
MODES: Final = ("online", "offline")
#: Seconds until a server that does not answer is given up; W&B itself would wait 90.
PATIENCE: Final = 30.0


def sync_run(
    run_dir: str | Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Synced:
    """Replay history, symmetry, config and figures of a run folder into a W&B run.

    A second sync continues the same W&B run with the rows that are new, and does nothing if there
    are none. An offline run that is not uploaded yet is replaced as a whole, online by an upload.
    If rows that were uploaded have changed since, W&B could not take them back, so a new W&B run is
    made; so it is for another project or entity than before.

    Args:
        run_dir: Folder with ``history.csv``, and ``symmetry.csv`` where that was measured; of a
            run that is finished, running or killed.
        project: W&B project; as before, else ``"ncmonitor"``.
        entity: User or team; as before, else the user's default.
        mode: ``"online"`` or ``"offline"``; without it ``WANDB_MODE``, else online if there is a
            login and offline if not.
        say: Is told, in one line, before W&B's server is waited for, and what is left out.

    Returns:
        What was done: the W&B run, how many rows it has now and how many of them are new.

    Raises:
        InputError: If the folder holds no run, or W&B refuses; with the client's own words.
    """
    folder = Path(run_dir)
    recorded, noted = read_recorded(folder), read_notes(folder)
    for caution in recorded.cautions:
        say(caution)
    if mode not in (None, *MODES):
        raise InputError(f"mode= must be one of {MODES}, but is {mode!r}")
    project = project or (noted[-1].project if noted else PROJECT)
    entity = entity or (noted[-1].entity if noted else None)
    before = next((run for run in reversed(noted) if is_for(folder, run, project, entity)), None)
    fresh = Synced(uuid.uuid4().hex[:8], project, entity, _mode(folder, mode))
    task, others = _task(folder, before, recorded, fresh), [x for x in noted if x is not before]
    if task.ended:
        if before is not noted[-1]:
            write_notes(folder, others, task)
        return task
    if task.mode == "online":
        say(f"connecting to W&B ({run_record.host()}) ...")
    with _in_words(folder):
        return _replay(folder, recorded, task, others, before, say)


def _mode(folder: Path, given: str | None) -> str:
    """Choose the mode: nobody without a login should be asked for one."""
    import wandb

    told = given or os.environ.get("WANDB_MODE", "")
    if told:
        known = {"online": "online", "offline": "offline", "dryrun": "offline"}
        if told not in known:
            raise InputError(f"WANDB_MODE={told} keeps nothing; pass --mode online or offline")
        return known[told]
    with _in_words(folder):
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _task(folder: Path, before: Synced | None, recorded: Recorded, fresh: Synced) -> Synced:
    """Return which W&B run to write, and the ``base`` of rows that it has and keeps.

    Args:
        folder: Of the run.
        before: What the last sync to this target has done.
        recorded: What there is to replay.
        fresh: What to do if there was none: everything, into a new W&B run.

    Returns:
        ``before`` itself, which has ended, with no ``new`` rows, if there is nothing to do.
    """
    if before is None:
        return fresh
    rows, groups = len(recorded.rows), len(recorded.groups)
    same, pending = is_unchanged(folder, before, rows, groups), is_pending(folder, before)
    done = same and before.ended and (before.rows, before.groups) == (rows, groups)
    if done and not (pending and fresh.mode == "online"):
        return replace(before, new=0)
    if pending:
        base, groups_base, ended = before.base, before.groups_base, before.base_ended
    else:
        base, groups_base, ended = before.rows, before.groups, before.ended
    if (base or groups_base) and not same:
        return fresh
    kept = replace(fresh, base=base, groups_base=groups_base, base_ended=ended)
    return replace(kept, run_id=before.run_id, entity=fresh.entity or before.entity)


# -- the replay ------------------------------------------------------------------------------------


def _replay(
    folder: Path, recorded: Recorded, task: Synced, others: Sequence[Synced],
    before: Synced | None, say: Callable[[str], object],
) -> Synced:  # fmt: skip
    facts = facts_of(folder, recorded.history)
    prefix = str(facts.get("prefix") or "nc")
    run = _open(folder, task, facts)
    done = replace(task, rows=task.base, groups=task.groups_base)
    if task.mode == "online":
        done = replace(done, url=run.url, entity=run.entity)
    else:
        done = replace(done, folder=os.path.relpath(Path(run.dir).parent, folder))
    try:
        run_record.fill_tags(run, facts)
        run_record.fill_config(run, facts)
        run_record.define_axes(run, f"{prefix}/epoch", recorded.keys(prefix))
        for step in recorded.steps(prefix, task.base, task.groups_base):
            run.log(step.values)
            rows, groups = done.rows + step.rows, done.groups + step.groups
            done = replace(done, rows=rows, groups=groups, new=done.new + step.rows + step.groups)
        _log_end(run, prefix, recorded, task)
        last = float(recorded.history["epoch"].max())
        run_record.log_pictures(run, prefix, pictures_of(folder), last, say)
        done = replace(done, ended=True)
    finally:  # also after Ctrl-C: what was logged goes up, and the next sync goes on from there
        run.finish()
        groups_digest = digest_of(folder, done.groups, SYMMETRY_FILE)
        done = replace(done, digest=digest_of(folder, done.rows), groups_digest=groups_digest)
        write_notes(folder, others, done)
        _drop_replaced(folder, before, done)
    return done


def _drop_replaced(folder: Path, before: Synced | None, done: Synced) -> None:
    """Remove the offline run that was not uploaded: all it has is in the new one."""
    if before is not None and before.folder != done.folder and is_pending(folder, before):
        shutil.rmtree(folder / str(before.folder), ignore_errors=True)


def _log_end(run: Any, prefix: str, recorded: Recorded, task: Synced) -> None:
    """Log what stands at the end: the onset if it is new, the table, the whole run's summary."""
    history = recorded.history
    marks = run_record.onset_of(history)
    known = run_record.onset_of(history.iloc[: task.base]) if task.base_ended else None
    if marks is not None and marks != known:
        run_record.mark_onset(run, prefix, *marks)
    run_record.log_history(run, prefix, history)
    if task.base or task.groups_base:  # W&B knows the minima of what this process has logged
        run.summary.update(recorded.summary(prefix))


def _open(folder: Path, task: Synced, facts: Mapping[str, Any]) -> Any:
    import wandb

    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    wait: Any = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": PATIENCE}
    group = os.environ.get("WANDB_RUN_GROUP") or group_of(folder, facts)
    return wandb.init(
        project=task.project,
        entity=task.entity,
        id=task.run_id,
        name=folder.resolve().name,
        group=group,
        dir=place,
        mode=task.mode,  # type: ignore[arg-type]
        resume="allow",
        config=options_of(folder),
        # Of this process, which is not the one that trained.
        settings=wandb.Settings(
            console="off", disable_git=True, save_code=False, silent=True, x_disable_meta=True,
            x_disable_stats=True, **wait,
        ),
    )  # fmt: skip


@contextlib.contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Turn what W&B's client raises into one line: a wrong key, an entity not one's own."""
    from wandb.errors import Error

    try:
        yield
    except Error as error:
        words = " ".join(str(error).split())
        raise InputError(
            f"W&B: {words} (without W&B's server: ncmonitor sync {folder} --mode offline)"
        ) from error
