"""A file of JSON lines that outlives a kill: whole lines appended, a torn last one cut off."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ncmonitor._checks import InputError


def rounded(value: Any) -> Any:
    """Return nested lists of numbers with 5 significant digits; what is not finite as ``None``."""
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one entry and force it to disk; a line that a kill left without its end is cut off.

    Args:
        path: The file; it and its folder are made if missing.
        entry: What :mod:`json` can write; no ``nan``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n"
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every whole line.

    Raises:
        InputError: If a whole line is not a JSON object; the message names it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    entries = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} is damaged: line {number}: {error}") from error
        if not isinstance(entry, dict):
            raise InputError(f"{path} is damaged: line {number} is not an object")
        entries.append(entry)
    return entries
