"""The largest tensor that a computation makes, to tell that no matrix of all pairs is among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return out


def largest(run: Callable[[], object]) -> int:
    """Entries of the largest tensor made by `run`."""
    with _Largest() as mode:
        run()
    return mode.entries
