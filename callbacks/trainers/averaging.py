"""Which weights a measurement sees when a callback averages them."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ncmonitor.errors import InputError, nearest

RAW, AVERAGED = "raw", "averaged"
WEIGHTS: Final = ("validation", RAW, AVERAGED)

#: What ``weights=`` takes: one of :data:`WEIGHTS`, or a function that returns a context manager
#: inside which the module holds the weights to measure.
Weights = str | Callable[[pl.Trainer, pl.LightningModule], contextlib.AbstractContextManager[Any]]

_HOW_TO_CALL = "weights=lambda trainer, module: ema.average_parameters()"


def check_weights(trainer: pl.Trainer, module: pl.LightningModule, choice: Weights) -> None:
    """Refuse at setup what :func:`measured_weights` could not do later.

    Args:
        trainer: With all its callbacks.
        module: The module it is about to train.
        choice: The user's ``weights=``.

    Raises:
        InputError: If the choice is none, or if these callbacks and this model do not allow it.
    """
    if callable(choice) or not isinstance(choice, str):
        _check_function(trainer, module, choice)
        return
    if choice not in WEIGHTS:
        raise InputError(
            f"weights= must be one of {WEIGHTS} or a function of trainer and module, but is "
            f"{choice!r}{nearest(choice, WEIGHTS)}"
        )
    found = _chosen(trainer, choice)
    if found is None:
        if choice == AVERAGED:
            raise InputError(
                "weights='averaged', but the trainer has no callback that averages weights "
                "(WeightAveraging, EMAWeightAveraging or StochasticWeightAveraging); add one, or "
                f"pass a function if the average is your own: {_HOW_TO_CALL}"
            )
        return
    found.average()  # a Lightning that keeps it elsewhere should be told now
    if found.lacks_statistics(module):
        raise InputError(
            "weights='averaged' cannot be measured during training: the model has BatchNorm, and "
            "StochasticWeightAveraging estimates the statistics of the averaged weights only after "
            "the last epoch; pass weights='raw', or average with EMAWeightAveraging, which "
            "averages the statistics too"
        )


@contextlib.contextmanager
def measured_weights(
    trainer: pl.Trainer, module: pl.LightningModule, choice: Weights
) -> Iterator[str]:
    """Hold the chosen weights inside, and the very tensors of before afterwards.

    Parameters stay the same objects and only point to other memory for a while, so an optimizer
    and ``DistributedDataParallel`` notice nothing.

    - ``"validation"``: the weights of Lightning's own validation. ``WeightAveraging`` and
      ``EMAWeightAveraging`` validate the average, before its first update the untrained network;
      with ``use_buffers=False`` it has the BatchNorm statistics of the raw weights, there as
      here. ``StochasticWeightAveraging`` validates the raw weights until the last epoch.
    - ``"raw"``: those the optimizer steps.
    - ``"averaged"``: the average once it has been updated, until then the raw weights.
    - A function: whatever its context manager puts there.

    Outside ``fit`` the module is left as it is, since it may come from any checkpoint.

    Args:
        trainer: The trainer that runs.
        module: Its module.
        choice: As accepted by :func:`check_weights`.

    Yields:
        ``"raw"`` or ``"averaged"``, what the module holds inside. For a function ``"averaged"``,
        unless its context manager itself yields one of the two words. At the end of a fit
        Lightning copies the average into the module; then it is ``"averaged"`` for every choice.

    Raises:
        InputError: If the average does not fit the module, or a function gives no context manager.
    """
    if not isinstance(choice, str):
        with _entered(choice(trainer, module)) as word:
            yield word if isinstance(word, str) and word in (RAW, AVERAGED) else AVERAGED
        return
    found = _chosen(trainer, choice) if trainer.state.fn == "fit" else None
    average = None if found is None else found.average()
    if found is None or average is None or (choice == AVERAGED and not found.begun()):
        yield _at_hand(trainer, module)
        return
    with _holding(_pairs(module, average, buffers=found.swaps)):
        yield AVERAGED


@dataclass(frozen=True)
class _Averaging:
    """A callback of either Lightning distribution that averages weights.

    Attributes:
        callback: The callback.
        swaps: Whether it validates the average, buffers included (``WeightAveraging``), or
            averages parameters only and puts them in at the end (``StochasticWeightAveraging``).
    """

    callback: Any
    swaps: bool

    def average(self) -> nn.Module | None:
        """Return the averaged model, ``None`` before Lightning has made it."""
        name = "_average_model"  # Lightning has no public one
        if not hasattr(self.callback, name):
            raise InputError(
                f"{type(self.callback).__name__} of this Lightning keeps its average elsewhere "
                f"(expected the attribute {name}, as in Lightning 2.6); pass weights='raw', or a "
                "function (trainer, module) that returns a context manager with the average"
            )
        average: nn.Module | None = getattr(self.callback, name)
        return average.get_submodule("module") if self.swaps and average is not None else average

    def begun(self) -> bool:
        """Whether the average has been updated since its model was made."""
        counter: Any = self.callback
        if self.swaps:
            counter = getattr(self.callback, "_average_model", None)
        count = getattr(counter, "n_averaged", None)
        if count is not None:
            return bool(count > 0)
        return bool(getattr(self.callback, "_init_n_averaged", 0))  # SWA, resumed, before an epoch

    def lacks_statistics(self, module: nn.Module) -> bool:
        """Whether its average has weights without the BatchNorm statistics that belong to them."""
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return not self.swaps and any(norm.running_mean is not None for norm in norms)

    def has_taken_over(self, trainer: pl.Trainer, module: nn.Module) -> bool:
        """Whether Lightning has copied the average into the module for good.

        It does so in ``on_train_end``, perhaps after ours; SWA of a model with BatchNorm at the
        start of one more epoch.
        """
        progress = trainer.fit_loop.epoch_progress.current
        ended = progress.ready == progress.completed > 0
        if not ended and trainer.current_epoch <= getattr(self.callback, "swa_end", math.inf):
            return False
        try:
            average = self.average()
        except InputError:  # only the record would profit from it
            return False
        if average is None or not self.begun():
            return False
        pairs = _pairs(module, average, buffers=False)
        return all(torch.equal(own.data, theirs.data.to(own)) for own, theirs in pairs)


def _averagings(trainer: pl.Trainer) -> list[_Averaging]:
    found = []
    for callback in getattr(trainer, "callbacks", ()):
        names = {cls.__name__ for cls in type(callback).__mro__}
        if "WeightAveraging" in names:
            found.append(_Averaging(callback, swaps=True))
        elif "StochasticWeightAveraging" in names:
            found.append(_Averaging(callback, swaps=False))
    return found


def _chosen(trainer: pl.Trainer, choice: str) -> _Averaging | None:
    """Return the callback whose average is to be measured, ``None`` for the module as it is.

    Raises:
        InputError: If there are several.
    """
    if choice == RAW:
        return None
    found = [each for each in _averagings(trainer) if each.swaps or choice == AVERAGED]
    if len(found) > 1:
        names = " and ".join(type(each.callback).__name__ for each in found)
        raise InputError(
            f"weights={choice!r} must mean the average of one callback, but the trainer has "
            f"{names}; leave one out, or pass weights='raw'"
        )
    return found[0] if found else None


def _at_hand(trainer: pl.Trainer, module: nn.Module) -> str:
    over = any(each.has_taken_over(trainer, module) for each in _averagings(trainer))
    return AVERAGED if over else RAW


def _pairs(module: nn.Module, average: nn.Module, *, buffers: bool) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of the module with the average's, in the order of Lightning's own swap."""
    own: list[Tensor] = [*module.parameters()]
    theirs: list[Tensor] = [*average.parameters()]
    if buffers:
        own, theirs = [*own, *module.buffers()], [*theirs, *average.buffers()]
    if [t.shape for t in own] != [t.shape for t in theirs]:
        raise InputError(
            f"the averaged model has {len(theirs)} tensors that do not match the {len(own)} of the "
            "model; the model must keep its layers after setup, or pass weights='raw'"
        )
    return list(zip(own, theirs, strict=True))


