"""Importing is light and pure: the heavy libraries come in only where they are used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "jinja2", "lightning", "matplotlib", "numpy", "pandas", "pytorch_lightning", "scipy",
    "seaborn", "sklearn", "torch", "torchvision", "wandb",
)  # fmt: skip


def heavy_after(code: str, folder: Path) -> list[str]:
    """Return which heavy libraries are loaded after running ``code`` in a process of its own."""
    report = f"import json, sys; print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("module", ["ncmonitor", "ncmonitor.catalogue", "ncmonitor.cli"])
def test_import_loads_nothing_heavy(module: str, tmp_path: Path) -> None:
    assert heavy_after(f"import {module}", tmp_path) == []


def test_the_core_needs_torch_and_nothing_for_pictures_or_training(tmp_path: Path) -> None:
    loaded = heavy_after("from ncmonitor import *", tmp_path)
    assert "torch" in loaded  # the twin: this test can see a library that is loaded
    assert set(loaded) <= {"torch", "numpy", "scipy"}


def test_reading_a_history_needs_no_torch(tmp_path: Path) -> None:
    assert "torch" not in heavy_after(
        "from ncmonitor.monitor.history import read_history", tmp_path
    )


@pytest.mark.parametrize("module", ["ncmonitor", "ncmonitor.callbacks"])
def test_every_public_name_resolves(module: str) -> None:
    package = importlib.import_module(module)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_an_unknown_name_is_an_attribute_error() -> None:
    package = importlib.import_module("ncmonitor")
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        _ = package.nothing_like_it
