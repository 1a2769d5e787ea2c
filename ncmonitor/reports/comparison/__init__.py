"""Runs side by side: one HTML page that opens anywhere, and its numbers as CSV.

Runs that differ by the seed alone are a group, shown as mean ± standard deviation. The page has no
script and fetches nothing; every string that comes from a run is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ncmonitor.errors import InputError, warn
from ncmonitor.plots import PANELS
from ncmonitor.reports import run_page as html
from ncmonitor.reports.comparison import aggregate
from ncmonitor.reports.comparison.comparison_page import render
from ncmonitor.reports.comparison.group_plots import compared_panel, look_of, with_key
from ncmonitor.reports.comparison.group_tables import Column
from ncmonitor.reports.comparison.run_groups import group_runs
from ncmonitor.reports.comparison.runs import read_runs, run_folders
from ncmonitor.reports.page import REPORT_FILE
from ncmonitor.reports.run_page.files import PAPER, save

if TYPE_CHECKING:
    import pandas as pd

COMPARISON_FILE: Final = "comparison.html"


def report(paths: Sequence[Path], out: Path | None = None, kind: str = "html") -> list[Path]:
    """Write the report of one run into its folder, or a comparison of several.

    Args:
        paths: Run folders, or folders that hold such.
        out: Where a comparison goes; by default into the folder that holds the runs, else into the
            working directory.
        kind: ``"html"``: a page; ``"png"``, ``"pdf"``: its figures, in a folder ``paper``;
            ``"csv"``: its numbers.

    Returns:
        Paths of what was written, the page alone if it is one.

    Raises:
        InputError: As :func:`write_comparison`, and if ``out`` is given for a single run.
    """
    if len(paths) > 1 or run_folders(paths) != list(paths):
        if kind != "html":
            return export_comparison(paths, out or (paths[0] if len(paths) == 1 else Path()), kind)
        holder = paths[0] / REPORT_FILE if len(paths) == 1 else Path(COMPARISON_FILE)
        return [write_comparison(paths, out or holder)]
    if out is not None:
        raise InputError(
            "--out is for comparisons: the report of one run goes into its folder, next to the "
            "files it links to"
        )
    return [html.write_report(paths[0])] if kind == "html" else html.export_run(paths[0], kind)


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
    columns, left_out = _columns(run_dirs)
    statistics = _statistics(columns)
    page.parent.mkdir(parents=True, exist_ok=True)
    before = "" if page.name in (COMPARISON_FILE, REPORT_FILE) else f"{page.stem}_"
    files = _write_tables(columns, statistics, page.parent, before)
    page.write_text(render(page, title, columns, statistics, left_out, files), encoding="utf-8")
    return page


def export_comparison(run_dirs: Sequence[str | Path], out: str | Path, kind: str) -> list[Path]:
    """Write the figures of a comparison for a paper, or its numbers.

    Args:
        run_dirs: As for :func:`write_comparison`.
        out: A folder, made if missing; figures go into ``paper`` below it.
        kind: ``"png"`` or ``"pdf"``: one figure for each quantity; ``"csv"``: ``comparison.csv``
            and ``per_run.csv``.

    Returns:
        Paths of the files.

    Raises:
        InputError: As :func:`write_comparison`, and if ``out`` is not a folder.
    """
    folder = Path(out)
    if not folder.is_dir() and folder.suffix:
        raise InputError(f"--format {kind} writes several files: --out must be a folder, not {out}")
    columns, _ = _columns(run_dirs)
    for run in (run for column in columns for run in column.group.runs):
        for caution in run.history.attrs["cautions"]:
            warn(f"{run.name}: {caution}")
    statistics = _statistics(columns)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        return _write_tables(columns, statistics, folder, "")
    groups, tables = [c.group for c in columns], [c.table for c in columns]
    look = look_of(groups, statistics)
    files = []
    for name in (name for names in PANELS for name in names):
        figure = with_key(compared_panel(groups, tables, name, look), groups, look)
        files.append(save(figure, folder / PAPER / f"comparison_{name}.{kind}"))
    return files


def _columns(run_dirs: Sequence[str | Path]) -> tuple[list[Column], list[str]]:
    runs, left_out = read_runs(run_folders(run_dirs))
    return [Column(group) for group in group_runs(runs)], left_out


def _statistics(columns: Sequence[Column]) -> pd.DataFrame:
    return aggregate.comparison_table([c.group for c in columns], [c.table for c in columns])


def _write_tables(
    columns: Sequence[Column], statistics: pd.DataFrame, folder: Path, before: str
) -> list[Path]:
    groups, tables = [c.group for c in columns], [c.table for c in columns]
    files = [folder / f"{before}{name}.csv" for name in ("comparison", "per_run")]
    statistics.to_csv(files[0], index=False, lineterminator="\n")
    aggregate.per_run_table(groups, tables).to_csv(files[1], index=False, lineterminator="\n")
    return files


def _target(out: Path) -> Path:
    if out.is_dir() or not out.suffix:
        return out / COMPARISON_FILE
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"expected a folder or an .html file to write to, but got {out}")
    return out
