"""Blocks of candidates that travel from process to process, so that none ever holds them all.

In every hop a process works on one block, sends it to the next process and receives another. Forward, what a hop finds
is merged into running results. Backward the blocks travel again with their gradients, which arrive home complete.

Legend: B anchors of this process, N rows of a block, D embedding, W processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from nearfar import distributed
from nearfar._passes import recompute
from nearfar._sigmoid import walk
from nearfar._similarity import log_sum_exp
from nearfar._tiles import MINUS_INF, Mask, Share, block, edge, no_autocast
from nearfar.tiled import first_derivative_only
from nearfar.tiled import log_sum_exp as product_log_sum_exp


@runtime_checkable
class Pairs(Protocol):
    """What a block adds to each anchor's result, and the gradient of it once the results are known."""

    both: bool
    """whether candidates have a result too, which travels with their block"""

    def forward(self, a: Tensor, c: Tensor, source: int) -> tuple[Tensor, Tensor | None]:
        """Results [B] of the anchors and [N] of the block, over the block alone."""
        ...

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        """The result over two blocks from those over each."""
        ...

    def backward(
        self, a: Tensor, c: Tensor, source: int, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of a and of the block, from (result, its gradient) of the rows, and of the columns."""
        ...


@dataclass(frozen=True)
class LogSums:
    """log sum exp(a . c); `masks[source]` says which pairs of a block exist."""

    masks: tuple[Mask, ...]
    both: bool = False
    bounded: bool = False
    tile: int | None = None

    def forward(self, a: Tensor, c: Tensor, source: int) -> tuple[Tensor, Tensor | None]:
        if c.shape[0] == 0 or a.shape[0] == 0:
            empty = c.new_full((c.shape[0],), MINUS_INF)
            return a.new_full((a.shape[0],), MINUS_INF), empty if self.both else None
        return product_log_sum_exp(a, c, self.masks[source], both=self.both, bounded=self.bounded, tile=self.tile)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return log_sum_exp(torch.stack([x, y]), 0)

    def backward(
        self, a: Tensor, c: Tensor, source: int, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        shares = Share(*rows, self.bounded), None if columns is None else Share(*columns, self.bounded)
        size = block(a, self.tile)
        grads = recompute(a, c, self.masks[source], size, shares, (True, True))
        assert grads[0] is not None
        assert grads[1] is not None
        return grads[0], grads[1]


@dataclass(frozen=True)
class Softplus:
    """sum log(1 + exp(a . c))."""

    masks: tuple[Mask, ...]
    tile: int | None = None
    both: bool = False

    def forward(self, a: Tensor, c: Tensor, source: int) -> tuple[Tensor, Tensor | None]:
        result = a.new_zeros(a.shape[0])
        walk(a, c, self.masks[source], self.tile or edge(a.device), result, None, None, None)
        return result, None

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def backward(
        self, a: Tensor, c: Tensor, source: int, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        grad_a, grad_c, weight = torch.zeros_like(a), torch.zeros_like(c), rows[1]
        walk(a, c, self.masks[source], self.tile or edge(a.device), None, weight, grad_a, grad_c)
        return grad_a * weight.unsqueeze(1), grad_c


@dataclass(frozen=True)
class ClassSums:
    """sum of a . c over the candidates of an anchor's class, by the sum of each class."""

    anchor_ids: Tensor
    """[B], from 0 on"""
    block_ids: tuple[Tensor, ...]
    """[N] of every block"""
    num: int
    both: bool = False

    def forward(self, a: Tensor, c: Tensor, source: int) -> tuple[Tensor, Tensor | None]:
        return (a * self._sums(c, self.block_ids[source]).index_select(0, self.anchor_ids)).sum(1), None

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def backward(
        self, a: Tensor, c: Tensor, source: int, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        grad, ids = rows[1].unsqueeze(1), self.block_ids[source]
        grad_a = self._sums(c, ids).index_select(0, self.anchor_ids) * grad
        return grad_a, self._sums(a * grad, self.anchor_ids).index_select(0, ids)

    def _sums(self, x: Tensor, ids: Tensor) -> Tensor:
        return x.new_zeros(self.num, x.shape[1]).index_add_(0, ids, x)


def around(pairs: Pairs, a_BD: Tensor, c_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """Results of this process's anchors over the candidates of all, and of its candidates over all anchors.

    Args:
        pairs: what to compute; the same on every process.
        a_BD: anchors of this process [B, D].
        c_ND: candidates of this process [N, D]; N may differ between processes and be 0.

    Returns:
        [B], and [N] or None.

    Notes:
        Memory O((B + largest N) D + tile). Blocks travel W - 1 times forward, and W times with their gradients
        backward; sending overlaps with computing. A collective, in the backward too.
    """
    every = distributed.gather(torch.tensor([c_ND.shape[0]]), grad=False).tolist()
    rows, columns = _Around.apply(a_BD, c_ND, pairs, every)
    return rows, columns if pairs.both else None


class _Around(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, pairs: Pairs, sizes: list[int]) -> tuple[Tensor, Tensor]:
        world, rank = distributed.world(), distributed.rank()
        block, rows, columns = c, None, None
        for hop in range(world):
            source = (rank - hop) % world
            coming = _pass_on([block], sizes[(source - 1) % world]) if hop < world - 1 else None
            found, of_block = pairs.forward(a, block, source)
            rows = found if rows is None else pairs.merge(rows, found)
            if of_block is not None:  # the block's own results go along, and reach home after the last hop
                columns = of_block if columns is None else pairs.merge(columns, of_block)
                (columns,) = _pass_on([columns], sizes[(source - 1) % world]).get()
            if coming is not None:
                (block,) = coming.get()
        assert rows is not None
        columns = rows.new_zeros(0) if columns is None else columns
        ctx.save_for_backward(a, c, rows, columns)
        ctx.options = (pairs, sizes)
        return rows, columns

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        a, c, rows, columns = ctx.saved_tensors
        pairs, sizes = ctx.options
        world, rank = distributed.world(), distributed.rank()
        block, side = c, ([columns, grad_columns] if pairs.both else [])
        grad_a, grad_block = torch.zeros_like(a), torch.zeros_like(c)
        with no_autocast(a.device):
            for hop in range(world):
                source = (rank - hop) % world
                before = sizes[(source - 1) % world]
                coming = _pass_on([block, *side], before) if hop < world - 1 else None
                shares = (side[0], side[1]) if pairs.both else None
                if a.shape[0] and block.shape[0]:
                    more_a, more_block = pairs.backward(a, block, source, (rows, grad_rows), shares)
                    grad_a += more_a
                    grad_block += more_block
                (grad_block,) = _pass_on([grad_block], before).get()
                if coming is not None:
                    block, *side = coming.get()
        return grad_a, grad_block, None, None


class _Coming:
    """Tensors on their way: sends and receives that still run."""

    def __init__(self, works: list[Any], received: list[Tensor], like: list[Tensor], sent: list[Tensor]) -> None:
        self._works, self._received, self._like, self._sent = works, received, like, sent

    def get(self) -> list[Tensor]:
        for work in self._works:
            work.wait()
        return [x.to(y.device) for x, y in zip(self._received, self._like, strict=True)]


def _pass_on(tensors: list[Tensor], num_rows: int) -> _Coming:
    """Sends tensors to the next process and receives as many, of `num_rows` rows, from the one before."""
    world, rank = distributed.world(), distributed.rank()
    if world == 1:
        return _Coming([], tensors, tensors, [])
    sent = [x.detach().to(distributed.device_of(x)).contiguous() for x in tensors]
    received = [x.new_empty(num_rows, *x.shape[1:]) for x in sent]
    operations = [
        dist.P2POp(send, x, peer)
        for x, y in zip(sent, received, strict=True)
        for send, x, peer in ((dist.isend, x, (rank + 1) % world), (dist.irecv, y, (rank - 1) % world))
        if x.numel()
    ]
    return _Coming(dist.batch_isend_irecv(operations) if operations else [], received, tensors, sent)
