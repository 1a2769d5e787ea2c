"""What every test gets: fixed seeds, no screen, no network account, and the real image data."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

# Before anything imports wandb or matplotlib: they read these once. Commands that tests start
# inherit them, so nobody's account, settings or caches are read or written.
_SCRATCH = tempfile.TemporaryDirectory(prefix="ncmonitor-tests-", ignore_cleanup_errors=True)
atexit.register(_SCRATCH.cleanup)
for _name in [n for n in os.environ if n.startswith(("WANDB_", "MPL"))]:
    del os.environ[_name]
os.environ |= {
    "OMP_NUM_THREADS": "1",  # tiny tensors: threads only wait for one another
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONFIG_DIR": f"{_SCRATCH.name}/wandb-config",
    "WANDB_CACHE_DIR": f"{_SCRATCH.name}/wandb-cache",
    "WANDB_DATA_DIR": f"{_SCRATCH.name}/wandb-data",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": f"{_SCRATCH.name}/matplotlib",
    "TORCH_HOME": f"{_SCRATCH.name}/torch",
}

import pytest  # noqa: E402 - after the environment is set

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C work, and import Lightning before the tests, if they run in this process.

    Lightning's log handlers keep the stderr of the moment they are imported. Within a test that
    would be the test's own capture, closed at its end, and every later message a "Logging error".
    """
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # of pytest-xdist, the process that only hands out tests
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of jobs in a shell's background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press it in their commands
    for name in ("pytorch_lightning", "lightning.pytorch"):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what the code under test must not touch
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands in this process write pages without figures."""
    import plain_pages

    monkeypatch.setattr("ncmonitor.reports.run_page.write_report", plain_pages.write_report)
    monkeypatch.setattr(
        "ncmonitor.reports.comparison.write_comparison", plain_pages.write_comparison
    )


@pytest.fixture(autouse=True)
def own_wandb_service() -> Iterator[None]:
    """End W&B's run, let it forget its settings and stop its service after a test that used them.

    It reads the settings once for each process, and commands that a test starts inherit the
    service: what one test sets would decide what a later one does.
    """
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        wandb.finish()  # a run that a test left would be that of the next one
        wandb.teardown()


def data_missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where NCMONITOR_REQUIRE_DATA=1 says that the data must be there."""
    if os.environ.get("NCMONITOR_REQUIRE_DATA") == "1":
        pytest.fail(f"NCMONITOR_REQUIRE_DATA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the torchvision root that holds a data set: ``image_root("MNIST")``.

    ``NCMONITOR_DATA`` names such a root, or a folder with an ``unpack.py`` that makes one; without
    it that is ``../shared/data``. Each data set is unpacked into a temporary root when it is first
    asked for (MNIST half a second, CIFAR10 four), once for all processes that run tests.
    """

    def find(name: str) -> Path:
        given = os.environ.get("NCMONITOR_DATA") or None
        unpack = Path(given or ROOT.parent / "shared" / "data") / "unpack.py"
        if given is not None and not unpack.is_file():
            folder = {"CIFAR10": "cifar-10-batches-py"}.get(name, name)
            if not (Path(given) / folder).is_dir():
                data_missing(f"NCMONITOR_DATA={given} holds no {folder}")
            return Path(given)
        if not unpack.is_file():
            data_missing(
                f"the real {name} images are not here: set NCMONITOR_DATA to a torchvision root"
            )
        base = tmp_path_factory.getbasetemp()  # pytest-xdist gives each process a folder in one
        base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        root, done = base / "image-data", base / f"image-data.{name}"
        with (base / "image-data.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not done.exists():
                command = [sys.executable, str(unpack), str(root), "--only", name]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                done.touch()
        return root

    return find
