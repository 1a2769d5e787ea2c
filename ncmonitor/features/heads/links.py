"""How a head's output becomes the logits that the model returns: found, and checked by values.

Between the two may stand one of these, the same for every sample of the data set; ``z`` is a row of
the head's output:

============== =================================================================
``identity``   z
``scale``      t z with one t > 0 (a temperature, a logit scale)
``softmax``    softmax(z)
``sigmoid``    sigmoid(z), class by class
``log_softmax`` log softmax(z)
``softcap``    c tanh(z / c)
``mask``       z + m with one vector m; or one value for padding classes, often -inf
``shift``      z + a(x), one number for each sample; only where the user gave the weight
============== =================================================================

before it, columns at the end may be cut off (a padded vocabulary); after it, the output may be
reshaped, or one position of each sample be chosen (the last token).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

#: In the order in which they are tried: the plainest explanation of the values wins.
KINDS: Final = ("identity", "scale", "softmax", "log_softmax", "sigmoid", "softcap", "mask")
#: Of these the returned values are no logits, or have lost digits: the head's own are taken.
_OWN: Final = ("softmax", "log_softmax", "sigmoid")
_SLACK: Final = 8.0  # rounding units: two or three operations, each within one
_ROWS: Final = 512  # from which a scale or a mask is found
_BLOCK: Final = 2**22  # elements compared at once
_POSITIONS: Final = 32  # among which the chosen one is looked for, under a softcap or a mask
_PADDING: Final = 1e4  # a mask beyond this takes a class out


class Arrangement(NamedTuple):
    """Where the rows of a head's output stand in a returned tensor.

    Attributes:
        axis: The classes' axis in the returned tensor; ``None``: one logit without an axis.
        classes: So many of the head's outputs are returned, the first ones.
        chosen: Whether one position of each sample is returned.
    """

    axis: int | None
    classes: int
    chosen: bool


@dataclass(frozen=True)
class Link:
    """What stands between a head and the returned logits.

    Attributes:
        arrangement: Which rows are returned, and where.
        kind: One of :data:`KINDS`, or ``"shift"``.
        value: The scale or the cap; 1 where there is none.
        mask: The vector that is added, ``(K,)``.
        fixed: What is returned of a class whatever its logit, ``nan`` for the others, ``(K,)``.
    """

    arrangement: Arrangement
    kind: str
    value: float = 1.0
    mask: Tensor | None = None
    fixed: Tensor | None = None

    @property
    def own(self) -> bool:
        """Whether the logits are the head's own output, not what the model returned."""
        return self.kind in _OWN

    def renewed(self, made: Tensor, returned: Tensor, slack: Tensor | None = None) -> Link:
        """Return the link with its constants as these values have them.

        A learnt temperature or cap, or a prior in a buffer, moves between measurements.
        """
        arrangement = self.arrangement
        fits = arrangement in arrangements(made, returned)
        if not fits or (made.shape[:-1].numel() < 2 and self.kind not in ("scale", "softcap")):
            return self
        kinds = ("shift",) if self.kind == "shift" else (self.kind, "scale", "mask")
        more = None if slack is None else [slack]
        for kind in dict.fromkeys(kinds):
            link = _fitted(Link(arrangement, kind), [made], [returned], more)
            if link is not None:
                return link
        return self

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the returned logits: with the factor and the mask in them.

        Classes that the mask takes out keep what they have.
        """
        count = self.arrangement.classes
        weight, bias = weight[:count], None if bias is None else bias[:count]
        if self.kind == "scale" and self.value != 1:
            weight, bias = weight * self.value, None if bias is None else bias * self.value
        if self.kind == "mask" and self.mask is not None:
            added = self.mask.to(weight).where(self.mask.to(weight).abs() < _PADDING, 0)
            if bool(added.any()):
                bias = added if bias is None else bias + added
        return weight, bias

    def rows(self, made: Tensor) -> Tensor:
        """Return the head's output ``(..., K)`` as rows of the returned classes."""
        return made[..., : self.arrangement.classes].reshape(-1, self.arrangement.classes)

    def returned_rows(self, returned: Tensor) -> Tensor:
        """Return what the model returned as rows."""
        return _rows(returned, self.arrangement)

    def lead(self, returned: Tensor) -> torch.Size:
        """Return the shape of the returned tensor without its classes."""
        axis = self.arrangement.axis
        if axis is None:
            return returned.shape
        shape = [*returned.shape[:axis], *returned.shape[axis + 1 :]]
        if axis < returned.ndim - 1 and math.prod(shape[1:]) == 1:
            shape = shape[:1]  # a 1x1 convolution on a map of one position
        return torch.Size(shape or [1])

    def apply(self, rows: Tensor) -> Tensor:
        """Return what the model makes of rows of the head's output."""
        if self.kind == "scale":
            return rows * self.value
        if self.kind == "softmax":
            return rows.softmax(1)
        if self.kind == "log_softmax":
            return rows.log_softmax(1)
        if self.kind == "sigmoid":
            return rows.sigmoid()
        if self.kind == "softcap":
            return (rows / self.value).tanh() * self.value
        if self.kind == "mask":
            assert self.mask is not None
            assert self.fixed is not None
            fixed = self.fixed.to(rows)
            return (rows + self.mask.to(rows)).where(fixed.isnan(), fixed)
        return rows

    def worst(
        self,
        made: Tensor,
        returned: Tensor,
        rows: Tensor | None = None,
        slack: Tensor | None = None,
    ) -> Tensor:
        """Compare the head's output with what was returned.

        Args:
            made: The head's output, ``(..., K)``.
            returned: What the model returned.
            rows: Which of the rows was chosen for each returned one; ``None``: all, in order.
            slack: Size of what the rows are sums of, ``(n, 1)``, where they were computed anew.

        Returns:
            The largest deviation in units of what rounding allows, a scalar on the device; above 1
            the model did something else.
        """
        found, given = self.rows(made), self.returned_rows(returned)
        found = found if rows is None else found[rows]
        more = found.new_zeros(len(found), 1) if slack is None else slack
        if found.shape != given.shape:
            return found.new_full((), torch.inf, dtype=torch.float32)
        if self.kind == "identity" and _one_memory(made, returned):
            return found.new_zeros((), dtype=torch.float32)
        unit = rounding(made, returned)
        step = max(1, _BLOCK // found.shape[1])
        worst = found.new_zeros((), dtype=torch.float32)
        for start in range(0, len(found), step):
            cut = slice(start, start + step)
            part = self._deviation(found[cut], given[cut], unit, more[cut])
            worst = torch.maximum(worst, part.max().float()) if part.numel() else worst
        return worst

    def _deviation(
        self, found: Tensor, given: Tensor, unit: float, more: Tensor | float = 0.0
    ) -> Tensor:
        """Return the deviations of rows, in units of what rounding allows."""
        wide = _wide(found, given)
        least = torch.finfo(given.dtype).smallest_normal
        found, given = found.to(wide), given.to(wide)
        expected = self.apply(found)
        size = _finite(found).abs().amax(1, keepdim=True) + more
        if self.kind == "shift":
            allowed = size + given.abs().amax(1, keepdim=True)  # of distances: ‖h‖² and all
            expected = expected - expected.mean(1, keepdim=True)
            given = given - given.mean(1, keepdim=True)
        elif self.kind in ("softmax", "sigmoid"):
            allowed = expected.abs() * (1 + size)
        elif self.kind == "log_softmax":
            allowed = expected.abs() + size + 1
        elif self.kind == "mask":
            allowed = expected.abs() + found.abs() + more
        else:
            allowed = expected.abs() + (self.value if self.kind == "scale" else 1.0) * more
        error = (given - expected).abs() / (_SLACK * unit * _finite(allowed) + least)
        same = (given == expected) | (given.isnan() & expected.isnan())
        return error.masked_fill(same, 0).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def chosen_rows(
        self, made: Tensor, returned: Tensor, slack: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Find the position of each sample that the model returned.

        Args:
            made: The head's output, ``(B, ..., K)``.
            returned: What the model returned, ``(B, K)``.
            slack: As in :meth:`worst`, for every row of the head's output.

        Returns:
            Numbers of the rows, ``(B,)``, and whether each is the only one that fits.
        """
        samples = made.shape[0]
        found = made.reshape(samples, -1, made.shape[-1])[..., : self.arrangement.classes]
        given, count = self.returned_rows(returned), found.shape[1]
        unit = rounding(made, returned)
        each = given[:, None].expand(-1, count, -1).reshape(-1, given.shape[1])
        more = 0.0 if slack is None else slack
        error = self._deviation(found.reshape(-1, given.shape[1]), each, unit, more)
        error = error.amax(1).view(samples, count)
        fits = error <= 1
        best = error.argmin(1)
        rows = torch.arange(samples, device=made.device) * count + best
        return rows, bool((fits.sum(1) == 1).all())


def arrangements(made: Tensor, returned: Tensor) -> Iterator[Arrangement]:
    """Yield the ways in which a returned tensor may hold rows of a head's output ``(..., K)``."""
    classes, rows = made.shape[-1], made.shape[:-1].numel()
    if not returned.is_floating_point() or returned.ndim == 0 or not returned.numel():
        return
    if classes == 1 and returned.shape == made.shape[:-1]:
        yield Arrangement(None, 1, chosen=False)
    for axis in dict.fromkeys((returned.ndim - 1, min(1, returned.ndim - 1))):
        width = returned.shape[axis]
        if not 0 < width <= classes or (width < classes and width < 2):
            continue
        if returned.numel() == width * rows:
            yield Arrangement(axis, width, chosen=False)
        elif width == classes and _chooses(made, returned, axis):
            yield Arrangement(axis, width, chosen=True)


def _chooses(made: Tensor, returned: Tensor, axis: int) -> bool:
    """Tell whether a returned tensor may hold one row of each sample of a head's output."""
    return axis == 1 and returned.ndim == 2 < made.ndim and len(returned) == len(made)


def fit(
    made: Sequence[Tensor],
    returned: Sequence[Tensor],
    kinds: Sequence[str] = KINDS,
    slack: Sequence[Tensor] | None = None,
) -> Link | None:
    """Return what stands between a head and what the model returned, in every one of some passes.

    Args:
        made: The head's output in each pass, ``(..., K)``.
        returned: One returned tensor in each pass.
        kinds: What may stand between.
        slack: As in :meth:`Link.worst`, of each pass.

    Returns:
        ``None`` if nothing that is allowed explains the values.
    """
    for arrangement in arrangements(made[0], returned[0]):
        for kind in kinds:
            link = _fitted(Link(arrangement, kind), made, returned, slack)
            if link is not None:
                return link
    return None


def _fitted(
    link: Link,
    made: Sequence[Tensor],
    returned: Sequence[Tensor],
    slack: Sequence[Tensor] | None,
) -> Link | None:
    """Return the link with its constants; the factor and the cap may differ from the third pass on.

    In these passes learnt factors are other ones, too.
    """
    chosen, one_class = link.arrangement.chosen, link.arrangement.classes == 1
    if one_class and link.kind in ("softmax", "log_softmax", "shift"):  # fits any values
        return None
    if any(link.arrangement not in arrangements(*p) for p in zip(made, returned, strict=True)):
        return None
    first = _constants(link, made[:2], returned[:2])
    if first is None:
        return None
    for number, (one, two) in enumerate(zip(made, returned, strict=True)):
        moved = number > 1 and link.kind in ("scale", "softcap")
        now = _constants(link, [one], [two]) if moved else first
        if now is None:
            return None
        more = None if slack is None else slack[number]
        places = now.chosen_rows(one, two, more)[0] if chosen else None
        more = more if places is None or more is None else more[places]
        if not bool(now.worst(one, two, places, more) <= 1):
            return None
    return first


def _constants(link: Link, made: Sequence[Tensor], returned: Sequence[Tensor]) -> Link | None:
    """Return the link with the constant that fits what was made and returned."""
    if link.kind not in ("scale", "softcap", "mask"):
        return link
    if link.arrangement.chosen:
        return _constants_of_chosen(link, made, returned)
    rows = [
        _sampled(link.rows(m), link.returned_rows(r), _ROWS // len(made))
        for m, r in zip(made, returned, strict=True)
    ]
    return _with_constant(link, *(torch.cat(parts) for parts in zip(*rows, strict=True)))


def _constants_of_chosen(
    link: Link, made: Sequence[Tensor], returned: Sequence[Tensor]
) -> Link | None:
    """Return the link with the constant by which a row of the first samples became the returned."""
    width = link.arrangement.classes
    if width < 2:
        return None
    samples = min(2 if link.kind == "mask" else 1, len(returned[0]))
    given = torch.cat([link.returned_rows(r)[:samples] for r in returned]).double()
    flat = [m.reshape(len(m), -1, m.shape[-1])[:samples, :, :width].double() for m in made]
    found = torch.cat(flat)
    if link.kind != "mask":  # each pass may have chosen alone: the first tells
        found, given = found[:1], given[:1]
    if link.kind == "scale":
        values = (found[0] @ given[0]) / found[0].square().sum(1)
        error = (values[:, None] * found[0] - given[0]).abs().amax(1).nan_to_num(nan=torch.inf)
        value = float(values[int(error.argmin())])
        positive = value > 0 and math.isfinite(value)
        return dataclasses.replace(link, value=value) if positive else None
    if found.shape[1] > _POSITIONS:
        return None
    for place in range(found.shape[1]):
        own = _with_constant(link, found[:, place], given)
        if own is None:
            continue
        if bool(own._deviation(found[:, place], given, rounding(made[0], returned[0])).max() <= 1):
            return own
    return None


def _with_constant(link: Link, found: Tensor, given: Tensor) -> Link | None:
    """Return the link with the constant that fits rows of the head's and the model's output."""
    if link.kind == "scale":
        value = _scale(found, given)
        return None if value is None else dataclasses.replace(link, value=value)
    if link.kind == "softcap":
        cap = _cap(found, given)
        return None if cap is None else dataclasses.replace(link, value=cap)
    if len(found) < 2:  # any vector would do
        return None
    same = (given == given[:1]).all(0) & ~(found == found[:1]).all(0)
    fixed = given[0].where(same, torch.nan)
    return dataclasses.replace(
        link, mask=(given - found).median(0).values.where(~same, 0), fixed=fixed
    )


def _scale(found: Tensor, given: Tensor) -> float | None:
    ok = found.isfinite() & given.isfinite()
    found, given = found.where(ok, 0), given.where(ok, 0)
    square = float(found.square().sum())
    value = float((found * given).sum()) / square if square > 0 else 0.0
    return value if value > 0 and math.isfinite(value) else None


def _cap(found: Tensor, given: Tensor) -> float | None:
    """Return c of ``c tanh(z / c)`` from the entry that it has changed most."""
    place = int((found.abs() - given.abs()).nan_to_num(nan=-1).argmax())
    z, y = abs(float(found.view(-1)[place])), abs(float(given.view(-1)[place]))
    if not 0 < y < z:
        return None
    low, high = y, 1e6 * z  # c tanh(z / c) grows with c from 0 to z
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle * math.tanh(z / middle) < y else (low, middle)
    return low


# -- small helpers ---------------------------------------------------------------------------------


def rounding(*tensors: Tensor) -> float:
    """Return the coarsest rounding unit among tensors, that of TF32 where products may use it."""
    unit = max(torch.finfo(t.dtype).eps for t in tensors)
    reduced = any(t.is_cuda and t.dtype == torch.float32 for t in tensors)
    return max(unit, 2.0**-10) if reduced and torch.backends.cuda.matmul.allow_tf32 else unit


def _rows(returned: Tensor, arrangement: Arrangement) -> Tensor:
    axis = arrangement.axis
    if axis is None:
        return returned.reshape(-1, 1)
    return returned.movedim(axis, -1).reshape(-1, arrangement.classes)


def _sampled(found: Tensor, given: Tensor, most: int = _ROWS) -> tuple[Tensor, Tensor]:
    """Return some rows of both, evenly spread, in float64."""
    places = torch.linspace(0, len(found) - 1, min(most, len(found))).long()
    places = places.to(found.device)
    return found[places].double(), given[places].double()


def _one_memory(one: Tensor, two: Tensor) -> bool:
    return one.data_ptr() == two.data_ptr() and one.numel() == two.numel()


def _wide(*tensors: Tensor) -> torch.dtype:
    double = all(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nest of tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name))


def candidates(output: Any) -> list[Tensor]:
    """Return what a model returned that may be logits: what is called so, else every tensor."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return _real(named) or _real(output)


def _real(output: Any) -> list[Tensor]:
    found = (t.detach() for t in tensors(output))
    return [t for t in found if t.is_floating_point() and t.ndim and t.numel()]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest with its floating-point tensors changed; what is no plain nest stays."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(mapped(each, change) for each in value)
    if type(value) is dict:
        return {key: mapped(each, change) for key, each in value.items()}
    return value
