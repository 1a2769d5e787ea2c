"""The collapse as a film on a page without script: one image of all frames, moved by style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from PIL import Image

from ncmonitor.plots._animate import images_of, stage_of
from ncmonitor.reports.page import data_uri
from ncmonitor.reports.run_page.pictures import some

if TYPE_CHECKING:
    from ncmonitor.monitor.snapshots.snapshot import Snapshot

#: Frames of a film: more would be a wide image for a phone, and nothing new to see.
MOST_FRAMES: Final = 40
#: Pixels per inch of a frame of 4 inches.
_DPI: Final = 120
#: Seconds of one frame, and how many of them the last one stays.
_SECONDS: Final = 0.16
_HELD: Final = 10


class FilmFrame(NamedTuple):
    """One frame: the epoch it shows, where it lies in the image, and when it is on.

    Attributes:
        epoch: Completed epochs.
        shift: Style that brings it into view.
        percent: Its start, in percent of the film's length.
    """

    epoch: int
    shift: str
    percent: str


class Film(NamedTuple):
    """A film for the page.

    Attributes:
        image: All frames side by side, as the address of itself.
        columns: How many frames lie in one row of it.
        frames: The frames in order.
        seconds: Length.
    """

    image: str
    columns: int
    frames: tuple[FilmFrame, ...]
    seconds: str


def film(snapshots: Sequence[Snapshot]) -> Film | None:
    """Draw the simplex picture through training.

    Args:
        snapshots: Of one split, with the same corners.

    Returns:
        ``None`` where there are not two epochs to show.
    """
    shown = some(snapshots, MOST_FRAMES)
    if len(shown) < 2 or len(shown[-1].corners) < 2:
        return None
    stage, draw = stage_of(shown, None)
    stage.set_dpi(_DPI)
    images = images_of(stage, draw, len(shown))
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("P", (columns * width, rows * height))
    sheet.putpalette(images[0].getpalette() or [])
    frames = []
    for i, (snapshot, image) in enumerate(zip(shown, images, strict=True)):
        row, column = divmod(i, columns)
        sheet.paste(image, (column * width, row * height))
        shift = f"translate({_percent(-column / columns)}, {_percent(-row / rows)})"
        frames.append(FilmFrame(snapshot.epoch, shift, _percent(i / (len(shown) - 1 + _HELD))))
    seconds = f"{_SECONDS * (len(shown) - 1 + _HELD):.2f}s"
    return Film(data_uri(sheet), columns, tuple(frames), seconds)


def _percent(share: float) -> str:
    return f"{100 * share + 0.0:.4f}".rstrip("0").rstrip(".") + "%"
