"""Sphinx extension: pages made at build time, so that no text is kept twice.

``catalogue.md`` gets every entry of :mod:`ncmonitor.catalogue`; the pages in ``repository/`` are
files of the repository. Links to those files, written as the repository has them, lead there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ncmonitor.catalogue import CATALOGUE, MONITORED, Quantity

ROOT: Final = Path(__file__).resolve().parent.parent

#: Page -> the file of the repository that it shows.
SHOWN: Final = {
    "repository/benchmarks": "benchmarks/RESULTS.md",
    "repository/recipes": "recipes/RESULTS.md",
    "repository/contributing": "CONTRIBUTING.md",
    "repository/changelog": "CHANGELOG.md",
}

#: Group -> heading, in the order of the catalogue.
FAMILIES: Final = {
    "nc0": "NC0: the mean row of the classifier",
    "nc1": "NC1: within-class variability",
    "nc2": "NC2: lengths and angles",
    "nc3": "NC3: classifier and class means",
    "nc4": "NC4: the nearest class mean",
    "symmetry": "Symmetry of the classes",
    "imbalance": "Unequal class sizes",
    "many_classes": "More classes than dimensions",
    "loss_aware": "The squared loss",
    "rank_norm": "Ranks and norms",
    "diagnostics": "Diagnostics",
    "regression": "Regression",
    "fit": "The fit, from the same pass",
    "phase": "The clock of the terminal phase",
    "input_symmetry": "Symmetry of the inputs",
    "parameter_symmetry": "Symmetry of the parameters",
}

_NEEDS: Final = {
    "": "",
    "classifier": "the classifier's weights",
    "decisions": "logits, given or from the classifier's weights",
    "targets": "real-valued targets: `measure_regression`",
}
_LINK: Final = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def catalogue() -> str:
    """Return the catalogue as Markdown: a heading for each family, a table for each quantity."""
    groups = dict.fromkeys(quantity.group for quantity in CATALOGUE.values())
    lines: list[str] = []
    for group in groups:
        lines += [f"## {FAMILIES[group]}", ""]
        for quantity in CATALOGUE.values():
            if quantity.group == group:
                lines += entry(quantity)
    return "\n".join(lines)


def entry(quantity: Quantity) -> Iterator[str]:
    """Yield the lines of one quantity: what it says, then its facts."""
    yield from (f"### {quantity.name}", "", quantity.meaning, "")
    yield from ("| | |", "|---|---|")
    for head, text in facts(quantity):
        escaped = text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
        yield f"| {head} | {escaped} |"
    yield ""


def facts(quantity: Quantity) -> Iterable[tuple[str, str]]:
    """Return what the catalogue says of a quantity, empty fields left out."""
    always = quantity.default or quantity.group in ("fit", "phase")
    collapse = "not fixed" if quantity.collapse is None else f"{quantity.collapse:g}"
    by_name = f'`metrics=["{quantity.name}"]`'
    asked = "with `measure_regression`" if quantity.needs == "targets" else f"with {by_name}"
    monitored = quantity.group in MONITORED
    rows = (
        ("definition", quantity.definition),
        ("at collapse", "" if monitored and quantity.collapse is None else collapse),
        ("if symmetric", "" if quantity.symmetric is None else f"{quantity.symmetric:g}"),
        ("no structure", quantity.null),
        ("undefined (`nan`)", quantity.undefined),
        ("cost", quantity.cost),
        ("needs", _NEEDS[quantity.needs]),
        ("weighting", "as `convention=` says" if quantity.conventions else ""),
        ("value", "one number per class" if quantity.vector else ""),
        ("logged", "once, under `train`" if quantity.once else ""),
        ("measured", "by `SymmetryMonitor`" if monitored else "always" if always else asked),
        ("source", quantity.source),
    )
    return [(head, text) for head, text in rows if text]


def shown(page: str) -> str:
    """Return the text of a file of the repository, its links as seen from ``page``."""
    path = ROOT / SHOWN[page]

    def moved(link: re.Match[str]) -> str:
        target = (path.parent / link[2]).resolve()
        there = target.relative_to(ROOT).as_posix()
        if target.is_dir():  # a site has no folders to look at
            return f"`{there}/`"
        return f"[{link[1]}]({'../' * (page.count('/') + 1)}{there}{link[3] or ''})"

    return one_title(_LINK.sub(moved, path.read_text(encoding="utf-8")), page)


def one_title(text: str, page: str) -> str:
    """Return a page with one title: where there are several, they become sections of a new one."""
    if len(re.findall(r"^# ", text, re.M)) < 2:
        return text
    title = posixpath.basename(page).capitalize()
    return f"# {title}\n\n" + re.sub(r"^(#+ )", r"#\1", text, flags=re.M)


def on_site(page: str, text: str) -> str:
    """Return a page's text with links to shown files turned to the pages that show them."""
    pages = {source: name for name, source in SHOWN.items()}

    def turned(link: re.Match[str]) -> str:
        folder = posixpath.dirname(f"docs/{page}")
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target not in pages:
            return link[0]
        there = posixpath.relpath(f"docs/{pages[target]}.md", folder)
        return f"[{link[1]}]({there}{link[3] or ''})"

    return _LINK.sub(turned, text)


def read(app: Any, page: str, content: list[str]) -> None:
    """Fill in what a page is made of; called by Sphinx for each."""
    text = shown(page) if page in SHOWN else content[0]
    if page == "catalogue":
        text = text.replace("<!-- entries -->", catalogue())
    content[0] = on_site(page, text)


def as_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep text that reStructuredText takes for markup: the bars of ``|x|``, a lone ``n.``."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = re.sub(r"(:[^:]+: \w)\.$", r"\1\\.", "``".join(parts))


def also_read(app: Any, env: Any, pages: list[str]) -> None:
    """Have pages read again at every build whose sources lie outside docs/."""
    pages += sorted({*SHOWN, "catalogue"} - set(pages))


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", read)
    app.connect("env-before-read-docs", also_read)
    app.connect("autodoc-process-docstring", as_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
