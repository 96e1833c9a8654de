"""The run folder: what a run was asked, what it measured, where it stands. Written by the trainer, read by everybody.

recipe.json       what was asked
environment.json  versions, machine, commit
metrics.jsonl     one row every few steps, and one an evaluation: bit-identical for an identical run
timings.jsonl     seconds and rates, apart from the above because they never repeat
scores.json       evaluation before and after
status.json       running, finished, interrupted or failed; step, process
faults.jsonl      unreadable samples and non-finite steps
checkpoints/      step-N/..., best.json names the best
report.html       the page
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nearfar.train import checkpoint


def write_json(place: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON aside and renames it, so that a reader never sees half of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(place)


class Run:
    """A run folder, for reading and for the trainer to write.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, Any]:
        return self._json("recipe.json")

    @property
    def status(self) -> dict[str, Any]:
        return self._json("status.json")

    @property
    def scores(self) -> dict[str, Any]:
        """{"before": {name: {value, low, high, n}}, "after": ...}; empty before the first evaluation."""
        return self._json("scores.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return self._rows("metrics.jsonl")

    @property
    def timings(self) -> list[dict[str, Any]]:
        return self._rows("timings.jsonl")

    @property
    def faults(self) -> list[dict[str, Any]]:
        return self._rows("faults.jsonl")

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return checkpoint.found(self.path / "checkpoints")

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def best(self) -> dict[str, Any]:
        """{"step", "score", "monitor"} of the best checkpoint; empty when nothing was evaluated yet."""
        return self._json("checkpoints/best.json")

    def checkpoint(self, which: str = "last") -> Path:
        """The folder of the last or best checkpoint, or of a step given as a number.

        Raises:
            FileNotFoundError: there is no such checkpoint.
        """
        folder = self.path / "checkpoints"
        if which == "last":
            path = checkpoint.newest(folder) if folder.is_dir() else None
        elif which == "best":
            path = folder / checkpoint.name(self.best["step"]) if self.best else None
        elif which.isdigit():
            path = folder / checkpoint.name(int(which))
        else:
            raise ValueError(f"checkpoint: expected 'last', 'best' or a step, received {which!r}")
        if path is None or not path.is_dir():
            steps = ", ".join(str(checkpoint.step_of(p)) for p in self.checkpoints) or "none"
            raise FileNotFoundError(f"checkpoint {which!r} of run {self.path} does not exist; steps there: {steps}")
        return path

    def _json(self, file: str) -> dict[str, Any]:
        place = self.path / file
        if not place.is_file():
            return {}
        try:
            return json.loads(place.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: expected JSON, received text that does not parse: {error}") from None

    def _rows(self, file: str) -> list[dict[str, Any]]:
        place = self.path / file
        if not place.is_file():
            return []
        # A killed run may leave half a line at the end; it is written again on resume.
        lines = place.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line]

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Writes JSON whole or not at all."""
        write_json(self.path / file, value)

    def append(self, file: str, row: dict[str, Any]) -> None:
        with (self.path / file).open("a") as out:
            out.write(json.dumps(row) + "\n")

    def size(self, file: str) -> int:
        """Bytes of a file, flushed to the disk; 0 when it does not exist."""
        place = self.path / file
        if not place.exists():
            return 0
        with place.open("ab") as out:
            os.fsync(out.fileno())
        return place.stat().st_size

    def truncate(self, file: str, size: int) -> None:
        """Cuts a log back to what it held at a checkpoint."""
        place = self.path / file
        if place.exists():
            with place.open("r+b") as out:
                out.truncate(min(size, place.stat().st_size))

    def set_status(self, status: str, **values: Any) -> None:
        old = self.status
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.write(
            "status.json",
            {
                "started": old.get("started", now),
                **values,
                "status": status,
                "pid": os.getpid(),
                "host": platform.node(),
                "updated": now,
            },
        )


def environment() -> dict[str, Any]:
    """Versions and machine, as kept beside a run."""
    import torch

    versions = {}
    for package in ("nearfar", "torch", "torchvision", "accelerate", "numpy", "scikit-learn", "timm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def new_folder(name: str) -> Path:
    """runs/<name>-<date>, never one that exists."""
    stem = f"{name.replace('/', '-').replace('_', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, k = Path("runs") / stem, 1
    while path.exists():
        k += 1
        path = Path("runs") / f"{stem}-{k}"
    return path
