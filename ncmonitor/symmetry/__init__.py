"""Groups that act on inputs, and how features, predictions and parameters answer to them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncmonitor.symmetry.equivariance import Equivariance as Equivariance
    from ncmonitor.symmetry.equivariance import fit_equivariance as fit_equivariance
    from ncmonitor.symmetry.equivariance import group_law as group_law
    from ncmonitor.symmetry.groups.batch_checks import check_flow as check_flow
    from ncmonitor.symmetry.groups.batch_checks import check_group as check_group
    from ncmonitor.symmetry.groups.batch_checks import composition_table as composition_table
    from ncmonitor.symmetry.groups.flows import rotation_flow as rotation_flow
    from ncmonitor.symmetry.groups.flows import scale_flow as scale_flow
    from ncmonitor.symmetry.groups.flows import translation_flow as translation_flow
    from ncmonitor.symmetry.groups.group import DIGITS as DIGITS
    from ncmonitor.symmetry.groups.group import Action as Action
    from ncmonitor.symmetry.groups.group import Flow as Flow
    from ncmonitor.symmetry.groups.group import Group as Group
    from ncmonitor.symmetry.groups.images import circular_shifts as circular_shifts
    from ncmonitor.symmetry.groups.images import dihedral as dihedral
    from ncmonitor.symmetry.groups.images import flips as flips
    from ncmonitor.symmetry.groups.images import rotations as rotations
    from ncmonitor.symmetry.groups.images import rotations90 as rotations90
    from ncmonitor.symmetry.groups.images import scalings as scalings
    from ncmonitor.symmetry.groups.images import shifts as shifts
    from ncmonitor.symmetry.groups.images import subpixel_shifts as subpixel_shifts
    from ncmonitor.symmetry.groups.points import cube_rotations as cube_rotations
    from ncmonitor.symmetry.groups.points import euclidean as euclidean
    from ncmonitor.symmetry.groups.points import orthogonal as orthogonal
    from ncmonitor.symmetry.groups.points import point_rotation_flow as point_rotation_flow
    from ncmonitor.symmetry.groups.points import point_translation_flow as point_translation_flow
    from ncmonitor.symmetry.groups.points import translations as translations
    from ncmonitor.symmetry.groups.sequences import time_shifts as time_shifts
    from ncmonitor.symmetry.groups.sets import cyclic as cyclic
    from ncmonitor.symmetry.groups.sets import node_permutations as node_permutations
    from ncmonitor.symmetry.groups.sets import permutations as permutations
    from ncmonitor.symmetry.invariance import FeatureInvariance as FeatureInvariance
    from ncmonitor.symmetry.invariance import PredictionInvariance as PredictionInvariance
    from ncmonitor.symmetry.invariance import inv_error as inv_error
    from ncmonitor.symmetry.lie import LieError as LieError
    from ncmonitor.symmetry.lie import lie_difference as lie_difference
    from ncmonitor.symmetry.lie import lie_jvp as lie_jvp
    from ncmonitor.symmetry.network_symmetry import measure_symmetry as measure_symmetry
    from ncmonitor.symmetry.orbits import OrbitMoments as OrbitMoments
    from ncmonitor.symmetry.orbits import OrbitReport as OrbitReport
    from ncmonitor.symmetry.orbits import OrbitSpread as OrbitSpread
    from ncmonitor.symmetry.orbits import measure_orbits as measure_orbits
    from ncmonitor.symmetry.parameters import RowMeanLaw as RowMeanLaw
    from ncmonitor.symmetry.parameters import SgdSettings as SgdSettings
    from ncmonitor.symmetry.parameters import chains as chains
    from ncmonitor.symmetry.parameters import layer_balance as layer_balance

_NAMES = {
    "groups.batch_checks": ("check_flow", "check_group", "composition_table"),
    "groups.flows": ("rotation_flow", "scale_flow", "translation_flow"),
    "groups.group": ("Action", "DIGITS", "Flow", "Group"),
    "groups.images": (
        "circular_shifts",
        "dihedral",
        "flips",
        "rotations",
        "rotations90",
        "scalings",
        "shifts",
        "subpixel_shifts",
    ),
    "groups.points": (
        "cube_rotations",
        "euclidean",
        "orthogonal",
        "point_rotation_flow",
        "point_translation_flow",
        "translations",
    ),
    "groups.sequences": ("time_shifts",),
    "groups.sets": ("cyclic", "node_permutations", "permutations"),
    "equivariance": ("Equivariance", "fit_equivariance", "group_law"),
    "invariance": ("FeatureInvariance", "PredictionInvariance", "inv_error"),
    "lie": ("LieError", "lie_difference", "lie_jvp"),
    "network_symmetry": ("measure_symmetry",),
    "orbits": ("OrbitMoments", "OrbitReport", "OrbitSpread", "measure_orbits"),
    "parameters": ("RowMeanLaw", "SgdSettings", "chains", "layer_balance"),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}

__all__ = list(_HOME)


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
