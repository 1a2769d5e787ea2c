from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from cases import seeded
from ncmonitor import InputError, theory
from ncmonitor.errors import MeasurementError
from ncmonitor.monitor.snapshots.corners import ideal_corners
from ncmonitor.monitor.snapshots.file import begin_snapshots
from ncmonitor.monitor.snapshots.snapshot import (
    SHOWN_CLASSES,
    SNAPSHOT_FILE,
    Snapshot,
    SnapshotBuilder,
    append_snapshot,
    read_snapshots,
    take_snapshot,
)

DIM = 12


def cloud(
    num_classes: int = 5, per_class: int = 8, dim: int = DIM, *, noise: float = 0.4, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Features about random means, in an order that mixes the classes, and random rows."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_classes * per_class) % num_classes)
    means = rng.normal(size=(num_classes, dim))
    features = means[labels] + noise * rng.normal(size=(len(labels), dim))
    return features, labels, rng.normal(size=(num_classes, dim))


def collapsed(num_classes: int, dim: int = DIM) -> tuple[Any, Any, Any]:
    """Every feature on its corner of a simplex ETF, off the origin; rows of another length."""
    means = theory.simplex_etf(num_classes, dim, generator=seeded(1)).numpy()
    labels = np.arange(3 * num_classes) % num_classes
    return 7 * means[labels] + 2.0, labels, 0.3 * means


def arrays_of(snapshot: Snapshot) -> dict[str, Any]:
    return {k: v for k, v in vars(snapshot).items() if isinstance(v, np.ndarray)}


def assert_same(one: Snapshot, other: Snapshot, rtol: float = 1e-12) -> None:
    for field in dataclasses.fields(Snapshot):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            assert_allclose(left, right, rtol=rtol, atol=1e-12, err_msg=field.name)
        else:
            assert left == right


# -- what it holds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [(0, 1), (0, 1, 2), (4, 2, 0, 3)])
@pytest.mark.parametrize("num_classes", [5, 9])
def test_a_collapsed_cloud_lies_on_the_ideal_corners(
    num_classes: int, corners: tuple[int, ...]
) -> None:
    snapshot = take_snapshot(*collapsed(num_classes), corners=corners)
    ideal = ideal_corners(len(corners))
    assert snapshot.corners == corners
    assert snapshot.corner_weights is not None
    assert_allclose(snapshot.corner_means, ideal, atol=1e-6)
    assert_allclose(snapshot.corner_weights, ideal, atol=1e-6)
    places = [corners.index(label) for label in snapshot.point_labels]
    assert len(places) == 3 * len(corners)
    assert_allclose(snapshot.points, ideal[places], atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_collapsed_cloud_has_the_gram_matrices_and_spectra_of_the_etf(num_classes: int) -> None:
    snapshot = take_snapshot(*collapsed(num_classes))
    others = num_classes - 1
    etf = np.eye(num_classes) * (1 + 1 / others) - 1 / others
    for matrix in (snapshot.means_gram, snapshot.weight_gram, snapshot.cross):
        assert matrix is not None
        assert_allclose(matrix, etf, atol=1e-9)
    assert snapshot.within_spectrum is not None
    assert snapshot.singular_weight is not None
    assert_allclose(snapshot.singular_means, np.full(others, 7 * np.sqrt(num_classes / others)))
    assert_allclose(snapshot.singular_weight[others:], 0, atol=1e-6)
    assert_allclose(snapshot.within_spectrum, np.zeros(others), atol=1e-20)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ideal_corners_are_a_simplex_etf_with_the_first_on_top(count: int) -> None:
    corners = ideal_corners(count)
    assert_allclose(corners @ corners.T, np.eye(count) * count / (count - 1) - 1 / (count - 1))
    assert corners[0, -1] == (1 if count > 2 else -1)


def test_two_classes_computed_by_hand() -> None:
    features = [[1.0, 5.0], [3.0, 5.0], [0.0, 5.0], [0.0, 5.0]]
    snapshot = take_snapshot(
        np.array(features), np.array([0, 0, 1, 1]), np.array([[2.0, 0.0], [0.0, 0.0]])
    )
    assert snapshot.means_gram.tolist() == [[1, -1], [-1, 1]]
    assert snapshot.weight_gram is not None
    assert snapshot.weight_gram.tolist() == [[2, 0], [0, 0]]  # of the rows as they are
    assert_array_equal(snapshot.cross, [[1, -1], [np.nan, np.nan]])
    assert_allclose(snapshot.singular_means, [np.sqrt(2)])
    assert_allclose(snapshot.within_spectrum, [0.5])  # type: ignore[arg-type]  # of 1 and 0
    assert_allclose(snapshot.points, [[0], [-2], [1], [1]], atol=1e-12)
    assert_allclose(snapshot.corner_means, [[-1], [1]])
    assert_allclose(snapshot.corner_weights, [[-1], [1]])  # type: ignore[arg-type]


def test_a_row_that_leans_out_of_the_space_of_the_means_is_shorter() -> None:
    features, labels, weight = collapsed(3)
    outside = np.linalg.svd(weight)[2][-1]  # orthogonal to all rows
    signs = np.array([[1.0], [-1.0], [0.0]])
    leaning = weight / 0.3 + np.array([[1.0], [1.0], [1.0]]) + 2 * signs * outside
    lengths = [np.sqrt(5), np.sqrt(5), 1]
    snapshot = take_snapshot(features, labels, leaning)
    assert_allclose(
        snapshot.corner_weights,  # type: ignore[arg-type]
        ideal_corners(3) / np.mean(lengths),
        atol=1e-9,
    )


@pytest.mark.parametrize("corners", [(0, 1), (0, 1, 2), (3, 0, 4, 1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotating_moving_and_scaling_the_features_changes_no_picture(
    corners: tuple[int, ...], mirrored: bool
) -> None:
    features, labels, weight = cloud()
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    turn[0] *= -1 if mirrored else 1
    before = take_snapshot(features, labels, weight, corners=corners)
    after = take_snapshot(5 * features @ turn + 1.5, labels, weight @ turn, corners=corners)
    for name in ("points", "corner_means", "corner_weights", "means_gram", "weight_gram", "cross"):
        assert_allclose(getattr(after, name), getattr(before, name), atol=1e-9, err_msg=name)


def test_within_class_spectrum_is_that_of_the_projected_covariance() -> None:
    features, labels, _ = cloud(num_classes=4, per_class=10)
    snapshot = take_snapshot(features, labels)
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    within = np.mean([np.cov(features[labels == c].T, bias=True) for c in range(4)], axis=0)
    basis = np.linalg.svd(means - means.mean(0))[2][:3]
    expected = np.linalg.eigvalsh(basis @ within @ basis.T)[::-1]
    assert_allclose(snapshot.within_spectrum, expected, rtol=1e-9)  # type: ignore[arg-type]
    assert_allclose(snapshot.singular_means, np.linalg.svd(means - means.mean(0))[1][:3])


def test_classes_without_samples_are_left_out() -> None:
    features, labels, weight = cloud()
    kept = ~np.isin(labels, [0, 3])
    snapshot = take_snapshot(features[kept], labels[kept], weight)
    assert snapshot.num_classes == 3
    assert snapshot.classes == snapshot.corners == (1, 2, 4)
    again = take_snapshot(
        features[kept], np.searchsorted([1, 2, 4], labels[kept]), weight[[1, 2, 4]]
    )
    assert_allclose(snapshot.means_gram, again.means_gram)
    assert_allclose(snapshot.cross, again.cross)  # type: ignore[arg-type]
    assert_allclose(snapshot.points, again.points)


def test_of_many_classes_evenly_spaced_ones_are_shown() -> None:
    features, labels, weight = cloud(num_classes=1000, per_class=2, dim=300)
    snapshot = take_snapshot(features, labels, weight)
    assert len(snapshot.classes) == SHOWN_CLASSES
    assert (snapshot.classes[0], snapshot.classes[-1]) == (0, 999)
    assert set(np.diff(snapshot.classes)) == {32, 33}
    assert snapshot.means_gram.shape == (32, 32)
    assert len(snapshot.singular_means) == 256
    means = np.stack([features[labels == c].mean(0) for c in range(1000)])
    centred = means - means.mean(0)
    shown = centred[list(snapshot.classes)]
    assert_allclose(snapshot.means_gram, shown @ shown.T / np.square(centred).sum(1).mean())
    assert_allclose(snapshot.singular_means, np.linalg.svd(centred)[1][:256], rtol=1e-8)


def test_one_dimension_puts_three_classes_on_a_line() -> None:
    features = np.array([[0.0], [1.0], [5.0]])
    snapshot = take_snapshot(features, np.arange(3), np.array([[-1.0], [0.0], [1.0]]))
    assert snapshot.singular_means.shape == (1,)
    assert np.linalg.matrix_rank(snapshot.points, tol=1e-9) == 1
    lengths = np.linalg.norm(snapshot.corner_means, axis=1)
    assert_allclose(lengths, np.array([2, 1, 3]) / 2)


def test_what_lies_beside_means_on_a_line_is_not_turned_into_its_plane() -> None:
    # The second direction of such means is rounding: any that is chosen would be an accident.
    aside = np.random.default_rng(1).normal(size=(3, 6))
    means = np.outer([0.0, 0.2, 1.0], np.ones(6))
    features, labels = np.concatenate([means + aside, means - aside]), np.arange(6) % 3
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    one, other = (take_snapshot(f, labels) for f in (features, features @ turn))
    assert_allclose(one.points, other.points, atol=1e-9)
    assert np.linalg.matrix_rank(one.points, tol=1e-9) == 1


def test_without_a_classifier_nothing_is_said_about_one() -> None:
    features, labels, _ = cloud()
    snapshot = take_snapshot(features, labels)
    assert snapshot.weight_gram is None
    assert snapshot.cross is None
    assert snapshot.singular_weight is None
    assert snapshot.corner_weights is None


def test_a_feature_that_is_not_finite_leaves_nan_and_no_error() -> None:
    features, labels, weight = cloud()
    features[labels == 0, 2] = np.nan
    snapshot = take_snapshot(features, labels, weight)
    for name in ("means_gram", "cross", "singular_means", "corner_means"):
        assert np.isnan(getattr(snapshot, name)).all(), name
    assert np.isfinite(snapshot.weight_gram).all()  # type: ignore[arg-type]
    assert snapshot.within_spectrum is None


@pytest.mark.parametrize("other", [0.3, np.nextafter(0.3, 1)])
def test_means_that_coincide_but_for_rounding_have_no_frame(other: float) -> None:
    snapshot = take_snapshot(np.outer([0.3, other], np.ones(4)), np.arange(2))
    assert np.isnan(snapshot.corner_means).all()


def test_a_single_class_has_no_picture() -> None:
    snapshot = take_snapshot(np.ones((1, 4)), np.array([2]))
    assert (snapshot.num_classes, snapshot.corners) == (1, (2,))
    assert np.isnan(snapshot.points).all()
    assert len(snapshot.singular_means) == 0


# -- input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_give_what_arrays_of_their_numbers_give(dtype: torch.dtype) -> None:
    features, labels, weight = (torch.tensor(a) for a in cloud())
    features, weight = features.to(dtype), weight.to(dtype)
    arrays = features.double().numpy(), labels.numpy(), weight.double().numpy()
    rtol = 1e-12 if dtype == torch.float64 else 1e-5  # sums of float32 residuals
    assert_same(
        take_snapshot(features.requires_grad_(), labels, weight), take_snapshot(*arrays), rtol
    )


def test_tokens_are_samples_and_ignored_ones_are_not() -> None:
    features, labels, weight = cloud()
    long = np.concatenate([features, 1e6 * np.ones((4, DIM))])
    marked = np.concatenate([labels, np.full(4, -100)])
    tokens = take_snapshot(long.reshape(4, 11, DIM), marked.reshape(4, 11), weight)
    assert_same(tokens, take_snapshot(features, labels, weight))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corners": (0, 7)}, InputError, "class 7 has none in train; choose among 0, 1, 2, 3, 4"),
        ({"corners": (0,)}, InputError, "two to four different classes, got \\[0\\]"),
        ({"corners": (0, 1, 1)}, InputError, "two to four different classes"),
        ({"corners": (0, 1, 2, 3, 4)}, InputError, "two to four different classes"),
        ({"corners": (0, 1.5)}, InputError, "two to four different classes"),
        ({"points_per_class": -1}, InputError, "points_per_class= must be at least 0, but is -1"),
        ({"weight": np.ones((4, DIM))}, InputError, r"at least 5 classes, but has \(4, 12\)"),
        ({"weight": np.ones((5, 3))}, InputError, r"shape \(K, 12\)"),
        ({"labels": np.zeros(3, int)}, InputError, r"but they have \(40, 12\) and \(3,\)"),
        ({"labels": np.full(40, -1)}, InputError, "must not be negative, but one is -1"),
        ({"labels": np.zeros(40)}, InputError, "class indices, but have dtype float64"),
        ({"labels": np.full(40, -100)}, MeasurementError, "needs samples, but no class has one"),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    features, labels, weight = cloud()
    with pytest.raises(error, match=message):
        take_snapshot(**({"features": features, "labels": labels, "weight": weight} | change))


# -- streaming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [None, (4, 1, 3)])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_give_the_points_of_the_whole(size: int, corners: tuple[int, ...] | None) -> None:
    features, labels, weight = cloud()
    builder = SnapshotBuilder(corners=corners, points_per_class=3)
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        builder.update(torch.tensor(features[part]), torch.tensor(labels[part]))
    means = np.stack([features[labels == c].mean(0) for c in range(5)])
    whole = take_snapshot(features, labels, weight, corners=corners, points_per_class=3, epoch=4)
    streamed = builder.finish(
        torch.tensor(means), torch.full((5,), 8), weight, epoch=4,
        within_spectrum=whole.within_spectrum,
    )  # fmt: skip
    assert_same(streamed, whole)
    assert len(streamed.points) == 9


def test_a_smaller_class_that_turns_up_late_is_not_forgotten() -> None:
    builder = SnapshotBuilder()
    builder.update(np.eye(4), np.array([9, 7, 5, 6])).update(np.eye(4)[:2], np.array([2, 9]))
    assert builder.corners == (2, 5, 6)
    assert not builder.complete


def test_a_complete_builder_looks_at_nothing_more() -> None:
    builder = SnapshotBuilder(points_per_class=1).update(np.eye(3), np.arange(3))
    assert builder.complete
    builder.update(None, None)


def test_kept_points_do_not_change_with_the_batch() -> None:
    batch = torch.eye(3, dtype=torch.float64)
    builder = SnapshotBuilder(points_per_class=1).update(batch, torch.arange(3))
    batch.zero_()
    points = builder.finish(np.eye(3), np.ones(3)).points
    assert_allclose(points, ideal_corners(3), atol=1e-9)


# -- on disk ---------------------------------------------------------------------------------------


@pytest.fixture
def snapshot() -> Snapshot:
    return take_snapshot(*cloud(10, 60, 64), epoch=3)


def test_a_snapshot_reads_back_to_five_digits(tmp_path: Path, snapshot: Snapshot) -> None:
    append_snapshot(tmp_path / "run", snapshot)
    [again] = read_snapshots(tmp_path / "run")
    assert_same(again, snapshot, rtol=5.1e-5)
    assert (tmp_path / "run" / SNAPSHOT_FILE).stat().st_size < 12_000


@pytest.mark.parametrize(
    "features", [np.full((4, 3), np.nan), np.ones((4, 3))], ids=["nan", "one point"]
)
@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [0, 0, 0, 0]], ids=["classes", "one class"])
def test_what_is_undefined_is_null_in_the_file(
    tmp_path: Path, features: Any, labels: list[int]
) -> None:
    before = take_snapshot(features, np.array(labels), np.zeros((3, 3)))
    append_snapshot(tmp_path, before)
    assert "NaN" not in (tmp_path / SNAPSHOT_FILE).read_text()
    assert_same(read_snapshots(tmp_path)[0], before)


def test_a_picture_without_points_reads_back(tmp_path: Path) -> None:
    features, labels, _ = cloud()
    append_snapshot(tmp_path, take_snapshot(features, labels, points_per_class=0))
    assert read_snapshots(tmp_path)[0].points.shape == (0, 2)


def test_a_run_without_snapshots_has_none(tmp_path: Path) -> None:
    assert read_snapshots(tmp_path) == []


def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path: Path, snapshot: Snapshot) -> None:
    append_snapshot(tmp_path, snapshot)
    path = tmp_path / SNAPSHOT_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:500])
    with pytest.warns(
        UserWarning, match=r"1 of 2 lines of snapshots\.jsonl cannot be read.*line 2"
    ):
        assert [s.epoch for s in read_snapshots(tmp_path)] == [3]
    append_snapshot(tmp_path, dataclasses.replace(snapshot, epoch=4))
    assert [s.epoch for s in read_snapshots(tmp_path)] == [3, 4]


