"""One measurement of how a trainer's network answers to groups, at the current weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from ncmonitor._checks import InputError
from ncmonitor._tensors import as_tensor
from ncmonitor.callbacks.clean_pass import CleanPass, renew_weight
from ncmonitor.callbacks.measurement import Measurement
from ncmonitor.callbacks.progress import measuring
from ncmonitor.callbacks.sources import Source, is_dry_run, length_of
from ncmonitor.ranks import ALONE
from ncmonitor.symmetry.answers import Answers, Values, check_answer
from ncmonitor.symmetry.checks import check_group
from ncmonitor.symmetry.groups import Action, Flow, Group

_SIDES: Final = {"ahead": 1, "back": -1}

#: Layer, group and values.
Found = list[tuple[str, str, Values]]


@dataclass
class SymmetryMeasurement(Measurement):
    """Runs the network on transformed inputs as ``Measurement`` runs it on the inputs.

    Attributes:
        groups: That act on the inputs.
        flows: Likewise.
    """

    groups: tuple[Group, ...] = ()
    flows: tuple[Flow, ...] = ()

    def answers(self) -> Answers:
        """Return a collection of answers without any yet."""
        return Answers(self.groups, self.flows, self.options.settings.ignore_index)

    def _probe(self, loader: Any) -> None:
        super()._probe(loader)
        samples = self.options.samples
        # A dry run need not have every class.
        if samples is not None and samples < self.num_classes and not is_dry_run(self.trainer):
            raise InputError(
                f"samples={samples} are fewer than the {self.num_classes} classes, each of which "
                "has to occur: take a hundred for each class, say"
            )
        with self._prepared(), self._tap() as tap:
            reading = self._pass(loader, tap)
            inputs, labels = next(iter(reading.batches()))
            for group in (*self.groups, *map(_as_group, self.flows)):
                check_group(group, inputs)
            self._try(reading, inputs, labels)

    def _try(self, reading: CleanPass, inputs: Any, labels: Any) -> None:
        for group, element, given in self.answers().transformed(inputs):
            try:
                check_answer(reading.run(given), as_tensor(labels), group, element)
            except (InputError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise InputError(
                    f"the network rejects inputs under {element!r} of {group!r}, though of the "
                    f"same shape and dtype: {type(error).__name__}: {error}. Leave the group out, "
                    "or let it act on the part of the inputs it is meant for, as in group.on(0)"
                ) from error

    def measure_groups(self, source: Source, share: float | None = None) -> Found:
        """Measure a split and return its numbers, the same on every rank.

        Args:
            source: One of :meth:`sources`.
            share: Expected share of the fit's time, for the progress bar.

        Raises:
            MeasurementError: If there is no sample, or a feature is not finite.
        """

        def work() -> Answers:
            with self.ranks.together():  # reads the user's loader
                loader = source(self.batch_size, self.ranks)
            return self._answered(loader, share)

        own = self._while_it_fits(work, lambda: source(None, ALONE))
        with self.ranks.together():
            whole = own.joined(self.ranks.gather(own))
            return list(whole.values(self.num_classes))

    def _answered(self, loader: Any, share: float | None) -> Answers:
        answers, most = self.answers(), self.options.samples
        most = None if most is None else math.ceil(most / self.ranks.size)
        with (
            self._prepared(),
            self._tap() as tap,
            measuring(self.trainer, length_of(loader), share) as advance,
            self.ranks.together(),
        ):
            renew_weight(self.head)
            reading = self._pass(loader, tap)
            for inputs, labels in reading.batches():
                left = None if most is None else most - len(answers)
                answers.add(reading.run, inputs, as_tensor(labels), left)
                advance()
                if left is not None and len(answers) >= (most or 0):
                    break
        return answers


def _as_group(flow: Flow) -> Group:
    """Return the two transforms that a symmetric difference needs, to be tried as a group is."""
    actions = [Action(side, partial(_moved, flow, sign)) for side, sign in _SIDES.items()]
    return Group.of(flow.name, actions, kind=flow.kind)


def _moved(flow: Flow, sign: int, x: Any) -> Any:
    return flow(x, sign * flow.step)
