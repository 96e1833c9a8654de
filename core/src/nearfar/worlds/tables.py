"""Draws from tables of probabilities, and combinations to hold out.

Shapes: B draws, S rows of a table, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.rng import Rng
from nearfar.worlds.factors import Factors


def spread_pairs(factors: Factors, of: tuple[str, str], num: int, seed: int = 0) -> list[tuple[str, str]]:
    """Combinations of two factors to hold out, spread so that every value loses about equally many and keeps some.

    Args:
        of: names of two factors.
        num: how many combinations.
        seed: which ones.

    Raises:
        ValueError: so many that a value would never occur.
    """
    first, second = (factors.names[factor] for factor in of)
    limit = len(first) * len(second) - max(len(first), len(second))
    expect(0 <= num <= limit, "num", f"from 0 to {limit}", num)
    turn = Rng(seed).uniform(torch.arange(2), "worlds.pairs", max(len(first), len(second))).argsort(dim=1)
    rows = [int(i) for i in turn[0] if i < len(first)]
    columns = [int(i) for i in turn[1] if i < len(second)]
    # Diagonals of the shuffled grid: one after another they meet each row and column in turn.
    cells = [(i, (i + shift) % len(columns)) for shift in range(len(columns)) for i in range(len(rows))]
    kept_rows, kept_columns = [len(second)] * len(first), [len(first)] * len(second)
    pairs: list[tuple[str, str]] = []
    for i, j in cells:
        if len(pairs) < num and kept_rows[i] > 1 and kept_columns[j] > 1:
            pairs.append((first[rows[i]], second[columns[j]]))
            kept_rows[i] -= 1
            kept_columns[j] -= 1
    expect(len(pairs) == num, "num", f"at most {len(pairs)} combinations", num)
    return pairs


def cumulative(weight: Tensor) -> Tensor:
    """Rising to exactly 1 at the last weight that is not 0."""
    total = weight.cumsum(dim=-1)
    return total / total[..., -1:]


def columns_given(table: Tensor, row: Tensor, u: Tensor) -> Tensor:
    """Column drawn from each row's distribution; one search over all rows laid end to end."""
    alive = table.sum(dim=1) > 0
    rows = torch.arange(len(table), dtype=torch.float64)
    steps = torch.where(alive[:, None], cumulative(table.where(alive[:, None], torch.ones_like(table))), 1.0)
    flat = (steps + rows[:, None]).flatten()
    return torch.searchsorted(flat, row + u, right=True) - row * table.shape[1]


def columns(weight: Tensor, u: Tensor) -> Tensor:
    """Column drawn from each row [B, C] of weights.

    Raises:
        ValueError: a row has no weight left.
    """
    total = weight.cumsum(dim=1)
    expect(bool((total[:, -1] > 0).all()), "joint", "a thing that can still occur", "none, given the others")
    return torch.searchsorted(total / total[:, -1:], u[:, None].contiguous(), right=True)[:, 0]
