"""What the callback costs on a network with work to do: ResNet-18 on images of 3x32x32.

    python -m benchmarks.callback [--images 2000] [--batch 128] [--device auto] [--only pass|online]

Everything is timed inside one process and in turn, so that a change of the machine's speed hits
both sides of a ratio. A measurement is the callback's whole hook at the end of an epoch, files and
logging included. It stands between two bare passes: the same network in eval mode under
``no_grad`` over the same data, nothing else. Online mode listens to every other training step.
On a CUDA device everything is done again with bf16-mixed, and clocks wait for the device.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._machine import OthersClock, machine
from benchmarks._resnet import ResNet, Seconds, bare_pass, images, stage_shares, synchronize, timed
from benchmarks._worker import say
from ncmonitor.callbacks import NeuralCollapse

PASS_BUDGET, ONLINE_BUDGET = 1.05, 1.02  # at most, on two cores
WARM_UP: Final = 4  # training steps: two of each kind


class Paired(NeuralCollapse):
    """Times its own measurement between two bare passes; the last one by stages instead."""

    def __init__(self, loader: DataLoader[Any], folder: str) -> None:
        super().__init__(run_dir=folder, splits=("train",), verbose=False)
        self.loader = loader
        self.bare: list[tuple[Seconds, Seconds]] = []
        self.measured: list[Seconds] = []
        self.shares: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measure, device = super().on_train_epoch_end, pl_module.device
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.shares = stage_shares(pl_module, lambda: measure(trainer, pl_module))
            return
        before = timed(device, bare_pass, trainer, pl_module, self.loader)
        self.measured.append(timed(device, measure, trainer, pl_module))
        after = timed(device, bare_pass, trainer, pl_module, self.loader)
        self.bare.append((before, after))
        seconds = f"bare {before.wall:.3g} s, measured {self.measured[-1].wall:.3g} s"
        say(f"pair {len(self.bare)}: {seconds}")


class EveryOther(NeuralCollapse):
    """Online mode in every other training step, with a clock around each step; no exact passes."""

    def __init__(self, folder: str) -> None:
        options: dict[str, Any] = {"online": True}
        super().__init__(run_dir=folder, splits=("train",), verbose=False, **options)
        self.steps: dict[bool, list[Seconds]] = {False: [], True: []}  # by whether it listens
        self.reports: list[float] = []
        self.listens = False

    def should_measure(self, epoch: int, trainer: pl.Trainer) -> bool:
        return False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        synchronize(pl_module.device)
        self._started = Seconds(time.perf_counter(), time.process_time())
        if trainer.global_step % 2:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self.listens |= bool(pl_module.net.fc._forward_hooks)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        listening = trainer.global_step % 2 == 0  # the step has been counted by now
        if listening:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        synchronize(pl_module.device)
        if trainer.global_step > WARM_UP:
            wall = time.perf_counter() - self._started.wall
            self.steps[listening].append(
                Seconds(wall, time.process_time() - self._started.processor)
            )
            if pl_module.device.type == "cpu":
                say(f"step {trainer.global_step}: {wall:.3g} s")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        report = super().on_train_epoch_end
        self.reports.append(timed(pl_module.device, report, trainer, pl_module).wall)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        return  # it would measure exactly


def fit(monitor: pl.Callback, loader: DataLoader[Any], device: str, **options: Any) -> None:
    """Train under a monitor that takes its own times."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(ResNet(), loader)


def show_pass(data: TensorDataset, batch: int, pairs: int, device: str, precision: str) -> None:
    """Print what a measurement costs, in bare passes, and where its time goes."""
    others = OthersClock()
    with tempfile.TemporaryDirectory() as folder:
        monitor = Paired(DataLoader(data, batch), folder)
        loader = DataLoader(data, batch, shuffle=True)
        epochs = {"max_epochs": pairs + 1, "limit_train_batches": 1}
        fit(monitor, loader, device, precision=precision, **epochs)
    for clock in Seconds._fields[: 2 if device == "cpu" else 1]:
        bare = [[getattr(each, clock) for each in pair] for pair in monitor.bare]
        measured = [getattr(each, clock) for each in monitor.measured]
        ratios = [m / statistics.mean(pair) for m, pair in zip(measured, bare, strict=True)]
        ratio_line(f"measurement / bare pass ({clock})", ratios, PASS_BUDGET)
        ratio_line(f"bare / bare pass, the noise ({clock})", [two / one for one, two in bare])
        print(
            f"{clock} seconds: measurement {statistics.median(measured):.4g}, "
            f"bare {statistics.median(each for pair in bare for each in pair):.4g}"
        )
    print(busy(others))
    print("where it goes: " + ", ".join(f"{k} {v:.1%}" for k, v in monitor.shares.items()))


