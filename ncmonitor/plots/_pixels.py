"""Figures as pixels, and pixels as PNG files: without pyplot, a backend or a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ncmonitor.plots.style import own_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

#: For screens; a run logs dozens of pictures.
DPI: Final = 150


def pixels_of(figure: Figure, dpi: int = DPI) -> NDArray[np.uint8]:
    """Draw a figure.

    Args:
        figure: Made without pyplot, as all of :mod:`ncmonitor.plots` are.
        dpi: Pixels per inch.

    Returns:
        ``(height, width, 3)``.
    """
    canvas: Any = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    with own_style():  # ticks are made when drawn
        canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels, replacing the file at once: somebody may be looking at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(pixels).save(part, format="png")
    part.replace(path)
