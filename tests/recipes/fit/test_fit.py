"""``ncmonitor fit`` through the real command: the demo, overrides, configs, and every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from ncmonitor.catalogue import METRIC_NAMES
from ncmonitor.cli import main
from ncmonitor.monitor.history import read_history
from ncmonitor.recipes.bundled import all_recipes
from ncmonitor.recipes.module import ImageClassifier
from ncmonitor.recipes.networks.image_networks import MLP
from ncmonitor.reports.expected import closing

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
)
ROOT = Path(__file__).resolve().parents[3]
Fit = Callable[..., tuple[int, str, str]]


def ncmonitor(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ncmonitor", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo, shortened, as a user would: the working directory and what was printed."""
    here = tmp_path_factory.mktemp("demo")
    done = ncmonitor("fit", "digits", "--trainer.max_epochs", "3", cwd=here)
    assert done.returncode == 0, done.stderr
    return here, done.stdout


def run_folder(here: Path) -> Path:
    (folder,) = here.glob("runs/*/*")
    return folder


def test_demo_has_a_folder_of_its_own_with_time_and_seed(demo: tuple[Path, str]) -> None:
    folder = run_folder(demo[0])
    assert re.fullmatch(r"\d{8}-\d{6}-seed0", folder.name)
    assert folder.parent.name == "digits"
    assert {path.name for path in demo[0].iterdir()} == {"runs"}  # nothing beside it


