"""What a network gives for the same samples under groups and flows, and the numbers of it.

Batch by batch every element of every group acts on the inputs and the network runs on the result:
one forward pass for each element beside the identity, two for each flow, and one for the inputs as
they are, which all share. What comes out is kept until the end, on the host: the samples are few.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.features.tap import Activations
from ncmonitor.inputs.conventions import IGNORE_INDEX
from ncmonitor.symmetry.group_numbers import Values, flow_value, group_values, nothing, plain_values
from ncmonitor.symmetry.groups.group import Flow, Group
from ncmonitor.symmetry.rows import PARAMETERS, PLAIN

#: A forward pass: from inputs to what it left at the classifier and the inner layers.
Run = Callable[[Any], Activations]

#: Why nothing can be said about classes.
ONE_CLASS: Final = "the samples hold one class, and collapse is of two or more"

_FLOW: Final = ("ahead", "back")
_LOGITS: Final = None  # in place of a layer's name


class TransformedOutputs:
    """Features and logits of the same samples under every element of some groups and flows.

    Args:
        groups: Whose names differ.
        flows: Moved by their own step ahead and back.
        ignore_index: Samples with this label are left out.

    Attributes:
        reasons: Why numbers are ``nan``, by what they are of; filled by :meth:`values`.

    Raises:
        InputError: If two have one name, or one has a name that stands for something else.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        flows: Sequence[Flow] = (),
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        self.groups, self.flows, self.ignore_index = tuple(groups), tuple(flows), ignore_index
        names = [group.name for group in self.groups] + [flow.name for flow in self.flows]
        for name in names:
            if names.count(name) > 1 or name in (PLAIN, PARAMETERS):
                why = "twice" if names.count(name) > 1 else "for something else"
                raise InputError(
                    f"the name {name!r} is there {why}: every group and flow needs one of its own, "
                    "e.g. dataclasses.replace(group, name='shifts2')"
                )
        self.reasons: dict[str, str] = {}
        # By group, element and layer: a list of batches.
        self._kept: dict[tuple[str, str], dict[str | None, list[Tensor]]] = {}
        self._labels: list[Tensor] = []

    @property
    def forwards(self) -> int:
        """Forward passes for one batch."""
        return 1 + sum(len(group) - 1 for group in self.groups) + 2 * len(self.flows)

    def __len__(self) -> int:
        """Return the number of samples so far."""
        return sum(map(len, self._labels))

    def add(self, run: Run, inputs: Any, labels: Tensor, most: int | None = None) -> None:
        """Run the network on a batch under every element and keep what it gives.

        Args:
            run: The network.
            inputs: As the actions take them, and as the network does.
            labels: ``(B,)`` integers.
            most: Keep so many of the samples, the first ones.

        Raises:
            InputError: If there is not one label for each sample, or an element breaks the batch.
        """
        kept = (labels.flatten() != self.ignore_index).nonzero()[:most, 0].cpu()
        for group, element, given in self.transformed(inputs):
            activations = run(given)
            check_answer(activations, labels, group, element)
            place = self._kept.setdefault((group, element), {})
            found = [
                (_LOGITS, activations.logits),
                ("", activations.features),
                *activations.layers.items(),
            ]
            for layer, rows in found:
                place.setdefault(layer, []).append(rows.cpu()[kept].flatten(1))
        self._labels.append(labels.cpu()[kept].long())

    def transformed(self, inputs: Any) -> Iterator[tuple[str, str, Any]]:
        """Yield the group's and the element's name and the inputs under it, one by one."""

        def own() -> Any:  # the network may write on what it is given
            return copy.deepcopy(inputs)

        yield PLAIN, "", own()
        for group in self.groups:
            for action in group.actions[1:]:
                yield group.name, action.name, action(own())
        for flow in self.flows:
            for side, sign in zip(_FLOW, (1, -1), strict=True):
                yield flow.name, side, flow(own(), sign * flow.step)

    def joined(self, shares: Sequence[TransformedOutputs]) -> TransformedOutputs:
        """Return the answers of several processes, in their order, as those of one."""
        whole = TransformedOutputs(self.groups, self.flows, self.ignore_index)
        for share in shares:
            whole._labels += share._labels
            for place, layers in share._kept.items():
                for layer, batches in layers.items():
                    whole._kept.setdefault(place, {}).setdefault(layer, []).extend(batches)
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the groups, whose functions need not be picklable: each process has its own."""
        return {**vars(self), "groups": (), "flows": ()}

    def values(self, num_classes: int) -> Iterator[tuple[str, str, Values]]:
        """Compute the numbers, layer by layer.

        Args:
            num_classes: K.

        Yields:
            The layer (``""``: the classifier's input), the group's name, its values.

        Raises:
            MeasurementError: If a feature is not finite.
        """
        labels = torch.cat(self._labels) if self._labels else torch.zeros(0, dtype=torch.int64)
        if not len(labels):
            raise MeasurementError("there is no labelled sample to transform")
        if bool((labels == labels[0]).all()):
            self.reasons["nc1"] = ONE_CLASS
        plain = self._whole(PLAIN, "")
        for layer, features in plain.items():
            if layer is _LOGITS:
                continue
            logits = None if layer else plain[_LOGITS]
            yield layer, PLAIN, {"": plain_values(features, logits, labels, num_classes)}
            for group in self.groups:
                stack = self._stack(group, layer, features)
                scores = None if layer else self._stack(group, _LOGITS, plain[_LOGITS])
                values, reason = group_values(group, stack, scores, labels, num_classes)
                if reason is not None:
                    self.reasons[f"equiv_r2 of {group.name}{layer and f' at {layer}'}"] = reason
                yield layer, group.name, values
            for flow in self.flows:
                yield layer, flow.name, {"": self._flow_values(flow, layer, plain)}

    def nothing(self, layers: Sequence[str]) -> Iterator[tuple[str, str, Values]]:
        """Yield what :meth:`values` would, all of it ``nan``."""
        for layer in layers:
            for each in (None, *self.groups, *self.flows):
                name = PLAIN if each is None else each.name
                yield layer, name, nothing(each, logits=not layer)

    def _whole(self, group: str, element: str) -> dict[str | None, Tensor]:
        return {layer: torch.cat(rows) for layer, rows in self._kept[group, element].items()}

    def _stack(self, group: Group, layer: str | None, plain: Tensor) -> Tensor:
        moved = [self._kept[group.name, name][layer] for name in group.names[1:]]
        return torch.stack([plain, *(torch.cat(batches) for batches in moved)])

    def _flow_values(
        self, flow: Flow, layer: str, plain: dict[str | None, Tensor]
    ) -> dict[str, float]:
        ahead, back = (self._whole(flow.name, side) for side in _FLOW)
        asked: dict[str, str | None] = {"lie_error": layer}
        asked |= {} if layer else {"lie_error_logits": _LOGITS}
        return {
            name: flow_value(flow, ahead[what], back[what], plain[what], centre=what is _LOGITS)
            for name, what in asked.items()
        }


def check_answer(activations: Activations, labels: Tensor, group: str, element: str) -> None:
    """Raise :class:`InputError` unless there is one feature vector and one label per sample."""
    rows = activations.features.shape[0]
    if labels.ndim != 1 or rows != len(labels) or activations.features.ndim != 2:
        what = f"under {element!r} of {group!r} " * bool(element)
        raise InputError(
            f"symmetry is measured of one label and one feature vector for each sample: {what}the "
            f"network gives features {tuple(activations.features.shape)} for labels "
            f"{tuple(labels.shape)}"
        )
