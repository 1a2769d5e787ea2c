"""The recipes' claims are read from their files, and their files are accepted by the parser."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ncmonitor import InputError
from ncmonitor.recipes.bundled import CONFIGS, FIELDS, find_recipe, read_recipe, recipes
from ncmonitor.recipes.fit import main


def test_every_config_is_a_recipe_with_a_complete_claim() -> None:
    assert set(recipes()) == {path.stem for path in CONFIGS.iterdir()} >= {"digits"}
    for recipe in recipes().values():
        for field in ("title", *FIELDS):
            text = getattr(recipe, field)
            assert text == " ".join(text.split()) != ""
            assert "#" not in text
            assert "TODO" not in text


def test_a_claim_may_run_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("# Title.\n#\n# data: a\n#   b: c\n# model: m\n# time: t\n# reaches: r\nx: 1\n")
    recipe = read_recipe(path)
    assert (recipe.title, recipe.data, recipe.reaches) == ("Title.", "a b: c", "r")


def test_a_claim_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("# Title.\n# data: a\n# model: m\n")
    with pytest.raises(ValueError, match=r"own\.yaml: the comment on top lacks time, reaches"):
        read_recipe(path)


def test_near_names_are_offered() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'digit'.*; did you mean 'digits'"):
        find_recipe("digit")


def test_a_file_is_not_taken_for_a_recipe() -> None:
    with pytest.raises(InputError, match=r"ncmonitor fit --config my\.yaml"):
        find_recipe("my.yaml")


@pytest.mark.parametrize("name", list(recipes()))
def test_every_config_is_accepted_by_the_real_parser(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--print_config"])
    assert stop.value.code == 0
    model = yaml.safe_load(recipes()[name].path.read_text())["model"]["class_path"]
    assert f"class_path: {model}" in capsys.readouterr().out
