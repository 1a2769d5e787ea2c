"""The table of symmetry on disk: typed, whole after a kill, and refused in words when not ours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ncmonitor import InputError
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.monitor.history import append_history, start_history
from ncmonitor.monitor.symmetry_table import (
    SYMMETRY_FILE,
    SYMMETRY_KEYS,
    read_symmetry,
    symmetry_frame,
)
from ncmonitor.symmetry.rows import COLUMNS, KEYS, NUMBERS
from symmetries import symmetry_rows

ROWS = symmetry_rows([0, 1, 5], layers=("body.2",))


def written(folder: Path) -> Path:
    start_history(folder, (), COLUMNS, file=SYMMETRY_FILE)
    append_history(folder, ROWS, COLUMNS, file=SYMMETRY_FILE)
    return folder / SYMMETRY_FILE


def test_numbers_and_names_read_back_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path)
    table = read_symmetry(tmp_path)
    pd.testing.assert_frame_equal(table, symmetry_frame(ROWS), check_exact=True)
    assert SYMMETRY_KEYS == ("epoch", "step", "split", "layer", "group", "element")
    assert table[["epoch", "step"]].dtypes.tolist() == [np.dtype("int64")] * 2
    assert set(table[list(NUMBERS)].dtypes) == {np.dtype("float64")}
    assert table["layer"].tolist() == [row["layer"] for row in ROWS]
    assert set(table["element"]) == {"", "rot90", "rot180", "rot270", "0 -> 2"}


def test_what_does_not_apply_to_a_row_is_nan(tmp_path: Path) -> None:
    written(tmp_path)
    table = read_symmetry(str(tmp_path))
    plain = table[table["group"] == "plain"]
    assert plain["inv_error"].isna().all()
    assert plain["nc1"].notna().all()
    assert math.isnan(table[table["group"] == "rotations90"].iloc[0]["lie_error"])
    assert read_symmetry(tmp_path).attrs["unrecorded"] == []


def test_columns_that_nothing_was_written_to_are_named(tmp_path: Path) -> None:
    start_history(tmp_path, symmetry_rows([0], flows=()), COLUMNS, file=SYMMETRY_FILE)
    unrecorded = ["lie_error", "lie_error_logits"]
    assert read_symmetry(tmp_path).attrs["unrecorded"] == unrecorded


def test_wherever_a_kill_cuts_the_file_every_whole_line_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (last + 1, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        table = read_symmetry(tmp_path)
        assert len(table) == len(ROWS) - 1
        [caution] = table.attrs["cautions"]
        assert caution.startswith("The last row of symmetry.csv is cut short")
    path.write_bytes(whole)
    assert read_symmetry(tmp_path).attrs["cautions"] == []


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("1,2\n", "has 2 cells where the header has"),
        ("x" + "," * (len(COLUMNS) - 1) + "\n", "has 'x' in the column epoch, not a whole number"),
    ],
)
def test_a_damaged_line_is_left_out_with_a_caution(tmp_path: Path, damage: str, why: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + damage)
    table = read_symmetry(tmp_path)
    assert len(table) == len(ROWS)
    [caution] = table.attrs["cautions"]
    assert caution.startswith(f"1 of {len(ROWS) + 1} rows of symmetry.csv cannot be read")
    assert why in caution


def test_columns_of_another_version_are_left_out_or_nan(tmp_path: Path) -> None:
    keys = ",".join(KEYS)
    text = f"{keys},inv_error,of_the_future\n3,30,train,,flips,flip_h,0.25,7\n"
    (tmp_path / SYMMETRY_FILE).write_text(text)
    table = read_symmetry(tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert table.iloc[0]["inv_error"] == 0.25
    assert math.isnan(table.iloc[0]["acc"])


def test_a_folder_without_the_table_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a symmetry\.csv, but .* holds none; .*SymmetryMonitor"):
        read_symmetry(tmp_path)
    written(tmp_path / "runs" / "mine")
    with pytest.raises(InputError, match=r"run folders below it: .*mine"):
        read_symmetry(tmp_path)
    with pytest.raises(InputError, match="gone does not exist"):
        read_symmetry(tmp_path / "gone")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no measured epoch yet: it is empty"),
        ("epoch,step,split", "has no measured epoch yet: its header is cut short"),
        (",".join(COLUMNS) + "\n", "has no measured epoch yet: only a header"),
        ("epoch,step,split,nc1\n1,2,train,3\n", "is not a table of symmetry: .* but layer, group"),
    ],
)
def test_what_is_no_table_of_symmetry_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / SYMMETRY_FILE).write_text(content)
    with pytest.raises(InputError, match=message):
        read_symmetry(tmp_path)


def test_a_table_without_rows_has_its_columns_and_types() -> None:
    empty = symmetry_frame([])
    assert tuple(empty.columns) == COLUMNS
    assert empty.dtypes.tolist() == symmetry_frame(ROWS).dtypes.tolist()


def test_every_number_of_the_table_is_in_the_catalogue() -> None:
    assert set(NUMBERS) <= set(CATALOGUE)
