"""Plain facts in words: a path, a span of time."""

from __future__ import annotations

import math
from pathlib import Path


def shown(path: Path) -> str:
    """Return a path as short as possible: relative below the working directory."""
    full, here = path.absolute(), Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)


def duration(seconds: float) -> str:
    """Write a span of time with its two leading units."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
