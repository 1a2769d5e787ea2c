"""The page of a comparison: what the template is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor import __version__
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history_queries import other_split, split_names
from ncmonitor.plots import PANELS
from ncmonitor.plots.style import SERIES
from ncmonitor.reports.comparison import aggregate
from ncmonitor.reports.comparison import sentences as words
from ncmonitor.reports.comparison.group_expectations import expected_table
from ncmonitor.reports.comparison.group_plots import (
    DASHES,
    ORDER_PARAMETERS,
    GroupStyle,
    compared_panel,
    look_of,
    order_parameters,
)
from ncmonitor.reports.comparison.group_tables import Column, all_table, main_table, run_table
from ncmonitor.reports.comparison.run_groups import RunGroup, differences
from ncmonitor.reports.comparison.runs import RunFolder
from ncmonitor.reports.comparison.symmetry_comparison import orbits_beside_classes
from ncmonitor.reports.comparison.symmetry_summary import symmetry_table
from ncmonitor.reports.page import inline_svg, moment, templates
from ncmonitor.reports.page import words as recorded
from ncmonitor.reports.run_page.facts import environment, measured
from ncmonitor.reports.run_page.pictures import FigureBlock

if TYPE_CHECKING:
    import pandas as pd

#: Facts that differ from run to run without meaning anything, or have a column of their own.
_OWN: Final = frozenset(
    {"Started", "Finished", "Seed", "Time per measured epoch", "Time measuring", "Measured epochs"}
)


def render(
    page: Path,
    title: str | None,
    columns: Sequence[Column],
    statistics: pd.DataFrame,
    left_out: Sequence[str],
    files: Sequence[Path],
) -> str:
    """Write the page of a comparison.

    Args:
        page: Where it will be, for links to the runs.
        title: Its heading; ``None``: what is compared.
        columns: The groups with their statistics.
        statistics: The same as one table.
        left_out: Names of runs without a measured epoch.
        files: CSV files beside it.
    """
    groups = [column.group for column in columns]
    runs = [run for group in groups for run in group.runs]
    look = look_of(groups, statistics)
    same, apart = _facts(runs)
    expected, doubts = expected_table(groups)
    tables = [all_table(columns, split) for split in split_names(statistics)]
    of_all = f"Comparison of {len(runs)} runs" if len(groups) > 1 else groups[0].label
    template = templates().get_template("comparison.html.j2")
    return template.render(
        title=title or of_all,
        dates=_dates(runs),
        version=__version__,
        headline=words.headline(groups),
        cautions=[*words.all_cautions(groups, [c.last for c in columns], left_out), *doubts],
        expected=expected,
        series=SERIES,
        key=[_key(i, group, look) for i, group in enumerate(groups)],
        repeats=len(groups) > len(SERIES) * len(DASHES),
        look=look,
        thinned=any(column.table["epoch"].nunique() > look.points for column in columns),
        several=any(len(group.runs) > 1 for group in groups),
        panels=list(_panels(columns, look)),
        order=_order(columns, look),
        symmetry=orbits_beside_classes(groups),
        invariance=symmetry_table(groups),
        main=main_table(columns, other_split(statistics)),
        all=tables,
        same_end=all(len({epoch for _, epoch, _ in table["heads"]}) < 2 for table in tables),
        runs=run_table(groups, page.parent, other_split(statistics)),
        labels=[group.label for group in groups],
        options=differences([group.runs for group in groups if group.runs[0].options]),
        with_options=[i for i, group in enumerate(groups) if group.runs[0].options],
        same=same,
        apart=apart,
        commands=aggregate.shares({run.name: recorded(run.facts.get("command")) for run in runs}),
        files=[file.name for file in files],
    )


def _dates(runs: Sequence[RunFolder]) -> str:
    days = sorted(str(run.facts["created"]) for run in runs if run.facts.get("created"))
    moments = list(dict.fromkeys(moment(day) for day in days[:1] + days[-1:]))
    return " to ".join(moments) if moments else "Date not recorded"


def _key(i: int, group: RunGroup, look: GroupStyle) -> dict[str, Any]:
    n = len(group.runs)
    return {
        "nth": i + 1,
        "label": group.label,
        "runs": f"{n} run" if n == 1 else f"{n} runs",
        "series": i % len(SERIES),
        "dashes": " ".join(str(2 * d) for d in look.dashes(i, look.splits[0])) or "none",
    }


def _panels(columns: Sequence[Column], look: GroupStyle) -> Iterator[FigureBlock]:
    groups, tables = [c.group for c in columns], [c.table for c in columns]
    for i, name in enumerate(name for names in PANELS for name in names):
        quantity = CATALOGUE[name]
        figure = compared_panel(groups, tables, name, look)
        svg = inline_svg(figure, f"p{i}-", f"{quantity.label} by epoch")
        yield FigureBlock(svg, "", (("", quantity),))


def _order(columns: Sequence[Column], look: GroupStyle) -> FigureBlock | None:
    figure = order_parameters([c.group for c in columns], [c.table for c in columns], look)
    if figure is None:
        return None
    quantities = tuple((CATALOGUE[name].label, CATALOGUE[name]) for name in ORDER_PARAMETERS)
    return FigureBlock(
        inline_svg(figure, "o0-", "Symmetry of the classes by epoch"), "", quantities
    )


def _facts(
    runs: Sequence[RunFolder],
) -> tuple[list[tuple[str, str]], list[tuple[str, dict[str, str]]]]:
    """Return what the runs record in common, and what they record differently and who."""
    facts = {}
    for run in runs:
        how = measured(run.history, run.facts)
        said = dict([*how, *environment(run.facts)])
        facts[run.name] = {label: text for label, text in said.items() if label not in _OWN}
    same, apart = [], []
    for label in dict.fromkeys(label for said in facts.values() for label in said):
        told = aggregate.shares(
            {run: said.get(label, recorded(None)) for run, said in facts.items()}
        )
        if len(told) == 1:
            same.append((label, next(iter(told))))
        else:
            apart.append((label, {value: words.names(who) for value, who in told.items()}))
    return same, apart
