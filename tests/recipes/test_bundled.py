"""The recipes' claims are read from their files, and their files are accepted by the parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ncmonitor import InputError
from ncmonitor.recipes.bundled import (
    CONFIGS,
    FIELDS,
    NOTES,
    all_recipes,
    describe,
    find_recipe,
    read_recipe,
    recipes,
    table,
)
from ncmonitor.recipes.fit.command import main

CLAIM = """\
# Title.
#
# data: a; more
#   b: c
# download: none
# model: m; --model.name x1|y2
# time: t
# reaches: r
x: 1
"""


def test_every_config_is_a_recipe_with_a_complete_claim() -> None:
    assert set(recipes()) == {path.stem for path in CONFIGS.iterdir()} >= {"digits"}
    for recipe in all_recipes().values():
        for field in ("title", *FIELDS, *NOTES):
            text = getattr(recipe, field)
            assert text == " ".join(text.split())
            assert text or field in NOTES
            assert "#" not in text
            assert "TODO" not in text


def test_a_claim_may_run_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(CLAIM)
    recipe = read_recipe(path)
    assert (recipe.title, recipe.data, recipe.reaches) == ("Title.", "a; more b: c", "r")


def test_the_short_form_of_a_text_ends_at_its_first_semicolon(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(CLAIM)
    recipe = read_recipe(path)
    assert (recipe.short("data"), recipe.short("time")) == ("a", "t")


def test_networks_are_the_alternatives_that_the_model_text_names(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(CLAIM)
    assert read_recipe(path).networks == ("x1", "y2")
    path.write_text(CLAIM.replace(" x1|y2", ""))
    assert read_recipe(path).networks == ()


def test_a_claim_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("# Title.\n# data: a\n# model: m\n")
    with pytest.raises(
        ValueError, match=r"own\.yaml: the comment on top lacks download, time, reaches"
    ):
        read_recipe(path)


def test_the_table_has_a_group_for_each_machine_and_an_entry_for_each_recipe() -> None:
    lines = table().splitlines()
    assert max(map(len, lines)) <= 100
    cpu, gpu = lines.index("For a CPU:"), lines.index("For a GPU:")
    starts = {line.split()[0]: i for i, line in enumerate(lines[cpu:], cpu) if line[:1].islower()}
    assert set(starts) == set(all_recipes())
    for name, recipe in all_recipes().items():
        assert recipe.on_cpu == (starts[name] < gpu)
        cells = re.split(r" {2,}", lines[starts[name]])
        assert cells == [name, *(recipe.short(f) for f in FIELDS if f != "reaches")]
        below = " ".join(" ".join(lines[starts[name] + 1 :]).split())
        assert below.startswith(recipe.short("reaches"))


def test_the_description_of_a_recipe_is_its_whole_claim_and_how_to_run_it() -> None:
    for name, recipe in all_recipes().items():
        text = describe(name)
        assert max(map(len, text.splitlines())) <= max(100, len(str(recipe.path)) + 12)
        flat = " ".join(text.split())
        assert flat.startswith(f"{name}: {recipe.title} data {recipe.data} download ")
        assert all(getattr(recipe, field) in flat for field in (*FIELDS, *NOTES))
        assert flat.endswith(f"run it ncmonitor fit {name} its file {recipe.path}")
        assert (" one alone: --way NAME run it" in flat) == bool(recipe.ways)


def test_the_description_of_a_recipe_with_ways_names_them_and_their_options() -> None:
    recipe = find_recipe("digits_rot90")
    assert list(recipe.ways) == ["plain", "augmented", "equivariant"]
    flat = " ".join(describe("digits_rot90").split())
    said = "plain; augmented (--data.augment rotations90); equivariant (--model.name p4net)"
    assert f" ways {said}; one alone: --way NAME run it " in flat


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