def show_online(data: TensorDataset, batch: int, steps: int, device: str, precision: str) -> None:
    """Print what online mode adds to an epoch over the images: to its steps, and at its end."""
    if "online" not in inspect.signature(NeuralCollapse.__init__).parameters:
        print("online epoch / epoch: not timed, this NeuralCollapse has no online mode")
        return
    others, loader = OthersClock(), DataLoader(data, batch, shuffle=True, drop_last=True)
    say(f"{steps} training steps")
    with tempfile.TemporaryDirectory() as folder:
        monitor = EveryOther(folder)
        length: dict[str, Any] = {"max_epochs": -1, "max_steps": steps}
        fit(monitor, loader, device, precision=precision, limit_train_batches=steps, **length)
    if not monitor.listens:
        sys.exit("online mode put no hook on the classifier: its hooks are no longer those here")
    report = statistics.median(monitor.reports)
    for clock in Seconds._fields[: 2 if device == "cpu" else 1]:
        plain, listening = (
            [getattr(step, clock) for step in monitor.steps[heard]] for heard in (False, True)
        )
        share = report / (len(loader) * statistics.median(plain))
        # Each between two plain steps: the machine's speed drifts.
        pairs = [
            on / statistics.mean(around) + share
            for on, around in zip(listening, pairwise(plain), strict=False)
        ]
        ratio_line(f"online / plain epoch ({clock})", pairs, ONLINE_BUDGET)
        noise = [two / one for one, two in pairwise(plain)]
        ratio_line(f"plain / plain, the noise ({clock})", noise)
        print(
            f"{clock} seconds: plain step {statistics.median(plain):.4g}, report at the end of an "
            f"epoch of {len(loader)} steps {report:.4g} ({share:.1%})"
        )
    print(busy(others))


def ratio_line(name: str, ratios: Sequence[float], budget: float | None = None) -> None:
    """Print the median, its budget, and every pair, or the quartiles of many."""
    middle, many = statistics.median(ratios), len(ratios) > 20
    shown = statistics.quantiles(ratios) if many else ratios
    limit = "" if budget is None else f" (≤ {budget}{'' if middle <= budget else ', MISSED'})"
    print(
        f"{name}: median {middle:.3f}{limit}, {'quartiles' if many else 'pairs'} "
        + " ".join(f"{ratio:.3f}" for ratio in shown)
    )


def busy(others: OthersClock) -> str:
    """Say what other processes took of the processors meanwhile."""
    share = others.share()
    return "others unknown" if share is None else f"others took {share:.0%} of the processors"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, help="2000, or 20000 on CUDA")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, help="measurements: 4, or 15 on CUDA")
    parser.add_argument("--steps", type=int, help="training steps: 84, or 400 on CUDA")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", choices=("pass", "online"))
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = options.device == "cuda"
    options.images = options.images or (20000 if fast else 2000)
    options.pairs = options.pairs or (15 if fast else 4)
    options.steps = options.steps or (400 if fast else 84)
    if options.images < 2 * options.batch or options.steps < WARM_UP + 4:
        parser.error(f"expected at least two batches of images and {WARM_UP + 4} steps")
    options.steps -= options.steps % 2
    return options


def main() -> None:
    """Print both tables for every precision of the device."""
    options = _options()
    facts = machine()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if options.device == "cuda":
        facts.append(torch.cuda.get_device_name())
    print("\n".join(f"- {fact}" for fact in facts))
    data = images(options.images)
    for precision in ("32-true", "bf16-mixed")[: 2 if options.device == "cuda" else 1]:
        print(
            f"\nResNet-18 (3x3 stem), {options.images} images of 3x32x32, batch {options.batch}, "
            f"{options.device}, {precision}"
        )
        where = (options.device, precision)
        if options.only != "online":
            show_pass(data, options.batch, options.pairs, *where)
        if options.only != "pass":
            show_online(data, options.batch, options.steps, *where)


if __name__ == "__main__":
    main()
