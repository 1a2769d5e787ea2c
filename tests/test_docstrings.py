"""What is public is documented: parameters, what comes back, what is raised, and the source."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from ncmonitor.catalogue import METRICS
from ncmonitor.metrics import (
    class_symmetry,
    covariance,
    duality,
    equiangularity,
    minority,
    variability,
)

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "api").glob("*.md"))
#: Arrays in, numbers out: shapes have to be said. Of these words, one.
SHAPE = re.compile(r"\([A-Za-z0-9_+−·,. ]+\)``|\([NKdBn], ?[NKd]?\)|shape|scalar")


def on_pages() -> Iterator[tuple[str, Any]]:
    """Yield the full name and the object of everything that the pages of the API show."""
    for page in PAGES:
        module = ""
        for kind, name in re.findall(
            r"^\.\. (currentmodule|autofunction|autoclass|autoexception):: (\S+)$",
            page.read_text(encoding="utf-8"),
            re.M,
        ):
            if kind == "currentmodule":
                module = name
            else:
                full = name if name.startswith("ncmonitor.") else f"{module}.{name}"
                home, _, own = full.rpartition(".")
                yield full, getattr(importlib.import_module(home), own)


PUBLIC = dict(on_pages())
FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in (variability, equiangularity, duality, class_symmetry, minority, covariance)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


def parsed(thing: Any) -> docstring_parser.Docstring:
    return docstring_parser.parse(inspect.getdoc(thing) or "", docstring_parser.Style.GOOGLE)


def parameters(thing: Any) -> list[str]:
    signature = inspect.signature(thing)
    return [name for name in signature.parameters if name not in ("self", "cls")]


def test_the_pages_show_every_name_that_a_package_exports() -> None:
    for name in ("ncmonitor", "ncmonitor.callbacks", "ncmonitor.symmetry", "ncmonitor.theory"):
        # DIGITS is data, shown by autodata.
        exported = set(importlib.import_module(name).__all__) - {"__version__", "DIGITS"}
        shown = {full.rpartition(".")[2] for full in PUBLIC}
        assert exported <= shown, f"docs/api lacks {sorted(exported - shown)} of {name}"


@pytest.mark.parametrize("name", [*PUBLIC, *FUNCTIONS])
def test_every_parameter_and_what_comes_back_is_documented(name: str) -> None:
    thing = (PUBLIC | FUNCTIONS)[name]
    doc = parsed(thing)
    assert doc.short_description
    assert doc.short_description.rstrip().endswith((".", "``.", ":"))
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    said = {re.sub(r"[*`\s].*", "", p.arg_name) for p in doc.params}
    said |= {word for p in doc.params for word in re.findall(r"\w+", p.arg_name)}
    # A data class lists its fields as attributes, which docstring_parser counts as parameters.
    missing = [p for p in parameters(thing) if p not in said]
    assert not missing, f"{name} does not say what {', '.join(missing)} is"
    if inspect.isfunction(thing):
        returns = inspect.signature(thing).return_annotation
        assert doc.returns or returns in (None, "None"), f"{name} does not say what it returns"


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_that_it_raises_itself_are_named(name: str) -> None:
    thing = PUBLIC[name]
    made = vars(thing).get("__init__") if inspect.isclass(thing) else thing
    if not inspect.isfunction(made) or not Path(made.__code__.co_filename).is_file():
        return  # a data class writes its own
    body = inspect.getsource(made)
    if "raise InputError" in body:
        raised = {r.type_name for r in parsed(thing).raises}
        assert "InputError" in raised, f"{name} raises InputError and does not say when"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_metric_says_its_shapes_its_value_at_collapse_and_its_source(name: str) -> None:
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    assert re.search(r"^Source: ", doc, re.M), f"{name} has no source"
    assert re.search(r"collapse|ETF|simplex", doc), f"{name} does not say its value at collapse"
    typed = re.search(
        r"Vectors|GramSpectrum|WithinCovariance|WithinClassStatistics",
        str(inspect.signature(FUNCTIONS[name])),
    )
    assert typed or SHAPE.search(doc), f"{name} names no shape"  # these types say theirs


def test_every_metric_of_the_catalogue_says_what_a_reader_needs() -> None:
    for quantity in METRICS:
        assert quantity.meaning.endswith("."), quantity.name
        assert quantity.definition, quantity.name
        assert quantity.source, quantity.name
        assert (
            quantity.collapse is not None
            or quantity.null
            or not quantity.default
            or (quantity.group == "diagnostics")
        ), f"{quantity.name}: neither a value at collapse nor without structure"
