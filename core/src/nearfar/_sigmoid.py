"""Sums of softplus over a product of two matrices that is never stored: the pairwise sigmoid family.

No pair needs another's sum, so tiles are independent: each one's gradient is made while its logits are at hand.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar._compile import eager
from nearfar._fused import add_own_products, own_products, row_spans, through_norm_, unit_rows
from nearfar._passes import tile_
from nearfar._tiles import Buffer, Mask, edge, no_autocast, spans
from nearfar.tiled import common_factor, first_derivative_only


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


@dataclass
class Pairing:
    """Which pairs exist and which are each anchor's own, and how tiles are cut."""

    mask: Mask
    index: Tensor
    """candidate that is the anchor's own, [B]"""
    size: int


@eager
def cosine_softplus(
    x_BD: Tensor, y_ND: Tensor, scale: float | Tensor, bias: float | Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """sum_j log(1 + exp(l_ij)) over existing pairs, and the own logit l_ii', with l_ij = scale cos(x_i, y_j) + bias.

    Norms, scale, bias and tiles share one function, so that beside unit copies and gradients only a tile is held.

    Args:
        x_BD: anchors [B, D].
        y_ND: candidates [N, D].
        scale, bias: numbers, or tensors [] that get a gradient.
        pairing: which pairs.

    Returns:
        Sums [B] and own logits [B].

    Notes:
        6 B N D FLOP when all sums get the same gradient or candidates need none, else 8.
    """
    return _CosineSoftplus.apply(x_BD, y_ND, scale, bias, pairing)  # type: ignore[return-value]


class _CosineSoftplus(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: float | Tensor, bias: float | Tensor, pairing: Pairing
    ) -> tuple[Tensor, Tensor]:
        s, t = float(scale), float(bias)
        a, inverse_a = unit_rows(x)
        c, inverse_c = unit_rows(y)
        needs = ctx.needs_input_grad
        sums, ones = a.new_zeros(len(a)), a.new_ones(len(a))
        grad_a = torch.zeros_like(a) if needs[0] or needs[2] else None
        grad_c = torch.zeros_like(c) if needs[1] else None
        slope = torch.zeros_like(sums) if needs[3] else None
        walk(a, c, pairing.mask, pairing.size, sums, ones, grad_a, grad_c, alpha=s, bias=t, slope=slope)
        found = own_products(a, c, pairing.index).mul_(s).add_(t)
        ctx.ahead = grad_a, grad_c
        ctx.save_for_backward(a, c, inverse_a, inverse_c, slope)
        ctx.numbers, ctx.pairing = (s, t), pairing
        ctx.like = [value if isinstance(value, Tensor) else None for value in (scale, bias)]
        return sums, found

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_sums: Tensor, grad_found: Tensor) -> tuple[Tensor | None, ...]:
        a, c, inverse_a, inverse_c, slope = ctx.saved_tensors
        (s, t), pairing, needs = ctx.numbers, ctx.pairing, ctx.needs_input_grad
        # Gradients made ahead are finished in place, so a second pass computes them again.
        (grad_a, grad_c), ctx.ahead = ctx.ahead, (None, None)
        with no_autocast(a.device):
            if grad_a is not None:
                grad_a.mul_(grad_sums.unsqueeze(1))
            factor = common_factor(grad_sums, torch.ones_like(grad_sums))
            if grad_c is not None and factor is not None:
                grad_c.mul_(factor)
            elif needs[1]:
                grad_c = torch.zeros_like(c)
                walk(a, c, pairing.mask, pairing.size, None, grad_sums, None, grad_c, alpha=s, bias=t)
            if grad_a is None and (needs[0] or needs[2]):
                grad_a = torch.zeros_like(a)
                ones = torch.ones_like(grad_sums)
                walk(a, c, pairing.mask, pairing.size, None, ones, grad_a, None, alpha=s, bias=t)
                grad_a.mul_(grad_sums.unsqueeze(1))
            add_own_products(grad_a, grad_c, a, c, pairing.index, grad_found * s)
            grad_s = grad_t = None
            if needs[2]:
                total = sum(float((a[i:j] * grad_a[i:j]).sum()) for i, j in row_spans(a))
                grad_s = ctx.like[0].new_tensor(total / s)
            if needs[3]:
                grad_t = ctx.like[1].new_tensor(float((slope * grad_sums).sum() + grad_found.sum()))
            if grad_a is not None:
                through_norm_(grad_a, a, inverse_a)
            if grad_c is not None:
                through_norm_(grad_c, c, inverse_c)
        return grad_a, grad_c, grad_s, grad_t, None


def walk(
    a: Tensor, c: Tensor, mask: Mask, size: int, result: Tensor | None, weight: Tensor | None,
    grad_a: Tensor | None, grad_c: Tensor | None, *, alpha: float = 1.0, bias: float = 0.0, slope: Tensor | None = None,
) -> None:  # fmt: skip
    """Adds every tile of alpha a c^T + bias to the sums [B], to the gradient of each anchor's own sum (and its slope in
    the bias, [B]), and to the weighted gradient of c."""
    entries = min(size, a.shape[0]) * min(size, c.shape[0])
    buffer = Buffer(entries, a)
    scratch = Buffer(entries, a) if result is not None else None
    for rows in spans(a.shape[0], size):
        part = slice(*rows)
        weighted = None if grad_c is None else a[part] * weight[part].unsqueeze(1)  # type: ignore[index]
        for columns in spans(c.shape[0], size):
            logits = tile_(a, c, rows, columns, mask, (size, size), buffer, alpha)
            if logits is None:
                continue
            if bias:
                logits.add_(bias)
            if result is not None and scratch is not None:
                out = scratch.view(*logits.shape)
                # -inf + softplus of a left-out pair is 0, as it should
                result[part] += torch.ops.aten.softplus.out(logits, 1, 40, out=out).sum(1)
            if grad_a is None and weighted is None and slope is None:
                continue
            share = logits.sigmoid_()
            if slope is not None:
                slope[part] += share.sum(1)
            if grad_a is not None:
                grad_a[part].addmm_(share, c[slice(*columns)], alpha=alpha)
            if weighted is not None and grad_c is not None:
                grad_c[slice(*columns)].addmm_(share.t(), weighted, alpha=alpha)
