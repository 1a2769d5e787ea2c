"""The commands about W&B: ``ncmonitor sync`` and ``ncmonitor dashboard``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ncmonitor.errors import InputError


def sync(words: Sequence[str]) -> int:
    """Run ``ncmonitor sync``.

    Args:
        words: After the command.

    Returns:
        0.

    Raises:
        InputError: If there is nothing to sync, or W&B refuses.
    """
    parser = argparse.ArgumentParser(
        prog="ncmonitor sync",
        description="Replay a run's history, options and figures into a W&B run: finished, "
        "running or killed. A second sync adds what is new to the same W&B run.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder with history.csv")
    parser.add_argument("--project", help="W&B project (default: as before, else ncmonitor)")
    parser.add_argument("--entity", help="user or team (default: as before, else your own)")
    parser.add_argument(
        "--mode",
        choices=("online", "offline"),
        help="default: WANDB_MODE, else online with a login and offline without one",
    )
    given = parser.parse_args(words)
    module = importlib.import_module("ncmonitor.wandb_tools.sync")
    try:
        done = module.sync_run(
            given.run_dir,
            project=given.project,
            entity=given.entity,
            mode=given.mode,
            say=_tell,
        )
    except OSError as error:
        raise InputError(f"{given.run_dir} cannot be synced: {error}") from error
    words_of = importlib.import_module("ncmonitor.wandb_tools.sync_note").closing_lines
    print("\n".join(words_of(done, given.run_dir)))
    return 0


def _tell(line: str) -> None:
    """Say what is waited for, at once, and apart from what was asked for."""
    print(line, file=sys.stderr, flush=True)


def dashboard(words: Sequence[str]) -> int:
    """Run ``ncmonitor dashboard push`` or ``ncmonitor dashboard export``.

    Args:
        words: After the command.

    Returns:
        0.

    Raises:
        InputError: If W&B refuses, or the extra is not installed.
    """
    given = _dashboard_parser().parse_args(words)
    module = importlib.import_module("ncmonitor.wandb_tools.dashboard")
    metrics = "default" if not given.metrics else [m for m in given.metrics.split(",") if m]
    if given.entity is None:
        _tell("the entity is a placeholder: pass --entity USER_OR_TEAM for yours")
    workspace = module.build(
        given.entity or "entity",
        given.project,
        name=given.name,
        prefix=given.prefix,
        metrics=metrics,
        group_by=given.group_by,
    )
    if given.action == "push":
        print(f"dashboard saved: {module.push(workspace, say=_tell)}")
    elif given.out is None:
        print(module.export(workspace), end="")
    else:
        print(f"{module.write(workspace, given.out)}   (not pushed: no network was used)")
    return 0


def _dashboard_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncmonitor dashboard",
        description="The W&B workspace of ncmonitor: charts of NC1-NC4 over epochs, the clock of "
        "the terminal phase, classes, layers, pictures, and runs compared by recipe.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="push|export")
    push = actions.add_parser("push", help="save it as a view of a W&B project")
    push.add_argument("--entity", required=True, help="user or team that owns the project")
    push.add_argument("--project", required=True, help="W&B project; it must exist")
    export = actions.add_parser("export", help="write it as JSON, without a network")
    export.add_argument("--entity", help="user or team (default: a placeholder)")
    export.add_argument("--project", default="ncmonitor", help="default: %(default)s")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    for action in (push, export):
        action.add_argument("--name", default="Neural collapse", help="of the view: %(default)s")
        action.add_argument("--prefix", default="nc", help="of the log keys: %(default)s")
        action.add_argument(
            "--metrics",
            metavar="NAMES",
            help="measured beside the default: metrics and groups with commas, or all",
        )
        action.add_argument(
            "--group-by",
            metavar="KEY",
            help="group every chart by a config key, as ncmonitor.recipe (default: single runs)",
        )
    return parser
