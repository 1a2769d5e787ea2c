"""A history that is followed while it grows: read from where the last look ended."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.history import HISTORY_FILE, KEYS, LAYER_MARK, NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.monitor.phase_clock import PhaseClock

#: Bytes before the place reached that must be the same at the next look: a file that was rewritten
#: may have the same size, and a new one the same inode.
_REMEMBERED: Final = 256
_TRAIN: Final = "train"
#: The clock of the terminal phase, as the training set's rows tell it, and what it is made of.
_CLOCK: Final = ("tpt_start_exact", "tpt_active", "tpt_exits")
_ERROR: Final = "error"


class HistoryTail:
    """The quantities of a growing ``history.csv`` that somebody looks at.

    A line without its end is left for the next look. A file that became shorter, was replaced or
    rewritten is read anew. Of an epoch and split that come twice the later line counts.

    Args:
        run_dir: Folder of the run; the file may not be there yet.
        names: Quantities to keep, beside what tells the terminal phase.

    Attributes:
        path: The file.
        columns: Of the file; empty before it has a header.
        rows: By split and epoch, the named quantities that apply there, ``nan`` where undefined.
        damaged: Lines that could not be read.
        torn: Whether the last line had no end at the last look.
        changed: When the file last changed, in seconds since 1970; ``nan`` without a file.
    """

    def __init__(self, run_dir: Path, names: Sequence[str]) -> None:
        self.path = run_dir / HISTORY_FILE
        self.names = tuple(dict.fromkeys([*names, *_CLOCK, _ERROR]))
        self._forget()

    def _forget(self) -> None:
        self.columns: list[str] = []
        self.rows: dict[str, dict[int, dict[str, float]]] = {}
        self.damaged = 0
        self.torn = False
        self.changed = math.nan
        self._inode: int | None = None
        self._reached = 0
        self._before = b""

    def read(self) -> None:
        """Take in what was written since the last look.

        Raises:
            InputError: If the file is not a history, or cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if not self._continues(file, facts):
                    self._forget()
                self._inode, self.changed = facts.st_ino, facts.st_mtime
                file.seek(self._reached)
                self._take(file.read())
        except FileNotFoundError:  # not there yet, or just being replaced
            self._forget()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error

    def _continues(self, file: BinaryIO, facts: os.stat_result) -> bool:
        if facts.st_ino != self._inode:
            return False
        file.seek(self._reached - len(self._before))
        return file.read(len(self._before)) == self._before

    def _take(self, new: bytes) -> None:
        whole = new[: new.rfind(b"\n") + 1]
        self.torn = len(whole) < len(new)
        if not whole:
            return
        self._reached += len(whole)
        self._before = (self._before + whole)[-_REMEMBERED:]
        lines = whole.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")[:-1]
        if not self.columns:
            self.columns = lines.pop(0).split(",")
            self._check_header()
        for line in lines:
            try:
                self._add(next(csv.reader([line])))
            except (csv.Error, IndexError, StopIteration, ValueError, OverflowError):
                self.damaged += 1

    def _check_header(self) -> None:
        missing = [key for key in KEYS if key not in self.columns]
        if missing:
            raise InputError(
                f"{self.path} is not a history: expected the columns {', '.join(KEYS)}, "
                f"but {', '.join(missing)} is missing"
            )
        place = {name: self.columns.index(name) for name in self.columns}
        self._epoch, self._split = place["epoch"], place["split"]
        self._places = [(name, place[name]) for name in self.names if name in place]

    def _add(self, cells: list[str]) -> None:
        # Cells that are missing at the end of a line are those of a line that was cut.
        if len(cells) != len(self.columns):
            raise ValueError
        values = {name: float(cells[i]) for name, i in self._places if cells[i]}
        of_split = self.rows.setdefault(cells[self._split].strip(), {})
        of_split[int(cells[self._epoch])] = values

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse quantities that the run does not measure, once the file says what it measures.

        Raises:
            InputError: With the nearest ones that it does.
        """
        for name in names:
            if self.columns and name not in self.columns:
                measured = [column for column in self.columns if column not in KEYS]
                hint = nearest(name, measured) or f"; it has: {', '.join(measured[:12])}, …"
                raise InputError(f"--metrics: {self.path} has no column {name!r}{hint}")

    def splits(self) -> list[str]:
        """Return the splits without those of inner layers, train first, then validation."""
        order = (NULL_SPLIT, ONLINE_SPLIT)
        names = [split for split in self.rows if LAYER_MARK not in split]
        return sorted(names, key=lambda s: (s != _TRAIN, s in order, not s.startswith("val"), s))

    def series(self, split: str, name: str) -> list[tuple[int, float]]:
        """Return epochs and values of a quantity in order; infinite ones count as undefined."""
        return [
            (epoch, row[name] if math.isfinite(row[name]) else math.nan)
            for epoch, row in sorted(self.rows.get(split, {}).items())
            if name in row
        ]

    def epochs(self) -> Iterator[int]:
        """Yield the measured epochs, some of them more than once."""
        for of_split in self.rows.values():
            yield from of_split

    def has_clock(self) -> bool:
        """Tell whether the table has a clock of the terminal phase; older versions wrote none."""
        return any(name in row for row in self.rows.get(_TRAIN, {}).values() for name in _CLOCK)

    def clock(self) -> dict[str, float]:
        """Return the clock at the training set's last epoch, else what its errors tell of it.

        Empty without a training set, and without a train error where the table has no clock.
        """
        train = self.rows.get(_TRAIN, {})
        if train and self.has_clock():
            return train[max(train)]
        derived = PhaseClock()
        for epoch, error in self.series(_TRAIN, _ERROR):
            derived.update(epoch, error)
        return {} if derived.epoch is None else derived.as_dict()

    def onset(self) -> int | None:
        """Return the completed epochs when the train error first vanished; ``None``: not yet."""
        start = self.clock().get("tpt_start_exact", math.nan)
        return None if math.isnan(start) else int(start)
