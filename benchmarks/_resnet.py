"""A network with work to do, and clocks for it, on a processor or a CUDA device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._stages import STAGES, StageClock
from benchmarks._worker import say

CLASSES: Final = 10


class ResNet(pl.LightningModule):
    """ResNet-18 with the stem for small images: 3x3 without stride, no pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=CLASSES)
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def images(count: int) -> TensorDataset:
    """Give each class a mean image, and each image noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    means = torch.randn(CLASSES, 3, 32, 32, generator=generator)
    return TensorDataset(means[labels] + torch.randn(count, 3, 32, 32, generator=generator), labels)


def bare_pass(trainer: pl.Trainer, module: pl.LightningModule, loader: DataLoader[Any]) -> None:
    """Run the network, in the trainer's precision, and do nothing with what it gives."""
    module.eval()
    with torch.no_grad():
        for inputs, _ in loader:
            with trainer.precision_plugin.forward_context():
                module(inputs.to(module.device))
    module.train()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Seconds(NamedTuple):
    """What a call took.

    Attributes:
        wall: By the clock.
        processor: Of all threads, the device's driver included; other programs lengthen it less.
    """

    wall: float
    processor: float


def timed(device: torch.device, call: Callable[..., object], *arguments: Any) -> Seconds:
    """Time a call, up to the end of what it has started on the device."""
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    call(*arguments)
    synchronize(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


class DeviceStageClock(StageClock):
    """Clocks what the stages do on the device, too, at the price of waiting for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @contextlib.contextmanager
    def _counting(self, stage: str) -> Iterator[None]:
        synchronize(self._device)
        with super()._counting(stage):
            yield
            synchronize(self._device)


def stage_shares(module: pl.LightningModule, measure: Callable[[], object]) -> dict[str, float]:
    """Measure once and return the share of each stage, ``nan`` for one that has been renamed."""
    started, forward = 0.0, 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        synchronize(module.device)
        started = time.perf_counter()

    def end(*_: Any) -> None:
        nonlocal forward
        synchronize(module.device)
        forward += time.perf_counter() - started

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        with DeviceStageClock(module.device) as clock:
            total = timed(module.device, measure).wall
    finally:
        for handle in handles:
            handle.remove()
    if clock.missing:
        say(f"renamed, see STAGES in benchmarks/_stages.py: {', '.join(clock.missing)}")
    known = clock.shares(total)
    shares = {"forward": forward / total} | {each: known.get(each, float("nan")) for each in STAGES}
    return shares | {"rest": 1 - sum(shares.values())}
