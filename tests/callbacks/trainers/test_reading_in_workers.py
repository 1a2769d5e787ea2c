"""Data sets of loaders with workers are never read in the training's own process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ncmonitor.callbacks.trainers.variation import varies

ROOT = Path(__file__).resolve().parents[3]

_FIT = """
    import sys
    import pytorch_lightning as pl, torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from ncmonitor.callbacks import NeuralCollapse

    class Lazy(Dataset):
        "Opened at the first item of each process, as h5py and lmdb want it."
        def __init__(self, path): self.path, self.file = path, None
        def __len__(self): return 60
        def __getitem__(self, i):
            self.file = self.file or open(self.path, "rb")
            self.file.seek(24 * i)
            return torch.frombuffer(bytearray(self.file.read(24)), dtype=torch.float32), i % 3

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        def forward(self, x): return self.head(self.body(x).relu())
        def training_step(self, b, i): return nn.functional.cross_entropy(self(b[0]), b[1])
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), .1)

    if __name__ == "__main__":
        path, start = sys.argv[1:]
        torch.manual_seed(0)
        torch.randn(60, 6).numpy().tofile(path)
        data = Lazy(path)
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
        monitor = NeuralCollapse(verbose=False, run_dir=path + "-run", splits=("train",))
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[monitor],
                             enable_model_summary=False, **quiet)
        loader = DataLoader(data, 20, num_workers=1, multiprocessing_context=start)
        trainer.fit(Net(), loader)
        assert data.file is None, "read in the training process"
        print("measured", monitor.history.nc1.notna().sum())
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_a_file_opened_at_the_first_item_is_never_opened_here(tmp_path: Path, start: str) -> None:
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(_FIT))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data"), start],
        capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measured 2" in done.stdout


class Opened(Dataset[Tensor]):
    """Readable only where the worker's preparation has been; may flip at random."""

    def __init__(self, flips: str = "") -> None:
        self.flips, self.ready = flips, False

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Tensor:
        assert self.ready
        assert get_worker_info() is not None
        draws: dict[str, Any] = {"torch": torch.rand, "numpy": np.random.rand}
        drawn = float(draws[self.flips](1)[0]) if self.flips else 0.0
        return torch.arange(3).flip(0) if drawn > 0.5 else torch.arange(3)


def prepare(worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.ready = True


@pytest.mark.parametrize(("flips", "expected"), [("torch", True), ("numpy", True), ("", False)])
def test_a_random_flip_is_seen_in_a_worker_that_the_user_prepares(
    flips: str, expected: bool
) -> None:
    data = Opened(flips)
    before = torch.get_rng_state()
    loader = DataLoader(data, 3, shuffle=True, num_workers=2, worker_init_fn=prepare)
    assert varies(loader) is expected
    assert not data.ready
    assert torch.equal(torch.get_rng_state(), before)


def mixed(items: list[Tensor]) -> Tensor:
    """A collate function that mixes up."""
    batch = torch.stack(items).float()
    return batch * torch.rand(())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_function_that_draws_is_seen(workers: int) -> None:
    data: Any = list(torch.arange(12).view(6, 2))
    assert varies(DataLoader(data, 3, num_workers=workers, collate_fn=mixed)) is True
    assert varies(DataLoader(data, 3, num_workers=workers)) is False
