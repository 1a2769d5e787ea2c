"""The report of a run: one HTML file that opens anywhere, and the overview as a picture.

The page holds its figures as inline SVG and its style inline; it has no script and fetches nothing.
Every string that comes from the run is escaped by the template.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor import __version__
from ncmonitor.errors import warn
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.history_queries import split_names, tpt_start
from ncmonitor.monitor.provenance import read_run
from ncmonitor.monitor.snapshots.snapshot import SNAPSHOT_FILE
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.plots import overview
from ncmonitor.plots.style import SERIES
from ncmonitor.reports import verdict
from ncmonitor.reports.expect import read_expectation
from ncmonitor.reports.expected import cause_of, findings, limits_of
from ncmonitor.reports.page import REPORT_FILE as REPORT_FILE
from ncmonitor.reports.page import moment, templates, words
from ncmonitor.reports.run_page import facts, pictures
from ncmonitor.reports.run_page import symmetry_section as symmetry
from ncmonitor.reports.run_page.classes import class_table
from ncmonitor.reports.run_page.files import PAPER, TABLE_FILE, write_figures, write_table
from ncmonitor.reports.run_page.film import film
from ncmonitor.reports.run_page.run_tables import epoch_table, last_table, layer_table

if TYPE_CHECKING:
    import pandas as pd

#: The same picture under the same name as the one that a fit draws: nothing is there twice.
OVERVIEW_FILE: Final = "figures/curves.png"
_FILES: Final = (
    *("history.csv", SYMMETRY_FILE, "run.json", "config.yaml", SNAPSHOT_FILE),
    *(OVERVIEW_FILE, "figures/animation.gif"),
)


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run into its folder, with its curves as ``figures/curves.png``.

    Args:
        run_dir: Folder of the run, finished, running or killed; ``history.csv`` is all it needs.
            With ``snapshots.jsonl`` the page shows the geometry too.

    Returns:
        Path of ``report.html``.

    Raises:
        InputError: If the folder holds no run.
    """
    folder = Path(run_dir)
    history, run = read_history(folder), read_run(folder)
    picture = folder / OVERVIEW_FILE
    picture.parent.mkdir(exist_ok=True)
    overview(history).savefig(picture, dpi=150)
    report = folder / REPORT_FILE
    report.write_text(_render(folder, history, run), encoding="utf-8")
    return report


def export_run(run_dir: str | Path, kind: str) -> list[Path]:
    """Write the figures of a run for a paper, or its numbers, into its folder.

    Args:
        run_dir: Folder of the run.
        kind: ``"png"`` or ``"pdf"``: one file for each figure, in ``paper/``; ``"csv"``: a tidy
            table, ``metrics.csv``.

    Returns:
        Paths of the files.

    Raises:
        InputError: If the folder holds no run.
    """
    folder = Path(run_dir)
    history = read_history(folder)
    for caution in history.attrs["cautions"]:
        warn(caution)
    if kind == "csv":
        return [write_table(history, folder / TABLE_FILE)]
    snapshots, remarks = pictures.usable_snapshots(folder)
    for remark in remarks:
        warn(remark)
    groups, doubts = symmetry.read(folder)
    for doubt in doubts:
        warn(doubt)
    return write_figures(history, snapshots, folder / PAPER, kind, groups)


def _render(folder: Path, history: pd.DataFrame, run: dict[str, Any]) -> str:
    start = tpt_start(history)
    snapshots, remarks = pictures.usable_snapshots(folder)
    last = snapshots[-1] if snapshots and snapshots[-1].split == "train" else None
    groups, doubts = symmetry.read(folder)
    parts = _verdict(folder, history, run, [*remarks, *doubts])
    template = templates().get_template("report.html.j2")
    return template.render(
        name=folder.resolve().name,
        date=moment(run.get("created")),
        version=__version__,
        **parts,
        splits=split_names(history),
        start=start,
        series=SERIES,
        panels=pictures.panels(history),
        paths=pictures.paths(history),
        geometry=pictures.geometry(snapshots),
        film=film(snapshots),
        layer_maps=pictures.layer_maps(history),
        layers=layer_table(history),
        budget=symmetry.budget(history),
        symmetry=symmetry.section(groups),
        classes=class_table(history, run, last),
        last=last_table(history),
        epochs=epoch_table(history, start),
        measured=facts.measured(history, run),
        environment=facts.environment(run),
        command=words(run.get("command")),
        wandb_runs=facts.wandb_runs(folder),
        files=facts.files(folder, _FILES),
    )


def _verdict(
    folder: Path, history: pd.DataFrame, run: dict[str, Any], remarks: list[str]
) -> dict[str, Any]:
    """Gather what the page says in words, and the run against what was expected of it."""
    expectation, doubts = read_expectation(folder)
    found = [] if expectation is None else findings(history, run, expectation)
    return {
        "headline": verdict.headline(history),
        "cautions": [
            *history.attrs.get("cautions", ()),
            *verdict.cautions(history, run),
            *doubts,
            *remarks,
        ],
        "standings": verdict.standings(history),
        "left": {name: floor for name, floor in limits_of(run).items() if floor > 0},
        "cause": cause_of(run),
        "expectation": expectation,
        "findings": found,
        "nulls": any(each.null == each.null for each in found),
    }
