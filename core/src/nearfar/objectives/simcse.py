"""One-directional contrast of sentences: dropout copies or pairs, with hard negatives (SimCSE).

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.contrast import contrast
from nearfar.objectives._shared import Temperature


def simcse(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    hard_negative_weight: float = 0.0,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    gathered: tuple[Tensor, ...] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Each sentence finds its positive among the batch's positives, and hard negatives where there are any.

    L = -1/B sum_i log [ exp(s_ii+ / t) / sum_j ( exp(s_ij+ / t) + exp(s_ij- / t + w [i = j]) ) ],  cosines throughout

    Args:
        anchor: [B, D].
        positive: [B, D]; row i is the positive of anchor i, the others are its negatives.
        negative: [B, D]; row i is the hard negative of anchor i, and a further negative of the others.
        temperature: t; a number, or a tensor [] that gets a gradient.
        hard_negative_weight: w, added to the logit of an anchor's own hard negative after division by t: the log of its
            weight.
        ids: of the sentences, [B] or (anchors [B], candidates [N]); the positive of another row with the anchor's id is
            no negative, e.g. of the same sentence twice in a batch. The paper has no such mask.
        gathered: positives [N, D], or positives and negatives, of all processes.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean", "sum" or "none" ([B]).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; fewer than two candidates, with which the loss is 0 whatever the vectors are; a
            hard_negative_weight without negatives.

    Notes:
        Computed in float32. Not symmetrised: positives are no anchors. Up to 6 B N D FLOP, 8 with a weight.

    Relations:
        Without negatives, `info_nce(in_batch=True)` and one direction of `clip`.

    Example:
        >>> import torch
        >>> from nearfar.objectives import simcse
        >>> z = torch.eye(2)
        >>> round(float(simcse(z, z, temperature=1.0)), 6)  # log(1 + exp(-1))
        0.313262

    Source: Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021.
    """
    expect(
        positive.shape == anchor.shape, "positive", f"the shape of anchor, {tuple(anchor.shape)}", tuple(positive.shape)
    )
    if negative is not None:
        fits = negative.shape == anchor.shape
        expect(fits, "negative", f"the shape of anchor, {tuple(anchor.shape)}", tuple(negative.shape))
    expect(negative is not None or hard_negative_weight == 0, "hard_negative_weight", "0 without negatives",
           hard_negative_weight)  # fmt: skip
    expect(gathered is not None or offset == 0, "offset", "0 without gathered", offset)
    sets = gathered or (positive,) if negative is None else gathered or (positive, negative)
    expect(
        len(sets) == 1 + (negative is not None), "gathered", "positives, and negatives where there are any", len(sets)
    )
    num = len(sets[0])
    rows = torch.arange(len(anchor), device=anchor.device) + offset
    expect(num * len(sets) >= 2, "positive", "two candidates or more, since one alone makes a loss of 0", num)
    log_weight = None
    if hard_negative_weight:

        def log_weight(some: Tensor) -> Tensor:
            out = anchor.new_zeros(len(some), 2 * num, dtype=torch.float32)
            return out.scatter_(1, (num + rows[some]).unsqueeze(1), hard_negative_weight)

    return contrast(
        anchor, torch.cat(sets) if len(sets) > 1 else sets[0], targets=rows, temperature=temperature,
        log_weight=log_weight, ignore=None if ids is None else _ids(ids, num, len(sets), offset),
        reduction=reduction, tile=tile, with_stats=with_stats,
    )  # fmt: skip


def _ids(ids: Tensor | tuple[Tensor, Tensor], num: int, sets: int, offset: int) -> tuple[Tensor, Tensor]:
    """Ids of anchors and of all candidates; hard negatives have ids of nobody."""
    own, others = ids if isinstance(ids, tuple) else (ids, ids)
    expect(len(others) == num, "ids", f"one a candidate, {num}", len(others))
    if sets == 1:
        return own, others
    lowest = torch.minimum(own.min(), others.min())
    return own, torch.cat([others, (lowest - 1).expand(num)])


class SimCSE(nn.Module):
    """`simcse` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        hard_negative_weight: log of the weight of an anchor's own hard negative.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learnable_temperature: bool = False,
        hard_negative_weight: float = 0.0,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.hard_negative_weight, self.tile = hard_negative_weight, tile

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        negative: Tensor | None = None,
        *,
        ids: Tensor | tuple[Tensor, Tensor] | None = None,
        gathered: tuple[Tensor, ...] | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return simcse(
            anchor, positive, negative, temperature=self.tau(),
            hard_negative_weight=self.hard_negative_weight if negative is not None else 0.0,
            ids=ids, gathered=gathered, offset=offset, tile=self.tile, with_stats=with_stats,
        )  # fmt: skip
