"""Named feature clouds: the only place where tests get features from.

Each case draws from its own generator, is built in float64 and rounded once to its dtype: those
rounded numbers *are* the case, and both the fast code and its twin see them. ``spread`` and
``offset`` are in units of the class signal, the typical ‖μ_c − μ_G‖.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

F32, F64 = torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    """A split as a measurement sees it, and what is special about it."""

    name: str
    features: Tensor  # (N, d), float32 or float64
    labels: Tensor  # (N,), int64
    weight: Tensor | None  # (K, d), dtype of the features
    bias: Tensor | None  # (K,)
    num_classes: int
    note: str

    def __str__(self) -> str:
        return self.name


def seeded(seed: int | str) -> Generator:
    """A generator of its own; a string seeds by its checksum, so that names are seeds."""
    number = zlib.crc32(seed.encode()) if isinstance(seed, str) else seed
    return torch.Generator().manual_seed(number)


# --------------------------------------------------------------------------------------------
# Frames
# --------------------------------------------------------------------------------------------


def orthogonal_frame(num_classes: int, dim: int, generator: Generator) -> Tensor:
    """(K, d) float64 with orthonormal rows, in a random position; needs d >= K."""
    if dim < num_classes:
        raise ValueError(f"{num_classes} orthonormal rows need dim >= {num_classes}, got {dim}")
    square = torch.randn(dim, num_classes, generator=generator, dtype=F64)
    return torch.linalg.qr(square).Q.T.contiguous()


def simplex_etf(num_classes: int, dim: int, generator: Generator) -> Tensor:
    """(K, d) float64 with unit rows at cosine -1/(K-1), in a random position; needs d >= K - 1."""
    centring = torch.eye(num_classes, dtype=F64) - 1 / num_classes
    axes, _, _ = torch.linalg.svd(centring)  # the first K - 1 columns span the centred vectors
    corners = axes[:, : num_classes - 1] * (num_classes / (num_classes - 1)) ** 0.5
    return corners @ orthogonal_frame(num_classes - 1, dim, generator)


def random_means(num_classes: int, dim: int, generator: Generator) -> Tensor:
    """(K, d) float64, Gaussian directions with typical length one."""
    return torch.randn(num_classes, dim, generator=generator, dtype=F64) / dim**0.5


# --------------------------------------------------------------------------------------------
# Clouds
# --------------------------------------------------------------------------------------------


def cloud(
    name: str,
    note: str,
    means: Tensor,
    counts: int | Sequence[int],
    *,
    spread: float | Tensor = 0.1,
    offset: float = 0.0,
    dtype: torch.dtype = F32,
    shuffle: bool = True,
    warp: Callable[[Tensor], Tensor] | None = None,
    weight: Tensor | None = None,
) -> Case:
    """Isotropic noise around ``means``; ``spread`` is its rms norm, for all or for each class.

    Every class has a row in ``means``, with count 0 too. ``warp`` acts on the features
    before rounding. The classifier is ``weight``, or the means with 20 % noise, which is what a
    network halfway to self-duality looks like.
    """
    generator = seeded(name)
    num_classes, dim = means.shape
    sizes = torch.tensor([counts] * num_classes if isinstance(counts, int) else list(counts))
    labels = torch.repeat_interleave(torch.arange(num_classes), sizes)
    if shuffle:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    radius = torch.as_tensor(spread, dtype=F64).expand(num_classes) / dim**0.5
    noise = torch.randn(len(labels), dim, generator=generator, dtype=F64)
    features = means[labels] + noise * radius[labels, None] + offset * direction(dim, generator)
    if weight is None:
        weight = means - means.mean(0)
        weight = weight + 0.2 * weight.norm() / weight.numel() ** 0.5 * torch.randn(
            num_classes, dim, generator=generator, dtype=F64
        )
    features = features if warp is None else warp(features)
    logits = features @ weight.T
    bias = torch.randn(num_classes, generator=generator, dtype=F64)
    bias = 0.1 * (logits - logits.mean(0)).std() * bias
    bias = bias - logits.mean(0)  # a trained network takes the common offset out as well
    return Case(
        name, features.to(dtype), labels, weight.to(dtype), bias.to(dtype), num_classes, note
    )


def direction(dim: int, generator: Generator) -> Tensor:
    """A random unit vector."""
    vector = torch.randn(dim, generator=generator, dtype=F64)
    return vector / vector.norm()


def _normal(num_classes: int, dim: int) -> Tensor:
    """Gaussian class means, the same for every case of that shape."""
    return random_means(num_classes, dim, seeded(100 * num_classes + dim))


def _noisy() -> Iterator[Case]:
    yield cloud(
        "noisy", "an untrained network: noise as large as the signal", _normal(10, 32), 50, spread=1
    )
    yield cloud(
        "no_signal",
        "all class means equal in truth, only chance separates them",
        torch.zeros(5, 40, dtype=F64),
        60,
        spread=1,
        weight=_normal(5, 40),
    )
    yield cloud(
        "noisy_float64", "as noisy, in double precision", _normal(10, 32), 50, spread=1, dtype=F64
    )
    yield cloud("many_samples", "5000 samples, 64 features", _normal(10, 64), 500, spread=0.5)


def _collapsed() -> Iterator[Case]:
    for spread in (1e-3, 1e-5, 1e-6):
        yield cloud(
            f"collapsed_{spread:.0e}",
            f"class spread {spread:.0e} of the signal, no offset",
            _normal(10, 32),
            50,
            spread=spread,
        )
    for spread in (1e-2, 1e-5):
        yield cloud(
            f"offset_{spread:.0e}",
            f"common offset 1e3 times the signal, spread {spread:.0e}",
            _normal(10, 32),
            50,
            spread=spread,
            offset=1e3,
        )
    yield cloud(
        "collapsed_float64",
        "spread 1e-10, which only double precision can hold",
        _normal(10, 32),
        50,
        spread=1e-10,
        dtype=F64,
    )
    yield cloud(
        "offset_float64",
        "offset 1e3 and spread 1e-6 in double precision",
        _normal(10, 32),
        50,
        spread=1e-6,
        offset=1e3,
        dtype=F64,
    )
    yield cloud(
        "etf_nearly",
        "means within 1e-4 of a simplex ETF, spread 1e-4: late in training",
        simplex_etf(10, 32, seeded(1)) + 1e-4 * _normal(10, 32),
        50,
        spread=1e-4,
    )


def _counts() -> Iterator[Case]:
    means = _normal(10, 32)
    yield cloud(
        "imbalanced",
        "class sizes from 500 down to 3: class-balanced is not sample-weighted",
        means,
        (500, 280, 160, 90, 50, 28, 16, 9, 5, 3),
        spread=0.3,
    )
    yield cloud(
        "missing_class", "no sample of class 4", means, (40,) * 4 + (0,) + (40,) * 5, spread=0.5
    )
    yield cloud(
        "missing_several",
        "classes 0, 3, 8 and 9 have no sample: the first and the last too",
        means,
        (0, 40, 40, 0, 30, 30, 30, 20, 0, 0),
        spread=0.5,
    )
    yield cloud(
        "one_singleton", "class 7 has one sample", means, (30,) * 7 + (1,) + (30,) * 2, spread=0.3
    )
    yield cloud("all_singletons", "one sample in every class: no within-class variance", means, 1)
    yield cloud(
        "two_present",
        "two of ten classes are present",
        means,
        (0, 0, 30, 0, 0, 0, 0, 20, 0, 0),
        spread=0.5,
    )
    yield cloud(
        "one_present", "one class only: geometry is undefined", means, (0, 0, 30) + (0,) * 7
    )


def _shapes() -> Iterator[Case]:
    yield cloud(
        "more_classes_than_features",
        "K = 20 in d = 8: no simplex ETF exists, rank is d",
        _normal(20, 8),
        30,
        spread=0.3,
    )
    yield cloud("two_classes", "K = 2: the means are antipodal by construction", _normal(2, 16), 50)
    yield cloud("three_classes", "K = 3", _normal(3, 16), 50)
    yield cloud("plane", "K = 3 in d = 2 = K - 1: just enough room", _normal(3, 2), 50)
    yield cloud(
        "line", "d = 1: every cosine is 1 or -1", torch.tensor([[-1.0], [0.5], [2.0]]).to(F64), 20
    )
    yield cloud("hundred_classes", "K = 100 in d = 128", _normal(100, 128), 10, spread=0.3)
    yield cloud(
        "hundred_classes_tight", "K = 100 in d = 64, spread 1e-4", _normal(100, 64), 10, spread=1e-4
    )


def _ranks() -> Iterator[Case]:
    lift = orthogonal_frame(3, 32, seeded(2))
    yield cloud(
        "bottleneck",
        "means and noise in 3 of 32 dimensions: rank 3, and rounding fills the rest",
        _normal(10, 32)[:, :3] * 3 @ lift,
        50,
        spread=0.1,
        warp=lambda h: h @ lift.T @ lift,
    )
    yield cloud(
        "bottleneck_collapsed",
        "rank-3 means collapsed to the rounding step: 500 samples of a class round alike, so the "
        "rounding of a class mean does not shrink with its count and must not count as rank",
        _normal(10, 32)[:, :3] * 3 @ lift,
        500,
        spread=1e-7,
        offset=10,
    )
    yield cloud(
        "bottleneck_full_noise",
        "rank-3 means, noise in all 32 dimensions: the rank is 9 by chance",
        _normal(10, 32)[:, :3] * 3 @ lift,
        50,
        spread=0.1,
    )
    yield cloud(
        "bottleneck_float64",
        "as bottleneck, in double precision",
        _normal(10, 32)[:, :3] * 3 @ lift,
        50,
        spread=0.1,
        dtype=F64,
        warp=lambda h: h @ lift.T @ lift,
    )
    for gap, dtype in ((1e-3, F32), (1e-8, F64)):
        means = _normal(10, 32).clone()
        means[6] = means[2] + gap * direction(32, seeded(3))
        bits = "" if dtype is F32 else "_float64"
        yield cloud(
            f"near_duplicates{bits}",
            f"classes 2 and 6 are {gap:.0e} apart, spread a tenth of it",
            means,
            50,
            spread=gap / 10,
            dtype=dtype,
        )
    yield _dead_class()
    yield _antithetic()


def _dead_class() -> Case:
    """Class 0 sits exactly at the global mean; dyadic numbers keep that exact in float32."""
    generator = seeded("dead_class")
    half = _dyadic(random_means(4, 32, generator))
    means = torch.cat([torch.zeros(1, 32, dtype=F64), half, -half])  # their mean is exactly 0
    features, labels = _mirrored(means, 20, 0.3, generator)
    return Case(
        "dead_class",
        features.float(),
        labels,
        (means + 0.2 * random_means(9, 32, generator)).float(),
        None,
        9,
        "the mean of class 0 is the global mean: its angles do not exist",
    )


def _antithetic() -> Case:
    """Four classes with the same mean, exactly: Σ_B is zero and Σ_W is not."""
    generator = seeded("no_means")
    features, labels = _mirrored(torch.zeros(4, 16, dtype=F64), 20, 1.0, generator)
    return Case(
        "no_means",
        features.float() + 0.5,
        labels,
        _normal(4, 16).float(),
        None,
        4,
        "all class means are exactly equal, around them is noise: rank 0",
    )


def _mirrored(
    means: Tensor, pairs: int, spread: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Noise in pairs of opposite sign, so that the sample means are ``means`` to the last bit."""
    num_classes, dim = means.shape
    noise = torch.randn(num_classes, pairs, dim, generator=generator, dtype=F64)
    noise = _dyadic(noise * spread / dim**0.5)
    features = torch.cat([means[:, None] + noise, means[:, None] - noise], dim=1)
    return features.flatten(0, 1), torch.arange(num_classes).repeat_interleave(2 * pairs)


