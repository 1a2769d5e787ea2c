"""The report of a run: one HTML file that opens anywhere, and the overview as a picture.

The page holds its figures as inline SVG and its style inline; it has no script and fetches nothing.
Every string that comes from the run is escaped by the template.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ncmonitor import __version__
from ncmonitor import _verdict as verdict
from ncmonitor._axes import ACCENT, INK, MUTED, SERIES, SHADE
from ncmonitor._expect import read_expectation
from ncmonitor._table import other_split, split_names, split_rows, tpt_start
from ncmonitor.catalogue import CATALOGUE, FIT, METRICS, PHASE, Quantity
from ncmonitor.expected import cause_of, findings, floors_of
from ncmonitor.history import NULL_SPLIT, read_history
from ncmonitor.plots import PANELS, overview, panel, panel_labels
from ncmonitor.provenance import read_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

REPORT_FILE: Final = "report.html"
OVERVIEW_FILE: Final = "figures/overview.png"

#: Title of each family, in the order of the table.
GROUPS: Final[dict[str, str]] = {
    "fit": "The fit",
    "nc1": "NC1: samples gather at their class mean",
    "nc2": "NC2: the class means and the classifier approach a simplex ETF",
    "nc3": "NC3: the classifier lines up with the class means",
    "nc4": "NC4: the network decides for the nearest class mean",
    "nc0": "NC0: the classifier's rows sum to zero",
    "symmetry": "Symmetry: no class differs from another",
    "imbalance": "Unequal class sizes",
    "many_classes": "Many classes",
    "loss_aware": "The squared loss in parts",
    "rank_norm": "Ranks and norms",
    "phase": "The terminal phase of training (TPT)",
    "diagnostics": "Diagnostics: can the numbers be trusted?",
}
#: Columns of the table of epochs; the second part is for the split beside train.
_TRAIN_COLUMNS: Final = (
    *("error", "cross_entropy", "nc1", "nc2_equinorm_means", "nc2_etf_means", "nc2_etf_w"),
    *("nc3_self_duality", "nc4_disagreement"),
)
_OTHER_COLUMNS: Final = ("error", "nc1", "nc4_disagreement")
#: The figures' colours become variables of the page, so that they follow its light or dark look.
_CSS_COLOURS: Final = {
    **{INK: "var(--ink)", MUTED: "var(--muted)", SHADE: "var(--tpt)", ACCENT: "var(--accent)"},
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}


class Cell(NamedTuple):
    """One cell of a table: what it shows and what kind of thing that is (a CSS class)."""

    text: str
    kind: str = "value"


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run into its folder, with the overview as ``figures/overview.png``.

    Args:
        run_dir: Folder of the run, finished, running or killed; ``history.csv`` is all it needs.

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


def _render(folder: Path, history: pd.DataFrame, run: dict[str, Any]) -> str:
    env = Environment(
        loader=PackageLoader("ncmonitor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": verdict.number, "formula": _formula}
    start = tpt_start(history)
    expectation, doubts = read_expectation(folder)
    found = [] if expectation is None else findings(history, run, expectation)
    return env.get_template("report.html.j2").render(
        name=folder.resolve().name,
        date=_moment(run.get("created")),
        version=__version__,
        headline=verdict.headline(history),
        cautions=[*verdict.cautions(history, run), *doubts],
        standings=verdict.standings(history),
        left={name: floor for name, floor in floors_of(run).items() if floor > 0},
        cause=cause_of(run),
        expectation=expectation,
        findings=found,
        nulls=any(each.null == each.null for each in found),
        splits=split_names(history),
        start=start,
        series=SERIES,
        panels=list(_panels(history)),
        last=_last_table(history),
        epochs=_epoch_table(history, start),
        measured=_measured(history, run),
        environment=_environment(run),
        command=_text(run.get("command")),
        wandb_runs=_wandb_runs(folder),
        files=_files(folder),
    )


def _panels(history: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for i, names in enumerate(PANELS):
        title, own = panel_labels(names)
        quantities = list(zip(own, (CATALOGUE[name] for name in names), strict=True))
        svg = _inline_svg(panel(history, names), f"p{i}-", f"{title} by epoch")
        yield {"title": title, "svg": svg, "quantities": quantities}


def _inline_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """Turn a figure into SVG for a page with others: own ids, no size, colours of the page."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # Comments repeat the texts of the figure, and the style sheet would hold for the whole page.
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#|url\(#', lambda found: found[0] + prefix, svg)
    svg = re.sub("|".join(_CSS_COLOURS), lambda found: _CSS_COLOURS[found[0]], svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    # Safe: what is left is paths, numbers and the escaped label.
    return Markup(f'{head} role="img" aria-label="{escape(label)}">{body}')


def _formula(text: str) -> Markup:
    """Set the subscripts of a formula of the catalogue, as in ``w_c`` and ``s_{K−1}``."""
    safe = str(escape(text))
    return Markup(re.sub(r"_(?:\{([^}]+)\}|(\w′?))", r"<sub>\1\2</sub>", safe))


def _cell(row: pd.Series[Any] | None, entry: Quantity, split: str) -> Cell:
    if split != "train" and (entry.once or entry.group == "phase"):
        return Cell("·", "none")
    if split == NULL_SPLIT and entry.group == "fit":
        return Cell("·", "none")
    if row is None:
        return Cell("not measured", "none")
    value = float(row[entry.name])
    if entry.name.startswith("tpt_start") and value != value:
        return Cell("not reached", "none")
    return Cell(verdict.number(value), "nan" if value != value else "value")


def _last_table(history: pd.DataFrame) -> dict[str, Any]:
    """Build the table of every quantity at the last epoch of each split, by family."""
    rows = {s: split_rows(history, s).iloc[-1] for s in split_names(history)}
    groups = []
    for group, title in GROUPS.items():
        family = [q for q in (*FIT, *METRICS, *PHASE) if q.group == group]
        entries = [q for q in family if q.name in history]
        lines = [(q, [_cell(row, q, split) for split, row in rows.items()]) for q in entries]
        if lines:
            groups.append({"title": title, "lines": lines})
    return {"columns": [(s, int(row["epoch"])) for s, row in rows.items()], "groups": groups}


def _epoch_table(history: pd.DataFrame, start: int | None) -> dict[str, Any]:
    """Build the table of the main quantities at the first, some, and the last epoch."""
    other = other_split(history)
    parts = [("train", _TRAIN_COLUMNS), *([(other, _OTHER_COLUMNS)] if other else [])]
    rows = {s: split_rows(history, s).set_index("epoch") for s, _ in parts}
    lines = []
    for epoch in _some_epochs(sorted(set(history["epoch"])), start):
        cells = []
        for split, names in parts:
            row = rows[split].loc[[epoch]].iloc[-1] if epoch in rows[split].index else None
            cells += [_cell(row, CATALOGUE[name], split) for name in names]
        active = (
            epoch in rows["train"].index and rows["train"].loc[[epoch], "tpt_active"].eq(1).any()
        )
        lines.append({"epoch": epoch, "onset": epoch == start, "active": active, "cells": cells})
    heads = [(split, [CATALOGUE[name] for name in names]) for split, names in parts]
    return {"heads": heads, "lines": lines}


def _some_epochs(epochs: Sequence[int], start: int | None) -> list[int]:
    steps = {digit * 10**power for power in range(7) for digit in (1, 2, 5)}
    wanted = {epochs[0], epochs[-1], *steps, *([] if start is None else [start])}
    return [epoch for epoch in epochs if epoch in wanted]


def _measured(history: pd.DataFrame, run: dict[str, Any]) -> list[tuple[str, str]]:
    how, timing = verdict.section(run, "measurement"), verdict.section(run, "timing")
    samples = verdict.section(how, "splits")
    epochs = sorted(set(history["epoch"]))
    each = history.groupby("epoch")["seconds"].sum(min_count=1).median()
    return [
        ("Classifier", _text(how.get("classifier"))),
        ("Classes", _text(how.get("num_classes"))),
        ("Feature dimension", _text(how.get("feature_dim"))),
        ("Feature precision", _text(how.get("feature_dtype"))),
        ("Convention", _text(how.get("convention"))),
        ("Schedule", _text(how.get("schedule"))),
        ("Samples", _text(", ".join(f"{split} {n}" for split, n in samples.items()))),
        ("Measured epochs", f"{len(epochs)}, from {epochs[0]} to {epochs[-1]}"),
        ("Time per measured epoch", f"{each:.3g} s (median)" if each == each else _text(None)),
        ("Time measuring", _share(timing.get("monitor_seconds"), timing.get("fit_seconds"))),
    ]


def _share(part: object, whole: object) -> str:
    if not isinstance(part, int | float):
        return _text(None)
    if not isinstance(whole, int | float) or not whole >= part:
        return f"{part:.3g} s"
    share = f" ({part / whole:.1%})".replace("%", " %") if whole > 0 else ""
    return f"{part:.3g} s of the {whole:.3g} s of the fit{share}"


def _environment(run: dict[str, Any]) -> list[tuple[str, str]]:
    commit = _text(run.get("commit"))
    machine = {k: v for k, v in verdict.section(run, "machine").items() if v is not None}
    return [
        ("Started", _moment(run.get("created"))),
        ("Finished", _moment(run.get("finished"))),
        ("Seed", _text(run.get("seed"))),
        ("Planned epochs", _text(run.get("max_epochs"))),
        ("Commit", commit + (", with uncommitted changes" if run.get("dirty") is True else "")),
        ("Machine", _text("; ".join(f"{k.replace('_', ' ')} {v}" for k, v in machine.items()))),
        *((name, _text(v)) for name, v in verdict.section(run, "versions").items()),
    ]


def _text(value: object) -> str:
    return "not recorded" if value is None or value == "" else str(value)


def _moment(value: object) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return _text(value)
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _wandb_runs(folder: Path) -> list[str]:
    found = sorted(path for path in folder.glob("wandb/offline-run-*") if path.is_dir())
    return [shlex.quote(path.relative_to(folder).as_posix()) for path in found]


def _files(folder: Path) -> list[str]:
    names = ("history.csv", "run.json", "config.yaml", OVERVIEW_FILE)
    return [name for name in names if (folder / name).is_file()]
