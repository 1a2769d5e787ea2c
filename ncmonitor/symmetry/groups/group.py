"""What acts on inputs: one transform, a finite group or set of them, a one-parameter flow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, is_whole, nearest
from ncmonitor.symmetry.groups.group_checks import check_name, checked_classes, checked_table
from ncmonitor.symmetry.groups.parts import checked_parts, on_parts

#: Name of the neutral element, which every group has first.
IDENTITY: Final = "identity"

#: For handwritten digits: the classes that an element turns into the image of another class.
#: A six turned by 180° is a nine, and a six turned by 90° is the very image of a nine turned by
#: 270°: no rotation keeps their labels, nor do the reflections but the left-right one. A two and a
#: five are each other's mirror image, in any position. The classes left under each element are
#: such that no image of the transformed set has two labels. Rotations by other angles are not
#: listed: below some 45° digits keep their labels.
DIGITS: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        **{f"rot{degrees}": frozenset({6, 9}) for degrees in (90, 180, 270, -90, -180, -270)},
        "flip_h": frozenset({2, 5}),
        "flip_v": frozenset({2, 5, 6, 9}),
        "transpose": frozenset({2, 5, 6, 9}),
        "antitranspose": frozenset({2, 5, 6, 9}),
    }
)


def _same(x: Any) -> Any:
    return x


@dataclass(frozen=True, eq=False)
class Action:
    """One named transform of a batch of inputs, called as ``action(x)``.

    Attributes:
        name: As it appears in the names of metrics: no blank, no ``/``.
        function: Maps a batch to a batch of the same shapes and dtypes, each sample by itself. It
            draws no random number and leaves its input as it was; :func:`check_group` looks.
    """

    name: str
    function: Callable[[Any], Any] = field(repr=False)

    def __post_init__(self) -> None:
        check_name("an action", self.name)
        if not callable(self.function):
            raise InputError(
                f"action {self.name!r} needs a function of a batch, got {self.function!r}"
            )

    def __call__(self, x: Any) -> Any:
        """Return the transformed batch."""
        return self.function(x)

    def on(self, *parts: int | str) -> Action:
        """Return the action on these parts of a tuple, list or dict; the rest passes through."""
        return Action(self.name, partial(on_parts, self.function, checked_parts(parts)))


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A finite tuple of actions, the identity first, whether or not it is closed.

    A group of your own, from any function that maps a batch to a batch (:func:`check_group` tells
    whether it is fit, :func:`composition_table` finds the table):

    >>> import torch
    >>> from ncmonitor.symmetry import Action, Group, check_group
    >>> def swap(x):  # the first two channels, exchanged
    ...     return x[:, [1, 0, 2]]
    >>> channels = Group.of("red_green", [Action("swap", swap)], kind="images", exact=True)
    >>> check_group(channels, torch.rand(4, 3, 8, 8))
    >>> channels
    Group('red_green', 2 actions on images, exact, a set)

    Attributes:
        name: As it appears in the names of metrics.
        actions: The identity, then the others.
        kind: What it acts on: ``"images"`` (B, C, H, W), ``"sets"`` (B, n, ...), ``"graphs"``,
            ``"sequences"`` (B, T, ...), ``"points"`` (B, n, d), or a word of yours.
        exact: Whether entries are only moved, negated or filled in, so that nothing is rounded.
        table: ``(n, n)`` int64, ``table[i, j]`` the index of ``g_i∘g_j`` (``g_j`` acts first).
            None where the set is not closed (zero-padded shifts, sampled rotations): averages over
            it are then no averages over a group.
        excluded: Classes whose label an element changes, by the element's name.
        note: Boundary and interpolation, in words.
        drawn: Whether the actions besides the identity were drawn at random from a larger group.
            Of that group, tr Σ_orbit and tr Σ_W, hence ``orbit_share``, are then estimated without
            bias. The class means keep the noise of the draws that all samples share:
            ``orbit_quot``, ``orbit_nc1``, ``between_nc1`` and ``nc1_aug`` are too small where
            orbits scatter much more than classes.
    """

    name: str
    actions: tuple[Action, ...]
    kind: str
    exact: bool = False
    table: Tensor | None = None
    excluded: Mapping[str, frozenset[int]] = field(default_factory=dict)
    note: str = ""
    drawn: bool = False

    def __post_init__(self) -> None:
        check_name("a group", self.name)
        object.__setattr__(self, "actions", tuple(self.actions))
        _check_actions(self.name, self.actions)
        if self.table is not None:
            object.__setattr__(self, "table", checked_table(self.name, self.table, len(self)))
        object.__setattr__(self, "excluded", checked_classes(self.excluded, self.names))

    @classmethod
    def of(cls, name: str, actions: Iterable[Action], *, kind: str, **fields: Any) -> Group:
        """Make a group; the identity is put first unless an action has its name.

        Args:
            name: Of the group.
            actions: The transforms.
            kind: What they act on.
            **fields: ``exact``, ``table``, ``excluded``, ``note``, ``drawn``, as the attributes.
        """
        given = tuple(actions)
        if not any(getattr(action, "name", None) == IDENTITY for action in given):
            given = (Action(IDENTITY, _same), *given)
        return cls(name, given, kind, **fields)

    def __len__(self) -> int:
        return len(self.actions)

    def __iter__(self) -> Iterator[Action]:
        return iter(self.actions)

    def __getitem__(self, element: int | str) -> Action:
        return self.actions[self.index(element)]

    def __repr__(self) -> str:
        what = "exact" if self.exact else "rounded"
        kind = "a set" if self.table is None else "closed"
        return f"Group({self.name!r}, {len(self)} actions on {self.kind}, {what}, {kind})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the actions, in order."""
        return tuple(action.name for action in self.actions)

    @property
    def closed(self) -> bool:
        """Whether the composition of any two actions is one of them."""
        return self.table is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records of the group: plain values."""
        return {
            "name": self.name,
            "elements": list(self.names),
            "kind": self.kind,
            "exact": self.exact,
            "closed": self.closed,
            "drawn": self.drawn,
            "excluded": {name: sorted(classes) for name, classes in self.excluded.items()},
            "note": self.note,
        }

    @property
    def inverses(self) -> Tensor | None:
        """``(n,)`` int64: index of each action's inverse; None where the set is not closed."""
        return None if self.table is None else (self.table == 0).int().argmax(dim=1)

    def index(self, element: int | str) -> int:
        """Return the position of an action, given by name or position."""
        if isinstance(element, str) and element in self.names:
            return self.names.index(element)
        if is_whole(element) and -len(self) <= int(element) < len(self):
            return int(element) % len(self)
        hint = nearest(element, self.names) if isinstance(element, str) else ""
        raise InputError(f"group {self.name!r} has no element {element!r}{hint}")

    def keeps(self, element: int | str, labels: Tensor) -> Tensor:
        """Tell for each sample whether the action leaves its label true.

        Args:
            element: Name or position of the action.
            labels: ``(B,)`` integers.

        Returns:
            ``(B,)`` bool, on the labels' device.
        """
        changed = self.excluded.get(self[element].name, frozenset())
        return ~torch.isin(labels, torch.tensor(sorted(changed), dtype=torch.int64).to(labels))

    def excluding(self, classes: Mapping[str, Collection[int]]) -> Group:
        """Return the group with classes whose label an element changes; metrics leave those out.

        Args:
            classes: Class labels by the element's name; of :data:`DIGITS`, which lists more
                elements than any one group has, those of this group are taken.

        Raises:
            InputError: If a name is no element's, or a class no whole number from 0.
        """
        if classes is DIGITS:
            classes = {name: DIGITS[name] for name in self.names if name in DIGITS}
        return replace(self, excluded=checked_classes(classes, self.names))

    def on(self, *parts: int | str) -> Group:
        """Return the group acting on parts of a batch, as ``group.on(0)`` or ``.on("image")``.

        Several parts are transformed alike (``.on("tokens", "mask")``); the rest passes through.
        """
        return replace(self, actions=tuple(action.on(*parts) for action in self.actions))


