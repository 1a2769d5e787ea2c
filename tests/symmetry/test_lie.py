"""Lie derivatives against closed forms on band-limited images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import reference_symmetry as naive
from cases import seeded
from ncmonitor import InputError
from ncmonitor.symmetry.invariance import FeatureInvariance
from ncmonitor.symmetry.lie import LieError, lie_difference, lie_jvp

F64 = torch.float64
SIZE, WAVES = 16, 5


def waves() -> tuple[Tensor, Tensor, Tensor]:
    """Amplitudes ``(40, 8, 5)``, phases, and frequencies ``(5,)`` of rows without aliasing."""
    amplitude = torch.randn(40, 8, WAVES, generator=seeded(0), dtype=F64)
    phase = 2 * math.pi * torch.rand(40, 8, WAVES, generator=seeded(1), dtype=F64)
    return amplitude, phase, 2 * math.pi * torch.arange(1, WAVES + 1, dtype=F64) / SIZE


def images(wave: Callable[[Tensor], Tensor] = torch.cos, gain: Tensor | float = 1.0) -> Tensor:
    """Images ``(40, 8, 16)``: sums of waves along each row, each wave times its gain."""
    amplitude, phase, omega = waves()
    angles = omega[:, None] * torch.arange(SIZE) + phase[..., None]
    return ((amplitude * gain)[..., None] * wave(angles)).sum(2)


def shift(x: Tensor, t: Any) -> Tensor:
    """Move rows right by t pixels: a turn of each Fourier coefficient's phase, smooth in t."""
    angle = -2 * math.pi * torch.arange(SIZE // 2 + 1, dtype=F64) / SIZE * t
    turn = torch.complex(angle.cos(), angle.sin())
    return torch.fft.irfft(torch.fft.rfft(x) * turn, n=SIZE)


def linear(x: Tensor) -> Tensor:
    weight = torch.randn(8 * SIZE, 6, generator=seeded(2), dtype=F64)
    return x.flatten(1) @ weight.to(x)


def roll(x: Tensor, t: float) -> Tensor:
    """Move rows right by |t| ≤ 1 pixels, bilinear and circular: a kink at t = 0."""
    side = torch.roll(x, 1 if t > 0 else -1, -1)
    return (1 - abs(t)) * x + abs(t) * side


@pytest.mark.parametrize("step", [0.5, 0.1, 2.0])
def test_the_difference_is_the_closed_form_on_band_limited_images(step: float) -> None:
    # ∓ of cos(ω(p − t) + φ) over 2t is sin(ωp + φ) sin(ωt)/t
    omega = waves()[2]
    expected = linear(images(torch.sin, (omega * step).sin() / step))
    found = lie_difference(linear, shift, images(), step)
    assert_close(found, expected, rtol=1e-10, atol=1e-11)
    error = LieError(step)
    for part in (slice(0, 7), slice(7, 40)):
        ahead, back = (linear(shift(images()[part], t)) for t in (step, -step))
        error.update(ahead, back)
    plain = linear(images())
    unit = FeatureInvariance().update(plain[None]).total_variance
    assert error.value(unit) == pytest.approx(
        float(expected.square().sum(1).mean()) / naive.total_variance(plain.numpy()), rel=1e-10
    )


def test_the_forward_mode_derivative_is_exact() -> None:
    expected = linear(images(torch.sin, waves()[2]))
    assert_close(lie_jvp(linear, shift, images()), expected, rtol=1e-11, atol=1e-11)
    bent = lie_jvp(lambda x: linear(x).tanh(), shift, images())
    small = lie_difference(lambda x: linear(x).tanh(), shift, images(), 1e-4)
    assert_close(bent, small, rtol=1e-5, atol=1e-5)


def test_the_error_is_that_of_loops() -> None:
    ahead, back = (linear(shift(images(), t)) for t in (0.5, -0.5))
    expected = naive.lie_error(ahead.numpy(), back.numpy(), 0.5, linear(images()).numpy())
    unit = FeatureInvariance().update(linear(images())[None]).total_variance
    assert LieError().update(ahead, back).value(unit) == pytest.approx(expected, rel=1e-12)


def test_an_invariant_network_does_not_move() -> None:
    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.rfft(x)[..., : WAVES + 1].abs().flatten(1)

    assert lie_difference(spectrum, shift, images()).abs().max() < 1e-12
    assert lie_jvp(spectrum, shift, images() + 1).abs().max() < 1e-11
    assert lie_difference(linear, shift, images()).abs().max() > 0.1


def test_an_equivariant_map_does_not_move_once_it_is_moved_back() -> None:
    def edges(x: Tensor) -> Tensor:
        return x - torch.roll(x, 1, -1)

    def back(y: Tensor, t: Any) -> Tensor:
        return shift(y, -t)

    assert lie_difference(edges, shift, images(), undo=back).abs().max() < 1e-12
    assert lie_jvp(edges, shift, images(), undo=back).abs().max() < 1e-12
    assert lie_difference(edges, shift, images()).abs().max() > 0.1


def test_the_kink_of_interpolation_is_averaged() -> None:
    x = torch.randn(10, 8, SIZE, generator=seeded(3), dtype=F64)
    central = (torch.roll(x, 1, -1) - torch.roll(x, -1, -1)) / 2
    for step in (0.5, 0.1):
        assert_close(lie_difference(lambda y: y, roll, x, step), central, rtol=1e-12, atol=1e-12)
    one_sided = x - torch.roll(x, -1, -1)
    assert (one_sided - central).norm() > 0.5 * central.norm()


def test_independent_outputs_score_one_over_two_t_squared() -> None:
    ahead, back = torch.randn(2, 20_000, 4, generator=seeded(4)) + 3
    assert LieError(0.25).update(ahead, back).value(4.0) == pytest.approx(8, rel=0.02)


def test_half_precision_outputs_are_subtracted_in_float64() -> None:
    ahead = torch.tensor([[40000.0, 1.0]], dtype=torch.float16)
    assert LieError(0.5).update(ahead, -ahead).value(1.0) == 80000.0**2 + 4


def test_without_variance_or_samples_there_is_no_error() -> None:
    error = LieError()
    assert math.isnan(error.value(1.0))
    error.update(torch.ones(2, 3), torch.zeros(2, 3))
    assert math.isnan(error.value(0.0))
    assert math.isnan(error.value(math.nan))


def test_impossible_steps_and_shapes_are_refused() -> None:
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="step="):
            LieError(step)
        with pytest.raises(InputError, match="step="):
            lie_difference(linear, shift, images(), step)
    with pytest.raises(InputError, match="two outputs of one shape"):
        LieError().update(torch.ones(2, 3), torch.ones(2, 4))
