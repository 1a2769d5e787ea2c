"""The fits of :mod:`fits` give what is on record of them.

A change of a record is a change that users see: CHANGELOG has a line about it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RECORDS = {path.stem: json.loads(path.read_text()) for path in (HERE / "records").glob("*.json")}
FITS = sorted(RECORDS.keys() - {"commands"})
#: Other processors round otherwise, and bfloat16 rounds to 8 bits.
TOLERANCE = {"bfloat16": (0.05, 0.05)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("golden")
    words = [sys.executable, str(HERE / "fits.py"), str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_there_are_twelve_fits() -> None:
    assert len(FITS) == 12


def test_each_fit_is_on_record(outcome: dict[str, Any]) -> None:
    assert outcome.keys() == RECORDS.keys()


def same(ours: Any, recorded: Any, name: str) -> bool:
    relative, absolute = TOLERANCE.get(name, (1e-6, 1e-9))
    if isinstance(ours, float | int) and isinstance(recorded, float | int):
        return math.isclose(ours, recorded, rel_tol=relative, abs_tol=absolute)
    return bool(ours == recorded)


@pytest.mark.parametrize("name", FITS)
def test_columns_and_values_of_the_histories(outcome: dict[str, Any], name: str) -> None:
    ours, recorded = outcome[name]["histories"], RECORDS[name]["histories"]
    assert list(ours) == list(recorded)
    for file, table in recorded.items():
        assert ours[file]["columns"] == table["columns"]
        assert len(ours[file]["rows"]) == len(table["rows"])
        different = [
            (row[:3], column, value, known)
            for row, before in zip(ours[file]["rows"], table["rows"], strict=True)
            for column, value, known in zip(table["columns"], row, before, strict=True)
            if not same(value, known, name)
        ]
        assert different == []


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("what", ["keys", "files", "report", "headings"])
def test_what_a_fit_leaves(outcome: dict[str, Any], name: str, what: str) -> None:
    assert outcome[name][what] == RECORDS[name][what]


@pytest.mark.parametrize("name", [name for name in FITS if name != "bfloat16"])
def test_what_a_fit_prints(outcome: dict[str, Any], name: str) -> None:
    assert outcome[name]["printed"] == RECORDS[name]["printed"]


def test_what_commands_print(outcome: dict[str, Any]) -> None:
    assert outcome["commands"] == RECORDS["commands"]
