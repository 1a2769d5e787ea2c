"""Histories as a collapsing run leaves them, drawn rather than trained: for plots and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ncmonitor.catalogue import METRICS
from ncmonitor.monitor.history import history_frame

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = 1437
#: Value at the untrained network, floor at the end; decays in between.
_COURSES = {
    "nc1": (2.0, 1.2e-3),
    "nc2_equinorm_means": (0.45, 0.05),
    "nc2_equinorm_w": (0.35, 0.04),
    "nc2_etf_means": (0.75, 0.055),
    "nc2_etf_w": (0.85, 0.04),
    "nc3_self_duality": (1.3, 0.05),
}
_COUNTS = {"n_classes_present": 10.0, "min_class_count": 140.0, "nc1_rank": 9.0}
_ZEROS = ("n_singleton_classes", "degenerate_classes", "neg_clips")


def collapse_rows(
    epochs: Iterable[int] = range(151),
    *,
    onset: int = 12,
    exits: Sequence[int] = (60, 61),
    failed: Sequence[int] = (90,),
    splits: Sequence[str] = ("train", "val"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of a run that enters the TPT at ``onset``, leaves it once and fails once."""
    rng = np.random.default_rng(seed)
    clock = {"inside": 0, "exits": 0, "reached": 0, "was": 0}
    rows = []
    for epoch in epochs:
        error = round(0.9 * np.exp(-0.45 * epoch) * SAMPLES) / SAMPLES if epoch < onset else 0.0
        error = 3 / SAMPLES if epoch in exits else error
        active = int(error == 0)
        clock["exits"] += int(clock["was"] and not active)
        clock["inside"] += active
        clock["reached"] |= active
        clock["was"] = active
        for split in splits:
            here = error if split == "train" else max(0.016, error)
            row: dict[str, Any] = {"epoch": epoch, "step": 12 * epoch, "split": split}
            row |= _metrics(epoch, split, here, rng)
            if epoch in failed:
                row |= dict.fromkeys(set(row) - {"epoch", "step", "split"}, np.nan)
            if split == "train":
                row |= _phase(epoch, onset, active, clock, epoch in failed)
            rows.append(row | {"seconds": 0.04})
    return rows


def collapse(*args: Any, **kwargs: Any) -> pd.DataFrame:
    """Return :func:`collapse_rows` as a table."""
    return history_frame(collapse_rows(*args, **kwargs))


def _metrics(epoch: int, split: str, error: float, rng: np.random.Generator) -> dict[str, float]:
    values = {"error": error, "cross_entropy": 0.004 + 2.3 * float(np.exp(-0.5 * epoch))}
    for entry in METRICS:
        if not entry.default:
            continue
        if entry.once and split != "train":
            continue
        start, floor = _COURSES.get(entry.name, (0.4, 0.02))
        decay = (start - floor) * np.exp(-5.5 * np.sqrt(epoch / 150))
        values[entry.name] = float((floor + decay) * np.exp(rng.normal(0, 0.05)))
    total = values["sk_breaking_means"]
    values |= {"sk_breaking_norm": 0.6 * total, "sk_breaking_pair": 0.8 * total}  # 0.36 + 0.64 = 1
    values |= {"nc4_disagreement": error, "ncc_accuracy": 1 - error, "feature_dtype": 24.0}
    return values | _COUNTS | dict.fromkeys(_ZEROS, 0.0)


def _phase(
    epoch: int, onset: int, active: int, clock: dict[str, int], failed: bool
) -> dict[str, float]:
    return {
        "tpt_active": np.nan if failed else active,
        "tpt_start_exact": onset if clock["reached"] else np.nan,
        "tpt_start_effective": onset - 1 if epoch >= onset - 1 else np.nan,
        "epochs_in_tpt": clock["inside"],
        "tpt_exits": clock["exits"],
        "wd_time": 0.01 * epoch,
    }
