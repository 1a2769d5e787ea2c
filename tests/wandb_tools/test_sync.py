"""``ncmonitor sync``: a run folder replayed, read back by W&B's reader or a loopback server."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from ncmonitor.callbacks import NeuralCollapse, SymmetryMonitor
from ncmonitor.cli import main
from ncmonitor.errors import InputError
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.symmetry_table import read_symmetry
from ncmonitor.symmetry import Action, Group
from ncmonitor.wandb_tools import sync
from ncmonitor.wandb_tools.sync import PATIENCE, sync_run
from ncmonitor.wandb_tools.sync_note import NOTE_FILE, Synced, read_notes, write_notes
from toys import Toy, train_loader, trainer, val_loader
from wandb_files import definitions, offline_run, records, summary
from wandb_server import Server, wandb_server

EPOCHS = 4
#: A red dot.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was logged live, too: history, run.json, and W&B's own offline run."""
    folder = tmp_path_factory.mktemp("live")
    monitor = NeuralCollapse(run_dir=folder, layers="body.0", verbose=False)
    monitor.recipe = "toys"
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    trainer(monitor, max_epochs=EPOCHS, logger=logger).fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    return folder


@pytest.fixture
def run_dir(live: Path, tmp_path: Path) -> Path:
    """What a run leaves without W&B, with options and a figure."""
    folder = tmp_path / "20260101-120000-seed0"
    folder.mkdir()
    for name in ("history.csv", "run.json"):
        shutil.copy(live / name, folder)
    (folder / "config.yaml").write_text("model: {lr: 0.05}\ntrainer: {max_epochs: 4}\n")
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(_PNG)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wandb.teardown()  # the run of another fixture has read the settings of this process
    with wandb_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def replayed(folder: Path) -> Path:
    """Return the offline run that the sync of a folder has made."""
    return offline_run(folder / "wandb_sync")


def cut(folder: Path, epochs: int) -> None:
    """Leave the first epochs of a history, as of a run that is under way."""
    path = folder / "history.csv"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(x for x in lines if int(x.split(",")[0]) <= epochs))


def numbers(run: Path) -> list[dict[str, float]]:
    """Return the measured rows of a run: our scalars by key."""
    items = [record["item"] for record in records(run, "history")]
    return [
        {key: value for key, value in item.items() if key.startswith("nc/")}
        for item in items
        if "nc/train/nc1" in item
    ]


# -- offline ---------------------------------------------------------------------------------------


def test_the_replay_has_the_keys_numbers_axes_and_summary_of_the_live_run(
    live: Path, run_dir: Path
) -> None:
    done = sync_run(run_dir, mode="offline")
    assert (done.rows, done.new) == (len(read_history(run_dir)),) * 2
    replay, logged = replayed(run_dir), offline_run(live)
    assert run_dir / str(done.folder) == replay
    assert numbers(replay) == numbers(logged)
    axes = [
        {
            key: (defined.get("step_metric"), defined.get("summary"))
            for key, defined in definitions(run).items()
            if key.startswith("nc/")
        }
        for run in (replay, logged)
    ]
    assert axes[0].items() <= axes[1].items()  # live it is not known what will be measured
    assert set(numbers(logged)[-1]) <= set(axes[0])
    summaries = [
        {k: v for k, v in summary(run)["summary"].items() if k.startswith("nc/")}
        for run in (replay, logged)
    ]
    assert summaries[0] == summaries[1]
    assert set(summaries[0]["nc/train/layer/body.0/nc1"]) == {"min", "last"}


def test_the_replay_is_filled_with_options_tags_table_and_figures(run_dir: Path) -> None:
    sync_run(run_dir, mode="offline", project="papers")
    run = replayed(run_dir)
    whole = summary(run)
    assert (whole["name"], whole["project"]) == (run_dir.name, "papers")
    assert whole["config"]["model"] == {"lr": 0.05}
    how = whole["config"]["ncmonitor"]
    assert (how["classifier"], how["recipe"]) == ("head", "toys")
    assert how["tpt_start_exact"] == whole["summary"]["nc/tpt/tpt_start_exact"]["last"]
    assert how["versions"]["python"]
    assert whole["tags"] == ["neural-collapse", "toys", "convention:per_class"]
    assert records(run, "run")[-1]["run_group"] == "toys"
    assert whole["summary"]["nc_media/curves"]["_type"] == "image-file"
    table = whole["summary"]["nc_media/history"]
    assert table["nrows"] == len(read_history(run_dir))
    assert (run / "files" / table["path"]).is_file()
    onset = [r["item"] for r in records(run, "history") if "nc/tpt/onset" in r["item"]]
    assert [row["nc/epoch"] for row in onset] == [
        how["tpt_start_exact"] - 1,
        how["tpt_start_exact"],
    ]


