"""Secrets are left out of what is written and said: by the name of an option, by URL, by shape.

Every writer goes through here: :func:`redacted` for options and facts, :func:`redacted_words` for a
command, :func:`redacted_text` for a message. A value that was left out for its name is left out of
later texts too, under whatever name: messages repeat what they were given.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import unquote

from ncmonitor.secret_names import Secrecy, secrecy_of

#: Stands where a secret was. Plain text in YAML and JSON; a shell needs quotes around it.
MARK: Final = "<redacted>"

_SHELL_WORD: Final = re.compile(r"\S+")
_PLAIN_WORD: Final = re.compile(
    r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\[[^\]]*\]|\{[^{}]*\}|(?![{\[])[\"']?(?:(?:bearer|basic|token)\s+)?[^\s,;&}\"']+",
    re.I,
)
_REST: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^,}\]\n\"']+")
_OPTION: Final = re.compile(r"--?([A-Za-z][\w.\-/\[\]]*)\+?(?:=(.*))?", re.S)
_SETTING: Final = re.compile(r"([+~]*[A-Za-z_][\w.\-/\[\]]*)=(.*)", re.S)
#: The name of an option, up to its value: in a command, ``name=value``, ``"name": value`` and, in
#: options alone, ``name: value`` at the beginning of an entry.
_IN_COMMAND: Final = re.compile(r"(?<![\w-])--?([A-Za-z][\w.\-]*)\+?(?:=|[ \t]+(?!-))")
_EQUALS: Final = re.compile(r"(?<![\w.\-])([A-Za-z_][\w.\-]*)\s?=(?=[^\s=])")
_QUOTED: Final = re.compile(r"[\"']([A-Za-z_][\w.\-]*)[\"']\s*:\s*")
_ENTRY: Final = re.compile(r"(?:^|[{,\[\n])[ \t]*(?:- )?([A-Za-z_][\w.\-]*)[ \t]*[:=][ \t]+", re.M)

#: ``user:password@`` or ``token@`` of a URL, also where a password has a slash of its own, which a
#: port has not; and without a scheme. ``git@`` is the same for everybody.
_USER_INFO: Final = re.compile(
    r"(?<=://)(?!git@)(?:[^\s/?#\"'<>]*|[^\s/?#:@\"'<>]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]*)@"
)
_BARE_USER_INFO: Final = re.compile(
    r"(?<![\w/@.+-])(?!mailto:)[\w.+-]{2,}:[^\s/:\"'<>]+@(?!sha\d+:|md5:)(?=[A-Za-z0-9\[])"
)
_QUERY: Final = re.compile(r"(?<=[?&;#])([A-Za-z][\w.\-]*)=([^&;#\s\"'<>]+)")
_SIGNS: Final = re.compile(r"sig|signature|key|x-(amz|goog)-(signature|credential)", re.I)
_SHAPES: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:gh[opusr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{12,}"
    r"|hf_(?=[A-Za-z]*\d|[a-z]*[A-Z])[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|sk-(?=[\w-]*\d)[\w-]{16,}|[rs]k_(?:live|test)_\w{12,}|xox[abeoprs]-[\w-]{10,}"
    r"|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dckr_pat_[\w-]{16,}"
    r"|wandb_v\d_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|(?<=hooks\.slack\.com/)[\w/]{10,}|(?<=/api/webhooks/)[\w/-]{10,}"
    r"|(?<=api\.telegram\.org/bot)[\w:-]{10,}",
    re.S,
)
_BEARER: Final = re.compile(r"\b(bearer )([\w.~+/=-]{8,})", re.I)

#: Values that are none: not given, a switch, a reference to a variable.
_NOTHING: Final = re.compile(r"|true|false|null|none|yes|no|~|\[\]|\{\}|\$\{[^}]*\}", re.I)
#: Nor those of a name that has other meanings: a count, or how to pool.
_USUAL: Final = re.compile(r"[-+]?\d{1,4}(\.\d*)?|cls|class|mean|avg|first|last|max|sum|auto|all")
_KNOWN: set[str] = set()


# -- options and facts -----------------------------------------------------------------------------


def redacted(value: Any, name: str = "") -> Any:
    """Return options or facts without the secrets in them; what holds none stays itself.

    Args:
        value: A plain value, a nested one, or anything else, which is left alone unless its name
            is that of a secret.
        name: Of the option, with those that it is in.
    """
    match value:
        case bool() | None:
            return value
        case Mapping() | Namespace():
            return _like(value, _entries(value, name))
        case list() | tuple() | set() | frozenset() if not hasattr(value, "_fields"):
            return type(value)(_items(value, name))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _of_dataclass(value, name)
    secrecy = secrecy_of(name)
    if name.rpartition(".")[2] == "class_path":
        secrecy = Secrecy.NONE
    if secrecy:
        return _hidden(value, secrecy)
    if isinstance(value, str | PurePath):
        text = _without(str(value), name)
        return value if text == str(value) else text
    return value


def holding_mark(options: Any, name: str = "") -> Iterator[str]:
    """Yield the names of options whose values hold the mark of a secret that was left out."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield from holding_mark(value, f"{name}.{key}".lstrip("."))
    elif isinstance(options, list | tuple):
        for i, value in enumerate(options):
            yield from holding_mark(value, f"{name}.{i}")
    elif isinstance(options, str | PurePath) and MARK in str(options):
        yield name


