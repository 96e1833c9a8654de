"""What this machine has, and whether nearfar works on it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, cast

from rich.markup import escape

from nearfar import plugin
from nearfar.terminal import console, print_json, table

OPTIONAL = ("torchvision", "timm", "tensorboard", "onnx", "onnxruntime", "onnxscript")
GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """One thing looked at: `ok`, a `note` worth reading, or `broken`, with what to do about it."""

    group: str
    name: str
    value: str
    status: Literal["ok", "note", "broken"] = "ok"
    advice: str = ""


def examine() -> list[Check]:
    """Looks at everything; a look that fails is a broken check, never an exception."""
    looks: list[Callable[[], list[Check]]] = [packages, devices, room, plugins, sums]
    found = []
    for look in looks:
        try:
            found += look()
        except Exception as error:
            advice = "reinstall nearfar and torch; if that does not help, report this line"
            found.append(Check(look.__name__, look.__name__, f"{type(error).__name__}: {error}", "broken", advice))
    return found


def packages() -> list[Check]:
    """Python, and what nearfar needs and can use."""
    ok = sys.version_info >= (3, 11)
    checks = [
        Check(
            "packages", "python", platform.python_version(), "ok" if ok else "broken", "" if ok else "use 3.11 or newer"
        )
    ]
    for line in requires("nearfar") or []:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line)
        if match:
            checks.append(_required(*match.groups()))
    for name in OPTIONAL:
        try:
            checks.append(Check("packages", name, version(name)))
        except PackageNotFoundError:
            checks.append(Check("packages", name, "not installed (optional)"))
    return checks


def _required(name: str, least: str) -> Check:
    fix = f"pip install '{name}>={least}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check("packages", name, "not installed", "broken", fix)
    if _numbers(found) < _numbers(least):
        return Check("packages", name, f"{found}, older than {least}", "broken", fix)
    return Check("packages", name, found)


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.14.1+cpu -> (2, 14, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", text)[0]))


def devices() -> list[Check]:
    """Processors, threads and accelerators as torch sees them."""
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    slow = threads < len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else False
    advice = "OMP_NUM_THREADS or torch.set_num_threads holds torch below the cores it may use" if slow else ""
    checks = [
        Check("devices", "cpu", f"{platform.processor() or platform.machine()}, {cores} cores"),
        Check("devices", "threads", str(threads), "note" if slow else "ok", advice),
    ]
    for k in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(k)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        checks.append(Check("devices", f"cuda:{k}", f"{card.name}, {card.total_memory / GIB:.0f} GiB, {bf16}"))
    built = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available() and built:
        text = f"torch is built for CUDA {built} and finds no device"
        checks.append(Check("devices", "cuda", text, "note", "runs go to the CPU; with a GPU, look at `nvidia-smi`"))
    elif not torch.cuda.is_available():
        checks.append(Check("devices", "cuda", "none; torch is built without it"))
    if torch.backends.mps.is_available():
        checks.append(Check("devices", "mps", "available"))
    dist = torch.distributed
    backends = [b for b in ("gloo", "nccl") if dist.is_available() and dist.is_backend_available(b)]
    checks.append(Check("devices", "distributed", ", ".join(backends) or "none"))
    return checks


def room() -> list[Check]:
    """Memory, disk, and a cache that can be written."""
    checks = []
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.is_file() else "max"
        memory = memory if text == "max" else min(memory, int(text))
        tight = memory < 4 * GIB
        checks.append(
            Check(
                "room",
                "memory",
                f"{memory / GIB:.1f} GiB",
                "note" if tight else "ok",
                "lower --data.memory-gb" if tight else "",
            )
        )
    free = shutil.disk_usage(Path.cwd()).free
    tight = free < 2 * GIB
    advice = "runs and checkpoints are written here; make room or set --trainer.output" if tight else ""
    checks.append(
        Check("room", "disk", f"{free / GIB:.1f} GiB free in {Path.cwd()}", "note" if tight else "ok", advice)
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nearfar"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            checks.append(Check("room", "cache", str(cache)))
    except OSError as error:
        advice = "set XDG_CACHE_HOME or --data.cache to a folder you may write"
        checks.append(Check("room", "cache", f"{cache}: {error.strerror}", "broken", advice))
    return checks


def plugins() -> list[Check]:
    """Whether each installed plugin, its systems and its commands import."""
    checks = []
    for name in plugin.installed():
        try:
            found = plugin.load(name)
            cards = found.cards()
            for spec in found.commands.values():
                importlib.import_module(spec.partition(":")[0])
        except Exception as error:
            advice = f"reinstall it: {plugin.INSTALL.get(name, 'see its documentation')}"
            checks.append(Check("plugins", name, f"{type(error).__name__}: {error}", "broken", advice))
        else:
            checks.append(Check("plugins", name, f"{len(cards)} systems, {len(found.commands)} commands"))
    if not checks:
        checks.append(Check("plugins", "none", "no plugin is installed", "note", plugin.INSTALL["images"]))
    return checks


def sums() -> list[Check]:
    """A small contrast, forward and backward, against the same sum through cross entropy."""
    import torch
    from torch.nn import functional

    from nearfar.contrast import contrast

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=rng).requires_grad_()
    y = torch.randn(8, 4, generator=rng)
    rows = torch.arange(8)
    loss = cast("torch.Tensor", contrast(x, y, targets=rows, temperature=0.5))
    (gradient,) = torch.autograd.grad(loss, x)
    same = functional.cross_entropy(functional.normalize(x) @ functional.normalize(y).T / 0.5, rows)
    (expected,) = torch.autograd.grad(same, x)
    gap = max(float((loss - same).abs().detach()), float((gradient - expected).abs().max()))
    text = f"differs from cross entropy by {gap:.1e}"
    if gap < 1e-5:
        return [Check("sums", "contrast", text)]
    return [Check("sums", "contrast", text, "broken", "reinstall torch and nearfar")]


def show(checks: list[Check], *, as_json: bool = False) -> int:
    """Prints the checks as tables or JSON; returns 1 when one is broken, else 0."""
    broken = [check for check in checks if check.status == "broken"]
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
        return 1 if broken else 0
    out = console()
    mark = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}
    for group in dict.fromkeys(check.group for check in checks):
        rows = table(group, "", "")
        for check in checks:
            if check.group == group:
                text = escape(check.value) + (f"\n[dim]{escape(check.advice)}[/]" if check.advice else "")
                rows.add_row(check.name, mark[check.status], text)
        out.print(rows)
        out.print()
    names = ", ".join(check.name for check in broken)
    out.print(f"[red]Broken: {escape(names)}[/]" if broken else "[green]All that is essential works.[/]")
    return 1 if broken else 0
