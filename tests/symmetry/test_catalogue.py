"""What SymmetryMonitor measures is explained like everything else, and asked for elsewhere."""

from __future__ import annotations

import pytest
import torch

from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse, WandbAlerts
from ncmonitor.catalogue import (
    CATALOGUE,
    GROUPS,
    INPUT_SYMMETRY,
    METRICS,
    MONITORED,
    PARAMETER_SYMMETRY,
    Quantity,
    chosen,
    quantity_of,
)
from ncmonitor.catalogue.text import explain, overview
from ncmonitor.symmetry.invariance import PredictionInvariance
from ncmonitor.symmetry.rows import NUMBERS

EVERY = (*INPUT_SYMMETRY, *PARAMETER_SYMMETRY)


def test_every_number_of_the_monitor_has_an_entry_and_there_are_no_others() -> None:
    assert {q.name for q in EVERY} == set(NUMBERS) - {"nc1", "nc1_quotient"}


def test_none_of_them_can_enter_a_history_or_a_report() -> None:
    names = {q.name for q in EVERY}
    assert not names & {q.name for q in METRICS}
    assert not names & set(chosen("all"))
    assert not set(MONITORED) & set(GROUPS)
    assert [name for name in names if quantity_of(name) is not None] == []
    assert not any(q.default for q in EVERY)


@pytest.mark.parametrize("quantity", EVERY, ids=lambda q: q.name)
def test_every_entry_says_what_a_reader_needs(quantity: Quantity) -> None:
    assert quantity.meaning.endswith(".")
    assert all((quantity.definition, quantity.source, quantity.null, quantity.undefined))
    assert quantity.cost
    fixed = quantity.symmetric is not None or quantity.collapse is not None
    assert fixed or quantity.name in ("acc", "acc_orbit_mean", "acc_orbit_worst")
    told = explain(quantity.name)
    assert "by ncmonitor.callbacks.SymmetryMonitor" in told
    assert ("if symmetric" in told) == (quantity.symmetric is not None)


def test_values_where_the_symmetry_holds() -> None:
    ones = {q.name for q in EVERY if q.symmetric == 1}
    assert ones == {"pred_consistency", "equiv_r2", "w_mean_law_ratio"}
    assert CATALOGUE["orbit_quot"].symmetric == 0
    assert CATALOGUE["nc1_aug"].collapse == 0


@pytest.mark.parametrize("share", [0.25, 0.9])  # of samples that are right as they are
def test_orbit_accuracies_of_unrelated_answers_are_what_their_entries_say(share: float) -> None:
    m, k, n = 3, 4, 60_000
    seeded = torch.Generator().manual_seed(0)
    labels = torch.randint(k, (n,), generator=seeded)
    answers = torch.randint(k, (m, n), generator=seeded)
    right = torch.rand(n, generator=seeded) < share
    answers[0] = torch.where(right, labels, (labels + 1) % k)
    found = PredictionInvariance().update(torch.eye(k)[answers], labels)
    measured = {"acc_orbit_mean": found.orbit_mean, "acc_orbit_worst": found.orbit_worst}
    for name, value in measured.items():
        said = CATALOGUE[name].null.removesuffix(" for m transforms with the identity")
        python = said.replace("−", "-").replace("·", "*").replace("^", "**")
        expected = eval(python, {"acc": float(right.double().mean()), "m": m, "K": k})
        assert value == pytest.approx(expected, abs=0.01)


def test_what_falls_to_zero_has_a_log_axis_and_differences_have_none() -> None:
    assert CATALOGUE["orbit_quot"].scale == CATALOGUE["inv_error"].scale == "log"
    for name in ("acc", "acc_drop", "equiv_r2", "layer_balance", "w_mean_law_ratio"):
        assert CATALOGUE[name].scale == "linear"


def test_the_list_has_them_in_a_section_of_their_own() -> None:
    text = overview()
    place = text.index("measured by ncmonitor.callbacks.SymmetryMonitor")
    for quantity in EVERY:
        assert text.index(f"    {quantity.name} ") > place
    assert text.index("  * error") < place


@pytest.mark.parametrize("name", ["inv_error", "layer_balance", *MONITORED])
def test_asking_the_collapse_monitor_for_one_says_who_measures_it(name: str) -> None:
    with pytest.raises(InputError, match="measured by SymmetryMonitor"):
        NeuralCollapse(metrics=name)
    with pytest.raises(InputError, match="measured by SymmetryMonitor"):
        WandbAlerts(thresholds={name: 0.1})
