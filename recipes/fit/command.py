"""``ncmonitor fit``: find the recipe or config, keep the output readable, train."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from pytorch_lightning.utilities.rank_zero import rank_zero_module  # type: ignore[attr-defined]
from wandb.errors import UsageError

from ncmonitor.errors import InputError
from ncmonitor.recipes.bundled import STUDIES, find_recipe, recipes
from ncmonitor.recipes.fit.lightning_cli import FitCLI
from ncmonitor.recipes.fit.new_run_folder import is_first_process
from ncmonitor.recipes.fit.series import fit_series
from ncmonitor.recipes.fit.variants import config_files, words_of_ways
from ncmonitor.redact import MARK, redacted, redacted_text, redacted_words

#: Said of every small run, with nothing for its user to do about it.
_NOISE: Final = (
    r".*does not have many workers",  # the data is in memory
    r".*is smaller than the logging interval",  # losses are logged per epoch
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning 2.6 under newer torch
)
#: Environment variable by which a process tells those that it starts the secrets of its command.
_WORDS: Final = "_NCMONITOR_WORDS"


def main(args: Sequence[str]) -> int:
    """Run ``ncmonitor fit``.

    Args:
        args: The words after ``fit``: a recipe or ``--config FILE``, then any option;
            ``--seeds N``, ``--way NAME`` and ``--resume`` among them.

    Returns:
        0, or 1 if one of several runs failed.

    Raises:
        InputError: If words, config, model or data cannot work; raised before training starts.
    """
    if args and args[0] in STUDIES:
        study: Callable[[Sequence[str]], int] = importlib.import_module(STUDIES[args[0]]).main
        return study(args[1:])
    args = _handed_on(args)
    given, own = _taken(args)
    words, name = _resolve(given)
    ways = words_of_ways(words, own.way)
    os.environ.setdefault("WANDB_QUIET", "true")  # no charts of 60 metrics in the terminal
    rank_zero_module.log.addFilter(_is_news)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # for models of the user's own; last, so it hides nothing
    with warnings.catch_warnings(), _secrets_hidden(args, words):
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            if own.seeds is not None or len(ways) > 1:
                return fit_series(name, ways, given, own.seeds, resume=own.resume)
            FitCLI(name, *ways.values(), resume=own.resume)
        except (MisconfigurationException, UsageError) as error:  # the user's mistakes, by name
            raise InputError(" ".join(str(error).split())) from error
    return 0


def _handed_on(args: Sequence[str]) -> Sequence[str]:
    """Return the command with its secrets: of the trainer's other ranks, which do not get them."""
    if any(MARK in word for word in args) and not is_first_process() and _WORDS in os.environ:
        words: list[str] = json.loads(os.environ[_WORDS])
        return words
    return args


@contextlib.contextmanager
def _secrets_hidden(args: Sequence[str], words: Sequence[str]) -> Iterator[None]:
    """Keep secrets out of what others write inside: W&B records ``sys.argv``, and what is printed.

    Args:
        args: The command.
        words: The same, with every recipe as a file.
    """
    for _, file in config_files(words):  # so that they are known when a message repeats them
        with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            redacted(yaml.safe_load(file.read_text(encoding="utf-8")))
    argv, show, told = sys.argv, warnings.showwarning, os.environ.get(_WORDS)

    def show_without(message: Any, *others: Any, **named: Any) -> None:
        text = redacted_text(str(message))
        show(message if text == str(message) else UserWarning(text), *others, **named)

    if redacted_words(args) != list(args):
        os.environ[_WORDS] = json.dumps(list(args))
    sys.argv, warnings.showwarning = [*argv[:1], *redacted_words(argv[1:])], show_without
    try:
        yield
    except BaseException as error:
        _hide_in(error)
        raise
    finally:
        sys.argv, warnings.showwarning = argv, show
        os.environ.pop(_WORDS, None)
        if told is not None:
            os.environ[_WORDS] = told


def _hide_in(error: BaseException) -> None:
    """Keep secrets out of the words of an error, and of those that it comes from."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = tuple(redacted_text(x) if isinstance(x, str) else x for x in each.args)
        rest += [each.__cause__, each.__context__]


class _Own(NamedTuple):
    """What is no option of a run, but of the command."""

    seeds: int | None = None
    way: str | None = None
    resume: bool = False


def _taken(args: Sequence[str]) -> tuple[list[str], _Own]:
    """Take ``--seeds N``, ``--way NAME`` and ``--resume`` out of the words."""
    words: list[str] = []
    own = _Own()
    rest = iter(args)
    for word in rest:
        key, equals, value = word.partition("=")
        if key == "--seeds":
            own = own._replace(seeds=_number_of_seeds(value if equals else next(rest, "")))
        elif key == "--way":
            own = own._replace(way=value if equals else next(rest, ""))
        elif key == "--resume":
            if equals:
                raise InputError(f"--resume takes no value, but got {value!r}")
            own = own._replace(resume=True)
        else:
            words.append(word)
    return words, own


def _number_of_seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--seeds takes a number of runs, 1 or more (--seeds 3), but got {text!r}")
    return int(text)


def _resolve(args: Sequence[str]) -> tuple[list[str], str]:
    """Replace a recipe's name by its file; return the words and a name for the run folder."""
    words, name = list(args), "fit"
    if words and not words[0].startswith("-"):
        recipe = find_recipe(words[0])
        return ["--config", str(recipe.path), *words[1:]], recipe.name
    for _, file in config_files(words):
        if not file.is_file():
            hint = f"; the recipe: ncmonitor fit {file}" if str(file) in recipes() else ""
            what = f"{str(file)!r} is a folder" if file.is_dir() else f"there is no {str(file)!r}"
            raise InputError(f"--config needs a YAML file, but {what}{hint}")
        name = file.stem
    return words, name


def _is_news(record: logging.LogRecord) -> bool:
    """Tell what Lightning says about this run from its advice to use other products."""
    return not record.getMessage().startswith("💡")
