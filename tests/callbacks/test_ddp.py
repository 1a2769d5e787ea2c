"""Under DDP the callback gives one process's numbers on every rank, and no rank waits in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from ddp_worker import signs, sorted_loader
from ncmonitor import CollapseReport, InputError, measure_collapse
from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.symmetry_table import read_symmetry
from toys import Toy, TrainOnly, blobs, train_loader, trainer, val_blobs, val_loader

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "support" / "ddp_worker.py"

pytestmark = pytest.mark.ddp


def run(folder: Path, *arguments: str) -> Path:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{WORKER.parent}"}
    command = [sys.executable, str(WORKER), str(folder), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the fits on so many ranks."""
    ranks = str(request.param)
    return run(tmp_path_factory.mktemp("ddp"), ranks) / ranks


def told(folder: Path, fit: str) -> list[dict[str, Any]]:
    """Return what every rank says of a fit."""
    files = sorted(folder.glob(f"{fit}.*.json"))
    assert len(files) > 1
    return [json.loads(file.read_text()) for file in files]


def same_rows(ranks: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the history, once every rank has been found to have it to the last bit."""
    assert {each["error"] for each in ranks} == {""}
    assert len({json.dumps(each["rows"]) for each in ranks}) == 1
    return pd.DataFrame(ranks[0]["rows"])


def by_hand(folder: Path, fit: str, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """Measure the weights that rank zero ended with, in one process, from features by hand."""
    module = Toy().to(dtype)
    module.load_state_dict(torch.load(folder / f"{fit}.0.pt", weights_only=True))
    module.eval()
    reports: dict[str, CollapseReport] = {}
    for split, (inputs, labels) in (("train", blobs()), ("val", val_blobs())):
        with torch.no_grad():
            features = module.body(inputs.to(dtype))
        reference = reports["train"].moments if reports else None
        reports[split] = measure_collapse(
            features,
            labels,
            module.head.weight,
            module.head.bias,
            reference=reference,
            **options,
        )
    return reports


def check(rows: pd.DataFrame, reports: dict[str, Any], tolerance: float) -> None:
    last = rows[rows["epoch"] == rows["epoch"].max()].set_index("split")
    for split, report in reports.items():
        values = report.as_dict() | {"error": report.error, "cross_entropy": report.cross_entropy}
        for name, value in values.items():
            quantity = CATALOGUE.get(name.partition("/")[0])
            if split == "val" and quantity is not None and quantity.once:
                continue
            got = last.loc[split][name]
            assert got == pytest.approx(value, rel=tolerance, abs=1e-12, nan_ok=True), (split, name)


def test_the_numbers_are_those_of_one_process(folder: Path) -> None:
    rows = same_rows(told(folder, "plain"))
    check(rows, by_hand(folder, "plain", torch.float32), 1e-6)
    assert set(rows["split"]) == {"train", "val", "null", "train/layer/body.2", "val/layer/body.2"}
    assert rows.query("split == 'train'")["min_class_count"].tolist() == [15] * 4  # none twice


def test_in_double_precision_to_twelve_digits_with_classes_missing_on_ranks(folder: Path) -> None:
    reports = by_hand(folder, "double", torch.float64, metrics="all")
    check(same_rows(told(folder, "double")), reports, 1e-12)


def test_training_is_bit_identical_to_training_without(folder: Path) -> None:
    watched, alone = told(folder, "plain"), told(folder, "alone")
    assert [each["losses"] for each in watched] == [each["losses"] for each in alone]
    for rank in range(len(alone)):
        states = [torch.load(folder / f"{fit}.{rank}.pt") for fit in ("plain", "alone")]
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_failure_on_one_rank_is_nan_on_all_and_nobody_waits(folder: Path) -> None:
    ranks = told(folder, "fails")
    rows = same_rows(ranks)
    assert rows["nc1"].isna().tolist() == [False, False, True, False]
    assert [len(each["warnings"]) for each in ranks] == [1] + [0] * (len(ranks) - 1)
    assert "on rank 1: RuntimeError: boom on one rank" in ranks[0]["warnings"][0]


def test_weights_that_fail_on_one_rank_are_nan_on_all(folder: Path) -> None:
    ranks = told(folder, "weights")
    train = same_rows(ranks).query("split == 'train'")
    assert train["nc1"].isna().tolist() == [False, False, True, False]
    assert "on rank 1: RuntimeError: no weights on one rank" in ranks[0]["warnings"][0]


def test_lightning_does_not_ask_for_every_key_to_be_synchronised(folder: Path) -> None:
    assert not any("self.log('nc/" in w for w in told(folder, "plain")[0]["all_warnings"])


def test_memory_that_runs_out_on_one_rank_halves_the_batches_of_all(folder: Path) -> None:
    ranks = told(folder, "memory")
    assert same_rows(ranks)["nc1"].notna().all()
    said = [w for w in ranks[0]["all_warnings"] if "out of memory" in w]
    assert len(said) == 1
    assert "batches of 16: trying 8" in said[0]


def test_a_mistake_on_one_rank_stops_all_before_the_first_step(folder: Path) -> None:
    ranks = told(folder, "refused")
    assert all(each["error"].startswith("InputError") for each in ranks)
    assert all("no such key on this machine" in each["error"] for each in ranks)
    assert "on rank 1: " in ranks[0]["error"]
    assert not any(each["losses"] for each in ranks)


def test_fewer_samples_than_ranks_are_enough(folder: Path) -> None:
    rows = same_rows(told(folder, "few"))
    count = 3 if len(told(folder, "few")) == 2 else 2
    assert rows.query("split == 'train'")["n_classes_present"].tolist() == [count] * 4


def test_online_moments_are_those_of_all_ranks(folder: Path) -> None:
    ranks = told(folder, "online")
    rows = same_rows(ranks).query("split == 'online'")
    assert rows["epoch"].tolist() == [1, 2, 3]
    padded = -(-45 // len(ranks)) * len(ranks)  # Lightning's sampler repeats some
    assert (rows["min_class_count"] <= padded / 3).all()
    assert rows["nc1_quotient"].notna().all()
    assert rows["nc1"].isna().all()


def test_symmetry_is_that_of_one_process_on_the_same_subset(folder: Path) -> None:
    ranks = told(folder, "symmetry")
    assert {each["error"] for each in ranks} == {""}
    assert len({json.dumps(each["symmetry"]) for each in ranks}) == 1
    rows = pd.DataFrame(ranks[0]["symmetry"]).query("epoch == 3")
    module = Toy()
    module.load_state_dict(torch.load(folder / "symmetry.0.pt", weights_only=True))
    alone = SymmetryMonitor(signs(), samples=40, schedule=[0], verbose=False, parameters=False)
    pl.seed_everything(3, verbose=False)
    fit = trainer(alone, max_epochs=1, default_root_dir=folder / "alone")
    fit.fit(module, sorted_loader(), val_loader())
    begun = alone.history.query("epoch == 0")
    keys = ["split", "group", "element"]
    names = ["inv_error", "inv_error_logits", "acc", "acc_orbit_worst", "orbit_quot", "nc1_aug"]
    of_ranks = rows.query("group != 'parameters'").set_index(keys)[names].astype(float)
    of_one = begun.set_index(keys)[names]
    pd.testing.assert_frame_equal(of_ranks, of_one, rtol=1e-6)
    law = rows.query("group == 'parameters' and element == ''")["w_mean_law_ratio"]
    assert law.tolist() == pytest.approx([1], abs=1e-4)
    on_disk = read_symmetry(folder / "symmetry")
    assert on_disk["epoch"].unique().tolist() == [0, 1, 2, 3]


def test_symmetry_that_fails_on_one_rank_is_nan_on_all(folder: Path) -> None:
    ranks = told(folder, "symmetry_fails")
    assert len({json.dumps(each["symmetry"]) for each in ranks}) == 1
    plain = pd.DataFrame(ranks[0]["symmetry"]).query("group == 'plain' and split == 'train'")
    assert plain["nc1"].isna().tolist() == [False, False, True, False]


def test_streams_are_read_as_every_rank_gives_them_and_said_so(folder: Path) -> None:
    ranks = told(folder, "stream")
    assert same_rows(ranks)["min_class_count"].tolist() == [15] * 4
    assert any("is a stream" in words for words in ranks[0]["all_warnings"])


def test_monitors_and_the_terminal_phase_decide_alike_on_every_rank(folder: Path) -> None:
    stopped = told(folder, "monitors")
    assert {each["epochs"] for each in stopped} == {2}
    assert [file.name for file in (folder / "keep").iterdir()] == ["best.ckpt"]
    phase = told(folder, "phase")
    assert len({(each["epochs"], each["reason"], each["onset"]) for each in phase}) == 1
    onset = int(same_rows(phase)["tpt_start_exact"].dropna().iloc[-1])
    assert phase[0]["epochs"] == onset + 2
    saved = torch.load(phase[0]["onset"], weights_only=True)
    assert saved["epoch"] == onset - 1


def test_rank_zero_alone_writes_the_files(folder: Path) -> None:
    on_disk = read_history(folder / "plain")
    assert on_disk["epoch"].tolist() == [row["epoch"] for row in told(folder, "plain")[0]["rows"]]
    assert sorted(file.name for file in (folder / "plain").iterdir()) == ["history.csv", "run.json"]
    run_facts = json.loads((folder / "plain" / "run.json").read_text())
    assert run_facts["measurement"]["ranks"] == len(told(folder, "plain"))
    assert run_facts["measurement"]["splits"] == {"train": 45, "val": 30}


@pytest.mark.slow
def test_processes_that_lightning_starts_bring_their_history_home(tmp_path: Path) -> None:
    run(tmp_path, "ddp_notebook")  # ddp_spawn: recipes/test_fit.py
    [parent] = [json.loads(f.read_text()) for f in tmp_path.glob("started.*.json")]
    assert [row["epoch"] for row in parent["rows"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    train = [row for row in parent["rows"] if row["split"] == "train"]
    assert train[-1]["nc1"] == parent["nc1"]
    reports = by_hand(tmp_path, "started", torch.float32)
    check(pd.DataFrame(parent["rows"]), reports, 1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FSDPStrategy", "shards the parameters.*strategy='ddp'"),
        ("DeepSpeedStrategy", "wraps and may shard.*strategy='ddp'"),
        ("ModelParallelStrategy", "spreads single layers.*strategy='ddp'"),
    ],
)
def test_sharded_strategies_are_refused_at_setup_with_the_reason(name: str, words: str) -> None:
    own = type("UsersOwn", (type(name, (pl.strategies.SingleDeviceStrategy,), {}),), {})
    fit = trainer(NeuralCollapse(verbose=False), strategy=own(device="cpu"))
    with pytest.raises(InputError, match=f"cannot measure under UsersOwn: it {words}"):
        fit.fit(TrainOnly(), train_loader())
    assert fit.global_step == 0
