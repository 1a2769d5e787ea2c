"""One base class that the trainers of both Lightning distributions accept."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    Base = Callback
else:

    def _callbacks() -> tuple[type, ...]:
        # ``pytorch_lightning`` and ``lightning.pytorch`` are different class trees: a callback of
        # one, passed alone or through the other's CLI, is not recognised as a callback.
        found = []
        for package in ("pytorch_lightning", "lightning.pytorch"):
            try:
                found.append(importlib.import_module(f"{package}.callbacks").Callback)
            except ModuleNotFoundError:
                continue
        return tuple(found)

    Base = type("Base", _callbacks(), {"__doc__": "Callback of every installed distribution."})
