"""What the monitor costs a run: (fit with it) / (fit without it), on the digits recipe.

    python -m benchmarks.overhead [--epochs 60] [--pairs 5]

Both fits are timed inside one process, in turn, so that a change of the machine's speed hits both.
The same is done with a pass of the bare network over the same data, the floor of any measurement.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings

import pytorch_lightning as pl
import torch

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.recipes.data import DigitsData
from ncmonitor.recipes.module import ImageClassifier
from ncmonitor.recipes.networks.image_networks import MLP


class BarePass(pl.Callback):
    """Runs the network over the same data each epoch and does nothing with what it gives."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.eval()
        with torch.no_grad():
            for loader in (trainer.train_dataloader, trainer.val_dataloaders):
                for inputs, _ in torch.utils.data.DataLoader(loader.dataset, loader.batch_size):
                    pl_module(inputs)
        pl_module.train()


def fit_seconds(epochs: int, *callbacks: pl.Callback) -> float:
    """Train the digits recipe and return the seconds that ``fit`` took."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ImageClassifier(MLP(64, [256, 256, 256], 10), lr=0.05, weight_decay=0.015)
    started = time.perf_counter()
    trainer.fit(module, DigitsData(batch_size=205))
    return time.perf_counter() - started


def main() -> None:
    """Print the ratios, pair by pair and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # as the recipe has it
    fit_seconds(5)  # warm up
    ratios: dict[str, list[float]] = {"bare pass": [], "monitor": []}
    for _ in range(options.pairs):
        plain = fit_seconds(options.epochs)
        ratios["bare pass"].append(fit_seconds(options.epochs, BarePass()) / plain)
        with tempfile.TemporaryDirectory() as folder:
            monitor = NeuralCollapse(run_dir=folder, verbose=False)
            ratios["monitor"].append(fit_seconds(options.epochs, monitor) / plain)
    print(f"digits, {options.epochs} epochs, measured every epoch; fit with / fit without")
    for name, values in ratios.items():
        shown = "  ".join(f"{value:.2f}" for value in values)
        print(f"{name:<10} median {statistics.median(values):.2f}   pairs {shown}")


if __name__ == "__main__":
    main()
