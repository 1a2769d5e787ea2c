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


def definitions(run: Path) -> dict[str, dict[str, Any]]:
    """Return what ``define_metric`` was told, by the key that is logged: without escapes of dots.

    A key with a bare dot would be that of a nested value: it defines nothing that we log.
    """
    named = {record.get("name", ""): record for record in records(run, "metric")}
    return {
        name.replace("\\.", "."): record
        for name, record in named.items()
        if name.count(".") == name.count("\\.")
    }


def summary(run: Path) -> dict[str, Any]:
    """Return config, summary, tags and more, as they are at the end."""
    whole: dict[str, Any] = json.loads(inspect(run, "--summary"))
    return whole


def offline_run(folder: Path) -> Path:
    """Return the one offline run in a folder."""
    [found] = (folder / "wandb").glob("offline-run-*")
    return found
