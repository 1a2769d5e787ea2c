"""One base class that the trainers of both Lightning distributions accept."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final

from lightning_utilities.core import rank_zero

#: Methods of the module that Lightning puts on every callback for the time of a run.
LENT: Final = ("log", "log_dict")

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    Base = Callback
else:

    def _callbacks() -> tuple[type, ...]:
        # ``pytorch_lightning`` and ``lightning.pytorch`` are different class trees: a callback of
        # one, passed alone or through the other's CLI, is not recognised as a callback.
        found = []
        packages = ("pytorch_lightning", "lightning.pytorch")
        loaded, logger = any(p in sys.modules for p in packages), rank_zero.log
        for package in packages:
            try:
                found.append(importlib.import_module(f"{package}.callbacks").Callback)
            except ModuleNotFoundError:
                continue
        if loaded:  # each package makes its logger that of both: the caller's stays
            rank_zero.log = logger
        return tuple(found)

    Base = type("Base", _callbacks(), {"__doc__": "Callback of every installed distribution."})
