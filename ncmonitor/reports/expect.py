"""The option ``expect`` of a run's config: what a recipe claims its training reaches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ncmonitor.catalogue import Quantity, hint_of, quantity_of
from ncmonitor.errors import InputError
from ncmonitor.monitor.provenance import CONFIG_FILE
from ncmonitor.reports.verdict import number


class Bounds(NamedTuple):
    """What is expected of one quantity.

    Attributes:
        split: Where it is measured.
        name: As a column of the history.
        least: Smallest value expected; ``None``: open.
        most: Largest value expected; ``None``: open.
    """

    split: str
    name: str
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        """Write the bounds for a reader."""
        if self.least is not None and self.most is not None:
            return f"{number(self.least)} to {number(self.most)}"
        if self.least is not None:
            return f"≥ {number(self.least)}"
        return "–" if self.most is None else f"≤ {number(self.most)}"

    def __bool__(self) -> bool:
        """Whether anything is expected."""
        return self.least is not None or self.most is not None

    @property
    def key(self) -> str:
        """Name for a reader: the split in front, where it is not the training set."""
        return self.name if self.split == "train" else f"{self.split}/{self.name}"

    @property
    def quantity(self) -> Quantity:
        """Its entry in the catalogue."""
        found = quantity_of(self.name)
        assert found is not None  # looked up when the option was read
        return found

    def hold(self, value: float) -> bool:
        """Tell whether a value is within them, the bounds included."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class ExpectedBounds:
    """Bounds of quantities at one epoch.

    Attributes:
        epoch: Completed epochs at which they are expected to hold.
        bounds: One or more.
    """

    epoch: int
    bounds: tuple[Bounds, ...]

    @classmethod
    def of(cls, expect: object) -> ExpectedBounds:
        """Read the option; anything wrong in it is the user's mistake.

        Args:
            expect: A dict with ``epoch`` and, by metric (``nc1``, of the training set) or split and
                metric (``val/error``), a number (at most) or ``[least, most]``, ``None`` for open.

        Raises:
            InputError: For what is not of this form, or a metric there is none of.
        """
        expectation, mistakes = _read(expect)
        if expectation is None or mistakes:
            raise InputError(mistakes[0])
        return expectation


def read_expectation(run_dir: str | Path) -> tuple[ExpectedBounds | None, list[str]]:
    """Read what a run's ``config.yaml`` expects; whatever is wrong with it becomes a caution.

    Args:
        run_dir: Folder of the run.

    Returns:
        The expectation, ``None`` where there is none, and one caution at most. Of several entries
        the sound ones are kept.
    """
    path = Path(run_dir) / CONFIG_FILE
    if not path.is_file():
        return None, []
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None, [f"{CONFIG_FILE} cannot be read: what was expected of the run is not known."]
    expect = config.get("expect") if isinstance(config, dict) else None
    if expect is None or expect == {}:
        return None, []
    expectation, mistakes = _read(expect)
    if not mistakes:
        return expectation, []
    what = "an expectation" if len(mistakes) == 1 else f"{len(mistakes)} expectations"
    said = f"{CONFIG_FILE} holds {what} that cannot be judged: {'; '.join(mistakes[:3])}"
    return expectation, [said + "; …" * (len(mistakes) > 3)]


def _read(expect: object) -> tuple[ExpectedBounds | None, list[str]]:
    """Return what can be read, and what is wrong."""
    if not isinstance(expect, Mapping):
        return None, [f"expect must be a dict of metrics, got {expect!r:.80}"]
    epoch = expect.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        got = "it is missing" if epoch is None else f"got {epoch!r:.80}"
        return None, [f"expect.epoch must be a number of completed epochs, but {got}"]
    bounds, mistakes = [], []
    for key, value in expect.items():
        if key == "epoch":
            continue
        try:
            bounds.append(_bounds(str(key), value))
        except InputError as error:
            mistakes.append(str(error))
    if not bounds and not mistakes:
        mistakes.append("expect names no metric beside its epoch")
    return (ExpectedBounds(epoch, tuple(bounds)) if bounds else None), mistakes


def _bounds(key: str, value: Any) -> Bounds:
    split, name = _address(key)
    ends = [None, value] if not isinstance(value, list | tuple) else list(value)
    if len(ends) != 2 or not all(end is None or is_number(end) for end in ends):
        raise InputError(
            f"expect.{key} must be a number (at most) or [least, most], got {value!r:.80}"
        )
    least, most = (None if end is None else float(end) for end in ends)
    if least is None and most is None:
        raise InputError(f"expect.{key} has no bound: give a number, or [least, most]")
    if least is not None and most is not None and least > most:
        raise InputError(f"expect.{key} leaves nothing: {least:g} is above {most:g}")
    return Bounds(split, name, least, most)


def _address(key: str) -> tuple[str, str]:
    """Split ``val/error`` and the like into split and metric; the training set has no prefix."""
    parts = key.split("/")
    for cut in range(len(parts)):
        name = "/".join(parts[cut:])
        if quantity_of(name) is not None:
            return "/".join(parts[:cut]) or "train", name
    raise InputError(f"expect.{key}: there is no metric {parts[-1]!r}{hint_of(parts[-1])}")


def is_number(value: object) -> bool:
    """Tell whether something read from a file is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # a whole number of a file may be larger
