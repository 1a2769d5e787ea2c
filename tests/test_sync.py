"""``ncmonitor sync``: a run folder replayed, read back by W&B's reader or a loopback server."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytorch_lightning.loggers import WandbLogger

from ncmonitor import sync
from ncmonitor._checks import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.cli import main
from ncmonitor.history import read_history
from ncmonitor.sync import NOTE_FILE, Synced, read_note, sync_run
from toys import Toy, train_loader, trainer, val_loader
from wandb_files import offline_run, records, summary
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
            m["name"]: (m.get("step_metric"), m.get("summary"))
            for m in records(run, "metric")
            if m.get("name", "").startswith("nc/")
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
    assert whole["tags"] == ["neural-collapse", "toys", "convention:balanced"]
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


def test_seeds_of_one_command_are_one_group(run_dir: Path) -> None:
    seeds = run_dir.parent / "20260101-120000-seeds3"
    seeds.mkdir()
    moved = run_dir.rename(seeds / "seed1")
    sync_run(moved, mode="offline")
    assert records(replayed(moved), "run")[-1]["run_group"] == seeds.name


def test_a_second_sync_without_news_does_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(run_dir), "--mode", "offline"]) == 0
    first = capsys.readouterr().out
    run = replayed(run_dir)
    assert f"wandb sync {run}" in first
    assert main(["sync", str(run_dir)]) == 0
    assert replayed(run_dir) == run
    assert capsys.readouterr().out.startswith("nothing new: the W&B run ")


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
    note = read_note(run_dir)
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


def test_another_project_is_another_run(run_dir: Path) -> None:
    first = sync_run(run_dir, mode="offline")
    second = sync_run(run_dir, mode="offline", project="elsewhere")
    assert second.run_id != first.run_id
    assert second.new == second.rows


@pytest.mark.parametrize("message", ["permission denied", "project not found"])
def test_a_wrong_entity_is_one_line(
    run_dir: Path, server: Server, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    server.errors["UpsertBucket"], server.status = message, 403
    assert main(["sync", str(run_dir), "--entity", "them"]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ncmonitor")]
    assert line.startswith("ncmonitor: error: W&B: ")
    assert message in line
    assert read_note(run_dir) is None


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
    (tmp_path / NOTE_FILE).write_text('{"run_id": "a", "colour": "red"}')
    assert read_note(tmp_path) is None
    (tmp_path / NOTE_FILE).write_text(
        '{"run_id": "a", "project": "p", "entity": null, "mode": "online"}'
    )
    assert read_note(tmp_path) == Synced("a", "p", None, "online")
