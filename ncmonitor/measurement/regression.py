"""Neural regression collapse (NRC): the counterpart of NC1-NC3 for real-valued targets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError
from ncmonitor.inputs.tensors import as_tensor, check_features


def measure_regression(features: Any, targets: Any, weight: Any = None) -> dict[str, float]:
    """Measure the neural collapse of a multivariate regression.

    Args:
        features: ``(N, d)`` floating point, torch or numpy: the input of the last linear layer.
        targets: ``(N, n)`` real numbers; ``(N,)`` for one target.
        weight: Rows of the last linear layer, ``(n, d)``. Without it only ``nrc1`` is there.

    Returns:
        ``nrc1``: features outside of their first n principal components; ``nrc2``: features outside
        of the row space of W; ``nrc3``: W's Gram matrix against the targets' covariance. Each is 0
        at collapse and needs weight decay to get there; ``nan`` where undefined (a zero feature, a
        zero W, a single target for ``nrc3``). Cost N d² in float64.

    Raises:
        InputError: If shapes or dtypes do not fit, or a number is not finite.

    Source: Andriopoulos, Dong, Guo, Zhao & Ross 2024, NRC1-NRC3.

    Example:
        >>> import torch
        >>> from ncmonitor import measure_regression
        >>> weight, latent = torch.eye(2, 3), torch.tensor([[1.0, 2], [-2, 1], [2, -1], [-1, -2]])
        >>> values = measure_regression(latent @ weight, latent, weight)
        >>> [round(value, 6) for value in values.values()]
        [0.0, 0.0, 0.0]
    """
    points, labels = as_tensor(features), as_tensor(targets)
    check_features(points)
    points, labels = points.double().cpu(), labels.double().cpu()
    labels = labels[:, None] if labels.ndim == 1 else labels
    _check(points, labels)
    directions = points / points.norm(dim=1, keepdim=True)  # 0/0 is nan: no direction
    number = labels.shape[1]
    components = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    values = {
        "nrc1": _outside(directions, _span(components.S, components.Vh, len(points))[:number])
    }
    if weight is None:
        return values
    rows = as_tensor(weight).double().cpu()
    if not bool(rows.isfinite().all()):
        raise MeasurementError("weight is not finite (nan or inf): the network has diverged")
    if rows.shape != (number, points.shape[1]):
        raise InputError(
            f"weight must have shape {(number, points.shape[1])}, one row per target and as wide "
            f"as the features, got {tuple(rows.shape)}"
        )
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    zero = bool((rows == 0).all())
    values["nrc2"] = math.nan if zero else _outside(directions, _span(sizes, right, number))
    values["nrc3"] = math.nan if zero or number < 2 else _gram_distance(rows, labels)
    return values


def _check(points: Tensor, labels: Tensor) -> None:
    if labels.ndim != 2 or len(labels) != len(points):
        raise InputError(
            f"targets must have shape (N, n) like features (N, d), got {tuple(labels.shape)} "
            f"beside {tuple(points.shape)}"
        )
    if not len(points):
        raise InputError("there is nothing to measure: expected at least one sample, got none")
    if not bool(points.isfinite().all() and labels.isfinite().all()):
        raise MeasurementError("the features or targets are not finite (nan or inf)")


def _span(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return those of the orthonormal rows whose singular value is no rounding."""
    floor = max(count, rows.shape[1]) * torch.finfo(values.dtype).eps
    return rows[values > floor * values[:1]]


def _outside(directions: Tensor, span: Tensor) -> float:
    """Return ``Ave ‖ĥ − proj(ĥ)‖²``: summed as it is, so that a small rest keeps its digits."""
    rest = directions - directions @ span.T @ span
    return float(rest.square().sum(1).mean())


def _gram_distance(rows: Tensor, labels: Tensor) -> float:
    """Minimise ``‖WWᵀ/‖·‖_F − (Σ^½ − g I)/‖·‖_F‖_F²`` over 0 ≤ g ≤ √λ_min.

    With A = WWᵀ/‖WWᵀ‖ the cosine of A and Σ^½ − gI is ``(a − bg)/√(c − 2eg + ng²)``, whose only
    stationary point is in closed form: the best g is there or at an end.
    """
    gram = rows @ rows.T
    gram = gram / gram.norm()
    centred = labels - labels.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(labels))
    roots = variances.clamp(min=0).sqrt()
    if float(roots[-1]) == 0:
        return math.nan
    own = (axes.T @ gram @ axes).diagonal()
    a, b, c, e, n = own @ roots, own.sum(), roots @ roots, roots.sum(), len(roots)
    stationary = (a * e - b * c) / (a * n - b * e)
    candidates = [torch.zeros(()), roots[0], stationary.clamp(0, float(roots[0]))]
    rounding = n * torch.finfo(roots.dtype).eps * float(roots.norm())
    distances = []
    for shift in candidates:
        target = (axes * (roots - shift)) @ axes.T
        if float(target.norm()) > rounding:  # else g took all there was, and noise is left
            distances.append(float((gram - target / target.norm()).square().sum()))
    return min(distance for distance in distances if not math.isnan(distance))
