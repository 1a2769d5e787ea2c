"""How long an epoch of each recipe trains, for every network of it.

    python -m benchmarks.recipes [NAME ...] [--device auto] [--threads 1] [--images N]

Network, loss, optimiser and number of steps come out of the real parser, the pixels are noise of
the right shape: nothing is downloaded. Reading and measuring are left out. On a CPU a network made
for a GPU sees a few images instead of a batch, and what grows with them, all but the optimiser's
step, is scaled up. One thread is timed by the processor's clock: other programs disturb it less.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytorch_lightning as pl
import torch
import yaml

from benchmarks._machine import OthersClock, machine
from benchmarks._resnet import synchronize
from benchmarks._worker import say
from ncmonitor.recipes.bundled import Recipe, find_recipe, recipes
from ncmonitor.recipes.data.class_choice import only_classes
from ncmonitor.recipes.data.datamodule import ImageData
from ncmonitor.recipes.fit.command import main as fit
from ncmonitor.recipes.module import ImageClassifier

#: Training images of each data set, which a data module knows only once they are there.
SIZES: Final = {
    "DigitsData": 1437,
    "MNISTData": 60_000,
    "FashionMNISTData": 60_000,
    "CIFAR10Data": 50_000,
    "CIFAR100Data": 50_000,
    "SVHNData": 73_257,
    "STL10Data": 5_000,
    "ImageFolderData": 1_281_167,  # ImageNet
}
_FEW: Final = {64: 8, 224: 4}  # images on a CPU, by the side up to which there are so many
_HEADS: Final = ("recipe", "network", "parameters", "images", "a step, s", "steps", "an epoch")


class Work(NamedTuple):
    """One network of a recipe, ready to be trained.

    Attributes:
        module: With its network.
        data: Not read.
        epochs: Of the recipe.
    """

    module: ImageClassifier
    data: ImageData
    epochs: int

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        data, size = self.data, SIZES[type(self.data).__name__]
        labels = torch.arange(size) % type(data).num_classes
        if data.classes is not None:
            _, labels = only_classes(labels, data.classes)
        images = len(data.selection.of(labels, data.num_classes))
        return images // data.batch_size if data.drop_last else -(-images // data.batch_size)


class Step(NamedTuple):
    """Seconds of a training step.

    Attributes:
        images: In the batch that was timed.
        work: Forward, loss and backward.
        update: The optimiser's part, which does not depend on the images.
    """

    images: int
    work: float
    update: float

    def of(self, batch_size: int) -> float:
        """Return the seconds of a step with this many images."""
        return self.work * batch_size / self.images + self.update


def configured(name: str, network: str | None = None) -> dict[str, Any]:
    """Return every option of a recipe as ``ncmonitor fit`` sees it."""
    words = [name, *(["--model.name", network] if network else []), "--print_config"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        fit(words)
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


def made(spec: Any, **more: Any) -> Any:
    """Make what a config describes by ``class_path`` and ``init_args``."""
    if not (isinstance(spec, dict) and "class_path" in spec):
        return spec
    module, _, name = spec["class_path"].rpartition(".")
    options = {key: made(value) for key, value in spec.get("init_args", {}).items()}
    return getattr(importlib.import_module(module), name)(**options, **more)


def works(recipe: Recipe) -> Iterator[tuple[str, Work]]:
    """Yield each network of a recipe by name; none for one that classifies no images."""
    for network in recipe.networks or (None,):
        config = configured(recipe.name, network)
        data, spec = made(config["data"]), config["model"]
        if not isinstance(data, ImageData):
            return
        if spec["init_args"].get("name") is not None:
            spec["init_args"] |= {"classes": data.num_classes, "image_shape": data.image_shape}
        module = made(spec)
        label = module.name or type(module.network).__name__.lower()
        yield label, Work(module, data, config["trainer"]["max_epochs"])


def optimizer_of(work: Work) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe."""
    work.module.trainer = pl.Trainer(  # which the schedule asks for the last epoch
        max_epochs=work.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found: Any = work.module.configure_optimizers()
    optimizer: torch.optim.Optimizer = found["optimizer"] if isinstance(found, dict) else found
    return optimizer


def timed_step(work: Work, images: int, device: torch.device, seconds: float) -> Step:
    """Train on noise, one step to warm up and at least three more, and return the medians."""
    module = work.module.to(device).train()
    optimizer = optimizer_of(work)
    pixels = torch.randn(images, *work.data.image_shape, device=device)
    labels = torch.arange(images, device=device) % work.data.num_classes
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    taken: list[tuple[float, float]] = []
    started = clock()
    while len(taken) < 4 or (len(taken) < 50 and clock() - started < seconds):
        synchronize(device)
        begun = clock()
        optimizer.zero_grad()
        module.loss(module(pixels), labels).backward()
        synchronize(device)
        worked = clock()
        optimizer.step()
        synchronize(device)
        taken.append((worked - begun, clock() - worked))
    passes, updates = zip(*taken[1:], strict=True)
    return Step(images, statistics.median(passes), statistics.median(updates))


def few(recipe: Recipe, data: ImageData, device: torch.device) -> int:
    """Return how many images to time a step with."""
    if recipe.on_cpu or device.type != "cpu":
        return data.batch_size
    return next(count for side, count in _FEW.items() if data.image_shape[-1] <= side)


def duration(seconds: float) -> str:
    """Write seconds in the unit that fits, with two digits."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds / 86400:.2g}'):g} d"


def rows(recipe: Recipe, options: argparse.Namespace) -> Iterator[list[str]]:
    """Time every network of a recipe and yield its line of the table."""
    device = torch.device(options.device)
    for network, work in works(recipe):
        say(f"{recipe.name}, {network}")
        images = options.images or few(recipe, work.data, device)
        step = timed_step(work, images, device, options.seconds)
        seconds = step.of(work.data.batch_size)
        parameters = sum(p.numel() for p in work.module.parameters())
        yield [
            recipe.name,
            network,
            f"{parameters / 1e6:.2f} M",
            f"{images} of {work.data.batch_size}",
            f"{seconds:.3g}",
            f"{work.steps}",
            duration(seconds * work.steps),
        ]
        work.module.cpu()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all of them by default")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU: 1")
    parser.add_argument("--images", type=int, help="per step; a batch, or a few on a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each network, or 4 steps")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    """Print the table."""
    options = _options()
    chosen = [find_recipe(name) for name in options.names] or list(recipes().values())
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)  # what devices there are, for each network
    torch.set_num_threads(options.threads)
    facts = machine()
    if options.device == "cuda":
        facts.append(torch.cuda.get_device_name())
    others = OthersClock()
    print("\n".join(f"- {fact}" for fact in facts))
    print(f"\n| {' | '.join(_HEADS)} |\n|---|---|{'---:|' * (len(_HEADS) - 2)}")
    for recipe in chosen:
        for row in rows(recipe, options):
            print(f"| {' | '.join(row)} |", flush=True)
    share = others.share()
    print(f"\nOther processes took {share or 0:.0%} of the processors.")


if __name__ == "__main__":
    main()
