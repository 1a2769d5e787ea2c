# Small networks of many kinds, held against what theory says of their symmetries.
#
# data:     digits, graphs, clouds; scikit-learn's digits as images, sequences, patches and sets of
#           pixels; graphs and clouds of points are made
# download: none
# model:    17 small networks; of them --models mlp cnn_gap trains these two alone; some need
#           torch_geometric (the extra symmetry)
# time:     2 min for all of them; of CPU time, on one core of an AMD EPYC, start-up included
# reaches:  0 wherever theory says exactly 0, and nowhere else; for seeds 0, 1 and 2, before and
#           after training: at most 5e-29, and the least of the other errors is 1e-3
"""The command ``ncmonitor fit symmetry_zoo``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from ncmonitor.errors import InputError, MeasurementError, nearest
from ncmonitor.monitor.provenance import RUN_FILE, describe_environment, write_run
from ncmonitor.monitor.words import duration, shown
from ncmonitor.recipes.fit.run_folder import RunPlace, new_run_folder
from ncmonitor.recipes.zoo import geometric
from ncmonitor.recipes.zoo import zoo_table as table
from ncmonitor.recipes.zoo.zoo_entries import Entry, chosen, entries
from ncmonitor.recipes.zoo.zoo_measurement import Result, one_thread, run, verdicts

NAME: Final = Path(__file__).stem


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "--seed": {"type": _whole, "default": 0, "help": "of weights and batches (default 0)"},
    "--models": {
        **{"nargs": "+", "default": [], "metavar": "NAME"},
        "help": "these networks alone",
    },
    "--epochs": {"type": _whole, "help": "of training, of each (default: as many as it needs)"},
    "--out": {
        **{"type": Path, "metavar": "FOLDER"},
        "help": f"where it goes (default: runs/{NAME}/<time>-seed<k>)",
    },
}


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print and exit with."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(words: Sequence[str]) -> int:
    """Run ``ncmonitor fit symmetry_zoo``.

    Args:
        words: Options.

    Returns:
        0; 1 if the user stopped.

    Raises:
        InputError: If an option cannot work; raised before training starts.
    """
    options = _options(words)
    wanted, missing = chosen(options.models)
    home = _home(options.out, options.seed)
    start = time.perf_counter()
    results: list[Result] = []
    try:
        stopped = _train_all(wanted, options, results)
    except BaseException:
        home.forget()
        raise
    if not results:
        home.forget()
        print(f"nothing measured: {stopped}", file=sys.stderr)
        return 1
    facts = _facts(options, results, missing, time.perf_counter() - start)
    if stopped:
        facts.append(f"{len(wanted)} networks were asked for: {stopped}.")
    print("\n".join(["", *_kept(home.folder, results, options, facts)]), flush=True)
    return 1 if stopped else 0


def _train_all(wanted: Sequence[Entry], options: argparse.Namespace, results: list[Result]) -> str:
    """Train one network after another and show each; return why it ended early, if it did."""
    print(table.heading(), flush=True)
    try:
        with one_thread():
            for entry in wanted:
                results += run(entry, options.seed, options.epochs)
                # Of all so far: what a network is compared with comes before it.
                told = verdicts(results)
                own = [i for i, result in enumerate(results) if result.entry is entry]
                block = table.block([results[i] for i in own], [told[i] for i in own])
                print(f"\n{block}", flush=True)
    except (KeyboardInterrupt, MeasurementError) as error:  # what was measured is kept
        return str(error) or "stopped"
    return ""


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=f"ncmonitor fit {NAME}",
        description="Train small networks from nothing and hold the errors of their symmetries "
        "against theory, before and after.",
        epilog=f"networks: {', '.join(entries())}",
        allow_abbrev=False,
    )
    for name, settings in _OPTIONS.items():
        parser.add_argument(name, **settings)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        word = unknown[0].partition("=")[0]
        hint = nearest(word, _OPTIONS) or f"; expected {', '.join(_OPTIONS)}"
        raise InputError(f"{NAME} has no option {word}{hint}")
    options.models = [name for word in options.models for name in word.split(",") if name]
    return options


def _home(out: Path | None, seed: int) -> RunPlace:
    if out is None:
        try:
            return RunPlace(new_run_folder(NAME, f"seed{seed}"), made=True)
        except InputError as error:  # which speaks of the other recipes' option
            raise InputError(str(error).replace("--trainer.default_root_dir", "--out")) from error
    try:
        if (out / table.CSV_FILE).exists():
            raise InputError(f"{out} already holds a zoo; name another folder with --out")
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; name another one with --out"
        ) from error
    return RunPlace(out, made=made)


def _facts(
    options: argparse.Namespace, results: Sequence[Result], missing: Sequence[str], seconds: float
) -> list[str]:
    count = len({result.entry.name for result in results})
    facts = [f"{count} networks, seed {options.seed}, {duration(seconds)}."]
    if missing:
        facts.append(f"Left out: {', '.join(missing)}; they need {geometric.INSTALL}")
    return facts


def _kept(
    folder: Path, results: list[Result], options: argparse.Namespace, facts: list[str]
) -> list[str]:
    """Write the files; return the last lines of the command."""
    from ncmonitor.recipes.zoo.figure import draw

    told = verdicts(results)
    frame = table.frame(results, told, options.seed)
    frame.to_csv(folder / table.CSV_FILE, index=False, float_format="%.6g")
    draw(results).savefig(folder / table.PICTURE_FILE, dpi=150)
    environment: dict[str, Any] = describe_environment()
    again = f"Again: `{environment['command']}`"
    page = table.page(results, told, [*facts, again])
    (folder / table.PAGE_FILE).write_text(page, encoding="utf-8")
    chosen_options = {"seed": options.seed, "models": options.models, "epochs": options.epochs}
    write_run(folder, environment | {"recipe": NAME, "options": chosen_options})
    files = (table.CSV_FILE, table.PAGE_FILE, RUN_FILE)
    return [
        *table.closing(results, told),
        *facts,
        "",
        f"  picture     {shown(folder / table.PICTURE_FILE)}",
        f"  files       {', '.join(files)} in {shlex.quote(shown(folder))}",
    ]
