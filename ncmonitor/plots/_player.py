"""A player for a few pictures, as HTML that asks the network for nothing."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from PIL.Image import Image

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 1rem auto; max-width: 30rem; padding: 0 1rem; font: 1rem/1.4 sans-serif; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0d1117; color: #e6edf3; }} }}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

# The pictures keep their white ground in dark mode: their colours are chosen for it.
_PLAYER: Final = """<figure class="film" style="margin:0;max-width:26rem">
<img alt="{alt}" src="{first}" width="{width}" height="{height}"
 style="display:block;width:100%;height:auto;background:#fff;border-radius:6px">
<div style="display:flex;gap:.6rem;align-items:center;margin-top:.4rem">
<button type="button" style="min-width:4.5rem">play</button>
<input type="range" min="0" max="{last}" value="{last}" aria-label="frame" style="flex:1">
<output style="min-width:5.5rem;text-align:right">{label}</output>
</div>
<script type="application/json">{data}</script>
<script>
(() => {{
  const film = document.currentScript.parentElement;
  const data = JSON.parse(film.querySelector("script").textContent);
  const [image, button, slider, said] =
    ["img", "button", "input", "output"].map((name) => film.querySelector(name));
  let timer = null;
  const show = (i) => {{
    slider.value = i;
    image.src = "data:image/png;base64," + data.frames[i];
    said.textContent = data.labels[i];
  }};
  const stop = () => {{ clearInterval(timer); timer = null; button.textContent = "play"; }};
  const step = () => {{
    const next = Number(slider.value) + 1;
    if (next >= data.frames.length) stop(); else show(next);
  }};
  button.addEventListener("click", () => {{
    if (timer) return stop();
    if (Number(slider.value) >= data.frames.length - 1) show(0);
    timer = setInterval(step, data.milliseconds);
    button.textContent = "pause";
  }});
  slider.addEventListener("input", () => {{ stop(); show(Number(slider.value)); }});
}})();
</script>
</figure>"""


def player(images: Sequence[Image], labels: Sequence[str], fps: float) -> str:
    """Return an HTML fragment that shows pictures one after another, with a slider.

    It begins at the last one, so that print and a browser without scripts show the end.

    Args:
        images: The frames, of one size.
        labels: What each is.
        fps: Frames per second.
    """
    frames = [_png(image) for image in images]
    data = {"frames": frames, "labels": list(labels), "milliseconds": round(1000 / fps)}
    return _PLAYER.format(
        first=f"data:image/png;base64,{frames[-1]}",
        alt=html.escape(f"simplex picture, {labels[-1]}"),
        width=images[0].width,
        height=images[0].height,
        last=len(frames) - 1,
        label=html.escape(labels[-1]),
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def page(body: str, title: str) -> str:
    """Return a whole page around a fragment.

    Args:
        body: The fragment.
        title: Of the page, as text.
    """
    return _PAGE.format(title=html.escape(title), body=body)


def _png(image: Image) -> str:
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
