"""The frame of a subject, and the comparison that comes before any timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

VALUE, GRADIENT = 1e-4, 1e-3  # allowed difference: of a value, over it; of a gradient, over its largest entry


class Disagreement(ArithmeticError):
    """Two libraries do not compute the same, so that timing them would compare nothing."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A piece of work.

    Attributes:
        steps: library -> one step.
        compare: how far the results lie apart; raises Disagreement where that is too far.
        operands_mb: what `extra` leaves out: gradients and one copy of each input. The inputs are there before.
        floor: what the time is measured against, by name; called only when times are taken.
    """

    steps: dict[str, Callable[[], Any]]
    compare: Callable[[], dict[str, float]]
    operands_mb: float = 0.0
    floor: Callable[[], dict[str, Callable[[], Any]]] = field(default=dict)


def expect_close(what: str, difference: float, allowed: float) -> None:
    """Raises Disagreement unless the difference is a number and small enough."""
    if not difference <= allowed:
        raise Disagreement(f"{what} differs by {difference:.2g}, allowed are {allowed:.2g}; nothing was timed")
