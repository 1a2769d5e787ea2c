"""The package list is kept by hand, so it is compared with the folders."""

from __future__ import annotations

import importlib.metadata
import tomllib
import zipfile
from pathlib import Path

import pytest

import ncmonitor
from check_wheel import (
    content_problems,
    expected_files,
    package_files,
    package_folder,
    settings,
)

ROOT = Path(__file__).resolve().parent.parent


def package_folders(root: Path) -> set[str]:
    """Return every folder with an ``__init__.py``, under its installed name, links not followed."""
    tops = {"ncmonitor": root / "ncmonitor"} | {
        package: root / folder for package, folder in settings(root)["package-dir"].items()
    }
    found = set()
    for top, folder in tops.items():
        for init in folder.rglob("__init__.py"):
            inner = init.parent.relative_to(folder).parts
            if not any(folder.joinpath(*inner[: i + 1]).is_symlink() for i in range(len(inner))):
                found.add(".".join((top, *inner)))
    return found


def broken_links(root: Path) -> list[str]:
    """Return the mapped folders that ``ncmonitor/`` does not show under their installed name."""
    wrong = []
    for package, folder in settings(root)["package-dir"].items():
        link = root.joinpath(*package.split("."))
        if link.resolve() != (root / folder).resolve() or link.readlink().is_absolute():
            wrong.append(package)
    return wrong


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project packaged in our way, with nothing wrong."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.setuptools]\npackages = ["ncmonitor", "ncmonitor.metrics", "ncmonitor.callbacks"]\n'
        '[tool.setuptools.package-dir]\n"ncmonitor.callbacks" = "callbacks"\n'
    )
    for folder in ("ncmonitor", "ncmonitor/metrics", "callbacks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "ncmonitor" / "py.typed").touch()
    try:
        (tmp_path / "ncmonitor" / "callbacks").symlink_to("../callbacks")
    except OSError:
        pytest.skip("links are not supported here")
    return tmp_path


def wheel_of(root: Path, *, without: str = "", extra: str = "") -> Path:
    path = root / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (expected_files(root) - {without}) | ({extra} - {""}):
            archive.writestr(name, "")
    return path


def test_package_list_equals_the_folders() -> None:
    assert set(settings(ROOT)["packages"]) == package_folders(ROOT)


def test_unlisted_subpackage_is_found(project: Path) -> None:
    assert set(settings(project)["packages"]) == package_folders(project)
    (project / "callbacks" / "new").mkdir()
    (project / "callbacks" / "new" / "__init__.py").touch()
    assert package_folders(project) - set(settings(project)["packages"]) == {
        "ncmonitor.callbacks.new"
    }


@pytest.mark.skipif(
    not (ROOT / "ncmonitor" / "callbacks").is_symlink(), reason="links are not supported here"
)
def test_links_show_the_installed_shape() -> None:
    assert broken_links(ROOT) == []


@pytest.mark.parametrize("target", ["../elsewhere", "{root}/callbacks"])
def test_wrong_link_is_found(project: Path, target: str) -> None:
    assert broken_links(project) == []
    link = project / "ncmonitor" / "callbacks"
    link.unlink()
    link.symlink_to(target.format(root=project))
    assert broken_links(project) == ["ncmonitor.callbacks"]


def test_every_mapped_package_is_built_from_its_own_folder() -> None:
    assert package_folder(ROOT, "ncmonitor.metrics") == ROOT / "ncmonitor" / "metrics"
    assert package_folder(ROOT, "ncmonitor.callbacks") == ROOT / "callbacks"
    assert package_folder(ROOT, "ncmonitor.recipes") == ROOT / "recipes"


def undeclared_data(root: Path) -> set[Path]:
    """Return the data files that ``[tool.setuptools.package-data]`` leaves out of the wheel."""
    declared = settings(root).get("package-data", {})
    left_out: set[Path] = set()
    for package in settings(root)["packages"]:
        data = {path for path in package_files(root, package) if path.suffix != ".py"}
        folder = package_folder(root, package)
        left_out |= data - {
            p for pattern in declared.get(package, []) for p in folder.glob(pattern)
        }
    return left_out


def test_data_files_are_declared() -> None:
    assert undeclared_data(ROOT) == set()


def test_undeclared_data_file_is_found(project: Path) -> None:
    assert undeclared_data(project) == {project / "ncmonitor" / "py.typed"}


def test_complete_wheel_has_no_problem(project: Path) -> None:
    assert content_problems(wheel_of(project), project) == []


def test_missing_and_foreign_files_in_a_wheel_are_found(project: Path) -> None:
    lost, foreign = "ncmonitor/callbacks/__init__.py", "callbacks/__init__.py"
    wheel = wheel_of(project, without=lost, extra=foreign)
    assert content_problems(wheel, project) == [
        f"missing: {lost}",
        f"should not be there: {foreign}",
    ]


def test_tests_are_no_package() -> None:
    # With one, pytest's other import modes would put the checkout on sys.path before the wheel.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    try:
        installed = importlib.metadata.version("ncmonitor")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ncmonitor is used from its folder, not installed")
    assert installed == ncmonitor.__version__
