"""The commonest contrasts in one piece: raw vectors in, log sums and positive terms out.

One explicit positive an anchor, cosine or dot product, one temperature. Norms, temperature, tiles and positives share
one function, so that nothing but unit copies, gradients and a tile is ever held. Everything wider goes through
`_composed`, which puts the same tiles together by autograd.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar._composed import mutual, pairs_mask, part, reachable, to_columns, without_positives
from nearfar._forms import Form
from nearfar._passes import both_sums, recompute, self_gradient, self_sums, strip_sums
from nearfar._plain import Part
from nearfar._similarity import EPS
from nearfar._tiles import BOUND, STRIP, Mask, Share, block, edge, no_autocast, spans
from nearfar.tiled import common_factor, first_derivative_only

CHUNK = 2**18
"""numbers that are held at a time of what is done row by row"""


def suits(form: Form) -> bool:
    """Whether a form is one of those computed here."""
    return (
        form.logits is None
        and form.similarity is None
        and form.targets is not None
        and form.positives != "each"
        and isinstance(form.denominator, str)
        and form.log_weight is None
        and not form.extra
        and not form.ignore
        and form.own_positive is None
        and form.per_anchor is None
        and not form.shifted
        and not (isinstance(form.scale, Tensor) and form.scale.ndim)
    )


@dataclass
class _Plan:
    kind: str
    """"self": half of a symmetric matrix; "row": strips; "both": a grid"""
    mask: Mask
    index: Tensor
    """candidate that is the anchor's positive; 0 where there is none"""
    has: Tensor
    unit: tuple[bool, bool]
    bounded: bool
    size: int
    tile: int | None
    """as the caller asked"""
    weight: Tensor
    """expected gradient of the row log sums, up to a factor"""