def test_only_the_pictures_that_training_has_drawn_are_uploaded(run_dir: Path) -> None:
    for name in ("overview.png", "gram_last.png", "nc1.png", "gram.png", "gram.pdf"):
        (run_dir / "figures" / name).write_bytes(_PNG)
    sync_run(run_dir, mode="offline")
    media = {k for k in summary(replayed(run_dir))["summary"] if k.startswith("nc_media/")}
    ours = {"nc_media/history", "nc_media/collapse_table"}
    assert media - ours == {"nc_media/curves", "nc_media/gram"}


def test_a_picture_that_was_cut_off_and_a_row_that_was_are_left_out_and_told(run_dir: Path) -> None:
    (run_dir / "figures" / "gram.png").write_bytes(_PNG[: len(_PNG) // 2])
    (run_dir / "figures" / "curves.png").write_bytes(_PNG)
    with (run_dir / "history.csv").open("a", encoding="utf-8") as file:
        file.write("9,")
    said: list[str] = []
    sync_run(run_dir, mode="offline", say=said.append)
    assert any("gram.png is left out" in line for line in said), said
    assert any("row" in line or "line" in line for line in said if "gram" not in line), said
    media = {k for k in summary(replayed(run_dir))["summary"] if k.startswith("nc_media/")}
    assert "nc_media/curves" in media
    assert "nc_media/gram" not in media


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seeds3", "ways3", "ways3-seeds2", "plain-seeds3-1"])
def test_runs_of_one_command_are_one_group(kind: str, run_dir: Path) -> None:
    series = run_dir.parent / f"20260101-120000-{kind}"
    series.mkdir()
    moved = run_dir.rename(series / "seed1")
    sync_run(moved, mode="offline")
    assert records(replayed(moved), "run")[-1]["run_group"] == series.name


def test_a_second_sync_without_news_does_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(run_dir), "--mode", "offline"]) == 0
    first = capsys.readouterr().out
    run = replayed(run_dir)
    assert f"wandb sync {run}" in first
    assert main(["sync", str(run_dir)]) == 0
    assert replayed(run_dir) == run
    said = capsys.readouterr().out
    rows = len(read_history(run_dir))
    assert re.match(
        rf"nothing new: the offline run \w{{8}} has all {rows} rows, not uploaded", said
    )
    assert f"wandb sync {run}" in said


