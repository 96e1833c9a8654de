"""Settings of every test."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of error messages see nearfar's own errors, not those of the shape checker that the suite runs under."""
    function = getattr(request, "function", None)
    raises = function is not None and "pytest.raises" in inspect.getsource(function)
    config.update("jaxtyping_disable", raises)
    yield
    config.update("jaxtyping_disable", False)
