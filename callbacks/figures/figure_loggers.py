"""Pictures to the loggers that take some: W&B, TensorBoard, MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ncmonitor.callbacks.figures.drawing import DrawnFigure
from ncmonitor.wandb_tools import run_record


def senders(loggers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the logger of those that take pictures, of either distribution."""
    for logger in loggers:
        for cls in type(logger).__mro__:
            if cls.__name__ in _SEND:
                yield cls.__name__, logger
                break


def send(
    kind: str, logger: Any, prefix: str, pictures: Sequence[DrawnFigure], epoch: int, step: int
) -> None:
    """Log pictures under ``<prefix>_media/<figure>``.

    Args:
        kind: From :func:`senders`.
        logger: Of the trainer.
        prefix: First part of the monitor's log keys.
        pictures: Of one epoch.
        epoch: Completed epochs.
        step: Optimizer steps made.
    """
    _SEND[kind](logger, prefix, pictures, epoch, step)


def _to_wandb(
    logger: Any, prefix: str, pictures: Sequence[DrawnFigure], epoch: int, step: int
) -> None:
    # In a row with the epoch; never with step=, which would drop what came later at that step.
    paths = [picture.path for picture in pictures]
    run_record.log_pictures(logger.experiment, prefix, paths, float(epoch))


def _to_tensorboard(
    logger: Any, prefix: str, pictures: Sequence[DrawnFigure], epoch: int, step: int
) -> None:
    for picture in pictures:
        if picture.pixels is not None:  # add_figure would import pyplot and draw once more
            key = f"{prefix}_media/{picture.name}"
            logger.experiment.add_image(key, picture.pixels, step, dataformats="HWC")


def _to_mlflow(
    logger: Any, prefix: str, pictures: Sequence[DrawnFigure], epoch: int, step: int
) -> None:
    client, run_id = logger.experiment, logger.run_id
    for picture in pictures:
        folder = f"{prefix}_media/{picture.name}"
        if picture.figure is None:
            client.log_artifact(run_id, str(picture.path), folder)
        else:
            client.log_figure(run_id, picture.figure, f"{folder}/epoch-{epoch:05d}.png")


_SEND = {
    "WandbLogger": _to_wandb,
    "TensorBoardLogger": _to_tensorboard,
    "MLFlowLogger": _to_mlflow,
}