def _dyadic(x: Tensor) -> Tensor:
    """Rounded to multiples of 2^-12: sums of thousands of them are exact, in float32 as well."""
    return torch.round(x * 4096) / 4096


def _exact_forms() -> Iterator[Case]:
    etf = simplex_etf(10, 32, seeded(4))
    labels = torch.arange(10).repeat_interleave(20)
    zeros = torch.zeros(10, dtype=F64)
    note = "a simplex ETF without noise, W aligned: every metric at its collapse value"
    yield Case("exact_etf", etf[labels], labels, 3 * etf, zeros, 10, note)
    yield Case(
        "exact_etf_float32",
        etf[labels].float(),
        labels,
        3 * etf.float(),
        zeros.float(),
        10,
        note + ", up to rounding to float32",
    )
    frame = orthogonal_frame(10, 32, seeded(5))
    yield Case(
        "orthogonal_frame",
        frame[labels],
        labels,
        frame,
        zeros,
        10,
        "means and W the same orthogonal frame: the optimum of the squared loss without bias",
    )
    constant = torch.full((60, 8), 0.7, dtype=F64)
    for dtype, bits in ((F32, ""), (F64, "_float64")):
        yield Case(
            f"all_equal{bits}",
            constant.to(dtype),
            torch.arange(3).repeat(20),
            _normal(3, 8).to(dtype),
            torch.zeros(3, dtype=dtype),
            3,
            "every feature is the same vector: all is degenerate, every distance ties",
        )
    yield Case(
        "all_zero",
        torch.zeros(60, 8),
        torch.arange(3).repeat(20),
        _normal(3, 8).float(),
        None,
        3,
        "dead network: every feature is zero",
    )


