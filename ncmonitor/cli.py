"""The command line: reads the first word and hands over to the module that does the work.

Nothing heavy is imported here, so that ``--help``, ``--version``, ``recipes`` and ``metrics``
answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ncmonitor import __version__
from ncmonitor._checks import InputError, nearest

_RECIPES: Final = "ncmonitor.recipes.bundled"
_FIT: Final = "ncmonitor.recipes.fit"
_FIT_USAGE: Final = """\
usage: ncmonitor fit NAME [--any.option VALUE ...]
       ncmonitor fit --config FILE [--any.option VALUE ...]

  --trainer.max_epochs 50    options of the Lightning Trainer
  --model.lr 0.1             of the model; --data.batch_size 64 of the data
  --nc.schedule log          of the NeuralCollapse callback
  --seed_everything 1        the seed

ncmonitor fit --help lists every option.
"""


class _Command(NamedTuple):
    arguments: str
    summary: str
    run: Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Words after the program's name; ``None`` takes them from ``sys.argv``.

    Returns:
        0, or 2 when what was asked for cannot be done; the reason is printed on stderr.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0].startswith("-"):
            return _top_level(words)
        if words[0] not in _COMMANDS:
            raise InputError(
                f"unknown command {words[0]!r}, expected one of: {', '.join(_COMMANDS)}"
                f"{nearest(words[0], _COMMANDS)}"
            )
        status = _COMMANDS[words[0]].run(words[1:])
        sys.stdout.flush()  # a closed pipe should be noticed here, not at exit
        return status
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        sys.stdout.flush()  # what was printed before comes before
        print(f"ncmonitor: error: {error}", file=sys.stderr)
        return 2


def _top_level(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor",
        usage="ncmonitor [--help] [--version] COMMAND ...",
        description="Watch neural collapse: train, measure NC1-NC4 every epoch, report.",
        epilog="commands:\n"
        + "\n".join(
            f"  {f'{name} {command.arguments}'.strip():<40} {command.summary}"
            for name, command in _COMMANDS.items()
        )
        + "\n\nStart with: ncmonitor fit digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ncmonitor {__version__}")
    parser.parse_args(words)
    parser.print_help(sys.stderr)
    return 2


def _recipes(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor recipes", description="List the bundled recipes."
    )
    parser.parse_args(words)
    print(_recipe_table())
    print("\nRun one: ncmonitor fit NAME [--any.option VALUE ...]")
    return 0


def _recipe_table() -> str:
    """Lay the recipes out as a table of wrapped cells, 100 columns wide."""
    recipes = importlib.import_module(_RECIPES).recipes()
    longest = max(map(len, recipes))
    widths = {"name": longest, "data": 24, "model": 18, "time": 14, "reaches": 36 - longest}
    lines = ["  ".join(f"{head:<{width}}" for head, width in widths.items())]
    lines.append("  ".join("-" * width for width in widths.values()))
    for recipe in recipes.values():
        cells = [textwrap.wrap(getattr(recipe, head), width) for head, width in widths.items()]
        for i in range(max(map(len, cells))):
            row = [cell[i] if i < len(cell) else "" for cell in cells]
            lines.append("  ".join(map(str.ljust, row, widths.values())))
        lines.append("")
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _metrics(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor metrics",
        description="List every quantity, or explain one, or the members of a group.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a quantity or a group")
    name = parser.parse_args(words).name
    catalogue = importlib.import_module("ncmonitor._catalogue_text")
    print(catalogue.overview() if name is None else catalogue.explain(name))
    return 0


def _fit(words: Sequence[str]) -> int:
    if not words:
        print(_FIT_USAGE, file=sys.stderr)
        print("recipes:", file=sys.stderr)
        for recipe in importlib.import_module(_RECIPES).recipes().values():
            print(f"  {recipe.name:<10} {recipe.title}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(_FIT).main(words)
    return status


def _report(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor report",
        description="Write report.html and figures/ from what a run left on disk: "
        "finished, running or killed.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder with history.csv")
    folder = parser.parse_args(words).run_dir
    try:
        report = importlib.import_module("ncmonitor.html").write_report(folder)
    except OSError as error:  # a folder that cannot be written, a file in the way
        raise InputError(f"the report cannot be written: {error}") from error
    print(f"{report}   (open it in any browser)")
    return 0


_COMMANDS: Final = {
    "recipes": _Command("", "list the bundled experiments", _recipes),
    "fit": _Command("NAME [--any.option VALUE]", "train one, measured every epoch", _fit),
    "metrics": _Command("[NAME]", "list the quantities, or explain one", _metrics),
    "report": _Command("RUN_DIR", "write report.html for a run", _report),
}
