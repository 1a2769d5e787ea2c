"""Which epochs are measured."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ncmonitor import InputError
from ncmonitor.monitor.schedule import PAPYAN_EPOCHS, scheduled_epochs


@pytest.mark.parametrize("max_epochs", [1, 350, None, -1])
def test_every_epoch_and_a_period_need_no_end(max_epochs: int | None) -> None:
    assert scheduled_epochs("every_epoch", max_epochs) == 1
    assert scheduled_epochs(7, max_epochs) == 7
    assert scheduled_epochs(np.int64(7), max_epochs) == 7


@pytest.mark.parametrize(
    "schedule",
    [[5, 0, 20, 5], (0, 5, 20), {0, 5, 20}, np.array([0, 5, 20]), iter([0, 5, 20])],
    ids=["list", "tuple", "set", "numpy", "iterator"],
)
def test_a_list_of_epochs_is_taken_as_it_is(schedule: Any) -> None:
    got = scheduled_epochs(schedule, None)
    assert not isinstance(got, int)
    assert set(got) == {0, 5, 20}
    assert {type(epoch) for epoch in got} == {int}


def test_a_range_is_a_list() -> None:
    assert scheduled_epochs(range(0, 100, 25), 100) == {0, 25, 50, 75}


def test_the_papers_epochs_are_fifty_for_its_own_length() -> None:
    assert len(PAPYAN_EPOCHS) == len(set(PAPYAN_EPOCHS)) == 50
    assert scheduled_epochs("papyan", 350) == set(PAPYAN_EPOCHS)


@pytest.mark.parametrize("name", ["papyan", "log"])
@pytest.mark.parametrize("max_epochs", [1, 2, 10, 49, 150, 350, 1000])
def test_named_schedules_reach_from_the_first_epoch_to_the_last(name: str, max_epochs: int) -> None:
    got = scheduled_epochs(name, max_epochs)
    assert not isinstance(got, int)
    first = max(1, round(max_epochs / 350)) if name == "papyan" else 1
    assert min(got) == first
    assert max(got) == max_epochs
    assert len(got) <= 50


def test_the_logarithmic_schedule_is_dense_at_first_and_even_in_the_logarithm() -> None:
    got = sorted(scheduled_epochs("log", 1000))  # type: ignore[arg-type]
    assert got[:5] == [1, 2, 3, 4, 5]
    late = np.diff(np.log(got[-20:]))
    np.testing.assert_allclose(late, np.log(1000) / 49, rtol=0.05)  # rounded to epochs


@pytest.mark.parametrize("max_epochs", [None, -1, 0])
@pytest.mark.parametrize("name", ["papyan", "log"])
def test_named_schedules_need_an_end(name: str, max_epochs: int | None) -> None:
    message = re.escape(f"schedule='{name}' needs Trainer(max_epochs=...)")
    with pytest.raises(InputError, match=message):
        scheduled_epochs(name, max_epochs)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("weekly", "'log', a number of epochs or a list of epochs, but is 'weekly'"),
        (0, "schedule= as a period must be at least 1 epoch, but is 0"),
        (-3, "schedule= as a period must be at least 1 epoch, but is -3"),
        (2.5, "a number of epochs or a list of epochs, but is 2.5"),
        (None, "a number of epochs or a list of epochs, but is None"),
        ([1, -2], "schedule= must list completed epochs (0, 1, ...), got -2"),
        ([1.5, 2], "schedule= must list completed epochs (0, 1, ...), got 1.5"),
        (["1"], "schedule= must list completed epochs (0, 1, ...), got '1'"),
    ],
    ids=str,
)
def test_anything_else_is_refused_in_words(schedule: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        scheduled_epochs(schedule, 100)