@contextlib.contextmanager
def _holding(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    saved = [(own, own.data) for own, _ in pairs]
    try:
        for own, theirs in pairs:
            own.data = _placed(theirs.data, own)
        yield
    finally:
        for own, data in saved:
            own.data = data


def _placed(average: Tensor, own: Tensor) -> Tensor:
    """Return an average as the module would hold it: its device, precision and memory order.

    Another precision must not reach ``.data``: autograd would drop the parameter's gradient
    accumulator, and with it DDP's hook. Buffers are copied: a forward may write to them.
    """
    kind = (average.device, average.dtype, average.stride())
    if isinstance(own, nn.Parameter) and kind == (own.device, own.dtype, own.stride()):
        return average
    return torch.empty_like(own.data).copy_(average)


def _check_function(trainer: pl.Trainer, module: pl.LightningModule, choice: Any) -> None:
    # What @contextmanager makes is callable too, but as a decorator.
    if isinstance(choice, contextlib.AbstractContextManager):
        raise InputError(
            "weights= is a context manager, which serves one measurement; pass a function that "
            f"makes one: {_HOW_TO_CALL}"
        )
    if not callable(choice):
        raise InputError(
            f"weights= must be one of {WEIGHTS} or a function of trainer and module, but is a "
            f"{type(choice).__name__}"
        )
    try:
        signature = inspect.signature(choice)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(trainer, module)
    except TypeError as error:
        raise InputError(
            f"weights= must be a function of trainer and module ({error}): {_HOW_TO_CALL}"
        ) from None


def _entered(made: Any) -> contextlib.AbstractContextManager[Any]:
    if not isinstance(made, contextlib.AbstractContextManager):
        raise InputError(
            "the function given as weights= must return a context manager, but returned a "
            f"{type(made).__name__}: {_HOW_TO_CALL}"
        )
    return made
