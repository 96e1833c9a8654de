"""How time and memory are taken, and what is written down beside them.

Times: medians and minima of interleaved rounds, so that what else the machine does falls on all alike.
Memory: the high-water mark of a fresh process during one call, above what it held before (Linux).
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nearfar


class Failed(RuntimeError):
    """A process of a benchmark ended without its figures."""


def metadata(packages: Iterable[str] = (), threads: int | None = None) -> dict[str, Any]:
    """Date, machine, commit and versions; `threads` are those of torch in this process by default."""
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch_threads": threads,
        **_commit(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "nearfar", *packages)},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """Commit of nearfar's source: of the checkout it is imported from, else of the one that pip installed it from."""
    source = Path(nearfar.__file__)
    # An installed copy may lie inside the checkout of another project, whose commit says nothing.
    if _git(source.parent, "ls-files", source.name):
        changed = bool(_git(source.parent, "status", "--porcelain", "--untracked-files=no"))
        return {"commit": _git(source.parent, "rev-parse", "HEAD"), "changed": changed}
    origin = json.loads(importlib.metadata.distribution("nearfar").read_text("direct_url.json") or "{}")
    return {"commit": origin.get("vcs_info", {}).get("commit_id", "unknown"), "changed": False}


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def interleaved(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and minimum milliseconds of every case; each round runs each case once, the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {"median_ms": round(statistics.median(values), 2), "min_ms": round(min(values), 2), "rounds": rounds}
        for name, values in times.items()
    }


def measures_memory() -> bool:
    """Whether `peak_of` works on this system."""
    return Path("/proc/self/clear_refs").exists()


def peak_of(call: Callable[[], Any]) -> float:
    """Megabytes (MiB) that a call held at its peak above what the process held before."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # else pages that are free but still held would hide as much of the peak
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def limit_memory(megabytes: int) -> None:
    """Lets this process ask for so many megabytes above what it has reserved, and refuses more (Linux)."""
    import resource

    bound = int((_status("VmSize") + megabytes) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status: expected a line {key!r}, found none")


def fresh(job: Mapping[str, Any]) -> Any:
    """What a new interpreter finds for a job of `subjects.do`.

    Raises:
        Failed: the process failed; its last line of complaint, or the signal that ended it.
    """
    command = [sys.executable, "-P", "-m", "nearfar.benchmark", json.dumps(dict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Failed(f"ended by signal {-done.returncode} (9 is often a lack of memory)")
    if done.returncode:
        raise Failed(next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message"))
    return json.loads(done.stdout.strip().splitlines()[-1])
