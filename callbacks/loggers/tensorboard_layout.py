"""TensorBoard only: a tab that shows what belongs together in one chart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import pytorch_lightning as pl

from ncmonitor.callbacks.fit_measurements import excused
from ncmonitor.catalogue import CATALOGUE, quantity_of

#: Title of a category by group of the catalogue; diagnostics stay among the other scalars.
TITLES: Final = {
    "fit": "Training", "phase": "Terminal phase", "nc1": "NC1 variability collapse",
    "nc2": "NC2 simplex ETF", "nc3": "NC3 self-duality", "nc4": "NC4 nearest class centre",
    "symmetry": "Symmetry", "imbalance": "Imbalance", "many_classes": "Many classes",
    "loss_aware": "Loss", "nc0": "NC0 row mean", "rank_norm": "Norms and ranks",
}  # fmt: skip


def lay_out(trainer: pl.Trainer, keys: Mapping[str, str]) -> None:
    """Write the layout of the custom-scalars tab to TensorBoard loggers, once a run.

    Args:
        trainer: Other loggers than TensorBoard's are passed over.
        keys: Every key that will be logged, with the name of its quantity.
    """
    if not trainer.is_global_zero:
        return
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if any(cls.__name__ == "TensorBoardLogger" for cls in type(logger).__mro__):
            with excused("the TensorBoard charts are not set up"):
                logger.experiment.add_custom_scalars(layout(keys))


def layout(keys: Mapping[str, str]) -> dict[str, dict[str, list[Any]]]:
    """Return one chart for each quantity, with a line for each split and layer.

    Args:
        keys: Every key that will be logged, with the name of its quantity.

    Returns:
        Charts by title in categories by title, as ``SummaryWriter.add_custom_scalars`` takes them.
    """
    lines: dict[str, list[str]] = {}
    for key, column in keys.items():
        quantity = quantity_of(column)
        if quantity is not None and quantity.group in TITLES:
            lines.setdefault(quantity.name, []).append(f"^{re.escape(key)}$")  # tags are patterns
    return {
        title: charts
        for group, title in TITLES.items()
        if (charts := {
            CATALOGUE[name].label: ["Multiline", lines[name]]
            for name in CATALOGUE
            if name in lines and CATALOGUE[name].group == group
        })
    }  # fmt: skip
