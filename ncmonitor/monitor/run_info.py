"""What a run folder tells about its run, for the record that others keep of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.monitor.provenance import CONFIG_FILE, read_run
from ncmonitor.redact import redacted

if TYPE_CHECKING:
    import pandas as pd

#: Names of the pictures that training draws and logs, as files and as keys of media.
PICTURES: Final = (
    *("curves", "gram", "simplex", "spectrum", "layers", "phase", "irrep_budget", "animation"),
)
#: Folder of runs that belong together: of seeds, of ways, or of both.
_SERIES: Final = re.compile(r"\d{8}-\d{6}-(ways\d+(-seeds\d+)?|([a-z][a-z0-9_]*-)?seeds\d+)(-\d+)?")
_SUFFIXES: Final = (".png", ".gif")
#: Of ``run.json``, beside how the run was measured.
_KEPT: Final = ("ncmonitor", "versions", "commit", "dirty", "command", "created", "seed")


def group_of(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """Return the group: runs that differ by seed or way alone lie in one folder."""
    parent = folder.resolve().parent.name
    return parent if _SERIES.fullmatch(parent) else facts.get("recipe")


def options_of(folder: Path) -> dict[str, Any]:
    """Return the options of a run of ``ncmonitor fit`` without secrets; nothing for other runs."""
    import yaml

    try:
        options = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return redacted(options) if isinstance(options, dict) else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def facts_of(folder: Path, history: pd.DataFrame) -> dict[str, Any]:
    """Return what the callback writes into the config: how the run was measured, and with what."""
    run = read_run(folder)
    how = run.get("measurement")
    facts = dict(how) if isinstance(how, dict) else {}
    facts |= {name: run[name] for name in _KEPT if name in run}
    train = history.loc[history["split"] == "train"]
    for name in ("tpt_start_exact", "tpt_start_effective"):
        known = train[name].dropna()
        if len(known):
            facts[name] = float(known.iloc[-1])
    return facts


def pictures_of(folder: Path) -> list[Path]:
    """Return the pictures that training has drawn: ``figures`` may hold those for a paper too."""
    known = (p for p in folder.glob("figures/*") if p.stem in PICTURES)
    return sorted(path for path in known if path.suffix.lower() in _SUFFIXES)
