"""Learned linear equivariance: does a transform of the input act linearly on the features?

A representation that is not invariant may still keep what it knows, re-encoded: then one matrix per
transform takes h(x) to h(gx) for samples it was not fitted on, and these matrices compose like the
transforms do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.inputs.tensors import as_tensor, exact_arithmetic
from ncmonitor.symmetry.feature_pairs import average_beyond_identity, check_pairs
from ncmonitor.symmetry.principal_components import Components, Transformed, least_squares

#: Fitted samples per component of the map: fewer would fit noise.
SAMPLES_PER_COMPONENT: Final = 4
#: Share of the features' variance that the components must hold.
LEAST_SHARE: Final = 0.9


@dataclass(frozen=True)
class Equivariance:
    """Best linear maps ``h(gx) ≈ R_g h(x)`` and what they are worth.

    Attributes:
        r2: ``equiv_r2_g`` per transform on held-out samples, ``(m,)``: the explained share of the
            variance of h(gx) about its training mean. 1 where the features are linearly
            equivariant (invariant ones too, with R_g = I); 0 or slightly below where h(gx) is
            independent of h(x). The identity's is what the components hold: the ceiling. ``nan``
            for a transform with too few pairs; all of them where ``reason`` says why.
        group_law: See :func:`group_law`; ``nan`` without a table.
        group_law_scaled: The same with directions weighted by how much features vary along them:
            what the law is worth on the data.
        maps: R_g in the principal components, ``(m, r, r)`` float64.
        components: Their number r.
        share: Share of the variance of h(gx) over all transforms that they hold.
        reason: Why nothing could be measured; ``None`` where it could.

    Source: ncmonitor; after learned steerability of Lenc & Vedaldi 2015.
    """

    r2: Tensor
    group_law: float
    group_law_scaled: float
    maps: Tensor
    components: int
    share: float
    reason: str | None = None

    @property
    def mean_r2(self) -> float:
        """Mean of :attr:`r2` over the transforms besides the identity."""
        return average_beyond_identity(self.r2)


def fit_equivariance(
    features: Any,
    mask: Any = None,
    table: Any = None,
    *,
    held_out: float = 0.5,
    max_components: int = 256,
    seed: int = 0,
) -> Equivariance:
    """Fit ``h(gx) − μ_g ≈ R_g (h(x) − μ_e)`` on some samples and judge it on the others.

    Least squares without ridge on the principal components of the transformed features together,
    a space that a full orbit of equivariant features maps to itself. Centring costs an equivariant
    map nothing. Components are those with a standard deviation above 1e-4 of the largest, at most
    one for four fitted samples.

    Args:
        features: ``(m, N, d)``, the identity first.
        mask: ``(m, N)`` bool, pairs that count; ``None``: all.
        table: ``(m, m)`` integers: position of the transform that does j, then i; −1 where it is
            not among them. ``None``: no group law.
        held_out: Share of the samples to judge on, in (0, 1).
        max_components: Most components.
        seed: Of the split; the global generators are not touched.

    Returns:
        With ``nan`` and a reason where the features do not vary, or where the samples are too few
        for components that hold 90% of the variance (N well below d without collapse).

    Raises:
        InputError: If an argument is not as above.
        MeasurementError: If a feature is not finite.
    """
    features, mask = check_pairs(features, mask)
    if not 0 < held_out < 1 or max_components < 1:
        raise InputError(
            f"held_out= must lie in (0, 1) and max_components= be at least 1, got {held_out!r} "
            f"and {max_components!r}"
        )
    table = None if table is None else checked_table(table, len(features))
    kept = torch.ones_like(features[..., 0], dtype=torch.bool) if mask is None else mask
    if not bool((features.isfinite().all(2) | ~kept).all()):
        raise MeasurementError("features under transforms are not finite")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(features.shape[1], generator=generator).to(features.device)
    count = len(order) - max(1, round(held_out * len(order)))
    data = Transformed(features, kept, order[:count].sort().values, order[count:].sort().values)
    limit = min(max_components, data.dim, count // SAMPLES_PER_COMPONENT)
    if not limit:
        few = f"{len(order)} samples are too few to fit a map and judge it on others"
        return _nothing(len(features), few)
    with exact_arithmetic(features.device):
        parts = Components.of(data, limit, generator)
        reason = _unusable(data, parts)
        if reason is not None:
            return _nothing(len(features), reason, parts)
        maps, scores = _fitted(data, parts)
    laws = (math.nan, math.nan)
    if table is not None:
        laws = group_law(maps, table), group_law(maps, table, parts.deviations)
    return Equivariance(scores, *laws, maps, len(parts.deviations), parts.share)


def group_law(maps: Any, table: Any, scale: Any = None) -> float:
    """Return ``Ave ‖R_g R_g′ − R_gg′‖_F / ‖R_gg′‖_F`` over pairs of transforms.

    Pairs with the identity (at position 0) hold by themselves and are left out, as are products
    that are not in the table.

    Args:
        maps: R_g, ``(m, r, r)``.
        table: ``(m, m)`` integers: position of the transform that does j, then i, or −1.
        scale: ``(r,)``: multiply columns by these, such as the features' standard deviations.

    Returns:
        0 for an equivariant network, and for an invariant one (R_g = I); about 1 for unrelated
        maps, also where ``equiv_r2_g`` is near 0 and the maps are noise. ``nan`` if there is no
        such pair or ‖R_gg′‖ = 0.

    Raises:
        InputError: If the table does not fit.

    Source: ncmonitor.
    """
    maps = as_tensor(maps).double()
    table = checked_table(table, len(maps))
    factors = maps.new_ones(maps.shape[-1]) if scale is None else as_tensor(scale).to(maps)
    ratios = []
    for i in range(1, len(maps)):
        for j in range(1, len(maps)):
            if table[i][j] >= 0:
                whole = maps[table[i][j]] * factors
                size = float(whole.norm())
                apart = float((maps[i] @ (maps[j] * factors) - whole).norm())
                ratios.append(apart / size if size > 0 else math.nan)
    return sum(ratios) / len(ratios) if ratios else math.nan


def checked_table(table: Any, transforms: int) -> list[list[int]]:
    """Return a composition table as lists.

    Raises:
        InputError: Unless it is ``(m, m)`` integers in ``[−1, m)`` with the identity at 0.
    """
    found = as_tensor(table)
    if found.is_floating_point() or found.shape != (transforms, transforms):
        raise InputError(
            f"the composition table must be integers of shape {(transforms, transforms)}, got "
            f"{found.dtype} of shape {tuple(found.shape)}"
        )
    rows: list[list[int]] = found.tolist()
    numbers = list(range(transforms))
    if rows[0] != numbers or [row[0] for row in rows] != numbers:
        raise InputError("row and column 0 of the composition table must be those of the identity")
    if min(map(min, rows)) < -1 or max(map(max, rows)) >= transforms:
        raise InputError(f"the composition table must name transforms 0 to {transforms - 1}, or -1")
    return rows


def _nothing(transforms: int, reason: str, parts: Components | None = None) -> Equivariance:
    scores = torch.full((transforms,), math.nan, dtype=torch.float64)
    r, share = (0, 0.0) if parts is None else (len(parts.deviations), parts.share)
    return Equivariance(scores, math.nan, math.nan, scores.new_zeros(0, r, r), r, share, reason)


def _unusable(data: Transformed, parts: Components) -> str | None:
    """Return why no map can be fitted, if none can."""
    r = len(parts.deviations)
    if not r:
        return "the features do not vary beyond rounding"
    if parts.share < LEAST_SHARE:
        return (
            f"{len(data.fit)} fitted samples support {r} of {data.dim} directions, which hold "
            f"{parts.share:.0%} of the variance; measure more samples"
        )
    return None


def _fitted(data: Transformed, parts: Components) -> tuple[Tensor, Tensor]:
    """Return the maps ``(m, r, r)`` and their R² on held-out samples ``(m,)``."""
    count, r = len(data.features), len(parts.deviations)
    maps = torch.full((count, r, r), math.nan, dtype=torch.float64)
    scores = torch.full((count,), math.nan, dtype=torch.float64)
    for g in range(count):
        learned, judged = data.learned(g), data.judged(g)
        if len(learned) < SAMPLES_PER_COMPONENT * r // 2 or not len(judged):
            continue
        inputs, targets = data.plain(g, learned), data.centred(g, learned)
        matrix = least_squares(inputs @ parts.basis, targets @ parts.basis)
        moved = data.centred(g, judged)
        missed = moved - data.plain(g, judged) @ parts.basis @ matrix @ parts.basis.T
        total = float(moved.square().sum())
        maps[g] = matrix.T.cpu()
        scores[g] = 1 - float(missed.square().sum()) / total if total > 0 else math.nan
    return maps, scores
