"""A snapshot and its file: one JSON line for each measured epoch, never a pickle."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ncmonitor.errors import warn
from ncmonitor.monitor.json_lines import append_line, parsed, read_lines, rounded
from ncmonitor.monitor.snapshots.numbers import FloatArray, IntArray

SNAPSHOT_FILE: Final = "snapshots.jsonl"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the pictures of one split at one epoch are drawn from.

    With K classes that have samples, ``C = min(K, 32)`` of them shown, means centred by the mean of
    the K class means. What cannot be measured is ``nan``.

    The simplex picture lives in the space of a few corner classes: their means about their own
    centre span it, it is turned so that they lie as near as possible to an ideal simplex (first
    corner on top), and the unit is their mean distance from the centre. What a feature has outside
    that space is not shown.

    Attributes:
        epoch: Completed epochs.
        split: Name of the split.
        num_classes: K.
        classes: The C classes of the Gram matrices: all of them, else evenly spaced ones.
        means_gram: ``(C, C)`` inner products of the centred class means over the mean square of
            their K lengths; the ETF has 1 and −1/(K−1).
        weight_gram: The same of the classifier's rows as they are; ``None`` without classifier.
        cross: ``(C, C)`` cosines of the row of class c with the centred mean of class c′, or
            ``None``; at self-duality 1 and −1/(K−1).
        singular_means: The largest singular values of the centred class means, descending, at most
            256 of ``min(K − 1, d)``.
        singular_weight: The same of the rows of the K classes, of ``min(K, d)``; or ``None``.
        within_spectrum: Eigenvalues of Σ_W (every class weighs the same) in the span of the means,
            descending, at most 256; ``None`` if nobody computed them.
        corners: The m classes of the simplex picture, two to four; fewer if there are no more.
        points: ``(n, m − 1)`` features of those classes, the same samples at every epoch where the
            data come in the same order.
        point_labels: Their classes, ``(n,)``.
        corner_means: ``(m, m − 1)``.
        corner_weights: ``(m, m − 1)`` rows about their own mean, at mean length 1 before they are
            projected; or ``None``.
    """

    epoch: int
    split: str
    num_classes: int
    classes: tuple[int, ...]
    means_gram: FloatArray
    weight_gram: FloatArray | None
    cross: FloatArray | None
    singular_means: FloatArray
    singular_weight: FloatArray | None
    within_spectrum: FloatArray | None
    corners: tuple[int, ...]
    points: FloatArray
    point_labels: IntArray
    corner_means: FloatArray
    corner_weights: FloatArray | None


def append_snapshot(run_dir: str | Path, snapshot: Snapshot) -> None:
    """Append a snapshot to ``RUN_DIR/snapshots.jsonl``, with 5 significant digits.

    Args:
        run_dir: Folder of the run.
        snapshot: What to append; it replaces, for the reader, what was taken at its epoch or later.
    """
    entry = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(snapshot).items()
    }
    append_line(Path(run_dir) / SNAPSHOT_FILE, {k: rounded(v) for k, v in entry.items()})


def begin_snapshots(run_dir: Path, epochs: Collection[int], aside: int | None = None) -> None:
    """Make the file of a folder that of the run that begins or goes on there.

    Args:
        run_dir: Folder of the run.
        epochs: Measured epochs of the run so far; snapshots of others are dropped.
        aside: The number under which another run's files are set aside, if there was one.
    """
    path = run_dir / SNAPSHOT_FILE
    if not path.is_file():
        return
    if aside is not None:
        path.replace(path.with_suffix(f".{aside}.jsonl"))
        return
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    known = list(epochs)  # in a damaged line anything may stand for an epoch
    kept = [line for line in lines if (parsed(line) or {}).get("epoch") in known]
    if kept != lines:
        part = path.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        part.replace(path)


def read_snapshots(run_dir: str | Path) -> list[Snapshot]:
    """Read the snapshots of a run, finished, running or killed.

    A run that was resumed takes epochs a second time: what was taken at a later epoch before that
    belongs to an abandoned course, and is left out. So is a line that is torn or damaged, with a
    warning.

    Args:
        run_dir: Folder of the run.

    Returns:
        In the order they were taken; none if the run has taken none.
    """
    found, remark = readable_snapshots(run_dir)
    if remark:
        warn(remark)
    return found


def readable_snapshots(run_dir: str | Path) -> tuple[list[Snapshot], str]:
    """Read as :func:`read_snapshots`; return what to say of damaged lines instead of warning.

    Args:
        run_dir: Folder of the run.
    """
    path = Path(run_dir) / SNAPSHOT_FILE
    found: list[Snapshot] = []
    damaged = []
    entries = read_lines(path) if path.is_file() else []
    for number, entry in enumerate(entries, start=1):
        try:
            new = _snapshot_of(entry or {})
        except (KeyError, TypeError, ValueError):
            damaged.append(number)
            continue
        found = [old for old in found if old.split != new.split or old.epoch < new.epoch]
        found.append(new)
    if not damaged:
        return found, ""
    some = ", ".join(map(str, damaged[:6])) + (", …" if len(damaged) > 6 else "")
    return found, (
        f"{len(damaged)} of {len(entries)} lines of {SNAPSHOT_FILE} cannot be read and were left "
        f"out: line {some}."
    )


def _snapshot_of(entry: dict[str, Any]) -> Snapshot:
    classes, corners = tuple(map(int, entry["classes"])), tuple(map(int, entry["corners"]))
    square, width = (len(classes), len(classes)), max(1, len(corners) - 1)

    def floats(name: str, *shape: int) -> FloatArray:
        return np.array(entry[name], dtype=np.float64).reshape(shape)  # null becomes nan

    def maybe(name: str, *shape: int) -> FloatArray | None:
        return None if entry.get(name) is None else floats(name, *shape)

    labels = np.array(entry["point_labels"], dtype=np.int64)
    return Snapshot(
        epoch=int(entry["epoch"]),
        split=str(entry["split"]),
        num_classes=int(entry["num_classes"]),
        classes=classes,
        means_gram=floats("means_gram", *square),
        weight_gram=maybe("weight_gram", *square),
        cross=maybe("cross", *square),
        singular_means=floats("singular_means", -1),
        singular_weight=maybe("singular_weight", -1),
        within_spectrum=maybe("within_spectrum", -1),
        corners=corners,
        points=floats("points", len(labels), width),
        point_labels=labels,
        corner_means=floats("corner_means", len(corners), width),
        corner_weights=maybe("corner_weights", len(corners), width),
    )
