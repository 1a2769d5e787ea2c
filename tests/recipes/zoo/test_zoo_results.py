"""The recorded zoo: complete, in agreement with theory, and as the page shows it."""

from __future__ import annotations

import pandas as pd

from ncmonitor.recipes.zoo.predictions import Theory
from ncmonitor.recipes.zoo.zoo_entries import entries
from ncmonitor.recipes.zoo.zoo_table import CSV_FILE, PICTURE_FILE
from recipe_results import PAGE
from zoo_results import ZOO, with_zoo

KEPT = pd.read_csv(ZOO / CSV_FILE)


def test_the_zoo_was_run_whole_with_three_seeds() -> None:
    claims = {
        (entry.name, claim.group.name, where, str(claim.of(where)))
        for entry in entries().values()
        for claim in entry.claims
        for where in ("features", "logits", *(["inner"] if claim.inner else []))
    }
    for seed in (0, 1, 2):
        rows = KEPT[KEPT["seed"] == seed]
        columns = ("network", "group", "of", "theory")
        assert set(zip(*(rows[c] for c in columns), strict=True)) == claims
    assert (ZOO / PICTURE_FILE).is_file()


def test_every_network_has_learned_more_than_chance() -> None:
    assert KEPT["test_accuracy"].min() > 0.6


def test_what_is_exactly_0_was_0_for_every_seed_and_nothing_else_was() -> None:
    zero = (KEPT["theory"] == str(Theory.ZERO)).to_numpy()
    errors = KEPT[["before", "after"]].to_numpy(dtype=float)
    assert errors[zero].max() < 1e-20
    assert errors[~zero].min() > 1e-4


def test_all_numbers_agreed_with_theory() -> None:
    assert set(KEPT["agrees_before"]) | set(KEPT["agrees_after"]) == {"yes"}


def test_the_page_shows_the_recorded_zoo() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_zoo(text) == text
