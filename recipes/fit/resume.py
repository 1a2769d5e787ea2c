"""``--resume``: find the run that was interrupted, and refuse to go on with other options.

A run is interrupted if its ``run.json`` has no end: Ctrl-C, a kill, or a power cut. It continues in
its own folder from the last checkpoint; what was measured beyond it is measured again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.provenance import CONFIG_FILE, read_run, write_run
from ncmonitor.monitor.words import shown
from ncmonitor.recipes.fit.run_folder import RunPlace, is_held, label_of
from ncmonitor.recipes.fit.saved_config import as_option
from ncmonitor.redact import MARK, redacted

#: Options without influence on what is trained and measured, or that say where it goes; those below
#: them as well.
_FREE: Final = (
    "ckpt_path", "data.init_args.download", "data.init_args.num_workers", "data.init_args.root",
    "expect", "figures", "nc.on_error", "nc.verbose", "seed_everything", "threads",
    "trainer.default_root_dir", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps", "trainer.logger", "trainer.max_time", "trainer.profiler",
)  # fmt: skip
_LENGTH: Final = "trainer.max_epochs"
_NONE: Final = (None, "")


# -- which run -------------------------------------------------------------------------------------


def run_to_resume(
    name: str, seed: int | None, given: Path | None, options: Mapping[str, Any]
) -> RunPlace:
    """Find an interrupted run and the checkpoint that it continues from.

    Args:
        name: Of the recipe or config.
        seed: Of the run.
        given: Its folder; ``None`` takes the latest one of this name and seed.
        options: What is asked for now, as a run's ``config.yaml`` has it.

    Raises:
        InputError: If there is none, or it had other options, or has no usable checkpoint.
    """
    folder = _latest(name, seed, options) if given is None else given
    if given is not None:
        _check_open(given, options)
    check_same_options(folder, options)
    return RunPlace(folder, checkpoint=_checkpoint(folder))


def is_finished(folder: Path, options: Mapping[str, Any]) -> bool:
    """Tell whether a run has recorded its end, and no longer one is asked for."""
    run = read_run(folder)
    planned, wanted = run.get("max_epochs"), options["trainer"].get("max_epochs")
    longer = isinstance(planned, int) and isinstance(wanted, int) and wanted > planned >= 0
    return bool(run.get("finished")) and not longer


def _latest(name: str, seed: int | None, options: Mapping[str, Any]) -> Path:
    label = label_of(options.get("way"), seed)
    wanted = r"\d{8}-\d{6}" + ("" if label is None else f"-{label}")
    found = run_folders(name, wanted)
    open_ones = [folder for folder in found if not is_finished(folder, options)]
    for folder in open_ones:
        if not is_held(folder):
            return folder
    way = f" with way {options['way']}" if options.get("way") else ""
    what = f"runs/{name}{way}" + ("" if seed is None else f" with seed {seed}")
    if not found:
        said = f"{what} has no run"
    elif open_ones:
        said = f"{open_ones[0]} is still going"
    else:
        said = f"no run in {what} was interrupted: the latest, {found[0]}, has finished"
    raise InputError(f"nothing to resume: {said}")


def run_folders(name: str, pattern: str) -> list[Path]:
    """Return the folders of ``runs/<name>`` that hold anything, the latest first."""
    parent = Path("runs", name)
    numbered = re.compile(rf"({pattern})(?:-(\d{{1,3}}))?")
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        match = numbered.fullmatch(folder.name)
        if match and folder.is_dir() and any(folder.iterdir()):
            found.append((match[1], int(match[2] or 1), folder))
    return [folder for *_, folder in sorted(found, reverse=True)]


def _check_open(folder: Path, options: Mapping[str, Any]) -> None:
    if not (folder / CONFIG_FILE).exists():
        raise InputError(f"nothing to resume: {shown(folder)} holds no {CONFIG_FILE} of a run")
    if is_finished(folder, options):
        raise InputError(f"nothing to resume: the run in {shown(folder)} has finished")
    if is_held(folder):
        raise InputError(f"nothing to resume: the run in {shown(folder)} is still going")


# -- the same options ------------------------------------------------------------------------------


def check_same_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuse to continue a run with options that make it another one.

    A longer run is the same run so far if nothing is planned by its length: a constant learning
    rate, and a measuring schedule that is not stretched to it. Secrets are not saved, so another
    one may be given now, but not none.

    Raises:
        InputError: With the options, as they were and as they are now.
    """
    path = folder / CONFIG_FILE
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot resume: {shown(path)} is unreadable: {error}") from error
    if not isinstance(saved, dict):
        raise InputError(f"cannot resume: {shown(path)} does not hold the options of a run")
    before, now = _flat(redacted(saved)), _flat(redacted(options))
    # An option that one of them lacks belongs to a class that differs, or to another version.
    changed = [
        key
        for key, old in before.items()
        if key in now and now[key] != old and not _is_free(key) and not _is_secret(old, now[key])
    ]
    if _LENGTH in changed and _may_be_longer(before[_LENGTH], now):
        changed.remove(_LENGTH)
    if changed:
        told = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise InputError(
            f"cannot resume: {shown(folder)} was started with {told}{more}; give the options it "
            "was started with, or leave out --resume for a new run"
        )
    missing = [key for key, old in before.items() if old == MARK and now.get(key) in _NONE]
    if missing:
        raise InputError(
            f"cannot resume: {shown(folder)} was started with {', '.join(missing)}, which is a "
            f"secret and not saved; give {', '.join(map(as_option, missing))} again"
        )


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_secret(before: Any, now: Any) -> bool:
    """Tell whether an option has, or had, a secret for a value: which one is not known."""
    return MARK in (before, now) and all(value in (*_NONE, MARK) for value in (before, now))


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _may_be_longer(before: Any, now: Mapping[str, Any]) -> bool:
    longer = isinstance(before, int) and isinstance(now[_LENGTH], int) and now[_LENGTH] > before
    constant = now.get("model.init_args.schedule") == "constant"
    return longer and constant and now.get("nc.schedule") not in ("papyan", "log")


