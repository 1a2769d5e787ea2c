"""The figures of ``recipes/RESULTS.md``, drawn from ``recipes/results``.

``python tests/support/recipe_figures.py`` writes them into that folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.symmetry_queries import ROUNDING
from ncmonitor.plots.style import SERIES, own_style
from ncmonitor.recipes.free_features_theory import seli_limit
from ncmonitor.reports.comparison.group_plots import ORDER_PARAMETERS
from recipe_results import RESULTS, known_runs, last_rows

QUANTITIES: Final = ("nc1", "nc2_etf_means", "nc3_self_duality")
WAYS: Final = ("plain", "augmented", "equivariant")
ORBITS: Final = {
    "nc1_quotient, upright": ("train", "plain/nc1_quotient"),
    "orbit_quot": ("train", "rotations90/orbit_quot"),
    "test accuracy, worst of orbit": ("val", "rotations90/acc_orbit_worst"),
}
QUICK: Final = ("digits", "mnist_quick", "cifar10_quick", "random_labels")


def history(label: str, split: str = "train") -> pd.DataFrame:
    """Return the measured epochs of a run, the untrained network left out: the axis is a log."""
    table = pd.read_csv(RESULTS / f"{label}.csv")
    return table[(table["split"] == split) & (table["epoch"] > 0)].assign(run=label)


def balanced() -> Figure:
    """Draw NC1 to NC3 of the balanced recipes: the mean of the seeds, and their extent."""
    table = pd.concat([history(label) for label in QUICK])
    return _panels(table, QUANTITIES, "run", SERIES[: len(QUICK)])


def random_labels() -> Figure:
    """Draw the NC1 of true and of random labels, on the training and on the test set."""
    parts = []
    for label in ("cifar10_quick", "random_labels"):
        parts += [history(label, split).assign(split=split) for split in ("train", "val")]
    table = pd.concat(parts)
    with own_style():
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        ax = figure.subplots()
        look = {"hue": "run", "style": "split", "palette": SERIES[:2], "errorbar": ("pi", 100)}
        sns.lineplot(table, x="epoch", y="nc1", ax=ax, **look)
        _finish(ax, "nc1")
    return figure


def imbalance() -> Figure:
    """Draw what unequal classes leave of the ETF: network, free features and the SELI limit."""
    rows = []
    for label in known_runs():
        if found := re.fullmatch(r"(imbalanced|ufm_imbalanced)_R(\d+)", label):
            kind = "ConvNet on MNIST" if found[1] == "imbalanced" else "unconstrained features"
            row = last_rows(label).iloc[0]
            rows.append(_point(int(found[2]), kind, row["minority_cos"], row["norm_ratio"]))
    for _, row in last_rows("imbalanced").iterrows():
        rows.append(_point(100, "ConvNet on MNIST", row["minority_cos"], row["norm_ratio"]))
    for ratio in sorted({row["ratio"] for row in rows}):
        limit = seli_limit([1000] * 5 + [1000 // ratio] * 5, ["imbalance"])
        rows.append(_point(ratio, "SELI limit", limit.minority_cos, limit.norm_ratio))
    return _by_ratio(pd.DataFrame(rows), ("minority_cos", "norm_ratio"))


def rotations() -> Figure:
    """Draw collapse of the classes, collapse of the orbits and accuracy on whole orbits."""
    every = {"digits_rot90": "digits", "mnist_rotation": "MNIST"}
    data = {name: title for name, title in every.items() if f"{name}_plain" in known_runs()}
    with own_style():
        figure = Figure(figsize=(9.0, 2.6 * len(data)), layout="constrained")
        grid = figure.subplots(len(data), 3, squeeze=False)
        for axes, (recipe, title) in zip(grid, data.items(), strict=True):
            parts = [pd.read_csv(RESULTS / f"{recipe}_{w}.csv").assign(way=w) for w in WAYS]
            table = pd.concat(parts, ignore_index=True).dropna(subset=["symmetry/plain/acc"])
            for ax, (what, (split, name)) in zip(axes, ORBITS.items(), strict=True):
                rows = table[table["split"] == split].assign(value=table[f"symmetry/{name}"])
                rows["value"] = rows["value"].where(rows["value"] > ROUNDING)  # else it is 0
                look = {"hue": "way", "palette": SERIES[:3], "errorbar": ("pi", 100)}
                sns.lineplot(rows, x="epoch", y="value", ax=ax, **look)
                ax.set(xlabel="epoch", ylabel=None)
                ax.set_xscale("symlog", linthresh=1)
                ticks = [epoch for epoch in (0, 1, 10, 100) if epoch <= rows["epoch"].max()]
                ax.set_xticks(ticks, labels=[str(epoch) for epoch in ticks])
                ax.set_xlim(0, rows["epoch"].max())
                ax.set_ylim(0, 1.02) if "acc" in name else ax.set_yscale("log")
                ax.set_title(f"{what} ({title})", loc="left", fontweight="bold")
                _one_legend(ax, first=ax is figure.axes[0])
            axes[1].set_ylim(*_around(axes[0], axes[1]))
            axes[0].set_ylim(axes[1].get_ylim())
    return figure


def _around(*axes: Axes) -> tuple[float, float]:
    low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
    return min(low), max(high)


def class_symmetry() -> Figure:
    """Draw the order parameters of the classes' symmetry, and what SELI leaves of them."""
    ways = {
        "139 of each class": "class_symmetry_equal",
        "139 of five, 14 of five": "class_symmetry_unequal",
    }
    tables = [pd.read_csv(RESULTS / f"{label}.csv").assign(way=way) for way, label in ways.items()]
    table = pd.concat(tables).query("split == 'train'")
    limit = seli_limit([139] * 5 + [14] * 5, ORDER_PARAMETERS)
    with own_style():
        figure = Figure(figsize=(9.6, 2.8), layout="constrained")
        panels = figure.subplots(1, len(ORDER_PARAMETERS), sharey=True)
        for ax, name in zip(panels, ORDER_PARAMETERS, strict=True):
            look = {"hue": "way", "palette": SERIES[:2], "errorbar": ("pi", 100)}
            sns.lineplot(table, x="epoch", y=name, ax=ax, **look)
            ax.axhline(getattr(limit, name), color=SERIES[1], linestyle=":", linewidth=1)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xticks([0, 1, 10, 100], labels=["0", "1", "10", "100"])
            ax.set(xlabel="epoch", ylabel=None, ylim=(0, None), xlim=(0, 150))
            _title(ax, name)
            _one_legend(ax, first=name == ORDER_PARAMETERS[0])
    return figure


