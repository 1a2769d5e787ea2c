"""What a run recorded about itself: how it was measured, where it comes from, what it left."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncmonitor.reports.page import moment, words
from ncmonitor.reports.verdict import section

if TYPE_CHECKING:
    import pandas as pd


def measured(history: pd.DataFrame, run: dict[str, Any]) -> list[tuple[str, str]]:
    """List how the numbers were measured, and what that cost.

    Args:
        history: The run's.
        run: Its ``run.json``.
    """
    how, timing = section(run, "measurement"), section(run, "timing")
    samples = section(how, "splits")
    epochs = sorted(set(history["epoch"]))
    each = history.groupby("epoch")["seconds"].sum(min_count=1).median()
    return [
        ("Classifier", words(how.get("classifier"))),
        ("Classes", words(how.get("num_classes"))),
        ("Feature dimension", words(how.get("feature_dim"))),
        ("Feature precision", words(how.get("feature_dtype"))),
        ("Convention", words(how.get("convention"))),
        ("Schedule", words(how.get("schedule"))),
        ("Samples", words(", ".join(f"{split} {n}" for split, n in samples.items()))),
        ("Measured epochs", f"{len(epochs)}, from {epochs[0]} to {epochs[-1]}"),
        ("Time per measured epoch", f"{each:.3g} s (median)" if each == each else words(None)),
        ("Time measuring", _share(timing.get("monitor_seconds"), timing.get("fit_seconds"))),
    ]


def environment(run: dict[str, Any]) -> list[tuple[str, str]]:
    """List where a run comes from: when, which commit, on what machine, with which versions."""
    commit = words(run.get("commit"))
    return [
        ("Started", moment(run.get("created"))),
        ("Finished", moment(run.get("finished"))),
        ("Seed", words(run.get("seed"))),
        ("Planned epochs", words(run.get("max_epochs"))),
        ("Commit", commit + (", with uncommitted changes" if run.get("dirty") is True else "")),
        ("Machine", words(_line(section(run, "machine")))),
        *((name, words(v)) for name, v in section(run, "versions").items()),
    ]


def wandb_runs(folder: Path) -> list[str]:
    """List the offline W&B runs in a run folder, relative to it and quoted for a shell."""
    found = sorted(path for path in folder.glob("wandb/offline-run-*") if path.is_dir())
    return [shlex.quote(path.relative_to(folder).as_posix()) for path in found]


def files(folder: Path, names: tuple[str, ...]) -> list[str]:
    """List those of the files that the run folder holds."""
    return [name for name in names if (folder / name).is_file()]


def _share(part: object, whole: object) -> str:
    if not isinstance(part, int | float):
        return words(None)
    if not isinstance(whole, int | float) or not whole >= part:
        return f"{part:.3g} s"
    share = f" ({part / whole:.1%})".replace("%", " %") if whole > 0 else ""
    return f"{part:.3g} s of the {whole:.3g} s of the fit{share}"


def _line(pairs: dict[str, Any]) -> str:
    known = {key.replace("_", " "): value for key, value in pairs.items() if value is not None}
    return "; ".join(f"{key} {value}" for key, value in known.items())
