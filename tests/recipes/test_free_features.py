"""Unconstrained features: the exact optimum is reached, and every measurement says how nearly."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from cases import seeded
from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.cli import main
from ncmonitor.monitor.history import read_history
from ncmonitor.recipes.free_features import SampleIndices, UnconstrainedFeatures
from ncmonitor.recipes.free_features_theory import lower_bound, seli_limit
from ncmonitor.theory import seli_limits, ufm_objective, ufm_optimum
from toys import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning.cli"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec. is deprecated"),
]
Terms = dict[str, Any]
PROBLEMS: list[tuple[Any, float | None]] = [
    ("ce", None), ("ce", 0.0), ("ce", 1e-2), ("mse", None), ("mse", 0.0), ("mse", 5e-2)
]  # fmt: skip


def fitted(
    module: UnconstrainedFeatures,
    data: SampleIndices,
    epochs: int,
    folder: Path,
    **settings: Any,
) -> NeuralCollapse:
    """Train in float64; return the callback, which has measured the first and the last epoch."""
    monitor = NeuralCollapse(schedule=[], splits=["train"], run_dir=folder, **settings)
    trainer(monitor, max_epochs=epochs, precision="64-true").fit(module, datamodule=data)
    return monitor


# -- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "decay_b"),
    [
        pytest.param(loss, decay, marks=[] if decay is None else [pytest.mark.slow])
        for loss, decay in PROBLEMS
    ],
)
def test_descent_ends_at_the_closed_form_optimum(
    loss: Any, decay_b: float | None, tmp_path: Path
) -> None:
    module = UnconstrainedFeatures(loss=loss, weight_decay_b=decay_b)
    monitor = fitted(module, SampleIndices(), 500, tmp_path)
    best = ufm_optimum(loss, 10, 16, 20, 5e-3, 5e-4, weight_decay_b=decay_b)
    now = module.standing()
    assert now.optimum == best.objective
    assert now.objective == pytest.approx(best.objective, rel=1e-4)
    assert now.gap == pytest.approx(now.objective / best.objective - 1, abs=1e-15)
    assert now.weight_norm == pytest.approx(best.weight_norm, rel=1e-3)
    assert now.feature_norm == pytest.approx(best.feature_norm, rel=1e-3)
    assert now.geometry < 1e-3
    report = monitor.report
    assert report is not None
    assert report.error == report.nc4_disagreement == 0
    assert report.nc1 < 1e-6
    assert report.nc2_etf_means < 1e-3
    assert report.nc3_self_duality_centered < 1e-3
    if (loss, decay_b) != ("mse", None):  # there W is an orthogonal frame
        assert report.nc2_etf_w < 1e-3
        assert report.nc3_self_duality < 1e-3


def test_standing_is_that_of_the_point_it_is_asked_at(tmp_path: Path) -> None:
    module = UnconstrainedFeatures()
    fitted(module, SampleIndices(), 1, tmp_path)
    best = module.optimum
    assert best is not None
    with torch.no_grad():
        module.classifier.weight.copy_(best.weight)
        module.features.weight.copy_(best.features)
    exact = module.standing()
    assert abs(exact.gap) < 1e-14
    assert exact.geometry < 1e-14
    with torch.no_grad():  # rotate the classifier alone: lengths stay, duality is lost
        module.classifier.weight.copy_(best.weight.roll(1, dims=1))
    turned = module.standing()
    assert turned.weight_norm == pytest.approx(best.weight_norm, rel=1e-12)
    assert turned.geometry > 0.1
    assert turned.gap > 0.1


def test_objective_is_trained_with_its_decays_and_none_of_the_optimisers(tmp_path: Path) -> None:
    module = UnconstrainedFeatures(lr=0.25, weight_decay_w=4e-3, weight_decay_h=1e-3)
    fitted(module, SampleIndices(), 1, tmp_path)
    classifier, features = module.trainer.optimizers[0].param_groups
    assert classifier["weight_decay"] == features["weight_decay"] == 0
    assert (classifier["lr"], features["lr"]) == (0.25, 1.0)  # times λ_W/λ_H


def test_float32_comes_as_near_as_its_rounding(tmp_path: Path) -> None:
    module = UnconstrainedFeatures()
    monitor = NeuralCollapse(schedule=[], splits=["train"], run_dir=tmp_path)
    trainer(monitor, max_epochs=400).fit(module, datamodule=SampleIndices())
    assert module.features.weight.dtype == torch.float32
    now = module.standing()
    assert -1e-6 < now.gap < 1e-4
    assert now.geometry < 1e-3


# -- unequal classes -------------------------------------------------------------------------------


def point(
    counts: Sequence[int], loss: Any, decay_b: float | None, scale: float = 1.0
) -> tuple[tuple[Any, ...], Terms]:
    """Return a random point of the model, and the terms of its objective."""
    generator, count = seeded(3), len(counts)
    labels = torch.arange(count).repeat_interleave(torch.tensor(counts))
    draws = [
        scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((count, 6), (len(labels), 6), (count,))
    ]
    weight, features, bias = draws
    terms = {"weight_decay_w": 1e-2, "weight_decay_h": 2e-3, "weight_decay_b": decay_b or 0.0}
    return (weight, features, None if decay_b is None else bias, labels), {"loss": loss, **terms}


@pytest.mark.parametrize(("loss", "decay_b"), PROBLEMS)
def test_bound_is_the_optimum_at_the_optimum_and_below_it_elsewhere(
    loss: Any, decay_b: float | None
) -> None:
    arguments, terms = point([5] * 4, loss, decay_b)
    best = ufm_optimum(loss, 4, 6, 5, 1e-2, 2e-3, weight_decay_b=decay_b)
    there = lower_bound(best.weight, best.features, best.bias, best.labels, **terms)
    if (loss, decay_b) == ("ce", 0.0):
        assert there == -math.inf  # says nothing
        return
    assert there == pytest.approx(best.objective, rel=1e-12)
    for scale in (0.01, 0.3, 3.0):
        arguments, _ = point([5] * 4, loss, decay_b, scale)
        assert lower_bound(*arguments, **terms) < best.objective


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "decay_b"), [("ce", None), ("ce", 1e-2), ("mse", 0.0)])
def test_unequal_classes_reach_the_bound_too(
    loss: Any, decay_b: float | None, tmp_path: Path
) -> None:
    module = UnconstrainedFeatures(loss=loss, weight_decay_b=decay_b)
    data = SampleIndices(imbalance="exponential", imbalance_ratio=4)
    fitted(module, data, 700, tmp_path)
    now = module.standing()
    assert module.optimum is None
    assert 0 <= now.gap + 1e-12 < 1e-4  # a proof: no point of the model is lower than the bound
    bias = None if decay_b is None else module.classifier.bias
    objective = ufm_objective(
        module.classifier.weight, module.features.weight, bias, data.labels,
        loss=loss, weight_decay_w=5e-3, weight_decay_h=5e-4, weight_decay_b=decay_b or 0.0,
    )  # fmt: skip
    assert now.objective == pytest.approx(objective.item(), rel=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "cosine"), [(1, -0.200), (5, -0.024), (20, 0.222)])
def test_minority_classifiers_move_together_as_found_before_by_minimisation(
    ratio: int, cosine: float, tmp_path: Path
) -> None:
    data = SampleIndices(6, 20, imbalance="step", imbalance_ratio=ratio)
    decay_h = 5e-3 * 6 / sum(data.counts)
    module = UnconstrainedFeatures(6, weight_decay_h=decay_h, lr=0.5, momentum=0.9)
    monitor = fitted(module, data, 400, tmp_path, metrics=["imbalance"])
    rows = normalize(module.classifier.weight.detach())[3:]
    assert float((rows @ rows.T)[0, 1]) == pytest.approx(cosine, abs=6e-4)
    if ratio > 1:  # else there is no minority
        assert monitor.report is not None
        assert monitor.report.minority_cos == pytest.approx(cosine, abs=6e-4)


@pytest.mark.slow
def test_weaker_decays_come_nearer_to_the_limit_of_seli(tmp_path: Path) -> None:
    data = SampleIndices(4, 8, imbalance="step", imbalance_ratio=4)
    assert data.counts == [8, 8, 2, 2]
    distances = []
    for decay in (1e-2, 1e-3):
        module = UnconstrainedFeatures(4, weight_decay_w=decay, weight_decay_h=decay, lr=2.0)
        monitor = fitted(module, data, 600, tmp_path / str(decay), metrics=["seli_dist_w"])
        assert module.standing().gap < 1e-2
        assert monitor.report is not None
        distances.append(monitor.report.seli_dist_w)
    assert distances[1] == pytest.approx(0.073, abs=2e-3)  # found before by minimisation
    assert distances[0] > 1.5 * distances[1]


def test_seli_limit_is_what_the_theory_says_of_it() -> None:
    counts = [100] * 5 + [10] * 5
    report = seli_limit(counts, ["imbalance"])
    limits = seli_limits(counts)
    assert report.nc2_etf_w == pytest.approx(limits[0].etf_distance, rel=1e-12)
    assert report.nc2_equinorm_w == pytest.approx(limits[0].cov_norm, rel=1e-12)
    assert report.nc2_etf_means == pytest.approx(limits[1].etf_distance, rel=1e-12)
    for name in ("nc1", "error", "seli_dist_w", "seli_dist_means", "sel_logit_dist"):
        assert getattr(report, name) < 1e-13, name
    steeper = seli_limit([100] * 5 + [1] * 5, ["imbalance"])
    assert -1 / 9 < report.minority_cos < steeper.minority_cos < 1
    assert 1 < report.norm_ratio < steeper.norm_ratio


# -- what is printed and logged --------------------------------------------------------------------


def test_lines_and_logged_values_are_the_standing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = UnconstrainedFeatures()
    monitor = NeuralCollapse(schedule=[1, 3], splits=["train"], run_dir=tmp_path)
    told: list[tuple[int, float, float]] = []
    monitor.after_measurement.append(
        lambda *now: told.append((now[2], module.standing().objective, module.standing().gap))
    )
    logger = pl.loggers.CSVLogger(tmp_path)
    fitting = trainer(monitor, max_epochs=4, precision="64-true", logger=logger)
    fitting.fit(module, datamodule=SampleIndices())
    assert float(fitting.callback_metrics["ufm/gap"]) == told[-1][2]  # other callbacks see it
    lines = [line for line in capsys.readouterr().out.splitlines() if "ufm |" in line]
    found = [re.search(r"objective (\S+), minimum 0\.37669728: gap (\S+) \|", x) for x in lines]
    assert [epoch for epoch, *_ in told] == [0, 1, 3, 4]
    assert [m and (m[1], m[2]) for m in found] == [(f"{o:.8f}", f"{g:.1e}") for _, o, g in told]
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("ufm/gap")]
    assert [float(row["ufm/gap"]) for row in rows] == [gap for *_, gap in told]
    assert {f"ufm/{name}" for name in module.standing()._fields} <= rows[0].keys()


def test_a_quiet_monitor_makes_a_quiet_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(UnconstrainedFeatures(), SampleIndices(), 1, tmp_path, verbose=False)
    assert "ufm" not in capsys.readouterr().out


def test_a_second_fit_of_other_samples_starts_anew_and_prints_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = UnconstrainedFeatures()
    monitor = NeuralCollapse(schedule=[], splits=["train"], run_dir=tmp_path)
    for classes in (10, 10, 4):
        before = getattr(module, "features", None)
        trainer(monitor, max_epochs=1).fit(module, datamodule=SampleIndices(classes, 5))
        assert capsys.readouterr().out.count("ufm |") == 2  # the first epoch and the last
        assert module.features.weight.shape == (5 * classes, 16)
    assert module.features is not before


def test_class_sizes() -> None:
    assert SampleIndices(3, 7).counts == [7, 7, 7]
    assert SampleIndices(4, 20, "step", 5).counts == [20, 20, 4, 4]
    assert SampleIndices(3, 100, "exponential", 100).counts == [100, 10, 1]
    data = SampleIndices(2, 4, "step", 2)
    (indices, labels), *others = data.train_dataloader()
    assert not others
    assert (indices.tolist(), labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1])


# -- through the real command ----------------------------------------------------------------------

Fit = Callable[..., tuple[int, str, str]]
SHORT = (
    *("--trainer.max_epochs", "3", "--trainer.logger", "false", "--nc.schedule", "every_epoch"),
    "--figures.figures=[]",
)


@pytest.fixture
def fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plain_pages: None,
) -> Iterator[Fit]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_QUIET", "true")
    threads = torch.get_num_threads()

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", "ufm", *words])
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


def test_recipe_runs_and_prints_a_gap_for_every_measurement(fit: Fit, tmp_path: Path) -> None:
    status, out, _ = fit(*SHORT)
    assert status == 0
    lines = out.splitlines()
    below = [lines[i + 1] for i, x in enumerate(lines) if re.match(r" +\d \|", x)]
    assert len(below) == 4
    assert all(line.startswith("  ufm | objective ") for line in below)
    (folder,) = tmp_path.glob("runs/ufm/*")
    assert list(read_history(folder)["epoch"]) == [0, 1, 2, 3]
    assert (folder / "report.html").is_file()


def test_recipe_takes_imbalance_and_says_what_is_a_bound(fit: Fit) -> None:
    words = (
        "--data.imbalance",
        "step",
        "--data.imbalance_ratio",
        "10",
        "--nc.metrics",
        "[imbalance]",
    )
    status, out, _ = fit(*SHORT, *words)
    assert status == 0
    assert len(re.findall(r"ufm \| objective \S+, minimum above \S+: gap at most", out)) == 4


def test_a_run_goes_on_from_its_checkpoint(fit: Fit, tmp_path: Path) -> None:
    def last(out: str) -> str:
        return next(line for line in reversed(out.splitlines()) if "ufm |" in line)

    whole = fit(*SHORT, "--trainer.max_epochs", "4", "--trainer.default_root_dir", "whole")[1]
    assert fit(*SHORT, "--trainer.max_epochs", "2", "--trainer.default_root_dir", "half")[0] == 0
    (checkpoint,) = (tmp_path / "half").rglob("last.ckpt")
    resume = ("--ckpt_path", str(checkpoint), "--trainer.default_root_dir", "half")
    status, rest, _ = fit(*SHORT, "--trainer.max_epochs", "4", "--seed_everything", "7", *resume)
    assert status == 0
    assert last(rest) == last(whole)


MISTAKES = {
    "--model.loss hinge": "loss must be ce or mse, but is 'hinge'",
    "--model.dim 0": "dim must be positive, but is 0",
    "--model.dim 5": "so dim must be at least 9, got 5",
    "--model.lr -1": "lr must be positive, but is -1",
    "--model.momentum 1": "momentum must lie in [0, 1), but is 1",
    "--model.weight_decay_h 0": "weight_decay_h must be positive, but is 0",
    "--model.weight_decay_b -1": "weight_decay_b must be at least 0",
    "--model.weight_decay_h 0.5": "must be below 1: with decays this strong the optimum is zero",
    "--model.init_std 0": "init_std must be positive, but is 0",
    "--model.weight_deca_h 1": "did you mean 'model.weight_decay_h'",
    "--data.num_classes 1": "num_classes must be at least 2, but is 1",
    "--data.per_class 0": "per_class must be at least 1, but is 0",
    "--data.imbalance steps --data.imbalance_ratio 2": "did you mean 'step'",
    "--data.imbalance step": "imbalance_ratio",
    "--data.imbalance step --data.imbalance_ratio 50": "use a ratio of at most 20",
    "--data.imbalance step --data.imbalance_ratio 2 --model.weight_decay_b 0": "is not known; make",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    words: str, fit: Fit, tmp_path: Path
) -> None:
    status, out, err = fit(*SHORT, *words.split())
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("ncmonitor: error: ")]
    assert MISTAKES[words] in line
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def test_data_of_another_kind_is_refused_in_python_too(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.arange(4), torch.arange(4) % 2))
    with pytest.raises(InputError, match="a feature vector for every sample of SampleIndices"):
        trainer(max_epochs=1).fit(UnconstrainedFeatures(), loader)


def test_a_run_that_diverges_goes_on_to_say_so(tmp_path: Path) -> None:
    module = UnconstrainedFeatures(lr=1e6)
    data = SampleIndices(imbalance="step", imbalance_ratio=2)
    with pytest.warns(RuntimeWarning, match="is nan, training goes on"):
        fitted(module, data, 200, tmp_path)
    assert math.isnan(module.standing().objective)
    assert module.standing().optimum == -math.inf
