"""Pages read as a browser reads them, and the runs on disk that they are of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from histories import collapse_rows
from ncmonitor.monitor.history import columns_of, start_history
from ncmonitor.monitor.snapshots.snapshot import append_snapshot, take_snapshot
from ncmonitor.reports.run_page import write_report

#: What a page must show as text.
HOSTILE = "\"'><script>alert(1)</script>&{{7*7}}"
#: What ``run.json`` holds.
RUN: dict[str, Any] = {
    "ncmonitor": "0.1.0",
    "created": "2026-02-03T14:05:06+00:00",
    "finished": "2026-02-03T14:05:50+00:00",
    "command": "ncmonitor fit digits --seed_everything 0",
    "commit": "0123abcd",
    "dirty": True,
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "machine": {"system": "Linux x86_64", "cpu_count": 2, "gpu": None},
    "measurement": {
        **{"classifier": "net.head", "num_classes": 10, "feature_dim": 64},
        **{"feature_dtype": "float32", "convention": "class-balanced"},
        **{"schedule": "every_epoch", "splits": {"train": 1437, "val": 360}},
    },
    "timing": {"fit_seconds": 40.0, "monitor_seconds": 6.0},
    "max_epochs": 150,
    "seed": 0,
}
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page as a browser would: tags must nest, attributes are collected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def make_run(folder: Path, rows: list[dict[str, Any]] | None = None, run: object = RUN) -> Path:
    """Put a run on disk; ``run`` is its ``run.json``, ``None`` for none."""
    rows = collapse_rows() if rows is None else rows
    start_history(folder, rows, columns_of(rows))
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def add_snapshots(
    folder: Path, epochs: Sequence[int], *, classes: int = 4, head: bool = True, **options: Any
) -> None:
    """Let a cloud of features draw together, one snapshot for each epoch."""
    rng = np.random.default_rng(0)
    labels = np.arange(6 * classes) % classes
    means = rng.normal(size=(classes, classes + 3))
    noise = rng.normal(size=(len(labels), classes + 3))
    weight = means - means.mean(axis=0) if head else None
    for epoch in epochs:
        features = means[labels] + noise / (1 + epoch)
        append_snapshot(folder, take_snapshot(features, labels, weight, epoch=epoch, **options))


def add_layers(rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return rows with those of inner layers, less collapsed than the features."""
    inner = [
        row | {"split": f"{row['split']}/layer/{name}", "nc1": row["nc1"] * (2 + i)}
        for row in rows
        for i, name in enumerate(names)
    ]
    gone = ("error", "cross_entropy", "nc4_disagreement", "nc3_self_duality")
    return [*rows, *({k: v for k, v in row.items() if k not in gone} for row in inner)]


def read(folder: Path) -> Page:
    """Write the report of a run and read it."""
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.stat().st_size < 5e6
    return Page(path.read_text(encoding="utf-8"))
