"""Sums of softplus over a product of two matrices that is never stored: the pairwise sigmoid family.

No pair needs another's sum, so tiles are independent: each one's gradient is made while its logits are at hand.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar._compile import eager
from nearfar._tiles import Buffer, Mask, edge, no_autocast, spans
from nearfar.tiled import common_factor, first_derivative_only, tile_


@eager
def softplus_sum(
    a_BD: Tensor, c_ND: Tensor, mask: Mask, *, weight_B: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """sum_j log(1 + exp(a_i . c_j)) over the pairs that a mask leaves.

    Args:
        a_BD: anchors [B, D].
        c_ND: candidates [N, D].
        mask: pairs left out.
        weight_B: expected gradient of the result up to a factor; when it comes true the candidates' gradient, made in
            the forward pass, is used as it is, else the tiles are computed again.
        tile: side of a tile; None chooses.

    Returns:
        [B].

    Notes:
        6 B N D FLOP when `weight_B` comes true or candidates need no gradient, else 8; memory O((B + N) D + tile).
    """
    return _SoftplusSum.apply(a_BD, c_ND, mask, tile or edge(a_BD.device), weight_B)  # type: ignore[return-value]


class _SoftplusSum(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, mask: Mask, size: int, weight: Tensor | None) -> Tensor:
        need_a, need_c = ctx.needs_input_grad[:2]
        result = a.new_zeros(a.shape[0])
        grad_a = torch.zeros_like(a) if need_a else None
        grad_c = torch.zeros_like(c) if need_c and weight is not None else None
        walk(a, c, mask, size, result, weight, grad_a, grad_c)
        ctx.save_for_backward(a, c, grad_a, grad_c, weight)
        ctx.options = (mask, size)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, c, each_a, whole_c, weight = ctx.saved_tensors
        mask, size = ctx.options
        grad_a = None if each_a is None else each_a * grad.unsqueeze(1)
        grad_c = None
        if ctx.needs_input_grad[1]:
            factor = None if whole_c is None else common_factor(grad, weight)
            if whole_c is not None and factor is not None:
                grad_c = whole_c * factor
            else:
                grad_c = torch.zeros_like(c)
                with no_autocast(a.device):
                    walk(a, c, mask, size, None, grad, None, grad_c)
        return grad_a, grad_c, None, None, None


def walk(
    a: Tensor, c: Tensor, mask: Mask, size: int, result: Tensor | None, weight: Tensor | None,
    grad_a: Tensor | None, grad_c: Tensor | None,
) -> None:  # fmt: skip
    """Adds every tile to the sums [B], to the gradient of each anchor's own sum, and to the weighted one of c."""
    entries = min(size, a.shape[0]) * min(size, c.shape[0])
    buffer = Buffer(entries, a)
    scratch = Buffer(entries, a) if result is not None else None
    for rows in spans(a.shape[0], size):
        part = slice(*rows)
        weighted = None if grad_c is None else a[part] * weight[part].unsqueeze(1)  # type: ignore[index]
        for columns in spans(c.shape[0], size):
            logits = tile_(a, c, rows, columns, mask, (size, size), buffer)
            if logits is None:
                continue
            if result is not None and scratch is not None:
                out = scratch.view(*logits.shape)
                # -inf + softplus of a left-out pair is 0, as it should
                result[part] += torch.ops.aten.softplus.out(logits, 1, 40, out=out).sum(1)
            if grad_a is None and weighted is None:
                continue
            share = logits.sigmoid_()
            if grad_a is not None:
                grad_a[part].addmm_(share, c[slice(*columns)])
            if weighted is not None and grad_c is not None:
                grad_c[slice(*columns)].addmm_(share.t(), weighted)
