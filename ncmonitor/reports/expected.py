"""A run against what its recipe expects of it, and against what theory leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import NULL_SPLIT, read_history
from ncmonitor.monitor.history_queries import is_recorded, split_rows
from ncmonitor.monitor.provenance import read_run
from ncmonitor.reports.expect import Bounds, ExpectedBounds, is_number, read_expectation
from ncmonitor.reports.verdict import MAIN, number, section

if TYPE_CHECKING:
    import pandas as pd

#: How far above its floor a quantity may be and count as there: four fifths or more of what is left
#: is then the floor. ResNet-18 on full MNIST ends 3 to 4 % above with Adam and L-BFGS, and 120 %
#: above with SGD, which is still on its way (distance of W to the ETF after 200 epochs).
NEAR: Final = 0.25

_UNMEASURED: Final = "not measured"
_UNDEFINED: Final = "undefined (nan)"
_OPEN: Final = "nothing expected"
_COLLAPSED: Final = "collapsed as expected"
_SHORT: Final = "not as far as expected"
_INSIDE: Final = "as expected"
_OUTSIDE: Final = "outside the expected range"
_TROUBLE: Final = (_UNMEASURED, _UNDEFINED, _SHORT, _OUTSIDE)

#: Findings that fit between the first and the last of six lines.
_LINES: Final = 5


class Finding(NamedTuple):
    """One quantity against what is expected of it.

    Attributes:
        bounds: The quantity, its split, and what is expected of it, which may be nothing.
        epoch: When it was measured: at the expectation's epoch, else the last before it; ``None``
            if never.
        value: Its value then.
        start: Its value at epoch 0; ``nan`` where not measured.
        null: Its value with shuffled labels at :attr:`epoch`; ``nan`` where not measured.
        floor: What theory leaves; ``nan`` where it says nothing, or nothing is recorded.
        words: The verdict, in the vocabulary of :func:`findings`.
    """

    bounds: Bounds
    epoch: int | None
    value: float
    start: float
    null: float
    floor: float
    words: str

    @property
    def text(self) -> str:
        """The value for a reader."""
        return "–" if self.epoch is None else number(self.value)

    @property
    def left(self) -> float:
        """What theory leaves; of NC1 and NC4 the same for all class sizes and dimensions."""
        quantity = self.bounds.quantity
        sure = self.bounds.split == "train" and quantity.group in ("nc1", "nc4")
        ideal = quantity.collapse if sure and math.isnan(self.floor) else None
        return self.floor if ideal is None else ideal

    @property
    def trouble(self) -> bool:
        """Whether a reader should look here first."""
        return self.words in _TROUBLE


def findings(
    history: pd.DataFrame, run: Mapping[str, Any], expectation: ExpectedBounds
) -> list[Finding]:
    """Hold a run against what is expected of it: NC1 to NC4 in order, then whatever else is.

    A property of which nothing is expected stands there with its main quantity. The verdict on the
    value at the expectation's epoch, else at the last measured one before it, is the first of

    - ``not measured``: never on that split, or not among the run's metrics;
    - ``undefined (nan)``: also because the measurement failed;
    - ``too early to say (epoch 3 of 60)``: the run has not come to the expectation's epoch;
    - ``collapsed to the limit of these class sizes`` (or ``of this feature dimension``): theory
      leaves more than 0 and less than the value at epoch 0, and the value is at most 25 % above
      that and has come three quarters of the way to it. It comes before what was expected, since
      the floor is where collapse ends;
    - ``nothing expected``;
    - ``collapsed as expected`` or ``not as far as expected``: the bound is one on the side of
      collapse (at most, where collapse is 0; at least, where it is 1);
    - ``as expected`` or ``outside the expected range``: any other bounds, such as those of an
      error, a range, or one that keeps a quantity away from collapse.

    A value on a bound is within it. What was changed against the recipe is not known here: the
    verdict speaks of ``expect`` as it stands in the config.

    Args:
        history: The run's.
        run: Its ``run.json``.
        expectation: From :func:`~ncmonitor.reports.expect.read_expectation`.
    """
    wanted = list(expectation.bounds)
    groups = {bounds.quantity.group for bounds in wanted if bounds.split == "train"}
    wanted += [Bounds("train", name) for name in MAIN if CATALOGUE[name].group not in groups]
    order = [CATALOGUE[name].group for name in MAIN]
    wanted.sort(key=lambda b: [*order, b.quantity.group].index(b.quantity.group))  # stable
    return [_finding(history, run, expectation.epoch, bounds) for bounds in wanted]


def limits_of(run: Mapping[str, Any]) -> dict[str, float]:
    """Return what theory leaves of the training set's metrics, as far as ``run.json`` says."""
    limits = section(section(dict(run), "measurement"), "limits")
    return {name: float(value) for name, value in limits.items() if is_number(value)}


