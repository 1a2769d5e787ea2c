"""The parser's complaints in one line: which option, what was expected, what came.

jsonargparse reports the whole tree of alternatives it tried. The user's mistake is its deepest
line; the keys and classes above that line say where it is.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from ncmonitor.errors import nearest
from ncmonitor.redact import redacted

_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [256, 128]",
    "list": "a list such as [1, 2]",
    "dict": "names with values, as in {nc1: 0.01}",
    "NoneType": "null",
}


class _Cause(NamedTuple):
    key: str  # dotted path of the option
    owner: str  # import path of the class whose option it is, if any
    text: str  # the deepest line


def explain(message: str, options: Iterable[str]) -> str:
    """Return a parser's error message in one line.

    Args:
        message: What jsonargparse raised.
        options: Every option outside of classes that are chosen by the user, for near misses.
    """
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown_argument(match[1], options)
    if match := re.search(r"does not accept option '(.+)'$", message):
        return _unknown(match[1], options)
    if match := re.match(r"the following arguments are required: (.+)", message):
        missing = match[1].replace("fit.", "").replace(", ", " and ")
        return (
            f"no {missing} given; name a recipe (ncmonitor fit digits) or a config that has it "
            "(ncmonitor fit --config FILE)"
        )
    if 'Parser key "' not in message:
        return " ".join(message.split())
    cause = _cause(message)
    if match := re.match(r"Option '(.+)' is not accepted", cause.text):
        return _unknown(f"{cause.key}.{match[1]}", _parameters(cause))
    if match := re.match(r"Expected a <class '(\w+)'>\. Got value: (.*)", cause.text):
        got = redacted(match[2], cause.key)
        return f"{cause.key}: expected {_WORDS.get(match[1], match[1])}, got {got!r}"
    if match := re.search(r"Expected a dot import path string: (.+)", message):
        got = redacted(match[1], cause.key)
        return (
            f"{cause.key}: there is no class {got!r}; give its import path, as in "
            "package.module.Class"
        )
    if cause.text.startswith("Expected a"):
        return _no_alternative(cause.key, message)
    return f"{cause.key}: {cause.text}"


def _cause(message: str) -> _Cause:
    """Find the deepest line, and the keys and the class on the way down to it."""
    tried = message.partition("Given value")[0]
    lines = [line.replace("- ", "  ", 1) for line in tried.splitlines() if line.strip()]
    depth = [len(line) - len(line.lstrip()) for line in lines]
    at = depth.index(max(depth))
    above, level = [lines[at]], depth[at]
    for line, indent in zip(lines[at::-1], depth[at::-1], strict=True):
        if indent < level:
            above.insert(0, line)
            level = indent
    way = "\n".join(above)
    owners = re.findall(r"given class_path '(.+)'", way)
    keys = re.findall(r'Parser key "(.+)"', way)
    return _Cause(".".join(keys), owners[-1] if owners else "", lines[at].strip())


def _parameters(cause: _Cause) -> list[str]:
    module, _, name = cause.owner.rpartition(".")
    try:
        owner = getattr(importlib.import_module(module), name)
        # What **options stand for are parameters of the class that takes them.
        signatures = [inspect.signature(base.__init__) for base in owner.__mro__]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
    ordinary = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [p for each in signatures for p in each.parameters.values() if p.kind in ordinary]
    return [f"{cause.key}.{p.name}" for p in found if p.name != "self"]


def _unknown(option: str, known: Iterable[str]) -> str:
    hint = nearest(option, known) or "; ncmonitor fit --help lists them"
    return f"unknown option {option}{hint}"


def _unknown_argument(word: str, options: Iterable[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected word {word!r}: a recipe's name comes first, then options as --key value"
    known = [f"--{option}" for option in options]
    word = word.partition("=")[0]
    return _unknown(word, known)


def _no_alternative(key: str, message: str) -> str:
    types = re.search(r"Subtypes: \[(.+)\]", message)
    names = re.findall(r"<class '([\w.]+)'>", types[1]) if types else []
    names[:0] = ["dict"] if types and types[1].startswith("dict[") else []
    wanted = " or ".join(_WORDS.get(name, name.rpartition(".")[2]) for name in names)
    given = re.search(r"Given value: (.*)", message)
    got = f", got {redacted(given[1], key)!r}" if given else ""
    return f"{key}: expected {wanted}{got}"
