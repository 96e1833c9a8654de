"""The exact tiled engine: log sums of exponentials of a product of two matrices that is never stored.

Everything else of a contrast (normalising, temperature, positives, reductions) costs O(B D) and is ordinary autograd
around these functions. Each takes a temperature already multiplied into the anchors, and returns a log sum per anchor.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar._compile import eager
from nearfar._passes import Size, both_sums, recompute, self_gradient, self_sums, strip_sums
from nearfar._tiles import MINUS_INF, STRIP, Buffer, Mask, Share, block, edge, no_autocast, spans

__all__ = ["Mask", "frozen_log_sum_exp", "log_sum_exp", "self_log_sum_exp"]


@eager
def self_log_sum_exp(z_BD: Tensor, mask: Mask, *, bounded: bool = False, tile: int | None = None) -> Tensor:
    """log sum_j exp(z_i . z_j) over the pairs a symmetric mask leaves, from the tiles on and above the diagonal only.

    Args:
        z_BD: embeddings [B, D].
        mask: pairs left out; must leave out (j, i) with (i, j), and usually excludes i itself.
        bounded: every |z_i . z_j| is at most 60, so that no maximum is needed.
        tile: side of a tile; None chooses.

    Returns:
        [B]; -inf where a row has no pair.

    Notes:
        B^2 D FLOP forward and 3 B^2 D backward (a plain product is 2 B^2 D); memory O(B D + tile^2).
    """
    return _Self.apply(z_BD, mask, bounded, tile or edge(z_BD.device))  # type: ignore[return-value]


@eager
def log_sum_exp(
    a_BD: Tensor, c_ND: Tensor, mask: Mask, *, both: bool = False, bounded: bool = False,
    weight_B: Tensor | None = None, tile: int | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """log sum_j exp(a_i . c_j) over the pairs that a mask leaves; with `both` the log sums over i as well.

    Args:
        a_BD: anchors [B, D].
        c_ND: candidates [N, D].
        mask: pairs left out.
        both: also sum over columns, from the same tiles.
        bounded: every |a_i . c_j| is at most 60, so that no maximum is needed.
        weight_B: expected gradient of the result up to a factor; when it comes true the candidates' gradient, made in
            the forward pass, is used as it is, else the tiles are computed again.
        tile: side of a tile, or rows of a strip; None chooses.

    Returns:
        Row log sums [B], and column log sums [N] or None; -inf where there is no pair.

    Notes:
        Rows alone: 6 B N D FLOP when `weight_B` comes true or candidates need no gradient, else 8; both: 8.
        Memory O((B + N) D + tile).
    """
    if both:
        return _Both.apply(a_BD, c_ND, mask, bounded, block(a_BD, tile))  # type: ignore[return-value]
    rows = tile or max(32, min(edge(a_BD.device), STRIP // max(1, c_ND.shape[0])))
    return _Rows.apply(a_BD, c_ND, mask, bounded, rows, weight_B), None  # type: ignore[return-value]


@eager
def frozen_log_sum_exp(
    a_BD: Tensor, c_KD: Tensor, mask: Mask, *, normalize: bool, bounded: bool = False, tile: int | None = None
) -> Tensor:
    """log sum_j exp(a_i . c_j) over candidates without gradient, cast and normalised a chunk at a time.

    Args:
        a_BD: anchors [B, D].
        c_KD: candidates [K, D] of any float type, for instance a queue; read, never copied as a whole.
        mask: pairs left out.
        normalize: divide candidates by their norm.
        bounded: every |a_i . c_j| is at most 60.
        tile: rows of a tile; None chooses.

    Returns:
        [B]; -inf where there is no pair.

    Notes:
        4 B K D FLOP forward with gradient, 2 without, none backward; memory O(B D + tile).
    """
    return _Frozen.apply(a_BD, c_KD, mask, normalize, bounded, tile or edge(a_BD.device))  # type: ignore[return-value]


class _Refuse(Function):
    """The identity, whose derivative is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("a tiled contrast has first derivatives only; pass tile=0 where second ones are needed")


