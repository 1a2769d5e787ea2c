"""The runs of a comparison: found on disk, read, and named so that they can be told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from ncmonitor.errors import InputError
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.history_queries import tpt_start
from ncmonitor.monitor.provenance import CONFIG_FILE, read_run
from ncmonitor.redact import redacted

if TYPE_CHECKING:
    import pandas as pd

_MOST: Final = 10_000  # options of one run
#: Options that do not change what is trained or measured: the seed, folders, loggers, display.
_FREE: Final = frozenset(
    {
        *(
            "seed_everything",
            "threads",
            "expect",
            "figures",
            "ckpt_path",
            "weights_only",
            "nc.verbose",
        ),
        *("trainer.default_root_dir", "trainer.logger", "trainer.log_every_n_steps"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
        *("data.root", "data.download", "data.num_workers"),
    }
)


@dataclass(frozen=True, eq=False)
class RunFolder:
    """One run as it lies on disk.

    Attributes:
        folder: Where it lies.
        name: The end of its path, as much of it as tells it from the others.
        history: Its table.
        facts: What ``run.json`` says; empty without one.
        options: Its ``config.yaml`` as dotted names, without secrets; ``None`` where that is
            missing or damaged.
    """

    folder: Path
    name: str
    history: pd.DataFrame
    facts: dict[str, Any]
    options: dict[str, str] | None

    @property
    def seed(self) -> int | None:
        """Seed of the run, as recorded, ``None`` where it was not."""
        seed = self.facts.get("seed")
        return seed if isinstance(seed, int) else None

    @cached_property
    def onset(self) -> int | None:
        """Completed epochs when the train error first vanished, ``None`` if it never did."""
        return tpt_start(self.history)


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """Return the run folders that paths stand for: themselves, or the runs below them.

    Raises:
        InputError: If a run comes twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        # A folder without any run is refused when it is read.
        found += [path] if (path / HISTORY_FILE).is_file() else _below(path) or [path]
    known: set[Path] = set()
    for folder in found:
        if folder.resolve() in known:
            raise InputError(f"expected each run once, but {folder} was given twice")
        known.add(folder.resolve())
    return found


def _below(path: Path) -> list[Path]:
    # Four levels reach every layout of ours, without walking somebody's whole disk.
    patterns = (f"{'*/' * depth}{HISTORY_FILE}" for depth in range(1, 5))
    return sorted({file.parent for p in patterns for file in path.glob(p)}, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order ``seed10`` after ``seed9``."""
    words = re.split(r"(\d+)", str(path))
    return [(int(word) if word.isdecimal() else -1, word) for word in words]


def read_runs(folders: Sequence[Path]) -> tuple[list[RunFolder], list[str]]:
    """Read runs, leaving out those that have not measured anything yet.

    Args:
        folders: Run folders, each once.

    Returns:
        The runs, and the names of those left out.

    Raises:
        InputError: If a folder holds no run or cannot be read, or no run has a measured epoch.
    """
    runs, empty = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            history = folder / HISTORY_FILE
            if len(folders) > 1 and history.is_file() and history.read_bytes().count(b"\n") < 2:
                empty.append(name)
                continue
            runs.append(
                RunFolder(folder, name, read_history(folder), read_run(folder), _config(folder))
            )
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    if not runs:
        raise InputError(f"none of the {len(folders)} runs has a measured epoch yet")
    return runs, empty


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _config(folder: Path) -> dict[str, str] | None:
    try:
        loaded = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        # A file may hold lists that hold themselves: nothing is unfolded beyond what is read.
        return dict(islice(_flat(loaded), _MOST)) if isinstance(loaded, dict) else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _flat(tree: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield options as ``model.lr`` and their values as text, without those that are free."""
    if prefix in _FREE or prefix.endswith((".dirpath", ".save_dir")):
        return
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            inner = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
            yield from _flat(value, inner)
    elif isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        for i, value in enumerate(tree):
            yield from _flat(value, f"{prefix}.{i}")
    else:
        yield prefix, json.dumps(redacted(tree, prefix), default=str).strip('"')
