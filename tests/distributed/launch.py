"""Runs a function of a test file in several gloo processes on this machine.

    from distributed.launch import launch
    results = launch(function, 2, tensor, 3, timeout=120)      # [function(tensor, 3) on process 0, on process 1]

The function stands at the top level of its file and imports what it needs there; it runs with the process group made
and with the variables that torchrun sets, so that Accelerate joins the same group. Arguments and results travel through
files that load with weights_only: tensors, numbers, strings, and lists, tuples or dicts of them. Warnings are errors in
the function, as in the tests.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def launch(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120) -> list[Any]:
    """What `function(*args)` returns on each of `world` processes, by rank.

    Raises:
        RuntimeError: a process failed; the message holds what each failed process wrote.
        TimeoutError: not done within `timeout` seconds; every process has been ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(args, Path(folder, "args.pt"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(world):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            if sys.platform == "linux":
                environment["GLOO_SOCKET_IFNAME"] = "lo"  # no name service needed
            command = [sys.executable, __file__, folder, inspect.getfile(function), function.__qualname__]
            with Path(folder, f"log-{rank}").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        try:
            _wait(processes, folder, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [torch.load(Path(folder, f"result-{rank}.pt"), weights_only=True) for rank in range(world)]


def _wait(processes: list[subprocess.Popen], folder: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        failed = [rank for rank, code in enumerate(codes) if code]
        late = time.monotonic() > end
        if failed or late:
            # one failure makes the others wait for ever; a moment for them to say why they failed
            if failed:
                time.sleep(0.5)
            logs = [f"process {rank}:\n{Path(folder, f'log-{rank}').read_text()}" for rank in range(len(processes))]
            if failed:
                raise RuntimeError("\n".join(logs))
            raise TimeoutError(f"not done within {timeout} s\n" + "\n".join(logs))
        time.sleep(0.02)


def _main(folder: str, file: str, name: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    spec = importlib.util.spec_from_file_location("launched", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["launched"] = module
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    args = torch.load(Path(folder, "args.pt"), weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = getattr(module, name)(*args)
    torch.save(result, Path(folder, f"result-{rank}.pt"))
    dist.barrier()  # the last one out takes the store with it
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's name is no package of its own, and its files would hide others
    _main(*sys.argv[1:])
