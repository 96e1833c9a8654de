"""Multi-similarity loss: pairs weigh by their own similarity and by those of the anchor's other pairs.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._similarity import log_sum_exp
from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives._pairs import mean_anchors, pairs


@torch.compiler.disable()
def multi_similarity(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 0.5,
    mining: float | None = 0.1,
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Soft hinges of an anchor's positives below a threshold and of its negatives above it.

    L_i = 1/a log[ 1 + sum_p exp(-a (s_p - l)) ] + 1/b log[ 1 + sum_n exp(b (s_n - l)) ],  s = cosine

    over the negatives nearer than the farthest positive, s_n > min_p s_p - e, and the positives farther than the
    nearest negative, s_p < max_n s_n + e.

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; all other embeddings of a class are positives.
        alpha, beta: a and b > 0, sharpness of the positives' and the negatives' sums.
        threshold: l, a cosine.
        mining: e, 0 or above; None: all pairs.
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over anchors with positives and negatives, "sum" or "none" ([V B], 0 for other anchors).
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats). An anchor whose pairs are all left out by mining counts with 0.

    Raises:
        ValueError: one class alone, or no class with two embeddings; alpha or beta that is not positive.

    Notes:
        2 B N D FLOP forward and three times that backward, memory O(B D + strip). The authors' code divides by all
        anchors, those without positives too.

    Relations:
        `circle` joins both sums in one softplus.

    Example:
        >>> import torch
        >>> from nearfar.objectives import multi_similarity
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = multi_similarity(z, torch.tensor([0, 0, 1, 1]), beta=2.0, mining=None)
        >>> round(float(loss), 4)  # log(1 + exp(-1)) / 2 + log(1 + 2 exp(-1)) / 2
        0.4324

    Source: Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning",
    CVPR 2019.
    """
    _check(alpha, beta, mining)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    with no_autocast((z if isinstance(z, Tensor) else z[0]).device):
        pair = pairs(z, labels, gathered, offset)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor]:
            s = pair.similarity(rows)
            positive, negative = pair.masks(rows)
            counted = positive.any(1) & negative.any(1)
            if mining is not None:
                least = s.detach().masked_fill(~positive, math.inf).amin(1, keepdim=True)
                most = s.detach().masked_fill(~negative, -math.inf).amax(1, keepdim=True)
                positive, negative = positive & (s < most + mining), negative & (s > least - mining)
            far = _log_one_plus(-alpha * (s - threshold), positive) / alpha
            near = _log_one_plus(beta * (s - threshold), negative) / beta
            return torch.where(counted, far + near, 0.0), counted

        num, width = len(pair.anchor), len(pair.candidate)
        loss_B, counted_B = in_strips(strip, num, width, tile, pair.anchor.device)
    return mean_anchors(loss_B, counted_B, reduction, with_stats)


def _log_one_plus(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum exp x) over the entries of a mask."""
    return log_sum_exp(torch.cat([x.masked_fill(~mask, -math.inf), x.new_zeros(len(x), 1)], 1), 1)


def _check(alpha: float, beta: float, mining: float | None) -> None:
    expect_positive("alpha", alpha)
    expect_positive("beta", beta)
    expect(mining is None or (mining >= 0 and math.isfinite(mining)), "mining", "None or a number of 0 or more", mining)


class MultiSimilarity(nn.Module):
    """`multi_similarity` as a Module; see there.

    Args:
        alpha, beta: sharpness of the sums.
        threshold: the l of the formula.
        mining: e, or None for all pairs.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, threshold: float = 0.5, *, mining: float | None = 0.1,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(alpha, beta, mining)
        self.options: dict[str, Any] = {
            "alpha": alpha, "beta": beta, "threshold": threshold, "mining": mining, "tile": tile,
        }  # fmt: skip

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `multi_similarity`."""
        return multi_similarity(z, labels, **self.options, **options)
