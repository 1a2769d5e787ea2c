"""What the pages share: templates, inline pictures, titles of families, words for plain facts."""

from __future__ import annotations

import base64
import io
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ncmonitor.catalogue import CATALOGUE
from ncmonitor.plots.style import ACCENT, INK, MUTED, SERIES, SHADE
from ncmonitor.reports.verdict import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

REPORT_FILE: Final = "report.html"

#: Title of each family, in the order of the tables.
GROUPS: Final[dict[str, str]] = {
    "fit": "The fit",
    "nc1": "NC1: samples gather at their class mean",
    "nc2": "NC2: the class means and the classifier approach a simplex ETF",
    "nc3": "NC3: the classifier lines up with the class means",
    "nc4": "NC4: the network decides for the nearest class mean",
    "nc0": "NC0: the classifier's rows sum to zero",
    "symmetry": "Symmetry: no class differs from another",
    "imbalance": "Unequal class sizes",
    "many_classes": "Many classes",
    "loss_aware": "The squared loss in parts",
    "rank_norm": "Ranks and norms",
    "phase": "The terminal phase of training (TPT)",
    "diagnostics": "Diagnostics: can the numbers be trusted?",
}
#: The figures' colours become variables of the page, so that they follow its light or dark look.
_CSS_COLOURS: Final = {
    **{INK: "var(--ink)", MUTED: "var(--muted)", SHADE: "var(--tpt)", ACCENT: "var(--accent)"},
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}
#: A hundredth of a point is what a screen can show, and half the size of the page.
_LONG: Final = re.compile(r'(?<=\s)(?:d|x|y)="[^"]*"')
#: Names of quantities in a text, and of several at once (``nc2_etf_*``).
_CODE: Final = re.compile(
    rf"(?<![\w])((?:{'|'.join(sorted((n for n in CATALOGUE if '_' in n), key=len, reverse=True))})"
    r"(?![a-z0-9_])|nc\d_\w*\*)"
)
_SUBSCRIPT: Final = re.compile(r"_(?:\{([^}]+)\}|((?:[a-z]+|[A-Z]+\d?(?:/\d)?|\w|⊥)′?))")


class Cell(NamedTuple):
    """One cell of a table: what it shows and what kind of thing that is (a CSS class)."""

    text: str
    kind: str = "value"


#: What does not apply, or was not measured.
NOTHING: Final = Cell("·", "none")


def value_cell(value: float) -> Cell:
    """Return the cell of a measured number; ``nan`` stands out."""
    return Cell(number(value), "nan" if value != value else "value")


def templates() -> Environment:
    """Return the templates of the pages; every string put into one is escaped."""
    env = Environment(
        loader=PackageLoader("ncmonitor.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": number, "formula": formula}
    return env


def inline_svg(figure: Figure, prefix: str, label: str, *, follow: bool = True) -> Markup:
    """Turn a figure into SVG for a page with others: own ids, no size, colours of the page.

    Args:
        figure: What to show.
        prefix: Of its ids, another one for each figure of a page.
        label: What it shows, for those who do not see it.
        follow: Whether inks and series take the colours of the page; a picture made of colours
            keeps them, and the page turns it as a whole (``.turned``).
    """
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # dpi: of what is not lines, such as the cells of a heat map.
        figure.savefig(out, format="svg", transparent=True, metadata=nothing, dpi=200)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # Comments repeat the texts of the figure, and the style sheet would hold for the whole page.
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#|url\(#', lambda found: found[0] + prefix, svg)
    svg = _LONG.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    if follow:
        svg = re.sub("|".join(_CSS_COLOURS), lambda found: _CSS_COLOURS[found[0]], svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    # Safe: what is left is paths, numbers, pixels and the escaped label.
    return Markup(f'{head} role="img" aria-label="{escape(label)}">{body}')


def data_uri(image: Image) -> str:
    """Return an image as the address of itself."""
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def formula(text: str) -> Markup:
    """Set the subscripts of a formula of the catalogue, as in ``w_c`` and ``s_{K−1}``.

    The names of quantities, as in ``nc2_etf_w``, are code.
    """
    parts = []
    for i, part in enumerate(_CODE.split(str(escape(text)))):
        said = _SUBSCRIPT.sub(r"<sub>\1\2</sub>", part)
        parts.append(f"<code>{part}</code>" if i % 2 else said)
    return Markup("".join(parts))


def words(value: object) -> str:
    """Write a recorded fact, or that it was not recorded."""
    return "not recorded" if value is None or value == "" else str(value)


def moment(value: object) -> str:
    """Write a recorded date and time for a reader."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return words(value)
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()
