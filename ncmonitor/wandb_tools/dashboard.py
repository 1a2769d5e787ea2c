"""The W&B workspace as code: built without a network, written as JSON or saved in a project.

The one place that knows ``wandb-workspaces``: its serialised form is not part of its public
interface, so the version is bounded in ``pyproject.toml``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.catalogue import MetricChoice
from ncmonitor.errors import InputError
from ncmonitor.wandb_tools import run_record
from ncmonitor.wandb_tools.dashboard_sections import Panel, Part, parts

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME: Final = "Neural collapse"
RECIPE: Final = "ncmonitor.recipe"
_COLUMNS: Final = 3
_MAX_RUNS: Final = 30


def build(
    entity: str,
    project: str,
    *,
    name: str = NAME,
    prefix: str = "nc",
    metrics: MetricChoice = "default",
    group_by: str | None = None,
) -> Workspace:
    """Build the workspace, without a network or a login.

    Args:
        entity: User or team that owns the project.
        project: W&B project.
        name: Of the saved view.
        prefix: First part of every log key, as for ``NeuralCollapse``.
        metrics: What the runs measure, as for ``NeuralCollapse``; others stay empty panels.
        group_by: Config key by which the list of runs, and with it every chart, is grouped
            (``"ncmonitor.recipe"``); ``None`` overlays runs one by one. The comparison at the end
            is grouped by recipe in either case.

    Returns:
        The workspace, to be given to :func:`push` or :func:`export`.

    Raises:
        InputError: If a name is empty, or the extra ``dashboard`` is not installed.
    """
    for what, given in (("entity", entity), ("project", project), ("name", name)):
        if not given.strip() or "/" in given:
            raise InputError(f"{what}= must be a name without slashes, but is {given!r}")
    ws, expr = _workspaces(), _expressions()
    x_axis = f"{prefix}/epoch"
    groups = [] if group_by is None else [expr.Config(group_by)]
    shown = parts(prefix, metrics)
    columns = [
        f"config:{RECIPE}",
        f"summary:{prefix}/tpt/tpt_start_exact.last",
        f"summary:{prefix}/train/nc1.last",
    ]
    try:
        made: Workspace = ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[_section(part, x_axis) for part in shown],
            settings=ws.WorkspaceSettings(x_axis=x_axis, max_runs=_MAX_RUNS),
            runset_settings=ws.RunsetSettings(groupby=groups, pinned_columns=columns),
        )
        return made
    except ValueError as error:  # an emoji in the name, and what else W&B does not take
        words = " ".join(str(error).split())
        raise InputError(f"W&B does not take this dashboard: {words}") from error


def export(workspace: Workspace) -> str:
    """Return the workspace as JSON: what ``save`` would send, with entity, project and name.

    Args:
        workspace: From :func:`build`.

    Returns:
        The text of a file.
    """
    spec = workspace._spec
    return json.dumps(spec, indent=2, ensure_ascii=False) + "\n"


def load(text: str) -> Workspace:
    """Read a workspace that :func:`export` wrote.

    Raises:
        InputError: If it is none.
    """
    ws = _workspaces()
    from wandb_workspaces.workspaces import internal

    try:
        view = internal.View.model_validate(json.loads(text))
        read: Workspace = ws.Workspace._from_model(view)
        return read
    except ValueError as error:
        raise InputError(f"this is no exported workspace: {str(error).splitlines()[0]}") from error


def push(workspace: Workspace, *, say: Callable[[str], object] = lambda line: None) -> str:
    """Save the workspace in its project as a new view.

    Args:
        workspace: From :func:`build` or :func:`load`.
        say: Is told, in one line, before W&B's server is waited for.

    Returns:
        Its address.

    Raises:
        InputError: If W&B refuses or cannot be reached, with the client's own words.
    """
    with _in_words(f"{workspace.entity}/{workspace.project}"):
        say(f"connecting to W&B ({run_record.host()}) ...")
        workspace.save()  # type: ignore[no-untyped-call]
        return str(workspace.url)


def write(workspace: Workspace, out: Path) -> Path:
    """Write the exported workspace to a file."""
    try:
        out.write_text(export(workspace), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the dashboard cannot be written: {error}") from error
    return out


# -- panels ----------------------------------------------------------------------------------------


def _section(part: Part, x_axis: str) -> Any:
    ws = _workspaces()
    rows = -(-len(part.panels) // _COLUMNS)
    return ws.Section(
        name=part.title,
        panels=[_panel(panel, x_axis) for panel in part.panels],
        is_open=part.open,
        pinned=part.open,
        layout_settings=ws.SectionLayoutSettings(columns=_COLUMNS, rows=min(rows, 4)),
        panel_settings=ws.SectionPanelSettings(x_axis=x_axis),
    )


def _panel(panel: Panel, x_axis: str) -> Any:
    wr: Any = importlib.import_module("wandb_workspaces.reports.v2")

    log = True if panel.log else None
    line = {"title": panel.title, "x": x_axis, "log_y": log}
    match panel.kind:
        case "line":
            return wr.LinePlot(**line, y=list(panel.keys))
        case "pattern":
            return wr.LinePlot(**line, metric_regex=panel.keys[0])
        case "grouped":
            return wr.LinePlot(
                **line, y=list(panel.keys), title_x="completed epochs", groupby=wr.Config(RECIPE),
                groupby_aggfunc="mean", groupby_rangefunc="minmax",
            )  # fmt: skip
        case "scalar":
            return wr.ScalarChart(title=panel.title, metric=panel.keys[0])
        case "scatter":
            x, y = map(wr.SummaryMetric, panel.keys)
            return wr.ScatterPlot(title=panel.title, x=x, y=y, log_x=log)
        case "media":
            return wr.MediaBrowser(
                title=panel.title, media_keys=list(panel.keys), gallery_axis="step"
            )
        case "series":
            return wr.CustomChart(
                query={"summaryTable": {"tableKey": panel.keys[0]}},
                chart_name="wandb/lineseries/v0",
                chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
                chart_strings={"title": panel.title, "xname": "completed epochs"},
            )
        case "table":
            return wr.WeavePanelSummaryTable(table_name=panel.keys[0])
        case "runs":
            return wr.RunComparer(diff_only="split")
        case "text":
            return wr.MarkdownPanel(markdown=panel.keys[0])


# -- the client ------------------------------------------------------------------------------------


def _workspaces() -> Any:
    try:
        with warnings.catch_warnings():  # it uses pydantic in a way that pydantic has retired
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise InputError(
            "dashboards need the package wandb-workspaces: pip install 'ncmonitor[dashboard]'"
        ) from error
    return ws


def _expressions() -> Any:
    import wandb_workspaces.expr as expr

    return expr


@contextlib.contextmanager
def _in_words(where: str) -> Iterator[None]:
    """Turn whatever the client raises into one line: it has no single class for its errors."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"W&B did not save the dashboard in {where}: {words} (without W&B's server: "
            "ncmonitor dashboard export)"
        ) from error
