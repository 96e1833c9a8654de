"""What a person sees while a run trains: loss, rate, time left, live geometry, and a warning in plain words."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A progress bar on a terminal, a line now and then elsewhere, nothing when switched off.

    Args:
        steps: of the whole run.
        done: steps a resumed run begins with.
        show: False is silent but for messages.
    """

    interval = 15.0  # seconds between lines where there is no terminal

    def __init__(self, steps: int, done: int = 0, *, show: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.steps, self.step, self.show = steps, done, show
        self.live = show and sys.stderr.isatty()
        self._last, self._start, self._first = time.monotonic(), time.monotonic(), done
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, text="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, text: str = "") -> None:
        """One step further; `text` replaces the figures shown."""
        self.step += 1
        if self.live:
            self._bar.update(self._task, advance=1, **({"text": text} if text else {}))
            return
        now = time.monotonic()
        if self.show and text and (now - self._last >= self.interval or self.step == self.steps):
            rate = (self.step - self._first) / max(now - self._start, 1e-9)
            left = (self.steps - self.step) / max(rate, 1e-9)
            self.console.print(f"step {self.step}/{self.steps}  {text}  {rate:.1f} steps/s  {left:.0f} s left")
            self._last = now

    def say(self, message: str) -> None:
        """A message above the bar, also when the bar is off."""
        self.console.print(message)


def figures(row: dict[str, float]) -> str:
    """The line beside the bar."""
    words = {
        "loss": "loss",
        "alignment": "align",
        "uniformity": "unif",
        "effective_rank": "rank",
        "dead_dimensions": "dead",
    }
    return "  ".join(f"{word} {row[key]:.3g}" for key, word in words.items() if key in row)
