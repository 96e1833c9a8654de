"""Bags of visual words: how much of each word of a vocabulary a map of features holds.

Legend: B maps, U positions, D channels, K words.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice


@torch.no_grad()
def word_distances(position: Float[Tensor, "B U D"], word: Float[Tensor, "K D"]) -> Float[Tensor, "B U K"]:
    """Squared Euclidean distances of every position to every word, in float32 or float64, 0 or more.

    |x - w|^2 = |x|^2 - 2 x w + |w|^2

    Args:
        position: features [B, U, D], not normalised.
        word: vocabulary [K, D].

    Notes: 2 B U K D FLOP and B U K numbers, which is what a bag of words costs in memory.
    """
    expect(position.ndim == 3, "position", "shape [B, U, D]", tuple(position.shape))
    expect(word.ndim == 2 and word.shape[1] == position.shape[2], "word", f"shape [K, {position.shape[2]}]",
           tuple(word.shape))  # fmt: skip
    dtype = accumulation(position)
    with no_autocast(position.device):
        x, w = position.to(dtype), word.to(dtype)
        product = torch.einsum("bud,kd->buk", x, w)
        return product.mul_(-2).add_(x.square().sum(2, keepdim=True)).add_(w.square().sum(1)).clamp_min_(0)


@torch.no_grad()
def bag_of_words(
    distance: Float[Tensor, "B U K"], *, sharpness: float | Tensor = 1.0, hard: bool = False, pool: str = "max"
) -> Float[Tensor, "B K"]:
    """Shares of the words in each map: assigned position by position, pooled, scaled to sum 1.

    a_uk = softmax_k(-sharpness d_uk),  y_k = max_u a_uk / sum_l max_u a_ul

    Args:
        distance: of positions to words, from `word_distances`.
        sharpness: multiplies distances; a number above 0, or such a tensor []. OBoW takes a constant over the moving
            average of the smallest distances.
        hard: every position is given to its nearest word alone, the first among equals; as an infinite sharpness.
        pool: "max" or "mean" over positions.

    Returns:
        [B, K], non-negative, rows sum to 1, without gradient.

    Raises:
        ValueError: another shape, no position, an unknown pool, a sharpness that is not above 0.

    Source: Gidaris et al., "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning", CVPR 2021.

    Example:
        >>> import torch
        >>> from nearfar.prototypes import bag_of_words
        >>> bag_of_words(torch.tensor([[[0.0, 1.0, 9.0], [4.0, 0.0, 9.0]]]), hard=True)
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    expect_choice("pool", pool, ("max", "mean"))
    expect(distance.ndim == 3 and distance.shape[1] >= 1, "distance", "shape [B, U, K], U of 1 or more",
           tuple(distance.shape))  # fmt: skip
    if not isinstance(sharpness, Tensor):
        expect(sharpness > 0, "sharpness", "a number > 0", sharpness)
    if hard:
        code_BUK = torch.zeros_like(distance).scatter_(2, distance.argmin(2, keepdim=True), 1.0)
    else:
        code_BUK = (distance * -sharpness).softmax(2)
    bag = code_BUK.amax(1) if pool == "max" else code_BUK.mean(1)
    return bag / bag.sum(1, keepdim=True)
