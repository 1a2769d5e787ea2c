"""Questions to a history table: its splits, and the terminal phase of training (TPT) in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ncmonitor.monitor.history import LAYER_MARK, NULL_SPLIT, ONLINE_SPLIT

if TYPE_CHECKING:
    import pandas as pd


def split_names(history: pd.DataFrame) -> list[str]:
    """Return the splits of the table without those of inner layers, train first."""
    names = {split for split in history["split"] if LAYER_MARK not in split}
    return sorted(names, key=lambda s: (s != "train", s == NULL_SPLIT, s))


def split_rows(history: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of one split in the order of epochs."""
    return history[history["split"] == split].sort_values("epoch")


def other_split(history: pd.DataFrame) -> str | None:
    """Return the first split that is not the training set: validation where there is one."""
    others = set(split_names(history)) - {"train", NULL_SPLIT, ONLINE_SPLIT}
    names = sorted(others, key=lambda s: (not s.startswith("val"), s))
    return names[0] if names else None


def is_recorded(history: pd.DataFrame, name: str) -> bool:
    """Tell whether anything was ever written for a quantity, ``nan`` included."""
    return name in history and name not in history.attrs.get("unrecorded", ())


def tpt_start(history: pd.DataFrame) -> int | None:
    """Return the completed epochs when the train error first vanished, ``None`` if it never did."""
    train = split_rows(history, "train")
    if "tpt_start_exact" not in train:
        return None
    known = train["tpt_start_exact"].dropna()
    return int(known.iloc[-1]) if len(known) else None


def tpt_spans(history: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the stretches (first, last epoch) in which every measurement was in the TPT."""
    train = split_rows(history, "train")
    if "tpt_active" not in train:
        return []
    spans: list[tuple[int, int]] = []
    first = None
    last = 0
    for epoch, active in zip(train["epoch"], train["tpt_active"], strict=True):
        if active == 1:
            first, last = (int(epoch) if first is None else first), int(epoch)
        elif first is not None:
            spans.append((first, last))
            first = None
    if first is not None:
        spans.append((first, last))
    return [span for span in spans if span[0] < span[1]]
