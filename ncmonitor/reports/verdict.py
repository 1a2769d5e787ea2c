"""What a history says, in plain words: numbers and their epochs, never a judgement beyond them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.catalogue import CATALOGUE, Quantity
from ncmonitor.monitor.history_queries import is_recorded, other_split, split_rows, tpt_start

if TYPE_CHECKING:
    import pandas as pd

#: One number for each of NC1 to NC4.
MAIN: Final = ("nc1", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")
_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class CurrentValue:
    """Where one quantity of the training set stands.

    Attributes:
        quantity: Its entry in the catalogue.
        epoch: The last epoch at which the training set was measured with success.
        value: Its value there; ``nan`` where undefined.
        lowest: The smallest value of the whole history, and its epoch.
        before: The value at the start of the terminal phase (else of the history), and its epoch.
        other: Its value at that epoch on the first other split, and the split's name.
        recorded: Whether anything was ever written for it, ``nan`` included.
    """

    quantity: Quantity
    epoch: int
    value: float
    lowest: tuple[float, int] | None
    before: tuple[float, int] | None
    other: tuple[float, str] | None
    recorded: bool


def number(value: float) -> str:
    """Write a number for a reader: four digits, a power of ten for the very small and large."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return (
            f"{value + 0.0:.0f}" if float(value).is_integer() else f"{value:.4g}".replace("-", "−")
        )
    digits, power = f"{value:.2e}".replace("-", "−", int(value < 0)).split("e")
    return f"{digits}×10{str(int(power)).translate(_SUPERSCRIPT)}"


def headline(history: pd.DataFrame) -> str:
    """Say in one or two sentences whether and when the terminal phase was reached."""
    train = split_rows(history, "train")
    if train.empty:
        return "The training set was not measured, so nothing can be said about its collapse."
    epoch, last = int(train["epoch"].iloc[-1]), float(train["error"].iloc[-1])
    start = tpt_start(history)
    if start is None:
        return _not_reached(train, epoch, last)
    when = _when(train, start)
    active = float(train["tpt_active"].iloc[-1])
    if math.isnan(active):
        return (
            f"Training error reached 0 {when}. Whether the network is still in the terminal phase "
            f"at epoch {epoch} is not known: that measurement gave no training error."
        )
    if active == 0:
        return (
            f"Training error first reached 0 {when}, but the last measurement, epoch {epoch}, is "
            f"outside the terminal phase: the training error is {number(last)} again."
        )
    if start == epoch:
        return f"Training error reached 0 {when}, the last measurement: the terminal phase begins."
    age = _count(epoch - start, "epoch")
    if train["tpt_exits"].max() > 0:
        return (
            f"Training error first reached 0 {when}; the last measurement, epoch {epoch}, is in "
            f"the terminal phase, {age} after it first began."
        )
    return (
        f"Training error reached 0 {when}; the last measurement, epoch {epoch}, is {age} into the "
        "terminal phase."
    )


def standings(history: pd.DataFrame) -> list[CurrentValue]:
    """Say where NC1 to NC4 stand on the training set at its last successful measurement."""
    train = split_rows(history, "train")
    done = train[~_failed(train)]
    if done.empty:
        return []
    epoch, start, split = int(done["epoch"].iloc[-1]), tpt_start(history), other_split(history)
    found = []
    for name in MAIN:
        known = done[["epoch", name]].dropna()
        base = known if start is None else known[known["epoch"] >= start]
        earlier = base[base["epoch"] < epoch]
        other = None
        if split is not None:
            there = split_rows(history, split)
            values = there.loc[there["epoch"] == epoch, name]
            other = (float(values.iloc[-1]), split) if len(values) else None
        least = known.sort_values(name, kind="stable").iloc[0] if len(known) else None
        found.append(
            CurrentValue(
                CATALOGUE[name],
                epoch,
                float(done[name].iloc[-1]),
                None if least is None else (float(least[name]), int(least["epoch"])),
                (float(earlier[name].iloc[0]), int(earlier["epoch"].iloc[0]))
                if len(earlier)
                else None,
                other,
                is_recorded(history, name),
            )
        )
    return found


def cautions(history: pd.DataFrame, run: dict[str, Any]) -> list[str]:
    """List what a reader should know before believing the numbers."""
    train = split_rows(history, "train")
    return [
        *_about_failures(train),
        *_about_phase(train),
        *_about_classes(train, run),
        *_about_the_run(history, run),
    ]


