"""A run killed at its worst moments and resumed is the run that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import crash_worker
from ncmonitor.monitor.history import HISTORY_FILE, read_history
from ncmonitor.monitor.provenance import read_run

pytestmark = pytest.mark.slow  # the fits are short; the imports of their process are not

#: Where the run is killed, the epochs that are then in its history, and that of its checkpoint.
KILLS: list[tuple[str, list[int], int | None]] = [
    ("batch:0", [0], None),  # no checkpoint yet: the resumed run starts anew
    ("batch:4", [0, 1, 2, 3], 4),
    ("pass:3", [0, 1, 2], 2),
    ("append:3", [0, 1, 2, 3], 2),  # the file is ahead of the checkpoint
    ("torn:5", [0, 1, 2, 3], 4),  # and so is half a line
]
WORKER = Path(crash_worker.__file__)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("unbroken")
    crash_worker.fit(folder)
    table = read_history(folder / "run")
    onset = table["tpt_start_exact"].max()
    assert 1 <= onset < 3, "the clock must be running when the runs below are killed"
    return table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs that were killed and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), *(kill for kill, *_ in KILLS)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
    return folder


def assert_same_numbers(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    columns = expected.columns.drop("seconds")
    pd.testing.assert_frame_equal(
        got[columns].reset_index(drop=True),
        expected[columns].reset_index(drop=True),
        check_exact=True,
    )


@pytest.mark.parametrize(("kill", "whole", "checkpoint"), KILLS, ids=[k for k, *_ in KILLS])
def test_a_killed_run_loses_no_finished_epoch_and_resumes_as_if_nothing_had_happened(
    kill: str, whole: list[int], checkpoint: int | None, unbroken: pd.DataFrame, runs: Path
) -> None:
    killed, resumed = runs / kill / "killed", runs / kill / "resumed"
    codes = json.loads((runs / kill / "codes.json").read_text(encoding="utf-8"))
    assert codes == [-signal.SIGKILL, 0], (runs / "stderr").read_text(encoding="utf-8")

    left = read_history(killed / "run")
    if kill.startswith("torn"):
        text = (killed / "run" / HISTORY_FILE).read_text(encoding="utf-8")
        assert not text.endswith("\n")
        assert left["epoch"].tolist()[-1] == 5  # its train row was whole, that of val was cut
        assert left["split"].tolist()[-1] == "train"
        left = left[:-1]
    assert_same_numbers(left, unbroken[unbroken["epoch"].isin(whole)])
    assert read_run(killed / "run")["finished"] is None
    last = killed / "last.ckpt"
    assert last.exists() == (checkpoint is not None)
    if checkpoint is not None:
        saved = torch.load(last, weights_only=True)
        assert saved["global_step"] == 3 * checkpoint
        known = {row["epoch"] for row in saved["callbacks"]["NeuralCollapse"]["rows"]}
        assert known == {epoch for epoch in crash_worker.MEASURED if epoch <= checkpoint}

    assert_same_numbers(read_history(resumed / "run"), unbroken)
    assert read_run(resumed / "run")["finished"] is not None
    # Only a run that could not be resumed leaves its beginning aside.
    aside = [path.name for path in sorted((resumed / "run").glob("history.*.csv"))]
    assert aside == ([] if checkpoint else ["history.1.csv"])