def _point(ratio: int, kind: str, cosine: float, norms: float) -> dict[str, Any]:
    return {"ratio": ratio, "kind": kind, "minority_cos": cosine, "norm_ratio": norms}


def _by_ratio(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    with own_style():
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        for ax, name in zip(figure.subplots(1, len(names)), names, strict=True):
            sns.lineplot(
                table, x="ratio", y=name, hue="kind", style="kind", markers=True, ax=ax,
                errorbar=("pi", 100), palette=SERIES[: table["kind"].nunique()],
            )  # fmt: skip
            ax.set(xscale="log", xlabel="largest class / smallest class", ylabel=None)
            ratios = sorted(set(table["ratio"]))
            ax.set_xticks(ratios, labels=[str(ratio) for ratio in ratios])
            ax.set_xticks([], minor=True)
            _title(ax, name)
            _one_legend(ax, first=name == names[0])
    return figure


def _panels(table: pd.DataFrame, names: Sequence[str], hue: str, colours: Sequence[str]) -> Figure:
    with own_style():
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        for ax, name in zip(figure.subplots(1, len(names)), names, strict=True):
            sns.lineplot(
                table, x="epoch", y=name, hue=hue, ax=ax, errorbar=("pi", 100), palette=colours
            )
            _finish(ax, name)
            _one_legend(ax, first=name == names[0])
    return figure


def _finish(ax: Axes, name: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel="epoch", ylabel=None)
    _title(ax, name)


def _title(ax: Axes, name: str) -> None:
    ax.set_title(CATALOGUE[name].label, loc="left", fontweight="bold")


def _one_legend(ax: Axes, *, first: bool) -> None:
    legend = ax.get_legend()
    if legend is not None and not first:
        legend.remove()
    elif legend is not None:
        legend.set_title("")


FIGURES: Final[dict[str, Callable[[], Figure]]] = {
    "balanced": balanced,
    "random_labels": random_labels,
    "imbalance": imbalance,
    "class_symmetry": class_symmetry,
    "rotations": rotations,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw().savefig(RESULTS / f"{name}.png", dpi=130)
