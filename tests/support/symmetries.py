"""Tables of symmetry as a run leaves them, drawn rather than trained: for plots and reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ncmonitor.monitor.symmetry_table import symmetry_frame
from ncmonitor.symmetry.rows import OF_ELEMENTS

if TYPE_CHECKING:
    import pandas as pd

#: What augmentation, or the architecture, leaves of orbit collapse: start and end.
WAYS: Mapping[str, tuple[float, float]] = {
    "plain": (0.8, 0.58),
    "augmented": (0.8, 0.012),
    "equivariant": (3e-14, 4e-13),
}
ELEMENTS = ("rot90", "rot180", "rot270")


def symmetry_rows(
    epochs: Iterable[int] = (0, 1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 100),
    *,
    way: str = "plain",
    splits: Iterable[str] = ("train", "val"),
    groups: Mapping[str, Iterable[str]] | None = None,
    layers: Iterable[str] = (),
    flows: Iterable[str] = ("shift_right",),
    parameters: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of a run whose classes collapse 50-fold and whose orbits do as ``way`` says."""
    rng = np.random.default_rng(seed)
    groups = {"rotations90": ELEMENTS} if groups is None else groups
    rows: list[dict[str, Any]] = []
    for epoch in epochs:
        for split in splits:
            for layer in ("", *layers):
                place = {"epoch": epoch, "step": 10 * epoch, "split": split, "layer": layer}
                rows += _of_layer(place, way, groups, flows, rng)
        if parameters:
            place = {"epoch": epoch, "step": 10 * epoch, "split": "train", "layer": ""}
            ratio = {"w_mean_law_ratio": 1 + 1e-6 * epoch}
            rows.append({**place, "group": "parameters", "element": "", **ratio})
            balance = {"layer_balance": 2.5 - 0.01 * epoch}
            rows.append({**place, "group": "parameters", "element": "0 -> 2", **balance})
    return rows


def symmetry(*args: Any, **kwargs: Any) -> pd.DataFrame:
    """Return :func:`symmetry_rows` as a table."""
    return symmetry_frame(symmetry_rows(*args, **kwargs))


def _of_layer(
    place: dict[str, Any], way: str, groups: Mapping[str, Iterable[str]], flows: Iterable[str],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:  # fmt: skip
    decay = float(np.exp(-place["epoch"] / 12))
    start, end = WAYS[way]
    quot = (end + (start - end) * decay) * float(np.exp(rng.normal(0, 0.05)))
    inner = bool(place["layer"])
    plain = {"nc1": 0.02 + decay, "nc1_quotient": (0.243 - 0.0049) * decay + 0.0049}
    scores = {} if inner else {"acc": 1 - 0.9 * decay}
    rows = [{**place, "group": "plain", "element": "", **plain, **scores, "seconds": 0.1}]
    for group, elements in groups.items():
        one = dict.fromkeys(("inv_error", "inv_error_logits", "tv"), min(1.0, quot))
        one |= {"acc": 0.9 - 0.8 * min(1.0, quot), "acc_drop": 0.8 * min(1.0, quot)}
        one |= {"pred_consistency": 1 - 0.8 * min(1.0, quot), "equiv_r2": 0.4}
        one = {name: one[name] for name in OF_ELEMENTS}
        if inner:
            one = {name: one[name] for name in ("inv_error", "equiv_r2")}
        for i, element in enumerate(elements):
            moved = {name: value * (1 - 0.1 * i) for name, value in one.items()}
            rows.append({**place, "group": group, "element": element, **moved})
        whole = {"orbit_share": quot / (quot + 0.01), "orbit_quot": quot, "orbit_nc1": quot / 9}
        whole |= {"between_nc1": decay / 9, "nc1_aug": (quot + decay) / 9}
        whole |= {"group_law": 0.3, "group_law_scaled": 0.1}
        whole |= {} if inner else {"acc_orbit_mean": one["acc"], "acc_orbit_worst": 0.3}
        rows.append({**place, "group": group, "element": "", **one, **whole, "seconds": 0.2})
    for flow in flows:
        lie = {"lie_error": 0.02 + 0.1 * decay}
        lie |= {} if inner else {"lie_error_logits": 0.03 + 0.1 * decay}
        rows.append({**place, "group": flow, "element": "", **lie})
    return rows
