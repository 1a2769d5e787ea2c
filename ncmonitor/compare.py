"""Runs side by side: one HTML page that opens anywhere, and its numbers as CSV.

Runs that differ by the seed alone are a group, shown as mean ± standard deviation. The page has no
script and fetches nothing; every string that comes from a run is escaped by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ncmonitor import __version__, _aggregate, html
from ncmonitor import _compare_words as words
from ncmonitor._axes import SERIES
from ncmonitor._checks import InputError
from ncmonitor._compare_plots import DASHES, Look, compared_panel, look_of
from ncmonitor._compare_tables import Column, all_table, main_table, run_table
from ncmonitor._groups import Group, differences, group_runs
from ncmonitor._runs import Run, read_runs, run_folders
from ncmonitor._table import other_split, split_names
from ncmonitor._verdict import number
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.plots import PANELS

if TYPE_CHECKING:
    import pandas as pd

COMPARISON_FILE: Final = "comparison.html"

#: Facts that differ from run to run without meaning anything, or have a column of their own.
_OWN: Final = frozenset(
    {"Started", "Finished", "Seed", "Time per measured epoch", "Time measuring", "Measured epochs"}
)


def report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run into its folder, or a comparison of several.

    Args:
        paths: Run folders, or folders that hold such.
        out: Where a comparison goes; by default into the folder that holds the runs, else into
            ``comparison.html`` in the working directory.

    Returns:
        Path of the page.

    Raises:
        InputError: As :func:`write_comparison`, and if ``out`` is given for a single run.
    """
    if len(paths) > 1 or run_folders(paths) != list(paths):
        holder = paths[0] / html.REPORT_FILE if len(paths) == 1 else Path(COMPARISON_FILE)
        return write_comparison(paths, out or holder)
    if out is not None:
        raise InputError(
            "--out is for comparisons: the report of one run goes into its folder, next to the "
            "files it links to"
        )
    return html.write_report(paths[0])


def write_comparison(
    run_dirs: Sequence[str | Path], out: str | Path, title: str | None = None
) -> Path:
    """Write a page that sets runs side by side, with its numbers as CSV next to it.

    The statistics go to ``comparison.csv`` (group, split, epoch, metric, n, mean, sd, min, max) and
    the last shared epoch of each run to ``per_run.csv``; a page of another name than
    ``comparison.html`` or ``report.html`` has its name before theirs.

    Args:
        run_dirs: Run folders, finished, running or killed, or folders that hold such. Runs without
            a measured epoch are left out, and the page says so.
        out: The page (``.html``), or the folder for ``comparison.html``; made if missing.
        title: Heading of the page.

    Returns:
        Path of the page.

    Raises:
        InputError: If a folder holds no run or cannot be read, a run comes twice, or ``out`` is
            neither a folder nor an ``.html`` file.
    """
    page = _target(Path(out))
    runs, left_out = read_runs(run_folders(run_dirs))
    columns = [Column(group) for group in group_runs(runs)]
    groups, tables = [c.group for c in columns], [c.table for c in columns]
    statistics = _aggregate.comparison_table(groups, tables)
    page.parent.mkdir(parents=True, exist_ok=True)
    before = "" if page.name in (COMPARISON_FILE, html.REPORT_FILE) else f"{page.stem}_"
    files = [page.with_name(f"{before}{name}.csv") for name in ("comparison", "per_run")]
    statistics.to_csv(files[0], index=False, lineterminator="\n")
    _aggregate.per_run_table(groups, tables).to_csv(files[1], index=False, lineterminator="\n")
    page.write_text(_render(page, title, columns, statistics, left_out, files), encoding="utf-8")
    return page


def _target(out: Path) -> Path:
    if out.is_dir() or not out.suffix:
        return out / COMPARISON_FILE
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"expected a folder or an .html file to write to, but got {out}")
    return out


def _render(
    page: Path,
    title: str | None,
    columns: Sequence[Column],
    statistics: pd.DataFrame,
    left_out: Sequence[str],
    files: Sequence[Path],
) -> str:
    env = Environment(
        loader=PackageLoader("ncmonitor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": number, "formula": html._formula}
    groups = [column.group for column in columns]
    runs = [run for group in groups for run in group.runs]
    look = look_of(groups, statistics)
    same, apart = _facts(runs)
    of_all = f"Comparison of {len(runs)} runs" if len(groups) > 1 else groups[0].label
    return env.get_template("comparison.html.j2").render(
        title=title or of_all,
        dates=_dates(runs),
        version=__version__,
        headline=words.headline(groups),
        cautions=words.all_cautions(groups, [column.last for column in columns], left_out),
        series=SERIES,
        key=[_key(i, group, look) for i, group in enumerate(groups)],
        repeats=len(groups) > len(SERIES) * len(DASHES),
        look=look,
        thinned=any(column.table["epoch"].nunique() > look.points for column in columns),
        several=any(len(group.runs) > 1 for group in groups),
        panels=list(_panels(columns, look)),
        main=main_table(columns, other_split(statistics)),
        all=[all_table(columns, split) for split in split_names(statistics)],
        runs=run_table(groups, page.parent, other_split(statistics)),
        labels=[group.label for group in groups],
        options=differences([group.runs for group in groups if group.runs[0].options]),
        with_options=[group.label for group in groups if group.runs[0].options],
        same=same,
        apart=apart,
        commands=_aggregate.shares(
            {run.name: html._text(run.facts.get("command")) for run in runs}
        ),
        files=[file.name for file in files],
    )


def _dates(runs: Sequence[Run]) -> str:
    days = sorted(str(run.facts["created"]) for run in runs if run.facts.get("created"))
    moments = list(dict.fromkeys(html._moment(day) for day in days[:1] + days[-1:]))
    return " to ".join(moments) if moments else "Date not recorded"


def _key(i: int, group: Group, look: Look) -> dict[str, Any]:
    n = len(group.runs)
    return {
        "label": group.label,
        "runs": f"{n} run" if n == 1 else f"{n} runs",
        "series": i % len(SERIES),
        "dashes": " ".join(str(2 * d) for d in look.dashes(i, look.splits[0])) or "none",
    }


def _panels(columns: Sequence[Column], look: Look) -> Iterator[dict[str, Any]]:
    groups, tables = [c.group for c in columns], [c.table for c in columns]
    for i, name in enumerate(name for names in PANELS for name in names):
        quantity = CATALOGUE[name]
        figure = compared_panel(groups, tables, name, look)
        svg = html._inline_svg(figure, f"p{i}-", f"{quantity.label} by epoch")
        # A hundredth of a point is what a screen can show, and half the size of the page.
        svg = Markup(re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), svg))
        yield {"svg": svg, "quantity": quantity}


def _facts(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[str, dict[str, str]]]]:
    """Return what the runs record in common, and what they record differently and who."""
    facts = {}
    for run in runs:
        said = dict([*html._measured(run.history, run.facts), *html._environment(run.facts)])
        facts[run.name] = {label: text for label, text in said.items() if label not in _OWN}
    same, apart = [], []
    for label in dict.fromkeys(label for said in facts.values() for label in said):
        told = _aggregate.shares(
            {run: said.get(label, html._text(None)) for run, said in facts.items()}
        )
        if len(told) == 1:
            same.append((label, next(iter(told))))
        else:
            apart.append((label, {value: words.names(who) for value, who in told.items()}))
    return same, apart
