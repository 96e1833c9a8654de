"""InfoNCE from the query's and from the key's point of view, each against its own hardest negatives.

Legend: B batch, K queue, D embedding, P kept negatives of an anchor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearfar._pool import indexed_product
from nearfar._similarity import accumulation, normalize
from nearfar.checks import expect, expect_choice
from nearfar.contrast import contrast
from nearfar.negatives import hardest
from nearfar.objectives._shared import reduced


class DualStats(NamedTuple):
    """What each side saw.

    Args:
        query_loss, key_loss: means of both sides' losses, without their weights and without gradient.
        kept_cosine: mean cosine of the queries and the negatives they kept; 0 where none was kept.
        kept: rows of the queue that each query kept, int64 [B, P], hardest first; -1: none.
    """

    query_loss: Tensor
    key_loss: Tensor
    kept_cosine: Tensor
    kept: Tensor


def dual_view(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    num_hard: int = 0,
    drop_top: int = 0,
    cosine_range: tuple[float, float] = (-1.0, 1.0),
    query_weight: float = 0.5,
    key_weight: float = 0.5,
    temperature: float | Tensor = 0.2,
    allowed: Tensor | None = None,
    reduction: str = "mean",
    with_stats: bool = False,
) -> Any:
    """A query finds its key among the negatives hardest for it, and the key its query among those hardest for it.

    L = w_q L(q, k) + w_k L(k, q),  L(a, b) = log( exp(a . b / t) + sum_{v in N(a)} exp(a . v / t) ) - a . b / t

    cosines throughout; N(a) are the `num_hard` rows of the queue most similar to a, after the `drop_top` most similar.

    Args:
        query: q [B, D].
        key: k [B, D], row i the positive of query i; usually without gradient.
        queue: [K, D], without gradient.
        num_hard: negatives kept; 0: all that are left.
        drop_top: most similar ones left out first, as suspected false negatives.
        cosine_range: of those kept, only cosines from the first to the second number count, both included.
        query_weight, key_weight: w_q, w_k, 0 or more.
        temperature: t; a number, or a tensor [] that gets a gradient.
        allowed: bool [B, K], rows that belong to neither side of pair i being False; None: all are.
        reduction: "mean", "sum" or "none" ([B]).
        with_stats: also return DualStats.

    Returns:
        The loss, or (loss, DualStats).

    Raises:
        ValueError: more negatives asked for than there are, negative weights, shapes that do not fit.

    Notes:
        Without gradient to the key the second term acts on the query through the positive alone: its derivative is
        -(1 - p_k) k / t, an attraction the stronger the worse the key finds its query. Each side has a search of
        2 B K D FLOP, and losses of 4 B P D.

    Relations:
        `info_nce` with num_hard=0, query_weight=1, key_weight=0.

    Example:
        >>> import torch
        >>> from nearfar.objectives import dual_view
        >>> q = torch.tensor([[1.0, 0.0]])
        >>> queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> round(float(dual_view(q, q, queue, num_hard=1, temperature=0.5)), 4)  # log(1 + exp(-1/0.5))
        0.1269

    Source: rebuilt after Hoang, Ngo, Pham, Nguyen, Bao, Phan, "Momentum Contrastive Learning with Enhanced Negative
        Sampling and Hard Negative Filtering", 2025, of which the abstract and a summary were read.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(query.shape == key.shape, "key", f"the shape of query, {tuple(query.shape)}", tuple(key.shape))
    expect(num_hard >= 0 and drop_top >= 0, "num_hard, drop_top", "0 or more", (num_hard, drop_top))
    low, high = cosine_range
    expect(-1 <= low < high <= 1, "cosine_range", "two numbers, -1 <= low < high <= 1", cosine_range)
    for name, weight in (("query_weight", query_weight), ("key_weight", key_weight)):
        expect(weight >= 0, name, "0 or more", weight)
    shape = (len(query), len(queue))
    expect(allowed is None or tuple(allowed.shape) == shape, "allowed", f"shape {shape}",
           None if allowed is None else tuple(allowed.shape))  # fmt: skip
    plain = not num_hard and not drop_top and allowed is None and cosine_range == (-1.0, 1.0)
    losses, indices = [], []
    for anchor, positive in ((query, key), (key, query)):
        form: dict[str, Any] = {"own_positive": positive[:, None], "temperature": temperature, "reduction": "none"}
        if plain:  # all of the queue needs no search
            index = torch.arange(len(queue), device=queue.device).expand(shape)
            losses.append(contrast(anchor, extra=(queue,), **form))
        else:
            index = _kept(anchor, queue, num_hard, drop_top, cosine_range, allowed)
            losses.append(contrast(anchor, per_anchor=(queue, index), **form))
        indices.append(index)
    loss = reduced(query_weight * losses[0] + key_weight * losses[1], reduction)
    if not with_stats:
        return loss
    with torch.no_grad():
        real = indices[0] >= 0
        query, queue = (normalize(x.to(accumulation(query, queue))) for x in (query, queue))
        cosine = torch.where(real, indexed_product(query, queue, indices[0].clamp_min(0)), 0.0)
        mean = cosine.sum() / real.sum().clamp_min(1)
    return loss, DualStats(losses[0].detach().mean(), losses[1].detach().mean(), mean, indices[0])


def _kept(
    anchor: Tensor, queue: Tensor, num_hard: int, drop_top: int, cosine_range: tuple[float, float],
    allowed: Tensor | None,
) -> Tensor:  # fmt: skip
    """Rows of the queue that each anchor keeps, hardest first, [B, P]; -1: none."""
    if num_hard or allowed is None:
        index, cosine = hardest(anchor, queue, num_hard or len(queue) - drop_top, skip=drop_top, allowed=allowed)
    else:  # all that are left: anchors differ in how many they may take
        index, cosine = hardest(anchor, queue, len(queue))
        may = allowed.gather(1, index)
        index = index.masked_fill(~(may & (may.cumsum(1) > drop_top)), -1)
    low, high = cosine_range
    if low > -1:
        index = index.masked_fill(cosine < low, -1)
    return index.masked_fill(cosine > high, -1) if high < 1 else index