def first_derivative_only(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., Any]:
    """Makes a derivative of the gradient an error.

    torch's once_differentiable lets it pass as zero where the incoming gradient is a constant, as that of a mean is.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if g is None else _Refuse.apply(g.requires_grad_()) for g in found)

    return run


class _Self(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mask: Mask, bounded: bool, size: int) -> Tensor:
        result = self_sums(z, mask, size, bounded)
        ctx.save_for_backward(z, result)
        ctx.options = (mask, bounded, size)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, log_sum = ctx.saved_tensors
        mask, bounded, size = ctx.options
        with no_autocast(z.device):
            return self_gradient(z, mask, size, Share(log_sum, grad, bounded)), None, None, None


class _Both(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, mask: Mask, bounded: bool, size: Size) -> tuple[Tensor, Tensor]:
        result = both_sums(a, c, mask, size, bounded)
        ctx.save_for_backward(a, c, *result)
        ctx.options = (mask, bounded, size)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, row_grad: Tensor, column_grad: Tensor) -> tuple[Tensor | None, ...]:
        a, c, row_sum, column_sum = ctx.saved_tensors
        mask, bounded, size = ctx.options
        with no_autocast(a.device):
            shares = Share(row_sum, row_grad, bounded), Share(column_sum, column_grad, bounded)
            grads = recompute(a, c, mask, size, shares, ctx.needs_input_grad)
        return *grads, None, None, None


class _Rows(Function):
    """Strips of rows: each is final at once, so its gradient is made while its exponentials are at hand."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, c: Tensor, mask: Mask, bounded: bool, rows_a_strip: int, weight: Tensor | None
    ) -> Tensor:
        result, (mean_c, mean_a) = strip_sums(
            a, c, mask, rows_a_strip, bounded, weight, (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        )
        ctx.save_for_backward(a, c, result, mean_c, mean_a, weight)
        ctx.options = (mask, bounded)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, c, log_sum, mean_c, mean_a, weight = ctx.saved_tensors
        mask, bounded = ctx.options
        with no_autocast(a.device):
            grad_a = mean_c * grad.masked_fill(log_sum == MINUS_INF, 0.0).unsqueeze(1) if mean_c is not None else None
            grad_c = None
            if ctx.needs_input_grad[1]:
                factor = None if mean_a is None else common_factor(grad, weight)
                if mean_a is not None and factor is not None:
                    grad_c = mean_a * factor
                else:
                    shares = Share(log_sum, grad, bounded), None
                    grad_c = recompute(a, c, mask, block(a), shares, (False, True))[1]
        return grad_a, grad_c, None, None, None, None


def common_factor(grad: Tensor, weight: Tensor) -> Tensor | None:
    """k with grad == k * weight, or None."""
    factor = grad[weight.argmax()] / weight.amax()
    return factor if torch.equal(grad, weight * factor) else None


class _Frozen(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, mask: Mask, normalize: bool, bounded: bool, size: int) -> Tensor:
        need = ctx.needs_input_grad[0]
        width = min(2 * size, max(1, c.shape[0]))
        buffer = Buffer(size * width, a)
        total = a.new_zeros(a.shape[0])
        peak = torch.zeros_like(total) if bounded else torch.full_like(total, MINUS_INF)
        mean = torch.zeros_like(a) if need else None
        for j0, j1 in spans(c.shape[0], width):
            chunk = c[j0:j1].to(a.dtype)
            if normalize:
                chunk = torch.nn.functional.normalize(chunk, dim=1, eps=1e-12)
            for i0, i1 in spans(a.shape[0], size):
                e = buffer.view(i1 - i0, j1 - j0)
                torch.mm(a[i0:i1], chunk.t(), out=e)
                if not mask.hide_(e, (i0, i1), (j0, j1), (size, width)):
                    continue
                if not bounded:
                    new = torch.maximum(peak[i0:i1], e.amax(1))
                    shift = new.masked_fill(new == MINUS_INF, 0.0)  # nothing yet: exp(-inf) = 0, not NaN
                    old = torch.exp(peak[i0:i1] - shift)
                    total[i0:i1] *= old
                    if mean is not None:
                        mean[i0:i1] *= old.unsqueeze(1)
                    peak[i0:i1] = new
                    e.sub_(shift.unsqueeze(1))
                total[i0:i1] += e.exp_().sum(1)
                if mean is not None:
                    mean[i0:i1].addmm_(e, chunk)
        if mean is not None:
            mean.div_(total.clamp_min(torch.finfo(total.dtype).tiny).unsqueeze(1))
        result = total.log() if bounded else total.log() + peak
        ctx.save_for_backward(mean, result == MINUS_INF)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, empty = ctx.saved_tensors
        return mean * grad.masked_fill(empty, 0.0).unsqueeze(1), None, None, None, None, None
