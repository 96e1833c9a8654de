"""Products of anchors with rows of a pool that each names by number, without a copy [B, P, D] of those rows.

Legend: B anchors, P rows named by an anchor, M rows of the pool, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar._tiles import spans

ENTRIES = 1 << 22
"""entries of the rows that are copied at a time"""


def indexed_product(a_BD: Tensor, pool_MD: Tensor, index_BP: Tensor) -> Tensor:
    """a_i . pool[index_ip], [B, P]; memory O(B P + M D) and a fixed buffer, forward and backward."""
    return _Indexed.apply(a_BD, pool_MD, index_BP)  # type: ignore[return-value]


class _Indexed(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, pool: Tensor, index: Tensor) -> Tensor:
        out = a.new_empty(index.shape)
        for part in _parts(index, pool):
            out[part] = torch.einsum("bd,bpd->bp", a[part], pool[index[part]])
        ctx.save_for_backward(a, pool, index)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, pool, index = ctx.saved_tensors
        if torch.is_grad_enabled():  # asked for a second derivative: ordinary operations have one
            rows = pool[index]
            grad_pool = torch.zeros_like(pool).index_add(
                0, index.flatten(), (grad.unsqueeze(2) * a.unsqueeze(1)).flatten(0, 1)
            )
            return torch.einsum("bp,bpd->bd", grad, rows), grad_pool, None
        grad_a = torch.empty_like(a) if ctx.needs_input_grad[0] else None
        grad_pool = torch.zeros_like(pool) if ctx.needs_input_grad[1] else None
        for part in _parts(index, pool):
            if grad_a is not None:
                grad_a[part] = torch.einsum("bp,bpd->bd", grad[part], pool[index[part]])
            if grad_pool is not None:
                each = grad[part].unsqueeze(2) * a[part].unsqueeze(1)
                grad_pool.index_add_(0, index[part].flatten(), each.flatten(0, 1))
        return grad_a, grad_pool, None


def _parts(index: Tensor, pool: Tensor) -> list[slice]:
    rows = max(1, ENTRIES // max(1, index.shape[1] * pool.shape[1]))
    return [slice(*span) for span in spans(index.shape[0], rows)]
