"""Offline W&B runs, read back with W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def inspect(run: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind (``history``, ``metric``, ``run``, ``alert``) in order."""
    lines = map(json.loads, inspect(run).splitlines())
    return [record[kind] for record in lines if record["type"] == kind]


def summary(run: Path) -> dict[str, Any]:
    """Return config, summary, tags and more, as they are at the end."""
    whole: dict[str, Any] = json.loads(inspect(run, "--summary"))
    return whole


def offline_run(folder: Path) -> Path:
    """Return the one offline run in a folder."""
    [found] = (folder / "wandb").glob("offline-run-*")
    return found
