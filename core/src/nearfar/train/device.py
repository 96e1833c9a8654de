"""The Accelerator of a run: device, precision, process group."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from nearfar.checks import expect
from nearfar.config import TrainerConfig


def accelerator(config: TrainerConfig) -> Accelerator:
    """An Accelerator for one run; whoever opens the process group closes it at the end of the program."""
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    expect(
        config.precision != "fp16" or not cpu, "trainer.precision", "'no' or 'bf16' on a CPU", config.precision
    )  # fmt: skip
    for plugin in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        name = f"ACCELERATE_USE_{plugin}"
        expect(
            os.environ.get(name, "false").lower() != "true",
            "accelerate launch", "no plugin that shards; trainer.parallel 'fsdp' does", f"{name}={os.environ.get(name)}"
        )  # fmt: skip
    if AcceleratorState._shared_state:  # a former run of this process may have used another precision
        AcceleratorState._reset_state()
    ours = not torch.distributed.is_initialized()
    options: dict[str, Any] = {}
    if config.trackers:
        options = {"log_with": list(config.trackers), "project_dir": str(Path(config.output or "runs"))}
    made = Accelerator(
        cpu=cpu,
        mixed_precision=config.precision,
        **options,
    )
    if ours and torch.distributed.is_initialized():  # whoever opened the process group closes it, at the end
        atexit.register(_close)
    return made


def _close() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
