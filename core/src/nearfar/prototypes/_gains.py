"""Similarities of rows, stored or made when asked for, and greedy choices by the gains of objectives over them.

Legend: N rows, b candidates.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar.prototypes._rows import TILE

STORED = 1 << 24
"""similarities that are stored (64 MB in fp32); beyond that those of a candidate are computed when asked for"""


class Similarities:
    """s_ij as one row [N] for every candidate j, contiguous; stored, or made from rows of features."""

    def __init__(self, matrix: Tensor | None, rows: Tensor | None, threshold: float) -> None:
        self.matrix, self.rows, self.threshold = matrix, rows, threshold
        self.num = len(matrix if matrix is not None else rows)  # type: ignore[arg-type]

    @classmethod
    def of(cls, rows: Tensor, threshold: float) -> Similarities:
        made = cls(None, rows, threshold)
        if len(rows) ** 2 > STORED:
            return made
        return cls(made.to(torch.arange(len(rows), device=rows.device)), None, threshold)

    @classmethod
    def stored(cls, matrix: Tensor, threshold: float) -> Similarities:
        wide = accumulation(matrix)
        return cls(_cut_off(matrix.T.to(wide, copy=True).contiguous(), threshold), None, threshold)

    def to(self, index: Tensor) -> Tensor:
        """Similarities of all rows to the candidates [b, N]."""
        if self.matrix is not None:
            return self.matrix[index]
        assert self.rows is not None  # one of the two
        return _cut_off(self.rows[index] @ self.rows.T, self.threshold)

    def sums(self) -> Tensor:
        """Sum over all rows for every candidate, in float64 [N]."""
        if self.matrix is not None:
            return self.matrix.sum(1, dtype=torch.float64)
        assert self.rows is not None  # one of the two
        index = torch.arange(self.num, device=self.rows.device)
        parts = index.split(max(1, TILE // self.num))
        return torch.cat([self.to(part).sum(1, dtype=torch.float64) for part in parts])

    def diagonal(self) -> Tensor:
        """Similarity of every row to itself, in float64 [N]."""
        if self.matrix is not None:
            return self.matrix.diagonal().double()
        assert self.rows is not None  # one of the two
        return _cut_off(self.rows.square().sum(1), self.threshold).double()


def _cut_off(x: Tensor, threshold: float) -> Tensor:
    return x.masked_fill_(x < threshold, 0)


def facility_location(matrix: Similarities, num: int) -> tuple[Tensor, Tensor]:
    """(choice, gains): a gain is how much nearer a candidate is than the nearest of what is chosen.

    A gain costs N operations, so only bounds are kept, and the top of a heap is recomputed until it is up to date.
    """
    start_N = matrix.sums()
    heap = [(-gain, row) for row, gain in enumerate(start_N.tolist())]
    heapq.heapify(heap)
    current = [0] * len(heap)  # how many rows were chosen when a bound was computed
    best_N: Tensor | None = None
    index, gains = [], []
    for turn in range(num):
        several = 1
        while current[heap[0][1]] != turn:
            stale = [heapq.heappop(heap)[1]]
            while heap and len(stale) < several and current[heap[0][1]] != turn:
                stale.append(heapq.heappop(heap)[1])
            several = min(2 * several, 64)
            assert best_N is not None  # a bound is stale only after a first choice
            nearer = (matrix.to(torch.tensor(stale, device=best_N.device)) - best_N).clamp_(min=0)
            for row, gain in zip(stale, nearer.sum(1, dtype=torch.float64).tolist(), strict=True):
                current[row] = turn
                heapq.heappush(heap, (-gain, row))
        gain, row = heapq.heappop(heap)
        index.append(row)
        gains.append(-gain)
        to_N = matrix.to(torch.tensor([row], device=start_N.device))[0]
        best_N = to_N if best_N is None else torch.maximum(best_N, to_N)
    return torch.tensor(index, device=start_N.device), start_N.new_tensor(gains)


def graph_cut(matrix: Similarities, num: int) -> tuple[Tensor, Tensor]:
    """(choice, gains): a gain is the similarity to what is left out, less that to what is chosen.

    One addition a candidate brings every gain up to date, which is cheaper than to ask which bounds still hold.
    """
    gain_N = matrix.sums() - matrix.diagonal()
    index, gains = [], []
    for _ in range(num):
        best = gain_N.argmax(0, keepdim=True)  # the first among equals
        index.append(best)
        gains.append(gain_N[best])
        gain_N.sub_(matrix.to(best)[0], alpha=2).index_fill_(0, best, -torch.inf)
    return torch.cat(index), torch.cat(gains)


def row_sum(matrix: Similarities, num: int) -> tuple[Tensor, Tensor]:
    """(choice, gains): the largest sums."""
    gain, index = matrix.sums().sort(descending=True, stable=True)
    return index[:num], gain[:num]


OBJECTIVES = {"facility_location": facility_location, "graph_cut": graph_cut, "row_sum": row_sum}
