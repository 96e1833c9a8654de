"""Pair loss: positives are drawn together, negatives pushed apart up to a margin.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.objectives._pairs import mean_anchors, pairs


@torch.compiler.disable()
def pair_margin(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    margin: float = 1.0,
    normalize: bool = True,
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    keys: tuple[Tensor, Tensor] | None = None,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Squared distances to positives, and squared shortfalls of the distances to negatives below a margin.

    L = 1/B sum_i [ mean over positives of d_ip^2 + mean over negatives of max(0, m - d_in)^2 ]

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; all other embeddings of a class are positives.
        margin: m, 0 or above, a Euclidean distance: at most 2 where embeddings have unit length.
        normalize: scale embeddings to unit length first.
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        keys: (vectors [K, D], labels [K]) that anchors meet instead of one another: a teacher's, a queue's.
        reduction: "mean" over anchors with a positive and a negative, "sum" or "none" ([V B], 0 for other anchors).
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats); 0 where no anchor counts.

    Raises:
        ValueError: one class alone, or no class with two embeddings; an option that is none.

    Notes:
        The paper adds y-weighted terms of listed pairs (with 1/2, and y = 0 for similar ones); here a positive is 1,
        and the two kinds are averaged apart, since a batch has many more negatives. 2 B N D FLOP forward and three
        times that backward, memory O(B D + strip). Equal points get no gradient from the hinge.

    Relations:
        `margin` draws positives no nearer than a boundary; `triplet` compares a positive with a negative.

    Example:
        >>> import torch
        >>> from nearfar.objectives import pair_margin
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6]])  # distance of the last from both 0.6325
        >>> round(float(pair_margin(z, torch.tensor([0, 0, 1]))), 4)  # (1 - 0.6325)^2
        0.1351

    Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
    """
    expect(math.isfinite(margin) and margin >= 0, "margin", "a finite number of 0 or more", margin)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    with no_autocast((z if isinstance(z, Tensor) else z[0]).device):
        pair = pairs(z, labels, gathered, offset, unit=normalize, keys=keys)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor]:
            positive, negative = pair.masks(rows)
            return pair_hinges(pair.distance(rows, "squared"), positive, negative, margin)

        loss_B, counted_B = in_strips(strip, len(pair.anchor), len(pair.candidate), tile, pair.anchor.device)
        return mean_anchors(loss_B, counted_B, reduction, with_stats)


def pair_hinges(square: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Loss of each anchor from squared distances and masks [r, N], 0 where it does not count, and whether it does."""
    least = 1e-14 if square.dtype == torch.float64 else 1e-6  # equal points have no direction to part in
    distance = torch.where(square > least, square, least).sqrt()
    num_positive, num_negative = positive.sum(1), negative.sum(1)
    counted = (num_positive > 0) & (num_negative > 0)
    near = torch.where(positive, square, 0.0).sum(1) / num_positive.clamp_min(1)
    far = torch.where(negative, torch.relu(margin - distance).square(), 0.0).sum(1) / num_negative.clamp_min(1)
    return torch.where(counted, near + far, 0.0), counted


class PairMargin(nn.Module):
    """`pair_margin` as a Module; see there.

    Args:
        margin: m, a Euclidean distance.
        normalize: scale embeddings to unit length first.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, margin: float = 1.0, *, normalize: bool = True, tile: int | None = None) -> None:
        super().__init__()
        expect(math.isfinite(margin) and margin >= 0, "margin", "a finite number of 0 or more", margin)
        self.options: dict[str, Any] = {"margin": margin, "normalize": normalize, "tile": tile}

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `pair_margin`."""
        return pair_margin(z, labels, **self.options, **options)
