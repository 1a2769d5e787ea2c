"""The table on disk: exact, whole after a kill, and refused in words when it is not ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from histories import collapse_rows
from ncmonitor import InputError
from ncmonitor.catalogue import FIT_NAMES, METRIC_NAMES, PHASE_NAMES
from ncmonitor.monitor.history import (
    COLUMNS,
    HISTORY_FILE,
    append_history,
    history_frame,
    read_history,
    start_history,
)

NUMBERS = [name for name in COLUMNS if name not in ("epoch", "step", "split")]


def row(epoch: int, split: str = "train", **values: float) -> dict[str, Any]:
    full = dict.fromkeys(NUMBERS, 0.25 * epoch)
    return {"epoch": epoch, "step": 10 * epoch, "split": split} | full | values


def written(folder: Path, *epochs: int) -> Path:
    start_history(folder)
    for epoch in epochs:
        append_history(folder, [row(epoch), row(epoch, "val")])
    return folder / HISTORY_FILE


def test_the_columns_are_those_of_the_contract() -> None:
    names = ["epoch", "step", "split", *FIT_NAMES, *METRIC_NAMES, *PHASE_NAMES, "seconds"]
    assert list(COLUMNS) == names


def test_numbers_read_back_to_the_last_bit(tmp_path: Path) -> None:
    awkward = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e-12, 3.0, math.inf]
    start_history(tmp_path)
    rows = [
        row(i, nc1=value, nc1_rank=9, error=np.float64(value)) for i, value in enumerate(awkward)
    ]
    append_history(tmp_path, rows)
    frame = read_history(tmp_path)
    assert [v.hex() for v in frame["nc1"]] == [float(v).hex() for v in awkward]
    assert [v.hex() for v in frame["error"]] == [float(v).hex() for v in awkward]
    pd.testing.assert_frame_equal(frame, history_frame(rows), check_exact=True)


def test_the_table_is_typed_whatever_it_holds(tmp_path: Path) -> None:
    written(tmp_path, 0, 1)
    frame = read_history(str(tmp_path))
    assert tuple(frame.columns) == COLUMNS
    assert frame[["epoch", "step"]].dtypes.tolist() == [np.dtype("int64")] * 2
    assert set(frame[NUMBERS].dtypes) == {np.dtype("float64")}
    assert frame["split"].tolist() == ["train", "val"] * 2
    assert frame["epoch"].tolist() == [0, 0, 1, 1]
    assert history_frame([]).dtypes.tolist() == frame.dtypes.tolist()


def test_undefined_and_not_applicable_are_written_apart_and_both_read_as_nan(
    tmp_path: Path,
) -> None:
    start_history(tmp_path)
    append_history(tmp_path, [{"epoch": 1, "step": 2, "split": "val", "nc1": math.nan, "error": 0}])
    line = (tmp_path / HISTORY_FILE).read_text().splitlines()[1].split(",")
    by_name = dict(zip(COLUMNS, line, strict=True))
    assert (by_name["nc1"], by_name["tpt_active"], by_name["error"]) == ("nan", "", "0")
    frame = read_history(tmp_path)
    assert math.isnan(frame["nc1"][0])
    assert math.isnan(frame["tpt_active"][0])


def test_a_name_that_is_no_column_is_not_lost_silently(tmp_path: Path) -> None:
    start_history(tmp_path)
    with pytest.raises(ValueError, match="not in fieldnames: 'nc5'"):
        append_history(tmp_path, [row(1, nc5=1.0)])


def test_wherever_a_kill_cuts_the_file_every_whole_line_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 1, 2)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (last + 1, last + 4, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        frame = read_history(tmp_path)
        assert frame["epoch"].tolist() == [0, 0, 1, 1, 2]
    path.write_bytes(whole)
    assert read_history(tmp_path)["epoch"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_table_without_a_row_says_so(tmp_path: Path) -> None:
    start_history(tmp_path)
    with pytest.raises(InputError, match=r"history\.csv has no measured epoch yet"):
        read_history(tmp_path)


def test_columns_of_another_version_are_left_out_or_nan(tmp_path: Path) -> None:
    text = "epoch,step,split,nc1,nc_of_the_future\n3,30,train,0.5,7\n"
    (tmp_path / HISTORY_FILE).write_text(text)
    frame = read_history(tmp_path)
    assert tuple(frame.columns) == COLUMNS
    assert frame["nc1"].tolist() == [0.5]
    assert frame["nc3_self_duality"].isna().all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "is not a history: expected the columns epoch, step, split, but epoch"),
        (b"epoch,split\n1,train\n", "is not a history: .* but step is missing"),
        (b"", "has no measured epoch yet: it is empty"),
        (b"epoch,st", "has no measured epoch yet: its header is cut short"),
        (b"\xff\xfe\x00e\x00p\n\x00", "is not a history"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not a history"),
        (b"epoch,step,split,nc1\n1,2,train,abc\n", "is damaged: .*abc"),
        (b"epoch,step,split,nc1\n1,2,train,\xff\xfe\n", "is damaged"),
        (b"epoch,step,split,nc1\n,2,train,1\n", "is damaged"),
        (b"epoch,step,split,nc1\n1.5,2,train,1\n", "is damaged"),
        (b"epoch,step,split,nc1\n1,2\n", "is damaged"),
        (b'epoch,step,split,nc1\n1,2,"' + b"x" * 200_000 + b'",1\n', "is damaged"),
    ],
    ids=["foreign", "no_step", "empty", "cut_header", "utf16", "png", "text", "bytes", "no_epoch",
         "fraction", "short", "endless"],
)  # fmt: skip
def test_what_is_no_history_is_refused_in_words(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / HISTORY_FILE).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_history(tmp_path)
    assert str(tmp_path / HISTORY_FILE) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'nowhere'} does not exist")):
        read_history(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    with pytest.raises(InputError, match=re.escape(f"but {path} is a file")):
        read_history(path)


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run$"):
        read_history(tmp_path)


def test_run_folders_below_are_listed_up_to_five_and_four_levels_down(tmp_path: Path) -> None:
    for place in ("runs/one", "a/b/c/d", "a/b/c/d/too_deep"):
        written(tmp_path / place, 1)
    with pytest.raises(InputError, match="run folders below it: ") as caught:
        read_history(tmp_path)
    listed = str(caught.value).split("below it: ")[1].split(", ")
    assert listed == [str(tmp_path / "runs" / "one"), str(tmp_path / "a" / "b" / "c" / "d")]
    for number in range(9):
        written(tmp_path / f"more_{number}", 1)
    with pytest.raises(InputError) as caught:
        read_history(tmp_path)
    assert len(str(caught.value).split("below it: ")[1].split(", ")) == 5


def test_a_new_start_keeps_the_rows_it_is_given_and_no_others(tmp_path: Path) -> None:
    written(tmp_path, 0, 1, 2)
    start_history(tmp_path, [row(0), row(1)])
    append_history(tmp_path, [row(2)])
    assert read_history(tmp_path)["epoch"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [HISTORY_FILE]


def test_a_start_that_fails_leaves_the_old_table_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(tmp_path, 0, 1).read_bytes()

    def killed(self: Path, target: Path) -> None:
        raise OSError("killed")

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(OSError, match="killed"):
        start_history(tmp_path, [row(0)])
    assert (tmp_path / HISTORY_FILE).read_bytes() == before


def test_an_epoch_is_one_write_and_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_history(tmp_path)
    path, forced = tmp_path / HISTORY_FILE, []
    size = path.stat().st_size
    monkeypatch.setattr("os.fsync", lambda _: forced.append(path.stat().st_size))
    append_history(tmp_path, [row(1), row(1, "val")])
    assert forced == [path.stat().st_size]
    assert forced[0] > size


def test_a_clock_that_the_file_lacks_is_derived_and_told(tmp_path: Path) -> None:
    rows = collapse_rows(range(20), exits=(15,), failed=(17,))
    start_history(tmp_path / "new", rows)
    bare = [{k: v for k, v in row.items() if "tpt" not in k} for row in rows]
    start_history(tmp_path / "old", bare, [name for name in COLUMNS if "tpt" not in name])
    new, old = read_history(tmp_path / "new"), read_history(tmp_path / "old")
    for name in ("tpt_start_exact", "tpt_active", "tpt_exits"):
        told = new.loc[new["split"] == "train", name]
        assert old.loc[old["split"] == "train", name].equals(told), name
    assert new.attrs["cautions"] == []
    assert "derived from the training error" in old.attrs["cautions"][0]
    assert "tpt_start_effective" in old.attrs["unrecorded"]


def test_without_a_train_error_no_clock_is_derived(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_text("epoch,step,split,nc1\n3,30,train,0.5\n")
    frame = read_history(tmp_path)
    assert frame["tpt_active"].isna().all()
    assert frame.attrs["cautions"] == []


def test_rows_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    start_history(tmp_path, collapse_rows(range(4)))
    path = tmp_path / HISTORY_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], '1,2,"gar\n', "5,60,train\n", *lines[3:], "9,108,tra"]))
    frame = read_history(tmp_path)
    assert len(frame) == 8
    damaged, torn = frame.attrs["cautions"]
    assert damaged.startswith("2 of 10 rows of history.csv cannot be read")
    assert "line 4" in damaged
    assert torn.startswith("The last row of history.csv is cut short")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cells: cells[:5], f"line 3 has 5 cells where the header has {len(COLUMNS)}"),
        (lambda cells: ["x", *cells[1:]], "line 3 has 'x' in the column epoch, not a whole number"),
        (lambda cells: [*cells[:3], "a,b"], "line 3 has 5 cells where the header"),
        (lambda cells: [*cells[:-1], "1s"], "line 3 has '1s' in the column seconds, not a number"),
    ],
)
def test_a_damaged_row_is_told_in_words(
    change: Callable[[list[str]], list[str]], said: str, tmp_path: Path
) -> None:
    start_history(tmp_path, collapse_rows(range(4)))
    path = tmp_path / HISTORY_FILE
    lines = path.read_text().splitlines()
    lines[2] = ",".join(change(lines[2].split(",")))
    path.write_text("\n".join(lines) + "\n")
    frame = read_history(tmp_path)
    assert len(frame) == 7
    assert said in frame.attrs["cautions"][0]
