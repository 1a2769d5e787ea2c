"""Which strategies can be measured, and the ranks that measure together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from ncmonitor.errors import InputError
from ncmonitor.features.kept_model import current
from ncmonitor.statistics.process_group import SINGLE_PROCESS, ProcessGroup, TorchProcessGroup

#: Base classes of strategies that leave no rank with a whole network, and what they do to it.
_SHARDED = {
    "FSDPStrategy": "shards the parameters: every forward is a collective, and with uneven shares "
    "of the data one rank would wait for ever",
    "DeepSpeedStrategy": "wraps and may shard the parameters; its engine counts every forward",
    "ModelParallelStrategy": "spreads single layers over devices",
    "XLAStrategy": "compiles the whole step; nothing here has been tested on it",
    "SingleDeviceXLAStrategy": "compiles the whole step; nothing here has been tested on it",
}


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuse a strategy under which a measurement would not be honest, or would hang.

    Raises:
        InputError: With the reason and what to do instead.
    """
    names = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    for name, reason in _SHARDED.items():
        if name in names:
            raise InputError(
                f"ncmonitor cannot measure under {names[0]}: it {reason}. Train with "
                "strategy='ddp', or save checkpoints and measure them on one device"
            )
    if trainer.world_size > 1 and "DDPStrategy" not in names:
        raise InputError(
            f"ncmonitor measures on one device or under DDP, but this trainer has "
            f"{trainer.world_size} processes under {names[0]}: train with strategy='ddp'"
        )


def ranks_of(trainer: pl.Trainer, module: pl.LightningModule) -> ProcessGroup:
    """Return the processes that measure together."""
    if trainer.world_size == 1:
        return SINGLE_PROCESS
    nccl = dist.get_backend() == "nccl"
    return TorchProcessGroup(module.device if nccl else torch.device("cpu"))


@contextlib.contextmanager
def one_network(module: pl.LightningModule, ranks: ProcessGroup) -> Iterator[None]:
    """Give every rank the buffers of rank zero inside, and its own back afterwards.

    Under DDP each rank's BatchNorm has seen its own batches since the buffers were last broadcast,
    at the beginning of the last step: the ranks hold slightly different networks. Rank zero's is
    the one that checkpoints save.
    """
    kept = current()
    if kept is not None:
        kept.add_tensors()  # those of an average stand in by now
    if ranks.size == 1:
        yield
        return
    own = [(buffer, buffer.data) for buffer in module.buffers()]
    try:
        for buffer, data in own:
            shared = data.to(ranks.device, copy=True).contiguous()
            dist.broadcast(shared, src=0)
            buffer.data = shared.to(data.device)
        yield
    finally:
        for buffer, data in own:
            buffer.data = data