# -- where it continues ----------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint; ``None`` for a run that has lost nothing by starting anew."""
    saved = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
    # In a folder that was moved, Lightning goes on beside last.ckpt as last-v1.ckpt.
    last = [path for path in saved if re.fullmatch(r"last(-v\d+)?", path.stem)]
    if last:
        _check_whole(last[-1], saved)
        return last[-1]
    reached = _last_epoch(folder)
    if saved or reached > 0:
        raise InputError(
            f"cannot resume: {shown(folder)} was measured up to epoch {reached}, but holds no "
            f"checkpoints/last.ckpt{_instead(folder, saved)}. ModelCheckpoint(save_last: true) in "
            "trainer.callbacks saves one every epoch"
        )
    return None


def _check_whole(path: Path, saved: list[Path]) -> None:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive makes torch raise
        folder = path.parent.parent
        reason = str(error).strip().partition("\n")[0][:80]
        others = [other for other in saved if other != path]
        raise InputError(
            f"cannot resume: {shown(path)} is damaged ({reason}){_instead(folder, others)}"
        ) from error


def _instead(folder: Path, saved: list[Path]) -> str:
    if saved:
        return (
            f"; continue from another: --trainer.default_root_dir {shown(folder)} "
            f"--ckpt_path {shown(saved[-1])}"
        )
    return "; start a new run without --resume"


def _last_epoch(folder: Path) -> int:
    history = folder / HISTORY_FILE
    if not history.exists() or history.read_bytes().count(b"\n") < 2:
        return 0  # killed before the first measurement
    return int(read_history(folder)["epoch"].max())


def record_end(folder: Path) -> None:
    """Record the end of a run that was killed when its last epoch had been saved."""
    run = read_run(folder)
    if run and not run.get("finished"):
        write_run(folder, run | {"finished": datetime.now(UTC).isoformat(timespec="seconds")})