def _not_reached(train: pd.DataFrame, epoch: int, last: float) -> str:
    known = train[["epoch", "error"]].dropna()
    if known.empty:
        return "No training error was measured: whether the terminal phase was reached is unknown."
    least = known.sort_values("error", kind="stable").iloc[0]
    lowest = f"{number(float(least['error']))} at epoch {int(least['epoch'])}"
    if math.isnan(last):
        return f"The terminal phase was not reached: the lowest training error is {lowest}."
    which = "last" if len(train) > 1 else "only"
    said = f"the training error is {number(last)} at the {which} measurement, epoch {epoch}"
    if last > least["error"]:
        said += f" (lowest: {lowest})"
    return f"The terminal phase was not reached: {said}."


def _when(train: pd.DataFrame, start: int) -> str:
    known = train.loc[train["error"].notna(), "epoch"]
    before = known[known < start]
    if len(before) and int(before.iloc[-1]) < start - 1:
        return f"by epoch {start} (the measurement before is epoch {int(before.iloc[-1])})"
    return f"at epoch {start}"


def _failed(train: pd.DataFrame) -> pd.Series[bool]:
    return train[list(MAIN)].isna().all(axis="columns")


def _about_failures(train: pd.DataFrame) -> list[str]:
    failed = _failed(train)
    if not failed.any():
        return []
    epochs = train.loc[failed, "epoch"].tolist()
    said = [
        f"{len(epochs)} of {_count(len(train), 'measurement')} of the training set failed or came "
        f"out undefined (nan): {_epochs(epochs)}. The curves have a gap there."
    ]
    if failed.all():
        return ["No measurement of the training set succeeded: NC1 to NC4 are nan throughout."]
    if failed.iloc[-1]:
        good = int(train.loc[~failed, "epoch"].iloc[-1])
        said.insert(
            0,
            f"The last measurement, epoch {epochs[-1]}, failed or came out undefined (nan). NC1 to "
            f"NC4 above are those of epoch {good}, the last that succeeded.",
        )
    return said


def _about_phase(train: pd.DataFrame) -> list[str]:
    exits, inside = train["tpt_exits"].dropna(), train["epochs_in_tpt"].dropna()
    if exits.empty or exits.iloc[-1] == 0:
        return []
    often = "once" if exits.iloc[-1] == 1 else f"{number(exits.iloc[-1])} times"
    spent = f"; {number(inside.iloc[-1])} epochs were spent without any" if len(inside) else ""
    return [f"The training error came back {often} after it first vanished{spent}."]


def _about_classes(train: pd.DataFrame, run: dict[str, Any]) -> list[str]:
    done = train[~_failed(train)]
    if done.empty:
        return []
    row = done.iloc[-1]
    said = []
    empty = [name for name in MAIN if math.isnan(row[name])]
    for known, what in (
        (True, f"Undefined (nan) at epoch {int(row['epoch'])}"),
        (False, "Not measured"),
    ):
        if labels := [CATALOGUE[n].label for n in empty if is_recorded(train, n) is known]:
            said.append(f"{what}: {', '.join(labels)}.")
    classes, expected = row["n_classes_present"], section(run, "measurement").get("num_classes")
    if isinstance(expected, int) and classes < expected:
        said.append(
            f"Only {number(classes)} of the {expected} classes have samples; every number is about "
            "those."
        )
    if classes == 2:
        said.append(
            "With two classes the centred class means are opposite by construction: NC2 of the "
            "means and the equiangularity of W are always 0 and say nothing about collapse."
        )
    for name in ("degenerate_classes", "n_singleton_classes", "neg_clips"):
        if row[name] > 0:
            entry = CATALOGUE[name]
            said.append(f"{entry.label}: {number(row[name])} (should be 0). {entry.meaning}")
    if row["nc1_rank"] < classes - 1:
        said.append(
            f"The class means span {number(row['nc1_rank'])} of {number(classes - 1)} directions, "
            "and NC1 looks only along those."
        )
    return said


def _about_the_run(history: pd.DataFrame, run: dict[str, Any]) -> list[str]:
    said = []
    if other_split(history) is None:
        said.append("Only the training set was measured: nothing here speaks of unseen data.")
    if not run:
        said.append("run.json is missing or unreadable: how this was measured is not recorded.")
    planned, reached = run.get("max_epochs"), int(history["epoch"].max())
    if run and not run.get("finished"):
        said.append("The run has not recorded its end: it is still going, or was stopped.")
    elif isinstance(planned, int) and 0 <= reached < planned:
        said.append(f"The last measured epoch is {reached} of {planned} planned.")
    return said


def section(run: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a nested part of ``run.json``, empty where it is missing or not what it should be."""
    part = run.get(key)
    return part if isinstance(part, dict) else {}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _epochs(epochs: Sequence[int]) -> str:
    shown = ", ".join(str(e) for e in epochs[:6]) + (", …" if len(epochs) > 6 else "")
    return f"epoch {shown}" if len(epochs) == 1 else f"epochs {shown}"