def test_demo_leaves_table_config_run_and_report(demo: tuple[Path, str]) -> None:
    folder = run_folder(demo[0])
    history = read_history(folder)
    assert list(history["epoch"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(history["split"]) == ["train", "val"] * 4
    assert history[list(METRIC_NAMES)].query("index == 6").notna().all(axis=None)
    run = json.loads((folder / "run.json").read_text())
    assert run["command"] == "ncmonitor fit digits --trainer.max_epochs 3"
    assert (run["seed"], run["max_epochs"]) == (0, 3)
    assert run["measurement"]["splits"] == {"train": 1437, "val": 360}
    assert "<html" in (folder / "report.html").read_text()
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_demo_trains_what_the_recipe_says(demo: tuple[Path, str]) -> None:
    config = yaml.safe_load((run_folder(demo[0]) / "config.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "digits.yaml").read_text())
    given = recipe["model"]["init_args"]
    assert {key: config["model"]["init_args"][key] for key in given} == given
    assert config["trainer"]["max_epochs"] == 3
    assert config["trainer"]["default_root_dir"] is None  # so that it can be run again
    assert config["nc"]["schedule"] == "every_epoch"
    assert config["seed_everything"] == 0


def test_demo_is_a_wandb_offline_run_with_the_whole_config(demo: tuple[Path, str]) -> None:
    (run,) = run_folder(demo[0]).glob("wandb/offline-run-*/run-*.wandb")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(run)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    summary = json.loads(done.stdout)
    assert summary["project"] == "ncmonitor"
    config = yaml.safe_load((run_folder(demo[0]) / "config.yaml").read_text())
    for part in ("model", "data", "nc", "seed_everything"):
        assert summary["config"][part] == config[part], part
    assert summary["config"]["trainer"]["max_epochs"] == 3


def test_last_lines_say_where_everything_is(demo: tuple[Path, str]) -> None:
    here, printed = demo
    folder = run_folder(here).relative_to(here)
    (wandb,) = (here / folder).glob("wandb/offline-run-*")
    numbers, _, ways = printed.rstrip().rpartition("\n\n")
    last = numbers.rpartition("\n\n")[2].splitlines()
    assert last[0].startswith("After 3 epochs, on the training set: nc1 0.")
    assert last[1].startswith("The terminal phase was not reached: the training error is ")
    assert re.fullmatch(r"Took \d+ s, \d+ s of it measuring\.", last[2])
    assert last[3:] == closing(here / folder)  # against what was expected
    assert ways.splitlines() == [
        f"  report      open {folder}/report.html in a browser",
        f"  W&B here    wandb leet {wandb.relative_to(here)}",
        f"  W&B online  wandb sync {wandb.relative_to(here)}",
        f"  files       history.csv, run.json, config.yaml in {folder}",
    ]


def test_one_line_per_measured_epoch(demo: tuple[Path, str]) -> None:
    assert [e for e in range(4) if re.search(rf"^ +{e} \|", demo[1], re.MULTILINE)] == [0, 1, 2, 3]


def test_checkpoint_loads_safely_and_gives_the_network_back(demo: tuple[Path, str]) -> None:
    path = run_folder(demo[0]) / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    module = ImageClassifier.load_from_checkpoint(path, network=MLP(), weights_only=True)
    assert torch.equal(module.classifier.weight, state["network.classifier.weight"])


# -- in this process: overrides and mistakes -------------------------------------------------------


@pytest.fixture
def fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plain_pages: None,
) -> Iterator[Fit]:
    """Give the command, run in an empty folder; it returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    threads = torch.get_num_threads()  # which a recipe may set

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", *words])
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


SHORT = (
    "--figures.figures=[]",
    "--trainer.max_epochs",
    "2",
    "--trainer.enable_progress_bar",
    "false",
)


def test_saved_config_runs_again_in_a_folder_of_its_own(
    demo: tuple[Path, str], fit: Fit, tmp_path: Path
) -> None:
    first = run_folder(demo[0])
    words = ("--figures.figures=[]", "--trainer.logger", "false")
    assert fit("--config", str(first / "config.yaml"), *words)[0] == 0
    metrics = ["epoch", "error", *METRIC_NAMES]
    left, right = (read_history(f)[metrics] for f in (first, run_folder(tmp_path)))
    assert left.equals(right)


def test_run_without_a_logger(fit: Fit, tmp_path: Path) -> None:
    status, out, _ = fit("digits", *SHORT, "--trainer.logger", "false")
    assert status == 0
    assert "wandb" not in out
    assert "report.html" in out
    assert len(read_history(run_folder(tmp_path))) == 6


def test_csv_logger_writes_into_the_run_folder(fit: Fit, tmp_path: Path) -> None:
    status, *_ = fit("digits", *SHORT, "--trainer.logger", "CSVLogger")
    assert status == 0
    (table,) = run_folder(tmp_path).glob("lightning_logs/version_0/metrics.csv")
    assert {"nc/train/nc1", "nc/val/nc1", "train_loss", "val_loss"} <= set(
        table.read_text().splitlines()[0].split(",")
    )


def test_one_callback_and_several_loggers_are_fine(fit: Fit, tmp_path: Path) -> None:
    loggers = '[{"class_path": "CSVLogger", "init_args": {"save_dir": "."}}, {"class_path": '
    loggers += '"CSVLogger", "init_args": {"save_dir": "elsewhere"}}]'
    words = ("--trainer.callbacks", "LearningRateMonitor", "--trainer.logger", loggers)
    assert fit("digits", *SHORT, *words)[0] == 0
    assert len(list(run_folder(tmp_path).glob("lightning_logs/*/metrics.csv"))) == 1
    assert len(list((tmp_path / "elsewhere").glob("lightning_logs/*/metrics.csv"))) == 1


def test_seed_schedule_model_and_data_can_be_overridden(fit: Fit, tmp_path: Path) -> None:
    words = ["--seed_everything", "3", "--nc.schedule", "2", "--model.network.hidden", "[8, 4]"]
    status, *_ = fit("digits", *SHORT, *words, "--data.batch_size", "400", "--trainer.logger=false")
    assert status == 0
    assert torch.get_num_threads() == 1  # as the recipe says
    folder = run_folder(tmp_path)
    assert folder.name.endswith("-seed3")
    assert sorted(set(read_history(folder)["epoch"])) == [0, 2]
    measurement = json.loads((folder / "run.json").read_text())["measurement"]
    assert measurement["feature_dim"] == 4
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 400


def test_seeds_differ_and_repeat(fit: Fit, tmp_path: Path) -> None:
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        where = ("--trainer.default_root_dir", folder, "--seed_everything", seed)
        assert fit("digits", *SHORT, *where, "--trainer.logger", "false")[0] == 0
    a, b, c = (read_history(tmp_path / name)["nc1"] for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_a_folder_that_holds_a_run_is_not_overwritten(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "history.csv").write_text("epoch\n")
    status, _, err = fit("digits", *SHORT, "--trainer.default_root_dir", "mine")
    assert status == 2
    assert "mine already holds a run; name another folder" in err
    assert (tmp_path / "mine" / "history.csv").read_text() == "epoch\n"


def test_two_runs_of_one_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ncmonitor.recipes.fit.run_folder import new_run_folder

    monkeypatch.chdir(tmp_path)
    made = {new_run_folder("digits", "seed0") for _ in range(5)}
    assert len(made) == 5
    assert all(folder.is_dir() for folder in made)


def test_an_expectation_is_saved_with_the_run(fit: Fit, tmp_path: Path) -> None:
    expect = ("--expect.epoch=2", "--expect.nc1=1e-3", "--expect.val/error=[null, 0.05]")
    assert fit("digits", *SHORT, *expect, "--trainer.logger", "false")[0] == 0
    config = yaml.safe_load((run_folder(tmp_path) / "config.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "digits.yaml").read_text())
    changed = {"epoch": 2, "nc1": 0.001, "val/error": [None, 0.05]}
    assert config["expect"] == recipe["expect"] | changed


@pytest.mark.parametrize("words", [(), ("--trainer.default_root_dir", "mine")])
def test_a_dry_run_leaves_nothing_behind_and_says_so(
    words: tuple[str, ...], fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    status, out, _ = fit("digits", "--trainer.fast_dev_run", "1", *words)
    assert status == 0
    assert out.rstrip().endswith("dry run: nothing kept")
    assert {path.name for path in tmp_path.rglob("*")} == {"scratch"}


def test_last_checkpoint_is_saved_after_every_epoch(own: Callable[[str], Path], fit: Fit) -> None:
    here = own("raise ZeroDivisionError")
    saver = "[{class_path: ModelCheckpoint, init_args: {save_last: true, save_top_k: 0}}]"
    with pytest.raises(ZeroDivisionError):
        fit("--config", "mine.yaml", "--trainer.callbacks", saver)
    folder = run_folder(here)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"][0][
            "init_args"
        ]["save_top_k"]
        == 0
    )  # as the user said it


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_share_one_folder_and_measure_together(strategy: str, tmp_path: Path) -> None:
    words = ("--trainer.devices", "2", "--trainer.strategy", strategy, *SHORT)
    done = ncmonitor("fit", "digits", *words, "--trainer.logger", "false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    assert list(read_history(folder)["epoch"]) == [0, 0, 1, 1, 2, 2]
    measurement = json.loads((folder / "run.json").read_text())["measurement"]
    assert (measurement["ranks"], measurement["splits"]["train"]) == (2, 1437)
    assert [path.name for path in folder.glob("checkpoints/*")] == ["last.ckpt"]
    assert done.stdout.count("report.html in a browser") == 1


def test_processes_started_together_need_a_named_folder(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    status, _, err = fit("digits", *SHORT)
    assert status == 2
    assert "cannot agree on a new folder; name one with --trainer.default_root_dir" in err
    assert not list(tmp_path.iterdir())


OWN = """
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset

class Own(pl.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            {at_epoch_1}
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(60) % 3), 10)
"""


@pytest.fixture
def own(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a model and its config; what it is given runs in epoch 1."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    monkeypatch.delitem(sys.modules, "own_model", raising=False)

    def write(at_epoch_1: str) -> Path:
        (tmp_path / "own_model.py").write_text(OWN.format(at_epoch_1=at_epoch_1))
        (tmp_path / "mine.yaml").write_text(
            "model:\n  class_path: own_model.Own\nnc:\n  splits: [train]\nfigures:\n  figures: []\n"
            "trainer:\n  max_epochs: 3\n  logger: false\n  enable_progress_bar: false\n"
        )
        return tmp_path

    return write


def test_a_config_of_ones_own_with_a_model_from_the_working_directory(
    fit: Fit, own: Callable[[str], Path]
) -> None:
    here = own("pass")
    assert fit("--config", "mine.yaml")[0] == 0
    folder = run_folder(here)
    assert folder.parent.name == "mine"
    assert list(read_history(folder)["epoch"]) == [0, 1, 2, 3]


def test_a_bug_in_the_model_is_not_hidden_and_the_report_is_kept(
    fit: Fit, own: Callable[[str], Path]
) -> None:
    here = own("raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        fit("--config", "mine.yaml")
    assert (run_folder(here) / "report.html").is_file()


def test_an_interrupted_run_still_gets_its_report(
    fit: Fit,
    own: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = own("raise KeyboardInterrupt")
    monkeypatch.setattr(sys, "argv", ["ncmonitor", "fit", "--config", "mine.yaml"])  # is recorded
    with pytest.raises(SystemExit) as stop:
        fit("--config", "mine.yaml")
    assert stop.value.code == 1
    folder = run_folder(here)
    assert list(read_history(folder)["epoch"]) == [0, 1]
    said = capsys.readouterr().out
    assert f"open {folder.relative_to(here)}/report.html in a browser" in said
    assert "  go on       ncmonitor fit --config mine.yaml --resume\n" in said


MISTAKES = {
    "digts": (
        f"unknown recipe 'digts', expected one of: {', '.join(all_recipes())}; "
        "did you mean 'digits' or 'digits_rot90'?"
    ),
    "own.yaml": "'own.yaml' is no recipe; for a file of your own: ncmonitor fit --config own.yaml",
    "--config nope.yaml": "--config needs a YAML file, but there is no 'nope.yaml'",
    "--config digits": "there is no 'digits'; the recipe: ncmonitor fit digits",
    "--config broken.yaml": "Problems parsing config: while parsing a flow mapping",
    "--config typo.yaml": "unknown option trainer.max_epoch; did you mean 'trainer.max_epochs'",
    "--config noclass.yaml": "model: No module named 'nope'",
    "--config incomplete.yaml": "no network given; name one (--model.name resnet18)",
    "digits --model.name convnet --trainer.logger false": "leave one out (--model.network null)",
    "digits --model.network null --model.name vgg11 --trainer.logger false": (
        "need at least 32 pixels a side"
    ),
    # Before 2,640 MB are downloaded.
    "stl10 --model.name vgg11 --model.stem small --trainer.logger false --data.root none": (
        "vgg11 has no choice of stems"
    ),
    "stl10 --model.stem small --trainer.logger false --data.root none": "its first stage at 96×96",
    "--trainer.max_epochs 3": "no model given; name a recipe (ncmonitor fit digits) or a config",
    "--trainer.max_epochs 3 digits": "unexpected word 'digits': a recipe's name comes first",
    # The whole word must be right: an abbreviation is a misspelling.
    "digits --trainer.max_epoch 3": "unknown option --trainer.max_epoch; did you mean '--trainer.",
    "digits --nc.schedul=3": "unknown option --nc.schedul; did you mean '--nc.schedule'",
    "digits --qqqq 3": "unknown option --qqqq; ncmonitor fit --help lists them",
    "digits --model.lrr 3": "unknown option model.lrr; did you mean 'model.lr'",
    "digits --model.network.hiden 3": "did you mean 'model.network.hidden'",
    "digits --data.batchsize 3": "unknown option data.batchsize; did you mean 'data.batch_size'",
    "digits --trainer.logger.projct x": "unknown option trainer.logger.projct",
    "digits --trainer.max_epochs": "argument --trainer.max_epochs: expected one argument",
    "digits --trainer.max_epochs 2.5": "max_epochs: expected a whole number or null, got '2.5'",
    "digits --seed_everything x": "seed_everything: expected true or false or a whole number",
    "digits --threads 0": "threads must be at least 1, but is 0",
    "digits --model.lr x": "model.lr: expected a number, got 'x'",
    "digits --model.network.hidden 64": "hidden: expected a list such as [256, 128], got '64'",
    "digits --model.network.hidden [0]": "every size must be at least 1",
    "digits --data.val_fraction 2": "val_fraction must lie in [0.01, 0.99], but is 2.0",
    "digits --data Digits": "data: there is no class 'Digits'; give its import path",
    "digits --trainer.logger WandbLoger": "trainer.logger: there is no class 'WandbLoger'",
    "digits --trainer.accelerator gpus": "trainer: You selected an invalid accelerator name",
    "digits --trainer.callbacks+=NeuralCollapse": "attaches NeuralCollapse by itself",
    "digits --trainer.callbacks+=CollapseFigures": "move its options from trainer.callbacks to fig",
    "digits --nc.schedule sometimes": "schedule= must be 'every_epoch'",
    "digits --resume": "nothing to resume: runs/digits with seed 0 has no run",
    "digits --resume --trainer.default_root_dir no": "no holds no config.yaml of a run",
    "digits --resume=3": "--resume takes no value, but got '3'",
    "digits --resum": "unknown option --resum; did you mean '--resume'",
    "digits --resume --ckpt_path no.ckpt": "--ckpt_path names one: leave one out",
    "digits --resume --seed_everything true": "--resume cannot know a seed that was drawn",
    "digits --resume --trainer.fast_dev_run 1": "keeps nothing: leave out --resume",
    "digits --expect {epoch: 3, nc11: 1}": "expect.nc11: unknown metric 'nc11'; did you mean 'nc1'",
    "digits --expect {epoch: 3, valid/nc1: 1}": "unknown split 'valid'; did you mean 'val'",
    "digits --expect {epoch: 3, nc1: low}": "expect.nc1 must be a number, the most it should be",
    "digits --expect {epoch: 3, nc1: [1]}": "or [least, most] with null for an open side",
    "digits --expect {epoch: 3, nc1: [null, null]}": "but is [None, None]",
    "digits --expect {epoch: 3, nc1: [2, 1]}": "expect.nc1: the least, 2, is more than the most, 1",
    "digits --expect {epoch: 3, nc1: .nan}": "expect.nc1 must be a number",
    "digits --expect {nc1: 1}": "expect.epoch must be the number of completed epochs",
    "digits --expect 3": "expect: expected names with values, as in {nc1: 0.01} or null, got '3'",
    "digits --ckpt_path no.ckpt": "there is no checkpoint 'no.ckpt' to continue from",
    # Found by the callback and the data, still before the first step.
    "digits --data.batch_size 5000 --trainer.logger false": "there are 1437 training images",
    "digits --model.network.inputs 9 --trainer.logger false": "use --model.network.inputs 64",
    "digits --model.network.classes 5 --trainer.logger false": "labels must lie in [0, 5)",
    "digits --model.network torch.nn.Flatten --trainer.logger false": "no linear classifier",
    "digits --nc.classifier foo --trainer.logger false": "the model has no module named 'foo'",
    "digits --trainer.max_epochs -1 --trainer.logger false": "set --trainer.max_epochs",
    "digits --trainer.max_epochs 0": "trainer.max_epochs is 0",
    "digits --trainer.limit_train_batches 0": "trainer.limit_train_batches is 0",
    "digits --model.lr -1 --trainer.logger false": "lr must not be negative, but is -1",
}
FILES = {
    "broken.yaml": "trainer: {max_epochs: 1\nmodel: 3",
    "typo.yaml": "trainer:\n  max_epoch: 1\nmodel: ImageClassifier",
    "noclass.yaml": "model:\n  class_path: nope.Model",
    "incomplete.yaml": "model:\n  class_path: ncmonitor.recipes.module.ImageClassifier",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    words: str, fit: Fit, tmp_path: Path
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    command, braces, expectation = words.partition("{")  # which has spaces
    status, out, err = fit(*command.split(), *([braces + expectation] if braces else []))
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("ncmonitor: error: ")]
    assert MISTAKES[words] in line
    assert len(line) < 340
    assert "Traceback" not in out + err
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_wandb_online_without_an_account_is_explained(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    status, _, err = fit("digits", *SHORT, "--trainer.logger.offline", "false")
    assert status == 2
    assert "ncmonitor: error: No API key configured. Use `wandb login` to log in." in err
    assert not (tmp_path / "runs").exists()
