"""What the dashboard shows, section by section, as plain data: which keys, on which axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ncmonitor.catalogue import CATALOGUE, METRICS, MetricChoice, Quantity, chosen
from ncmonitor.monitor.log_keys import log_key
from ncmonitor.monitor.run_info import PICTURES
from ncmonitor.wandb_tools.run_record import onset_key

Kind = Literal[
    "line", "pattern", "grouped", "scalar", "scatter", "media", "table", "series", "runs", "text"
]

#: Families of numbers with logarithmic axes: 0 takes features of a class that agree to the last
#: bit, as of one input that repeats, or a classifier that is the centred means to the last bit.
#: Elsewhere rounding keeps them above 0: free features (recipe ``ufm``) end at 1e-31. All other
#: quantities reach 0: NC2 and symmetry for two classes, error and NC4 once no sample is misjudged,
#: cross-entropy once every margin is past rounding, the mean row of W where the rows add up to 0.
_POSITIVE_GROUPS: Final = ("nc1", "nc3")
#: Of those families: 0 for a class of one sample or for two classes, 1 minus something, of either
#: sign, or not small.
_LINEAR: Final = (
    *("nc1_per_class", "vci", "within_in_span_frac", "nc3_etf_product", "nc3_cos_mean", "nc_bias"),
)
#: One of each property, first in the paper's order.
MAIN: Final = ("nc1", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")
#: What is shown for every inner layer that is measured.
_IN_LAYERS: Final = ("nc1", "nc1_quotient", "nc2_etf_means")
#: So many pictures are drawn without being asked for; the others have a panel of their own.
_DRAWN: Final = 4
_SPLITS: Final = ("train", "val")
_GUIDE: Final = """\
**Neural collapse.** After the training error has vanished (the terminal phase, TPT), features \
of a class contract to their mean (**NC1** → 0), the means spread to a simplex ETF (**NC2** → 0), \
the classifier aligns with them (**NC3** → 0) and decides by the nearest mean (**NC4** → 0).

