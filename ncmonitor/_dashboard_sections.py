"""What the dashboard shows, section by section, as plain data: which keys, on which axes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ncmonitor._wandb_run import onset_key
from ncmonitor.catalogue import CATALOGUE, METRICS, MetricChoice, Quantity, chosen
from ncmonitor.keys import log_key

Kind = Literal[
    "line", "pattern", "grouped", "scalar", "scatter", "media", "table", "series", "runs", "text"
]

#: Families of numbers that training brings near 0 and never to it, and single ones beside them.
#: NC2 and symmetry are exactly 0 for two classes, error and NC4 once no sample is misjudged.
_POSITIVE_GROUPS: Final = ("nc1", "nc3")
_POSITIVE: Final = ("cross_entropy", "w_mean_ratio", "nc0_k")
#: Of those families: 0 for a class of one sample, 1 minus something, of either sign, or not small.
_LINEAR: Final = ("nc1_per_class", "vci", "within_in_span_frac", "nc3_cos_mean", "nc_bias")
#: One of each property, first in the paper's order.
MAIN: Final = ("nc1", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")
#: What is shown for every inner layer that is measured.
_IN_LAYERS: Final = ("nc1", "nc1_quotient", "nc2_etf_means")
_PICTURES: Final = ("curves", "gram", "simplex", "spectrum", "layers", "phase", "animation")
_SPLITS: Final = ("train", "val")
_GUIDE: Final = """\
**Neural collapse.** After the training error has vanished (the terminal phase, TPT), features \
of a class contract to their mean (**NC1** → 0), the means spread to a simplex ETF (**NC2** → 0), \
the classifier aligns with them (**NC3** → 0) and decides by the nearest mean (**NC4** → 0).

The x-axis is completed epochs; 0 is the untrained network. The step *{onset}* rises from 0.001 \
to 1 where the terminal phase begins. `ncmonitor metrics NAME` explains a number.
"""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: How it shows its keys.
        title: Above it.
        keys: Log keys; for a pattern one regular expression, for a text the text.
        log: Logarithmic axis: only where 0 cannot occur.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Part:
    """One section: a title and its panels."""

    title: str
    panels: tuple[Panel, ...]
    open: bool = False


def parts(prefix: str = "nc", metrics: MetricChoice = "default") -> list[Part]:
    """Return the sections of the dashboard.

    Args:
        prefix: First part of every log key.
        metrics: What the runs measure, as for ``NeuralCollapse``.
    """
    measured = [CATALOGUE[name] for name in chosen(metrics)]
    page = _Page(prefix, measured)
    sections = [
        Part("Overview", tuple(page.overview()), open=True),
        Part("NC1 within-class variability", tuple(page.group("nc1"))),
        Part("NC2 simplex ETF", tuple(page.group("nc2", "many_classes"))),
        Part("NC3 self-duality", tuple(page.group("nc3", "loss_aware"))),
        Part("NC4 nearest class centre", tuple(page.group("nc4"))),
        Part("Classes", tuple(page.classes())),
        Part("Layers", tuple(page.layers())),
        Part("Symmetry and weights", tuple(page.group("symmetry", "nc0", "rank_norm"))),
        Part("Media", tuple(page.media())),
        Part("Comparison across runs", tuple(page.comparison())),
        Part("Diagnostics", tuple(page.group("diagnostics"))),
    ]
    return [section for section in sections if section.panels]


def is_positive(name: str) -> bool:
    """Tell whether a quantity is above 0 whatever the training reaches: it may have a log axis."""
    quantity = CATALOGUE[name]
    return name not in _LINEAR and (name in _POSITIVE or quantity.group in _POSITIVE_GROUPS)


class _Page:
    """Makes panels for one prefix and choice of metrics."""

    def __init__(self, prefix: str, measured: Sequence[Quantity]) -> None:
        self.prefix, self.measured = prefix, measured

    def key(self, split: str, name: str) -> str:
        return log_key(self.prefix, split, name)

    def line(self, name: str, *, onset: bool = False) -> Panel:
        quantity = CATALOGUE[name]
        once = quantity.once or quantity.group == "phase"
        keys = [self.key(split, name) for split in _SPLITS[: 1 if once else 2]]
        keys += [onset_key(self.prefix)] if onset else []
        return Panel("line", quantity.label, tuple(keys), is_positive(name))

    def overview(self) -> Iterable[Panel]:
        onset = onset_key(self.prefix)
        yield Panel("text", "What to look for", (_GUIDE.format(onset=onset),))
        yield Panel(
            "scalar", CATALOGUE["tpt_start_exact"].label, (self.key("train", "tpt_start_exact"),)
        )
        yield self.line("epochs_in_tpt")
        yield Panel("line", "terminal phase", (self.key("train", "tpt_active"), onset))
        yield self.line("error", onset=True)
        yield self.line("cross_entropy", onset=True)
        yield from (self.line(name, onset=True) for name in MAIN)

    def group(self, *groups: str) -> Iterable[Panel]:
        for quantity in self.measured:
            if quantity.group in groups and not quantity.vector:
                yield self.line(quantity.name)

    def classes(self) -> Iterable[Panel]:
        for quantity in self.measured:
            if quantity.vector:
                pattern = f"^{re.escape(self.key('train', quantity.name))}/[0-9]+$"
                yield Panel("pattern", quantity.label, (pattern,), is_positive(quantity.name))
        yield from (self.line(name) for name in ("n_classes_present", "min_class_count"))
        yield from self.group("imbalance")

    def layers(self) -> Iterable[Panel]:
        names = {quantity.name for quantity in self.measured}
        for name in _IN_LAYERS:
            if name in names:
                pattern = f"^{re.escape(self.prefix)}/train/layer/.+/{name}$"
                label = f"{CATALOGUE[name].label} by layer"
                yield Panel("pattern", label, (pattern,), is_positive(name))

    def media(self) -> Iterable[Panel]:
        media = f"{self.prefix}_media"
        yield Panel("media", "Pictures", tuple(f"{media}/{name}" for name in _PICTURES))
        yield Panel("series", "Collapse of the training set (log10)", (f"{media}/collapse_table",))
        yield Panel("table", "History", (f"{media}/history",))

    def comparison(self) -> Iterable[Panel]:
        for split, name in [*(("train", name) for name in MAIN), ("val", "error")]:
            title = f"{split} {CATALOGUE[name].label}"
            yield Panel("grouped", title, (self.key(split, name),), is_positive(name))
        error = f"{self.key('val', 'error')}.last"
        for name in ("nc1", "nc3_self_duality"):
            title = f"val error over train {CATALOGUE[name].label}"
            keys = (f"{self.key('train', name)}.last", error)
            yield Panel("scatter", title, keys, is_positive(name))
        yield Panel("runs", "Runs")


def shown_groups() -> set[str]:
    """Return the groups of the catalogue that have a place on the dashboard."""
    everything = parts(metrics=[q.name for q in METRICS if q.needs != "targets"])
    keys = {key for part in everything for panel in part.panels for key in panel.keys}
    return {
        q.group
        for q in METRICS
        if any(key == f"nc/train/{q.name}" or f"/{re.escape(q.name)}/" in key for key in keys)
    }
