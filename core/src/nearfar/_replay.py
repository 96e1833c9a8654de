"""What a forward pass depends on besides its input, to run it a second time: random state and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def _device_random() -> Any:
    """The module that holds the accelerator's random state, if this machine has one."""
    return torch.get_device_module() if torch.accelerator.is_available() else None


def random_state() -> tuple[Tensor, Any]:
    device = _device_random()
    if device is None:
        return torch.get_rng_state(), None
    every = getattr(device, "get_rng_state_all", device.get_rng_state)
    return torch.get_rng_state(), every()


def restore_random_state(state: tuple[Tensor, Any]) -> None:
    torch.set_rng_state(state[0])
    device = _device_random()
    if device is not None:
        every = getattr(device, "set_rng_state_all", device.set_rng_state)
        every(state[1])


@contextlib.contextmanager
def same_random_state_after() -> Iterator[None]:
    """Later draws go on from where the first pass and the loss left the random state."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def autocast_state() -> list[tuple[str, bool, torch.dtype]]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextlib.contextmanager
def autocast_again(states: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in states:
            if enabled or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
        yield
