"""The bundled recipes, and what each one claims in the comment on top of its YAML.

Torch-free: ``ncmonitor recipes`` answers at once. The comment is the only place of these texts::

    # One sentence.
    #
    # data:    what it trains on, and how much is downloaded
    # model:   the network
    # time:    how long, on what
    # reaches: final metrics, measured, over how many seeds
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ncmonitor._checks import InputError, nearest

CONFIGS: Final = Path(__file__).with_name("configs")
FIELDS: Final = ("data", "model", "time", "reaches")


@dataclass(frozen=True)
class Recipe:
    """A bundled experiment: its YAML file and the claim on top of it."""

    name: str
    path: Path
    title: str
    data: str
    model: str
    time: str
    reaches: str


def recipes() -> dict[str, Recipe]:
    """Return the bundled recipes by name, in alphabetical order."""
    return {path.stem: read_recipe(path) for path in sorted(CONFIGS.glob("*.yaml"))}


def read_recipe(path: Path) -> Recipe:
    """Read the claim of a recipe from the comment its file begins with."""
    claim: dict[str, list[str]] = {"title": []}
    field = "title"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        head, colon, rest = text.partition(":")
        if colon and head in FIELDS:
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
    known = recipes()
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        raise InputError(
            f"{name!r} is no recipe; for a file of your own: ncmonitor fit --config {name}"
        )
    raise InputError(
        f"unknown recipe {name!r}, expected one of: {', '.join(known)}{nearest(name, known)}"
    )
