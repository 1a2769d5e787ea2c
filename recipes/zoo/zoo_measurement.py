"""Train the networks of the zoo and measure them before and after."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ncmonitor.errors import MeasurementError
from ncmonitor.recipes.zoo.predictions import Claim, Theory, agrees
from ncmonitor.recipes.zoo.zoo_data import Inputs, Task, doubled, taken
from ncmonitor.recipes.zoo.zoo_entries import Entry
from ncmonitor.recipes.zoo.zoo_networks import ZooNetwork
from ncmonitor.symmetry import FeatureInvariance

#: What is measured: features and logits against invariance, the inner map against equivariance.
WHERE: Final = ("features", "logits", "inner")
BATCH, RATE = 64, 3e-3
_SAMPLES: Final = 128  # held-out ones, transformed by every element


@dataclass(frozen=True)
class Trained:
    """How well a network learned its task.

    Attributes:
        train_accuracy: On the training set, after training.
        test_accuracy: On held-out samples.
        epochs: Of training.
        seconds: It took, without the measuring.
    """

    train_accuracy: float
    test_accuracy: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """One network under one group, before and after training.

    Attributes:
        entry: The network.
        claim: What theory says.
        before: Error by what is measured, :data:`WHERE`; without ``"inner"`` where it is not.
        after: The same.
        trained: How well it learned.
    """

    entry: Entry
    claim: Claim
    before: dict[str, float]
    after: dict[str, float]
    trained: Trained


@dataclass(frozen=True)
class Verdict:
    """Whether an error agrees with theory, before and after; None where it cannot be told."""

    theory: Theory
    before: bool | None
    after: bool | None


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: the networks are small, and sums come out the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(entry: Entry, seed: int, epochs: int | None = None) -> list[Result]:
    """Make a network, measure, train, measure again.

    Args:
        entry: Which one.
        seed: Of its weights and of the order of the batches; the global generators stay as are.
        epochs: Of training; None: as many as the network needs.

    Returns:
        A result for each claim.

    Raises:
        MeasurementError: If training diverged.
    """
    task = entry.task()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = entry.build()
    before = [measure(net, claim, task.test) for claim in entry.claims]
    trained = train(net, task, entry.epochs if epochs is None else epochs, seed)
    if not all(bool(p.isfinite().all()) for p in net.parameters()):
        raise MeasurementError(f"{entry.name} diverged with seed {seed}: weights are not finite")
    after = [measure(net, claim, task.test) for claim in entry.claims]
    return [
        Result(entry, claim, first, last, trained)
        for claim, first, last in zip(entry.claims, before, after, strict=True)
    ]


def train(net: ZooNetwork, task: Task, epochs: int, seed: int) -> Trained:
    """Train by Adam on the cross-entropy, the learning rate falling linearly to 0.

    Args:
        net: Trained in place.
        task: What to learn.
        epochs: Passes over the training set.
        seed: Of the order of the batches.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    steps = max(1, epochs * -(-len(task.train_labels) // BATCH))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(task.train_labels), generator=generator)
        for first in range(0, len(order), BATCH):
            index = order[first : first + BATCH]
            optimizer.zero_grad()
            loss = cross_entropy(net(taken(task.train, index)), task.train_labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    return Trained(
        _accuracy(net, task.train, task.train_labels),
        _accuracy(net, task.test, task.test_labels),
        epochs,
        seconds,
    )


@torch.no_grad()
def measure(net: ZooNetwork, claim: Claim, inputs: Inputs) -> dict[str, float]:
    """Measure the errors of one network under one group, in float64.

    ``Ave ‖f(gx) − ρ(g) f(x)‖² / (2 tr Σ_T)``, averaged over the elements beside the identity, with
    ρ the identity for features and logits.

    Args:
        net: Left as it is.
        claim: The group, and how it acts on the inner map.
        inputs: Samples; the first 128 are taken.
    """
    net = copy.deepcopy(net).double().eval()
    x = doubled(taken(inputs, slice(_SAMPLES)))
    plain = net.encoder(x)
    features, inner = [], []
    for action in claim.group:
        found = net.encoder(action(x))
        features.append(net.pool(found))
        if claim.acts is not None and action.name != claim.group.names[0]:
            inner.append(_distance(claim.acts[action.name](plain), found))
    rows = torch.stack(features)
    errors = {
        "features": FeatureInvariance().update(rows).error,
        "logits": FeatureInvariance(centre=True).update(net.head(rows)).error,
    }
    return errors if claim.acts is None else errors | {"inner": sum(inner) / len(inner)}


def verdicts(results: Sequence[Result]) -> list[dict[str, Verdict]]:
    """Hold every measured error against theory.

    Args:
        results: Of all networks: some claims are that one error is below another.

    Returns:
        For each result, verdicts by what was measured.
    """
    known = {(result.entry.name, result.claim.group.name): result for result in results}
    found = []
    for result in results:
        other = known.get((result.claim.below, result.claim.group.name))
        told = {}
        for where in result.before:
            theory = result.claim.of(where)
            if theory is not None:
                bounds = _bounds(other, where)
                told[where] = Verdict(
                    theory,
                    agrees(theory, result.before[where], bounds[0]),
                    agrees(theory, result.after[where], bounds[1]),
                )
        found.append(told)
    return found


def _bounds(other: Result | None, where: str) -> tuple[float | None, float | None]:
    """Return what a nearly invariant network has to be below, before and after."""
    if where == "inner":  # no other has it: 1 is as far as two samples are from each other
        return 1.0, 1.0
    return (None, None) if other is None else (other.before[where], other.after[where])


def _distance(expected: Tensor, found: Tensor) -> float:
    """Return the invariance error of ``ρ(g) f(x)`` on the way to ``f(gx)``."""
    pair = torch.stack([expected, found]).flatten(2)
    error = float(FeatureInvariance().update(pair).errors[1])
    return math.nan if math.isnan(error) else error


@torch.no_grad()
def _accuracy(net: ZooNetwork, inputs: Inputs, labels: Tensor) -> float:
    net.eval()
    return float((net(inputs).argmax(1) == labels).double().mean())
