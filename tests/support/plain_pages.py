"""Pages without figures, for tests of runs: drawing the figures takes longer than the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(run_dir: Path) -> Path:
    (run_dir / "report.html").write_text("<html>")
    return run_dir / "report.html"


def write_comparison(run_dirs: Sequence[Path], out: Path, title: str | None = None) -> Path:
    out.write_text("<html>" + " ".join(folder.name for folder in run_dirs))
    return out
