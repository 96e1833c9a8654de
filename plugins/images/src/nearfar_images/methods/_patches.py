"""Patches of an encoder's feature map: how they are hidden, and what the encoder says of each.

Legend: B batch, C channels, H W pixels, h w patches, T = h w, F feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.checks import expect
from nearfar.rng import Rng

BLOCKS = 8
"""rectangles that are laid down at most"""


def grid(encoder: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Patches (h, w) of images of a shape (C, H, W).

    Raises:
        TypeError: the encoder has no feature map.
    """
    anything: Any = encoder
    if hasattr(anything.model, "tokens"):
        return shape[1] // anything.model.patch, shape[2] // anything.model.patch
    was_training = encoder.training
    with torch.no_grad():
        dense = anything.eval().dense(torch.zeros(1, *shape, device=next(encoder.parameters()).device))
    encoder.train(was_training)
    return dense.shape[2], dense.shape[3]


def token_dim(encoder: nn.Module, channels: int) -> int:
    """Width of what stands in a hidden patch's place, see `see`."""
    return int(encoder.model.feature_dim) if hasattr(encoder.model, "tokens") else channels  # type: ignore[arg-type]


def see(
    encoder: nn.Module, x: Tensor, mask: Tensor | None = None, token: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Features [B, F] and those of every patch [B, T, F], row after row.

    Args:
        encoder: of `nearfar_images.encoders`.
        x: images [B, C, H, W].
        mask: bool [B, h, w], patches that are hidden; None: none.
        token: what stands in their place: a token of the width of an own transformer, see `TinyViT.tokens`; for
            other encoders a colour [C], laid over their pixels.

    Raises:
        ValueError: the encoder's patches have another width than its features.
        TypeError: the encoder has no feature map.

    Notes:
        One pass for transformers of nearfar and for all models of timm; others run twice.
    """
    model: Any = encoder.model
    if hasattr(model, "tokens"):
        return model.tokens(x, None if mask is None else mask.flatten(1), token)
    if mask is not None and token is not None:
        x = painted(x, mask, token)
    if hasattr(model, "forward_intermediates"):  # of timm: the last map, and what its head makes of it
        final, maps = model.forward_intermediates(x, indices=1, output_fmt="NCHW", norm=True)
        feature, dense = model.forward_head(final), maps[-1]
    else:
        feature, dense = encoder(x), encoder.dense(x)  # type: ignore[operator]
    expect(dense.shape[1] == feature.shape[1], "encoder.name", f"an encoder whose patches are as wide as its "
           f"{feature.shape[1]} features", f"{encoder.name!r} with {dense.shape[1]}")  # fmt: skip
    return feature, dense.flatten(2).transpose(1, 2)


def painted(x: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Images whose masked cells [B, h, w] have a colour [C] instead of their pixels."""
    cells = F.interpolate(mask[:, None].float(), x.shape[2:], mode="nearest-exact") > 0
    return torch.where(cells, colour.to(x.dtype).view(1, -1, 1, 1), x)


def block_mask(
    rng: Rng, index: Tensor, side: tuple[int, int], *, share: float, ratio: tuple[float, float]
) -> Tensor:  # fmt: skip
    """Which patches of each sample are hidden, bool [B, h, w]: rectangles, trimmed to the number that was drawn.

    Args:
        rng: at the view that is masked.
        index: stable numbers of the samples [B].
        side: (h, w).
        share: probability that a sample is masked at all.
        ratio: share of the patches of a masked sample that is hidden, drawn evenly between these; one patch at least.

    Notes:
        Rectangles of 0.3 to 0.7 of the number wanted, sides in ratios of 0.3 to 1/0.3. Patches are hidden in the order
        of the rectangle that covers them first, at random within one, until their number is reached.
    """
    h, w = side
    draw = rng.uniform(index, "patches.mask", 2 + 4 * BLOCKS)
    noise = rng.uniform(index, "patches.order", h * w)
    count = ((ratio[0] + draw[:, 1] * (ratio[1] - ratio[0])) * h * w).round().clamp(min=1)
    rows, columns = torch.arange(h, device=index.device)[:, None], torch.arange(w, device=index.device)
    first = torch.full((len(index), h, w), float(BLOCKS), device=index.device)
    for k in range(BLOCKS):
        size, shape, down, across = draw[:, 2 + 4 * k : 6 + 4 * k].unbind(1)
        area, aspect = count * (0.3 + 0.4 * size), 0.3 ** (2 * shape - 1)
        height, width = (area * aspect).sqrt().round().clamp(1, h), (area / aspect).sqrt().round().clamp(1, w)
        top, left = (down * (h - height + 1)).floor(), (across * (w - width + 1)).floor()
        top, bottom, left, right = (x[:, None, None] for x in (top, top + height, left, left + width))
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        first = torch.where(inside & (first == BLOCKS), float(k), first)
    rank = (first.flatten(1) + noise).argsort(1).argsort(1)
    hidden = (rank < count[:, None]) & (draw[:, :1] < share)
    return hidden.unflatten(1, side)
