"""What the processes of a benchmark run: a subject is the same piece of work in each library."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nearfar.benchmark import measure
from nearfar.benchmark.cases import OURS
from nearfar.benchmark.subject import Subject
from nearfar.checks import expect_choice

STORES = ("knn", "queue")


def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one job.

    Args:
        job: `do` ("times", "memory", "once" or "limit"), `subject`, `sizes`, `libraries`, `threads`, and `rounds` or
            `limit_mb` where they count.

    Raises:
        Disagreement: the libraries give different values; nothing was timed.
    """
    expect_choice("job", job["do"], JOBS)
    torch.set_num_threads(job["threads"])
    return JOBS[job["do"]](job)


def _make(job: Mapping[str, Any]) -> Subject:
    name = job["subject"]
    # Imported only now: a process needs one of them, and what they load takes a second.
    if name in STORES:
        from nearfar.benchmark import stores

        return getattr(stores, name)(libraries=job["libraries"], **job["sizes"])
    from nearfar.benchmark import objectives

    return objectives.objective(name, libraries=job["libraries"], **job["sizes"])


def times(job: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement first, then times in alternating rounds, with those of the floor."""
    subject = _make(job)
    agreement = subject.compare() if len(job["libraries"]) > 1 else {}
    return {"agreement": agreement, "times": measure.interleaved(subject.steps | subject.floor(), job["rounds"])}


def memory(job: Mapping[str, Any]) -> dict[str, float]:
    """Peak of one step above what was there, and above operands too; the process should be fresh."""
    _warm(job)
    subject = _make(job)
    peak = measure.peak_of(subject.steps[job["libraries"][0]])
    return {"peak_mb": round(peak, 1), "extra_mb": round(max(0.0, peak - subject.operands_mb), 1)}


def once(job: Mapping[str, Any]) -> dict[str, Any]:
    """One step at a size that is too large to repeat: seconds, peak where it can be taken, a check of the result."""
    _warm(job)
    subject = _make(job)
    seconds: list[float] = []

    def step() -> None:
        start = time.perf_counter()
        subject.steps[OURS]()
        seconds.append(time.perf_counter() - start)

    found: dict[str, Any] = {}
    if measure.measures_memory():
        peak = measure.peak_of(step)
        found = {"peak_mb": round(peak, 1), "extra_mb": round(max(0.0, peak - subject.operands_mb), 1)}
    else:
        step()
    return {"seconds": round(seconds[0], 2), "agreement": subject.compare(), **found}


def limit(job: Mapping[str, Any]) -> dict[str, Any]:
    """Which libraries finish a step when memory is limited, and what those that do not ask for."""
    _warm(job, most=32)
    subject = _make(job)
    measure.limit_memory(job["limit_mb"])
    found: dict[str, Any] = {}
    for name, step in subject.steps.items():
        try:
            step()
        except (MemoryError, RuntimeError) as error:
            asked = re.search(r"allocate (\d+) bytes", str(error))
            if asked is None and not isinstance(error, MemoryError):
                raise
            found[name] = {"completed": False} | ({"asked_gb": round(int(asked[1]) / 1e9, 1)} if asked else {})
        else:
            found[name] = {"completed": True}
    return found


def _warm(job: Mapping[str, Any], most: int = 300) -> None:
    """A small step first: what the first call loads is no memory of the step."""
    few = {name: min(value, 8 if name in ("classes", "k") else most) for name, value in job["sizes"].items()}
    for step in _make({**job, "sizes": few}).steps.values():
        step()


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "times": times,
    "memory": memory,
    "once": once,
    "limit": limit,
}
