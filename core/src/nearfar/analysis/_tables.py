"""Finite worlds: checked laws, tables of two variables, and expectations over every combination of draws.

Legend: B combinations in a chunk, n1 and n2 states of a table's rows and columns. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.checks import expect

TOLERANCE = 1e-8
CHUNK = 1 << 18


@dataclass(frozen=True)
class Estimate:
    """An expectation.

    Args:
        value: of all combinations, or the mean of draws.
        error: standard error of the draws; 0 where every combination was visited.
        exact: whether it was.
    """

    value: float
    error: float
    exact: bool


def law(name: str, p: Tensor) -> Tensor:
    """Probabilities [n] as float64, summing to 1 exactly."""
    expect(p.ndim == 1 and len(p) > 0, name, "shape [n]", tuple(p.shape))
    return _normalised(name, p)


def joint(name: str, table: Tensor) -> Tensor:
    """A joint law [n1, n2] of two variables as float64, summing to 1 exactly."""
    expect(table.ndim == 2 and table.numel() > 0, name, "shape [n1, n2]", tuple(table.shape))
    return _normalised(name, table)


def _normalised(name: str, p: Tensor) -> Tensor:
    p = p.detach().cpu().double()
    expect(bool(p.isfinite().all()) and bool((p >= 0).all()), name, "finite numbers of 0 or more", float(p.min()))
    total = float(p.sum())
    expect(abs(total - 1) <= TOLERANCE, name, f"numbers that sum to 1 within {TOLERANCE:g}", total)
    return p / total


def codes(name: str, ids: Tensor, num_states: int) -> Tensor:
    """Integer codes [n1] of the states, renumbered from 0."""
    expect(not (ids.is_floating_point() or ids.is_complex()), name, "integer codes", ids.dtype, TypeError)
    expect(ids.shape == (num_states,), name, f"shape ({num_states},), one code a row of the table", tuple(ids.shape))
    return ids.detach().cpu().unique(return_inverse=True)[1]


def merge(table: Tensor, ids: Tensor) -> Tensor:
    """The joint law of (code of the row, column): rows of equal code added up."""
    return table.new_zeros(int(ids.max()) + 1, table.shape[1]).index_add_(0, ids, table)


def independent(table: Tensor) -> Tensor:
    """p(row) p(column), what the table would be if its variables knew nothing of each other."""
    return table.sum(1, keepdim=True) * table.sum(0, keepdim=True)


def ratio(table: Tensor) -> Tensor:
    """p(row, column) / (p(row) p(column)); 1 where that has no meaning and no mass."""
    apart = independent(table)
    return torch.where(apart > 0, table / apart.where(apart > 0, torch.ones_like(apart)), 1.0)


def num_combinations(sizes: Sequence[int]) -> int:
    """How many combinations independent draws of such sizes have."""
    return math.prod(sizes)


def expectation(value: Callable[..., Tensor], laws: Sequence[Tensor]) -> Tensor:
    """Expectation over independent draws from finite laws, by visiting every combination of positive probability.

    E[g] = sum over (i_1 ... i_J) of p_1(i_1) ... p_J(i_J) g(i_1 ... i_J)

    Args:
        value: g, from J index tensors [B] to [B] or [B, M].
        laws: p_j [n_j], float64.

    Returns:
        [] or [M].

    Notes:
        Time grows with the product of the n_j; memory with a chunk of 262,144 combinations.
    """
    total: Tensor | float = 0.0
    num = num_combinations([len(p) for p in laws])
    for start in range(0, num, CHUNK):
        rest = torch.arange(start, min(start + CHUNK, num))
        index: list[Tensor] = []
        for p in reversed(laws):
            index.append(rest % len(p))
            rest = rest // len(p)
        index.reverse()
        weight = torch.ones((), dtype=torch.float64)
        for p, i in zip(laws, index, strict=True):
            weight = weight * p[i]
        kept = weight > 0
        if not bool(kept.all()):
            weight, index = weight[kept], [i[kept] for i in index]
        if len(weight):
            found = value(*index).double()
            total = total + weight @ found
    return torch.as_tensor(total)


def mean_of(values: Tensor) -> Estimate:
    """The mean of independent draws [B] with its standard error."""
    return Estimate(float(values.mean()), float(values.std(correction=1)) / math.sqrt(len(values)), False)
