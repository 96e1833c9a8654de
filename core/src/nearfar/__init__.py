"""nearfar: contrastive learning, from the equations to a trained encoder.

Importing the package is light: submodules load when they are named, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = frozenset(
    {
        "analysis", "batch", "catalog", "config", "contrast", "data", "demonstrate",
        "distributed", "evaluate", "gradcache", "heads",
        "memory", "method", "methods", "models", "momentum", "negatives", "objectives", "prototypes", "recipe", "ring",
        "rng", "samplers", "schedules", "train", "views", "worlds", "zoo",
    }
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"nearfar.{name}")
    raise AttributeError(f"module 'nearfar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
