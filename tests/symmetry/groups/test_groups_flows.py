"""Flows of images and points against closed forms, and their derivatives at t = 0."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

from cases import seeded
from ncmonitor import InputError
from ncmonitor.symmetry import (
    Flow,
    point_rotation_flow,
    point_translation_flow,
    rotation_flow,
    scale_flow,
    translation_flow,
)

F64 = torch.float64
SIZE = 33
LINE = torch.arange(SIZE, dtype=F64) - (SIZE - 1) / 2
DOWN, RIGHT = LINE[:, None], LINE


def hill(right: float, down: float, width: float = 3.0) -> Tensor:
    return torch.exp(-((DOWN - down) ** 2 + (RIGHT - right) ** 2) / (2 * width**2))[None, None]


def at_rest(flow: Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and forward-mode derivative with respect to t at 0."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        # torch 2.15: the first dual number of a process loads a module that uses torch.jit.script.
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        out = flow(x, forward_ad.make_dual(torch.zeros((), dtype=F64), torch.ones((), dtype=F64)))
        value, slope = forward_ad.unpack_dual(out)
        assert slope is not None
        return value, slope


HILL = hill(4.0, -2.0)
SLOPE_RIGHT = -(RIGHT - 4.0) / 9 * HILL
SLOPE_DOWN = -(DOWN + 2.0) / 9 * HILL

#: Flow, and the derivative of the moved hill with respect to t at 0, by the chain rule.
DERIVATIVES: dict[str, tuple[Flow, Tensor]] = {
    "right": (translation_flow("right"), -SLOPE_RIGHT),
    "down": (translation_flow("down"), -SLOPE_DOWN),
    "right, replicate": (translation_flow("right", boundary="replicate"), -SLOPE_RIGHT),
    "down, constant": (translation_flow("down", boundary="constant"), -SLOPE_DOWN),
    # Anticlockwise as seen: each pixel is read at row + right·angle, column − down·angle.
    "rotation": (rotation_flow(), (SLOPE_DOWN * RIGHT - SLOPE_RIGHT * DOWN) * math.pi / 180),
    "scale": (scale_flow(), -(SLOPE_DOWN * DOWN + SLOPE_RIGHT * RIGHT)),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_the_derivative_at_rest_is_the_closed_form(case: str) -> None:
    flow, wanted = DERIVATIVES[case]
    value, slope = at_rest(flow, HILL)
    assert_close(value, HILL, rtol=0, atol=1e-14)
    # Fourier is exact but for the hill's tail beyond the border; the cubic slope is the central
    # difference, whose error on a hill of this width is at most 5 % of the largest slope.
    error = 1e-3 if flow.interpolation == "Fourier" else 0.05
    assert (slope - wanted).abs().max() < error * wanted.abs().max()


@pytest.mark.parametrize("case", DERIVATIVES)
def test_both_sides_of_rest_agree(case: str) -> None:
    flow, wanted = DERIVATIVES[case]
    x = torch.rand(2, 3, 9, 9, generator=seeded(0), dtype=F64)
    h = 1e-6 * flow.step
    ahead, behind = (flow(x, h) - x) / h, (x - flow(x, -h)) / h
    assert (ahead - behind).norm() < 1e-4 * ahead.norm()
    assert wanted.shape == HILL.shape


@pytest.mark.parametrize("case", DERIVATIVES)
def test_the_recommended_step_gives_nearly_the_derivative(case: str) -> None:
    flow, wanted = DERIVATIVES[case]
    slope = (flow(HILL, flow.step) - flow(HILL, -flow.step)) / (2 * flow.step)
    assert (slope - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_a_circular_flow_moves_waves_exactly_and_adds_up() -> None:
    u = 2 * math.pi * torch.arange(16, dtype=F64) / 16

    def wave(t: float) -> Tensor:
        shift = 2 * math.pi * t / 16
        return (torch.sin(3 * (u - shift)) + torch.cos(5 * (u - shift)))[None, None, None].expand(
            2, 3, 16, 16
        )

    flow = translation_flow()
    for t in (-2.5, 0.1, 0.5, 7.0):
        assert_close(flow(wave(0.0), t), wave(t), rtol=0, atol=1e-13)
    assert_close(flow(flow(wave(0.0), 0.3), 0.4), flow(wave(0.0), 0.7), rtol=0, atol=1e-13)
    shift = 2 * math.pi / 16
    slope = -3 * shift * torch.cos(3 * u) + 5 * shift * torch.sin(5 * u)
    assert_close(at_rest(flow, wave(0.0))[1], slope.expand(2, 3, 16, 16), rtol=0, atol=1e-13)
    down = translation_flow("down")(wave(0.0).mT, 0.5)
    assert_close(down, wave(0.5).mT, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_quarter_turn_by_flow_is_rot90(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 14, 14, generator=seeded(0), dtype=dtype)
    error = 1e-13 if dtype == F64 else 1e-6
    assert_close(rotation_flow()(x, 90.0), torch.rot90(x, 1, (2, 3)), rtol=0, atol=error)
    assert_close(rotation_flow()(x, -180.0), torch.rot90(x, 2, (2, 3)), rtol=0, atol=error)
    # Nine turns by 10 degrees: interpolation blurs, on this image by 1 % of its height.
    step = HILL.to(dtype)
    for _ in range(9):
        step = rotation_flow()(step, 10.0)
    assert_close(step, torch.rot90(HILL, 1, (2, 3)).to(dtype), rtol=0, atol=1.5e-2)


def test_scaling_moves_away_from_the_centre_and_back() -> None:
    flow = scale_flow()
    small = hill(4.0, -2.0, 2.4)
    grown = flow(small, math.log(1.25))
    assert_close(grown, hill(5.0, -2.5, 3.0), rtol=0, atol=5e-3)
    assert_close(flow(grown, -math.log(1.25)), small, rtol=0, atol=1e-2)


def test_the_step_is_half_a_pixel_at_the_border() -> None:
    for size in (28, 224):
        edge = size / 2
        assert math.radians(rotation_flow(size=size).step) * edge == pytest.approx(0.5)
        assert scale_flow(size=size).step * edge == pytest.approx(0.5)
    assert translation_flow().step == 0.5


def test_a_flow_is_differentiable_in_t_in_reverse_too() -> None:
    for flow, wanted in DERIVATIVES.values():
        t = torch.zeros((), requires_grad=True)
        weights = torch.randn(HILL.shape, generator=seeded(1), dtype=F64)
        (flow(HILL, t) * weights).sum().backward()
        assert t.grad is not None
        assert float(t.grad) == pytest.approx(float((wanted * weights).sum()), abs=0.05 * 33)


def test_points_turn_right_handed_and_slide() -> None:
    x = torch.randn(2, 5, 3, generator=seeded(0), dtype=F64)
    quarter = point_rotation_flow()(x, 90.0)
    assert_close(quarter, torch.stack([-x[..., 1], x[..., 0], x[..., 2]], -1), rtol=0, atol=1e-14)
    turn = point_rotation_flow((1.0, 2.0, -2.0))
    assert_close(turn(turn(x, 20.0), 30.0), turn(x, 50.0), rtol=0, atol=1e-14)
    assert_close(turn(x, 77.0).norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-14)
    axis = torch.tensor([[[1.0, 2.0, -2.0]]], dtype=F64)
    assert_close(turn(axis, 33.0), axis, rtol=0, atol=1e-14)
    slid = point_translation_flow((1.0, 0.0, 2.0))(x, 0.5)
    assert_close(slid, x + torch.tensor([0.5, 0.0, 1.0], dtype=F64), rtol=0, atol=0)
    slope = at_rest(turn, x)[1]
    wanted = torch.linalg.cross(axis.expand_as(x) / 3, x) * math.pi / 180
    assert_close(slope, wanted, rtol=1e-6, atol=1e-9)


def test_a_flow_acts_on_a_part_of_a_batch() -> None:
    flow = translation_flow().on("image")
    out = flow({"image": HILL, "label": 3}, 2.0)
    assert out["label"] == 3
    assert_close(out["image"], HILL.roll(2, -1), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: translation_flow("left"), "direction must be 'right' or 'down'"),  # type: ignore[arg-type]
        (lambda: rotation_flow(size=0), "at least 1 pixel"),
        (lambda: rotation_flow(boundary="zeros"), "boundary must be"),  # type: ignore[arg-type]
        (lambda: point_rotation_flow((0, 0, 0)), "not all 0"),
        (lambda: point_rotation_flow((0, 1)), "three coordinates"),
        (lambda: scale_flow()(torch.ones(1, 1, 4, 4, dtype=torch.uint8), 0.1), "rounded"),
        (lambda: scale_flow()((HILL, 1), 0.1), "got tuple"),
        (lambda: point_rotation_flow()(torch.ones(2, 5, 2), 1.0), "3 coordinates"),
        (lambda: point_rotation_flow()(torch.ones(2, 5, 3).int(), 1.0), "floating point"),
    ],
)
def test_mistakes_are_said(call: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        call()
