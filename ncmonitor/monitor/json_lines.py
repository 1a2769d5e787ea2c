"""A file of JSON lines that outlives a kill: whole lines appended, damaged ones passed over."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def rounded(value: Any) -> Any:
    """Return nested lists of numbers with 5 significant digits; what is not finite as ``None``."""
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one entry and force it to disk; a piece of a line that a kill left is cut off.

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
            before, mark, tail = file.read().rpartition(b"\n")
            if parsed(tail.decode(errors="replace")) is None:
                file.truncate(len(before + mark))
            else:  # only its end is missing
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def parsed(line: str) -> dict[str, Any] | None:
    """Return the entry of a line, ``None`` if it is torn or damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def read_lines(path: Path) -> list[dict[str, Any] | None]:
    """Return the entry of every line, ``None`` where it is torn or damaged."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [parsed(line) for line in text.removesuffix("\n").split("\n")] if text else []
