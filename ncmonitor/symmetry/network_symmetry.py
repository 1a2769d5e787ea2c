"""Measure how a network answers to groups that act on its inputs, without any trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ncmonitor.errors import InputError
from ncmonitor.features.kept_model import KeptModel
from ncmonitor.features.pooling import Reduce
from ncmonitor.features.tap import FeatureTap, Layer
from ncmonitor.inputs.tensors import as_tensor
from ncmonitor.symmetry.groups.batch_checks import check_flow, check_group
from ncmonitor.symmetry.groups.builders import Flows, Groups, flows_of, groups_of
from ncmonitor.symmetry.rows import NUMBERS
from ncmonitor.symmetry.transformed_outputs import TransformedOutputs

if TYPE_CHECKING:
    import pandas as pd


def measure_symmetry(
    network: nn.Module,
    batches: Iterable[Sequence[Any]],
    groups: Groups,
    *,
    flows: Flows = (),
    classifier: Layer | None = None,
    layers: Layer | Sequence[Layer] = (),
    reduce: Reduce = "gap",
) -> pd.DataFrame:
    """Run a network on transformed inputs, in eval mode without gradients, and measure.

    One forward pass for each element, two for each flow; the features of all of them are kept on
    the host until the end.

    Args:
        network: Any module that is called with the inputs; it is left as it was.
        batches: ``(inputs, labels)`` with labels ``(B,)``, on the network's device.
        groups: A group, its name in :mod:`ncmonitor.symmetry` if it needs no arguments, or several.
        flows: The same of flows.
        classifier: As in :class:`~ncmonitor.features.tap.FeatureTap`.
        layers: Inner layers to measure too, likewise.
        reduce: From a layer's map to features, likewise.

    Returns:
        One row per layer, group and element: columns ``layer`` (``""`` for the classifier's
        input), ``group`` (``"plain"``: the samples as they are), ``element`` (``""``: the whole
        group), then the numbers, ``nan`` where they do not apply or are undefined.

    Raises:
        InputError: If a group does not fit the inputs, or the network not the task.
        MeasurementError: If a feature is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ncmonitor.symmetry import measure_symmetry
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> batch = torch.rand(8, 3, 6, 6), torch.arange(8) % 2
        >>> table = measure_symmetry(net, [batch], "rotations90").set_index(["group", "element"])
        >>> float(table["inv_error"]["rotations90", ""]) < 1e-9
        True
    """
    import pandas as pd

    answers = TransformedOutputs(groups_of(groups), flows_of(flows))
    kept, classes = KeptModel(network), 0
    try:
        kept.evaluate()
        with torch.no_grad(), FeatureTap(network, classifier, layers=layers, reduce=reduce) as tap:
            for number, (inputs, labels) in enumerate(batches):
                if number == 0:
                    _check(answers, inputs)
                answers.add(lambda x: tap.take(network(x)), inputs, as_tensor(labels))
            if not len(answers):
                raise InputError("batches= gave no sample: expected (inputs, labels)")
            classes = len(tap.weight)
    finally:
        kept.restore()
    rows = [
        {"layer": layer, "group": group, "element": element, **numbers}
        for layer, group, values in answers.values(classes)
        for element, numbers in values.items()
    ]
    return pd.DataFrame(rows).reindex(columns=["layer", "group", "element", *NUMBERS])


def _check(answers: TransformedOutputs, inputs: Any) -> None:
    for group in answers.groups:
        check_group(group, inputs)
    for flow in answers.flows:
        check_flow(flow, inputs)
