"""What makes a run that run: compared on resume, so that a checkpoint never goes on as something else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.data.source import class_counts, whole
from nearfar.train.checkpoint import CheckpointError

if TYPE_CHECKING:
    from nearfar.train.trainer import Trainer

# Where a run is written, how it is shown, how data is fetched and what each process holds of the model change nothing
# in its numbers.
FREE = (
    "trainer.output", "trainer.progress", "trainer.keep", "trainer.trackers", "trainer.checkpoint_every",
    "trainer.parallel",
    "data.root", "data.sources", "data.workers", "data.memory_gb", "data.cache", "evaluate.",
)  # fmt: skip


def describe(trainer: Trainer) -> dict[str, Any]:
    """Flat name -> value of everything that decides the numbers of a run."""
    parts: dict[str, Any] = {}
    if trainer.recipe is not None:
        parts |= _flat(dataclasses.asdict(trainer.recipe))
    parts |= _flat({"trainer": dataclasses.asdict(trainer.config), "optimiser": dataclasses.asdict(trainer.optimiser)})
    parts["method.class"] = type(trainer.method).__name__
    parts["method.parameters"] = sum(p.numel() for p in trainer.method.parameters())
    parts["data.samples"] = len(trainer.data.train)
    parts["data.indices"] = len(whole(trainer.data.train))
    parts["data.num_classes"] = trainer.data.train.num_classes
    parts["data.class_names"] = list(trainer.data.train.class_names)
    parts["data.class_counts"] = list(class_counts(trainer.data.train))
    parts["data.fingerprint"] = trainer.data.train.fingerprint()
    kept = {name: value for name, value in parts.items() if not name.startswith(FREE)}
    return json.loads(json.dumps(kept))


def compare(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses a checkpoint of another recipe or other data.

    Raises:
        CheckpointError: names every difference.
    """
    differing = [
        f"{name}: there {then.get(name, 'absent')!r}, now {now.get(name, 'absent')!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"checkpoint {path} belongs to another run ({'; '.join(differing)}). Resume it with its own recipe, "
            "or choose another trainer.output"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
