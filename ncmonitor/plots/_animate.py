"""The simplex picture through training, as an animation: in memory, GIF, MP4 or one HTML page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ncmonitor.errors import InputError, warn
from ncmonitor.plots._player import page, player
from ncmonitor.plots._simplex import keys, reach_of, simplex
from ncmonitor.plots.style import INK, own_style

if TYPE_CHECKING:
    from ncmonitor.monitor.snapshots.snapshot import Snapshot

_INCHES: Final = 4.0
_DPI: Final = 150
#: Enough for four colours, their tints and grey; a GIF of 256 would be twice as large.
_COLOURS: Final = 64
#: How long the last frame stays, in seconds.
_HOLD: Final = 2.0


@overload
def animate(
    snapshots: Sequence[Snapshot],
    path: None = None,
    *,
    names: Sequence[str] | None = None,
    fps: float = 8.0,
) -> FuncAnimation: ...
@overload
def animate(
    snapshots: Sequence[Snapshot],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    fps: float = 8.0,
) -> Path: ...
def animate(
    snapshots: Sequence[Snapshot],
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    fps: float = 8.0,
) -> FuncAnimation | Path:
    """Animate :func:`simplex` through training, one frame for each snapshot, on one scale.

    Args:
        snapshots: Of one run and split, as
            :func:`ncmonitor.monitor.snapshots.snapshot.read_snapshots` returns them.
        path: Where to write: ``.gif``; ``.mp4``, which needs ffmpeg and becomes ``.html`` with a
            warning where there is none; ``.html``, a page that needs nothing else. ``None`` writes
            nothing.
        names: What to call the classes, by class index; else their numbers.
        fps: Frames per second; the last one of a GIF stays for 2 seconds.

    Returns:
        The animation, or the path of what was written.

    Raises:
        InputError: If there is no snapshot, if they show different classes or splits, or if the
            name of the file ends otherwise.
    """
    stage, draw = stage_of(snapshots, names)
    if not fps > 0:
        raise InputError(f"fps= must be positive, but is {fps}")
    if path is None:
        return _film(stage, draw, len(snapshots), fps)
    path = Path(path)
    if path.suffix not in (".gif", ".mp4", ".html"):
        raise InputError(f"an animation is written as .gif, .mp4 or .html, but not as {path.name}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        path = path.with_suffix(".html")
        warn(f"no ffmpeg to write an mp4: writing {path} instead")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        writer = FFMpegWriter(fps=max(1, round(fps)))
        _film(stage, draw, len(snapshots), fps).save(path, writer, dpi=_DPI)
    elif path.suffix == ".gif":
        _save_gif(images_of(stage, draw, len(snapshots)), path, fps)
    else:
        body = animation_html(snapshots, names=names, fps=fps)
        path.write_text(page(body, "Collapse on the simplex"), encoding="utf-8")
    return path


def animation_html(
    snapshots: Sequence[Snapshot], *, names: Sequence[str] | None = None, fps: float = 8.0
) -> str:
    """Return the animation as an HTML fragment that needs nothing else, to put into a page.

    Nothing starts by itself.

    Args:
        snapshots: One per frame, in order.
        names: What to call the classes, by class index; else their numbers.
        fps: Frames per second.

    Returns:
        HTML with the frames in it.

    Raises:
        InputError: As :func:`animate`.
    """
    stage, draw = stage_of(snapshots, names)
    images = images_of(stage, draw, len(snapshots))
    return player(images, [f"epoch {s.epoch}" for s in snapshots], fps)


def stage_of(
    snapshots: Sequence[Snapshot], names: Sequence[str] | None
) -> tuple[Figure, Callable[[int], None]]:
    """Return an empty figure and what draws a frame on it."""
    if not snapshots:
        raise InputError("an animation needs at least one snapshot, but got none")
    kinds = list(dict.fromkeys((s.split, s.corners) for s in snapshots))
    if len(kinds) > 1:
        shown = " and ".join(f"{split} {corners}" for split, corners in kinds[:2])
        raise InputError(
            f"an animation needs snapshots of one split with the same corners, but got {shown}; "
            'choose among them, as in [s for s in snapshots if s.split == "train"]'
        )
    reach = reach_of(snapshots)
    with own_style():
        figure = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI)
        FigureCanvasAgg(figure)
        projection = "3d" if len(snapshots[0].corners) == 4 else None
        # Fixed margins, or the picture would shake.
        ax: Any = figure.add_axes((0.02, 0.02, 0.96, 0.9), projection=projection)
        figure.legend(handles=keys(snapshots[-1]), loc="upper right", fontsize=7, frameon=False)
        title = figure.text(0.04, 0.955, "", fontsize=11, fontweight="bold", color=INK)

    def draw(frame: int) -> None:
        ax.clear()
        snapshot = snapshots[frame]
        with own_style():
            simplex(snapshot, ax, names=names, limit=reach, legend=False)
        title.set_text(f"epoch {snapshot.epoch}")

    return figure, draw


def _film(stage: Figure, draw: Callable[[int], Any], count: int, fps: float) -> FuncAnimation:
    return FuncAnimation(
        stage, draw, frames=count, interval=round(1000 / fps), cache_frame_data=False
    )


def images_of(stage: Figure, draw: Callable[[int], None], count: int) -> list[Image.Image]:
    """Return the frames, all with the same few colours."""
    canvas: Any = FigureCanvasAgg(stage)
    frames = []
    for frame in range(count):
        draw(frame)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    some = [frames[i] for i in sorted({0, count // 4, count // 2, count - 1})]
    palette = Image.fromarray(np.concatenate([np.asarray(f) for f in some])).quantize(_COLOURS - 1)
    return [_reduced(frame, palette) for frame in frames]


def _reduced(frame: Image.Image, palette: Image.Image) -> Image.Image:
    """Return a frame in the colours of a palette, its white ground exactly white."""
    places = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    places[(np.asarray(frame) == 255).all(axis=2)] = _COLOURS - 1
    colours = (palette.getpalette() or [])[: 3 * (_COLOURS - 1)]
    small = Image.fromarray(places).convert("P")
    small.putpalette([*colours, *[0] * (3 * (_COLOURS - 1) - len(colours)), 255, 255, 255])
    return small


def _save_gif(images: Sequence[Image.Image], path: Path, fps: float) -> None:
    durations = [round(1000 / fps)] * (len(images) - 1) + [round(1000 * _HOLD)]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
    )
