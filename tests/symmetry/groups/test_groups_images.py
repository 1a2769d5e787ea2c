"""What each action does to an image, against torch and closed forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from cases import seeded
from ncmonitor import InputError, symmetry
from ncmonitor.symmetry import Group, check_group

F64 = torch.float64


def noise(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def smooth(height: int = 16, width: int = 16, right: float = 0.0, down: float = 0.0) -> Tensor:
    """Waves of at most a quarter of the sampling rate, moved by parts of a pixel."""
    rows = torch.arange(height, dtype=F64)[:, None] - down
    columns = torch.arange(width, dtype=F64) - right
    u, v = 2 * math.pi * rows / height, 2 * math.pi * columns / width
    return (torch.sin(2 * u + v) + torch.cos(u - 3 * v) + 0.5 * torch.sin(4 * v))[None, None]


def blob(size: int = 33, right: float = 0.0, down: float = 0.0, width: float = 2.5) -> Tensor:
    """A round hill away from the border, of which every transform is known."""
    line = torch.arange(size, dtype=F64) - (size - 1) / 2
    square = (line[:, None] - down) ** 2 + (line - right) ** 2
    return torch.exp(-square / (2 * width**2))[None, None]


def test_flips_and_turns_are_those_of_torch() -> None:
    x = noise(2, 3, 5, 5)
    group = symmetry.dihedral()
    for turns in (1, 2, 3):
        assert torch.equal(group[f"rot{90 * turns}"](x), torch.rot90(x, turns, (2, 3)))
    assert torch.equal(group["flip_h"](x), x.flip(3))
    assert torch.equal(group["flip_v"](x), x.flip(2))
    assert torch.equal(group["transpose"](x), x.mT)
    assert torch.equal(group["antitranspose"](x), x.mT.flip(2, 3))


def test_whole_shifts_are_padding_and_cropping() -> None:
    x = noise(2, 3, 6, 7)
    group = symmetry.shifts([(2, -1), (0, 3)])
    assert group.names == ("identity", "shift+2-1", "shift+0+3")
    assert torch.equal(group["shift+2-1"](x), F.pad(x, (0, 1, 2, 0))[:, :, :6, 1:])
    assert torch.equal(group["shift+0+3"](x), F.pad(x, (3, 0))[..., :7])
    black = symmetry.shifts([(2, -1)], fill=-0.5)[1](x)
    assert torch.equal(black, F.pad(x, (0, 1, 2, 0), value=-0.5)[:, :, :6, 1:])


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
def test_other_boundaries_are_those_of_pad(boundary: Any) -> None:
    x = noise(2, 3, 6, 7)
    shifted = symmetry.shifts([(2, -3)], boundary=boundary)[1](x)
    assert torch.equal(shifted, F.pad(x, (0, 3, 2, 0), mode=boundary)[:, :, :6, 3:])


def test_a_number_shifts_to_the_eight_neighbours() -> None:
    group = symmetry.shifts(2, boundary="circular")
    assert len(set(group.names)) == len(group) == 9
    x = noise(1, 1, 5, 5)
    assert torch.equal(group["shift-2+0"](x), x.roll(-2, 2))
    assert not group.closed


def test_shifts_work_on_whole_numbers_and_truth_values() -> None:
    x = torch.randint(0, 256, (2, 1, 4, 4), generator=seeded(0), dtype=torch.uint8)
    out = symmetry.shifts([(1, 0)], fill=255)[1](x)
    assert out.dtype == torch.uint8
    assert (out[:, :, 0] == 255).all()
    assert symmetry.shifts([(1, 0)])[1](x > 9).dtype == torch.bool
    with pytest.raises(InputError, match=r"fill=-0.42 is no value of torch.uint8"):
        symmetry.shifts([(1, 0)], fill=-0.42)[1](x)


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_a_fourier_shift_moves_band_limited_images_exactly(size: tuple[int, int]) -> None:
    group = symmetry.subpixel_shifts([(0.3, -1.25)], boundary="circular")
    moved = group[1](smooth(*size))
    assert_close(moved, smooth(*size, right=-1.25, down=0.3), rtol=0, atol=1e-13)
    single = group[1](smooth(*size).float())
    assert_close(single.double(), moved, rtol=0, atol=2e-6)


def test_a_fourier_shift_by_whole_pixels_rolls_any_image() -> None:
    x = noise(2, 3, 6, 7)
    group = symmetry.subpixel_shifts([(2, -1)], boundary="circular")
    assert_close(group[1](x), x.roll((2, -1), (2, 3)), rtol=0, atol=1e-13)


def test_sub_pixel_shifts_go_where_whole_ones_go() -> None:
    x = noise(2, 3, 6, 7)
    for boundary in ("constant", "replicate", "reflect"):
        fine = symmetry.subpixel_shifts([(2.0, -3.0)], boundary=boundary)[1](x)
        whole = symmetry.shifts([(2, -3)], boundary=boundary)[1](x)
        assert_close(fine, whole, rtol=0, atol=1e-14)
    hill = symmetry.subpixel_shifts([(0.5, -0.25)])[1](blob())
    assert_close(hill, blob(right=-0.25, down=0.5), rtol=0, atol=4e-3)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("boundary", ["constant", "replicate", "reflect", "circular"])
def test_interpolated_quarter_turns_are_the_exact_ones(size: int, boundary: Any) -> None:
    x = noise(2, 3, size, size)
    group = symmetry.rotations([90, 180, -90], boundary=boundary)
    for name, turns in (("rot90", 1), ("rot180", 2), ("rot-90", 3)):
        assert_close(group[name](x), torch.rot90(x, turns, (2, 3)), rtol=0, atol=1e-13)


def test_a_hill_is_turned_and_scaled_to_where_it_should_be() -> None:
    # The largest error over the hill's height; halving the pixel divides it by eight or more.
    for degrees in (10.0, 37.0):
        a = math.radians(degrees)
        turned = symmetry.rotations([degrees])[1](blob(right=6.0))
        # Anticlockwise as seen: right goes up, which is a smaller row.
        assert_close(turned, blob(right=6 * math.cos(a), down=-6 * math.sin(a)), rtol=0, atol=3e-3)
    scaled = symmetry.scalings([1.2])[1](blob(right=5.0, down=-3.0))
    assert_close(scaled, blob(right=6.0, down=-3.6, width=3.0), rtol=0, atol=3e-3)
    small = symmetry.scalings([0.8])[1](blob(right=5.0, down=-3.0))
    assert_close(small, blob(right=4.0, down=-2.4, width=2.0), rtol=0, atol=3e-3)


def test_images_that_are_not_square_are_turned_without_shear() -> None:
    hill = blob(33)[:, :, 4:-4]  # 25 × 33, the same centre
    turned = symmetry.rotations([30.0])[1](hill)
    assert_close(turned, hill, rtol=0, atol=3e-3)  # a round hill looks the same


def test_cubic_convolution_reproduces_quadratics() -> None:
    line = torch.arange(12, dtype=F64)
    x = (line**2 + 3 * line[:, None] - line * line[:, None])[None, None]
    fine = symmetry.subpixel_shifts([(0.0, 0.3), (0.4, 0.0)])
    inner = (..., slice(3, -3), slice(3, -3))
    at = line - 0.3
    wanted = at**2 + 3 * line[:, None] - at * line[:, None]
    assert_close(fine[1](x)[inner], wanted[None, None][inner], rtol=0, atol=1e-11)


INTERPOLATED: list[Callable[[], Group]] = [
    symmetry.rotations,
    symmetry.scalings,
    symmetry.subpixel_shifts,
    lambda: symmetry.subpixel_shifts(boundary="circular"),
]


@pytest.mark.parametrize("make", INTERPOLATED)
@pytest.mark.parametrize(
    "dtype", [torch.float32, F64, torch.float16, torch.bfloat16, torch.uint8, torch.int32]
)
def test_interpolated_actions_keep_shape_and_dtype_and_are_near_the_exact_ones(
    make: Callable[[], Group], dtype: torch.dtype
) -> None:
    group = make()
    assert not group.exact
    x = (100 + 50 * smooth(9, 12)).round().to(dtype)
    check_group(group, x.expand(3, 2, 9, 12))
    for action in group:
        y = action(x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        rounding = torch.finfo(dtype).eps * 256 if dtype.is_floating_point else 0.5
        wanted = action(x.double())
        if dtype == torch.uint8:
            wanted = wanted.clamp(0, 255)
        assert_close(y.double(), wanted, rtol=0, atol=rounding + 1e-4)


def test_a_constant_image_stays_constant() -> None:
    x = torch.full((1, 1, 9, 9), -0.42, dtype=F64)
    for make in INTERPOLATED:
        for action in make():
            assert_close(action(x), x, rtol=0, atol=1e-14)
    black = symmetry.rotations([30], boundary="constant", fill=-0.42)[1]
    assert_close(black(x), x, rtol=0, atol=1e-14)


def test_bytes_stay_in_range_where_interpolation_overshoots() -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    x[..., 4:] = 255
    out = symmetry.subpixel_shifts([(0, 0.5)])[1](x)
    exact = symmetry.subpixel_shifts([(0, 0.5)])[1](x.double())
    assert exact.max() > 260
    assert_close(out.double(), exact.clamp(0, 255), rtol=0, atol=0.5)


def test_a_step_of_zero_is_left_to_the_identity() -> None:
    assert symmetry.rotations([0, 5]).names == ("identity", "rot5")
    assert symmetry.scalings([1, 2]).names == ("identity", "scale2")
    assert symmetry.shifts([(0, 0), (1, 0)]).names == ("identity", "shift+1+0")
    assert symmetry.shifts([[0, 0], [1, 0]]).names == ("identity", "shift+1+0")  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "x", "what"),
    [
        (symmetry.rotations90, torch.ones(1, 1, 4, 6), "rot90 needs square images, got 4 × 6"),
        (symmetry.dihedral, torch.ones(1, 1, 6, 4), "square images, got 6 × 4"),
        (lambda: symmetry.shifts(4), torch.ones(1, 1, 9, 4), "leaves nothing of images 4 pixels w"),
        (lambda: symmetry.shifts(9), torch.ones(1, 1, 4, 9), "leaves nothing of images 4 pixels h"),
        (lambda: symmetry.circular_shifts(4), torch.ones(1, 1, 4, 6), "made for images 4 × 4"),
        (symmetry.flips, torch.ones(3, 4), r"expected images .*\(3, 4\)"),
        (symmetry.rotations, torch.ones(1, 1, 4, 4) > 0, "needs real numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    make: Callable[[], Group], x: Tensor, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        [action(x) for action in make()]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: symmetry.flips(horizontal=False), "needs horizontal=True"),
        (lambda: symmetry.shifts(0), "at least 1 pixel"),
        (lambda: symmetry.shifts([(0.5, 1)]), "whole number, got 0.5"),  # type: ignore[list-item]
        (lambda: symmetry.shifts([3]), "pairs (down, right)"),  # type: ignore[list-item]
        (lambda: symmetry.shifts(1, boundary="zero"), "must be 'constant'"),  # type: ignore[arg-type]
        (lambda: symmetry.shifts(1, fill=math.nan), "fill must be a finite number"),
        (lambda: symmetry.shifts(1, boundary="reflect", fill=1.0), "boundary='constant' only"),
        (lambda: symmetry.circular_shifts(28, 5), "step must divide"),
        (lambda: symmetry.circular_shifts(28, 0), "step must divide"),
        (lambda: symmetry.rotations([math.inf]), "degrees must be finite"),
        (lambda: symmetry.scalings([0.0]), "factors must be above 0"),
        (lambda: symmetry.subpixel_shifts([(1, None)]), "must be finite"),  # type: ignore[list-item]
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=re.escape(what)):
        make()
