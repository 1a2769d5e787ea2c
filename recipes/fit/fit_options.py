"""Options of ``ncmonitor fit``: refuse what cannot work, and put files into the run's folder."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

from ncmonitor.catalogue import hint_of, quantity_of
from ncmonitor.errors import InputError, nearest
from ncmonitor.monitor.history import HISTORY_FILE, LAYER_MARK, NULL_SPLIT, ONLINE_SPLIT

#: As the parser reads it: numbers where there are any; what else there is, ours refuses in words.
Expectation = dict[str, int | float | list[int | float | None] | Any] | None
_SPLITS: Final = ("train", "val", "test", NULL_SPLIT, ONLINE_SPLIT)


def check_config(config: Any, *, resume: bool = False) -> None:
    """Refuse what would fail, or overwrite another run, only later.

    Args:
        config: The parsed options.
        resume: Whether a run is to be continued.

    Raises:
        InputError: Naming the option.
    """
    for option in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(config.trainer, option) == 0:
            raise InputError(f"trainer.{option} is 0, so there is nothing to train or measure")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads must be at least 1, but is {config.threads}")
    ckpt = config.ckpt_path
    if ckpt is not None and resume:
        raise InputError(
            "--resume finds the checkpoint itself, and --ckpt_path names one: leave one out"
        )
    if ckpt is not None and Path(ckpt).suffix == ".ckpt" and not Path(ckpt).is_file():
        raise InputError(f"there is no checkpoint {str(ckpt)!r} to continue from")
    own = {"NeuralCollapse": "nc", "CollapseFigures": "figures"}
    for name in map(_name_of, classes_of(config.trainer.callbacks)):
        if name in own:
            raise InputError(
                f"ncmonitor fit attaches {name} by itself; move its options from "
                f"trainer.callbacks to {own[name]}"
            )
    check_expectation(config.expect)


def check_free(folder: Path) -> None:
    """Refuse to begin a run in a folder that holds one.

    Raises:
        InputError: If it does.
    """
    if (folder / HISTORY_FILE).exists():
        raise InputError(
            f"{folder} already holds a run; name another folder with --trainer.default_root_dir, "
            "or continue that run with --resume or --ckpt_path"
        )


def check_expectation(expect: dict[str, Any] | None) -> None:
    """Refuse an expectation that nothing measured could be compared with.

    Args:
        expect: ``epoch``, the completed epochs after which it holds, and for each ``metric`` of the
            training set, or ``split/metric``, the most it should be, or ``[least, most]``, where
            ``null`` leaves a side open.

    Raises:
        InputError: Naming the key.
    """
    if expect is None:
        return
    epoch = expect.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise InputError(
            "expect.epoch must be the number of completed epochs after which the rest holds "
            f"(expect.epoch: 60), but is {epoch!r}"
        )
    for key, bound in expect.items():
        if key != "epoch":
            _check_metric(key)
            _check_bound(key, bound)


def _check_metric(key: str) -> None:
    if not isinstance(key, str):
        raise InputError(f"expect: expected the name of a metric, got {key!r}")
    if quantity_of(key) is not None:
        return
    split, _, name = key.rpartition("/")
    if quantity_of(name) is None:
        raise InputError(f"expect.{key}: unknown metric {name!r}{hint_of(name)}")
    whole = split.partition(LAYER_MARK)[0]
    if not re.fullmatch(rf"({'|'.join(_SPLITS)})|(val|test)\d+", whole):
        raise InputError(f"expect.{key}: unknown split {whole!r}{nearest(whole, _SPLITS)}")


def _check_bound(key: str, bound: Any) -> None:
    sides = bound if isinstance(bound, list) else [None, bound]
    pair = len(sides) == 2 and any(side is not None for side in sides)
    if not pair or not all(side is None or _is_number(side) for side in sides):
        raise InputError(
            f"expect.{key} must be a number, the most it should be, or [least, most] with null for "
            f"an open side, but is {bound!r}"
        )
    least, most = sides
    if least is not None and most is not None and least > most:
        raise InputError(f"expect.{key}: the least, {least}, is more than the most, {most}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def classes_of(option: Any) -> list[Any]:
    """Return the classes given for an option that takes one, several or none (also as false)."""
    specs = option if isinstance(option, list) else [option]
    return [spec for spec in specs if hasattr(spec, "class_path")]


def _name_of(spec: Any) -> str:
    return str(spec.class_path).rpartition(".")[2]


def place(trainer: Any, folder: Path) -> None:
    """Point the trainer, its loggers and its checkpoints to the folder of the run.

    Args:
        trainer: The trainer's options; changed.
        folder: Of the run.
    """
    trainer.default_root_dir = str(folder)
    for logger in classes_of(trainer.logger):
        if logger.init_args.get("save_dir") == ".":
            logger.init_args.save_dir = str(folder)
    for callback in classes_of(trainer.callbacks):
        if _name_of(callback) == "ModelCheckpoint":
            _place_checkpoints(callback.init_args, folder / "checkpoints")


def _place_checkpoints(saver: Any, folder: Path) -> None:
    if saver.dirpath is None:
        saver.dirpath = str(folder)
    if saver.save_last is True and saver.save_top_k == 0 and saver.monitor is None:
        # Lightning 2.6 would save last.ckpt once, when training ends: too late to resume from. The
        # same file after every epoch, in its words:
        saver.filename, saver.save_top_k, saver.save_last = "last", 1, None
        saver.enable_version_counter = False  # always this name, also in a folder that was moved
