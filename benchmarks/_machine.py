"""The machine that ``benchmarks.numbers`` runs on: what it is, and whether it is busy elsewhere."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from ncmonitor.monitor.provenance import describe_environment, processor


class OthersClock:
    """Tells what share of the processors other processes kept busy since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), _others()

    def share(self) -> float | None:
        """Return it, from 0 to 1; ``None`` where there is no /proc/stat."""
        (started, before), after = self._started, _others()
        if before is None or after is None:
            return None
        capacity = (time.perf_counter() - started) * (os.cpu_count() or 1)
        return max(0.0, after - before) / capacity


def _others() -> float | None:
    """Return processor seconds spent by all but this process, stolen ones included."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guest time is part of user time
    ticks = [int(field) for field in fields[1:9]]
    own = os.times()
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy - own.user - own.system


def machine() -> list[str]:
    """Describe processor, versions and date, a line each."""
    facts: dict[str, Any] = describe_environment()
    commit = (facts["commit"] or "unknown")[:12] + (" with changes" if facts["dirty"] else "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return [
        f"{processor()}, {usable} cores, {torch.get_num_threads()} torch threads{load}",
        f"{facts['machine']['system']}, Python {platform.python_version()}, "
        f"torch {torch.__version__} ({_blas()}), ncmonitor {facts['ncmonitor']}",
        f"{facts['created'][:10]}, commit {commit}",
    ]


def _blas() -> str:
    settings = torch.__config__.show().replace("\n", ", ").split(", ")
    return next((s.strip() for s in settings if "BLAS_INFO=" in s), "BLAS unknown").split("=")[-1]
