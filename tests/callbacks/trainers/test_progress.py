"""The measurement's task in Lightning's bar: there while it runs, gone afterwards."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch
import lightning.pytorch.callbacks
import pytest
import pytorch_lightning
import pytorch_lightning.callbacks
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm as OtherTqdm
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch.utils.data import DataLoader

from ncmonitor.callbacks.trainers import progress
from ncmonitor.callbacks.trainers.progress import Overhead, measuring

BARS = ["RichProgressBar", "TQDMProgressBar"]
DISTRIBUTIONS: list[Any] = [pytorch_lightning, lightning.pytorch]
BOTH = [
    pytest.param(name, package, id=f"{package.__name__}-{name}")
    for name in BARS
    for package in DISTRIBUTIONS
]
Line = tuple[str, float, float | None]


@pytest.fixture
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_DRAWING", 0.0)


def lines(trainer: Any) -> list[Line]:
    """What the bar shows: description, batches done, batches in all."""
    bar = trainer.progress_bar_callback
    if hasattr(bar, "progress"):
        shown = [task for task in bar.progress.tasks if task.visible]
        return [(task.description, task.completed, task.total) for task in shown]
    assert OtherTqdm._instances is Tqdm._instances
    return sorted((bar.desc.rstrip(": "), bar.n, bar.total) for bar in Tqdm._instances)


def measured(trainer: Any) -> list[Line]:
    return [line for line in lines(trainer) if line[0].startswith("measuring")]


def bar_of(package: Any, name: str, **settings: Any) -> Any:
    if name == "RichProgressBar":
        settings["console_kwargs"] = {"file": io.StringIO(), "force_terminal": True, "width": 120}
    return getattr(package.callbacks, name)(**settings)


def shown(bar: Any, capsys: pytest.CaptureFixture[str]) -> str:
    written = capsys.readouterr().out
    return bar._console_kwargs["file"].getvalue() if hasattr(bar, "progress") else written


def fit(
    package: Any,
    bar: Any,
    hook: Callable[[Any], None],
    at: str = "on_train_epoch_end",
    before: Callable[[Any], None] = lambda _: None,
    **settings: Any,
) -> Any:
    """Fit for three epochs of two batches, with a callback before the bar that calls ``hook``."""

    class Net(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def call(self: Any, trainer: Any, module: Any) -> None:
        hook(trainer)

    def first(self: Any, trainer: Any, module: Any) -> None:
        before(trainer)

    hooks = {"on_train_start": first} | {at: call}
    standing_in = type("StandIn", (package.callbacks.Callback,), hooks)()
    quiet = {} if settings.get("barebones") else {"logger": False, "enable_checkpointing": False}
    settings = {"enable_model_summary": False, "num_sanity_val_steps": 0} | quiet | settings
    callbacks = [standing_in] if bar is None else [standing_in, bar]
    trainer = package.Trainer(max_epochs=3, accelerator="cpu", callbacks=callbacks, **settings)
    samples: Any = torch.ones(8, 2)
    trainer.fit(Net(), DataLoader(samples, 4), DataLoader(samples[:4], 4))
    return trainer


@pytest.mark.usefixtures("drawn_at_once")
@pytest.mark.parametrize(("name", "package"), BOTH)
def test_a_measurement_stands_in_the_bar_while_it_runs(
    name: str, package: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, after = [], []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 3, 0.04) as advance:
            for _ in range(2):
                advance()
            seen.append(measured(trainer))
            trained = [line for line in lines(trainer) if line[0].startswith("Epoch")]
            assert [line[1:] for line in trained] == [(2, 2)]
        after.append(measured(trainer))

    bar = bar_of(package, name)
    fit(package, bar, measure)

    assert seen == [[("measuring (~4 % of time)", 2, 3)]] * 3
    assert after == [[]] * 3
    assert "measuring (~4 % of time)" in shown(bar, capsys)


@pytest.mark.usefixtures("drawn_at_once")
@pytest.mark.parametrize(("name", "package"), BOTH)
def test_it_leaves_the_bar_when_the_measurement_fails(name: str, package: Any) -> None:
    seen: list[Line] = []
    after = []

    def measure(trainer: Any) -> None:
        with pytest.raises(RuntimeError, match="of the measurement"):
            fail(trainer)
        after.append(measured(trainer))

    def fail(trainer: Any) -> None:
        with measuring(trainer, 3, None):
            seen.extend(measured(trainer))
            raise RuntimeError("of the measurement")

    fit(package, bar_of(package, name), measure)
    assert seen == [("measuring", 0, 3)] * 3
    assert after == [[]] * 3


@pytest.mark.usefixtures("drawn_at_once")
@pytest.mark.parametrize(("name", "package"), BOTH)
def test_the_number_of_batches_may_be_unknown(name: str, package: Any) -> None:
    seen = []

    def measure(trainer: Any) -> None:
        for total in (None, 5, None):
            with measuring(trainer, total, None) as advance:
                advance()
                if hasattr(trainer.progress_bar_callback, "progress"):
                    trainer.progress_bar_callback.progress.refresh()  # draws its time columns
                seen.extend(measured(trainer))

    bar = bar_of(package, name)
    fit(package, bar, measure)
    endless = float("inf") if name == "RichProgressBar" else None
    assert seen == [("measuring", 1, endless), ("measuring", 1, 5), ("measuring", 1, endless)] * 3
    if name == "RichProgressBar":  # Lightning's task without an end never shows a remaining time
        kept = [task for task in bar.progress.tasks if task.description == "measuring"]
        assert [(type(task).__name__, task.total) for task in kept] == [
            ("CustomInfiniteTask", endless),
            ("Task", 5),
        ]


@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("sanity", [0, 1])
def test_before_training_it_is_shown_where_the_bar_runs(name: str, sanity: int) -> None:
    seen = []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 3, None):
            rich_waits = name == "RichProgressBar" and not sanity
            seen.append(rich_waits or len(measured(trainer)) == 1)

    bar = bar_of(pytorch_lightning, name)
    trainer = fit(pytorch_lightning, bar, measure, "on_train_start", num_sanity_val_steps=sanity)
    assert seen == [True]
    assert [line[0] for line in lines(trainer) if line[0].startswith("measuring")] == []
    if name == "RichProgressBar":
        assert bar.train_progress_bar.description.strip() == "Epoch 2/2"  # found by its position


def test_a_rich_bar_that_has_stopped_is_left_alone() -> None:
    bar = bar_of(pytorch_lightning, "RichProgressBar")
    trainer = fit(pytorch_lightning, bar, lambda trainer: None)
    before = len(bar.progress.tasks)

    with measuring(trainer, 1, None) as advance:
        advance()
        assert len(bar.progress.tasks) == before


class Own(pytorch_lightning.callbacks.ProgressBar):
    """A user's bar that is neither of Lightning's."""

    def disable(self) -> None:
        pass

    def enable(self) -> None:
        pass


@pytest.mark.usefixtures("drawn_at_once")
@pytest.mark.parametrize(
    ("bar", "settings"),
    [
        (lambda: None, {"enable_progress_bar": False}),
        (lambda: None, {"barebones": True}),
        (lambda: bar_of(pytorch_lightning, "RichProgressBar", refresh_rate=0), {}),
        (lambda: bar_of(pytorch_lightning, "TQDMProgressBar", refresh_rate=0), {}),
        (Own, {}),
    ],
    ids=["none", "barebones", "rich-disabled", "tqdm-disabled", "unknown"],
)
@pytest.mark.filterwarnings("ignore:.*barebones:UserWarning")
def test_no_bar_of_our_own_where_there_is_none(
    bar: Callable[[], Any], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    passed = []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 1, 0.5) as advance:
            advance()
            passed.append(not [line for line in Tqdm._instances if "measuring" in line.desc])

    fit(pytorch_lightning, bar(), measure, **settings)
    captured = capsys.readouterr()
    assert passed == [True] * 3
    assert "measuring" not in captured.out + captured.err


@pytest.mark.parametrize("name", BARS)
def test_other_ranks_show_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(trainer: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(trainer), "is_global_zero", False)
            with measuring(trainer, 1, None):
                seen.append(measured(trainer))

    fit(pytorch_lightning, bar_of(pytorch_lightning, name), measure)
    assert seen == [[]] * 3


@pytest.mark.usefixtures("drawn_at_once")
@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("broken", ["add_task", "update", "refresh", "BAR_FORMAT", "reset"])
def test_a_bar_that_fails_does_not_fail_the_measurement(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = []

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("of the bar")

    def measure(trainer: Any) -> None:
        bar = trainer.progress_bar_callback
        if hasattr(bar, "progress"):
            holder = bar if broken == "refresh" else bar.progress
        else:
            holder = type(bar) if broken == "BAR_FORMAT" else Tqdm
        with monkeypatch.context() as patch:
            value = 7 if broken == "BAR_FORMAT" else fail
            patch.setattr(holder, broken, value, raising=False)
            with measuring(trainer, 3, None) as advance:
                for _ in range(3):
                    advance()
                passed.append(True)

    fit(pytorch_lightning, bar_of(pytorch_lightning, name), measure)
    assert passed == [True] * 3


@pytest.mark.usefixtures("drawn_at_once")
def test_a_rich_bar_gets_one_task_for_all_measurements() -> None:
    counts = []

    def measure(trainer: Any) -> None:
        for _ in range(2):
            with measuring(trainer, 3, None) as advance:
                advance()
        counts.append(
            sum(t.description == "measuring" for t in trainer.progress_bar_callback.progress.tasks)
        )

    bar = bar_of(pytorch_lightning, "RichProgressBar")
    fit(pytorch_lightning, bar, measure)
    assert counts == [1, 1, 1]
    assert bar.train_progress_bar.description.strip() == "Epoch 2/2"


def test_in_a_rich_bar_it_stands_below_the_training_even_if_it_came_first() -> None:
    seen = []

    def before(trainer: Any) -> None:
        with measuring(trainer, 3, None):
            pass

    def measure(trainer: Any) -> None:
        with measuring(trainer, 3, None):
            seen.append([line[0].split()[0] for line in lines(trainer)])

    bar = bar_of(pytorch_lightning, "RichProgressBar")
    fit(pytorch_lightning, bar, measure, before=before, num_sanity_val_steps=1)
    assert seen == [["Epoch", "measuring"]] * 3


@pytest.mark.usefixtures("drawn_at_once")
def test_tqdm_draws_as_seldom_as_the_user_asked_for() -> None:
    seen = []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 9, None) as advance:
            for _ in range(9):
                advance()
                seen.append(measured(trainer)[0][1])

    fit(pytorch_lightning, bar_of(pytorch_lightning, "TQDMProgressBar", refresh_rate=4), measure)
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8, 8] * 3


@pytest.mark.parametrize("name", BARS)
def test_a_thousand_batches_cost_no_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_PER_DRAWING", 1000.0)
    seconds, seen = [], []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 1000, None) as advance:
            before = time.thread_time()
            for _ in range(1000):
                advance()
            seconds.append(time.thread_time() - before)
            seen.extend(measured(trainer))

    fit(pytorch_lightning, bar_of(pytorch_lightning, name), measure)
    assert max(seconds) < 0.1
    assert seen == [("measuring", 0, 1000)] * 3  # not drawn within the time


@pytest.mark.parametrize(
    ("share", "description"),
    [
        (None, "measuring"),
        (float("nan"), "measuring"),
        (0.002, "measuring (<1 % of time)"),
        (0.314, "measuring (~31 % of time)"),
    ],
)
def test_the_description_says_the_share_of_the_time(share: float | None, description: str) -> None:
    seen = []

    def measure(trainer: Any) -> None:
        with measuring(trainer, 1, share):
            seen.extend(measured(trainer))

    fit(pytorch_lightning, bar_of(pytorch_lightning, "RichProgressBar"), measure)
    assert seen == [(description, 0, 1)] * 3


def test_the_overhead_reads_as_a_sentence_part() -> None:
    assert str(Overhead(12.34, 0.0412)) == "12.3 s, 4.1 % of the fit"
    assert str(Overhead()) == "0.0 s, unknown share of the fit"
    assert Overhead(2.0, 0.5) == Overhead(2.0, 0.5)
