"""What configs of several modules check."""

from __future__ import annotations

from nearfar.checks import expect


def fraction(name: str, value: float) -> None:
    expect(0.0 <= value <= 1.0, name, "a number in [0, 1]", value)


def ordered(name: str, value: tuple[float, float], low: float = 0.0) -> None:
    expect(low <= value[0] <= value[1], name, f"two numbers, {low} <= low <= high", value)
