"""Hydra: samples of any two classes as a positive pair, compared in the features that a gate leaves them.

Legend: B anchors, N candidates, D embedding, C classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearfar._compile import eager
from nearfar._similarity import accumulation, log_sum_exp
from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice

TINY = 1e-24
"""squared length below which a gated vector is none"""


class HydraStats(NamedTuple):
    """What a contrast saw.

    Args:
        num_positives: pairs that the mean is over; weighs parts of a batch against each other.
        num_alone: anchors with positives and without a negative, whose loss is 0.
    """

    num_positives: int
    num_alone: int


def gated_cosine(anchor: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """Cosines of anchors and candidates in the features of each anchor's gate.

    s_ij = cos(g_i * a_i, g_i * c_j) = (g_i^2 * a_i) . c_j / (|g_i * a_i| sqrt(g_i^2 . c_j^2))

    Args:
        anchor: a [B, D].
        gate: g [B, D], 0 or more.
        candidate: c [N, D].

    Returns:
        [B, N], from three products of matrices; nothing of size B N D exists. 0, and without gradient, where a gate
        leaves nothing of a vector (a length below 1e-12).
    """
    square = gate.square()
    own, others = (square * anchor.square()).sum(1, keepdim=True), square @ candidate.square().t()
    some = (own > TINY) & (others > TINY)
    length = torch.where(own > TINY, own, 1.0).sqrt() * torch.where(others > TINY, others, 1.0).sqrt()
    return torch.where(some, (square * anchor) @ candidate.t() / length, 0.0)


@eager
def hydra(
    anchor: Tensor,
    gate: Tensor,
    labels: Tensor,
    partners: Tensor,
    candidate: Tensor,
    candidate_labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    own: Tensor | None = None,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Every anchor finds the samples of its partner class among those of neither class.

    L = 1/|P| sum_i sum_{j: y_j = p_i} -log [ e_ij / (e_ij + sum_{n: y_n not in {y_i, p_i}} e_in) ],  e = exp(s / t)

    with s of `gated_cosine`. Samples of the anchor's own class are positives where its partner is that class, and
    stand nowhere else.

    Args:
        anchor: [B, D].
        gate: [B, D], 0 or more, of the anchor's pair of classes.
        labels: y, classes of the anchors [B].
        partners: p, their partner classes [B].
        candidate: [N, D].
        candidate_labels: [N].
        temperature: t; a number, or a tensor [] that gets a gradient.
        own: int64 [B], the candidate that is the anchor itself and no pair; -1: none. None: none for all.
        reduction: "mean" over the positives of all anchors, "sum", or "none" ([B], sums over each anchor's positives).
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return HydraStats.

    Returns:
        The loss, or (loss, HydraStats); 0 with a graph where no anchor has a positive.

    Raises:
        ValueError: shapes that do not fit.

    Notes:
        6 B N D FLOP forward, in strips that the backward computes again: memory O((B + N) D + strip). An anchor
        without negatives, as in a batch of two classes, has loss 0.

    Relations:
        With gates of ones and partners = labels, InfoNCE of each positive against other classes.

    Example:
        >>> import torch
        >>> from nearfar.objectives import hydra
        >>> z, y = torch.eye(3), torch.tensor([0, 1, 2])
        >>> loss = hydra(z, torch.ones(3, 3), y, torch.tensor([1, 2, 0]), z, y, temperature=0.5)
        >>> round(float(loss), 4)  # a positive and a negative, both of cosine 0
        0.6931

    Source: Wu, Atito, Feng, Mo, Kittler, Awais, "Rethinking Positive Pairs in Contrastive Learning", 2024.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    num, num_all = len(anchor), len(candidate)
    expect(gate.shape == anchor.shape, "gate", f"shape {tuple(anchor.shape)}", tuple(gate.shape))
    expect(candidate.shape[1:] == anchor.shape[1:], "candidate", f"shape [N, {anchor.shape[1]}]",
           tuple(candidate.shape))  # fmt: skip
    for name, ids, rows in (
        ("labels", labels, num), ("partners", partners, num), ("candidate_labels", candidate_labels, num_all),
        *((("own", own, num),) if own is not None else ()),
    ):  # fmt: skip
        expect(tuple(ids.shape) == (rows,), name, f"shape [{rows}]", tuple(ids.shape))
    with no_autocast(anchor.device):
        kind = accumulation(anchor, candidate)
        a, g, c = anchor.to(kind), gate.to(kind), candidate.to(kind)
        columns = torch.arange(num_all, device=c.device)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            s = gated_cosine(a[rows], g[rows], c) / temperature
            positive = candidate_labels == partners[rows, None]
            negative = ~positive & (candidate_labels != labels[rows, None])
            if own is not None:
                itself = own[rows, None] == columns
                positive, negative = positive & ~itself, negative & ~itself
            against = log_sum_exp(s.masked_fill(~negative, -math.inf), 1)[:, None]
            loss = torch.nn.functional.softplus(against - s)
            return torch.where(positive, loss, 0.0).sum(1), positive.sum(1), negative.any(1)

        loss_B, count_B, some_B = in_strips(strip, num, num_all, tile, a.device)
    counted = int(count_B.sum())
    loss = loss_B if reduction == "none" else loss_B.sum() / (max(1, counted) if reduction == "mean" else 1)
    stats = HydraStats(counted, int(((count_B > 0) & ~some_B).sum()))
    return (loss, stats) if with_stats else loss


def class_pairs(num_classes: int) -> Tensor:
    """All unordered pairs of classes, each class with itself included: int64 [C (C + 1) / 2, 2]."""
    expect(num_classes >= 1, "num_classes", "1 or more", num_classes)
    return torch.combinations(torch.arange(num_classes), with_replacement=True)
