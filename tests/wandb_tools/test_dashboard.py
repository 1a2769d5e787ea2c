"""The W&B workspace: what is on it, on which axes, as JSON, and saved by the real client."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ncmonitor.callbacks.figures import drawing as figure_drawing
from ncmonitor.callbacks.figures.drawing import FIGURES
from ncmonitor.catalogue import (
    CATALOGUE,
    FIT_NAMES,
    GROUPS,
    METRIC_NAMES,
    METRICS,
    PHASE_NAMES,
    quantity_of,
)  # fmt: skip
from ncmonitor.cli import main
from ncmonitor.errors import InputError
from ncmonitor.measurement.measure import measure_collapse
from ncmonitor.monitor.log_keys import log_values
from ncmonitor.symmetry.rows import keys_to_come
from ncmonitor.wandb_tools import dashboard
from ncmonitor.wandb_tools.dashboard_sections import Panel, is_positive, parts
from symmetries import symmetry_rows
from toys import blobs
from wandb_server import Server, wandb_server

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("no network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def panels(**settings: Any) -> dict[str, list[Panel]]:
    return {part.title: list(part.panels) for part in parts(**settings)}


# -- what is on it ---------------------------------------------------------------------------------


def test_every_default_metric_and_the_clock_have_a_chart() -> None:
    keys = {key for part in parts() for panel in part.panels for key in panel.keys}
    assert {f"nc/train/{name}" for name in METRIC_NAMES} <= keys
    assert {f"nc/val/{name}" for name in METRIC_NAMES if not CATALOGUE[name].once} <= keys
    assert {"nc/tpt/tpt_active", "nc/tpt/epochs_in_tpt", "nc/tpt/tpt_start_exact"} <= keys
    charts = [key for part in parts(metrics="all") for panel in part.panels for key in panel.keys]
    shown = {
        q.group
        for q in METRICS
        if any(key == f"nc/train/{q.name}" or f"/{re.escape(q.name)}/" in key for key in charts)
    }
    assert shown == {*GROUPS} - {"regression"}


def test_the_sections_are_those_of_the_paper_and_around_it() -> None:
    words = ["Overview", "NC1", "NC2", "NC3", "NC4", "Classes", "Layers", "Symmetry", "Invariance",
             "Norms", "Media", "Comparison", "Diagnostics"]  # fmt: skip
    titles = [part.title for part in parts()]
    assert [title.split(" ")[0].rstrip(":") for title in titles] == words
    assert all("?" in title for title in titles)  # each says what it answers
    assert [part.title for part in parts() if part.open] == titles[:1]


def test_the_onset_is_in_two_charts_and_no_section_repeats_anothers_panel() -> None:
    marked = [(part.title[:8], panel.title) for part in parts() for panel in part.panels
              if "nc/tpt/onset" in panel.keys]  # fmt: skip
    assert marked == [("Overview", "error"), ("Overview", "NC1")]
    whole = parts(metrics="all")
    beside = [panel.keys for part in whole if part.title[:8] != "Overview" for panel in part.panels]
    assert len(beside) == len({*beside})


def test_what_runs_do_not_log_by_default_is_in_panels_that_say_so() -> None:
    """Every panel has a key that a plain fit has logged, or its section says what it takes."""
    default = {*METRIC_NAMES, *FIT_NAMES, *PHASE_NAMES, "onset"}
    for part in parts():
        if "(where measured)" in part.title:
            assert "NeuralCollapse(" in part.panels[0].keys[0]
            continue
        for panel in part.panels:
            if panel.kind in ("line", "grouped", "scalar"):
                assert {key.split("/")[-1] for key in panel.keys} <= default
    drawn, asked = [p for p in parts()[10].panels if p.kind == "media"]
    assert {key.split("/")[1] for key in drawn.keys} == {*figure_drawing.DEFAULT}
    assert {key.split("/")[1] for key in asked.keys} == {*FIGURES} - {*figure_drawing.DEFAULT}
    assert "asked for" in asked.title


def test_only_keys_that_are_logged_are_asked_for() -> None:
    for part in parts("my", metrics="all"):
        for panel in part.panels:
            if panel.kind in ("line", "grouped", "scalar"):
                for key in panel.keys:
                    assert re.match(r"my/(train|val|tpt)/\w+$", key)
                    assert key.endswith("/tpt/onset") or quantity_of(key.split("/")[-1])


def test_patterns_find_the_keys_of_layers_and_classes() -> None:
    page = {title.split(":")[0]: found for title, found in panels(metrics="all").items()}
    [pattern] = [p.keys[0] for p in page["Layers"] if p.title == "NC1 by layer"]
    assert re.search(pattern, "nc/train/layer/body.0/nc1")
    assert not re.search(pattern, "nc/train/layer/body.0/nc1_quotient")
    [pattern] = [p.keys[0] for p in page["Classes"] if p.kind == "pattern"]
    assert re.search(pattern, "nc/train/nc1_per_class/12")


def test_every_number_of_symmetry_that_is_shown_is_found_by_the_pattern_of_its_panel() -> None:
    page = {title.split(":")[0]: found for title, found in panels().items()}
    keys = [*keys_to_come(symmetry_rows([0], layers=("body.2",)), "nc")]
    for panel in page["Invariance"][1:]:
        assert any(re.search(panel.keys[0], key) for key in keys), panel.title
    [both] = [p.keys[0] for p in page["Invariance"] if p.title.startswith("class collapse")]
    assert [key for key in keys if re.search(both, key)] == [
        "nc/train/symmetry/plain/nc1_quotient",
        "nc/train/symmetry/rotations90/orbit_quot",
    ]
    [elements] = [p.keys[0] for p in page["Invariance"] if "each element" in p.title]
    assert not re.search(elements, "nc/val/symmetry/rotations90/acc")


def test_a_logarithmic_axis_is_only_where_zero_cannot_occur() -> None:
    """Two classes, no error, sure logits, rows that add up to 0: what is 0 there is linear."""
    features, labels = blobs(40, noise=1e-3)
    features, labels = features[labels < 2], labels[labels < 2]
    zero = set()
    row = features[:1] - features[1:2]
    for weight in (features[:2].clone(), 1e5 * features[:2], torch.cat([row, -row])):
        report = measure_collapse(features, labels, weight, metrics="all")
        values = {"error": report.error, "cross_entropy": report.cross_entropy, **report.as_dict()}
        zero |= {key.removeprefix("train/") for key, value in values.items() if value <= 1e-12}
    assert {"error", "nc4_disagreement", "nc2_equinorm_means", "cross_entropy", "w_mean_ratio"} <= {
        *zero
    }
    logged = {
        key.split("/")[-1]
        for part in parts(metrics="all")
        for panel in part.panels
        if panel.log and panel.kind in ("line", "grouped")
        for key in panel.keys
    }
    assert {"nc1", "nc1_quotient", "nc3_self_duality", "onset"} <= logged
    assert not logged & zero
    assert not is_positive("nc1_per_class")  # 0 for a class of one sample
    assert log_values([], "nc") == {}


# -- as JSON ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("metrics", ["default", "all"])
def test_the_json_reads_back_to_the_same_workspace_without_a_network(metrics: str) -> None:
    made = dashboard.build("me", "p", metrics=metrics, group_by=dashboard.RECIPE)
    text = dashboard.export(made)
    assert dashboard.export(dashboard.load(text)) == text
    section = json.loads(text)["spec"]["section"]
    assert section["settings"]["xAxis"] == "nc/epoch"
    assert section["runSets"][0]["grouping"] == [
        {"section": "config", "name": "ncmonitor.value.recipe"}
    ]


def test_charts_of_the_json_have_our_axes() -> None:
    spec = json.loads(dashboard.export(dashboard.build("me", "p")))["spec"]["section"]
    charts = [
        panel["config"]
        for part in spec["panelBankConfig"]["sections"]
        for panel in part["panels"]
        if panel["viewType"] == "Run History Line Plot"
    ]
    assert {chart["xAxis"] for chart in charts} == {"nc/epoch"}
    nc1 = next(chart for chart in charts if chart["chartTitle"] == "NC1")
    assert nc1["metrics"] == ["nc/train/nc1", "nc/val/nc1", "nc/tpt/onset"]
    assert nc1["yLogScale"] is True
    error = next(chart for chart in charts if chart["chartTitle"] == "error")
    assert "yLogScale" not in error
    compared = next(chart for chart in charts if chart["chartTitle"] == "train NC1")
    assert (compared["groupBy"], compared["groupArea"]) == ("ncmonitor.value.recipe", "minmax")


@pytest.mark.usefixtures("offline")
def test_export_writes_a_file_or_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dashboard.json"
    assert main(["dashboard", "export", "--project", "p", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["project"] == "p"
    assert "the entity is a placeholder: pass --entity" in capsys.readouterr().err
    assert main(["dashboard", "export", "--entity", "me", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["entity"] == "me"
    assert capsys.readouterr().err == ""
    assert main(["dashboard", "export", "--prefix", "my"]) == 0
    assert '"my/train/nc1"' in capsys.readouterr().out
    assert main(["dashboard", "export", "--out", str(tmp_path / "no" / "x.json")]) == 2
    assert "the dashboard cannot be written" in capsys.readouterr().err


def test_a_file_that_is_no_dashboard_is_explained() -> None:
    with pytest.raises(InputError, match="this is no exported workspace"):
        dashboard.load("{}")


# -- pushed ----------------------------------------------------------------------------------------


def test_push_saves_what_export_shows(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--entity", "me", "--project", "p", "--name", "Mine", "--metrics", "nc1,imbalance"]
    assert main(["dashboard", "push", *words]) == 0
    [view] = server.views
    names = (view["entityName"], view["projectName"], view["displayName"], view["type"])
    assert names == ("me", "p", "Mine", "project-view")
    made = dashboard.build("me", "p", name="Mine", metrics=["nc1", "imbalance"])
    assert without_ids(json.loads(view["spec"])) == without_ids(made._spec["spec"])
    said = capsys.readouterr()
    assert said.out.startswith(f"dashboard saved: {server.url}/me/p?nw=")
    assert said.err.splitlines()[0] == f"connecting to W&B ({server.url}) ..."


def without_ids(spec: Any) -> Any:
    """Drop the panels' ids, which are drawn."""
    if isinstance(spec, dict):
        return {key: without_ids(value) for key, value in spec.items() if key != "__id__"}
    return [without_ids(value) for value in spec] if isinstance(spec, list) else spec


@pytest.mark.parametrize(
    ("status", "message"),
    [(200, "permission denied"), (404, "project not found"), (401, "user is not logged in")],
)
def test_a_wrong_entity_or_key_is_one_line(
    server: Server, capsys: pytest.CaptureFixture[str], status: int, message: str
) -> None:
    server.errors["UpsertView2"], server.status = message, status
    assert main(["dashboard", "push", "--entity", "them", "--project", "p"]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert line.startswith("ncmonitor: error: W&B did not save the dashboard in them/p: ")
    assert message in line
    assert line.endswith("(without W&B's server: ncmonitor dashboard export)")


def test_push_without_a_login_says_how_to_log_in(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert main(["dashboard", "push", "--entity", "me", "--project", "p"]) == 2
    assert "Use `wandb login` to log in." in capsys.readouterr().err
    assert server.views == []


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard", "export"]) == 2
    assert "pip install 'ncmonitor[dashboard]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"entity": ""}, "entity= must be a name"),
        ({"project": "me/p"}, "project= must be a name without slashes"),
        ({"name": " "}, "name= must be a name"),
        ({"metrics": ["nc_1"]}, "did you mean"),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dashboard.build(**{"entity": "me", "project": "p", **settings})
