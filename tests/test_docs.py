"""The docs are true: their code runs, their commands exist, the site builds without a warning."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blocks import blocks, commands, run, world
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.cli import main
from ncmonitor.symmetry import DIGITS, rotations90

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if blocks(page, "python")]


def site_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_run(names: dict[str, Any]) -> None:
    names["run_dir"] = Path("run")
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    names["Trainer"](callbacks=[monitor]).fit(names["model"], names["datamodule"])


def a_checkpoint(names: dict[str, Any]) -> None:
    logger = names["WandbLogger"](project="nc", offline=True)
    trainer = names["Trainer"](logger=logger, callbacks=[NeuralCollapse(verbose=False)])
    trainer.fit(names["model"])
    trainer.save_checkpoint("last.ckpt")
    logger.experiment.finish()


#: What a page's code needs to have happened before.
BEFORE: dict[str, Callable[[dict[str, Any]], None]] = {
    "terminal": a_run,
    "dashboards": a_checkpoint,
}


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:no validation data")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_python_block_runs_and_prints_what_it_says(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = world(monkeypatch)
    BEFORE.get(page.stem, lambda names: None)(names)
    run(page, names, capsys)


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


COMMANDS = sorted({tuple(words) for page in PAGES for words in commands(page) if words})


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] != "fit"], ids=" ".join)
def test_every_command_and_its_options_exist(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0].startswith("-"):
        return  # `ncmonitor --help` is the parser's own
    depth = 2 if words[0] == "dashboard" and len(words) > 1 and words[1] != "push" else 1
    told = help_of(list(words[:depth]), capsys)
    if words[0] == "dashboard":
        told += help_of(["dashboard", "push"], capsys) + help_of(["dashboard", "export"], capsys)
    for option in (word for word in words if word.startswith("--")):
        assert option in told, f"ncmonitor {words[0]} has no {option}"
    if words[0] in ("metrics", "recipes") and len(words) > 1 and words[1].islower():
        assert main(list(words)) == 0


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] == "fit"], ids=" ".join)
def test_every_fit_parses(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if len(words) == 1 or words[1].isupper() or "--help" in words:
        assert "--trainer.max_epochs" in help_of(["fit"], capsys)
        return
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "recipes" / "configs" / "digits.yaml", "my.yaml")
    given = [word for word in words if word not in ("--resume", "--print_config")]
    if "--seeds" in given:
        place = given.index("--seeds")
        del given[place : place + 2]
    if given[-1].startswith("--") and "=" not in given[-1]:
        given.append("0.0005")  # a page's table has the values
    with pytest.raises(SystemExit) as done:
        main([*given, "--print_config"])
    assert done.value.code == 0, capsys.readouterr().err


def test_the_catalogue_page_has_every_quantity_and_all_its_texts() -> None:
    module = site_pages()
    page = module.catalogue()
    assert re.findall(r"^### (\w+)$", page, re.M) == list(CATALOGUE)
    assert set(module.FAMILIES) == {quantity.group for quantity in CATALOGUE.values()}
    plain = page.replace("\\|", "|").replace("\\*", "*").replace("&lt;", "<")
    for quantity in CATALOGUE.values():
        for text in (quantity.meaning, quantity.definition, quantity.null, quantity.undefined):
            assert text in plain


def test_classes_to_leave_out_are_all_that_rotations_make_alike() -> None:
    page = (DOCS / "symmetry.md").read_text()
    [shown] = [ast.literal_eval(text) for text in re.findall(r"exclude=(\{.*?\})", page)]
    group = rotations90().excluding(DIGITS)
    assert {name: frozenset(classes) for name, classes in shown.items()} == dict(group.excluded)
    for row in ("(acc + (m − 1)/K)/m", "acc · K^−(m−1)"):
        assert f" {row} |" in page
        assert row.replace(" ", "") in {
            q.null.split(" for ")[0].replace(" ", "") for q in CATALOGUE.values()
        }


def test_links_to_files_of_the_repository_lead_to_their_pages() -> None:
    turned = site_pages().on_site
    link = "[a](../benchmarks/RESULTS.md#time) [b](attach.md) [c](https://x.org/a.md)"
    expected = "[a](repository/benchmarks.md#time) [b](attach.md) [c](https://x.org/a.md)"
    assert turned("cost", link) == expected
    assert turned("api/index", "[a](../../CHANGELOG.md)") == "[a](../repository/changelog.md)"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
    words = ["-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees"), "-b", "html"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {page.stem for page in PAGES} <= {page.stem for page in pages}
    loaded = r"<(?:script|img|iframe)[^>]* src=\"(?:https?:)?//|<link[^>]* href=\"(?:https?:)?//"
    assert [page.name for page in pages if re.search(loaded, page.read_text("utf-8"))] == []