def test_a_file_torn_in_its_first_line_starts_anew(tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / SNAPSHOT_FILE).write_text('{"epoch":')
    append_snapshot(tmp_path, snapshot)
    assert [s.epoch for s in read_snapshots(tmp_path)] == [3]


def test_what_a_resumed_run_did_before_is_left_out(tmp_path: Path, snapshot: Snapshot) -> None:
    for epoch, split in ((1, "train"), (5, "train"), (9, "train"), (9, "val"), (3, "train")):
        append_snapshot(tmp_path, dataclasses.replace(snapshot, epoch=epoch, split=split))
    found = [(s.epoch, s.split) for s in read_snapshots(tmp_path)]
    assert found == [(1, "train"), (9, "val"), (3, "train")]


def test_entries_of_a_newer_version_are_ignored(tmp_path: Path, snapshot: Snapshot) -> None:
    append_snapshot(tmp_path, snapshot)
    path = tmp_path / SNAPSHOT_FILE
    entry = json.loads(path.read_text())
    del entry["within_spectrum"], entry["cross"]  # an older one had not these
    path.write_text(json.dumps(entry | {"colour": "blue"}) + "\n")
    [again] = read_snapshots(tmp_path)
    assert again.within_spectrum is None
    assert again.cross is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: "{]",
        lambda entry: "[1]",
        lambda entry: json.dumps({k: v for k, v in entry.items() if k != "points"}),
        lambda entry: json.dumps(entry | {"points": entry["points"][:-1]}),
        lambda entry: json.dumps(entry | {"epoch": "soon"}),
    ],
)
def test_a_damaged_line_is_named_and_hides_no_other(
    tmp_path: Path, snapshot: Snapshot, damage: Any
) -> None:
    append_snapshot(tmp_path, snapshot)
    path = tmp_path / SNAPSHOT_FILE
    path.write_text(path.read_text() + damage(json.loads(path.read_text())) + "\n")
    append_snapshot(tmp_path, dataclasses.replace(snapshot, epoch=5))
    with pytest.warns(UserWarning, match=r"1 of 3 lines of snapshots\.jsonl cannot be .*: line 2"):
        assert [s.epoch for s in read_snapshots(tmp_path)] == [3, 5]


def test_an_entry_without_its_line_end_is_read_and_kept(tmp_path: Path, snapshot: Snapshot) -> None:
    append_snapshot(tmp_path, snapshot)
    path = tmp_path / SNAPSHOT_FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert [s.epoch for s in read_snapshots(tmp_path)] == [3]
    append_snapshot(tmp_path, dataclasses.replace(snapshot, epoch=4))
    assert [s.epoch for s in read_snapshots(tmp_path)] == [3, 4]
    path.write_bytes(path.read_bytes()[:-1])
    begin_snapshots(tmp_path, {3, 4})
    assert [s.epoch for s in read_snapshots(tmp_path)] == [3, 4]


def test_reading_and_drawing_need_no_torch(tmp_path: Path, snapshot: Snapshot) -> None:
    append_snapshot(tmp_path, snapshot)
    code = (
        "import sys; from ncmonitor.monitor.snapshots.snapshot import read_snapshots;"
        "from ncmonitor import plots;"
        "plots.simplex(read_snapshots('.')[0]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
