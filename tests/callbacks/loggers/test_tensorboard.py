"""TensorBoard: the same keys and numbers, and a tab of charts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.loggers.tensorboard_layout import TITLES, layout
from ncmonitor.catalogue import GROUPS, METRIC_NAMES
from ncmonitor.monitor.log_keys import keys_of, log_values
from toys import Toy, train_loader, trainer, val_loader

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
layout_pb2 = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, NeuralCollapse]:
    folder = tmp_path_factory.mktemp("tensorboard")
    monitor = NeuralCollapse(run_dir=folder / "nc", layers="body.0", verbose=False)
    logger = TensorBoardLogger(folder)
    trainer(monitor, logger=logger).fit(Toy(), train_loader(), val_loader())
    logger.finalize("success")
    return events.EventAccumulator(str(logger.log_dir)).Reload(), monitor


def test_every_epoch_is_there_under_the_same_keys(run: tuple[Any, NeuralCollapse]) -> None:
    log, monitor = run
    tags = {tag for tag in log.Tags()["scalars"] if tag.startswith("nc/")}
    rows = monitor._run_state.rows
    assert tags == {*keys_of(rows, "nc"), "nc/epoch"}
    assert [event.value for event in log.Scalars("nc/epoch")] == [0, 1, 2, 3]
    last = log_values([row for row in rows if row["epoch"] == 3], "nc")
    found = {tag: log.Scalars(tag)[-1].value for tag in last}
    assert found == pytest.approx(last, rel=1e-6)  # TensorBoard keeps float32


def test_the_tab_of_charts_is_written_once_and_finds_every_line(
    run: tuple[Any, NeuralCollapse],
) -> None:
    log, _ = run
    [event] = log.Tensors("custom_scalars__config__")
    written = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart for category in written.category for chart in category.chart}
    tags = log.Tags()["scalars"]
    lines = [
        tag for tag in tags for pattern in charts["NC1"].multiline.tag if re.search(pattern, tag)
    ]
    assert sorted(lines) == [
        "nc/train/layer/body.0/nc1", "nc/train/nc1", "nc/val/layer/body.0/nc1", "nc/val/nc1",
    ]  # fmt: skip
    assert "in the TPT" in charts


def test_every_group_of_metrics_but_diagnostics_has_a_title() -> None:
    assert {*GROUPS} - {*TITLES} == {"diagnostics", "regression"}
    charts = layout({f"nc/train/{name}": name for name in METRIC_NAMES})
    assert list(charts) == [title for title in TITLES.values() if charts.get(title)]
