"""Several processes measure what one process measures, agree to the last bit, and never hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cases import BY_NAME
from ncmonitor.statistics.process_group import SINGLE_PROCESS

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "support" / "ranks_worker.py"

pytestmark = pytest.mark.ddp

#: Decided by rounding, whoever does it: a singular value that is 0, ties between equal rows, and
#: what is left of a class after its first sample has been 10⁴ times as far away.
ROUNDING = {
    ("bottleneck_float64", "s_min_ratio"),
    ("near_duplicates_float64", "nc1_cdnv_directional"),  # ‖δ‖⁻⁴ of means 1e-8 apart
    ("equal_rows", "nc4_disagreement"),
    ("equal_rows", "error"),
    *(("outlier_first_1e+04", name) for name in ("mse_l_nc23", "mse_l_nc1", "vci")),
    ("common_row", "cross_entropy"),  # logits of 1e4, in float32
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the numbers of 2 ranks, of 3, and of one process."""
    out = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{WORKER.parent}"}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(out), "2", "3"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(params=[2, 3])
def found(request: pytest.FixtureRequest, folder: Path) -> list[Any]:
    """What each rank has found."""
    ranks = range(request.param)
    return [json.loads((folder / f"{len(ranks)}.{r}.json").read_text()) for r in ranks]


def test_every_rank_has_the_same_numbers_to_the_last_bit(found: list[Any]) -> None:
    texts = {json.dumps(each["numbers"]) for each in found}
    assert len(texts) == 1


def test_the_numbers_are_those_of_one_process(found: list[Any], folder: Path) -> None:
    one, several = json.loads((folder / "alone.json").read_text()), found[0]["numbers"]
    assert one.keys() == several.keys()
    assert {"read twice", "null", "fewer samples than ranks"} < one.keys()
    for name in one:
        case = BY_NAME.get(name.removeprefix("val:"))
        exact = case is not None and case.features.dtype == torch.float64
        tolerance = 1e-12 if exact else 1e-6
        for metric, expected in one[name].items():
            if (name, metric) in ROUNDING:
                continue
            got = several[name][metric]
            assert got == pytest.approx(expected, rel=tolerance, abs=1e-28, nan_ok=True), (
                f"{metric} of {name}"
            )


def test_shuffled_labels_are_shuffled_alike(found: list[Any]) -> None:
    numbers = found[0]["numbers"]
    assert numbers["null"]["nc1"] > 10 * numbers["imbalanced"]["nc1"]
    assert numbers["null"]["nc1"] == pytest.approx(numbers["null, read twice"]["nc1"], rel=1e-6)


def test_a_failure_on_one_rank_is_heard_of_on_all(found: list[Any]) -> None:
    last = len(found) - 1
    for rank, each in enumerate(found):
        words = each["failures"]
        assert words["fine again"] == "nothing"
        assert words["dtypes"].startswith("InputError: ranks have features of different")
        if rank == last:
            assert words["first pass"] == words["second pass"] == "RuntimeError: boom"
            continue
        told = f"MeasurementError: on rank {last}: RuntimeError: boom"
        assert words["first pass"] == words["second pass"] == told
        assert words["input"] == f"InputError: on rank {last}: a label is wrong"
        assert words["memory"] == f"OutOfMemoryError: on rank {last}: no memory left"


def test_one_process_needs_no_process_group() -> None:
    assert (SINGLE_PROCESS.rank, SINGLE_PROCESS.size, SINGLE_PROCESS.gather(3)) == (0, 1, [3])
    total = torch.ones(2)
    assert SINGLE_PROCESS.sum(total) is total
    with pytest.raises(ValueError, match="boom"), SINGLE_PROCESS.together():
        raise ValueError("boom")
