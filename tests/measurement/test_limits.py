"""What theory leaves of NC2 and NC3, and its way into a run's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Subset

from cases import seeded
from ncmonitor import measure_collapse
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.catalogue import CATALOGUE
from ncmonitor.measurement.limits import class_facts, collapse_limits
from ncmonitor.measurement.settings import Settings
from ncmonitor.monitor.history import read_history
from ncmonitor.monitor.provenance import read_run
from ncmonitor.theory import cosine_std_floor, etf_distance_floor, seli_grams, seli_limits
from toys import CLASSES, DIM, Recording, Toy, train_loader, trainer, val_loader

MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
DEFAULT = {q.name for q in CATALOGUE.values() if q.group in ("nc2", "nc3") and q.default}


def test_equal_sizes_that_fit_leave_nothing() -> None:
    limits = collapse_limits([500] * 10, 9)
    assert limits.cause is None
    assert limits.values == dict.fromkeys(DEFAULT, 0.0)


def test_unequal_sizes_leave_the_seli_geometry() -> None:
    limits = collapse_limits(MNIST, 512)
    weight, means = seli_limits(MNIST)
    assert limits.cause == "class sizes"
    assert set(limits.values) == DEFAULT
    for which, theory in (("w", weight), ("means", means)):
        found = limits.values[f"nc2_equinorm_{which}"], limits.values[f"nc2_etf_{which}"]
        assert found == pytest.approx(tuple(theory), rel=1e-12)
    # 0.0251 and 0.0118 in the literature's own runs on full MNIST
    assert limits.values["nc2_etf_w"] == pytest.approx(0.0251, abs=1e-4)
    assert limits.values["nc2_equinorm_w"] == pytest.approx(0.0118, abs=1e-4)


def test_the_cosines_and_the_self_duality_are_those_of_the_seli_gram_matrices() -> None:
    sizes = [90, 40, 40, 7]
    gram_w, gram_m = seli_grams(sizes)
    limits = collapse_limits(sizes, 3).values
    for name, gram in (("w", gram_w), ("means", gram_m)):
        lengths = gram.diagonal().sqrt()
        cosines = (gram / lengths / lengths[:, None])[~torch.eye(4, dtype=torch.bool)]
        spread = float(cosines.std(correction=0))
        angle = float((cosines + 1 / 3).abs().mean())
        assert limits[f"nc2_equiangular_std_{name}"] == pytest.approx(spread, rel=1e-9)
        assert limits[f"nc2_max_angle_{name}"] == pytest.approx(angle, rel=1e-9)
    # W Mᵀ = P, so that the inner product of W and M is K − 1
    squared = 2 - 2 * 3 / float((gram_w.trace() * gram_m.trace()).sqrt())
    assert limits["nc3_self_duality_sq"] == pytest.approx(squared, rel=1e-9)
    assert limits["nc3_self_duality"] == pytest.approx(squared**0.5, rel=1e-9)


def optimum(decay: float) -> dict[str, float]:
    """Measure unconstrained features of 8, 8, 2 and 2 samples at their optimum."""
    sizes = torch.tensor([8.0, 8.0, 2.0, 2.0], dtype=torch.float64)
    start = torch.randn(2, 4, 6, generator=seeded(0), dtype=torch.float64)
    weight, means = (each.clone().requires_grad_() for each in start)
    optimizer = torch.optim.LBFGS(
        [weight, means],
        max_iter=5000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = -(sizes @ torch.log_softmax(means @ weight.T, 1).diagonal()) / sizes.sum()
        decayed = weight.square().sum() + sizes @ means.square().sum(1)
        value: torch.Tensor = fit + decay / 2 * decayed
        value.backward()
        return value

    optimizer.step(loss)
    found = measure_collapse(means.detach(), torch.arange(4), weight.detach())
    return found.as_dict()


def test_unconstrained_features_come_nearer_to_every_floor_as_the_decay_vanishes() -> None:
    limits = collapse_limits([8, 8, 2, 2], 6).values
    strong, weak, weaker = (optimum(decay) for decay in (1e-3, 1e-6, 1e-9))
    for name, floor in limits.items():
        gaps = [abs(found[name] - floor) for found in (strong, weak, weaker)]
        assert gaps == sorted(gaps, reverse=True), name
        assert gaps[-1] < 0.13 * floor, name  # only as slowly as the logarithm of the decay


def test_the_sample_convention_has_floors_of_its_own() -> None:
    balanced, sample = (
        collapse_limits(MNIST, 512, how).values for how in ("per_class", "per_sample")
    )
    assert sample["nc2_etf_w"] == balanced["nc2_etf_w"]  # W has no centre
    assert sample["nc2_etf_means"] > 1.2 * balanced["nc2_etf_means"]


def test_more_classes_than_room_leave_what_the_dimension_leaves() -> None:
    limits = collapse_limits([30] * 20, 10)
    assert limits.cause == "feature dimension"
    assert limits.values["nc2_etf_means"] == limits.values["nc2_etf_w"]
    assert limits.values["nc2_etf_w"] == etf_distance_floor(20, 10) > 0
    assert limits.values["nc2_equiangular_std_means"] == cosine_std_floor(20, 10) > 0
    assert limits.values["nc2_equinorm_means"] == 0
    assert "nc2_max_angle_means" not in limits.values  # not known


def test_unequal_sizes_without_room_leave_the_bound_that_holds_for_any_vectors() -> None:
    limits = collapse_limits([30, 31] * 10, 10)
    assert limits.values == dict.fromkeys(
        ["nc2_etf_means", "nc2_etf_w"], etf_distance_floor(20, 10)
    )
    assert limits.cause == "feature dimension"


def test_classes_without_samples_do_not_count() -> None:
    assert collapse_limits([0, 9, 3, 0, 3], 4) == collapse_limits([9, 3, 3], 4)
    assert collapse_limits([0, 9], 4).values == {}


def test_two_classes_of_any_sizes_leave_nothing() -> None:
    limits = collapse_limits([90, 10], 4).values
    assert limits == pytest.approx(dict.fromkeys(DEFAULT, 0.0), abs=1e-7)


def test_too_many_unequal_classes_are_left_out() -> None:
    assert collapse_limits([*range(1, 2050)], 4096) == ({}, None)


# -- in run.json -----------------------------------------------------------------------------------

#: 15, 15 and 7 samples.
UNEQUAL = [i for i in range(45) if i % 3 != 2 or i < 21]


def fit(epochs: int, **changes: Any) -> NeuralCollapse:
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    pl.seed_everything(0, verbose=False)
    loader = train_loader(Subset(Recording(), UNEQUAL))
    training = trainer(monitor, max_epochs=epochs)
    training.fit(Toy(), loader, val_loader(), **changes)
    if not changes:
        training.save_checkpoint("part.ckpt")
    return monitor


def measured() -> dict[str, Any]:
    found: dict[str, Any] = read_run("run")["measurement"]
    return found


def test_a_run_records_its_class_sizes_and_floors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = fit(1)
    found = measured()
    assert found["class_sizes"] == [15, 15, 7]
    assert found["limits"] == collapse_limits([15, 15, 7], DIM).values
    weight, means = seli_limits([15, 15, 7])
    assert found["limits"]["nc2_etf_w"] == pytest.approx(weight.etf_distance, rel=1e-12)
    assert found["limits"]["nc2_equinorm_means"] == pytest.approx(means.cov_norm, rel=1e-12)
    assert found["limits_from"] == "class sizes"
    assert found["num_classes"] == CLASSES  # what was known before is still there
    assert monitor.report is not None


def test_floors_are_on_disk_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looks(Toy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            assert measured()["class_sizes"] == [15, 15, 15]

    monkeypatch.chdir(tmp_path)
    monitor = NeuralCollapse(run_dir="run", verbose=False)
    trainer(monitor, max_epochs=1).fit(Looks(), train_loader(), val_loader())
    assert set(measured()["limits"].values()) == {0.0}


def test_a_resumed_run_knows_its_floors_before_it_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(1)
    before = measured()
    monkeypatch.setattr("ncmonitor.callbacks.fit_measurements.class_facts", lambda *_: {})
    fit(2, ckpt_path="part.ckpt", weights_only=True)
    assert read_history("run")["epoch"].max() == 2
    assert measured() == before


def test_another_run_in_the_folder_does_not_inherit_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(1)
    monkeypatch.setattr("ncmonitor.callbacks.fit_measurements.class_facts", lambda *_: {})
    fit(1)
    assert "limits" not in measured()


def test_floors_that_fail_cost_a_warning_and_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ncmonitor.callbacks.fit_measurements.class_facts", fail)
    with pytest.warns(RuntimeWarning, match="limits are not recorded.*no memory left"):
        monitor = fit(1)
    assert monitor.history["nc1"].notna().all()


def test_of_many_classes_the_smallest_and_the_largest_size_are_recorded() -> None:
    labels = torch.cat([torch.arange(101), torch.arange(50)])
    features = torch.randn(151, 128, generator=seeded(0))
    facts = class_facts(measure_collapse(features, labels), Settings())
    assert facts["class_sizes"] == {"min": 1, "max": 2}
    assert facts["limits"]["nc2_etf_means"] == pytest.approx(
        seli_limits([2] * 50 + [1] * 51)[1].etf_distance
    )
    json.dumps(facts, allow_nan=False)
