"""Functions that torch.compile leaves as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Marks a function that a compiled model calls without tracing it: argument checks and tiles are Python.

    As `torch.compiler.disable`, which however loads the compiler at once, a second and a half for everybody who never
    compiles.
    """
    kept: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if not kept:
                kept.append(torch.compiler.disable(function))
            return kept[0](*args, **kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]
