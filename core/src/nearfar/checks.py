"""One wording for every complaint about user input: argument, expected, received."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def expect(
    condition: bool, argument: str, expected: str, received: object, error: type[Exception] = ValueError
) -> None:
    """Raises `error` with "argument: expected ..., received ..." unless the condition holds."""
    if not condition:
        raise error(f"{argument}: expected {expected}, received {received}")


def expect_choice(argument: str, received: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `received` is one of `choices`; names the nearest one."""
    known = list(choices)
    if received in known:
        return
    near = difflib.get_close_matches(str(received), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}: expected one of {', '.join(map(repr, known))}, received {received!r}{hint}")


def expect_positive(argument: str, received: float) -> None:
    """Raises ValueError unless `received` is a finite number above zero."""
    expect(math.isfinite(received) and received > 0, argument, "a finite number > 0", received)
