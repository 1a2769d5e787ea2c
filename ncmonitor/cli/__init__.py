"""The command line: reads the first word and hands over to the module that does the work.

Nothing heavy is imported here, so that ``--help``, ``--version``, ``recipes`` and ``metrics``
answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ncmonitor import __version__
from ncmonitor.errors import InputError, nearest

_RECIPES: Final = "ncmonitor.recipes.bundled"
_FIT: Final = "ncmonitor.recipes.fit.command"
_WANDB: Final = "ncmonitor.cli.wandb_commands"
_FIT_USAGE: Final = """\
usage: ncmonitor fit NAME [--any.option VALUE ...]
       ncmonitor fit --config FILE [--any.option VALUE ...]

  --trainer.max_epochs 50    options of the Lightning Trainer
  --model.lr 0.1             of the model; --data.batch_size 64 of the data
  --nc.schedule log          of the NeuralCollapse callback
  --seed_everything 1        the seed
  --seeds 3                  three runs, one after another, and a page that compares them
  --way plain                of a recipe with ways the one of this name, not all to compare them
  --resume                   continue the latest run that was interrupted

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
        prog="ncmonitor recipes", description="List the bundled recipes, or tell all about one."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe")
    name = parser.parse_args(words).name
    bundled = importlib.import_module(_RECIPES)
    if name is not None:
        print(bundled.describe(name))
        return 0
    print(bundled.table())
    print("\nTimes are of one core of an AMD EPYC: benchmarks/RESULTS.md, recipes/RESULTS.md.")
    print("All about one: ncmonitor recipes NAME")
    print("Run it:        ncmonitor fit NAME [--any.option VALUE ...]")
    return 0


def _metrics(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor metrics",
        description="List every quantity, or explain one, or the members of a group.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a quantity or a group")
    name = parser.parse_args(words).name
    catalogue = importlib.import_module("ncmonitor.catalogue.text")
    print(catalogue.overview() if name is None else catalogue.explain(name))
    return 0


def _fit(words: Sequence[str]) -> int:
    if not words:
        print(_FIT_USAGE, file=sys.stderr)
        print("recipes:", file=sys.stderr)
        for recipe in importlib.import_module(_RECIPES).all_recipes().values():
            print(f"  {recipe.name:<13}  {recipe.title}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(_FIT).main(words)
    return status


def _report(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ncmonitor report",
        description="Write report.html from what a run left on disk: finished, running or killed. "
        "Several runs are set side by side on one page, with their numbers as CSV next to it; "
        "runs that differ by the seed alone as mean and sd.",
    )
    parser.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="+",
        type=Path,
        help="folder with history.csv, or a folder that holds such folders",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="where a comparison goes (default: ./comparison.html; of one folder that holds runs: "
        "report.html in it)",
    )
    parser.add_argument(
        "--format",
        choices=("html", "png", "pdf", "csv"),
        default="html",
        help="html: a page (default); png, pdf: its figures for a paper, one file each, into "
        "RUN_DIR/paper/ (of a comparison: paper/ below --out); csv: its numbers as a tidy table",
    )
    chosen = parser.parse_args(words)
    report = importlib.import_module("ncmonitor.reports.comparison").report
    try:
        files = report(chosen.run_dirs, chosen.out, chosen.format)
    except OSError as error:  # a folder that cannot be written, a file in the way
        raise InputError(f"the report cannot be written: {error}") from error
    for file in files:
        print(f"{file}   (open it in any browser)" if chosen.format == "html" else file)
    return 0


def _watch(words: Sequence[str]) -> int:
    status: int = importlib.import_module("ncmonitor.watch").main(words)
    return status


def _sync(words: Sequence[str]) -> int:
    status: int = importlib.import_module(_WANDB).sync(words)
    return status


def _dashboard(words: Sequence[str]) -> int:
    status: int = importlib.import_module(_WANDB).dashboard(words)
    return status


_COMMANDS: Final = {
    "recipes": _Command("[NAME]", "list the bundled experiments, or tell all about one", _recipes),
    "fit": _Command("NAME [--any.option VALUE]", "train one, measured every epoch", _fit),
    "metrics": _Command("[NAME]", "list the quantities, or explain one", _metrics),
    "report": _Command("RUN_DIR [RUN_DIR ...]", "write report.html, or compare runs", _report),
    "watch": _Command("[RUN_DIR]", "follow a run as live charts in the terminal", _watch),
    "sync": _Command("RUN_DIR", "replay a run into W&B, or add what is new", _sync),
    "dashboard": _Command(
        "push|export", "build the W&B workspace, or write it as JSON", _dashboard
    ),
}
