"""Which images are used, and under which labels: exact counts, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ncmonitor import InputError
from ncmonitor.recipes.data.subsets import Relabelling, Selection, class_sizes, shares

COUNTS = torch.tensor([40, 55, 30, 75])
K = len(COUNTS)


def labels_of(counts: torch.Tensor = COUNTS) -> torch.Tensor:
    """Labels in a mixed, fixed order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]


def counts_of(selection: Selection, labels: torch.Tensor) -> list[int]:
    return labels[selection.of(labels, K)].bincount(minlength=K).tolist()


def test_nothing_asked_for_keeps_every_image_in_order() -> None:
    labels = labels_of()
    assert torch.equal(Selection().of(labels, K), torch.arange(len(labels)))


def test_per_class_gives_every_class_exactly_as_many_different_images() -> None:
    labels = labels_of()
    keys = Selection(per_class=30).of(labels, K)
    assert labels[keys].bincount().tolist() == [30] * K
    assert torch.equal(keys, keys.unique())  # ascending, none twice


def test_the_seed_chooses_the_images_and_nothing_else_does() -> None:
    labels = labels_of()
    first = Selection(per_class=20).of(labels, K)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    state = torch.get_rng_state()
    draw = np.random.RandomState(5).rand()
    assert torch.equal(first, Selection(per_class=20).of(labels, K))
    assert not torch.equal(first, Selection(per_class=20, seed=1).of(labels, K))
    assert torch.equal(state, torch.get_rng_state())
    assert np.random.rand() == draw  # noqa: NPY002


def test_the_images_of_a_seed_are_the_same_in_every_version() -> None:
    keys = Selection(per_class=2).of(torch.arange(200) % K, K)
    assert keys.tolist() == [17, 42, 72, 92, 102, 105, 175, 183]


def test_a_smaller_choice_lies_within_a_larger_one() -> None:
    labels = labels_of()
    few, many = (set(Selection(per_class=n).of(labels, K).tolist()) for n in (10, 20))
    assert few < many


def test_too_many_per_class_is_explained_with_the_smallest_class() -> None:
    with pytest.raises(
        InputError, match=r"per_class is 31, but the smallest class \(2\) has 30 training images"
    ):
        Selection(per_class=31).of(labels_of(), K)


def test_limit_keeps_the_classes_in_proportion() -> None:
    assert counts_of(Selection(limit=100), labels_of()) == [20, 28, 15, 37]  # of 20, 27.5, 15, 37.5
    assert counts_of(Selection(per_class=30, limit=20), labels_of()) == [5] * K
    assert counts_of(Selection(limit=2), labels_of()) == [0, 1, 0, 1]


def test_a_limit_above_the_data_keeps_everything() -> None:
    assert counts_of(Selection(limit=10_000), labels_of()) == COUNTS.tolist()


@pytest.mark.parametrize("total", [0, 1, 7, 99, 199, 200])
def test_shares_sum_to_the_total_and_differ_from_exact_ones_by_less_than_one(total: int) -> None:
    parts = shares(COUNTS, total)
    assert parts.sum() == total
    assert (parts <= COUNTS).all()
    assert ((parts - COUNTS * total / COUNTS.sum()).abs() < 1).all()


def test_exponential_imbalance_follows_its_formula() -> None:
    sizes = class_sizes("exponential", 10, 5000, 100, 0.5)
    assert sizes == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]


def test_step_imbalance_makes_the_last_classes_small() -> None:
    assert class_sizes("step", 10, 5000, 100, 0.3) == [5000] * 7 + [50] * 3
    assert class_sizes("step", 4, 30, 10, 0.5) == [30, 30, 3, 3]


def test_imbalance_starts_from_per_class_or_the_smallest_class() -> None:
    step = {"imbalance": "step", "ratio": 5.0}
    assert counts_of(Selection(**step), labels_of()) == [30, 30, 6, 6]  # type: ignore[arg-type]
    assert counts_of(Selection(per_class=10, **step), labels_of()) == [10, 10, 2, 2]  # type: ignore[arg-type]
    halved = Selection(limit=36, **step)  # type: ignore[arg-type]
    assert counts_of(halved, labels_of()) == [15, 15, 3, 3]


def test_label_noise_changes_exactly_its_share_to_any_wrong_label() -> None:
    labels = torch.arange(30_000) % 10
    noisy = Relabelling(noise=0.3).of(labels, 10)
    changed = noisy != labels
    assert changed.sum() == 9_000
    steps = ((noisy - labels)[changed] % 10).bincount(minlength=10)
    assert steps[0] == 0
    assert (steps[1:] - 1000).abs().max() < 150  # five standard deviations
    assert torch.equal(labels, torch.arange(30_000) % 10)  # untouched


def test_label_noise_is_the_same_for_the_same_seed() -> None:
    labels = labels_of()
    first = Relabelling(noise=0.5).of(labels, K)
    assert torch.equal(first, Relabelling(noise=0.5).of(labels, K))
    assert not torch.equal(first, Relabelling(noise=0.5, seed=1).of(labels, K))


def test_random_labels_keep_class_sizes_and_say_nothing_of_the_true_ones() -> None:
    labels = torch.arange(30_000) % 10
    shuffled = Relabelling(shuffled=True).of(labels, 10)
    assert shuffled.bincount().tolist() == [3000] * 10
    assert abs((shuffled == labels).float().mean() - 0.1) < 0.01
    assert torch.equal(shuffled, Relabelling(shuffled=True).of(labels, 10))


def test_no_noise_gives_the_labels_themselves() -> None:
    assert torch.equal(Relabelling().of(labels_of(), K), labels_of())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"per_class": 0}, "per_class must be at least 1, but is 0"),
        ({"limit": -3}, "limit must be at least 1, but is -3"),
        ({"seed": -1}, "subset_seed must not be negative"),
        ({"imbalance": "exponental", "ratio": 2}, "did you mean 'exponential'"),
        ({"imbalance": "step"}, "imbalance is 'step' and imbalance_ratio is None"),
        ({"ratio": 10}, "imbalance is None and imbalance_ratio is 10"),
        ({"imbalance": "step", "ratio": 0.5}, "imbalance_ratio must be at least 1, but is 0.5"),
        ({"imbalance": "step", "ratio": float("nan")}, "imbalance_ratio must be at least 1"),
        ({"minority": 1.0}, r"minority must lie in \(0, 1\), but is 1.0"),
        (
            {"imbalance": "step", "ratio": 60},
            "the largest class has 30 images, so the smallest would have 0.5",
        ),
        (
            {"imbalance": "step", "ratio": 2, "minority": 0.1},
            "minority=0.1 of 4 classes makes 0 of them small",
        ),
    ],
)
def test_impossible_choices_are_explained(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Selection(**given).of(labels_of(), K)  # type: ignore[arg-type]  # mistakes on purpose


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": 1.5}, r"label_noise must lie in \[0, 1\], but is 1.5"),
        ({"noise": 0.2, "shuffled": True}, "random_labels leaves no label that label_noise=0.2"),
    ],
)
def test_impossible_relabelling_is_explained(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Relabelling(**given)  # type: ignore[arg-type]  # mistakes on purpose
