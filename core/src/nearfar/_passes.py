"""Walks over the tiles of a product alpha a c^T that is never stored: sums of exponentials and their gradients.

Plain functions without autograd; `tiled`, `_fused` and `_ring` put derivatives around them.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nearfar._products import outer
from nearfar._tiles import CACHED, MINUS_INF, Buffer, Mask, Running, Share, gradient_, spans

Tile = tuple[tuple[int, int], tuple[int, int], Tensor]
"""rows, columns, and the logits of a tile"""
Size = tuple[int, int]
"""rows and columns of the tiles of a grid"""


def upper(z: Tensor, mask: Mask, size: int, buffer: Buffer, alpha: float = 1.0) -> Iterator[Tile]:
    """Tiles of alpha z z^T on and above the diagonal, left-out pairs at -inf."""
    for rows in spans(z.shape[0], size):
        for j in range(rows[0], z.shape[0], size):
            columns = (j, min(j + size, z.shape[0]))
            logits = tile_(z, z, rows, columns, mask, (size, size), buffer, alpha)
            if logits is not None:
                yield rows, columns, logits


def tile_(
    a: Tensor, c: Tensor, rows: tuple[int, int], columns: tuple[int, int],
    mask: Mask, size: tuple[int, int], buffer: Buffer, alpha: float = 1.0,
) -> Tensor | None:  # fmt: skip
    if mask.skips(rows, columns, size):
        return None
    logits = outer(a[slice(*rows)], c[slice(*columns)], alpha)
    if logits is None:
        logits = buffer.view(rows[1] - rows[0], columns[1] - columns[0])
        logits.addmm_(a[slice(*rows)], c[slice(*columns)].t(), beta=0, alpha=alpha)
    mask.hide_(logits, rows, columns, size)
    return logits


def grid(a: Tensor, c: Tensor, mask: Mask, size: Size, buffer: Buffer, alpha: float = 1.0) -> Iterator[Tile]:
    """Tiles of alpha a c^T, left-out pairs at -inf."""
    for rows in spans(a.shape[0], size[0]):
        for columns in spans(c.shape[0], size[1]):
            logits = tile_(a, c, rows, columns, mask, size, buffer, alpha)
            if logits is not None:
                yield rows, columns, logits
            del logits  # one tile at a time, where the product has memory of its own


def recompute(
    a: Tensor, c: Tensor, mask: Mask, size: Size, shares: tuple[Share, Share | None], needs: tuple[bool, ...],
    alpha: float = 1.0,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of both operands from tiles of alpha a c^T that are computed again."""
    entries = min(size[0], len(a)) * min(size[1], len(c))
    buffer, scratch = Buffer(entries, a), scratch_of(entries, size[1], a, shares)
    grad_a = torch.zeros_like(a) if needs[0] else None
    grad_c = torch.zeros_like(c) if needs[1] else None
    for rows, columns, logits in grid(a, c, mask, size, buffer, alpha):
        g = gradient_(logits, rows, columns, *shares, scratch)
        if grad_a is not None:
            grad_a[slice(*rows)].addmm_(g, c[slice(*columns)], alpha=alpha)
        if grad_c is not None:
            grad_c[slice(*columns)].addmm_(g.t(), a[slice(*rows)], alpha=alpha)
        del logits, g
    return grad_a, grad_c


def scratch_of(entries: int, width: int, like: Tensor, shares: tuple[Share, Share | None]) -> Buffer:
    """What `gradient_` needs beside a tile: as much again, but for bounded logits on the CPU."""
    few = shares[0].factor is not None and like.device.type == "cpu"
    return Buffer(min(entries, max(CACHED, width)) if few else entries, like)


def self_sums(z: Tensor, mask: Mask, size: int, bounded: bool, alpha: float = 1.0) -> Tensor:
    """Log sums [B] of alpha z z^T over a symmetric mask, from the tiles on and above the diagonal."""
    entries = min(size, len(z)) ** 2
    buffer, scratch = Buffer(entries, z), None if bounded else Buffer(entries, z)
    sums = Running(len(z), z, bounded)
    for rows, columns, logits in upper(z, mask, size, buffer, alpha):
        if bounded:
            logits.exp_()
        sums.add(logits, rows, 1, scratch)
        if rows != columns:
            sums.add(logits, columns, 0, scratch)
    return sums.result()


def self_gradient(z: Tensor, mask: Mask, size: int, share: Share, alpha: float = 1.0) -> Tensor:
    """The gradient of z from those of its log sums."""
    entries = min(size, len(z)) ** 2
    buffer, scratch = Buffer(entries, z), scratch_of(entries, size, z, (share, share))
    out = torch.zeros_like(z)
    for rows, columns, logits in upper(z, mask, size, buffer, alpha):
        g = gradient_(logits, rows, columns, share, share, scratch)
        out[slice(*rows)].addmm_(g, z[slice(*columns)], alpha=alpha)
        if rows != columns:
            out[slice(*columns)].addmm_(g.t(), z[slice(*rows)], alpha=alpha)
    return out


def both_sums(
    a: Tensor, c: Tensor, mask: Mask, size: Size, bounded: bool, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log sums of rows [B] and of columns [N], from the same tiles."""
    entries = min(size[0], len(a)) * min(size[1], len(c))
    buffer, scratch = Buffer(entries, a), None if bounded else Buffer(entries, a)
    row_sums, column_sums = Running(len(a), a, bounded), Running(len(c), a, bounded)
    for rows, columns, logits in grid(a, c, mask, size, buffer, alpha):
        if bounded:
            logits.exp_()
        row_sums.add(logits, rows, 1, scratch)
        column_sums.add(logits, columns, 0, scratch)
        del logits
    return row_sums.result(), column_sums.result()


def strip_sums(
    a: Tensor, c: Tensor, mask: Mask, rows_a_strip: int, bounded: bool, weight: Tensor | None,
    needs: tuple[bool, bool], alpha: float = 1.0,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:  # fmt: skip
    """Log sums of rows [B], strip by strip: each is final at once, so gradients are made from the same exponentials.

    The gradients are that of every anchor for its own log sum [B, D], and that of the candidates for the log sums times
    `weight` [N, D]; None where not needed, or without a weight.
    """
    sums = a.new_empty(len(a))
    buffer = Buffer(min(rows_a_strip, len(a)) * len(c), a)
    grad_a = torch.empty_like(a) if needs[0] else None
    grad_c = torch.zeros_like(c) if needs[1] and weight is not None else None
    for rows in spans(len(a), rows_a_strip):
        part = slice(*rows)
        columns = mask.reach(rows, len(c))
        near = c[slice(*columns)]
        e = buffer.view(rows[1] - rows[0], columns[1] - columns[0])
        e.addmm_(a[part], near.t(), beta=0, alpha=alpha)
        mask.hide_all_(e, rows, columns)
        shift = None if bounded or not e.shape[1] else e.amax(1)
        if shift is not None:
            e.sub_(shift.masked_fill(shift == MINUS_INF, 0.0).unsqueeze(1))
        total = e.exp_().sum(1)
        sums[part] = total.log() if shift is None else total.log() + shift
        inverse = total.reciprocal().masked_fill_(total == 0, 0.0)
        if grad_a is not None:
            torch.mm(e, near, out=grad_a[part]).mul_(inverse.mul(alpha).unsqueeze(1))
        if grad_c is not None and weight is not None:
            weighted = a[part] * (inverse * weight[part]).unsqueeze(1)
            grad_c[slice(*columns)].addmm_(e.t(), weighted, alpha=alpha)
    return sums, (grad_a, grad_c)
