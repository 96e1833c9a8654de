"""N-pairs loss: each anchor finds its positive among those of the other classes in the batch, by plain products.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.contrast import contrast


def n_pairs(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    penalty: float = 0.0,
    gathered: Tensor | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Softmax of products, not cosines, of an anchor with the positives of the batch.

    L = 1/B sum_i log[ 1 + sum_{j != i} exp(a_i . p_j - a_i . p_i) ] + r/B sum_i (|a_i|^2 + |p_i|^2)

    Args:
        anchor: a [B, D].
        positive: p [B, D], row i the positive of anchor i.
        labels: classes of the pairs [B], or ([B], [N]) with gathered; two pairs of a class are no negatives of each
            other. None: every pair is of a class of its own, as published.
        penalty: r, 0 or above, of the squared norms, which no normalising holds.
        gathered: positives [N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean", "sum" or "none" ([B]).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; a negative penalty.

    Notes:
        What `contrast` with targets costs; an exact running maximum is kept, since products have no bound.

    Relations:
        `info_nce` with in-batch negatives has cosines and a temperature.

    Example:
        >>> import torch
        >>> from nearfar.objectives import n_pairs
        >>> a = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> round(float(n_pairs(a, a)), 4)  # log(1 + exp(-4))
        0.0181

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016.
    """
    expect(anchor.ndim == 2 and anchor.shape == positive.shape, "positive",
           f"the shape of anchor, {tuple(anchor.shape)}", tuple(positive.shape))  # fmt: skip
    expect(penalty >= 0, "penalty", "a number of 0 or more", penalty)
    expect(gathered is not None or offset == 0, "offset", "0 without gathered", offset)
    rows = torch.arange(len(anchor), device=anchor.device) + offset
    loss, stats = contrast(
        anchor, positive if gathered is None else gathered, targets=rows, ignore=labels, similarity="dot",
        normalize=(), temperature=1.0, reduction=reduction, tile=tile, with_stats=with_stats or "counts",
    )  # fmt: skip
    if penalty:
        square_B = anchor.to(loss.dtype).square().sum(1) + positive.to(loss.dtype).square().sum(1)
        square = {"none": square_B, "mean": square_B.mean(), "sum": square_B.sum()}[reduction]
        loss = loss + penalty * square
    return (loss, stats) if with_stats else loss


class NPairs(nn.Module):
    """`n_pairs` as a Module; see there.

    Args:
        penalty: of the squared norms.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(self, penalty: float = 0.0, *, tile: int | None = None) -> None:
        super().__init__()
        expect(penalty >= 0, "penalty", "a number of 0 or more", penalty)
        self.penalty, self.tile = penalty, tile

    def forward(self, anchor: Tensor, positive: Tensor, labels: Any = None, **options: Any) -> Any:
        """The loss; further options as `n_pairs`."""
        return n_pairs(anchor, positive, labels, penalty=self.penalty, tile=self.tile, **options)
