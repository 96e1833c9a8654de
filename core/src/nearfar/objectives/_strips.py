"""Losses of pairs that no product with their sums can be fused with: strips of anchors, computed again in the backward.

Legend: B anchors, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearfar._strips import ENTRIES
from nearfar._tiles import spans
from nearfar.checks import expect

Strip = Callable[[Tensor], tuple[Tensor, ...]]
"""gives tensors of one value an anchor for the numbers [r] of r anchors"""


def in_strips(strip: Strip, num: int, width: int, tile: int | None, device: torch.device) -> tuple[Tensor, ...]:
    """`strip` of all `num` anchors, each of which meets `width` candidates, with the parts put together.

    A tile of n takes n anchors at a time, None chooses, 0 takes all at once and keeps their matrices.
    """
    expect(tile is None or tile >= 0, "tile", "None or 0 or more", tile)
    rows = torch.arange(num, device=device)
    if tile == 0 or (tile is None and num * width <= ENTRIES >> 3):
        return strip(rows)
    parts = [_again(strip, rows[a:b]) for a, b in spans(num, tile or max(1, ENTRIES // width))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _again(strip: Strip, rows: Tensor) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return strip(rows)
    return checkpoint(strip, rows, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
