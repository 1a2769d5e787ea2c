"""Settings in which the callback must leave no trace and tell the right numbers; a table of them.

Every setting is one fit without and one with the monitor, of a tiny network on a few points.
``python tests/support/matrix.py`` prints what :mod:`callbacks.test_matrix` asserts.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from matrix_data import BATCH, SHUFFLE, Sample, at
from matrix_settings import SETTINGS, ByHand, Setting
from ncmonitor import CollapseReport, measure_collapse
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.trainer_measurement import Measurement
from ncmonitor.metrics import SHAPE
from ncmonitor.monitor.history import NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.monitor.history_rows import layer_split, names_of
from toys import measured_order

# -- two fits --------------------------------------------------------------------------------------


class Keeper(pl.Callback):
    """Keeps losses, the weights of the last epoch's end, and what the classifier saw in it."""

    def __init__(self, setting: Setting, *, listens: bool) -> None:
        self.setting, self.listens = setting, listens
        self.losses: list[Tensor] = []
        self.raw: dict[str, Tensor] = {}
        self.heard: list[tuple[Tensor, Tensor, Tensor]] = []
        self._handle: Any = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.heard = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.listens:
            labels = batch.target if isinstance(batch, Sample) else batch[1]

            def hear(module: Any, args: Any, output: Tensor) -> None:
                self.heard.append((args[0].detach(), labels, output.detach()))

            self._handle = self.setting.by_hand.head(pl_module).register_forward_hook(hear)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].clone())
        if self._handle is not None:
            self._handle.remove()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.raw = {k: v.clone() for k, v in pl_module.state_dict().items()}


@dataclass
class Fit:
    """A trained module, what it left everywhere, and the monitor if there was one."""

    module: Any
    left: dict[str, Any]
    keeper: Keeper
    monitor: NeuralCollapse | None
    forwards: list[int]


def fit(setting: Setting, folder: Path | None = None) -> Fit:
    """Train; with the monitor if there is a folder for its files."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        machine = ["LeafSpec", "does not have many workers"]
        for message in [*machine, *setting.warns]:
            warnings.filterwarnings("ignore", f"(?s).*{message}")
        return _fit(setting, folder)


def _fit(setting: Setting, folder: Path | None) -> Fit:
    pl.seed_everything(7, verbose=False)
    data = setting.data()
    given = setting.module()
    module = getattr(given, "_orig_mod", given)
    monitor, made = None, {k: v() if callable(v) else v for k, v in setting.trainer.items()}
    keeper = Keeper(setting, listens=folder is None and "online" in _options(setting, module))
    callbacks = [*made.pop("callbacks", []), keeper]
    if folder is not None:
        options: dict[str, Any] = {"run_dir": folder, "verbose": False, "on_error": "raise"}
        monitor = NeuralCollapse(**options | dict(_options(setting, module)))
        callbacks.append(monitor)
    plain: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False}
    plain["log_every_n_steps"] = 1
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(callbacks=callbacks, **plain | dict.fromkeys(quiet, False) | made)
    with _counting(setting) as forwards:
        trainer.fit(given, **setting.loaders(data))
    return Fit(module, _left(trainer, module, keeper), keeper, monitor, forwards)


def _options(setting: Setting, module: Any) -> Mapping[str, Any]:
    return setting.monitor(module) if callable(setting.monitor) else setting.monitor


@contextlib.contextmanager
def _counting(setting: Setting) -> Iterator[list[int]]:
    """Count how often the classifier runs within each measurement."""
    counts: list[int] = []
    measure = Measurement.measure

    def counted(self: Measurement, *args: Any, **kwargs: Any) -> Any:
        counts.append(0)

        def count(*_: Any) -> None:
            counts[-1] += 1

        handle = setting.by_hand.head(self.module).register_forward_hook(count)
        try:
            return measure(self, *args, **kwargs)
        finally:
            handle.remove()

    with mock.patch.object(Measurement, "measure", counted):
        yield counts


def _left(trainer: pl.Trainer, module: Any, keeper: Keeper) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    generator: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "weights": {k: v.detach().clone() for k, v in module.named_parameters()},
        "buffers": {k: v.clone() for k, v in module.named_buffers()},
        "gradients": {k: p.grad for k, p in module.named_parameters()},
        "trainable": {k: p.requires_grad for k, p in module.named_parameters()},
        "optimizers": [each.state_dict() for each in trainer.optimizers],
        "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        "losses": keeper.losses,
        "last epoch": keeper.raw,
        "modes": {k: m.training for k, m in module.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": (generator["state"]["key"].tolist(), generator["state"]["pos"]),
        "python": random.getstate(),
        "hooks": {k: [len(getattr(m, h)) for h in hooks] for k, m in module.named_modules()},
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "steps": (trainer.global_step, trainer.current_epoch),
    }


# -- by hand ---------------------------------------------------------------------------------------


class Hand(NamedTuple):
    features: Tensor
    labels: Tensor
    logits: Tensor
    layers: dict[str, Tensor]
    batches: int


def firsts(data: tuple[Any, Tensor], count: int | None) -> tuple[Any, Tensor]:
    """Return the first samples in the order of a measurement.

    It decides which labels a shuffle gives to whom, and which samples share a kernel's call.
    """
    inputs, labels = at(data[0], slice(count)), data[1][:count]
    order = measured_order(len(labels))
    return at(inputs, order), labels[order]


@torch.no_grad()
def collect(how: ByHand, module: Any, data: tuple[Any, Tensor], size: int = BATCH) -> Hand:
    """Run the trained module over raw tensors, in their order."""
    labels = data[1]
    module.eval()
    if how.dtype is not None:
        module.to(how.dtype)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how.autocast)
    parts: list[list[Tensor]] = []
    for start in range(0, len(labels), size):
        x = at(data[0], slice(start, min(start + size, len(labels))))
        x = x.to(how.dtype) if how.dtype is not None else x
        with autocast:
            features, head = how.features(module, x), how.head(module)
            logits = head(features) if how.logits is None else how.logits(head, features)
            inner = [layer(module, x) for layer in how.layers.values()]
        parts.append([features, logits, *inner])
    h, z, *inner = (torch.cat(each).flatten(0, -2) for each in zip(*parts, strict=True))
    layers = dict(zip(how.layers, inner, strict=True))
    return Hand(h, labels.flatten(), z, layers, len(parts))


def reports(setting: Setting, plain: Fit) -> tuple[dict[str, CollapseReport], int]:
    """Measure every split by hand; also return the batches of one measurement of all of them."""
    module, data, how = plain.module.eval(), setting.data(), setting.by_hand
    trained = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(plain.keeper.raw)
    online = _online(plain, how.head(module)) if plain.keeper.heard else {}
    if how.weights == "trained":
        module.load_state_dict(trained)
    train = collect(how, module, firsts(data.train, how.samples), how.batch)
    head = {"weight": how.head(module).weight.detach().flatten(1), "bias": how.head(module).bias}
    made = measure_collapse(
        train.features, train.labels, **head, logits=train.logits, null_seed=SHUFFLE
    )
    found = {"train": made, NULL_SPLIT: made.null(SHUFFLE)} | online
    layers = {k: measure_collapse(h, train.labels) for k, h in train.layers.items()}
    found |= {layer_split("train", k): report for k, report in layers.items()}
    count = train.batches
    for split in setting.val:
        val = collect(how, module, firsts(data.val, how.val_samples))
        found[split] = measure_collapse(
            val.features, val.labels, **head, logits=val.logits, reference=made.moments
        )
        for k, h in val.layers.items():
            found[layer_split(split, k)] = measure_collapse(
                h, val.labels, reference=layers[k].moments
            )
        count += val.batches
    return found, count


def _online(plain: Fit, head: Any) -> dict[str, CollapseReport]:
    features, labels, logits = (torch.cat(each) for each in zip(*plain.keeper.heard, strict=True))
    with torch.no_grad():
        head(features[:1].to(head.weight.dtype))  # a hook may make the weight of other tensors
    report = measure_collapse(features, labels, head.weight, head.bias, logits=logits)
    return {ONLINE_SPLIT: report}


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a setting showed.

    Attributes:
        traces: What the monitor changed, by name; empty if all is identical to the bit.
        passes: Runs of the network per measurement, over the batches of the data.
        differences: Relative difference to the numbers by hand, by split and metric.
        graphs: How many graphs were compiled, with the monitor as without.
    """

    traces: list[str]
    passes: float
    differences: dict[str, float]
    graphs: int


