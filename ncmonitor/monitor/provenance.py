"""Where a number comes from: versions, commit, command and machine of a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ncmonitor.redact import redacted, redacted_words

#: Every option of a run of ``ncmonitor fit``.
CONFIG_FILE: Final = "config.yaml"
RUN_FILE: Final = "run.json"
_PACKAGES: Final = (
    "ncmonitor",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "lightning",
    "numpy",
    "scipy",
    "scikit-learn",
    "torch_geometric",
    "wandb",
)


def describe_environment() -> dict[str, Any]:
    """Describe the running process: package versions, git commit, command and machine.

    Returns:
        A JSON-ready dict with ``ncmonitor``, ``created``, ``command``, ``commit``, ``dirty``,
        ``versions`` and ``machine``. ``commit`` and ``dirty`` are of the repository that holds the
        working directory, ``None`` outside one. No environment variable is read or written, and
        ``command`` has no secrets: ``--token abc`` is ``--token '<redacted>'``.
    """
    from ncmonitor import __version__

    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "ncmonitor": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": processor(),
            "cpu_count": os.cpu_count(),
            "gpu": _gpu(),
        },
    }


def write_run(run_dir: Path, facts: Mapping[str, Any], file: str = RUN_FILE) -> None:
    """Write ``run.json`` so that a kill leaves the old file or the new one, never half of one.

    Secrets are left out.
    """
    part = run_dir / f"{file}.part"
    part.write_text(json.dumps(redacted(facts), indent=2) + "\n", encoding="utf-8")
    part.replace(run_dir / file)


def read_run(run_dir: str | Path, file: str = RUN_FILE) -> dict[str, Any]:
    """Read ``run.json``; an absent, damaged or foreign file gives an empty dict.

    Args:
        run_dir: Folder of the run.
        file: Name of the file.

    Returns:
        Versions, command, commit, options and facts of the run, by name; without the secrets that
        an earlier version has left there.
    """
    try:
        facts = json.loads((Path(run_dir) / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return redacted(facts) if isinstance(facts, dict) else {}


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def remote_url() -> str | None:
    """Return where the repository of the working directory comes from, as git has it."""
    return _git("remote", "get-url", "origin")


def _command() -> str:
    """Return the command line as it can be typed again, but for its secrets."""
    program, words = Path(sys.argv[0]), redacted_words(sys.argv[1:])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *words])
    return shlex.join([program.name, *words])


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # never import torch only to describe the machine
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(  # fixed arguments, no shell
            ["git", *args], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
