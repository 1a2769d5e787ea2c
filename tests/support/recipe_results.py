"""What the recipes reached, as kept in ``recipes/results``, and the tables of ``RESULTS.md``.

``python tests/support/recipe_results.py LABEL RUN_DIR ...`` takes runs of one experiment in; a
folder that holds runs (``--seeds``) stands for all of them. Without arguments only the tables are
written anew.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ncmonitor.catalogue import CATALOGUE, METRICS
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.provenance import read_run
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE, read_symmetry
from ncmonitor.reports.comparison.aggregate import span, spread
from ncmonitor.reports.verdict import number

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RESULTS, PAGE = RECIPES / "results", RECIPES / "RESULTS.md"
RUNS = RESULTS / "runs.json"
START, END = "<!-- table: begin -->", "<!-- table: end -->"

#: Columns of every CSV; what a recipe asks for beyond the default comes after them.
COLUMNS = (
    *("error", "cross_entropy", "nc1", "nc2_equinorm_means", "nc2_equinorm_w", "nc2_etf_means"),
    *("nc2_etf_w", "nc3_self_duality", "nc4_disagreement", "tpt_start_exact"),
)
SHOWN = ("nc1", "nc2_equinorm_means", "nc2_etf_means", "nc3_self_duality", "nc4_disagreement")
#: Of the samples as they are ("plain") and of each group, where it applies.
SYMMETRIES = (
    *("acc", "nc1_quotient", "inv_error", "orbit_share", "orbit_quot", "nc1_aug"),
    *("acc_orbit_mean", "acc_orbit_worst"),
)
EPOCHS = 50  # rows of a CSV by seed and split, evenly spaced in the logarithm

#: Options that are left out of the commands shown.
_WITHOUT_INFLUENCE = (
    *(
        "--seed_everything",
        "--seeds",
        "--trainer.default_root_dir",
        "--trainer.enable_progress_bar",
    ),
)


# -- taking runs in --------------------------------------------------------------------------------


def take_in(label: str, folders: list[Path]) -> None:
    """Write the histories of some runs as one CSV, and what they are to ``runs.json``."""
    runs = [run for folder in folders for run in _runs_in(folder)]
    tables = [_history(run) for run in runs]
    RESULTS.mkdir(exist_ok=True)
    table = pd.concat(tables, ignore_index=True).sort_values(["seed", "split", "epoch"])
    table.to_csv(RESULTS / f"{label}.csv", index=False, float_format="%.6g")
    known = known_runs()
    known[label] = _facts(label, runs)
    RUNS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _runs_in(folder: Path) -> list[Path]:
    if (folder / HISTORY_FILE).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{HISTORY_FILE}"))
    if not found:
        raise SystemExit(f"{folder} holds no run")
    return found


def _history(run: Path) -> pd.DataFrame:
    history, facts = read_history(run), read_run(run)
    groups = {CATALOGUE[name].group for name in facts["measurement"]["metrics"]}
    wanted = [q.name for q in METRICS if q.group in groups and q.name not in COLUMNS]
    extra = [name for name in wanted if name in history]  # the default ones of a group, too
    table = history[["split", "epoch", *COLUMNS, *extra]].copy()
    table.insert(0, "seed", facts["seed"])
    for file in run.glob("lightning_logs/*/metrics.csv"):  # what a module logs of its own: ufm/...
        logged = pd.read_csv(file)
        own = [name for name in logged if str(name).startswith("ufm/")]
        if own:
            logged = logged.dropna(subset=["nc/epoch"])[["nc/epoch", *own]]
            table = table.merge(logged.rename(columns={"nc/epoch": "epoch"}), on="epoch")
    table, acted_on = _with_symmetry(run, table)
    epochs = sorted(set(table["epoch"]))
    kept = {epochs[0], epochs[-1]} | acted_on
    for wanted in np.geomspace(1, max(epochs[-1], 1), EPOCHS):
        kept.add(min(epochs, key=lambda epoch: abs(epoch - wanted)))
    return table[table["epoch"].isin(kept)]


def _with_symmetry(run: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, set[int]]:
    """Add what was measured of groups, ``symmetry/rotations90/orbit_quot``; return its epochs."""
    if not (run / SYMMETRY_FILE).is_file():
        return table, set()
    rows = read_symmetry(run).query("layer == element == '' and group != 'parameters'")
    wide = rows.pivot(index=["split", "epoch"], columns="group", values=[*SYMMETRIES])
    wide.columns = pd.Index([f"symmetry/{pair[1]}/{pair[0]}" for pair in wide.columns])
    wide = wide.dropna(axis="columns", how="all").reset_index()
    return table.merge(wide, "left", ["split", "epoch"]), set(wide["epoch"])


def _facts(label: str, runs: list[Path]) -> dict[str, Any]:
    facts = [read_run(run) for run in runs]
    first = facts[0]
    config = yaml.safe_load((runs[0] / "config.yaml").read_text(encoding="utf-8"))
    same = ("commit", "versions", "machine")
    differing = [key for key in same if any(run[key] != first[key] for run in facts)]
    if differing or any(run["dirty"] or run.get("resumed") for run in facts):
        raise SystemExit(
            f"{label}: runs of different {differing}, resumed, or with uncommitted changes"
        )
    versions = ("ncmonitor", "python", "torch", "pytorch-lightning")
    return {
        "command": _command(first["command"], len(runs)),
        "commit": first["commit"],
        "machine": first["machine"],
        "versions": {name: first["versions"][name] for name in versions},
        "seeds": [run["seed"] for run in facts],
        "epochs": [run["max_epochs"] for run in facts],
        "fit_seconds": [round(run["timing"]["fit_seconds"], 1) for run in facts],
        "monitor_seconds": [round(run["timing"]["monitor_seconds"], 1) for run in facts],
        "clean_from": [_clean_from(run) for run in runs],
        "threads": config["threads"],
        "date": first["created"][:10],
    }


def _clean_from(run: Path) -> int | None:
    """Return the first epoch from which on the training error stayed 0."""
    train = read_history(run).query("split == 'train'")
    wrong = train.loc[train["error"] != 0, "epoch"].max()
    later = train.loc[train["epoch"] > wrong, "epoch"]
    return int(later.min()) if len(later) else None


def _command(command: str, seeds: int) -> str:
    """Return the command as a reader would give it: all seeds at once, no folders."""
    words = shlex.split(command)
    words = words[words.index("fit") :]
    kept = []
    for i in [i for i, word in enumerate(words) if word == "--trainer.logger"][::-1]:
        if words[i + 1] == "false":  # another one may be where a column comes from
            del words[i : i + 2]
    for word, before in zip(words, ["", *words], strict=False):
        if not word.startswith(_WITHOUT_INFLUENCE) and before not in _WITHOUT_INFLUENCE:
            kept.append(word)
    return shlex.join(["ncmonitor", *kept, *(["--seeds", str(seeds)] if seeds > 1 else [])])


# -- the tables ------------------------------------------------------------------------------------


def known_runs() -> dict[str, Any]:
    """Return what ``runs.json`` says of every label."""
    return json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.exists() else {}


def last_rows(label: str, split: str = "train") -> pd.DataFrame:
    """Return the last row of each seed of a label."""
    table = pd.read_csv(RESULTS / f"{label}.csv")
    table = table[table["split"] == split]
    return table.sort_values("epoch").groupby("seed").tail(1).sort_values("seed")


def tables() -> str:
    """Return the Markdown tables of everything that was run."""
    known = known_runs()
    head = ["run", "seeds", "epochs", "time", "training error first 0", "0 for good", "test error"]
    lines = [f"| {' | '.join([*head, *(_label(name) for name in SHOWN)])} |"]
    lines.append("|---|" + "--:|" * (len(head) + len(SHOWN) - 1))
    for label, facts in sorted(known.items()):
        cells = [f"[{label}](results/{label}.csv)", *_cells(label, facts)]
        lines.append(f"| {' | '.join(cells)} |")
    commands = ["| run | command | commit | date |", "|---|---|---|---|"]
    for label, facts in sorted(known.items()):
        commands.append(
            f"| {label} | `{facts['command']}` | {facts['commit'][:10]} | {facts['date']} |"
        )
    return "\n".join([*lines, "", *commands, "", *_machines(known)])


def _label(name: str) -> str:
    return f"`{name}`" if name in CATALOGUE else name


def _cells(label: str, facts: dict[str, Any]) -> list[str]:
    train, val = last_rows(label), last_rows(label, "val")
    start = train["tpt_start_exact"]
    begun = "–" if start.isna().any() else span([int(value) for value in start])
    error = mean_and_sd(val["error"] * 100) + " %" if len(val) else "–"
    seconds = span([round(value) for value in facts["fit_seconds"]])
    return [
        *(", ".join(map(str, facts["seeds"])), span(facts["epochs"]), f"{seconds} s"),
        *(begun, _for_good(facts), error, *(mean_and_sd(train[name]) for name in SHOWN)),
    ]


def _for_good(facts: dict[str, Any]) -> str:
    epochs = facts.get("clean_from", [None])
    return "–" if None in epochs else span(epochs)


def mean_and_sd(values: pd.Series[float]) -> str:
    """Write mean ± standard deviation (n − 1); the value alone if there is no spread."""
    same = len(values) == 1 or float(values.std()) == 0
    return number(float(f"{values.mean():.3g}")) if same else spread(values.mean(), values.std())


def _machines(known: dict[str, Any]) -> list[str]:
    found = {
        f"{facts['machine']['cpu']}, {facts['machine']['cpu_count']} cores, "
        f"{facts['threads']} thread; {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}"
        for facts in known.values()
    }
    return [f"All on: {text}." for text in sorted(found)]


def with_tables(text: str) -> str:
    """Put the tables into the page, between its two marks."""
    pattern = re.compile(f"{START}.*{END}", re.DOTALL)
    assert pattern.search(text), f"{PAGE.name} has lost its marks"
    return pattern.sub(lambda _: f"{START}\n{tables()}\n{END}", text)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        take_in(sys.argv[1], [Path(word) for word in sys.argv[2:]])
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
