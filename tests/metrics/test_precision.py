"""The promise "it is exact": the sweep of spreads and offsets, whatever the switches around it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from agreement import assert_agree, fast, naive, unsure
from cases import BY_NAME, Case, cloud, random_means, seeded, sweep
from ncmonitor.inputs.tensors import exact_arithmetic


def affordable() -> Iterator[Case]:
    """All clouds with K = 2 and 10; of K = 100, where the twin takes half a second, the corners."""
    for case in sweep():
        at_the_corner = case.name.endswith(("1e-1", "1e-6")) and "offset1_" not in case.name
        if case.num_classes < 100 or at_the_corner:
            yield case


@pytest.mark.parametrize("case", list(affordable()), ids=str)
def test_collapsed_float32_features_are_measured_to_five_digits(case: Case) -> None:
    assert_agree(fast(case), naive(case), rtol=1e-5, unsure=unsure(case))


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@contextlib.contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SWITCHES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "autocast": autocast,
    "matmul_medium": lambda: matmul_precision("medium"),
    "matmul_high": lambda: matmul_precision("high"),
    "tf32": tf32,
    "default_float64": lambda: default_dtype(torch.float64),
    "default_bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", ["noisy", "offset_1e-02", "common_row"])
def test_switches_around_the_call_change_no_bit(name: str, switch: str) -> None:
    case = BY_NAME[name]
    before = fast(case)
    with SWITCHES[switch]():
        assert fast(case) == before


@pytest.mark.parametrize("value", ["medium", "high", "highest"])
def test_our_arithmetic_turns_reduced_precision_off_and_on_again(value: str) -> None:
    with matmul_precision(value):
        with exact_arithmetic(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == value


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch < 2.9 has one switch"
)
def test_our_arithmetic_restores_switches_set_backend_by_backend() -> None:
    mkldnn: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, value in zip(backends, ("tf32", "bf16"), strict=True):
            backend.fp32_precision = value  # the common getter raises from here on
        with exact_arithmetic(torch.device("cpu")):
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
            # cuBLAS looks at both and raises where they contradict each other
            assert torch.get_float32_matmul_precision() == "highest"
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def test_a_failure_in_our_arithmetic_restores_the_switches_too() -> None:
    def fails() -> None:
        with exact_arithmetic(torch.device("cpu")):
            raise ValueError("on purpose")

    with matmul_precision("medium"):
        with pytest.raises(ValueError, match="on purpose"):
            fails()
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.is_grad_enabled()


def test_cross_entropy_keeps_its_digits_deep_in_the_terminal_phase() -> None:
    case = BY_NAME["exact_etf_float32"]
    assert case.weight is not None
    weight = 20 * case.weight  # rows of length 60
    margin = 60 * 10 / 9  # exp(−margin) is lost beside 1, even in the twin's long double
    # rel: the margin is a float32 number of 67, rounded by 4e-6
    expected = 9 * math.exp(-margin)
    got = fast(case, weight=weight)["cross_entropy"]
    assert got == pytest.approx(expected, rel=1e-4, abs=0)


def test_a_common_offset_costs_the_logits_no_digits() -> None:
    case = cloud("far", "offset 1e5", random_means(10, 32, seeded(0)), 20, spread=0.5, offset=1e5)
    got, want = fast(case), naive(case)
    assert want["cross_entropy"] > 0.1
    # one logit has 32 products of 1e5 in float32, 2e-2 of rounding each, unless taken about a point
    assert got["cross_entropy"] == pytest.approx(want["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("name", ["near_duplicates", "near_duplicates_float64"])
def test_means_that_nearly_coincide_are_told_apart(name: str) -> None:
    case = BY_NAME[name]
    got, want = fast(case), naive(case)
    # a random guess between the two classes would be wrong for one sample in ten
    assert want["ncc_accuracy"] > 0.99
    assert got["ncc_accuracy"] == want["ncc_accuracy"]