def test_the_record_that_the_training_left_is_named_and_left_alone(
    live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(live, tmp_path / "run", symlinks=True)
    own = offline_run(tmp_path / "run")
    assert main(["sync", str(tmp_path / "run"), "--mode", "offline"]) == 0
    assert offline_run(tmp_path / "run") == own
    assert f"is another one: wandb sync {own}" in capsys.readouterr().out


def test_an_offline_run_that_was_not_uploaded_is_replaced_as_a_whole(run_dir: Path) -> None:
    whole = (run_dir / "history.csv").read_text()
    cut(run_dir, 2)
    before = sync_run(run_dir, mode="offline")
    (run_dir / "history.csv").write_text(whole)
    after = sync_run(run_dir)
    assert after.run_id == before.run_id
    assert [row["nc/epoch"] for row in numbers(replayed(run_dir))] == list(range(EPOCHS + 1))


def test_an_offline_run_that_was_uploaded_gets_a_second_part(run_dir: Path) -> None:
    whole = (run_dir / "history.csv").read_text()
    cut(run_dir, 2)
    before = sync_run(run_dir, mode="offline")
    place = run_dir / str(before.folder)
    (place / f"run-{before.run_id}.wandb.synced").touch()  # as `wandb sync` does
    (run_dir / "history.csv").write_text(whole)
    after = sync_run(run_dir)
    assert after.run_id == before.run_id
    part = run_dir / str(after.folder)
    assert place.is_dir()
    assert [row["nc/epoch"] for row in numbers(part)] == [3, 4]
    kept = summary(part)["summary"]
    nc1 = read_history(run_dir).query("split == 'train'")["nc1"]
    assert kept["nc/train/nc1"] == {"min": nc1.min(), "last": nc1.iloc[-1]}


def test_nan_in_the_history_is_left_out(run_dir: Path) -> None:
    history = pd.read_csv(run_dir / "history.csv")
    history.loc[history["epoch"] == 1, "nc1"] = math.nan
    history.to_csv(run_dir / "history.csv", index=False)
    sync_run(run_dir, mode="offline")
    rows = [r["item"] for r in records(replayed(run_dir), "history") if "nc/val/error" in r["item"]]
    assert ["nc/train/nc1" in row for row in rows] == [True, False, True, True, True]


def test_a_half_written_run_of_which_only_the_history_is_left_can_be_replayed(
    run_dir: Path,
) -> None:
    (run_dir / "run.json").write_text("{")
    (run_dir / "config.yaml").write_text(": [")
    (run_dir / NOTE_FILE).write_text("[]")
    with (run_dir / "history.csv").open("a") as file:
        file.write("5,40,tra")  # cut by a kill
    done = sync_run(run_dir, mode="offline")
    assert done.rows == len(read_history(run_dir))
    assert sync_run(run_dir).new == 0


# -- symmetry --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live_symmetry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose symmetry was measured and logged live."""
    folder = tmp_path_factory.mktemp("symmetry")
    mirror = Group.of("mirror", [Action("flip", lambda x: x.flip(-1))], kind="vectors", exact=True)
    collapse = NeuralCollapse(run_dir=folder, verbose=False)
    symmetry = SymmetryMonitor(mirror, layers="body.0", verbose=False)
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    made = trainer(collapse, symmetry, max_epochs=EPOCHS, logger=logger)
    made.fit(Toy(), train_loader(), val_loader())
    logger.experiment.finish()
    return folder


@pytest.fixture
def with_symmetry(live_symmetry: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "20260101-120000-seed1"
    folder.mkdir()
    for name in ("history.csv", "symmetry.csv", "run.json"):
        shutil.copy(live_symmetry / name, folder)
    return folder


def by_epoch(run: Path, mark: str = "/") -> dict[tuple[float, str], float]:
    """Return every number of ours in a run, by epoch and key."""
    items = [record["item"] for record in records(run, "history")]
    return {
        (item["nc/epoch"], key): value
        for item in items
        for key, value in item.items()
        if key.startswith("nc/") and mark in key and key != "nc/tpt/onset"
    }


@pytest.mark.slow
def test_the_replay_has_every_number_of_symmetry_that_the_live_run_has(
    live_symmetry: Path, with_symmetry: Path
) -> None:
    done = sync_run(with_symmetry, mode="offline")
    table = read_symmetry(with_symmetry)
    assert (done.rows, done.groups) == (len(read_history(with_symmetry)), len(table))
    assert done.new == done.whole == done.rows + done.groups
    replay, logged = replayed(with_symmetry), offline_run(live_symmetry)
    assert by_epoch(replay) == by_epoch(logged)
    last = (float(EPOCHS), "nc/train/layer/body.0/symmetry/mirror/inv_error/flip")
    assert last in by_epoch(replay)
    axes = [
        {
            key: (defined.get("step_metric"), defined.get("summary"))
            for key, defined in definitions(run).items()
            if "/symmetry/" in key or "/parameters/" in key
        }
        for run in (replay, logged)
    ]
    assert axes[0]
    assert axes[0].items() <= axes[1].items()
    assert axes[0]["nc/train/symmetry/mirror/orbit_quot"][0] == "nc/epoch"


def test_rows_of_symmetry_alone_are_a_second_part(with_symmetry: Path) -> None:
    path = with_symmetry / "symmetry.csv"
    whole = path.read_text()
    head, *lines = whole.splitlines(keepends=True)
    path.write_text(head + "".join(x for x in lines if int(x.split(",")[0]) <= 1))
    before = sync_run(with_symmetry, mode="offline")
    place = with_symmetry / str(before.folder)
    (place / f"run-{before.run_id}.wandb.synced").touch()  # as `wandb sync` does
    path.write_text(whole)
    after = sync_run(with_symmetry)
    assert (after.run_id, after.new) == (before.run_id, after.groups - before.groups)
    part = with_symmetry / str(after.folder)
    epochs = {epoch for epoch, _ in by_epoch(part, "/symmetry/")}
    assert epochs == {float(epoch) for epoch in range(2, EPOCHS + 1)}
    values = read_symmetry(with_symmetry).query(
        "split == 'train' and layer == '' and group == 'mirror' and element == ''"
    )["orbit_quot"]
    kept = summary(part)["summary"]["nc/train/symmetry/mirror/orbit_quot"]
    assert kept == {"min": values.min(), "last": values.iloc[-1]}
    assert sync_run(with_symmetry).new == 0


def test_symmetry_that_changed_after_an_upload_makes_a_new_run(with_symmetry: Path) -> None:
    before = sync_run(with_symmetry, mode="offline")
    (with_symmetry / str(before.folder) / f"run-{before.run_id}.wandb.synced").touch()
    path = with_symmetry / "symmetry.csv"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(lines[:-1]))
    assert sync_run(with_symmetry).run_id != before.run_id


def test_a_table_of_symmetry_that_is_damaged_is_left_out_and_told(with_symmetry: Path) -> None:
    (with_symmetry / "symmetry.csv").write_text("epoch,step\n1,2\n")
    said: list[str] = []
    done = sync_run(with_symmetry, mode="offline", say=said.append)
    assert done.groups == 0
    assert "symmetry.csv is left out" in said[0]


# -- online, at a loopback server ------------------------------------------------------------------


def test_online_the_second_sync_appends_to_the_same_run(run_dir: Path, server: Server) -> None:
    whole = (run_dir / "history.csv").read_text()
    cut(run_dir, 2)
    first = sync_run(run_dir, entity="me", project="p")
    assert first.url == f"{server.url}/me/p/runs/{first.run_id}"
    (run_dir / "history.csv").write_text(whole)
    second = sync_run(run_dir)
    assert (second.run_id, second.entity, second.new) == (
        first.run_id,
        "me",
        second.rows - first.rows,
    )
    [rows] = server.history.values()
    measured = [row["nc/epoch"] for row in rows if "nc/train/nc1" in row]
    assert measured == list(range(EPOCHS + 1))  # once each
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    nc1 = read_history(run_dir).query("split == 'train'")["nc1"]
    assert server.summary[first.run_id]["nc/train/nc1"]["min"] == nc1.min()


def test_an_interrupted_upload_goes_on_where_it_was(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sync, "_log_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sync_run(run_dir, entity="me", project="p")
    note = read_notes(run_dir)[-1]
    assert note is not None
    assert note.rows == len(read_history(run_dir))
    done = sync_run(run_dir)
    assert (done.run_id, done.new) == (note.run_id, 0)
    rows = server.history[note.run_id]
    assert [r["nc/epoch"] for r in rows if "nc/train/nc1" in r] == list(range(EPOCHS + 1))
    assert [r["nc/tpt/onset"] for r in rows if "nc/tpt/onset" in r] == [0.001, 1]
    assert "nc_media/history" in rows[-2]
    sync_run(run_dir)
    assert server.history[note.run_id] == rows


def test_rows_that_have_changed_since_the_upload_make_a_new_run(
    run_dir: Path, server: Server
) -> None:
    first = sync_run(run_dir, entity="me", project="p")
    history = pd.read_csv(run_dir / "history.csv")
    history["nc1"] *= 2  # as after a resume from an earlier checkpoint with another seed
    history.to_csv(run_dir / "history.csv", index=False)
    second = sync_run(run_dir)
    assert second.run_id != first.run_id
    assert {*server.history} == {first.run_id, second.run_id}


def test_online_after_offline_uploads_the_same_run_and_drops_the_offline_one(
    run_dir: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sync_run(run_dir, mode="offline", project="p")
    assert main(["sync", str(run_dir), "--mode", "online", "--entity", "me"]) == 0
    said = capsys.readouterr()
    assert f"connecting to W&B ({server.url}) ..." in said.err
    assert said.out.startswith(f"{first.rows} rows replayed into the W&B run {first.run_id} (p)")
    [rows] = server.history.values()
    assert [row["nc/epoch"] for row in rows if "nc/train/nc1" in row] == list(range(EPOCHS + 1))
    assert not (run_dir / str(first.folder)).exists()  # `wandb sync` would upload it once more
    assert main(["sync", str(run_dir), "--mode", "online", "--entity", "me"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"nothing new: the W&B run {first.run_id} (p) has all")
    assert "connecting" not in said.err
    assert [*server.history] == [first.run_id]


@pytest.mark.slow
def test_rows_uploaded_before_a_part_that_waits_offline_are_not_uploaded_again(
    run_dir: Path, server: Server
) -> None:
    whole = (run_dir / "history.csv").read_text()
    cut(run_dir, 1)
    first = sync_run(run_dir, entity="me", project="p")
    for epochs in (2, 3):  # the second replaces the first, which waits for an upload
        (run_dir / "history.csv").write_text(whole)
        cut(run_dir, epochs)
        part = sync_run(run_dir, mode="offline")
        assert part.run_id == first.run_id
        assert [row["nc/epoch"] for row in numbers(replayed(run_dir))] == list(range(2, epochs + 1))
    (run_dir / "history.csv").write_text(whole)
    sync_run(run_dir)
    [rows] = server.history.values()
    assert [row["nc/epoch"] for row in rows if "nc/train/nc1" in row] == list(range(EPOCHS + 1))


def test_another_target_is_another_run_and_the_first_is_found_again(
    run_dir: Path, server: Server
) -> None:
    first = sync_run(run_dir, entity="me", project="p")
    second = sync_run(run_dir, project="elsewhere")
    assert second.run_id != first.run_id
    assert (second.new, second.entity) == (second.rows, "me")
    again = sync_run(run_dir, project="p")
    assert (again.run_id, again.new) == (first.run_id, 0)
    assert sync_run(run_dir).run_id == first.run_id  # the last target is the default
    assert {*server.history} == {first.run_id, second.run_id}


def test_the_users_own_entity_is_the_default_one(run_dir: Path, server: Server) -> None:
    first = sync_run(run_dir, project="p")
    assert first.entity == "me"  # as the server says
    assert sync_run(run_dir, entity="me").run_id == first.run_id


def test_an_offline_run_for_another_project_is_kept_and_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sync_run(run_dir, mode="offline")
    assert main(["sync", str(run_dir), "--mode", "offline", "--project", "elsewhere"]) == 0
    place = run_dir / str(first.folder)
    said = f"not uploaded, for the project ncmonitor: wandb sync {place}"
    assert said in capsys.readouterr().out
    assert place.is_dir()


def test_an_offline_run_that_is_gone_is_said_to_count_as_uploaded(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sync_run(run_dir, mode="offline")
    shutil.rmtree(run_dir / "wandb_sync")
    assert main(["sync", str(run_dir), "--mode", "offline"]) == 0
    assert f"counts as uploaded; if it was not: rm {run_dir / NOTE_FILE}" in capsys.readouterr().out


@pytest.mark.parametrize("message", ["permission denied", "project not found"])
def test_a_wrong_entity_is_one_line(
    run_dir: Path, server: Server, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    server.errors["UpsertBucket"], server.status = message, 403
    assert main(["sync", str(run_dir), "--entity", "them"]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ncmonitor")]
    assert line.startswith("ncmonitor: error: W&B: ")
    assert message in line
    assert line.endswith(f"(without W&B's server: ncmonitor sync {run_dir} --mode offline)")
    assert not read_notes(run_dir)


def test_a_server_that_does_not_answer_is_named_at_once_and_given_up_soon(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert PATIENCE < 60
    wandb.teardown()  # as in the fixture
    monkeypatch.setattr(sync, "PATIENCE", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    first = sync_run(run_dir, mode="offline")
    began = time.monotonic()
    assert main(["sync", str(run_dir), "--mode", "online"]) == 2
    assert time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert "connecting to W&B (http://127.0.0.1:9) ..." in said
    assert "--mode offline)" in said
    assert read_notes(run_dir)[-1] == first
    assert replayed(run_dir).is_dir()


# -- which mode, and mistakes ----------------------------------------------------------------------


def test_without_a_login_the_mode_is_offline(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert sync_run(run_dir).mode == "offline"


def test_with_a_login_the_mode_is_online(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert sync_run(run_dir).mode == "online"
    assert len(server.history) == 1


def test_a_mode_that_keeps_nothing_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(InputError, match="WANDB_MODE=disabled keeps nothing"):
        sync_run(run_dir)
    with pytest.raises(InputError, match="mode= must be one of"):
        sync_run(run_dir, mode="on")


def test_a_folder_without_a_run_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / NOTE_FILE).exists()


def test_a_note_of_another_version_does_not_count(tmp_path: Path) -> None:
    (tmp_path / NOTE_FILE).write_text('{"runs": [{"run_id": "a", "colour": "red"}]}')
    assert not read_notes(tmp_path)
    (tmp_path / NOTE_FILE).write_text('{"run_id": "a"}')
    assert not read_notes(tmp_path)
    runs = [Synced("a", "p", None, "online"), Synced("b", "q", "me", "offline", rows=3)]
    write_notes(tmp_path, runs[:1], runs[1])
    assert read_notes(tmp_path) == runs
    assert read_notes(tmp_path)[-1] == runs[1]