def outcome(setting: Setting, folder: Path) -> Outcome:
    """Train twice, compare everything, and measure by hand what the plain fit gave."""
    plain, watched = fit(setting), fit(setting, folder)
    traces = [name for name, value in plain.left.items() if not _equal(value, watched.left[name])]
    by_hand, batches = reports(setting, plain)
    assert watched.monitor is not None
    assert math.isfinite(by_hand["train"].nc1)  # nan would agree with nan
    history = watched.monitor.history
    differences: dict[str, float] = {}
    for split in history["split"].unique():
        row = history[history["split"] == split].iloc[-1]
        if split not in by_hand:
            differences[f"{split}: no such split by hand"] = math.inf
            continue
        for name, value in _values(split, by_hand[split]).items():
            differences[f"{split}/{name}"] = _difference(float(row[name]), value)
    missing = set(by_hand) - set(history["split"])
    if "null_seed" not in _options(setting, watched.module):
        missing -= {NULL_SPLIT}
    differences |= {f"{split} was not measured": math.inf for split in missing}
    measured = sum(watched.forwards) / len(history["epoch"].unique())
    return Outcome(traces, measured / batches, differences, watched.left["graphs"])


def _values(split: str, report: CollapseReport) -> dict[str, float]:
    values = report.as_dict() | {"error": report.error, "cross_entropy": report.cross_entropy}
    wanted = [name for name in names_of(split) if name in values]
    if split == ONLINE_SPLIT:
        wanted = [name for name in wanted if name in SHAPE or name not in report.as_dict()]
    return {name: values[name] for name in wanted}


def _difference(ours: float, theirs: float) -> float:
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    largest = max(abs(ours), abs(theirs))
    return math.inf if math.isnan(largest) else abs(ours - theirs) / largest


def _equal(one: Any, two: Any) -> bool:
    """Compare to the bit; nan equals nan, and zero is not minus zero."""
    if isinstance(one, Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        return same and _bytes(one) == _bytes(two)
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return type(one) is type(two) and one == two


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def main() -> None:
    """Print the table as Markdown."""
    print("| group | setting | identical | passes | largest difference | note |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, setting in enumerate(SETTINGS):
            shown = outcome(setting, Path(folder) / str(number))
            same = "no: " + ", ".join(shown.traces) if shown.traces else "yes"
            worst = max(shown.differences, key=lambda name: shown.differences[name])
            size = shown.differences[worst]
            where = f" ({worst})" if size > 0 else ""
            print(
                f"| {setting.group} | {setting.name} | {same} | {shown.passes:g} | "
                f"{size:.1e}{where} | {setting.note} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
