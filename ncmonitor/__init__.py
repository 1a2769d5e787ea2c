"""Watch neural collapse happen: NC1-NC4 through the terminal phase of training.

The flow is *features -> moments -> metrics -> report -> log or plot*. Names are loaded on first
use, so that ``import ncmonitor`` is instant; the Lightning callbacks live in
``ncmonitor.callbacks``, the bundled experiments in ``ncmonitor.recipes``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncmonitor.errors import InputError as InputError
    from ncmonitor.features.tap import FeatureTap as FeatureTap
    from ncmonitor.measurement.measure import measure_batches as measure_batches
    from ncmonitor.measurement.measure import measure_collapse as measure_collapse
    from ncmonitor.measurement.regression import measure_regression as measure_regression
    from ncmonitor.measurement.report import CollapseReport as CollapseReport
    from ncmonitor.statistics.moments import ClassMoments as ClassMoments

__version__ = "0.2.0"

_HOME = {
    "ClassMoments": "ncmonitor.statistics.moments",
    "CollapseReport": "ncmonitor.measurement.report",
    "FeatureTap": "ncmonitor.features.tap",
    "InputError": "ncmonitor.errors",
    "measure_batches": "ncmonitor.measurement.measure",
    "measure_collapse": "ncmonitor.measurement.measure",
    "measure_regression": "ncmonitor.measurement.regression",
}

__all__ = [  # noqa: RUF022 - the keys above are strings; grouped as in the design
    "measure_collapse",
    "measure_batches",
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