def cause_of(run: Mapping[str, Any]) -> str:
    """Say what keeps limits above 0: ``"these class sizes"`` or ``"this feature dimension"``."""
    cause = section(dict(run), "measurement").get("limits_from")
    return "this feature dimension" if cause == "feature dimension" else "these class sizes"


def _dated(finding: Finding, epoch: int) -> str:
    """Write a value, and its epoch where that is measured and judged instead of another one."""
    early = finding.words.startswith("too early")  # the words say how far the run has come
    other = finding.epoch is not None and finding.epoch != epoch and not early
    return f"{finding.text} (epoch {finding.epoch})" if other else finding.text


def closing(run_dir: str | Path) -> list[str]:
    """Say in at most six aligned lines how a run stands against what was expected of it.

    Where there is no room for all, what is not as expected comes first.

    Args:
        run_dir: Folder of the run.

    Returns:
        Without an expectation, one line about a floor above 0, or nothing.
    """
    expectation, cautions = read_expectation(run_dir)
    try:
        history, run = read_history(run_dir), read_run(run_dir)
    except (InputError, OSError):
        return cautions
    if expectation is None:
        left = limits_of(run).get(MAIN[1], 0.0)
        said = f"Theory leaves {MAIN[1]} {number(left)} for {cause_of(run)}."
        return [*cautions, *([said] if left > 0 else [])]
    found = [each for each in findings(history, run, expectation) if each.bounds]
    if len(found) > _LINES:
        found.sort(key=lambda each: not each.trouble)  # stable
    shown = found if len(found) <= _LINES else found[: _LINES - 1]
    rows = [(f.bounds.key, _dated(f, expectation.epoch), str(f.bounds), f.words) for f in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"Expected at epoch {expectation.epoch}:"]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    if len(found) > len(shown):
        lines.append(f"  and {len(found) - len(shown)} more in the report")
    return lines


def _finding(history: pd.DataFrame, run: Mapping[str, Any], until: int, bounds: Bounds) -> Finding:
    train = bounds.split == "train"
    known = _values(history, bounds)
    before = [each for each in known if each <= until]
    epoch = max(before) if before else None
    value, null = math.nan, math.nan
    if epoch is not None:
        value = known[epoch]
        nulls = _values(history, bounds._replace(split=NULL_SPLIT)) if train else {}
        null = nulls.get(epoch, math.nan)
    start = known.get(0, math.nan)
    floor = limits_of(run).get(bounds.name, math.nan) if train else math.nan
    if epoch is None:
        words = _UNMEASURED
    elif math.isnan(value):
        words = _UNDEFINED
    elif (reached := int(history["epoch"].max())) < until:
        words = f"too early to say (epoch {reached} of {until})"
    elif at_floor(value, floor, start):
        words = f"collapsed to the limit of {cause_of(run)}"
    else:
        words = _judged(bounds, value)
    return Finding(bounds, epoch, value, start, null, floor, words)


def _values(history: pd.DataFrame, bounds: Bounds) -> dict[int, float]:
    """Return a quantity's values on a split by epoch; none where it does not apply."""
    rows, quantity = split_rows(history, bounds.split), bounds.quantity
    elsewhere = bounds.split != "train" and (quantity.once or quantity.group == "phase")
    if elsewhere or not is_recorded(rows, bounds.name):
        return {}
    pairs = zip(rows["epoch"], rows[bounds.name], strict=True)
    return {int(epoch): float(value) for epoch, value in pairs}


def at_floor(value: float, floor: float, start: float) -> bool:
    """Tell whether a quantity has come down to a floor above 0, as :func:`findings` defines it.

    Args:
        value: Of the quantity.
        floor: What theory leaves of it; ``nan``: unknown, and so is whether it is there.
        start: Its value at epoch 0; likewise.
    """
    return 0 < floor < start and value - floor <= NEAR * min(floor, start - floor)


def _judged(bounds: Bounds, value: float) -> str:
    if not bounds:
        return _OPEN
    holds = bounds.hold(value)
    collapse = bounds.quantity.collapse
    towards = {0.0: bounds.least is None, 1.0: bounds.most is None}
    if collapse is not None and towards.get(collapse, False) and bounds.split != NULL_SPLIT:
        return _COLLAPSED if holds else _SHORT
    return _INSIDE if holds else _OUTSIDE
