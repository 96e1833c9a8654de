"""Expectations over finite worlds, against loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.analysis import _tables

F64 = torch.float64


def law(num: int, seed: int) -> Tensor:
    p = torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return p / p.sum()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_expectation_is_that_of_loops(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(_tables, "CHUNK", chunk)
    laws = [law(3, 0), law(4, 1), law(2, 2)]
    found = _tables.expectation(lambda i, j, k: torch.stack([(i + 2 * j) ** k, 1.0 * i * j], 1), laws)
    expected = [0.0, 0.0]
    for i, j, k in itertools.product(range(3), range(4), range(2)):
        weight = float(laws[0][i] * laws[1][j] * laws[2][k])
        expected[0] += weight * (i + 2 * j) ** k
        expected[1] += weight * i * j
    assert found.tolist() == pytest.approx(expected)


def test_what_has_no_mass_is_not_visited() -> None:
    p = torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    assert float(_tables.expectation(lambda i: torch.where(i == 1, math.inf, 1.0 * i), [p])) == 1.0


def test_mean_of_draws() -> None:
    found = _tables.mean_of(torch.tensor([1.0, 2.0, 3.0]))
    assert (found.value, found.error, found.exact) == (2.0, pytest.approx(1 / math.sqrt(3)), False)


def test_tables() -> None:
    t = torch.tensor([[0.1, 0.0, 0.2], [0.3, 0.0, 0.4]], dtype=F64)
    ids = _tables.codes("ids", torch.tensor([7, 7]), 2)
    assert _tables.merge(t, ids).tolist() == [pytest.approx([0.4, 0.0, 0.6])]
    assert _tables.ratio(t)[:, 1].tolist() == [1.0, 1.0]  # a column that never occurs
    assert float(_tables.ratio(t)[0, 0]) == pytest.approx(0.1 / (0.3 * 0.4))
    assert float(_tables.joint("t", t * (1 + 1e-9)).sum()) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("function", "arguments", "match"),
    [
        (_tables.law, ("p", torch.ones(2, 2) / 4), r"p: expected shape \[n\]"),
        (_tables.law, ("p", torch.tensor([0.5, 0.4])), "p: expected numbers that sum to 1 within 1e-08"),
        (_tables.joint, ("t", torch.ones(4) / 4), r"t: expected shape \[n1, n2\]"),
        (_tables.joint, ("t", torch.tensor([[1.5, -0.5]])), "t: expected finite numbers of 0 or more"),
        (_tables.joint, ("t", torch.tensor([[math.nan, 1.0]])), "t: expected finite numbers of 0 or more"),
        (_tables.codes, ("ids", torch.zeros(3, dtype=torch.long), 2), r"ids: expected shape \(2,\)"),
    ],
)
def test_refuses(function: Any, arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        function(*arguments)
