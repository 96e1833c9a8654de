"""Work that tests run in a process of its own, to be killed, signalled or compared."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
from nearfar.data import Data
from nearfar.train import Run, Trainer
from toys import Toy, Vectors

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["nearfar.train", "toys", "jobs"])


def start(function: Callable[..., Any], *args: Any) -> Any:
    """A fresh process that calls a function."""
    process = _context.Process(target=function, args=args)
    process.start()
    return process


def run(function: Callable[..., Any], *args: Any, timeout: float = 120) -> int:
    """Exit code of a function called in a fresh process; negative: the signal that ended it."""
    process = start(function, *args)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} ran longer than {timeout} s")
    return process.exitcode


def kill(function: Callable[..., Any], *args: Any, when: Callable[[], bool], timeout: float = 120) -> None:
    """Calls a function in a fresh process and kills that from outside (SIGKILL) as soon as `when()` holds."""
    process = start(function, *args)
    until = time.monotonic() + timeout
    try:
        while not when():
            if process.exitcode is not None:
                raise AssertionError(f"{function.__name__} ended with {process.exitcode} before it could be killed")
            if time.monotonic() > until:
                raise TimeoutError(f"{function.__name__}: not to be killed within {timeout} s")
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"{function.__name__} was faster than its killer"


def rows(output: Path) -> int:
    """Rows that a run has logged so far."""
    place = output / "metrics.jsonl"
    return place.read_bytes().count(b"\n") if place.exists() else 0


def train_toy(
    output: str,
    resume: bool = False,
    kill_at: int = 0,
    signum: int = 0,
    workers: int = 0,
    checkpoint_every: int = 0,
    changes: dict[str, Any] | None = None,
) -> Run:
    """Three epochs of five steps, with dropout, a buffer that follows the embedding, and scores each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    if workers:  # this process was forked before it had threads, so its loaders may fork too, which is fast
        multiprocessing.set_start_method("fork", force=True)
    method = Toy(dropout=0.3, centre=True)

    def callback(trainer: Trainer, row: dict[str, Any]) -> None:
        if kill_at and trainer.step == kill_at:
            os.kill(os.getpid(), signum or signal.SIGKILL)

    options: dict[str, Any] = {
        "epochs": 3, "batch_size": 8, "log_every": 1, "evaluate_every": 1, "checkpoint_every": checkpoint_every,
        "output": output, "progress": False, "device": "cpu",
    } | (changes or {})  # fmt: skip
    trainer = Trainer(
        method,
        Data(train=Vectors(40), test=Vectors(15, seed=3)),
        TrainerConfig(**options),
        optimiser=OptimiserConfig(lr=0.01, warmup_epochs=1),
        evaluate=EvaluateConfig(num_neighbours=3, per_class=2, few_label_draws=2),
        workers=workers,
        callbacks=[callback],
    )
    return trainer.fit(resume=resume)


def result(output: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """What must repeat to the bit: the last model's file, the metrics, the scores."""
    run = Run(output)
    return (
        (run.checkpoint("last") / "model.safetensors").read_bytes(),
        (output / "metrics.jsonl").read_bytes(),
        run.scores,
    )
