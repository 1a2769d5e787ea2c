"""A run to be watched: its history and what it records of itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from histories import collapse_rows
from ncmonitor.monitor.history import start_history
from ncmonitor.monitor.provenance import write_run


def facts(**more: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    created = (now - timedelta(seconds=30)).isoformat(timespec="seconds")
    return {"created": created, "command": "ncmonitor fit mine.yaml", "max_epochs": 60} | more


def make_run(folder: Path, epochs: int = 31, **more: Any) -> Path:
    start_history(folder, collapse_rows(range(epochs)))
    write_run(folder, facts(**more))
    return folder
