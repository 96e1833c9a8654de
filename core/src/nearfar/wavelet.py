"""The Haar wavelet, one level: what is smooth in an image, and its edges in three directions.

Shapes: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.checks import expect


class Haar(NamedTuple):
    """The four bands of half the side, [B, C, H / 2, W / 2]; the first letter says what is done along a row.

    Args:
        ll: low-pass along rows and columns, a small image twice as bright.
        lh: low-pass along rows, differences along columns: horizontal edges.
        hl: differences along rows: vertical edges.
        hh: differences along both: diagonals.
    """

    ll: Tensor
    lh: Tensor
    hl: Tensor
    hh: Tensor


def haar(image: Float[Tensor, "B C H W"]) -> Haar:
    """One level of the orthonormal Haar transform.

    With a, b, c, d the pixels of a 2 x 2 block (a b above c d):

        ll = (a + b + c + d) / 2,  lh = (a + b - c - d) / 2,  hl = (a - b + c - d) / 2,  hh = (a - b - c + d) / 2

    Args:
        image: [B, C, H, W], floating point, both sides even.

    Returns:
        The bands; the sum of their squares is that of the image.

    Raises:
        ValueError: a side that is odd or 0.

    Source: Haar, "Zur Theorie der orthogonalen Funktionensysteme", Mathematische Annalen 69, 1910.
    """
    height, width = image.shape[2:]
    even = min(height, width) >= 2 and height % 2 == 0 and width % 2 == 0
    expect(even, "image", "even sides for the Haar transform", f"{height} x {width} pixels")
    above, below = image[:, :, 0::2], image[:, :, 1::2]
    low, high = above + below, above - below
    a, b, c, d = low[..., 0::2], low[..., 1::2], high[..., 0::2], high[..., 1::2]
    return Haar((a + b) / 2, (c + d) / 2, (a - b) / 2, (c - d) / 2)


def haar_edges(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
    """The three bands of edges as channels: lh of every channel, then hl, then hh, [B, 3 C, H / 2, W / 2]."""
    return torch.cat(haar(image)[1:], dim=1)
