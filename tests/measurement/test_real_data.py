"""Real images, read by torchvision: the fast numbers against the naive twin; and the skip rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.datasets import MNIST

from ncmonitor import measure_collapse
from reference import reference_metrics
from reference_optional import optional_metrics

Images = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(scope="module")
def mnist(image_root: Callable[[str], Path]) -> Images:
    """The first 2,000 training images of MNIST as 14 x 14 features, and their labels."""
    data = MNIST(image_root("MNIST"), train=True, download=False)
    pixels = data.data[:2000, None].float() / 255
    # A quarter of the pixels: the twin's d x d matrices are slow, and it judges the same formulas.
    features = torch.nn.functional.avg_pool2d(pixels, 2).flatten(1)
    return features.numpy(), data.targets[:2000].numpy()


def test_mnist_pixels_measure_as_the_reference_says(mnist: Images) -> None:
    features, labels = mnist
    weight = np.random.default_rng(0).standard_normal((10, features.shape[1]), dtype=np.float32)
    bias = np.linspace(-1, 1, 10, dtype=np.float32)
    measured = measure_collapse(features, labels, weight, bias).as_dict()
    expected = reference_metrics(features, labels, weight, bias)
    expected |= optional_metrics(features, labels, weight, bias)
    for name, value in measured.items():
        # 1e-5 relative is what float32 features are promised.
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-12, nan_ok=True), name


def test_pixels_of_real_images_are_far_from_collapse(mnist: Images) -> None:
    report = measure_collapse(*mnist)
    assert report.nc1 > 1
    assert report.nc1_rank == 9
    assert 0.75 < report.ncc_accuracy < 0.9  # the nearest-mean rule on pixels: about 82 %


@pytest.mark.parametrize("value", [None, "0", ""])
def test_missing_data_skips_with_a_reason(
    value: str | None,
    image_root: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCMONITOR_DATA", str(tmp_path))
    monkeypatch.delenv("NCMONITOR_REQUIRE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("NCMONITOR_REQUIRE_DATA", value)
    with pytest.raises(pytest.skip.Exception, match="holds no MNIST"):
        image_root("MNIST")


def test_missing_data_fails_where_it_is_required(
    image_root: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCMONITOR_DATA", str(tmp_path))
    monkeypatch.setenv("NCMONITOR_REQUIRE_DATA", "1")
    with pytest.raises(pytest.fail.Exception, match="holds no cifar-10-batches-py"):
        image_root("CIFAR10")
