"""Features and logits of a known head, batch by batch, compared with what the model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.features.heads.head import (
    Call,
    GivenHead,
    Head,
    ProbedHead,
    linear_misfit,
    slack_of,
    two_logits,
    version,
)
from ncmonitor.features.heads.interventions import Place, trial
from ncmonitor.features.heads.links import Arrangement, Link, candidates

Again = Callable[[], Any]

_ROWS = 8  # of each batch, for which the weight is compared with the output


class HeadReader:
    """Reads what a head has taken and given in one measurement.

    Args:
        head: The head.
        model: The model it is part of.
    """

    def __init__(self, head: Head, model: nn.Module) -> None:
        self.head, self._model = head, model
        self._link = head.link
        self._renewed = False
        self._worst: Tensor | None = None
        self._probed: tuple[Tensor, Tensor | None] | None = None
        self._lengths: tuple[tuple[int, int | None], Tensor] | None = None

    def linear(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias as they are now; of a probed head as of the first call."""
        if not isinstance(self.head, ProbedHead):
            return self.head.linear()
        if self._probed is None:
            self._probed = self.head.linear()
        return self._probed

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with a row for each class; of one logit z for ``-z/2, z/2``."""
        weight, bias = self.linear()
        if self._link is None:
            return weight, bias
        weight, bias = self._link.folded(weight, bias)
        if len(weight) > 1:
            return weight, bias
        halves = None if bias is None else torch.cat([-bias, bias]) / 2
        return torch.cat([-weight, weight]) / 2, halves

    def read(
        self, call: Call, output: Any = None, again: Again | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features and logits of a call of the head.

        Args:
            call: The call.
            output: What the model returned; ``None``: nothing to compare with.
            again: Runs the model on the same batch once more, where positions are in doubt.
        """
        head, link = self.head, self._link
        features, made = head.read(call)
        if link is None or output is None:
            if link is not None and link.arrangement.chosen:
                raise InputError(
                    f"the model returns one position of what the classifier {head.name!r} gives, "
                    "and which one is not known here: run the model itself"
                )
            made = made if link is None else made[..., : link.arrangement.classes]
            return self._flat(features), self._flat(self._two(made))
        returned = self._returned(output)
        if isinstance(head, GivenHead) and head.returns_features:
            return self._features_returned(head, link, features, made, returned)
        weight, bias = self.linear()
        computed = isinstance(head, GivenHead)  # by W h + b itself, which rounds differently
        slack, rows = slack_of(features, weight) if computed else None, None
        if not self._renewed:
            self._link, self._renewed = link.renewed(made, returned, slack), True
            link = self._link
        if link.arrangement.chosen:
            rows = self._chosen(link, made, returned, slack, again)
        size = slack if slack is None or rows is None else slack[rows]
        self._note(link.worst(made, returned, rows, size))
        if not computed:
            self._note(self._misfit(features, made, weight, bias))
        lead = link.lead(returned)
        features, made = (
            each.reshape(-1, each.shape[-1]) if rows is None else each.flatten(0, -2)[rows]
            for each in (features, made)
        )
        logits = made[:, : link.arrangement.classes] if link.own else link.returned_rows(returned)
        logits = self._two(logits)
        return features.view(*lead, -1), logits.detach().reshape(*lead, -1)

    def check(self) -> None:
        """Say whether what the model returned has been what its head gives.

        Raises:
            MeasurementError: If not, in any batch since the last check.
        """
        worst, self._worst = self._worst, None
        if worst is not None and not bool(worst <= 1):
            raise MeasurementError(
                f"what the model returns is not made by its classifier {self.head.described!r} "
                "alone, as it was when the classifier was found, so the numbers would not be those "
                "of the model. Another head, an adapter or a changing factor may stand between. "
                "Pass classifier= what makes the logits, or forward= a function that returns the "
                "logits of one head"
            )

    # -- parts -------------------------------------------------------------------------------------

    def _misfit(
        self, features: Tensor, made: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return how far ``W h + b`` is from the output on some rows, in units of rounding."""
        rows = made.shape[:-1].numel()
        places = torch.linspace(0, rows - 1, min(_ROWS, rows)).long().to(made.device)
        features, made = (each.reshape(rows, -1)[places] for each in (features, made))
        return linear_misfit(features, made, weight, bias, self._row_lengths(weight))

    def _row_lengths(self, weight: Tensor) -> Tensor:
        """Return the lengths of the weight's rows, computed anew if it has been written to."""
        state = (weight.data_ptr(), version(weight))
        if self._lengths is None or self._lengths[0] != state or state[1] is None:
            self._lengths = (state, weight.float().norm(dim=1))
        return self._lengths[1]

    def _returned(self, output: Any) -> Tensor:
        found = candidates(output)
        if len(found) <= self.head.place:
            raise InputError(
                f"the model returned {len(found)} tensors that may be logits, where it returned at "
                f"least {self.head.place + 1} before: it must return the same for every batch"
            )
        return found[self.head.place]

    def _note(self, worst: Tensor) -> None:
        self._worst = worst if self._worst is None else torch.maximum(self._worst, worst)

    def _two(self, logits: Tensor) -> Tensor:
        return two_logits(logits) if self.head.one_logit else logits

    def _flat(self, tensor: Tensor) -> Tensor:
        """Return a map of one position without its axes, as a 1x1 convolution after pooling has."""
        single = self.head.channels_first and tensor.shape[1:-1].numel() == 1
        return tensor.flatten(1) if single else tensor

    def _features_returned(
        self, head: GivenHead, link: Link, features: Tensor, made: Tensor, returned: Tensor
    ) -> tuple[Tensor, Tensor]:
        arrangement = Arrangement(link.arrangement.axis, features.shape[-1], chosen=False)
        self._note(Link(arrangement, "identity").worst(features, returned))
        lead = link.lead(returned)
        return features.reshape(*lead, -1), made.reshape(*lead, -1)

    def _chosen(
        self,
        link: Link,
        made: Tensor,
        returned: Tensor,
        slack: Tensor | None,
        again: Again | None,
    ) -> Tensor:
        """Return which row of each sample the model returned; equal rows are told by noise."""
        rows, sure = link.chosen_rows(made, returned, slack)
        if sure or again is None:
            return rows
        head = self.head
        output = head.output if isinstance(head, GivenHead) else True
        scale = 1.0 if isinstance(head, GivenHead) else None
        done = trial(again, Place(head.module, output, scale), seed=5)
        noise = done.noise.movedim(1, -1) if head.channels_first else done.noise
        if isinstance(head, GivenHead):
            noise = head.logits(head.used(noise))
        return link.chosen_rows(noise, done.returned[head.place], None)[0]
