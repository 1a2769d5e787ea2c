"""The catalogue as text for the terminal: a table of everything, or one quantity explained."""

from __future__ import annotations

import textwrap
from typing import Final

from ncmonitor.catalogue import CATALOGUE, MONITORED, Quantity
from ncmonitor.errors import InputError, nearest

_WIDTH: Final = 100
_NEEDS: Final = {
    "": "features and labels",
    "classifier": "features, labels and the classifier's weights",
    "decisions": "features, labels and logits (given, or from the classifier's weights)",
    "targets": "features and real-valued targets: ncmonitor.measure_regression",
    "input_symmetry": "inputs that a group acts on, and the network",
    "parameter_symmetry": "the weights through training",
}
_MONITOR: Final = "ncmonitor.callbacks.SymmetryMonitor"


def overview() -> str:
    """Return every quantity by group: name, whether it is a default, definition."""
    groups = dict.fromkeys(quantity.group for quantity in CATALOGUE.values())
    return "\n\n".join(
        [
            "* measured by default; others by name or group: metrics=['imbalance', 'vci'] or 'all'",
            *(_table(group) for group in groups if group not in MONITORED),
            f"measured by {_MONITOR}(groups), into symmetry.csv:",
            *map(_table, MONITORED),
            "ncmonitor metrics NAME explains one.",
        ]
    )


def _table(group: str) -> str:
    lines = [group]
    for quantity in CATALOGUE.values():
        if quantity.group == group:
            always = quantity.default or group in ("fit", "phase")
            head = f"  {'*' if always else ' '} {quantity.name:<27}"
            lines += textwrap.wrap(
                quantity.definition,
                _WIDTH,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
            )
    return "\n".join(lines)


def explain(name: str) -> str:
    """Return what a quantity is, or the table of a group.

    Raises:
        InputError: If there is none of that name.
    """
    groups = {quantity.group for quantity in CATALOGUE.values()}
    if name in CATALOGUE:  # NC1 is the name of a group, too
        family = f"\n\nthe group {_table(name)}" if name in groups else ""
        return _explained(CATALOGUE[name]) + family
    if name in groups:
        return _table(name)
    hint = nearest(name, [*CATALOGUE, *groups])
    raise InputError(f"there is no quantity or group {name!r}{hint or ': see ncmonitor metrics'}")


def _explained(quantity: Quantity) -> str:
    collapse = "not fixed" if quantity.collapse is None else f"{quantity.collapse:g}"
    always = quantity.default or quantity.group in ("fit", "phase")
    asked = "always" if always else f'with metrics=["{quantity.name}"]'
    monitored = quantity.group in MONITORED
    rows = {
        "definition": quantity.definition,
        "at collapse": "" if monitored and quantity.collapse is None else collapse,
        "if symmetric": "" if quantity.symmetric is None else f"{quantity.symmetric:g}",
        "no structure": quantity.null,
        "undefined": f"(nan) {quantity.undefined}" if quantity.undefined else "",
        "cost": quantity.cost,
        "needs": _NEEDS[quantity.group if monitored else quantity.needs],
        "value": "one number per class" if quantity.vector else "one number",
        "weighting": "as convention= says" if quantity.conventions else "",
        "group": quantity.group,
        "measured": f"by {_MONITOR}" if monitored else asked,
        "label": quantity.label,
        "source": quantity.source,
    }
    lines = [quantity.name, *textwrap.wrap(quantity.meaning, _WIDTH), ""]
    for head, text in rows.items():
        if text:
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=f"{head:<14}", subsequent_indent=" " * 14
            )
    return "\n".join(lines)
