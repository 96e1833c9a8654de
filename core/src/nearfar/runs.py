"""Run folders under a folder: where each stands, how good it is, and which of its files are damaged. Loads no torch."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.terminal import console, print_json, table

STATUSES = ("running", "finished", "interrupted", "failed")


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run folder at a glance; numbers are None where the run has not written them."""

    path: str
    recipe: str = "unknown"
    status: str = "unknown"
    """running, finished, interrupted, failed, or unknown when its file is missing or damaged"""
    step: int | None = None
    steps: int | None = None
    monitor: str = ""
    """the score that chooses the best checkpoint"""
    best: float | None = None
    loss: float | None = None
    """of the last row that has one"""
    started: str = ""
    updated: str = ""
    message: str = ""
    damage: tuple[str, ...] = ()
    """files that do not parse, and how many lines of them"""


@dataclass
class _Folder:
    """Reads a run's files and writes down what does not parse."""

    path: Path
    damage: list[str] = field(default_factory=list)

    def values(self, file: str) -> dict[str, Any]:
        """An object of a JSON file; empty when there is none."""
        place = self.path / file
        if not place.is_file():
            return {}
        try:
            found = json.loads(place.read_text())
        except (ValueError, OSError):
            found = None
        if not isinstance(found, dict):
            self.damage.append(f"{file}: does not parse")
            return {}
        return found

    def rows(self, file: str) -> list[dict[str, Any]]:
        """The objects of a file of JSON lines."""
        place = self.path / file
        if not place.is_file():
            return []
        rows, bad = [], 0
        for line in place.read_bytes().splitlines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad += 1
        if bad:
            self.damage.append(f"{file}: {bad} line{'s' * (bad != 1)} left out")
        return rows


def find(folder: str | Path) -> list[RunSummary]:
    """The runs under a folder, newest first.

    A run folder is one that holds recipe.json; folders inside it, hidden ones and links are not searched.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder of runs: {root} does not exist")
    found = []
    for place, inner, files in os.walk(root):
        if "recipe.json" in files:
            found.append(summarise(Path(place)))
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))
    return sorted(found, key=lambda run: (run.updated or run.started, run.path), reverse=True)


def summarise(path: Path) -> RunSummary:
    """One run folder at a glance; damaged files are named, never fatal."""
    expect((path / "recipe.json").is_file(), "run folder", "a folder with recipe.json", str(path))
    folder = _Folder(path)
    recipe, state = folder.values("recipe.json"), folder.values("status.json")
    metrics, scores = folder.rows("metrics.jsonl"), folder.values("scores.json")
    kept = folder.values("checkpoints/best.json")
    monitor = kept.get("monitor") or _inner(recipe, "values", "trainer", "monitor") or "knn"
    status = str(state["status"]) if state.get("status") in STATUSES else "unknown"
    if status == "running" and _is_gone(state):
        status = "interrupted"
    losses = [row["loss"] for row in metrics if isinstance(row.get("loss"), int | float)]
    steps = [row["step"] for row in metrics if isinstance(row.get("step"), int)]
    return RunSummary(
        path=str(path),
        recipe=_text(recipe.get("recipe")) or "unknown",
        status=status,
        step=_count(state.get("step")) if "step" in state else max(steps, default=None),
        steps=_count(state.get("steps")),
        monitor=str(monitor),
        best=_best(str(monitor), kept, metrics, scores),
        loss=losses[-1] if losses else None,
        started=_text(state.get("started")),
        updated=_text(state.get("ended") or state.get("updated")),
        message=_text(state.get("message")),
        damage=tuple(folder.damage),
    )


def _is_gone(state: dict[str, Any]) -> bool:
    """Whether the process of a run that calls itself running is dead; only this host's processes can be asked."""
    pid = state.get("pid")
    if not isinstance(pid, int) or pid <= 0 or state.get("host", platform.node()) != platform.node():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and somebody else's
        return False
    return False


def _best(monitor: str, kept: dict[str, Any], metrics: list[dict[str, Any]], scores: dict[str, Any]) -> float | None:
    if isinstance(kept.get("score"), int | float):
        return float(kept["score"])
    found = [_inner(row, "scores", monitor) for row in metrics] + [_inner(scores, "after", monitor)]
    values = [value.get("value") if isinstance(value, dict) else value for value in found]
    return max((float(v) for v in values if isinstance(v, int | float)), default=None)


def _inner(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def show(folder: str | Path, *, as_json: bool = False) -> int:
    """Prints the runs under a folder as a table or as JSON; returns the exit code."""
    runs = find(folder)
    if as_json:
        print_json([asdict(run) for run in runs])
        return 0
    out = console()
    if not runs:
        out.print(f"No runs under {escape(str(folder))}. [dim]A run folder is one that holds recipe.json.[/]")
        return 0
    wide = out.width >= 110
    rows = table("run", "status", "step", "best", "loss", "when", *(["recipe"] if wide else []))
    for k, column in enumerate(rows.columns):
        column.no_wrap = k > 0  # on a narrow terminal the folder's name gives way, not the numbers
    for run in runs:
        colour = {"running": "cyan", "finished": "green", "interrupted": "yellow"}.get(run.status, "red")
        step = "" if run.step is None else f"{run.step}/{run.steps}" if run.steps else str(run.step)
        best = "" if run.best is None else f"{run.monitor} {run.best:.3f}"
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        where = os.path.relpath(run.path, folder)
        name = escape(Path(run.path).name if where == "." else where)
        status = f"[{colour}]{run.status}[/]"
        more = [escape(run.recipe)] if wide else []
        rows.add_row(name, status, step, escape(best), loss, _when(run), *more)
    out.print(rows)
    for run in runs:
        for text in (*run.damage, *([run.message] if run.message and run.status in ("failed", "unknown") else [])):
            out.print(f"[yellow]{escape(os.path.relpath(run.path, folder))}[/]: {escape(text)}")
    return 0


def _when(run: RunSummary) -> str:
    """Local time of the last news, to the minute."""
    try:
        moment = datetime.fromisoformat(run.updated or run.started)
    except ValueError:
        return ""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
