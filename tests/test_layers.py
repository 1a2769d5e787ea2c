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
_PICTURES = {"pandas", "seaborn", "matplotlib", "PIL", "numpy"}

#: Package -> what it may import besides the standard library and the packages of the rows above it.
LAYERS: dict[str, set[str]] = {
    "errors": set(),  # with redact and secret_names, which keep secrets out of messages
    "catalogue": set(),
    "inputs": {"torch", "numpy"},
    "features": {"torch", "numpy"},
    "geometry": {"torch", "scipy"},
    "statistics": {"torch"},
    "theory": {"torch", "scipy"},
    "metrics": {"torch", "scipy"},
    "measurement": {"torch", "pandas"},
    "symmetry": _NUMBERS | {"pandas"},
    "monitor": {"torch", "numpy", "pandas", "yaml"},
    "plots": _PICTURES,
    "reports": _PICTURES | {"jinja2", "markupsafe", "yaml"},
    "wandb_tools": {"wandb", "wandb_workspaces", "pandas"},
    "watch": {"plotille"},
    "cli": set(),  # answers `--help` in under a second: hands over by module name only
    "callbacks": _NUMBERS | _TRAINER | {"pandas"},
    "recipes": {"torchvision", "jsonargparse", "sklearn", "yaml", "wandb", "pandas", "matplotlib"}
    | {"torch_geometric"}
    | _NUMBERS
    | _TRAINER,
}
#: Files in the root of the package: each stands where its row does.
ROOT_FILES = {"redact": "errors", "secret_names": "errors", "__main__": "cli"}
RANK = {name: rank for rank, name in enumerate(LAYERS)}


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
    """Return the row of a full name below ``ncmonitor``; empty for the package itself."""
    part = name.split(".")[1] if "." in name else ""
    return ROOT_FILES.get(part, part)


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file of the product, with the full name of its module."""
    for folder in ("ncmonitor", "callbacks", "recipes"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] in (("ncmonitor", "callbacks"), ("ncmonitor", "recipes")):
                continue  # seen through a link; the folder itself is walked too
            name = ".".join(parts if folder == "ncmonitor" else ("ncmonitor", *parts))
            yield path, name.removesuffix(".__init__")


def imports_of(path: Path, module: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from imported(tree, package)


def violations(root: Path) -> list[str]:
    """Return one line for each import that points up, or to a package outside the table."""
    found = []
    for path, module in sources(root):
        layer = layer_of(module)
        for line, name in imports_of(path, module):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names:
                continue
            where = f"{path.relative_to(root).as_posix()}:{line} imports {name}"
            if top != "ncmonitor":
                if layer and top not in LAYERS[layer]:
                    found.append(f"{where}; {layer} may not import {top}")
                continue
            row = layer_of(name)
            if row in RANK and layer and RANK[row] > RANK[layer]:
                found.append(f"{where}; {layer} may not import {row}")
    return found


def circles(root: Path) -> set[str]:
    """Return the modules that import one another in a circle, and those that import such."""
    modules = {module: path for path, module in sources(root)}
    ahead: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imports_of(path, module)}
        parents = {name.rpartition(".")[0] for name in names - modules.keys()}
        ahead[module] = ((names | parents) & modules.keys()) - {module}
    while free := {module for module, others in ahead.items() if not others & ahead.keys()}:
        for module in free:  # who imports nobody that is left cannot be in a circle
            del ahead[module]
    return set(ahead)


def test_every_import_points_down() -> None:
    assert violations(ROOT) == []


def test_no_modules_import_one_another() -> None:
    assert circles(ROOT) == set()


def test_every_package_has_a_row() -> None:
    rows = {layer_of(module) for _, module in sources(ROOT)} - {""}
    assert rows == set(LAYERS)


def test_folders_are_small_and_the_root_holds_nothing_private() -> None:
    folders: dict[Path, list[str]] = {}
    for path, _ in sources(ROOT):
        folders.setdefault(path.parent, []).append(path.name)
    assert {str(k): len(v) for k, v in folders.items() if len(v) > 16} == {}
    root = folders[ROOT / "ncmonitor"]
    assert len(root) <= 6
    assert [name for name in root if name.startswith("_") and not name.startswith("__")] == []


@pytest.mark.parametrize(
    ("place", "source", "layer"),
    [
        ("ncmonitor/statistics/a.py", "import pytorch_lightning as pl", "pytorch_lightning"),
        ("ncmonitor/statistics/a.py", "def f():\n    import wandb", "wandb"),
        ("ncmonitor/statistics/a.py", "from ncmonitor import callbacks", "callbacks"),
        ("ncmonitor/statistics/a.py", "from .. import recipes", "recipes"),
        ("ncmonitor/statistics/a.py", "from ncmonitor.metrics import nc1", "metrics"),
        ("ncmonitor/redact.py", "from ncmonitor.catalogue import CATALOGUE", "catalogue"),
        ("ncmonitor/statistics/a.py", "import seaborn", "seaborn"),
        ("ncmonitor/metrics/a.py", "from ..callbacks.x import X", "callbacks"),
        ("ncmonitor/metrics/a.py", "from torchvision.models import vgg11", "torchvision"),
        ("ncmonitor/plots/a.py", "import jinja2", "jinja2"),
        ("ncmonitor/cli/__init__.py", "import torch", "torch"),
        ("callbacks/a.py", "from ncmonitor.recipes.data import X", "recipes"),
        ("callbacks/a.py", "from ..recipes import data", "recipes"),
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
        ("ncmonitor/metrics/a.py", "import torch\nfrom ..statistics.moments import ClassMoments"),
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


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "ncmonitor" / "plots"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("from ncmonitor.plots.b import x")
    (folder / "b.py").write_text("def f():\n    from ncmonitor.plots import c")
    (folder / "c.py").write_text("from . import a")
    (folder / "d.py").write_text("from . import a")
    assert circles(tmp_path) == {f"ncmonitor.plots.{name}" for name in "abcd"}
