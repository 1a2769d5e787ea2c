"""How classes are weighted, and what a metric's name stands for: three conventions in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ncmonitor.errors import InputError, nearest

#: Label of what is left out, as in ``torch.nn.CrossEntropyLoss``.
IGNORE_INDEX: Final = -100


@dataclass(frozen=True)
class Convention:
    """One way to turn class means and covariances into numbers.

    Attributes:
        name: As given to ``convention=``.
        sample_within: Every sample weighs the same in Σ_W; else every class.
        sample_between: Likewise in μ_G and Σ_B.
        ddof: Of the standard deviation in equinorm.
        nc1_times_k: NC1 is ``tr(Σ_W Σ_B⁺)``, without the paper's 1/K.
        nc3_squared: Self-duality is the squared distance.
    """

    name: str
    sample_within: bool = False
    sample_between: bool = False
    ddof: int = 0
    nc1_times_k: bool = False
    nc3_squared: bool = False


_ALL: Final = (
    # Every class weighs the same, so that the simplex ETF stays the target under imbalance.
    Convention("per_class"),
    # Every sample weighs the same, so that Σ_T is the covariance of the data.
    Convention("per_sample", sample_within=True, sample_between=True),
    # The notebook that Papyan, Han & Donoho published with the paper.
    Convention("papyan_code", sample_within=True, ddof=1, nc1_times_k=True, nc3_squared=True),
)
CONVENTIONS: Final = {convention.name: convention for convention in _ALL}


def convention_named(name: str) -> Convention:
    """Return a convention.

    Raises:
        InputError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in CONVENTIONS:
        hint = nearest(name, CONVENTIONS) if isinstance(name, str) else ""
        raise InputError(f"convention= must be one of {tuple(CONVENTIONS)}, got {name!r}{hint}")
    return CONVENTIONS[name]
