"""Which stored rows belong to the anchors themselves, for `contrast`.

Legend: B anchors, K stored rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nearfar.checks import expect


def own_rows(anchor: Int[Tensor, " B"], stored: Int[Tensor, " K"]) -> Int[Tensor, " B"]:
    """The stored row with each anchor's id, for `own` of `contrast`; -1 where there is none.

    Args:
        anchor: ids of the anchors, e.g. the batch's `index`.
        stored: ids of the stored rows, e.g. `queue.view("id")`.

    Returns:
        int64 [B].

    Raises:
        ValueError: an id of an anchor is stored twice, as in a queue longer than an epoch: use `others`.

    Notes: O((B + K) log K), no B x K mask.
    """
    if len(stored) == 0:
        return torch.full_like(anchor, -1, dtype=torch.long)
    ordered, order = stored.sort()
    first = torch.searchsorted(ordered, anchor)
    twice = torch.searchsorted(ordered, anchor, right=True) - first > 1
    expect(not bool(twice.any()), "stored", "ids that occur once (or `others`)", anchor[twice][:3].tolist())
    first = first.clamp(max=len(stored) - 1)
    return torch.where(ordered[first] == anchor, order[first], -1)


def others(anchor: Int[Tensor, " B"], stored: Int[Tensor, " K"]) -> Bool[Tensor, "B K"]:
    """Whether a stored row belongs to another sample than the anchor, for `denominator` of `contrast`."""
    return anchor[:, None] != stored
