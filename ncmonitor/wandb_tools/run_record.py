"""What a W&B run of ours holds beside its numbers: axes, config, tags, the onset, a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history import Row
from ncmonitor.monitor.log_keys import keys_of
from ncmonitor.redact import redacted

if TYPE_CHECKING:
    import pandas as pd

#: Heights of the step that marks the onset: a logarithmic axis has no place for 0.
STEP: Final = (1e-3, 1.0)
#: Curves of the chart at the end of a run, of the training set.
CURVES: Final = ("nc1", "nc2_etf_means", "nc3_self_duality")
#: W&B draws a chart of its own kind from at most 10,000 points.
_POINTS: Final = 2000
#: Length of a tag that W&B takes.
_TAG: Final = 64


def host() -> str:
    """Return the address of the W&B server that the client would talk to."""
    import wandb

    return str(wandb.setup().settings.base_url)


def define_axes(run: Any, epoch_key: str, keys: Mapping[str, str]) -> None:
    """Give every key the epoch as its x-axis, by exact name.

    Globs would compete with the one that Lightning's logger defines, and which wins is random.
    Quantities that fall to 0 at collapse get their minimum into the run summary beside the last.

    Args:
        run: Of W&B.
        epoch_key: Key of the x-axis.
        keys: Every key that will be logged, with the name of its quantity.
    """
    run.define_metric(epoch_key)
    for key, name in keys.items():
        kept = "min,last" if _falls(name) else "last"
        exact = key.replace(".", r"\.")  # of a layer; a bare dot would lead into a nested value
        run.define_metric(exact, step_metric=epoch_key, summary=kept)


def summary_of(rows: Iterable[Row], prefix: str) -> dict[str, dict[str, float]]:
    """Return what the summary of a run with these rows is, by key."""
    summary: dict[str, dict[str, float]] = {}
    for row in rows:
        for key, name in keys_of([row], prefix).items():
            summarise(summary, key, name, float(row[name]))
    return summary


def summarise(summary: dict[str, dict[str, float]], key: str, name: str, value: float) -> None:
    """Put one more value into a summary, as :func:`define_axes` has it."""
    kept = summary.setdefault(key, {})
    if _falls(name):
        kept["min"] = min(value, kept.get("min", value))
    kept["last"] = value


def _falls(name: str) -> bool:
    quantity = CATALOGUE.get(name.partition("/")[0])
    return quantity is not None and (quantity.falls or quantity.group == "fit")


def fill_config(run: Any, facts: Mapping[str, Any], name: str = "ncmonitor") -> None:
    """Write how the run is measured into its config, under a name, in place of before."""
    run.config.update({name: redacted(dict(facts))}, allow_val_change=True)


def fill_tags(run: Any, facts: Mapping[str, Any]) -> None:
    """Tag a run that has no tags: the user's, also those of ``WANDB_TAGS``, stay alone."""
    if run.tags:
        return
    tags = ["neural-collapse", facts.get("recipe"), _convention(facts)]
    run.tags = tuple(str(tag)[:_TAG] for tag in tags if tag)


def _convention(facts: Mapping[str, Any]) -> str | None:
    name = facts.get("convention")
    return f"convention:{name}" if name else None


def onset_key(prefix: str) -> str:
    """Return the key of the step that marks the onset in charts."""
    return f"{prefix}/tpt/onset"


def mark_onset(run: Any, prefix: str, before: float, onset: float) -> None:
    """Log a step from the measurement before the onset to the onset.

    W&B draws no vertical lines, but this one rises where the terminal phase begins: it is the same
    in any chart over epochs, on a linear axis and on a logarithmic one.

    Args:
        run: Of W&B.
        prefix: First part of every key.
        before: Epoch of the last measurement that was not in the terminal phase.
        onset: Completed epochs when the train error first was 0.
    """
    key = onset_key(prefix)
    run.define_metric(key, step_metric=f"{prefix}/epoch", summary="none")
    for epoch, height in zip((before, onset), STEP, strict=True):
        run.log({f"{prefix}/epoch": float(epoch), key: height})


def onset_of(history: pd.DataFrame) -> tuple[float, float] | None:
    """Return the epochs of the measurement before the onset and of the onset; ``None``: not yet."""
    train = history.loc[history["split"] == "train"].drop_duplicates("epoch", keep="last")
    starts = train["tpt_start_exact"].dropna()
    if starts.empty:
        return None
    onset = float(starts.iloc[-1])
    before = train.loc[train["epoch"] < onset, "epoch"]
    return (onset if before.empty else float(before.max())), onset


def log_history(run: Any, prefix: str, history: pd.DataFrame) -> None:
    """Log the whole history as a table, and the collapse with its onset as a chart.

    Args:
        run: Of W&B.
        prefix: First part of every key; media have one of their own (``nc_media``).
        history: One row per epoch and split.
    """
    import wandb

    table = history.dropna(axis="columns", how="all")
    data: list[Iterable[Any]] = [
        [_cell(value) for value in row] for row in table.itertuples(index=False)
    ]
    media: dict[str, Any] = {
        f"{prefix}_media/history": wandb.Table(columns=list(table.columns), data=data)
    }
    curves = _curves(history)
    if curves:
        media[f"{prefix}_media/collapse"] = wandb.plot.line_series(
            xs=[x for x, _ in curves.values()],
            ys=[y for _, y in curves.values()],
            keys=list(curves),
            title="Collapse of the training set (log10)",
            xname="completed epochs",
        )
    run.log(media | {f"{prefix}/epoch": float(history["epoch"].max())})


def log_pictures(
    run: Any,
    prefix: str,
    pictures: Iterable[Path],
    epoch: float,
    say: Callable[[str], object] | None = None,
) -> None:
    """Log image files by the names of the files; animations (``.gif``) as videos.

    Args:
        run: The W&B run.
        prefix: First part of the keys.
        pictures: Files.
        epoch: Completed epochs.
        say: Is told of a file that is no picture, which is then left out; without it, it raises.
    """
    import wandb

    media: dict[str, Any] = {}
    for path in pictures:
        moves = path.suffix.lower() == ".gif"
        try:
            picture = wandb.Video(str(path), format="gif") if moves else wandb.Image(str(path))
        except OSError as error:
            if say is None:
                raise
            say(f"{path.name} is left out: {error}")
            continue
        media[f"{prefix}_media/{path.stem}"] = picture
    if media:
        run.log(media | {f"{prefix}/epoch": epoch})


def _cell(value: Any) -> Any:
    """Return a value as W&B's tables have it: plain, and nothing for what is not defined."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _curves(history: pd.DataFrame) -> dict[str, tuple[list[float], list[float]]]:
    """Return points by name of the curve: log10 of what falls, and the onset as a vertical line."""
    train = history.loc[history["split"] == "train"]
    train = train.iloc[:: 1 + len(train) // _POINTS]
    curves = {}
    for name in CURVES:
        known = train.loc[train[name] > 0, ["epoch", name]]
        if len(known) > 1:
            heights = [math.log10(value) for value in known[name]]
            curves[CATALOGUE[name].label] = known["epoch"].astype(float).tolist(), heights
    found = onset_of(history)
    if curves and found is not None:
        everything = [height for _, heights in curves.values() for height in heights]
        line = [min(everything), max(everything)]
        curves["start of the terminal phase"] = [found[1], found[1]], line
    return curves
