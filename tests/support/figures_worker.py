"""Fits with pictures under DDP: ``python figures_worker.py FOLDER``, two processes."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor.callbacks import CollapseFigures, NeuralCollapse
from ncmonitor.callbacks.figures import snapshot_accumulator as figure_sketch
from ncmonitor.statistics.accumulators import Block
from toys import Toy, TrainOnly, blobs_read_by_class, trainer


class FailsOnOne(figure_sketch.Sketch):
    def absorb(self, block: Block) -> None:
        with self._excused():
            if torch.distributed.get_rank() == 1:
                raise RuntimeError("no sketch here")
        super().absorb(block)


def loader() -> DataLoader[Any]:
    """Rank zero reads the first half of the classes in the clean pass."""
    return DataLoader(TensorDataset(*blobs_read_by_class()), batch_size=8, shuffle=True)


def fit(*callbacks: pl.Callback) -> tuple[Toy, bool]:
    pl.seed_everything(3, verbose=False)
    module = TrainOnly()
    fitting = trainer(*callbacks, strategy="ddp", devices=2)
    fitting.fit(module, loader())
    return module, fitting.is_global_zero


def figures(**options: Any) -> CollapseFigures:
    settings: dict[str, Any] = {
        "figures": "simplex",
        "corners": [2, 1],
        "points_per_class": 9,
        "share": 1,
    }
    return CollapseFigures(1, **settings | options)


def main(folder: Path) -> None:
    def monitor(name: str) -> NeuralCollapse:
        return NeuralCollapse(run_dir=folder / name, verbose=False, splits=("train",))

    for name, extra in (("alone", ()), ("figures", (figures(),))):
        module, zero = fit(monitor("run" if extra else name), *extra)
        if zero:
            torch.save(module.state_dict(), folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps(module.losses))
    refused = ""
    try:
        fit(monitor("refused"), figures(corners=[0, 7]))
    except Exception as error:  # on both ranks, or the other one would wait for ever
        refused = f"{type(error).__name__}: {error}"
    assert refused
    sys.modules["ncmonitor.callbacks.collapse_figures"].Sketch = FailsOnOne  # type: ignore[attr-defined]
    watched = monitor("fails")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, zero = fit(watched, figures())
    if zero:
        told = {
            "nc1": int(watched.history["nc1"].notna().sum()),
            "warnings": [str(w.message) for w in caught if "snapshot" in str(w.message)],
            "refused": refused,
        }
        (folder / "fails.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
