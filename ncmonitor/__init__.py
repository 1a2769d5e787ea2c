"""Watch neural collapse happen: NC1-NC4 through the terminal phase of training.

The flow is *features -> moments -> metrics -> report -> log or plot*. Names are loaded on first
use, so that ``import ncmonitor`` is instant; the Lightning callbacks live in
``ncmonitor.callbacks``, the bundled experiments in ``ncmonitor.recipes``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncmonitor._checks import InputError as InputError
    from ncmonitor.measure import collapse_report as collapse_report
    from ncmonitor.measure import measure_collapse as measure_collapse
    from ncmonitor.moments import ClassMoments as ClassMoments
    from ncmonitor.regression import measure_regression as measure_regression
    from ncmonitor.report import CollapseReport as CollapseReport
    from ncmonitor.tap import FeatureTap as FeatureTap

__version__ = "1.0.0"

_HOME = {
    "ClassMoments": "ncmonitor.moments",
    "CollapseReport": "ncmonitor.report",
    "FeatureTap": "ncmonitor.tap",
    "InputError": "ncmonitor._checks",
    "collapse_report": "ncmonitor.measure",
    "measure_collapse": "ncmonitor.measure",
    "measure_regression": "ncmonitor.regression",
}

__all__ = [  # noqa: RUF022 - the keys above are strings; grouped as in the design
    "measure_collapse",
    "collapse_report",
    "ClassMoments",
    "CollapseReport",
    "FeatureTap",
    "measure_regression",
    "InputError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
