"""What is written about the environment, and that nothing secret is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import ncmonitor
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.monitor import provenance
from ncmonitor.monitor.provenance import RUN_FILE, describe_environment, read_run, write_run
from ncmonitor.monitor.run_info import options_of


def test_versions_machine_and_command_are_those_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/ncmonitor", "fit", "digits", "--seed=3"])
    facts = describe_environment()
    assert facts["ncmonitor"] == ncmonitor.__version__
    assert facts["command"] == "ncmonitor fit digits --seed=3"
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"numpy", "pytorch-lightning"} <= set(facts["versions"])
    assert facts["machine"]["cpu"]
    assert facts["machine"]["cpu_count"] == os.cpu_count()
    assert (facts["machine"]["gpu"] is not None) is torch.cuda.is_available()
    assert json.loads(json.dumps(facts)) == facts


def test_a_module_is_named_as_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/ncmonitor/__main__.py", "fit", "a b"])
    assert describe_environment()["command"] == "python -m ncmonitor fit 'a b'"


def test_no_value_of_the_environment_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a1b2c3-not-to-be-seen"
    for name in ("WANDB_API_KEY", "GIT_AUTHOR_NAME", "HOME_OF_SECRETS", "HOSTNAME", "USER"):
        monkeypatch.setenv(name, secret)
    text = json.dumps(describe_environment())
    assert secret not in text
    assert os.environ["PATH"] not in text


def git(folder: Path, *args: str) -> str:
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *name, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_and_changes_are_those_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untracked.txt").write_text("not part of the commit")
    facts = describe_environment()
    assert facts["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert facts["dirty"] is False
    (tmp_path / "a.txt").write_text("two")
    assert describe_environment()["dirty"] is True


@pytest.mark.parametrize("reason", ["outside", "no_git", "hangs"])
def test_without_a_repository_there_is_no_commit(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if reason == "no_git":
        monkeypatch.setenv("PATH", str(tmp_path))
    if reason == "hangs":

        def hang(*args: Any, **kwargs: Any) -> None:
            raise subprocess.TimeoutExpired("git", kwargs["timeout"])

        monkeypatch.setattr(subprocess, "run", hang)
    facts = describe_environment()
    assert facts["commit"] is None
    assert facts["dirty"] is None


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "no-such-package-here"))
    assert set(describe_environment()["versions"]) == {"python", "torch"}


def test_facts_read_back_as_written_and_replace_older_ones(tmp_path: Path) -> None:
    write_run(tmp_path, {"created": "then", "seed": 1})
    facts = {"created": "now", "timing": {"fit_seconds": 1.5}, "label": "λ", "gpu": None}
    write_run(tmp_path, facts)
    assert read_run(tmp_path) == facts
    assert read_run(str(tmp_path)) == facts
    assert [p.name for p in tmp_path.iterdir()] == [RUN_FILE]


def test_facts_that_cannot_be_written_leave_the_old_file_whole(tmp_path: Path) -> None:
    write_run(tmp_path, {"seed": 1})
    with pytest.raises(TypeError):
        write_run(tmp_path, {"seed": object()})
    assert read_run(tmp_path) == {"seed": 1}


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"seed": 1', b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"null"],
    ids=["absent", "empty", "cut", "list", "string", "bytes", "null"],
)
def test_a_file_that_is_absent_or_damaged_gives_no_facts(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / RUN_FILE).write_bytes(content)
    assert read_run(tmp_path) == {}


# -- secrets ---------------------------------------------------------------------------------------


def test_the_command_of_a_run_is_recorded_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "--token", "xK2-93vb", "--lr=0.1", "https://u:p@h/x", "DB_PASSWORD=a"]
    monkeypatch.setattr("sys.argv", words)
    expected = (
        "train.py --token '<redacted>' --lr=0.1 'https://<redacted>@h/x' 'DB_PASSWORD=<redacted>'"
    )
    assert describe_environment()["command"] == expected


def test_facts_are_written_and_read_without_secrets(tmp_path: Path) -> None:
    write_run(tmp_path, {"command": "a --token xK2-93vb", "reasons": {"x": "no postgres://u:p@h"}})
    assert "xK2-93vb" not in (tmp_path / RUN_FILE).read_text()
    assert "u:p@" not in (tmp_path / RUN_FILE).read_text()
    # As an earlier version has left it: pages, W&B and the terminal get it from here.
    (tmp_path / RUN_FILE).write_text(json.dumps({"command": "a --token xK2-93vb", "seed": 1}))
    assert read_run(tmp_path) == {"command": "a --token '<redacted>'", "seed": 1}
    (tmp_path / "config.yaml").write_text("data: {token: xK2-93vb, root: x}")
    assert options_of(tmp_path) == {"data": {"token": "<redacted>", "root": "x"}}


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_a_script_of_ones_own_with_the_callback_leaves_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "xK2-93vb"
    words = ["--hf-token", secret, f"--db=postgres://bob:{secret}@h/x", f"API_KEY={secret}"]
    monkeypatch.setattr("sys.argv", ["train.py", *words])

    def to_xy(batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if trainer.current_epoch:
            raise ConnectionError(f"no answer from postgres://bob:{secret}@h/x")
        return batch[0], batch[1]

    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 2), 4)
    monitor = NeuralCollapse(batch_to_xy=to_xy, splits=("train",))
    trainer = pl.Trainer(
        max_epochs=3, callbacks=[monitor], logger=CSVLogger(tmp_path),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning) as warned:
        trainer.fit(Net(), loader)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert RUN_FILE in {path.name for path in files}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    failed = [str(each.message) for each in warned if "training goes on" in str(each.message)]
    assert failed
    assert all("postgres://<redacted>@h/x" in message for message in failed)
