"""The notebooks: committed with their outputs, clean to read, and they run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

FOLDER: Final = Path(__file__).resolve().parent.parent / "notebooks"
NAMES: Final = (
    "1-quick-start",
    "2-reading-the-metrics",
    "3-terminal-phase-mnist",
    "4-your-own-model",
    "5-theory",
    "6-symmetry",
)
#: What GitHub still shows, and a clone does not notice.
LARGEST: Final = 500_000
#: Seconds for one notebook under its small settings, on busy cores.
PATIENCE: Final = 240

every_notebook = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def outputs(name: str) -> Iterator[dict[str, Any]]:
    for cell in code_cells(name):
        yield from cell["outputs"]


def said(output: dict[str, Any]) -> str:
    """Return all that an output shows as text."""
    data = output.get("data", {})
    parts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join("".join(part) for part in parts)


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_folder_holds_these_notebooks_and_no_other() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@every_notebook
def test_a_notebook_was_run_from_top_to_bottom(name: str) -> None:
    counts = [cell["execution_count"] for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_a_notebook_shows_neither_errors_nor_warnings(name: str) -> None:
    for output in outputs(name):
        assert output["output_type"] != "error", output.get("evalue")
        assert output.get("name") != "stderr", said(output)
        assert not re.search(r"Warning|wandb|\x1b|\r", said(output)), said(output)


@every_notebook
def test_a_notebook_names_no_path_of_the_machine_it_was_run_on(name: str) -> None:
    root = r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|var|opt)/"
    shown = [said(output) for output in outputs(name)]
    shown += [source(cell) for cell in read(name)["cells"]]
    for text in shown:
        assert not re.search(root, text), text


@every_notebook
def test_a_notebook_is_small_and_runs_in_any_python_3(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    metadata = read(name)["metadata"]
    assert metadata["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert set(metadata) == {"kernelspec", "language_info"}


@every_notebook
def test_a_notebook_shows_its_pictures_and_checks_what_it_claims(name: str) -> None:
    pictures = [output for output in outputs(name) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    assert not any(re.match(r"<Figure|<Axes", said(o)) for o in outputs(name) if o not in pictures)
    assert sum(source(cell).count("assert ") for cell in code_cells(name)) >= 3


@every_notebook
def test_the_links_of_a_notebook_lead_somewhere(name: str) -> None:
    texts = [source(cell) for cell in read(name)["cells"] if cell["cell_type"] == "markdown"]
    for target in re.findall(r"\]\(([^)#]+)\)", "\n".join(texts)):
        assert (FOLDER / target).exists(), target


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(name: str, image_root: Callable[[str], Path], tmp_path: Path) -> None:
    if importlib.util.find_spec("nbmake") is None or importlib.util.find_spec("ipykernel") is None:
        pytest.skip("nbmake and ipykernel are not installed: pip install -e '.[notebooks]'")
    environment = os.environ | {
        "NCMONITOR_NOTEBOOK_FAST": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(tmp_path),
    }
    if name == "3-terminal-phase-mnist":
        environment["NCMONITOR_DATA"] = str(image_root("MNIST"))
    # Apart from this suite's settings: what a notebook warns of is its reader's to see.
    settings = ["-c", os.devnull, "--rootdir", str(FOLDER), "-p", "no:cacheprovider", "-q"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *settings,
        "--nbmake",
        f"--nbmake-timeout={PATIENCE}",
    ]
    ran = subprocess.run(
        [*command, str(FOLDER / f"{name}.ipynb")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "1 passed" in ran.stdout
