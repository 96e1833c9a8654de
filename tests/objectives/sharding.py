"""Emulates several processes in one: uneven parts of a batch, each against all candidates, weighed by their anchors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nearfar.contrast import Stats

PARTS = ([7], [4, 3], [1, 3, 2, 1])
"""sizes that 7 samples are split into"""


def weighted(parts: Sequence[tuple[Tensor, Stats]]) -> Tensor:
    """The mean over all anchors from the means over each part's."""
    total = sum(stats.num_anchors for _, stats in parts)
    return torch.stack([loss * (stats.num_anchors / total) for loss, stats in parts]).sum()


def over_parts(sizes: Sequence[int], part: Callable[[slice, int], tuple[Tensor, Stats]]) -> Tensor:
    """`part(rows, offset)` for every part, put together."""
    found, start = [], 0
    for size in sizes:
        found.append(part(slice(start, start + size), start))
        start += size
    return weighted(found)