def _scales() -> Iterator[Case]:
    for size, name in ((1e-12, "tiny"), (1e12, "huge")):
        note = f"features of size {size:.0e}: fourth powers leave the range of float32"
        yield cloud(name, note, size * _normal(10, 32), 50, spread=0.1 * size)
    lengths = torch.logspace(0, 3, 10, dtype=F64)
    yield cloud(
        "uneven_scales",
        "class signals and spreads from 1 to 1000",
        _normal(10, 32) * lengths[:, None],
        50,
        spread=0.05 * lengths,
    )
    yield cloud(
        "relu",
        "non-negative and sparse, with ten units that never fire",
        _normal(10, 48) * 2,
        50,
        spread=0.5,
        warp=lambda h: h.clamp_min(0) * (torch.arange(48) >= 10),
    )


def _orders() -> Iterator[Case]:
    base = cloud("sorted", "classes one after the other", _normal(5, 16), 40, shuffle=False)
    yield base
    order = torch.randperm(len(base.labels), generator=seeded(6))
    yield replace(
        base,
        name="shuffled",
        features=base.features[order],
        labels=base.labels[order],
        note="the samples of 'sorted' in another order",
    )
    for far in (1e2, 1e4):
        case = cloud(
            f"outlier_first_{far:.0e}",
            f"the first sample of class 0 lies {far:.0e} signals away: a bad point to shift by",
            _normal(5, 16),
            40,
            spread=1e-2,
            shuffle=False,
        )
        case.features[0] += (far * direction(16, seeded(7))).float()
        yield case


