"""The processes that measure one data set together, each on its own share of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ncmonitor.errors import InputError, MeasurementError


class ProcessGroup(Protocol):
    """The processes that measure one data set together, each on its own share of it.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        device: Where sums are exchanged.
    """

    rank: int
    size: int
    device: torch.device

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Do the work inside on every rank; if it fails on one, raise on all of them."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order; plain values and tensors on the CPU."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, the same to the last bit on each."""

    def smallest(self, tensor: Tensor) -> Tensor:
        """Return the entrywise minimum over ranks."""


class SingleProcess(ProcessGroup):
    """One process: it agrees with itself, and its sums are everybody's."""

    def __init__(self) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do the work inside."""
        yield

    def gather(self, value: Any) -> list[Any]:
        """Return the value alone."""
        return [value]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def smallest(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor


#: Where nobody else measures.
SINGLE_PROCESS: Final[ProcessGroup] = SingleProcess()


class _Failure(NamedTuple):
    """What went wrong on a rank, in words the others can repeat."""

    kind: type[Exception]
    words: str


class TorchProcessGroup(ProcessGroup):
    """The ranks of torch's default process group.

    Every collective is reached by every rank, also by one whose work has failed: work goes inside
    :meth:`together`, which tells the others before anybody waits for sums that will not come.

    Args:
        device: Where the process group's backend takes tensors: this rank's accelerator under
            nccl, the CPU under gloo.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do the work inside on every rank; if it fails on one, raise on all of them."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        found = self.gather(None if failure is None else _described(failure))
        if failure is not None:
            raise failure
        for rank, other in enumerate(found):
            if other is not None:
                raise other.kind(f"on rank {rank}: {other.words}")

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order; plain values and tensors on the CPU."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, the same to the last bit on each."""
        total = tensor.to(self.device, copy=True)
        # Not all_reduce: which rank adds in which order, and whether all do alike, is its secret.
        dist.reduce(total, dst=0)
        dist.broadcast(total, src=0)
        return total.to(tensor.device)

    def smallest(self, tensor: Tensor) -> Tensor:
        """Return the entrywise minimum over ranks."""
        least = tensor.to(self.device, copy=True)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return least.to(tensor.device)


def _described(error: Exception) -> _Failure:
    """Keep what decides how a failure is treated; the exception itself may not be picklable."""
    for kind in (MeasurementError, InputError, torch.OutOfMemoryError):
        if isinstance(error, kind):
            return _Failure(kind, str(error))
    return _Failure(MeasurementError, f"{type(error).__name__}: {error}")
