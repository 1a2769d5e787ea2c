"""Is the built wheel complete, and does it run from an empty folder? ``check_wheel.py WHEEL``.

The wheel is unpacked beside the environment's torch instead of into an environment of its own,
which would install several GB again; that every module comes from the wheel is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: In a package folder, but for readers of the repository: what the recipes were measured to reach.
EVIDENCE = {"RESULTS.md", "results"}

# Run in an empty folder with `-P`, so that neither the checkout nor the folder is on the path.
_PROBE = """
import importlib, importlib.metadata, importlib.resources, json
names = ["", ".metrics", ".callbacks", ".recipes", ".cli"]
configs = importlib.resources.files("ncmonitor.recipes").joinpath("configs").iterdir()
print(json.dumps({
    "files": {f"ncmonitor{n}": importlib.import_module(f"ncmonitor{n}").__file__ for n in names},
    "configs": [path.name for path in configs],
    "version": importlib.metadata.version("ncmonitor"),
}))
"""


def settings(root: Path) -> dict[str, Any]:
    """Return the ``[tool.setuptools]`` table of a project."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tool: dict[str, Any] = table["tool"]["setuptools"]
    return tool


def package_folder(root: Path, package: str) -> Path:
    """Return the folder that a package is built from, as setuptools finds it."""
    mapped: dict[str, str] = settings(root).get("package-dir", {})
    if package in mapped:
        return root / mapped[package]
    above, _, name = package.rpartition(".")
    return (package_folder(root, above) if above else root) / name


def package_files(root: Path, package: str) -> list[Path]:
    """Return the files of one package: its own, and those of folders without an ``__init__.py``."""
    folder = package_folder(root, package)
    found = [path for path in folder.iterdir() if path.is_file()]
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink() and not (inner / "__init__.py").exists():
            found += [path for path in inner.rglob("*") if path.is_file()]
    return [
        path
        for path in found
        if path.suffix != ".pyc" and path.relative_to(folder).parts[0] not in EVIDENCE
    ]


def expected_files(root: Path) -> set[str]:
    """Return what the wheel must hold: all that lies in the package folders, as installed."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(package_folder(root, package)).as_posix()}"
        for package in settings(root)["packages"]
        for path in package_files(root, package)
    }


def content_problems(wheel: Path, root: Path) -> list[str]:
    """Return what is missing from a wheel and what does not belong there."""
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n and not n.endswith("/")}
    expected = expected_files(root)
    return [f"missing: {name}" for name in sorted(expected - held)] + [
        f"should not be there: {name}" for name in sorted(held - expected)
    ]


def import_problems(wheel: Path) -> list[str]:
    """Return what goes wrong when the wheel is used from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="ncmonitor-wheel-") as scratch:
        site, empty = Path(scratch, "site").resolve(), Path(scratch, "empty")
        empty.mkdir()
        install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
        environment = {**os.environ, "PYTHONPATH": str(site), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

        def run(*args: str) -> str:
            done = subprocess.run(
                [sys.executable, *args],
                cwd=empty, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"python {' '.join(args)[:60]} failed:\n{done.stderr}")
            return done.stdout

        try:
            run("-m", *install, str(wheel.resolve()))
            seen = json.loads(run("-P", "-c", _PROBE).splitlines()[-1])
            spoken = run("-P", "-m", "ncmonitor", "--version")
        except RuntimeError as error:
            return [str(error)]
        strangers = [
            f"{name} comes from {file}, not from the wheel"
            for name, file in seen["files"].items()
            if not Path(file).resolve().is_relative_to(site)
        ]
        if not seen["configs"]:
            strangers.append("ncmonitor.recipes sees no configs")
        if seen["version"] not in spoken:
            strangers.append(f"`ncmonitor --version` says {spoken!r}, not {seen['version']}")
        return strangers


def main(argv: list[str]) -> int:
    """Check the wheels named on the command line; return the exit status."""
    if len(argv) != 1:
        print(f"expected one wheel, got {len(argv)}: {' '.join(argv)}")
        return 2
    wheel = Path(argv[0])
    problems = content_problems(wheel, ROOT) + import_problems(wheel)
    for problem in problems:
        print(f"{wheel.name}: {problem}")
    if not problems:
        print(f"{wheel.name}: complete, and runs from an empty folder")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
