"""The learning-rate sweeps are the paper's and run our command; the times of the recipes add up."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ncmonitor.cli import main
from ncmonitor.recipes.bundled import SWEEPS, recipes
from ncmonitor.recipes.data.datamodule import ImageData

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # bare `pytest`, unlike `python -m pytest`, leaves it out
    sys.path.append(str(ROOT))

from benchmarks import recipes as benchmark  # noqa: E402 - after the path is set

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
)


def sweep(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def rates(name: str) -> list[float]:
    values: list[float] = sweep(name)["parameters"]["model.lr"]["values"]
    return values


def test_the_sweeps_are_the_two_of_the_paper() -> None:
    assert {path.stem for path in SWEEPS.iterdir()} == {"papyan_lr", "papyan_lr_imagenet"}


@pytest.mark.parametrize(("name", "least"), [("papyan_lr", 1e-4), ("papyan_lr_imagenet", 1e-2)])
def test_a_sweep_tries_25_rates_evenly_spaced_in_the_logarithm(name: str, least: float) -> None:
    values = rates(name)
    assert values == [float(f"{rate:.3g}") for rate in np.geomspace(least, 0.25, 25)]
    if name == "papyan_lr":  # the authors' own, for MNIST with cross-entropy and the squared loss
        assert (values[20], values[16]) == (0.0679, 0.0184)


@pytest.mark.parametrize("name", ["papyan_lr", "papyan_lr_imagenet"])
def test_the_command_that_an_agent_makes_of_a_sweep_is_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb import wandb_agent
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution

    config = sweep(name)
    assert _validate_config_and_fill_distribution(config) == config
    assert set(config) == {
        *("name", "project", "program", "method", "metric", "parameters", "command"),
    }
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, "x")  # so that what the agent sets is undone
    started: list[list[str]] = []

    def start(command: list[str], **_: Any) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace()

    monkeypatch.setattr(wandb_agent, "AgentProcess", start)
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    vars(agent).update(
        _in_jupyter=False, _function=None, _forward_signals=False, _run_processes={},
        _sweep_command=config["command"],
    )  # fmt: skip
    arguments = {"model.lr": {"value": rates(name)[16]}}
    agent._command_run({"run_id": "x", "program": config["program"], "args": arguments})
    ((env, program, *words),) = started
    assert (env, program) == ("/usr/bin/env", "ncmonitor")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["model"]["init_args"]["lr"] == arguments["model.lr"]["value"]
    assert resolved["trainer"]["logger"]["init_args"]["offline"] is False


@pytest.mark.slow
def test_the_metric_of_a_sweep_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    threads = torch.get_num_threads()
    words = ["--trainer.max_epochs", "1", "--trainer.callbacks", "null"]
    assert main(["fit", "digits", *words, "--trainer.logger", "CSVLogger"]) == 0
    torch.set_num_threads(threads)
    (table,) = tmp_path.glob("runs/digits/*/lightning_logs/version_0/metrics.csv")
    logged = table.read_text(encoding="utf-8").splitlines()[0].split(",")
    for name in ("papyan_lr", "papyan_lr_imagenet"):
        metric = sweep(name)["metric"]
        assert (metric["name"] in logged, metric["goal"]) == (True, "maximize")


def test_a_recipes_learning_rate_is_one_of_its_sweep() -> None:
    for name, recipe in recipes().items():
        if recipe.networks:
            rate = yaml.safe_load(recipe.path.read_text())["model"]["init_args"]["lr"]
            assert rate in rates(f"papyan_lr{'_imagenet' * (name == 'imagenet')}"), name


# -- how long an epoch takes -----------------------------------------------------------------------


def test_an_epoch_has_as_many_steps_as_the_recipe_says() -> None:
    told, counted = {}, {}
    for name, recipe in recipes().items():
        config = yaml.safe_load(recipe.path.read_text())
        data: Any = benchmark.made(config["data"])
        if isinstance(data, ImageData):
            module: Any = None  # no step is taken
            counted[name] = benchmark.Work(module, data, 1).steps
            told[name] = config["trainer"]["log_every_n_steps"]
    assert counted == told
    assert len(told) == len(recipes()) - 1  # all but the one without images


def test_a_recipe_is_timed_with_its_own_network_and_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--threads", "1", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["recipes", "digits", "ufm", *options])
    monkeypatch.setattr("logging.disable", lambda level: None)  # it would hold for other tests
    threads = torch.get_num_threads()
    benchmark.main()
    torch.set_num_threads(threads)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "digits" in line]
    ((recipe, network, parameters, images, step, steps, epoch),) = rows
    assert (recipe, network, images, steps) == ("| digits", "mlp", "205 of 205", "7")
    assert parameters == "0.15 M"  # 64·256 + 2·256² weights, 3·2·256 scales and shifts, 2,570
    assert 0 < float(step) < 1
    assert epoch.endswith(" s |")


def test_a_step_of_a_few_images_is_scaled_up_but_for_the_update() -> None:
    assert benchmark.Step(images=8, work=2.0, update=0.5).of(batch_size=128) == 32.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0237, "0.024 s"), (99, "99 s"), (1244, "21 min"), (5499, "1.5 h"), (463914, "5.4 d")],
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert benchmark.duration(seconds) == text
