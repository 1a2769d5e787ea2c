"""Accelerators: nothing waits for the device while batches stream past."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agreement import assert_agree, fast
from cases import BY_NAME
from ncmonitor.inputs import tensors
from ncmonitor.inputs.tensors import home
from ncmonitor.measurement.evaluation import Evaluation
from ncmonitor.measurement.settings import Settings
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.passes import FirstPass

aten = torch.ops.aten
#: Each hands a number, or a size that depends on numbers, from the device to the host.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
}


class Waits(TorchDispatchMode):
    """Notes every operation for which the host would wait on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func is aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITING or masks:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "waits_for_nothing", lambda device: False)


def test_the_detector_detects() -> None:
    x = torch.arange(4)
    with Waits() as waits:
        _ = x.sum().item(), x[x > 1], (x > 2).nonzero(), bool((x > 0).all())
    assert len(waits.seen) == 4


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("metrics", ["default", "all"])
def test_no_batch_of_either_look_waits_for_the_device(metrics: str) -> None:
    case = BY_NAME["imbalanced"]
    labels = case.labels.clone()
    labels[::9] = -100
    first = FirstPass(10, Classifier(case.weight, case.bias))
    batches = list(zip(case.features.split(100), labels.split(100), strict=True))
    entries = [first.update(*batches[0])]  # what is set up once may wait
    with Waits() as waits:
        entries += [first.update(*batch) for batch in batches[1:]]
    assert waits.seen == []
    settings = Settings.of(metrics)
    second = Evaluation(first, None, settings).second
    second.update(*entries[0])
    with Waits() as waits:
        for entry in entries[1:]:
            second.update(*entry)
    assert waits.seen == []


def test_sums_live_where_float64_does() -> None:
    assert home(torch.device("mps")) == torch.device("cpu")
    for device in ("cpu", "cuda", "cuda:1"):
        assert home(torch.device(device)) == torch.device(device)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_accelerator_gives_the_numbers_of_the_cpu(device: str) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        pytest.skip(f"no {device} here")
    case = BY_NAME["offset_1e-05"]
    assert case.weight is not None
    assert case.bias is not None
    moved = fast(
        case,
        features=case.features.to(device),
        labels=case.labels.to(device),
        weight=case.weight.to(device),
        bias=case.bias.to(device),
        metrics="all",
    )
    assert_agree(moved, fast(case, metrics="all"), rtol=1e-5)