def _entries(value: Any, name: str) -> dict[Any, Any]:
    pairs = vars(value) if isinstance(value, Namespace) else value
    named = pairs.get("name", pairs.get("key"))
    found = {}
    for key, inner in pairs.items():
        below = f"{name}.{key}".lstrip(".")
        if key == "value" and isinstance(named, str) and secrecy_of(named):  # of a list of these
            below = named
        found[_without(key) if isinstance(key, str) else key] = redacted(inner, below)
    return found


def _like(value: Any, entries: dict[Any, Any]) -> Any:
    before = vars(value) if isinstance(value, Namespace) else value
    if len(entries) == len(before) and all(
        key in entries and (entries[key] is old or _equal(entries[key], old))
        for key, old in before.items()
    ):
        return value
    return type(value)(**entries) if isinstance(value, Namespace) else entries


def _equal(left: Any, right: Any) -> bool:
    plain = (str, int, float, list, tuple, dict, set)
    return isinstance(left, plain) and type(left) is type(right) and left == right


def _items(value: Any, name: str) -> Iterator[Any]:
    if value and all(isinstance(item, str) for item in value) and not secrecy_of(name):
        if len(value) == 2 and isinstance(value, Sequence) and _is_pair(*value):
            yield from (value[0], redacted(value[1], value[0]))
        else:
            yield from redacted_words(list(value))
        return
    for item in value:
        yield redacted(item, name)


def _is_pair(name: str, value: str) -> bool:
    """Tell a name and its secret from two names of anything."""
    return bool(secrecy_of(name)) and re.search(r"\d", value) is not None


def _of_dataclass(value: Any, name: str) -> Any:
    fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.init}
    found = {key: redacted(inner, f"{name}.{key}".lstrip(".")) for key, inner in fields.items()}
    changed = {key: inner for key, inner in found.items() if inner is not fields[key]}
    changed = {key: inner for key, inner in changed.items() if not _equal(inner, fields[key])}
    try:
        return dataclasses.replace(value, **changed) if changed else value
    except Exception:  # it takes no such text there
        return MARK


def _hidden(value: Any, secrecy: Secrecy) -> Any:
    """Return the mark in place of a value, unless that is nothing secret; remember it."""
    text = str(value).strip() if isinstance(value, str | int | float | PurePath) else "an object"
    if text == MARK or _NOTHING.fullmatch(text):
        return value
    if secrecy is Secrecy.LIKELY and _USUAL.fullmatch(text):
        return value
    if isinstance(value, str):
        _remember(text, sure=secrecy is Secrecy.SURE)
    return MARK


def _remember(secret: str, *, sure: bool) -> None:
    """Keep a value out of later texts, if it is long enough to be told from other words."""
    mixed = bool(re.search(r"\d", secret) and re.search(r"[A-Za-z]", secret))
    if MARK not in secret and len(secret) >= 6 and (sure or mixed):
        _KNOWN.add(secret)


# -- commands --------------------------------------------------------------------------------------


