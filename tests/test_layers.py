"""Arrows point down: who may import whom, read from the sources without running them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_NUMBERS = {"torch", "numpy", "scipy"}
_TRAINER = {"pytorch_lightning", "lightning", "lightning_utilities", "torchmetrics"}
_PICTURES = {"pandas", "seaborn", "matplotlib"}

#: Folder or file -> what it may import besides the standard library; the longest entry holds.
#: ``ncmonitor`` stands for the core: its subpackages are named one by one.
ALLOWED: dict[str, set[str]] = {
    "ncmonitor": {"ncmonitor"} | _NUMBERS,
    # Answers `--help` in under a second: hands over to the layers above by module name only.
    "ncmonitor/cli/__init__.py": {"ncmonitor"},
    "ncmonitor/__main__.py": {"ncmonitor"},
    "ncmonitor/catalogue/__init__.py": {"ncmonitor"},
    # The table, the pictures and the page.
    "ncmonitor/monitor/history.py": {"ncmonitor", "pandas"},
    "ncmonitor/monitor/symmetry_table.py": {"ncmonitor", "pandas"},
    "ncmonitor/symmetry/network_symmetry.py": {"ncmonitor", "torch", "pandas"},
    "ncmonitor/measurement/report.py": {"ncmonitor", "pandas"} | _NUMBERS,
    "ncmonitor/plots/style.py": {"ncmonitor"} | _NUMBERS | _PICTURES,
    "ncmonitor/plots": {"ncmonitor", "PIL"} | _NUMBERS | _PICTURES,
    "ncmonitor/monitor/history_queries.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/verdict.py": {"ncmonitor", "pandas"},
    "ncmonitor/monitor/symmetry_queries.py": {"ncmonitor", "numpy", "pandas"},
    "ncmonitor/reports/symmetry_words.py": {"ncmonitor", "numpy", "pandas"},
    "ncmonitor/reports/expect.py": {"ncmonitor", "yaml"},
    "ncmonitor/reports/expected.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/run_page/__init__.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/page.py": {"ncmonitor", "jinja2", "markupsafe", "PIL"} | _PICTURES,
    "ncmonitor/reports/run_page/facts.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/run_page/run_tables.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/run_page/symmetry_section.py": {"ncmonitor", "numpy", "pandas"},
    "ncmonitor/reports/run_page/classes.py": {"ncmonitor", "numpy", "pandas"},
    "ncmonitor/reports/run_page/pictures.py": {"ncmonitor", "markupsafe", "numpy"} | _PICTURES,
    "ncmonitor/reports/run_page/film.py": {"ncmonitor", "PIL"},
    "ncmonitor/reports/run_page/files.py": {"ncmonitor"} | _PICTURES,
    # Runs side by side.
    "ncmonitor/reports/comparison/runs.py": {"ncmonitor", "pandas", "yaml"},
    "ncmonitor/reports/comparison/aggregate.py": {"ncmonitor", "pandas"} | _NUMBERS,
    "ncmonitor/reports/comparison/group_plots.py": {"ncmonitor"} | _NUMBERS | _PICTURES,
    "ncmonitor/reports/comparison/comparison_page.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/comparison/symmetry_comparison.py": {"ncmonitor", "pandas"},
    "ncmonitor/reports/comparison/symmetry_summary.py": {"ncmonitor", "numpy", "pandas"},
    "ncmonitor/reports/comparison/__init__.py": {"ncmonitor", "pandas"},
    # A run in the terminal.
    "ncmonitor/watch/__init__.py": {"ncmonitor"},
    "ncmonitor/watch/chart.py": {"ncmonitor", "plotille"},
    "ncmonitor/watch/frame.py": {"ncmonitor"},
    "ncmonitor/watch/watched_run.py": {"ncmonitor"},
    "ncmonitor/watch/screen.py": {"ncmonitor"},
    "ncmonitor/watch/symmetry_line.py": {"ncmonitor"},
    "ncmonitor/watch/followed_history.py": {"ncmonitor"},
    # Weights & Biases from what a run left on disk, and the workspace as code.
    "ncmonitor/wandb_tools/run_record.py": {"ncmonitor", "wandb", "pandas"},
    "ncmonitor/monitor/run_info.py": {"ncmonitor", "pandas", "yaml"},
    "ncmonitor/wandb_tools/sync_rows.py": {"ncmonitor", "pandas"},
    "ncmonitor/wandb_tools/sync.py": {"ncmonitor", "wandb", "pandas"},
    "ncmonitor/wandb_tools/dashboard.py": {"ncmonitor", "wandb_workspaces"},
    # When to measure and where to send it; never which model or data.
    "callbacks": {"ncmonitor", "ncmonitor.callbacks", "pandas"} | _NUMBERS | _TRAINER,
    "recipes": {"ncmonitor", "ncmonitor.callbacks", "ncmonitor.recipes", "wandb", "pandas"}
    | {"torchvision", "jsonargparse", "sklearn", "yaml"}
    | _NUMBERS
    | _TRAINER,
    "recipes/zoo/geometric.py": {"ncmonitor", "ncmonitor.recipes", "torch", "torch_geometric"},
    "recipes/zoo/figure.py": {"ncmonitor", "ncmonitor.recipes", "numpy", "matplotlib"},
}
SUBPACKAGES = {"callbacks", "recipes"}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything a module of ``package`` imports, anywhere.

    Imports inside functions, under TYPE_CHECKING and by ``import_module("literal")`` count too.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*above, *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def layer_of(name: str) -> str:
    """Return the part of an imported name that the table speaks about."""
    top, _, rest = name.partition(".")
    below = rest.partition(".")[0]
    return f"{top}.{below}" if top == "ncmonitor" and below in SUBPACKAGES else top


def violations(root: Path, allowed: dict[str, set[str]] = ALLOWED) -> list[str]:
    """Return one line for each import that points up, or to a package outside the table."""
    found = []
    for folder in ("ncmonitor", "callbacks", "recipes"):
        for path in sorted((root / folder).rglob("*.py")):
            place = path.relative_to(root)
            if place.parts[0] == "ncmonitor" and place.parts[1] in SUBPACKAGES:
                continue  # seen through a link; the folder itself is walked too
            inside = place.parts[:-1] if folder == "ncmonitor" else ("ncmonitor", *place.parts[:-1])
            text = place.as_posix()
            rule = max((key for key in allowed if (text + "/").startswith(key + "/")), key=len)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            for line, name in imported(tree, ".".join(inside)):
                layer = layer_of(name)
                if layer not in allowed[rule] and layer not in sys.stdlib_module_names:
                    found.append(f"{text}:{line} imports {name}; {rule} may not import {layer}")
    return found


def test_every_import_points_down() -> None:
    assert violations(ROOT) == []


def test_every_row_of_the_table_is_about_something() -> None:
    assert [key for key in ALLOWED if not (ROOT / key).exists()] == []


def test_no_place_of_the_project_is_without_a_file() -> None:
    assert all(list((ROOT / f).glob("*.py")) for f in ("ncmonitor", "callbacks", "recipes"))


@pytest.mark.parametrize(
    ("place", "source", "layer"),
    [
        ("ncmonitor/statistics/moments.py", "import pytorch_lightning as pl", "pytorch_lightning"),
        ("ncmonitor/statistics/moments.py", "def f():\n    import wandb", "wandb"),
        (
            "ncmonitor/statistics/moments.py",
            "from ncmonitor import callbacks",
            "ncmonitor.callbacks",
        ),
        ("ncmonitor/statistics/moments.py", "from . import recipes", "ncmonitor.recipes"),
        ("ncmonitor/statistics/moments.py", "import seaborn", "seaborn"),
        ("ncmonitor/metrics/a.py", "from ..callbacks.x import X", "ncmonitor.callbacks"),
        ("ncmonitor/metrics/a.py", "from torchvision.models import vgg11", "torchvision"),
        ("ncmonitor/plots/a.py", "import jinja2", "jinja2"),
        ("ncmonitor/cli/__init__.py", "import torch", "torch"),
        ("callbacks/a.py", "from ncmonitor.recipes.data import X", "ncmonitor.recipes"),
        ("callbacks/a.py", "from ..recipes import data", "ncmonitor.recipes"),
        ("callbacks/a.py", "import wandb", "wandb"),
        ("callbacks/a.py", "import importlib\nimportlib.import_module('wandb')", "wandb"),
        ("callbacks/a.py", "import callbacks.b", "callbacks"),
        ("recipes/a.py", "import tests.reference", "tests"),
        ("recipes/a.py", "import timm", "timm"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, place: str, source: str, layer: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(source)
    [line] = violations(tmp_path)
    assert line.startswith(f"{place}:")
    assert line.endswith(f"may not import {layer}")


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("ncmonitor/metrics/a.py", "import torch\nfrom ..moments import ClassMoments"),
        ("ncmonitor/statistics/moments.py", "import math\nfrom ncmonitor.callbacks_like import x"),
        ("ncmonitor/plots/a.py", "import seaborn as sns\nfrom matplotlib import pyplot"),
        ("callbacks/a.py", "from . import b\nfrom .. import measure_collapse\nimport lightning"),
        ("ncmonitor/wandb_tools/sync.py", "import wandb"),
        ("recipes/a.py", "from ncmonitor.callbacks import NeuralCollapse\nimport torchvision"),
    ],
)
def test_an_import_that_points_down_is_left_alone(tmp_path: Path, place: str, source: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(source)
    assert violations(tmp_path) == []
