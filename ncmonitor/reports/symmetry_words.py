"""What a table of symmetry says, in plain words: numbers and their epochs, group by group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from ncmonitor.monitor.symmetry_queries import (
    OF_CLASSES,
    OF_ORBITS,
    ROUNDING,
    course,
    group_names,
    other_split,
    rows_of,
    split_of,
)
from ncmonitor.reports.verdict import number as exact
from ncmonitor.symmetry.rows import PARAMETERS, PLAIN

if TYPE_CHECKING:
    import pandas as pd

#: So far, and to so much of the variance between classes, must scatter fall to be collapse. The
#: fall alone says little: the variance between the classes of an untrained network is tiny.
_COLLAPSED: Final = 10.0
_SMALL: Final = 0.1
#: So many times more than within classes is scatter along orbits of another size.
_APART: Final = 10.0
#: Rounding of the row mean in single precision over many thousand steps stays below this.
_LAW: Final = 1e-2


def findings(table: pd.DataFrame) -> list[str]:
    """Return one sentence for each thing that a table of symmetry shows.

    Args:
        table: Of a run.
    """
    split = split_of(table)
    said: list[str] = []
    for group in group_names(table):
        said += _collapse(table, group, split)
        said += _accuracy(table, group, other_split(table))
        said += _bound(table, group, split)
        said += _maps(table, group, split)
    return [*said, *_law(table)]


def number(value: float) -> str:
    """Write three digits of a number: nobody reads more in a sentence."""
    return exact(float(f"{value:.3g}"))


def fold(first: float, last: float) -> str:
    """Say how a positive number changed.

    >>> fold(0.243, 0.0049), fold(0.8, 0.58), fold(1.0, 3.0), fold(1.0, 1.01)
    ('fell 50-fold', 'fell 1.4-fold', 'rose 3-fold', 'stayed as it was')
    """
    ratio = first / last
    if 1 / 1.05 < ratio < 1.05:
        return "stayed as it was"
    size = max(ratio, 1 / ratio)
    return f"{'fell' if ratio > 1 else 'rose'} {exact(float(f'{size:.2g}'))}-fold"


def _collapse(table: pd.DataFrame, group: str, split: str) -> Iterator[str]:
    classes = dict(zip(*course(table, OF_CLASSES, PLAIN, split), strict=True))
    orbits = dict(zip(*course(table, OF_ORBITS, group, split), strict=True))
    both = [
        e for e in classes if math.isfinite(classes[e]) and math.isfinite(orbits.get(e, np.nan))
    ]
    if not both:
        return
    first, last = both[0], both[-1]
    if orbits[last] < ROUNDING:
        yield f"At epoch {last:.0f} the features are invariant under {group} to rounding."
        return
    if first == last or min(classes[first], classes[last], orbits[first]) <= ROUNDING:
        return
    of_classes, of_orbits = (classes[first], classes[last]), (orbits[first], orbits[last])
    yield (
        f"From epoch {first:.0f} to {last:.0f} the scatter within classes {_moved(*of_classes)}, "
        f"the scatter along orbits of {group} {_moved(*of_orbits)} (both over the variance between "
        f"classes){_verdict(of_classes, of_orbits)}."
    )


def _moved(first: float, last: float) -> str:
    said = fold(first, last)
    return f"{'stayed at' if said.startswith('stayed') else f'{said} to'} {number(last)}"


def _verdict(classes: tuple[float, float], orbits: tuple[float, float]) -> str:
    """Say whether orbits collapsed too, if the first and last values leave no doubt of it."""
    if not _has_collapsed(*classes):
        return ""
    if orbits[1] > _SMALL and orbits[1] >= _APART * classes[1]:
        return ": the collapse of the classes did not bring invariance"
    return ": orbits collapsed with the classes" if _has_collapsed(*orbits) else ""


def _has_collapsed(first: float, last: float) -> bool:
    return last <= _SMALL and first >= _COLLAPSED * last


def _accuracy(table: pd.DataFrame, group: str, split: str) -> Iterator[str]:
    last = rows_of(table, group, split).tail(1)
    plain = rows_of(table, PLAIN, split).tail(1)
    if last.empty or plain.empty:
        return
    mean, worst = (float(last[name].iloc[0]) for name in ("acc_orbit_mean", "acc_orbit_worst"))
    untouched = float(plain["acc"].iloc[0])
    if math.isfinite(mean + worst + untouched):
        yield (
            f"On {split}, accuracy is {number(untouched)}; over the transforms of {group}, of "
            f"which the identity is one, it is {number(mean)} on average, and {number(worst)} of "
            "the samples are right under all of them."
        )


def _bound(table: pd.DataFrame, group: str, split: str) -> Iterator[str]:
    """Say the certificate: half the mean squared distance in an orbit is at most tr Σ_W.

    Not where estimates from drawn transforms, whose noise can be larger, contradict it.
    """
    last = rows_of(table, group, split).tail(1)
    if last.empty:
        return
    orbit, share = (float(last[name].iloc[0]) for name in (OF_ORBITS, "orbit_share"))
    if math.isfinite(orbit) and 0 < share <= 1 and orbit > ROUNDING:
        yield (
            f"Certificate: two transforms of a sample of {split} under {group} are apart by "
            f"{number(orbit)}\u00a0tr\u00a0Σ_B (half their mean squared distance); the variance "
            f"within classes of the augmented set, {number(orbit / share)}\u00a0tr\u00a0Σ_B, "
            "bounds that."
        )


def _maps(table: pd.DataFrame, group: str, split: str) -> Iterator[str]:
    last = rows_of(table, group, split).tail(1)
    r2 = float(last["equiv_r2"].iloc[0]) if len(last) else math.nan
    if not math.isfinite(r2):
        return
    law = float(last["group_law_scaled"].iloc[0])
    said = (
        f"One linear map for each transform of {group} explains {number(r2)} of the variance of "
        "the transformed features on held-out samples"
    )
    if math.isfinite(law):
        said += f"; these maps miss the group law by {number(law)} (weighted by the features)"
    yield f"{said}."


def _law(table: pd.DataFrame) -> Iterator[str]:
    epochs, values = course(table, "w_mean_law_ratio", PARAMETERS, "train")
    known = np.isfinite(values) & (epochs > 0)  # at first the law holds by definition
    if not known.any():
        return
    epoch, ratio = int(epochs[known][-1]), float(values[known][-1])
    said = f"At epoch {epoch} the classifier's mean row is {exact(ratio)} times what weight decay "
    said += "alone would leave of it"
    holds = abs(ratio - 1) < _LAW
    yield said + (": the law of SGD with softmax holds." if holds else ": something else moves it.")