def _classifiers() -> Iterator[Case]:
    base = cloud("no_bias", "a classifier without bias", _normal(6, 24), 30, spread=0.3)
    base = replace(base, bias=None)
    yield base
    assert base.weight is not None
    common = 1e3 * direction(24, seeded(8)).float()
    yield replace(
        base,
        name="common_row",
        weight=base.weight + common,
        note="every row of W carries the same vector, 1e3 times the rest",
    )
    dead = base.weight.clone()
    dead[2] = 0
    yield replace(base, name="zero_row", weight=dead, note="row 2 of W is zero: no angle to it")
    yield replace(
        base, name="zero_weight", weight=torch.zeros(6, 24), note="W is zero, as some start it"
    )
    yield replace(
        base,
        name="equal_rows",
        weight=base.weight[:1].repeat(6, 1),
        note="all rows of W are equal: nothing is left of it after centring",
    )
    yield replace(base, name="no_classifier", weight=None, note="features and labels alone")


#: All single-split cases. ``parametrize("case", CASES, ids=str)``.
CASES: list[Case] = [
    case
    for family in (
        _noisy,
        _collapsed,
        _counts,
        _shapes,
        _ranks,
        _exact_forms,
        _scales,
        _orders,
        _classifiers,
    )
    for case in family()
]

BY_NAME: dict[str, Case] = {case.name: case for case in CASES}


def sweep() -> Iterator[Case]:
    """Spread x offset x K in float32: 54 clouds, the promise that it is exact (docs/design.md).

    At offset 1e3 and spread below 1e-4 one step of float32 is larger than the spread: what is left
    is quantisation, down to classes without any variance. The numbers stay well defined.
    """
    for num_classes, dim, count in ((2, 32, 100), (10, 32, 40), (100, 128, 8)):
        for offset in (0.0, 1.0, 1e3):
            for exponent in range(1, 7):
                yield cloud(
                    f"sweep_K{num_classes}_offset{offset:.0f}_spread1e-{exponent}",
                    "precision sweep",
                    _normal(num_classes, dim),
                    count,
                    spread=10.0**-exponent,
                    offset=offset,
                )


def train_and_validation() -> Iterator[tuple[Case, Case]]:
    """Two splits of one problem: NC4 and NCC of the second use the class means of the first."""
    means = _normal(10, 32)
    train = cloud("train", "what the means come from", means, 40, spread=0.5)
    drifted = means + 0.3 * random_means(10, 32, seeded(9))

    def with_the_same_head(case: Case) -> Case:
        return replace(case, weight=train.weight, bias=train.bias)

    validation = cloud("validation", "drifted from train", drifted, 15, spread=0.8)
    yield train, with_the_same_head(validation)

    counts = (0,) + (15,) * 8 + (0,)
    note = "two classes only in train"
    missing = cloud("validation_missing", note, drifted, counts, spread=0.8)
    yield train, with_the_same_head(missing)

    counts = (40,) * 5 + (0,) + (40,) * 4
    partial = cloud("train_missing", "class 5 has no train sample", means, counts, spread=0.5)
    note = "class 5 can be neither nearest nor right"
    unseen = cloud("validation_unseen", note, drifted, 15, spread=0.8)
    yield with_the_same_head(partial), with_the_same_head(unseen)
