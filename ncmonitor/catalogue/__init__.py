"""The catalogue of quantities: one entry per name, read by reports, logs, plots, README and CLI.

The entries themselves are in ``catalogue.toml``. This file imports nothing heavy, so that
``ncmonitor --help`` and ``ncmonitor metrics`` answer at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ncmonitor.errors import InputError, nearest

#: What a user may ask for: ``"default"``, ``"all"``, or names of metrics and groups.
MetricChoice = str | Sequence[str]


#: Groups of counts and shares, which a log axis does not suit.
_COUNTED: Final = frozenset({"nc4", "diagnostics", "fit", "phase"})
#: Shares of samples reach exactly 0, and should be seen to.
_SHARES: Final = frozenset({"error", "nc4_disagreement"})
#: Differences, which have either sign.
_SIGNED: Final = frozenset({"acc_drop", "layer_balance"})


@dataclass(frozen=True)
class Quantity:
    """What a number is called, what it means and where it comes from.

    Attributes:
        name: The name everywhere.
        group: Family: ``nc0`` ... ``nc4``, ``symmetry``, ``diagnostics``, ``fit``, ``phase``, ...
        label: Short axis label.
        definition: The formula, in words and symbols.
        meaning: One sentence for a reader of the log.
        source: Where it was defined.
        collapse: Value at full collapse, or ``None`` where collapse does not fix one.
        symmetric: Value where the symmetry holds: of an invariant network (an equivariant one, for
            the maps), of parameters that obey the law; ``None`` where it fixes none.
        null: Value or expectation for features without class structure.
        undefined: When it is ``nan``.
        cost: Leading cost beyond what every measurement does.
        default: Measured without being asked for.
        needs: What it cannot do without, beside features and labels.
        once: Depends on the classifier's weights alone; logged once, under ``train``.
        vector: One number per class.
        conventions: Follows ``convention=``; the others weigh classes equally whatever it says.
    """

    name: str
    group: str
    label: str
    definition: str
    meaning: str
    source: str
    collapse: float | None = None
    symmetric: float | None = None
    null: str = ""
    undefined: str = ""
    cost: str = ""
    default: bool = False
    needs: Literal["", "classifier", "decisions", "targets"] = ""
    once: bool = False
    vector: bool = False
    conventions: bool = False

    @property
    def scale(self) -> Literal["log", "share", "linear"]:
        """The axis it is drawn on; ``"share"`` is logarithmic down to the smallest share seen."""
        if self.name in _SHARES:
            return "share"
        falls = self.falls and self.group not in _COUNTED
        return "log" if falls or self.name == "cross_entropy" else "linear"

    @property
    def falls(self) -> bool:
        """Whether it comes down to 0, from above, where classes collapse or the symmetry holds."""
        return 0 in (self.collapse, self.symmetric) and self.name not in _SIGNED


def _read() -> dict[str, Quantity]:
    text = (Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8")
    return {name: Quantity(name, **entry) for name, entry in tomllib.loads(text).items()}


#: Every quantity by name, in display order.
CATALOGUE: Final[dict[str, Quantity]] = _read()

#: What the measuring pass says about the fit itself, and the clock of the terminal phase (TPT),
#: logged as ``nc/tpt/<name>``.
FIT: Final = tuple(q for q in CATALOGUE.values() if q.group == "fit")
PHASE: Final = tuple(q for q in CATALOGUE.values() if q.group == "phase")
#: What ``SymmetryMonitor`` measures, of transformed inputs and of the parameters: in symmetry.csv.
MONITORED: Final = ("input_symmetry", "parameter_symmetry")
INPUT_SYMMETRY: Final = tuple(q for q in CATALOGUE.values() if q.group == MONITORED[0])
PARAMETER_SYMMETRY: Final = tuple(q for q in CATALOGUE.values() if q.group == MONITORED[1])
#: What a :class:`~ncmonitor.measurement.report.CollapseReport` can hold.
METRICS: Final = tuple(q for q in CATALOGUE.values() if q.group not in ("fit", "phase", *MONITORED))

#: What it holds by default.
METRIC_NAMES: Final = tuple(q.name for q in METRICS if q.default)
FIT_NAMES: Final = tuple(q.name for q in FIT)
PHASE_NAMES: Final = tuple(q.name for q in PHASE)
GROUPS: Final = tuple(dict.fromkeys(q.group for q in METRICS))


def chosen(metrics: MetricChoice = "default") -> tuple[str, ...]:
    """Return the metric names that a choice stands for, in display order.

    The default ones are always among them. A name that is both a group and a metric (``nc1``)
    stands for the group.

    Args:
        metrics: ``"default"``, ``"all"`` (of classification), or names of metrics and groups.

    Returns:
        Names of metrics.

    Raises:
        InputError: For a name that is neither; the message says what is close.
    """
    words = [metrics] if isinstance(metrics, str) or not isinstance(metrics, Iterable) else metrics
    wanted = set(METRIC_NAMES)
    for word in words:
        if word == "all":
            wanted.update(q.name for q in METRICS if q.needs != "targets")
        elif word != "default":
            wanted.update(_members(word))
    return tuple(q.name for q in METRICS if q.name in wanted)


def _members(word: object) -> list[str]:
    names = [q.name for q in METRICS if word in (q.group, q.name)]
    if not names or not isinstance(word, str):
        raise InputError(
            f"metrics= takes 'default', 'all', groups ({', '.join(GROUPS)}) and names of metrics, "
            f"but got {word!r}{_hint(word)}"
        )
    if word in GROUPS:
        names = [q.name for q in METRICS if q.group == word]
    if any(CATALOGUE[name].needs == "targets" for name in names):
        raise InputError(
            f"{word!r} is for regression and needs real-valued targets: use "
            "ncmonitor.measure_regression(features, targets, weight)"
        )
    return names


def _hint(word: object) -> str:
    if isinstance(word, str) and word in (*FIT_NAMES, *PHASE_NAMES, "fit", "phase"):
        return "; that is always in a run's history, and error and cross_entropy in a report"
    return hint_of(word, [*GROUPS, *(q.name for q in METRICS)])


def hint_of(word: object, known: Iterable[str] | None = None) -> str:
    """Return what to say of a name that is no column of a history, to be put behind it.

    Args:
        word: The name.
        known: What may have been meant; ``None``: every column.
    """
    if not isinstance(word, str):
        return "; `ncmonitor metrics` lists them"
    if word in MONITORED or (word in CATALOGUE and CATALOGUE[word].group in MONITORED):
        return (
            "; that is measured by SymmetryMonitor, into symmetry.csv: add "
            "ncmonitor.callbacks.SymmetryMonitor(groups) to the trainer's callbacks"
        )
    columns = [q.name for q in CATALOGUE.values() if q.group not in MONITORED]
    return nearest(word, columns if known is None else known) or "; `ncmonitor metrics` lists them"


def quantity_of(key: str) -> Quantity | None:
    """Return the entry of a column of a history, ``nc1_per_class/3`` included.

    Args:
        key: A log key without prefix and split.

    Returns:
        The entry; ``None`` if there is none.
    """
    name, _, index = key.partition("/")
    entry = CATALOGUE.get(name)
    if entry is None or entry.group in MONITORED:
        return None
    return entry if entry.vector == index.isdecimal() else None
