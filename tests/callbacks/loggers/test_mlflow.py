"""MLflow: the same keys and numbers under Lightning's steps, and pictures as artifacts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import MLFlowLogger

from ncmonitor.callbacks import CollapseFigures, NeuralCollapse
from ncmonitor.monitor.log_keys import keys_of, log_values
from toys import Toy, train_loader, trainer, val_loader

pytest.importorskip("mlflow")

EPOCHS = 3


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[MLFlowLogger, NeuralCollapse]]:
    """A fit with every metric, an inner layer and pictures, in a store of files."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"file:{folder / 'store'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 asks for a database
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # the logger sets it, for good
        patch.chdir(folder)
        monitor = NeuralCollapse(
            run_dir=folder / "nc", layers="body.0", metrics="all", verbose=False
        )
        figures = CollapseFigures(1, figures=["gram", "animation"], share=1)
        logger = MLFlowLogger("toys", tracking_uri=uri)
        fitting = trainer(monitor, figures, logger=logger, max_epochs=EPOCHS)
        fitting.fit(Toy(), train_loader(), val_loader())
        yield logger, monitor


def test_every_epoch_is_there_under_the_same_keys(
    run: tuple[MLFlowLogger, NeuralCollapse],
) -> None:
    logger, monitor = run
    logged = logger.experiment.get_run(str(logger.run_id))
    rows = monitor._run_state.rows
    keys = {key for key in logged.data.metrics if key.startswith("nc/")}
    assert keys == {*keys_of(rows, "nc"), "nc/epoch"}
    assert {"nc/train/layer/body.0/nc1", "nc/train/nc1_per_class/2"} <= keys
    last = log_values([row for row in rows if row["epoch"] == EPOCHS], "nc")
    assert {key: logged.data.metrics[key] for key in last} == last  # float64 all the way
    assert logged.info.status == "FINISHED"


def test_the_steps_are_lightnings_and_the_epochs_beside_them(
    run: tuple[MLFlowLogger, NeuralCollapse],
) -> None:
    logger, monitor = run
    train = monitor.history.query("split == 'train'")
    course = logger.experiment.get_metric_history(str(logger.run_id), "nc/train/nc1")
    assert [point.value for point in course] == train["nc1"].tolist()
    assert not any(math.isnan(point.value) for point in course)
    epochs = logger.experiment.get_metric_history(str(logger.run_id), "nc/epoch")
    assert [(point.step, point.value) for point in epochs] == [(0, 0), (2, 1), (5, 2), (8, 3)]


def test_pictures_are_artifacts_a_folder_for_each_figure(
    run: tuple[MLFlowLogger, NeuralCollapse], tmp_path: Path
) -> None:
    logger, _ = run
    listed = {
        path: size for name in ("gram", "animation") for path, size in artifacts(logger, name)
    }
    shown = [f"nc_media/gram/epoch-{epoch:05d}.png" for epoch in range(EPOCHS + 1)]
    assert [*listed] == [*shown, "nc_media/animation/animation.gif"]
    assert all(size > 1000 for size in listed.values())
    client: Any = logger.experiment
    png = Path(client.download_artifacts(logger.run_id, shown[-1], str(tmp_path)))
    assert png.read_bytes().startswith(b"\x89PNG")


def artifacts(logger: MLFlowLogger, name: str) -> list[tuple[str, int]]:
    found = logger.experiment.list_artifacts(str(logger.run_id), f"nc_media/{name}")
    return sorted((item.path, item.file_size) for item in found)