def redacted_words(words: Sequence[str]) -> list[str]:
    """Return a command without secrets: ``--key value``, ``--key=value``, ``key=value``.

    Args:
        words: As in ``sys.argv``.
    """
    found: list[str] = []
    owner = ""  # option whose values follow
    for word in words:
        if option := _OPTION.fullmatch(word):
            key, value = option.groups()
            owner = key if value is None else ""
            found.append(word if value is None else _with_value(word, key, value))
        elif secrecy_of(owner):
            found.append(str(redacted(word, owner)))
        elif setting := _SETTING.fullmatch(word):
            found.append(_with_value(word, *setting.groups()))
        else:
            found.append(_without(word, owner))
    return found


def _with_value(word: str, key: str, value: str) -> str:
    return word[: len(word) - len(value)] + str(redacted(value, key))


def hidden_options(words: Sequence[str]) -> list[str]:
    """Return the options of a command whose values were left out of it, as they are given.

    Args:
        words: Of the command.
    """
    found, owner = [], ""
    for word in words:
        option = _OPTION.fullmatch(word)
        owner = f"{word.partition('=')[0]}" if option else owner
        if MARK in word and owner:
            found.append(owner)
    return list(dict.fromkeys(found))


# -- texts -----------------------------------------------------------------------------------------


def redacted_text(text: str) -> str:
    """Return a message without secrets: credentials in URLs, tokens of known shapes, known values.

    Args:
        text: For people.
    """
    text = _USER_INFO.sub(_without_user, text)
    text = _BARE_USER_INFO.sub(_without_user, text)
    text = _QUERY.sub(_without_argument, text)
    text = _SHAPES.sub(MARK, text)
    text = _BEARER.sub(rf"\1{MARK}", text)
    text = _by_name(text, _EQUALS, _PLAIN_WORD)
    text = _by_name(text, _QUOTED, _PLAIN_WORD)
    for secret in sorted(_KNOWN, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", MARK, text)
    return text


def _without(text: str, name: str = "") -> str:
    """Return the value of an option that is no secret by name, without those inside."""
    last = re.split(r"[._\-]", name)[-1].lower()
    if last in ("user", "username", "login", "userpwd") and re.fullmatch(r"[^\s:/]+:\S+", text):
        return MARK  # name:password
    if text[:1] in ("{", "["):
        try:
            inside = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            clean = redacted(inside, name)
            return text if clean == inside else json.dumps(clean)
    text = _by_name(_without_options(text), _ENTRY, _REST)
    return redacted_text(text)


def _without_options(text: str) -> str:
    """Return a command in one text without the secrets that its options have."""
    if not _IN_COMMAND.search(text):
        return text
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is never closed
        return _by_name(text, _IN_COMMAND, _SHELL_WORD)
    clean = redacted_words(words) if len(words) > 1 else words
    return text if clean == words else shlex.join(clean)


def reason_of(error: BaseException) -> str:
    """Return what went wrong in a line for people: the kind of error, and its words."""
    return f"{type(error).__name__}: {redacted_text(str(error))}"


def _by_name(text: str, names: re.Pattern[str], values: re.Pattern[str]) -> str:
    parts, end = [], 0
    for name in names.finditer(text):
        secrecy = secrecy_of(name[1])
        if not secrecy or name.end() < end:
            continue
        value = values.match(text, name.end())
        if value is None:
            continue
        quote = value[0][0] if value[0][0] in "\"'" and value[0][0] == value[0][-1] else ""
        inside = value[0].strip().strip(quote or None)
        hidden = _hidden(inside, secrecy)
        if hidden != inside:
            parts += [text[end : name.end()], quote, str(hidden), quote]
            end = value.end()
    return "".join([*parts, text[end:]])


def _without_user(found: re.Match[str]) -> str:
    _, colon, password = found[0][:-1].partition(":")
    if colon:
        _remember(password, sure=True)
        _remember(unquote(password), sure=True)
    return found[0] if found[0] in (f"{MARK}@", "@") else f"{MARK}@"


def _without_argument(found: re.Match[str]) -> str:
    name, value = found.groups()
    secret = _SIGNS.fullmatch(name) is not None or secrecy_of(name)
    return f"{name}={MARK}" if secret and not _NOTHING.fullmatch(value) else found[0]