The x-axis is completed epochs; 0 is the untrained network. The step *{onset}* rises from 0.001 \
to 1 where the terminal phase begins. `ncmonitor metrics NAME` explains a number.
"""
_CLASSES: Final = """\
Empty unless the runs measure it: `NeuralCollapse(metrics=["nc1_per_class", "imbalance"])`, or \
`ncmonitor fit NAME --nc.metrics '[nc1_per_class, imbalance]'`.
"""
_LAYERS: Final = """\
Empty unless the runs measure inner layers: `NeuralCollapse(layers="body.*")`, or \
`ncmonitor fit NAME --nc.layers '[...]'`.
"""
_INPUTS: Final = """\
Empty unless the runs measure it: `SymmetryMonitor("rotations90")` beside `NeuralCollapse()`. \
*plain* are the samples as they are; elements of a group have lines of their own up to eight. \
`ncmonitor metrics input_symmetry` explains the numbers.
"""
#: What is shown of groups of transforms: title, and what stands behind ``nc/<split>/symmetry/``.
_INVARIANCE: Final = (
    (
        "class collapse (plain) beside orbit collapse",
        "train/symmetry/(plain/nc1_quotient|{group}/orbit_quot)",
    ),
    ("invariance error", "(train|val)/symmetry/{group}/inv_error"),
    ("accuracy over orbits", "val/symmetry/(plain/acc|{group}/acc_orbit_(mean|worst))"),
    ("accuracy under each element", "val/symmetry/{group}/acc/{group}"),
    ("prediction consistency", "(train|val)/symmetry/{group}/pred_consistency"),
    ("linear equivariance R²", "(train|val)/symmetry/{group}/equiv_r2"),
    ("group law on the data", "(train|val)/symmetry/{group}/group_law_scaled"),
    ("Lie derivative", "(train|val)/symmetry/{group}/lie_error"),
    ("invariance error by layer", "train/layer/.+/symmetry/{group}/inv_error"),
    ("row mean over its law", "parameters/w_mean_law_ratio"),
    ("layer balance", "parameters/layer_balance/{group}"),
)


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
    """One section: the question it answers, and its panels."""

    title: str
    panels: Sequence[Panel]
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
        Part("Overview: is it in its terminal phase, and collapsing?", page.overview(), open=True),
        Part("NC1: do features contract to their class mean?", page.group("nc1")),
        Part("NC2: do the class means form a simplex ETF?", page.group("nc2", "many_classes")),
        Part("NC3: does the classifier align with the means?", page.group("nc3", "loss_aware")),
        Part("NC4: does the nearest class mean decide?", page.group("nc4")),
        Part("Classes: do some lag behind? (where measured)", page.classes()),
        Part("Layers: how deep does it reach? (where measured)", page.layers()),
        Part("Symmetry: are the classes interchangeable?", page.group("symmetry")),
        Part(
            "Invariance: do transformed inputs change the answer? (where measured)", page.inputs()
        ),
        Part("Norms and ranks: what still grows?", page.group("nc0", "rank_norm")),
        Part("Media: what does it look like?", page.media()),
        Part("Comparison across runs: which recipe collapses further?", page.comparison()),
        Part("Diagnostics: can the numbers be trusted?", page.group("diagnostics")),
    ]
    return [section for section in sections if section.panels]


def is_positive(name: str) -> bool:
    """Tell whether a quantity is above 0 whatever the training reaches: it may have a log axis."""
    quantity = CATALOGUE[name]
    return name not in _LINEAR and quantity.group in _POSITIVE_GROUPS


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

    def overview(self) -> list[Panel]:
        # The step that marks the onset is in two charts: in each it is one more line for each run.
        nc1, *others = MAIN
        guide, start = _GUIDE.format(onset=onset_key(self.prefix)), "tpt_start_exact"
        return [
            Panel("text", "What to look for", (guide,)),
            Panel("scalar", CATALOGUE[start].label, (self.key("train", start),)),
            self.line("epochs_in_tpt"),
            self.line("tpt_active"),
            self.line("error", onset=True),
            self.line("cross_entropy"),
            self.line(nc1, onset=True),
            *map(self.line, others),
        ]

    def group(self, *groups: str) -> list[Panel]:
        names = [q.name for q in self.measured if q.group in groups and not q.vector]
        return [self.line(name) for name in names]

    def classes(self) -> list[Panel]:
        vectors = [q for q in METRICS if q.vector]
        imbalance = [q.name for q in METRICS if q.group == "imbalance" and not q.vector]
        return [
            Panel("text", "What it takes", (_CLASSES,)),
            *(
                Panel("pattern", q.label, (f"^{re.escape(self.key('train', q.name))}/[0-9]+$",))
                for q in vectors
            ),
            *map(self.line, imbalance),
        ]

    def layers(self) -> list[Panel]:
        known = [name for name in _IN_LAYERS if CATALOGUE[name] in self.measured]
        return [
            Panel("text", "What it takes", (_LAYERS,)),
            *(
                Panel(
                    "pattern",
                    f"{CATALOGUE[name].label} by layer",
                    (f"^{re.escape(self.prefix)}/train/layer/.+/{name}$",),
                    is_positive(name),
                )
                for name in known
            ),
        ]

    def inputs(self) -> list[Panel]:
        return [
            Panel("text", "What it takes", (_INPUTS,)),
            *(
                Panel(
                    "pattern", title, (f"^{re.escape(self.prefix)}/{keys.format(group='[^/]+')}$",)
                )
                for title, keys in _INVARIANCE
            ),
        ]

    def media(self) -> list[Panel]:
        media = f"{self.prefix}_media"
        pictures = tuple(f"{media}/{name}" for name in PICTURES)
        more = "Pictures that were asked for: CollapseFigures(figures='all')"
        return [
            Panel("media", "Pictures (CollapseFigures)", pictures[:_DRAWN]),
            Panel("series", "Collapse of the training set (log10)", (f"{media}/collapse_table",)),
            Panel("table", "History", (f"{media}/history",)),
            Panel("media", more, pictures[_DRAWN:]),
        ]

    def comparison(self) -> list[Panel]:
        error, panels = f"{self.key('val', 'error')}.last", []
        for split, name in [*(("train", name) for name in MAIN), ("val", "error")]:
            title = f"{split} {CATALOGUE[name].label}"
            panels.append(Panel("grouped", title, (self.key(split, name),), is_positive(name)))
        for name in ("nc1", "nc3_self_duality"):
            title = f"val error over train {CATALOGUE[name].label}"
            keys = (f"{self.key('train', name)}.last", error)
            panels.append(Panel("scatter", title, keys, is_positive(name)))
        return [*panels, Panel("runs", "Runs")]
