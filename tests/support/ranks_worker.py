"""Measures every case on several gloo processes: ``python ranks_worker.py FOLDER 2 3``.

Started by ``test_ranks.py``. Each of 2, and then each of 3 ranks writes its numbers to
``FOLDER/<ranks>.<rank>.json``, and one process those of its own to ``FOLDER/alone.json``. The ranks
are forked: the imports are done once.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from cases import BY_NAME, CASES, Case, train_and_validation
from ncmonitor import CollapseReport, InputError
from ncmonitor.measurement.pipeline import Single, Study, run
from ncmonitor.measurement.settings import Settings
from ncmonitor.statistics.classifier import Classifier
from ncmonitor.statistics.feature_cache import Budget, FeatureCache
from ncmonitor.statistics.moments import ClassMoments
from ncmonitor.statistics.process_group import SINGLE_PROCESS, ProcessGroup, TorchProcessGroup

BATCH = 64


def share(tensor: Tensor, ranks: ProcessGroup) -> Tensor:
    """Return this rank's contiguous part of the samples."""
    count = len(tensor)
    return tensor[count * ranks.rank // ranks.size : count * (ranks.rank + 1) // ranks.size]


def measured(
    case: Case,
    ranks: ProcessGroup,
    *,
    reference: ClassMoments | None = None,
    limit: int = 2**30,
    null_seed: int | None = None,
    batches: Any = None,
) -> CollapseReport:
    classifier = None if case.weight is None else Classifier(case.weight, case.bias)
    study = Study(
        case.num_classes, classifier, Settings.of("all"), FeatureCache(Budget(limit)), reference
    )
    if batches is None:
        parts = (share(case.features, ranks), share(case.labels, ranks))
        batches = list(zip(*(part.split(BATCH) for part in parts), strict=True))
        batches = [batch for batch in batches if len(batch[1])]
    return run([study], Single(batches), ranks, null_seed)[0]


def numbers(report: CollapseReport) -> dict[str, float]:
    fit = {"error": report.error, "cross_entropy": report.cross_entropy}
    return report.as_dict() | fit | {"samples": report.samples}


def everything(ranks: ProcessGroup) -> dict[str, dict[str, float]]:
    """Every hard case; a validation split; both readings; shuffled labels."""
    found = {case.name: numbers(measured(case, ranks)) for case in CASES}
    for train, val in train_and_validation():
        moments = measured(train, ranks).moments
        found[f"val:{val.name}"] = numbers(measured(val, ranks, reference=moments))
    case = BY_NAME["imbalanced"]
    found["read twice"] = numbers(measured(case, ranks, limit=10))
    found["null"] = numbers(measured(case, ranks, null_seed=3).null(3))
    found["null, read twice"] = numbers(measured(case, ranks, null_seed=3, limit=10).null(3))
    few = replace(case, features=case.features[:2], labels=torch.tensor([0, 1]))
    found["fewer samples than ranks"] = numbers(measured(few, ranks))
    return found


# -- failures, each of which must be heard of on every rank ----------------------------------------


class Failing:
    """Batches of a rank that fails while it reads them, at a given reading."""

    def __init__(self, case: Case, ranks: ProcessGroup, *, reading: int, error: Exception) -> None:
        self.case, self.ranks, self.reading, self.error = case, ranks, reading, error
        self.readings = 0

    def __iter__(self) -> Any:
        self.readings += 1
        yield share(self.case.features, self.ranks), share(self.case.labels, self.ranks)
        if self.readings == self.reading and self.ranks.rank == self.ranks.size - 1:
            raise self.error


def failures(ranks: ProcessGroup) -> dict[str, str]:
    case, words = BY_NAME["imbalanced"], {}

    def attempt(name: str, work: Callable[[], object]) -> None:
        try:
            work()
            words[name] = "nothing"
        except Exception as error:
            words[name] = f"{type(error).__name__}: {error}"

    def failing(reading: int, error: Exception) -> Callable[[], object]:
        batches = Failing(case, ranks, reading=reading, error=error)
        return lambda: measured(case, ranks, batches=batches, limit=10)

    attempt("first pass", failing(1, RuntimeError("boom")))
    attempt("second pass", failing(2, RuntimeError("boom")))
    attempt("input", failing(1, InputError("a label is wrong")))
    attempt("memory", failing(1, torch.OutOfMemoryError("no memory left")))
    wide = case if ranks.rank else replace(case, features=case.features.double())
    attempt("dtypes", lambda: measured(wide, ranks))
    attempt("fine again", lambda: measured(case, ranks))
    return words


def work(rank: int, size: int, store: str, folder: Path) -> None:
    dist.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    warnings.simplefilter("ignore")
    ranks = TorchProcessGroup(torch.device("cpu"))
    found = {"numbers": everything(ranks), "failures": failures(ranks)}
    (folder / f"{size}.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main(folder: Path, sizes: list[int]) -> None:
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            start_processes(work, (size, f"{scratch}/store", folder), size, start_method="fork")
    warnings.simplefilter("ignore")
    (folder / "alone.json").write_text(json.dumps(everything(SINGLE_PROCESS)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
