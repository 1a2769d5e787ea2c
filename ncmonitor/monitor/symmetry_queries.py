"""Questions to a table of symmetry: its groups and flows, and one quantity through training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from ncmonitor.symmetry.rows import OF_FLOWS, PARAMETERS, PLAIN

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Class collapse and orbit collapse in the same unit, the variance between classes.
OF_CLASSES: Final = "nc1_quotient"
OF_ORBITS: Final = "orbit_quot"
#: Of single precision, squared, and of some ten layers: a network that is invariant by
#: construction scatters this much along orbits, in units of its variance.
ROUNDING: Final = 1e-10


def flow_names(table: pd.DataFrame) -> list[str]:
    """Return the flows of a table, in its order."""
    measured = table[list(OF_FLOWS)].notna().any(axis="columns")
    return list(dict.fromkeys(table.loc[measured, "group"]))


def group_names(table: pd.DataFrame) -> list[str]:
    """Return the groups that act on inputs, in the table's order."""
    others = {PLAIN, PARAMETERS, *flow_names(table)}
    return [name for name in dict.fromkeys(table["group"]) if name not in others]


def common_groups(tables: Iterable[pd.DataFrame]) -> list[str]:
    """Return the groups that every table has, in the order of the first."""
    each = [group_names(table) for table in tables]
    return [name for name in (each[0] if each else []) if all(name in names for names in each)]


def split_of(table: pd.DataFrame) -> str:
    """Return the split to speak of: the training set, else the first one."""
    names = _splits(table)
    return "train" if "train" in names or not names else names[0]


def other_split(table: pd.DataFrame) -> str:
    """Return the first split beside that of :func:`split_of`; the same, if it is the only one."""
    split = split_of(table)
    return next((name for name in _splits(table) if name != split), split)


def _splits(table: pd.DataFrame) -> list[str]:
    """Return the splits whose samples were measured; parameters have none, and are in train."""
    return list(dict.fromkeys(table.loc[table["group"] != PARAMETERS, "split"].astype(str)))


def rows_of(
    table: pd.DataFrame, group: str, split: str, *, layer: str = "", element: str = ""
) -> pd.DataFrame:
    """Return the rows of one group and element through training, one for each epoch.

    Args:
        table: Of symmetry.
        group: Or flow, ``"plain"``, ``"parameters"``.
        split: Whose samples.
        layer: Empty: the classifier's input.
        element: Empty: of the whole group.
    """
    wanted = {"group": group, "split": split, "layer": layer, "element": element}
    kept = np.logical_and.reduce([table[key] == value for key, value in wanted.items()])
    return table[kept].drop_duplicates("epoch", keep="last").sort_values("epoch")


def element_names(table: pd.DataFrame, group: str, split: str, layer: str = "") -> list[str]:
    """Return the elements of a group that have rows of their own, in the table's order."""
    own = (table["group"] == group) & (table["split"] == split) & (table["layer"] == layer)
    return [name for name in dict.fromkeys(table.loc[own, "element"]) if name]


def course(
    table: pd.DataFrame, name: str, group: str, split: str, *, layer: str = "", element: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the epochs and the values of one quantity, ``nan`` where it is not finite.

    Args:
        table: Of symmetry.
        name: Of the quantity.
        group: As for :func:`rows_of`, and so the others.
        split: Whose samples.
        layer: Empty: the classifier's input.
        element: Empty: of the whole group.
    """
    rows = rows_of(table, group, split, layer=layer, element=element)
    values = rows[name].to_numpy(dtype=float)
    return rows["epoch"].to_numpy(dtype=float), np.where(np.isfinite(values), values, np.nan)