def parts(form: Form, tile: int | None, anchor_weight: Tensor | None) -> list[Part]:
    """Row losses, and column losses for directions='both'; memory O(operands + tile)."""
    x, y = form.anchor, form.candidate
    assert x is not None
    assert y is not None
    both, single = form.directions == "both", x is y and form.unit[0] == form.unit[1]
    pairs = pairs_mask(form)
    mask = without_positives(form, pairs) if form.denominator == "negatives" else pairs
    index, has = reachable(form)
    kind = "both" if both else "self" if form.directions == "self" and single and mutual(form) else "row"
    weight = has.to(x.dtype) if anchor_weight is None else has * anchor_weight.to(x.dtype)
    size = tile or edge(x.device)
    if kind == "row":
        size = tile or max(32, min(size, STRIP // max(1, len(y))))
    plan = _Plan(kind, mask, index, has, form.unit, form.bound <= BOUND, size, tile, weight)
    rows, columns, found = _Fused.apply(x, None if kind == "self" else y, form.scale, plan)
    made = [part(rows, found, has)]
    if both:
        of_columns, counts = to_columns(found, has, form, form.positives == "sum")
        made.append(part(columns, of_columns, counts > 0))
    return made


class _Fused(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, scale: float | Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = float(scale)
        a, inverse_a = unit_rows(x) if plan.unit[0] else (x, None)
        c, inverse_c = (a, inverse_a) if y is None else unit_rows(y) if plan.unit[1] else (y, None)
        found = own_products(a, c, plan.index).mul_(s)
        columns, ctx.ahead = x.new_zeros(0), None
        if plan.kind == "row":
            need_x, need_y, need_scale = ctx.needs_input_grad[:3]
            rows, ctx.ahead = strip_sums(
                a, c, plan.mask, plan.size, plan.bounded, plan.weight, (need_x or need_scale, need_y), s
            )
        elif plan.kind == "both":
            rows, columns = both_sums(a, c, plan.mask, block(a, plan.tile), plan.bounded, s)
        else:
            rows = self_sums(a, plan.mask, plan.size, plan.bounded, s)
        ctx.save_for_backward(a, c, inverse_a, inverse_c, rows, columns)
        ctx.plan, ctx.scale, ctx.single = plan, s, y is None
        ctx.scale_like = scale if isinstance(scale, Tensor) else None
        return rows, columns, found

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor, grad_found: Tensor) -> tuple[Tensor | None, ...]:
        a, c, inverse_a, inverse_c, rows, columns = ctx.saved_tensors
        plan, s = ctx.plan, ctx.scale
        need_a, need_c, need_s = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        need_a = need_a or need_s
        with no_autocast(a.device):
            row_share = Share(rows, grad_rows, plan.bounded)
            if plan.kind == "self":
                grad_a = grad_c = self_gradient(a, plan.mask, plan.size, row_share, s)
            elif plan.kind == "both":
                shares = row_share, Share(columns, grad_columns, plan.bounded)
                grad_a, grad_c = recompute(a, c, plan.mask, block(a, plan.tile), shares, (need_a, need_c), alpha=s)
            else:
                grad_a, grad_c = _row_gradient(ctx, a, c, row_share, (need_a, need_c))
            add_own_products(grad_a, grad_c, a, c, plan.index, grad_found.masked_fill(~plan.has, 0.0) * s)
            grad_s = None
            if need_s:
                total = sum(float((a[i:j] * grad_a[i:j]).sum()) for i, j in row_spans(a))
                grad_s = ctx.scale_like.new_tensor(total / (2 * s if ctx.single else s))
            if inverse_a is not None and grad_a is not None:
                through_norm_(grad_a, a, inverse_a)
            if inverse_c is not None and grad_c is not None and not ctx.single:
                through_norm_(grad_c, c, inverse_c)
        return grad_a, None if ctx.single else grad_c, grad_s, None


def row_spans(x: Tensor) -> Iterator[tuple[int, int]]:
    return spans(len(x), max(1, CHUNK // max(1, x.shape[1])))


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length, and one over their norms, 0 for rows that get no gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    inverse = norm.clamp_min(EPS).reciprocal_()
    return x * inverse, inverse.masked_fill_(norm <= EPS, 0.0)


def through_norm_(grad: Tensor, unit: Tensor, inverse: Tensor) -> None:
    """The gradient of vectors from that of their unit vectors, in place: (g - u (u . g)) / |x|."""
    for i, j in row_spans(grad):
        along = (unit[i:j] * grad[i:j]).sum(1, keepdim=True)
        grad[i:j].addcmul_(unit[i:j], along, value=-1.0).mul_(inverse[i:j])


def own_products(a: Tensor, c: Tensor, index: Tensor) -> Tensor:
    """a_i . c[index_i], a chunk of rows at a time."""
    out = a.new_empty(len(a))
    for i, j in row_spans(a):
        torch.sum(a[i:j] * c[index[i:j]], 1, out=out[i:j])
    return out


def add_own_products(
    grad_a: Tensor | None, grad_c: Tensor | None, a: Tensor, c: Tensor, index: Tensor, grad_B: Tensor
) -> None:
    """Adds the gradients of `own_products`, in place."""
    for i, j in row_spans(a):
        g = grad_B[i:j].unsqueeze(1)
        if grad_a is not None:
            grad_a[i:j].addcmul_(c[index[i:j]], g)
        if grad_c is not None:
            grad_c.index_add_(0, index[i:j], a[i:j] * g)


def _row_gradient(
    ctx: Any, a: Tensor, c: Tensor, share: Share, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    plan: _Plan = ctx.plan
    ahead, ctx.ahead = ctx.ahead, None  # turned into gradients in place, so a second pass computes them again
    factor = common_factor(share.grad, plan.weight) if ahead is not None and needs[1] else None
    grad_a = grad_c = None
    if ahead is not None and ahead[0] is not None and needs[0]:
        grad_a = ahead[0].mul_(share.grad.unsqueeze(1))
    if factor is not None:
        grad_c = ahead[1].mul_(factor)
    missing = (needs[0] and grad_a is None, needs[1] and grad_c is None)
    if any(missing):
        again = recompute(a, c, plan.mask, block(a), (share, None), missing, alpha=ctx.scale)
        grad_a, grad_c = again[0] if missing[0] else grad_a, again[1] if missing[1] else grad_c
    return grad_a, grad_c
