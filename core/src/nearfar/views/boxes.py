"""Boxes and how they overlap.

A box is (x1, y1, x2, y2) in pixels, edges on whole numbers. Shapes: N and M boxes, any leading dimensions.
"""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from nearfar.checks import expect


def area(box: Shaped[Tensor, "*B 4"]) -> Shaped[Tensor, "*B"]:
    """Area of each box, 0 where it has none."""
    return (box[..., 2:] - box[..., :2]).clamp_min(0).prod(dim=-1)


def intersection(first: Shaped[Tensor, "*B N 4"], second: Shaped[Tensor, "*B M 4"]) -> Shaped[Tensor, "*B N M"]:
    """Area that each box of the first shares with each of the second."""
    for name, box in (("first", first), ("second", second)):
        expect(box.ndim >= 2 and box.shape[-1] == 4, name, "shape [..., N, 4]", tuple(box.shape))
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    return area(torch.cat([low, high], dim=-1))


def iou(first: Shaped[Tensor, "*B N 4"], second: Shaped[Tensor, "*B M 4"]) -> Shaped[Tensor, "*B N M"]:
    """Intersection over union, of boxes that have some area.

    Args:
        first: [..., N, 4].
        second: [..., M, 4].

    Returns:
        [..., N, M] float64, in [0, 1].
    """
    shared = intersection(first, second).double()
    return shared / (area(first)[..., :, None] + area(second)[..., None, :] - shared)
