"""The clock of the terminal phase, and the weight-decay clock against real optimizers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cases import seeded
from ncmonitor.catalogue import PHASE_NAMES
from ncmonitor.monitor.phase_clock import PhaseClock, decay_time


def clock(*errors: tuple[int, float], **options: Any) -> PhaseClock:
    made = PhaseClock(**options)
    for epoch, error in errors:
        made.update(epoch, error)
    return made


def test_before_the_first_measurement_nothing_is_known() -> None:
    values = PhaseClock().as_dict()
    assert {k for k, v in values.items() if math.isnan(v)} == {
        "tpt_start_exact",
        "tpt_start_effective",
    }
    assert (values["tpt_active"], values["epochs_in_tpt"], values["tpt_exits"]) == (0, 0, 0)
    assert set(values) == set(PHASE_NAMES) - {"wd_time"}


def test_the_phase_starts_when_the_error_first_vanishes_and_its_age_counts_from_there() -> None:
    values = clock((0, 0.9), (1, 0.1), (2, 0.0), (3, 0.0), (4, 0.0)).as_dict()
    assert values["tpt_active"] == 1
    assert values["tpt_start_exact"] == 2
    assert values["epochs_in_tpt"] == 2


def test_a_return_of_the_error_is_an_exit_and_not_a_new_start() -> None:
    history = [(1, 0.0), (2, 0.0), (3, 0.01), (4, 0.0), (5, 0.0), (6, 0.02), (7, 0.01)]
    values = clock(*history).as_dict()
    assert values["tpt_start_exact"] == 1
    assert values["tpt_exits"] == 2
    assert values["tpt_active"] == 0
    assert values["epochs_in_tpt"] == 2  # 1 to 2 and 4 to 5


def test_gaps_between_measurements_count_whole() -> None:
    values = clock((1, 0.5), (10, 0.0), (20, 0.0), (50, 0.0), (60, 0.1), (80, 0.0)).as_dict()
    assert values["epochs_in_tpt"] == 40
    assert values["tpt_exits"] == 1
    assert values["tpt_active"] == 1


def test_a_failed_measurement_changes_nothing_and_the_gap_is_bridged() -> None:
    made = clock((1, 0.0), (2, 0.0))
    before = made.state_dict()
    made.update(3, math.nan)
    assert made.state_dict() == before
    made.update(4, 0.0)
    assert made.as_dict()["epochs_in_tpt"] == 3
    assert made.as_dict()["tpt_exits"] == 0


@pytest.mark.parametrize(
    ("accuracy", "error", "reached"),
    [
        (0.999, 0.001, True),
        (0.999, 50 / 50_000, True),
        (0.999, 0.0011, False),
        (0.996, 0.004, True),
        (0.996, 0.0041, False),
        (1.0, 0.0, True),
        (1.0, 1e-9, False),
    ],
)
def test_the_effective_start_needs_its_accuracy_and_not_more(
    accuracy: float, error: float, reached: bool
) -> None:
    values = clock((3, 0.5), (7, error), (9, error), accuracy=accuracy).as_dict()
    assert (values["tpt_start_effective"] == 7) is reached
    assert values["tpt_start_exact"] == 7 if error == 0 else math.isnan(values["tpt_start_exact"])


def test_the_state_continues_where_it_stopped() -> None:
    history = [(1, 0.1), (2, 0.0005), (3, 0.0), (5, 0.0), (6, 0.2), (9, 0.0), (12, 0.0)]
    for cut in range(len(history)):
        state = json.loads(json.dumps(clock(*history[:cut]).state_dict()))
        resumed = PhaseClock(**state)
        for epoch, error in history[cut:]:
            resumed.update(epoch, error)
        assert resumed == clock(*history)


# -- weight decay ----------------------------------------------------------------------------------


def optimizer(kind: str, parameters: Any) -> torch.optim.Optimizer:
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(parameters, 0.1, weight_decay=0.01),
        "momentum": lambda: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01),
        "dampening": lambda: torch.optim.SGD(
            parameters, 0.1, momentum=0.9, dampening=0.5, weight_decay=0.01
        ),
        "dampening_alone": lambda: torch.optim.SGD(
            parameters, 0.1, dampening=0.5, weight_decay=0.01
        ),
        "nesterov": lambda: torch.optim.SGD(
            parameters, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True
        ),
        "tensor_rate": lambda: torch.optim.SGD(
            parameters, torch.tensor(0.1), momentum=0.9, weight_decay=0.01
        ),
        "no_decay": lambda: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(parameters, 0.1, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam(parameters, 0.1, weight_decay=0.01),
        "adam_no_decay": lambda: torch.optim.Adam(parameters, 0.1),
        "nadam_decoupled": lambda: torch.optim.NAdam(
            parameters, 0.1, weight_decay=0.01, decoupled_weight_decay=True
        ),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, 0.1, weight_decay=0.01),
    }
    return made[kind]()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sgd", 1e-3),
        ("momentum", 1e-2),
        ("dampening", 5e-3),
        ("dampening_alone", 1e-3),
        ("nesterov", 1e-2),
        ("tensor_rate", 1e-2),
        ("no_decay", 0.0),
        ("adamw", 1e-3),
        ("adam", math.nan),
        ("adam_no_decay", 0.0),
        ("nadam_decoupled", 1e-3),
        ("rmsprop", math.nan),
    ],
)
def test_one_step_adds_what_its_law_says(kind: str, expected: float) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    got = decay_time(optimizer(kind, [weight]), weight)
    assert got == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert type(got) is float


def test_only_the_group_that_holds_the_parameter_counts() -> None:
    one, two, other = (nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [one], "weight_decay": 0.5}, {"params": [two], "lr": 1.0}]
    made = torch.optim.SGD(groups, 0.1, weight_decay=0.25)
    assert decay_time(made, one) == pytest.approx(0.05)
    assert decay_time(made, two) == pytest.approx(0.25)
    assert decay_time(made, other) == 0


@pytest.mark.parametrize("kind", ["sgd", "momentum", "dampening", "nesterov"])
def test_the_mean_row_of_a_trained_classifier_decays_as_predicted(kind: str) -> None:
    features = torch.randn(200, 8, generator=seeded(0), dtype=torch.float64)
    labels = torch.randint(0, 5, (200,), generator=seeded(1))
    head = nn.Linear(8, 5).double()
    with torch.no_grad():
        head.weight += 1
    made = optimizer(kind, head.parameters())
    made.param_groups[0]["weight_decay"] = 1e-3
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, 400)
    time, lengths = 0.0, []
    for step in range(300):
        if step in (100, 299):  # the fast root of momentum has died out by the first
            lengths.append((time, float(head.weight.detach().sum(0).norm())))
        time += decay_time(made, head.weight)
        made.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        made.step()
        schedule.step()
    (start, before), (end, after) = lengths
    # τ is of first order: ηλβ/(1 − β)² is up to 1 % here, and so is the change of the rate over
    # the momentum's memory
    assert end - start > 0.01 * (1 if kind == "sgd" else 5)
    assert math.log(before / after) == pytest.approx(end - start, rel=0.025)
