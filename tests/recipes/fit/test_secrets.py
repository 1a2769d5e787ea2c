"""Secrets given to ``ncmonitor fit`` stand in no file of the run, and in nothing that is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ncmonitor.cli import main
from ncmonitor.monitor.provenance import read_run

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
    "default:slow connection",  # the data module's own
)
ROOT = Path(__file__).resolve().parents[3]
Fit = Callable[..., tuple[int, str]]

OWN = """
import os, sys, warnings
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, api_key: str | None = None, width: int = 8, pin: int = 0):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))
        if width == 5:
            raise ValueError(f"the service refuses {api_key}")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        if "API_KEY" in os.environ:
            assert self.hparams.api_key == os.environ["API_KEY"], "the key itself"
        if os.environ.get("DIE") == str(self.current_epoch):
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(pl.LightningDataModule):
    def __init__(self, token: str | None = None, password: str = "", url: str = "",
                 storage: dict | None = None, num_tokens: int = 4, pad_token: str = "[PAD]",
                 headers: list[str] | None = None, author: str = ""):
        super().__init__()
        self.save_hyperparameters()
        self.token, self.url = token, url

    def setup(self, stage):
        if "TOKEN" in os.environ:
            assert self.token == os.environ["TOKEN"], "every process gets the token itself"
        if self.url:
            warnings.warn(f"slow connection to {self.url}")

    def train_dataloader(self):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(60) % 3), 10)
