"""What the symmetry zoo measured, as kept in ``recipes/results``, and its table in ``RESULTS.md``.

``python tests/support/zoo_results.py RUN_DIR ...`` takes runs of several seeds in. Without
arguments only the table is written anew.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from ncmonitor.recipes.zoo.zoo_table import CSV_FILE, PICTURE_FILE, number
from recipe_results import PAGE, RESULTS

ZOO = RESULTS / "symmetry_zoo"
START, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
_HEADS = (
    *("network", "test", "group", "theory", "features, before", "after", "logits, after"),
    *("inner map: theory", "before", "after"),
)


def take_in(folders: list[Path]) -> None:
    """Keep the numbers of some runs, and the picture of the first."""
    ZOO.mkdir(parents=True, exist_ok=True)
    tables = pd.concat([pd.read_csv(folder / CSV_FILE) for folder in folders])
    tables.to_csv(ZOO / CSV_FILE, index=False, float_format="%.4g")
    shutil.copy(folders[0] / PICTURE_FILE, ZOO / PICTURE_FILE)


def zoo_table(kept: pd.DataFrame) -> str:
    """Write smallest and largest value over the seeds for each network and group."""
    lines = [_bar(_HEADS), "|---" * len(_HEADS) + "|"]
    for keys, rows in kept.groupby(["network", "group"], sort=False):
        network, group = map(str, keys)
        of = dict(iter(rows.groupby("of")))
        cells = [f"`{network}`", _shares(rows["test_accuracy"]), group.replace("_", " ")]
        features = of["features"]
        cells += [features["theory"].iloc[0], _span(features, "before"), _span(features, "after")]
        cells.append(_span(of["logits"], "after"))
        if "inner" in of:
            inner = of["inner"]
            cells += [inner["theory"].iloc[0], _span(inner, "before"), _span(inner, "after")]
        lines.append(_bar([*cells, *[""] * (len(_HEADS) - len(cells))]))
    return "\n".join(lines)


def with_zoo(text: str) -> str:
    """Return the page with its table written anew."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{zoo_table(pd.read_csv(ZOO / CSV_FILE))}\n{END}{after}"


def _span(rows: pd.DataFrame, when: str) -> str:
    low, high = rows[when].min(), rows[when].max()
    if (rows["theory"] == "exactly 0").all():
        return "0" if high == 0 else f"≤ {number(high)}"
    texts = dict.fromkeys([number(low), number(high)])
    return " to ".join(texts)


def _shares(values: pd.Series[float]) -> str:
    texts = dict.fromkeys(f"{100 * v:.0f}" for v in (values.min(), values.max()))
    return f"{' to '.join(texts)} %"


def _bar(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    if sys.argv[1:]:
        take_in([Path(word) for word in sys.argv[1:]])
    PAGE.write_text(with_zoo(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
