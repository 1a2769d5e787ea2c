"""One measurement of how a trainer's network answers to groups, at the current weights."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from ncmonitor.callbacks.trainer_measurement import Measurement
from ncmonitor.callbacks.trainers.clean_pass import CleanPass, renew_weight
from ncmonitor.callbacks.trainers.progress import measuring
from ncmonitor.callbacks.trainers.sources import Source, is_dry_run, length_of
from ncmonitor.errors import InputError
from ncmonitor.inputs.tensors import as_tensor
from ncmonitor.statistics.process_group import SINGLE_PROCESS
from ncmonitor.symmetry.group_numbers import Values
from ncmonitor.symmetry.groups.batch_checks import check_flow, check_group
from ncmonitor.symmetry.groups.group import Flow, Group
from ncmonitor.symmetry.transformed_outputs import TransformedOutputs, check_answer

_MUCH: Final = 8 * 2**30  # bytes of host memory that a measurement should not take unannounced

#: Layer, group and values.
Found = list[tuple[str, str, Values]]


@dataclass
class SymmetryMeasurement(Measurement):
    """Runs the network on transformed inputs as ``Measurement`` runs it on the inputs.

    Attributes:
        groups: That act on the inputs.
        flows: Likewise.
        reasons: Why numbers of the last measurement are ``nan``, by what they are of.
    """

    groups: tuple[Group, ...] = ()
    flows: tuple[Flow, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict, init=False)

    def answers(self) -> TransformedOutputs:
        """Return a collection of answers without any yet."""
        return TransformedOutputs(self.groups, self.flows, self.options.settings.ignore_index)

    def probe(self) -> None:
        """Find the classifier, then try the groups, on one training batch.

        Raises:
            InputError: With what to pass instead.
        """
        super().probe()
        self._check_classes_of_groups()
        self._try(self._probe_groups)  # in its own turn: ranks must not wait for different things

    def _check_classes_of_groups(self) -> None:
        samples, count = self.options.samples, self.num_classes
        # A dry run need not have every class.
        if samples is not None and samples < count and not is_dry_run(self.trainer):
            raise InputError(
                f"samples={samples} are fewer than the {count} classes, each of which has to "
                "occur: take a hundred for each class, say"
            )
        for group in self.groups:
            for element, classes in group.excluded.items():
                if max(classes, default=0) >= count:
                    raise InputError(
                        f"exclude= leaves class {max(classes)} out under {element!r}, but the "
                        f"classifier has the classes 0 to {count - 1}"
                    )

    def _probe_groups(self, loader: Any) -> None:
        with self._prepared(), self._tap() as tap:
            reading = self._pass(loader, tap)
            inputs, labels = next(iter(reading.batches()))
            for group in self.groups:
                check_group(group, inputs)
            for flow in self.flows:
                check_flow(flow, inputs)
            sizes = self._run_all(reading, inputs, labels)
        self._warn_of_memory(sizes)

    def _run_all(self, reading: CleanPass, inputs: Any, labels: Any) -> int:
        """Run the network under everything; return the bytes that a sample's answers take."""
        count = 0
        for group, element, given in self.answers().transformed(inputs):
            try:
                activations = reading.run(given)
                check_answer(activations, as_tensor(labels), group, element)
            except (InputError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise InputError(
                    f"the network rejects inputs under {element!r} of {group!r}, though of the "
                    f"same shape and dtype: {type(error).__name__}: {error}. Leave the group out, "
                    "or let it act on the part of the inputs it is meant for, as in group.on(0)"
                ) from error
            kept = (activations.features, activations.logits, *activations.layers.values())
            count += sum(each.numel() * each.element_size() for each in kept)
        return count // max(1, len(as_tensor(labels)))

    def _warn_of_memory(self, bytes_per_sample: int) -> None:
        samples, ranks = self.options.samples, self.ranks.size
        if samples is None or not self.trainer.is_global_zero:
            return
        needed = 2 * bytes_per_sample * samples * ranks  # kept, and stacked; on each rank
        if needed > _MUCH:
            warnings.warn(
                f"SymmetryMonitor keeps what {self.answers().forwards} passes over {samples} "
                f"samples give, about {needed / 2**30:.0f} GiB of host memory: fewer samples=, "
                "elements or layers= need less",
                stacklevel=2,
            )

    def measure_groups(self, source: Source, share: float | None = None) -> Found:
        """Measure a split and return its numbers, the same on every rank.

        Args:
            source: One of :meth:`sources`.
            share: Expected share of the fit's time, for the progress bar.

        Raises:
            MeasurementError: If there is no sample, or a feature is not finite.
        """

        def work() -> TransformedOutputs:
            with self.ranks.together():  # reads the user's loader
                loader = source(self.batch_size, self.ranks)
            return self._answered(loader, share)

        own = self._while_it_fits(work, lambda: source(None, SINGLE_PROCESS))
        with self.ranks.together():
            whole = own.joined(self.ranks.gather(own))
            found = list(whole.values(self.num_classes))
            self.reasons = whole.reasons
            return found

    def nothing(self) -> Found:
        """Return what a measurement would, without numbers."""
        return list(self.answers().nothing(("", *self.layers)))

    def _answered(self, loader: Any, share: float | None) -> TransformedOutputs:
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