"""
CONFIG = """
model: {class_path: own_secrets.Net}
data: {class_path: own_secrets.Data}
nc: {splits: [train]}
figures: {figures: []}
trainer: {max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""
WANDB, CSV, BOARD = (
    {"class_path": f"pytorch_lightning.loggers.{name}Logger", "init_args": {"save_dir": "."} | more}
    for name, more in [("Wandb", {"offline": True}), ("CSV", {}), ("TensorBoard", {})]
)
SECRETS = {
    "token": "tk-Zq81LmWx04",
    "password": "pw-Vb72NsRy13",
    "api_key": "ak-Xc63MdTz22",
    "of a url": "ur-Yd54LfUa31",
    "of an argument": "qa-Ze45KgVb40",
    "of a dict": "di-Af36JhWc59",
    "of a header": "he-Bg27HjXd68",
    "of a shape": "ghp_Q7wErTyUiOpAsDfGhJkLzXcVbNm123456",
}
WORDS = (
    *("--data.token", SECRETS["token"], f"--data.password={SECRETS['password']}"),
    *("--model.api_key", SECRETS["api_key"]),
    f"--data.url=https://bob:{SECRETS['of a url']}@example.org/x?sig={SECRETS['of an argument']}",
    *("--data.storage", json.dumps({"aws_secret_access_key": SECRETS["of a dict"], "retries": 3})),
    *("--data.headers", json.dumps([f"Authorization: Bearer {SECRETS['of a header']}"])),
    *("--data.author", SECRETS["of a shape"]),
)


@pytest.fixture
def fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    plain_pages: None,
) -> Fit:
    """Give the command, in a folder with a model of one's own; it returns status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    monkeypatch.delitem(sys.modules, "own_secrets", raising=False)
    (tmp_path / "own_secrets.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(CONFIG)

    def run(*words: str) -> tuple[int, str]:
        words = ("fit", *(() if "--config" in words else ("--config", "mine.yaml")), *words)
        monkeypatch.setattr(sys, "argv", ["ncmonitor", *words])
        status = main(words)
        out, err = capfd.readouterr()
        return status, out + err

    return run


def leaks(here: Path) -> list[tuple[str, str]]:
    """Return every secret found in a file, with the file."""
    files = [path for path in here.rglob("*") if path.is_file()]
    assert files
    return [
        (name, path.name)
        for path in files
        for name, secret in SECRETS.items()
        if secret.encode() in path.read_bytes()
    ]


def run_folder(here: Path) -> Path:
    (folder,) = here.glob("runs/*/*")
    return folder


def said(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


def test_no_file_of_a_run_and_nothing_printed_holds_a_secret(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", SECRETS["api_key"])  # which the model compares
    monkeypatch.setenv("TOKEN", SECRETS["token"])
    with warnings.catch_warnings(record=True) as warned:
        status, printed = fit(*WORDS, "--trainer.logger", json.dumps([WANDB, CSV, BOARD]))
    assert status == 0, printed
    assert leaks(tmp_path / "runs") == []
    assert said(printed) == []
    (warning,) = (str(each.message) for each in warned if "slow" in str(each.message))
    assert warning == "slow connection to https://<redacted>@example.org/x?sig=<redacted>"
    folder = run_folder(tmp_path)
    names = {path.name for path in folder.rglob("*")}
    assert {"config.yaml", "run.json", "report.html", "hparams.yaml", "debug.log"} <= names
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    options = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    assert options == {
        **{"token": "<redacted>", "password": "<redacted>", "author": "<redacted>"},
        "url": "https://<redacted>@example.org/x?sig=<redacted>",
        "storage": {"aws_secret_access_key": "<redacted>", "retries": 3},
        "headers": ["Authorization: <redacted>"],
        **{"num_tokens": 4, "pad_token": "[PAD]"},  # no secrets
    }


def test_the_wandb_run_has_the_command_without_the_secrets(fit: Fit, tmp_path: Path) -> None:
    from wandb_files import offline_run, records

    status, printed = fit("--data.token", SECRETS["token"], "--trainer.logger", json.dumps(WANDB))
    assert status == 0, printed
    (file,) = offline_run(run_folder(tmp_path)).glob("run-*.wandb")
    command = ["fit", "--config", "mine.yaml", "--data.token", "<redacted>"]
    recorded = [r["args"][:5] for r in records(file, "environment") if "args" in r]
    assert recorded
    assert recorded == [command] * len(recorded)


def test_wandb_gets_the_address_of_the_repository_without_the_token_in_it(
    fit: Fit, tmp_path: Path
) -> None:
    for words in ("init -q", f"remote add origin https://{SECRETS['token']}:x@example.org/a.git"):
        subprocess.run(["git", *words.split()], check=True, cwd=tmp_path)
    status, printed = fit("--trainer.logger", json.dumps(WANDB))
    assert status == 0, printed
    assert leaks(tmp_path / "runs") == []


def test_hyperparameters_in_checkpoints_have_no_secret(fit: Fit, tmp_path: Path) -> None:
    saver = '[{"class_path": "ModelCheckpoint", "init_args": {"save_weights_only": %s}}]'
    for only in ("true", "false"):
        where = ("--trainer.default_root_dir", only, "--trainer.logger", "false")
        assert fit(*WORDS[:5], *where, "--trainer.callbacks", saver % only)[0] == 0
        assert leaks(tmp_path / only) == []
        (path,) = (tmp_path / only).glob("checkpoints/*.ckpt")
        saved = torch.load(path, weights_only=True)
        assert saved["hyper_parameters"]["api_key"] == "<redacted>"
        assert saved["hyper_parameters"]["width"] == 8
        assert saved["datamodule_hyper_parameters"]["token"] == "<redacted>"
        import own_secrets  # type: ignore[import-not-found]

        again = own_secrets.Net.load_from_checkpoint(path, api_key="mine", weights_only=True)
        assert again.hparams.api_key == "mine"


SAVER = ("[{class_path: ModelCheckpoint, init_args: {save_last: true, save_top_k: 0}}]",)
LONG = ("--trainer.max_epochs", "3", "--trainer.logger", "false", "--trainer.callbacks", *SAVER)


def interrupted(fit: Fit, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setenv("DIE", "1")
    with pytest.raises(SystemExit):
        fit(*words, *LONG)
    monkeypatch.delenv("DIE")


def test_a_run_resumes_with_its_secret_or_another_and_says_if_one_is_missing(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    interrupted(fit, monkeypatch, *WORDS[:3])
    printed = "".join(capfd.readouterr())
    assert "--data.token '<redacted>' '--data.password=<redacted>'" in printed
    assert "with --data.token, --data.password given again: secrets are not saved" in printed
    assert leaks(tmp_path / "runs") == []
    status, printed = fit(*LONG, "--resume")
    assert (status, said(printed)) == (2, [])
    assert "secret and not saved; give --data.token, --data.password again" in printed
    status, printed = fit(*LONG, "--data.token", "<redacted>", "--resume")
    assert status == 2
    assert "'<redacted>' stands for a secret, which is not saved with a run: give" in printed
    words = ("--data.token", "a-newer-one-20", "--data.password", SECRETS["password"])
    status, printed = fit(*LONG, *words, "--resume")
    assert (status, said(printed)) == (0, [])
    assert read_run(run_folder(tmp_path))["finished"]
    assert leaks(tmp_path / "runs") == []


def test_a_refusal_to_resume_tells_what_differs_without_secrets(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"--data.url=https://bob:{SECRETS['of a url']}@%s.example.org"
    interrupted(fit, monkeypatch, *WORDS[:2], url % "one")
    status, printed = fit(*LONG, *WORDS[:2], url % "two", "--resume", "--data.num_tokens", "5")
    assert (status, said(printed)) == (2, [])
    assert "data.init_args.url https://<redacted>@one.example.org (now https://<red" in printed
    assert "data.init_args.num_tokens 4 (now 5)" in printed
    # A run of an earlier version, which has left its secrets in its config.
    config = run_folder(tmp_path) / "config.yaml"
    options = yaml.safe_load(config.read_text())
    options["data"]["init_args"]["token"] = SECRETS["of a dict"]
    config.write_text(yaml.safe_dump(options))
    status, printed = fit(*LONG, *WORDS[:2], url % "two", "--resume")
    assert (status, said(printed)) == (2, [])


def test_the_saved_config_runs_again_with_the_secrets_given_again(fit: Fit, tmp_path: Path) -> None:
    quick = ("--trainer.logger", "false")
    assert fit(*WORDS, *quick)[0] == 0
    saved = run_folder(tmp_path) / "config.yaml"
    first = saved.read_text().splitlines()[0]
    assert first.startswith("# Every option of this run. Again: ncmonitor fit --config config.yaml")
    for option in ("--model.api_key VALUE", "--data.token VALUE", "--data.password VALUE"):
        assert option in first
    status, printed = fit("--config", str(saved), *WORDS[:3])
    assert status == 2
    assert "stands for a secret, which is not saved with a run: give --model.api_key, " in printed
    here = ("--trainer.default_root_dir", "again")
    assert fit("--config", str(saved), *here, *WORDS)[0] == 0
    assert leaks(tmp_path / "again") == []


@pytest.mark.parametrize(
    "words",
    [
        ("--model.width", SECRETS["token"], "--data.token", SECRETS["token"]),
        ("--model.pin", "x", f"--data.password=[{SECRETS['password']}", "--nc.schedule=sometimes"),
        ("--data.token", SECRETS["token"], "--model.width=5", "--model.api_key", "hunter21"),
        ("--data.tokn", SECRETS["token"]),
        (f"--data.pasword={SECRETS['password']}",),
        ("--model.width", f"https://bob:{SECRETS['of a url']}@example.org"),
        ("--model", json.dumps({"class_path": "own_secrets.Net", "init_args": {"no": 1,
         "api_key": SECRETS["api_key"]}})),
        ("--data", json.dumps({"class_path": "own_secrets.Data", "init_args": {
         "num_tokens": "many", "token": SECRETS["token"]}})),
        ("--data.storage", f"[{{token: {SECRETS['token']}}}]"),
    ],
)  # fmt: skip
def test_a_refusal_repeats_no_secret(
    words: tuple[str, ...], fit: Fit, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status, printed = fit(*words, "--trainer.logger", "false")
        assert status == 2, printed
    except ValueError as error:  # the model's own
        printed = str(error)
        assert "the service refuses <redacted>" in printed
    assert said(printed) == []
    assert "hunter21" not in printed


def test_options_that_only_sound_like_secrets_are_kept(fit: Fit, tmp_path: Path) -> None:
    words = ("--data.num_tokens", "77", "--data.pad_token", "<pad>", "--data.author", "Ada")
    assert fit(*words, "--trainer.logger", "false")[0] == 0
    folder = run_folder(tmp_path)
    assert "<redacted>" not in "".join(p.read_text() for p in folder.glob("*.[yj]*"))
    options = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    assert (options["num_tokens"], options["pad_token"], options["author"]) == (77, "<pad>", "Ada")


def ncmonitor(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ncmonitor", "fit", "--config", "mine.yaml", *words]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path, **env}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_several_seeds_train_with_the_secret_and_leave_none(fit: Fit, tmp_path: Path) -> None:
    words = (*WORDS, "--seeds", "2", "--trainer.logger", json.dumps(WANDB))
    done = ncmonitor(*words, cwd=tmp_path, TOKEN=SECRETS["token"], API_KEY=SECRETS["api_key"])
    assert done.returncode == 0, done.stderr
    assert leaks(tmp_path / "runs") == []
    assert said(done.stdout + done.stderr) == []
    assert len(list(tmp_path.glob("runs/mine/*/seed*/history.csv"))) == 2


@pytest.mark.slow
@pytest.mark.ddp
def test_every_process_of_a_run_gets_the_secret(fit: Fit, tmp_path: Path) -> None:
    words = [*WORDS[:5], "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    words += ("--trainer.strategy", "ddp", "--trainer.logger", "false")
    done = ncmonitor(*words, cwd=tmp_path, TOKEN=SECRETS["token"], API_KEY=SECRETS["api_key"])
    assert done.returncode == 0, done.stderr
    assert read_run(run_folder(tmp_path))["measurement"]["ranks"] == 2
    assert leaks(tmp_path / "runs") == []
