"""The metrics as one writes them from the paper: float64, two passes, every matrix whole.

Vectorised with care, but without a thought for memory or for cancellation: what
:func:`ncmonitor.measure_collapse` is compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._problem import Problem, Size

#: A problem that would need more is skipped.
MAX_BYTES = 12 * 2**30
MAX_SECONDS = 300.0


def textbook(problem: Problem) -> dict[str, float]:
    """Return NC1 to NC4 under the names of the catalogue."""
    features, labels = problem.features.double(), problem.labels
    weight, bias = problem.weight.double(), problem.bias.double()
    counts = torch.bincount(labels, minlength=len(weight))
    means = torch.zeros_like(weight).index_add_(0, labels, features) / counts[:, None]
    centred = means - means.mean(0)
    return (
        _variability(features, labels, counts, means)
        | _frame(centred, "means")
        | _frame(weight, "w")
        | {"nc3_self_duality": float((weight / weight.norm() - centred / centred.norm()).norm())}
        | _decisions(features, labels, means, features @ weight.T + bias)
    )


def _variability(
    features: Tensor, labels: Tensor, counts: Tensor, means: Tensor
) -> dict[str, float]:
    """NC1: ``tr(Σ_W Σ_B⁺) / K`` with both covariances ``(d, d)``, class-balanced."""
    classes = len(means)
    centred = means - means.mean(0)
    residuals = features - means[labels]
    within = (residuals / counts[labels][:, None]).T @ residuals / classes
    between = centred.T @ centred / classes
    return {
        "nc1": float(torch.trace(within @ torch.linalg.pinv(between)) / classes),
        "nc1_quotient": float(torch.trace(within) / torch.trace(between)),
    }


def _frame(vectors: Tensor, name: str) -> dict[str, float]:
    """NC2: lengths, and all ``K x K`` cosines."""
    classes = len(vectors)
    norms = vectors.norm(dim=1)
    unit = vectors / norms[:, None]
    cosines = (unit @ unit.T)[~torch.eye(classes, dtype=torch.bool)]
    return {
        f"nc2_equinorm_{name}": float(norms.std(correction=0) / norms.mean()),
        f"nc2_equiangular_std_{name}": float(cosines.std(correction=0)),
        f"nc2_max_angle_{name}": float((cosines + 1 / (classes - 1)).abs().mean()),
    }


def _decisions(features: Tensor, labels: Tensor, means: Tensor, logits: Tensor) -> dict[str, float]:
    """NC4: the network's choice against the nearest class mean; and its loss."""
    predicted = logits.argmax(1)
    nearest = torch.cdist(features, means).argmin(1)
    return {
        "nc4_disagreement": float((nearest != predicted).double().mean()),
        "ncc_accuracy": float((nearest == labels).double().mean()),
        "error": float((predicted != labels).double().mean()),
        "cross_entropy": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def why_skipped(size: Size, flops: float) -> str | None:
    """Say why the textbook is not run on a problem, or ``None`` if it is.

    Args:
        size: Of the problem.
        flops: Floating-point operations per second of a float32 product on this machine.
    """
    samples, dim, classes = size
    matrices = 3 * samples * dim + 2 * samples * classes + 3 * classes**2 + 6 * dim**2
    if 8 * matrices > MAX_BYTES:
        return f"would need about {8 * matrices / 2**30:.0f} GiB, more than {MAX_BYTES >> 30}"
    # A double-precision product at half the speed; the SVD in pinv is slower by a good factor.
    products = 2 * samples * dim * (dim + 2 * classes) + 4 * classes**2 * dim
    seconds = 2 * (products + 100 * dim**3) / flops
    if seconds > MAX_SECONDS:
        return f"would take about {seconds / 60:.0f} min, more than {MAX_SECONDS / 60:.0f}"
    return None