@dataclass(frozen=True, eq=False)
class Flow:
    """A one-parameter family of transforms, ``flow(x, t)`` with ``flow(x, 0) = x``.

    ``t`` may be a float or a tensor without dimensions; the flows here can be differentiated in it
    from both sides at t = 0, also by ``torch.func.jvp``.

    Attributes:
        name: As it appears in the names of metrics.
        function: Maps ``(x, t)`` to a batch like ``x``.
        kind: What it acts on, as in :class:`Group`.
        unit: Of t.
        boundary: What lies beyond the border.
        interpolation: How values between the samples are found.
        step: A step for symmetric differences, in units of t: about half a pixel where it counts.
    """

    name: str
    function: Callable[[Any, float | Tensor], Any] = field(repr=False)
    kind: str
    unit: str
    boundary: str
    interpolation: str
    step: float

    def __post_init__(self) -> None:
        check_name("a flow", self.name)

    def __call__(self, x: Any, t: float | Tensor) -> Any:
        """Return the batch moved by t."""
        return self.function(x, t)

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records of the flow: plain values."""
        kept = ("name", "kind", "unit", "boundary", "interpolation", "step")
        return {name: getattr(self, name) for name in kept}

    def on(self, *parts: int | str) -> Flow:
        """Return the flow on these parts of a tuple, list or dict; the rest passes through."""
        return replace(self, function=partial(on_parts, self.function, checked_parts(parts)))


def table_of(keys: Sequence[Hashable], compose: Callable[[Any, Any], Hashable]) -> Tensor | None:
    """Composition table of elements given by keys: ``compose(a, b)`` is the key of ``a∘b``.

    Returns:
        ``(n, n)`` int64, or None if some composition is not among the keys.
    """
    place = {key: index for index, key in enumerate(keys)}
    rows = [[place.get(compose(a, b), -1) for b in keys] for a in keys]
    table = torch.tensor(rows)
    return None if (table < 0).any() else table


def _check_actions(name: str, actions: tuple[Action, ...]) -> None:
    for action in actions:
        if not isinstance(action, Action):
            raise InputError(
                f"group {name!r} needs actions, got {action!r}; write Action('its_name', function)"
            )
    names = [action.name for action in actions]
    twice = sorted({other for other in names if names.count(other) > 1})
    if twice:
        raise InputError(f"group {name!r} has two actions called {twice[0]!r}; names must differ")
    if names[:1] != [IDENTITY]:
        raise InputError(
            f"the first action of group {name!r} must be {IDENTITY!r}, got {names[:1]}; "
            "Group.of puts it there"
        )
