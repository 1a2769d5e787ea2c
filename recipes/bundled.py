"""The bundled recipes, and what each one claims in the comment on top of its YAML.

Torch-free: ``ncmonitor recipes`` answers at once. The comment is the only place of these texts::

    # One sentence.
    #
    # data:     what it trains on; more about it
    # download: how much
    # model:    the network; others of the experiment as --model.name a|b|c
    # time:     of an epoch (on what); of a run, on which hardware
    # reaches:  final metrics, measured; when, over how many seeds
    # paper:    whose experiment it is and what they found
    # differs:  what is not as they did it

The table of all recipes shows a text up to its first semicolon. The last two are optional.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, Final

import yaml

from ncmonitor.errors import InputError, nearest

CONFIGS: Final = Path(__file__).with_name("configs")
SWEEPS: Final = Path(__file__).with_name("sweeps")
#: Recipes that are more than one fit: the module whose ``main(words)`` runs it, and which begins
#: with the claim as a YAML file does.
STUDIES: Final = {"symmetry_zoo": "ncmonitor.recipes.zoo.symmetry_zoo"}
FIELDS: Final = ("data", "download", "model", "time", "reaches")
NOTES: Final = ("paper", "differs")

_WIDTH: Final = 100
_COLUMNS: Final = {
    "name": ("name", 14),
    "data": ("data", 27),
    "download": ("download", 8),
    "model": ("network", 22),
    "time": ("an epoch takes", 21),
}


@dataclass(frozen=True)
class Recipe:
    """A bundled experiment: its file, YAML or a module of its own, and the claim on top of it."""

    name: str
    path: Path
    title: str
    data: str
    download: str
    model: str
    time: str
    reaches: str
    paper: str = ""
    differs: str = ""

    def short(self, field: str) -> str:
        """Return a text up to its first semicolon, as the table shows it."""
        text: str = getattr(self, field)
        return text.partition(";")[0]

    @property
    def networks(self) -> tuple[str, ...]:
        """The values of ``--model.name`` that the experiment is made of; empty for a single one."""
        found = re.search(r"--model\.name (\w+(?:\|\w+)+)", self.model)
        return tuple(found[1].split("|")) if found else ()

    @property
    def on_cpu(self) -> bool:
        """Whether it is made for a CPU."""
        return bool(self._config["trainer"]["accelerator"] == "cpu")

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """Its ways and the options of each; none if it is a single experiment."""
        return self._config.get("ways") or {}

    @property
    def _config(self) -> dict[str, Any]:
        if self.name in STUDIES:
            return {"trainer": {"accelerator": "cpu"}}
        config: dict[str, Any] = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        return config


def recipes() -> dict[str, Recipe]:
    """Return by name the bundled recipes that are one fit each, in alphabetical order."""
    return {path.stem: read_recipe(path) for path in sorted(CONFIGS.glob("*.yaml"))}


def studies() -> dict[str, Recipe]:
    """Return by name the recipes that are more than one fit, with a command of their own."""
    folder = Path(__file__).parent
    inner = {name: module.removeprefix(f"{__package__}.") for name, module in STUDIES.items()}
    return {
        name: read_recipe(folder.joinpath(*module.split(".")).with_suffix(".py"))
        for name, module in inner.items()
    }


def all_recipes() -> dict[str, Recipe]:
    """Return everything that ``ncmonitor fit NAME`` runs, in alphabetical order."""
    return dict(sorted((recipes() | studies()).items()))


def read_recipe(path: Path) -> Recipe:
    """Read the claim of a recipe from the comment its file begins with."""
    claim: dict[str, list[str]] = {"title": []}
    field = "title"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        head, colon, rest = text.partition(":")
        if colon and head in (*FIELDS, *NOTES):
            field, text = head, rest.strip()
        claim.setdefault(field, []).append(text)
    texts = {name: " ".join(filter(None, lines)) for name, lines in claim.items()}
    missing = [name for name in ("title", *FIELDS) if not texts.get(name)]
    if missing:
        raise ValueError(f"{path.name}: the comment on top lacks {', '.join(missing)}")
    return Recipe(path.stem, path, **texts)


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        InputError: If there is none; near names are offered.
    """
    known = all_recipes()
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        raise InputError(
            f"{name!r} is no recipe; for a file of your own: ncmonitor fit --config {name}"
        )
    raise InputError(
        f"unknown recipe {name!r}, expected one of: {', '.join(known)}{nearest(name, known)}"
    )


# -- on the screen ---------------------------------------------------------------------------------


def table() -> str:
    """Lay all recipes out, 100 columns wide: a line of cells each, and below what it reaches."""
    heads, widths = zip(*_COLUMNS.values(), strict=True)
    lines = [_row(heads, widths), _row(["-" * width for width in widths], widths)]
    known = all_recipes().values()
    groups = {
        "For a CPU": [recipe for recipe in known if recipe.on_cpu],
        "For a GPU": [recipe for recipe in known if not recipe.on_cpu],
    }
    for group, members in groups.items():
        lines += ["", f"{group}:", ""]
        for recipe in members:
            lines += _entry(recipe, widths)
    return "\n".join(lines)


def describe(name: str) -> str:
    """Return the whole claim of a recipe, how to run it, and where its file is.

    Raises:
        InputError: If there is none of this name.
    """
    recipe = find_recipe(name)
    facts = {field: getattr(recipe, field) for field in (*FIELDS, *NOTES)}
    if recipe.ways:
        facts["ways"] = f"{'; '.join(starmap(_way, recipe.ways.items()))}; one alone: --way NAME"
    facts |= {"run it": f"ncmonitor fit {recipe.name}", "its file": str(recipe.path)}
    lines = [*_hanging(f"{recipe.name}: {recipe.title}", ""), ""]
    for head, text in facts.items():
        if text:
            lines += _hanging(text, f"  {head:<10}")
    return "\n".join(lines)


def _way(name: str, options: Mapping[str, Any]) -> str:
    words = [f"--{key} {value}" for key, value in options.items() if key != "expect"]
    return f"{name} ({', '.join(words)})" if words else name


def _entry(recipe: Recipe, widths: tuple[int, ...]) -> Iterator[str]:
    cells = [textwrap.wrap(recipe.short(f), w) for f, w in zip(_COLUMNS, widths, strict=True)]
    for i in range(max(map(len, cells))):
        yield _row([cell[i] if i < len(cell) else "" for cell in cells], widths)
    yield from _hanging(recipe.short("reaches"), " " * (widths[0] + 2))


def _row(cells: list[str] | tuple[str, ...], widths: tuple[int, ...]) -> str:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _hanging(text: str, first: str) -> list[str]:
    """Wrap a text below its first line's start; paths and options stay whole."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
