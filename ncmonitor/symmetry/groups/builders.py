"""Groups and flows as a user gives them: objects, or the names of those that need no arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ncmonitor.errors import InputError, nearest
from ncmonitor.symmetry.groups import flows as flow_builders
from ncmonitor.symmetry.groups import images, points
from ncmonitor.symmetry.groups.group import DIGITS, Flow, Group

_T = TypeVar("_T", Group, Flow)

#: A group, or its name, or several of these.
Groups = Group | str | Sequence[Group | str]
Flows = Flow | str | Sequence[Flow | str]

_GROUPS: Final[Mapping[str, Callable[[], Group]]] = {
    f.__name__: f
    for f in (
        images.flips, images.rotations90, images.dihedral, images.shifts, images.rotations,
        images.subpixel_shifts, images.scalings, points.cube_rotations, points.orthogonal,
        points.euclidean, points.translations,
    )
}  # fmt: skip
_FLOWS: Final[Mapping[str, Callable[[], Flow]]] = {
    f.__name__: f
    for f in (
        flow_builders.translation_flow, flow_builders.rotation_flow, flow_builders.scale_flow,
        points.point_rotation_flow, points.point_translation_flow,
    )
}  # fmt: skip


def groups_of(
    given: Groups, exclude: Mapping[str, Collection[int]] | None = None
) -> tuple[Group, ...]:
    """Return groups as objects.

    Args:
        given: Objects, or names of builders that need no arguments.
        exclude: Classes whose label an element changes, by the element's name, for every group
            that has it, in place of the groups' own; or :data:`~ncmonitor.symmetry.DIGITS`.

    Raises:
        InputError: If one is neither, if there is none, if one has the identity alone, or if
            ``exclude`` names no element.
    """
    found = _several(given, Group, _GROUPS, "groups")
    if not found:
        raise InputError(f"groups= needs at least one, e.g. groups={next(iter(_GROUPS))!r}")
    for group in found:
        if len(group) < 2:
            raise InputError(f"group {group.name!r} has no element but the identity")
    if exclude is None:
        return found
    if exclude is DIGITS:
        return tuple(group.excluding(DIGITS) for group in found)
    known = [name for group in found for name in group.names]
    for name in exclude:
        if name not in known:
            raise InputError(
                f"exclude= names {name!r}, which is no element of these groups"
                f"{nearest(name, known) or f'; they are {known}'}"
            )
    return tuple(
        group.excluding({name: exclude[name] for name in group.names if name in exclude})
        for group in found
    )


def flows_of(given: Flows) -> tuple[Flow, ...]:
    """Return flows as objects; as :func:`groups_of`."""
    return _several(given, Flow, _FLOWS, "flows")


def _several(
    given: Any, kind: type[_T], builders: Mapping[str, Callable[[], _T]], what: str
) -> tuple[_T, ...]:
    alone = isinstance(given, (str, kind)) or not isinstance(given, Iterable)
    return tuple(_one(each, kind, builders, what) for each in ([given] if alone else given))


def _one(given: Any, kind: type[_T], builders: Mapping[str, Callable[[], _T]], what: str) -> _T:
    if isinstance(given, kind):
        return given
    if isinstance(given, str) and given in builders:
        return builders[given]()
    if isinstance(given, str):
        hint = nearest(given, builders) or f"; the names are {', '.join(builders)}"
        raise InputError(f"{what}= has no {given!r}{hint}")
    called = f", as in {given.__name__}()" if inspect.isfunction(given) else ""
    raise InputError(
        f"{what}= takes {kind.__name__} objects, or names such as {next(iter(builders))!r}, "
        f"got {given!r}{called and f': call it{called}'}"
    )
