"""Margin loss: every pair on its side of a learnt boundary of distances.

Legend: B batch, N gathered batch, V views, D embedding, C classes.
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
from nearfar.contrast import Stats
from nearfar.objectives._pairs import pairs


@torch.compiler.disable()
def margin(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    margin: float = 0.2,
    beta: float | Tensor = 1.2,
    normalize: bool = True,
    average: str = "active",
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Hinge of every pair's Euclidean distance from a boundary.

    L = mean over pairs of max(0, m + d_ij - b) for positive and max(0, m - d_ij + b) for negative ones

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B], in [0, C) where beta is one a class.
        margin: m, 0 or above.
        beta: b; a number, or a tensor [] or [C], by the anchor's class, that gets a gradient.
        normalize: scale embeddings to unit length first.
        average: over "active" pairs, whose hinge is above 0, or over "all".
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats, whose anchors are the pairs of the mean: what weighs parts of a batch.

    Returns:
        The loss, or (loss, Stats); 0 where no pair is active.

    Raises:
        ValueError: one class alone, or no class with two embeddings; a label outside beta.

    Notes:
        2 B N D FLOP forward and three times that backward, memory O(B D + strip). All pairs count; the paper draws
        negatives by `nearfar.negatives.distance_weights`. Equal points get no gradient.

    Relations:
        `triplet` compares a positive with a negative of one anchor, this each with a boundary that all share.

    Example:
        >>> import torch
        >>> from nearfar.objectives import margin
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # distances 1.4142 (twice) and 2
        >>> round(float(margin(z, torch.tensor([0, 0, 1]))), 4)  # the positive pair alone: 0.2 + 1.4142 - 1.2
        0.4142

    Source: Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017.
    """
    expect(math.isfinite(margin) and margin >= 0, "margin", "a finite number of 0 or more", margin)
    expect_choice("average", average, ("active", "all"))
    with no_autocast((z if isinstance(z, Tensor) else z[0]).device):
        pair = pairs(z, labels, gathered, offset, unit=normalize)
        boundary = _boundary(beta, pair.labels).to(pair.anchor.dtype)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            beyond = pair.distance(rows, "euclidean") - boundary[rows, None]
            positive, negative = pair.masks(rows)
            loss = torch.relu(margin + torch.where(positive, beyond, -beyond))
            exists = positive | negative
            loss = torch.where(exists, loss, 0.0)
            return loss.sum(1), (loss > 0).sum(1), exists.sum(1)

        num, width = len(pair.anchor), len(pair.candidate)
        total, active, chosen = (x.sum() for x in in_strips(strip, num, width, tile, pair.anchor.device))
    count = int(active if average == "active" else chosen)
    loss = total / max(1, count)
    return (loss, Stats(count, 0, None)) if with_stats else loss


def _boundary(beta: float | Tensor, labels: Tensor) -> Tensor:
    """The boundary of every anchor."""
    if not isinstance(beta, Tensor):
        return torch.full(labels.shape, float(beta), device=labels.device)
    expect(beta.ndim <= 1, "beta", "a number, or shape [] or [C]", tuple(beta.shape))
    if beta.ndim == 0:
        return beta.expand(labels.shape)
    inside = bool(((labels >= 0) & (labels < len(beta))).all())
    expect(inside, "labels", f"classes from 0 to {len(beta) - 1}, those of beta", labels)
    return beta[labels]


class Margin(nn.Module):
    """`margin` as a Module with a learnt boundary; see there.

    Args:
        margin: the m of the formula.
        beta: where the boundary starts; it is the parameter `beta`.
        num_classes: one boundary a class; None: one for all.
        learnable: learn it.
        normalize: scale embeddings to unit length first.
        average: over "active" or "all" pairs.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        margin: float = 0.2,
        *,
        beta: float = 1.2,
        num_classes: int | None = None,
        learnable: bool = True,
        normalize: bool = True,
        average: str = "active",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect(math.isfinite(margin) and margin >= 0, "margin", "a finite number of 0 or more", margin)
        expect_choice("average", average, ("active", "all"))
        shape = () if num_classes is None else (num_classes,)
        self.beta = nn.Parameter(torch.full(shape, float(beta)), requires_grad=learnable)
        self.options: dict[str, Any] = {"margin": margin, "normalize": normalize, "average": average, "tile": tile}

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `margin`."""
        return margin(z, labels, beta=self.beta, **self.options, **options)
