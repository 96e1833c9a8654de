"""SIGTERM and Ctrl-C ask the trainer to save and leave; a second one leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from nearfar import distributed


class Interrupted(SystemExit):
    """Raised after an interrupted run was saved; ends a script with the conventional exit code 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(128 + signum)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Context manager that turns the two signals into a flag the trainer reads between steps."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._handle) for s in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:  # asked twice: no more patience
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    def agreed(self) -> int:
        """The signal that any process received, 0 for none; all processes get the same answer."""
        if distributed.world() == 1:
            return self.signum
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        flags = torch.zeros(65, device=device)
        flags[self.signum] = 1.0
        raised = distributed.reduce_sum(flags)[1:].nonzero()
        return int(raised[0]) + 1 if len(raised) else 0
