"""Circle loss: every similarity is pulled by how far it is from its optimum.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._similarity import log_sum_exp
from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives._pairs import mean_anchors, pairs


@torch.compiler.disable()
def circle(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    relaxation: float = 0.25,
    scale: float = 80.0,
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Softplus of two log sums, over negatives and over positives, whose terms weigh by their distance to the optimum.

    L_i = log[ 1 + sum_n exp(g [s_n + m]_+ (s_n - m)) sum_p exp(-g [1 + m - s_p]_+ (s_p - 1 + m)) ],  s = cosine

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; all other embeddings of a class are positives.
        relaxation: m in (0, 1); positives aim at 1 - m or above, negatives at m or below.
        scale: g > 0.
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over anchors with positives and negatives, "sum" or "none" ([V B], 0 for other anchors).
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: one class alone, or no class with two embeddings; a relaxation outside (0, 1).

    Notes:
        The weights [.]_+ are held constant in the gradient, as published. 2 B N D FLOP forward and three times that
        backward, memory O(B D + strip).

    Relations:
        With the weights at 1 it would be the softplus of a difference of log sums, near `contrast` with positives="sum"
        and denominator="negatives".

    Example:
        >>> import torch
        >>> from nearfar.objectives import circle
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(circle(z, torch.tensor([0, 0, 1, 1]), scale=4.0)), 4)  # log(1 + 2 exp(-4 / 16 - 4 / 16))
        0.7944

    Source: Sun, Cheng, Zhang, Zhang, Zheng, Wang, Wei, "Circle Loss: A Unified Perspective of Pair Similarity
    Optimization", CVPR 2020.
    """
    _check(relaxation, scale)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    m = relaxation
    with no_autocast((z if isinstance(z, Tensor) else z[0]).device):
        pair = pairs(z, labels, gathered, offset)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor]:
            s = pair.similarity(rows)
            held = s.detach()
            positive, negative = pair.masks(rows)
            near = log_sum_exp((scale * torch.relu(held + m) * (s - m)).masked_fill(~negative, -math.inf), 1)
            far = log_sum_exp((-scale * torch.relu(1 + m - held) * (s - 1 + m)).masked_fill(~positive, -math.inf), 1)
            counted = positive.any(1) & negative.any(1)
            return torch.where(counted, softplus(torch.where(counted, near + far, 0.0)), 0.0), counted

        num, width = len(pair.anchor), len(pair.candidate)
        loss_B, counted_B = in_strips(strip, num, width, tile, pair.anchor.device)
    return mean_anchors(loss_B, counted_B, reduction, with_stats)


def _check(relaxation: float, scale: float) -> None:
    expect(0 < relaxation < 1, "relaxation", "a number in (0, 1)", relaxation)
    expect_positive("scale", scale)


class Circle(nn.Module):
    """`circle` as a Module; see there.

    Args:
        relaxation: the m of the formula.
        scale: the g of the formula.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, relaxation: float = 0.25, scale: float = 80.0, *, tile: int | None = None) -> None:
        super().__init__()
        _check(relaxation, scale)
        self.relaxation, self.scale, self.tile = relaxation, scale, tile

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `circle`."""
        return circle(z, labels, relaxation=self.relaxation, scale=self.scale, tile=self.tile, **options)
