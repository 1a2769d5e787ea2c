"""Twelve small fits whose outcome is on record, so that a change of the code shows in it.

``python tests/golden/fits.py FOLDER`` runs them, a few seconds each, and writes
``FOLDER/<name>.json`` for each: the columns and values of its history, the keys that a logger
got, the files of the run, what was printed and the headings of the page. ``commands.json`` holds
what commands print. With ``tests/golden/records`` as the folder the record is made anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor.callbacks import CollapseFigures, NeuralCollapse, SymmetryMonitor, TerminalPhase
from ncmonitor.cli import main
from ncmonitor.symmetry import Action, Group

INPUTS: Final = 6
#: Differ between two runs of the same code.
VOLATILE: Final = ("seconds",)


def points(sizes: list[int], *, seed: int, noise: float) -> TensorDataset:
    """Gaussian clouds around fixed means, in float64, ``sizes[c]`` points of class c."""
    means = 2 * torch.randn(len(sizes), INPUTS, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    drawn = torch.randn(len(labels), INPUTS, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(means[labels] + noise * drawn.double(), labels)


class Network(pl.LightningModule):
    """Two hidden layers and BatchNorm, trained by SGD."""

    def __init__(self, classes: int, loss: str = "ce", dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
        self.classifier = nn.Linear(8, classes)
        self.loss = loss
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(x.to(self.classifier.weight.dtype))))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        if self.loss == "mse":
            target = nn.functional.one_hot(labels, logits.shape[1]).to(logits)
            return nn.functional.mse_loss(logits, target)
        return nn.functional.cross_entropy(logits, labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def fit(
    folder: Path,
    *callbacks: pl.Callback,
    sizes: list[int] | None = None,
    epochs: int = 3,
    loss: str = "ce",
    dtype: torch.dtype = torch.float64,
    ckpt_path: str | None = None,
    **settings: Any,
) -> pl.Trainer:
    """Train on three classes, unless told otherwise, in an order that is always the same."""
    sizes = sizes or [15, 15, 15]
    torch.manual_seed(0)
    model = Network(len(sizes), loss, dtype)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=CSVLogger(folder, name="log", version=""),
        **{
            **{"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False},
            **{"enable_model_summary": False, "log_every_n_steps": 1},
            **settings,
        },
    )
    trainer.fit(
        model,
        DataLoader(points(sizes, seed=2, noise=0.5), 16),
        DataLoader(points(sizes, seed=3, noise=1.5), 16),
        ckpt_path=ckpt_path,
    )
    return trainer


# -- the fits --------------------------------------------------------------------------------------


def cross_entropy(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder), TerminalPhase(), CollapseFigures(), epochs=6)


def mean_squared_error(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder, metrics="all"), TerminalPhase(), loss="mse")


def imbalance(folder: Path) -> None:
    monitor = NeuralCollapse(run_dir=folder, convention="per_sample", null_seed=1)
    fit(folder, monitor, sizes=[40, 12, 4])


def layers(folder: Path) -> None:
    monitor = NeuralCollapse(run_dir=folder, layers=["first", "second"])
    fit(folder, monitor)


def bfloat16(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder), dtype=torch.float32, precision="bf16-mixed")


def ddp(folder: Path) -> None:
    monitor = NeuralCollapse(run_dir=folder)
    fit(folder, monitor, devices=2, strategy="ddp_notebook")


def resume(folder: Path) -> None:
    first = fit(folder, NeuralCollapse(run_dir=folder), epochs=2)
    first.save_checkpoint(folder / "last.ckpt")
    fit(folder, NeuralCollapse(run_dir=folder), epochs=4, ckpt_path=str(folder / "last.ckpt"))


def symmetry(folder: Path) -> None:
    sign = Group.of(
        "sign", [Action("same", lambda x: x), Action("negated", torch.neg)], kind="finite"
    )
    monitor = SymmetryMonitor([sign], run_dir=folder, schedule="every_epoch", layers=["first"])
    fit(folder, NeuralCollapse(run_dir=folder), monitor)


def online(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder, online=True))


def two_monitors(folder: Path) -> None:
    fit(
        folder,
        NeuralCollapse(run_dir=folder),
        NeuralCollapse(run_dir=folder / "other", prefix="other", schedule=[0, 3], splits="train"),
    )


def two_classes(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder), TerminalPhase(), sizes=[20, 20])


def hundred_classes(folder: Path) -> None:
    fit(folder, NeuralCollapse(run_dir=folder), sizes=[4] * 100, epochs=2)


#: DDP forks, which has to come before other fits start threads.
FITS: Final[tuple[Callable[[Path], None], ...]] = (
    *(ddp, cross_entropy, mean_squared_error, imbalance, layers, bfloat16, resume, symmetry),
    *(online, two_monitors, two_classes, hundred_classes),
)
COMMANDS: Final = (("--help",), ("metrics",), ("metrics", "nc1"), ("recipes",))


# -- the record ------------------------------------------------------------------------------------


def record(folder: Path, printed: str) -> dict[str, Any]:
    """Return what is on record of a fit; a table is a list of columns and one of rows."""
    with said() as report:
        status = main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    return {
        "histories": {
            path.relative_to(folder).as_posix(): table(path)
            for path in sorted(folder.rglob("*.csv"))
            if "log" not in path.parts
        },
        "keys": sorted(pd.read_csv(folder / "log" / "metrics.csv").columns),
        "files": sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ),
        "printed": plain(printed, folder),
        "report": [status, *plain(report.getvalue(), folder)],
        "headings": headings(page, folder),
    }


def table(path: Path) -> dict[str, Any]:
    frame = pd.read_csv(path).drop(columns=list(VOLATILE), errors="ignore")
    rows = json.loads(frame.to_json(orient="values", double_precision=15))
    return {"columns": list(frame.columns), "rows": rows}


def headings(page: str, folder: Path) -> list[str]:
    found = re.findall(r"<(h[1-4])[^>]*>(.*?)</\1>", page, re.DOTALL)
    texts = [f"{level} {' '.join(re.sub('<[^>]+>', ' ', text).split())}" for level, text in found]
    return plain("\n".join(texts), folder)


def plain(text: str, folder: Path) -> list[str]:
    """Return the lines of a text without what differs between two runs of the same code."""
    text = text.replace(str(folder), "RUN").replace(folder.name, "RUN")
    text = re.sub(r"\d+(\.\d+)? ?(s|ms|min|MB|kB|KB)\b", "#", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\+\d\d:\d\d)?)?( UTC)?", "WHEN", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@contextlib.contextmanager
def said() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def run(out: Path) -> None:
    """Run every fit and command, and write what is on record of each."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for each in FITS:
            folder = Path(scratch) / each.__name__
            folder.mkdir()
            with said() as printed:
                each(folder)
            write(out / f"{each.__name__}.json", record(folder, printed.getvalue()))
    outputs = {}
    for words in COMMANDS:
        status: int | str | None = 0
        with said() as text:
            try:
                status = main(words)
            except SystemExit as end:
                status = end.code
        outputs[" ".join(words)] = [status, *text.getvalue().splitlines()]
    write(out / "commands.json", outputs)


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("PL_")]:
        del os.environ[name]  # a seed there shuffles the loaders of DDP
    os.environ |= {"COLUMNS": "100", "WANDB_MODE": "offline"}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run(Path(sys.argv[1]))
