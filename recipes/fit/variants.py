"""``ways`` of a config: variants of one experiment, each with the options that make it another.

They stand beside the other options, and ``--way NAME`` takes one of them::

    ways:
      plain: {}
      augmented: {data.augment: rotations90}
      equivariant: {model.name: p4net}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ncmonitor.errors import InputError, nearest

Ways = dict[str, dict[str, Any]]


def read_ways(path: Path) -> Ways:
    """Return the ways of a config and their options, none if it has none.

    Raises:
        InputError: If they are not names with options.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the parser says more about what is wrong
    ways = config.get("ways") if isinstance(config, Mapping) else None
    if ways is None:
        return {}
    if not isinstance(ways, Mapping) or not ways:
        raise InputError(
            f"{path}: ways must be names with options, as in plain: {{}}, but is {ways!r}"
        )
    for name, options in ways.items():
        _check_way(path, name, options)
    return {name: dict(options or {}) for name, options in ways.items()}


def _check_way(path: Path, name: object, options: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"{path}: the name of a way goes into those of folders, so it must consist of small "
            f"letters, digits and _, but is {name!r}"
        )
    if options is not None and not isinstance(options, Mapping):
        raise InputError(
            f"{path}: way {name!r} must hold options with values, as in {{model.lr: 0.1}}, but is "
            f"{options!r}"
        )


def config_files(words: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """Yield the files that ``--config`` names, each with the position of the word after it."""
    for i, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key in ("-c", "--config") and equals:
            yield i + 1, Path(value)
        elif key in ("-c", "--config") and words[i + 1 :]:
            yield i + 2, Path(words[i + 1])


def words_of_ways(words: Sequence[str], way: str | None) -> dict[str | None, list[str]]:
    """Return the words of each way to be trained; under ``None`` those given if there are no ways.

    Args:
        words: Options, with every recipe as a file.
        way: The only one wanted; ``None``: all of them.

    Raises:
        InputError: If there is none of this name; near names are offered.
    """
    found = [(end, ways) for end, file in config_files(words) if (ways := read_ways(file))]
    if not found:
        if way is not None:
            raise InputError(f"--way {way}: what is to be trained has no ways to choose from")
        return {None: list(words)}
    end, ways = found[-1]
    if way is not None and way not in ways:
        raise InputError(f"there is no way {way!r}, only {', '.join(ways)}{nearest(way, ways)}")
    # After the config, which they override, and before the user's options, which override them.
    return {
        name: [*words[:end], "--way", name, *_words(options), *words[end:]]
        for name, options in ways.items()
        if way in (None, name)
    }


def _words(options: Mapping[str, Any]) -> list[str]:
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in options.items()
    ]
