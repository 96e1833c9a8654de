"""CACR: positives attract the more the farther they are, and negatives repel the more the nearer they are.

Legend: B batch, N gathered batch, V views, D embedding, R anchors of a strip, Q query views.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import accumulation, normalize
from nearfar._strips import in_strips
from nearfar._tiles import MINUS_INF, no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Place, gather_views, stack


class CACRParts(NamedTuple):
    """What a CACR loss is made of; the loss is attraction + repulsion.

    Args:
        attraction: weighted cost of positives.
        repulsion: minus the weighted cost of negatives (or the logarithm of their weighted kernel).
        positive_entropy: mean entropy of the weights of positives, log(V - 1) where all count alike.
        negative_entropy: the same of negatives, log(B - 1) where all count alike.
    """

    attraction: Tensor
    repulsion: Tensor
    positive_entropy: Tensor
    negative_entropy: Tensor


class CACRStats(NamedTuple):
    """What CACR saw.

    Args:
        num_anchors, num_empty, accuracy: as in `nearfar.contrast.Stats`; the last is None.
        parts: what the loss is made of, without gradient.
    """

    num_anchors: int
    num_empty: int
    accuracy: None
    parts: CACRParts


def _parts(
    views: tuple[Any, ...], t_pos: float, t_neg: float, alpha: float, beta: float, cost: str, t: float,
    class_prior: float, symmetric: bool, detach_weights: bool, gathered: Any, offset: int, tile: int | None,
) -> tuple[CACRParts, int]:  # fmt: skip
    """What a loss is made of, and the number of local samples."""
    expect_choice("cost", cost, ("euclidean", "rbf"))
    for name, value in (("t_pos", t_pos), ("t_neg", t_neg), ("alpha", alpha), ("beta", beta)):
        expect(value >= 0 and math.isfinite(value), name, "a finite number of 0 or more", value)
    expect_positive("t", t)
    expect(0 <= class_prior < 1, "class_prior", "a number in [0, 1)", class_prior)
    expect(class_prior == 0 or cost == "euclidean", "class_prior", "0 with cost='rbf'", class_prior)
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(z.is_floating_point(), "views", "floating point", z.dtype, TypeError)
    kind = accumulation(z)
    every = z if gathered is None else gather_views(gathered, num_views)
    num_local, num_all = len(z) // num_views, len(every) // num_views
    expect(num_all > 1, "views", "2 or more samples, since one has no negatives", num_all)
    Place(num_views, num_local, num_all, offset, z.device)  # checks that the local rows are among the gathered
    with no_autocast(z.device):
        z_VBD = normalize(z.to(kind)).unflatten(0, (num_views, -1))
        z_VND = z_VBD if gathered is None else normalize(every.to(kind)).unflatten(0, (num_views, -1))
        pairs = list(itertools.combinations(range(num_views), 2))
        positive = {(x, y): (z_VBD[x] - z_VBD[y]).square().sum(1) for x, y in pairs}
        attraction, positive_entropy = _attraction(positive, num_views, t_pos, detach_weights)
        if cost == "rbf":  # its mean over anchors stands inside a logarithm, so that all of them are needed
            z_VBD, offset = z_VND, 0
        own = torch.arange(z_VBD.shape[1], device=z.device) + offset
        found = []
        for x, y in [*pairs, *((y, x) for x, y in pairs)] if symmetric else pairs:
            near_B, entropy_B = _softmax_cost(z_VBD[x], z_VND[y], own, t_neg, t if cost == "rbf" else None,
                                              detach_weights, tile)  # fmt: skip
            if cost == "rbf":
                term = torch.logsumexp(near_B, 0) - math.log(len(near_B))
            else:
                distance = positive[min(x, y), max(x, y)]
                term = -((near_B - class_prior * distance) / (1 - class_prior)).mean()
            found.append((term, entropy_B.mean()))
        repulsion, negative_entropy = (torch.stack(list(column)).mean() for column in zip(*found, strict=True))
    return CACRParts(alpha * attraction, beta * repulsion, positive_entropy, negative_entropy), num_local


def _attraction(
    squared: dict[tuple[int, int], Tensor], num_views: int, t_pos: float, detach: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    costs, entropies = [], []
    for x in range(num_views):
        others_BP = torch.stack([squared[min(x, y), max(x, y)] for y in range(num_views) if y != x], 1)
        log_weight_BP = torch.log_softmax(t_pos * (others_BP.detach() if detach else others_BP), 1)
        costs.append((log_weight_BP.exp() * others_BP).sum(1))
        entropies.append(-(log_weight_BP.exp() * log_weight_BP).sum(1).detach())
    return torch.stack(costs).mean(), torch.stack(entropies).mean()


def _softmax_cost(
    a_BD: Tensor, c_ND: Tensor, own_B: Tensor, t_neg: float, t: float | None, detach: bool, tile: int | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """sum_{j != own} w_ij d_ij^2 with w = softmax(-t_neg d^2), or log sum_j w_ij exp(-t d_ij^2); and entropies of w.

    A few anchors at a time, whose pairs the backward computes again.
    """

    def strip(rows_R: Tensor) -> tuple[Tensor, Tensor]:
        squared_RN = 2 - 2 * a_BD[rows_R] @ c_ND.t()
        logits_RN = (-t_neg * squared_RN).scatter(1, own_B[rows_R].unsqueeze(1), MINUS_INF)
        log_weight_RN = torch.log_softmax(logits_RN.detach() if detach else logits_RN, 1)
        weight_RN = log_weight_RN.exp()
        entropy_R = -(weight_RN * log_weight_RN).detach().nan_to_num_().sum(1)
        if t is not None:
            return torch.logsumexp(log_weight_RN - t * squared_RN, 1), entropy_R
        return (weight_RN * squared_RN).sum(1), entropy_R

    cost_B, entropy_B = in_strips(strip, len(a_BD), len(c_ND), tile, a_BD.device)
    return cost_B, entropy_B


@eager
def cacr(
    *views: Any,
    t_pos: float = 1.0,
    t_neg: float = 0.9,
    alpha: float = 1.0,
    beta: float = 1.0,
    cost: str = "euclidean",
    t: float = 2.0,
    class_prior: float = 0.0,
    symmetric: bool = False,
    detach_weights: bool = False,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Contrastive attraction and contrastive repulsion of V views, with squared distances d^2 of unit rows as costs.

    For view x of sample i as the query, against views y of it and of others:

        L = CA + CR
        CA = mean_x mean_i sum_{y != x} w+_iy alpha d^2(z_xi, z_yi)                     w+ = softmax_y(t_pos d^2)
        CR = -mean_{x < y} mean_i sum_{j != i} w-_ij beta d^2(z_xi, z_yj)               w- = softmax_j(-t_neg d^2)
        CR = beta mean_{x < y} log mean_i sum_{j != i} w-_ij exp(-t d^2(z_xi, z_yj))    with cost="rbf"

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2 (5 in the paper: 4 positives a query).
        t_pos: >= 0; the larger, the more the farthest positive counts.
        t_neg: >= 0; the larger, the more the nearest negative counts; 0.9 was used for CIFAR-10, 2 for CIFAR-100
            and STL-10.
        alpha, beta: >= 0, weights of attraction and repulsion.
        cost: "euclidean" or "rbf", of the repulsion.
        t: sharpness of the rbf.
        class_prior: share of negatives that are secretly positive (0: none), by which the expected cost over true
            negatives is estimated: (E d^2 - prior d^2(z_xi, z_yi)) / (1 - prior). With "euclidean" alone.
        symmetric: both views of a pair take their turn as the query of the repulsion; the authors' code takes the first
            alone (default).
        detach_weights: weights carry no gradient. By default they do, as in the authors' small-scale code.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        tile: anchors of a strip; None chooses.
        with_stats: also return CACRStats, whose number is that of the local samples.

    Returns:
        The loss, or (loss, CACRStats). 0 where all rows are one; at least -4 beta.

    Raises:
        ValueError: fewer than two views or samples, unequal shapes, a negative weight or temperature.

    Notes:
        Rows are divided by their norm, since the loss is unbounded below for others. The sign of class_prior is that of
        the identity above; the authors' code has the other one. V (V - 1) / 2 products of B x N, each computed again in
        the backward: 8 B N D FLOP; memory O(V N D + strip). With cost="rbf" the mean over anchors stands inside a
        logarithm, so that with `gathered` every process computes the repulsion of all.

    Relations:
        With two views CA is `alignment` at exponent 2. `cacr_momentum` is the form with a momentum encoder,
        `cacr_parts` tells attraction, repulsion and entropies apart.

    Example:
        >>> import torch
        >>> from nearfar.objectives import cacr
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(cacr(z, z)), 4)  # no attraction, and one negative at distance 2
        -4.0

    Source: Zheng, Chen, Yao, Yang, Li, Zhang, Zhang, Tsang, Zhou, Zhou, "Contrastive Attraction and Contrastive
    Repulsion for Representation Learning", TMLR 2023.
    """
    parts, num = _parts(
        views, t_pos, t_neg, alpha, beta, cost, t, class_prior, symmetric, detach_weights, gathered, offset, tile
    )  # fmt: skip
    loss = parts.attraction + parts.repulsion
    return (loss, CACRStats(num, 0, None, CACRParts(*(x.detach() for x in parts)))) if with_stats else loss


@torch.no_grad()
def cacr_parts(*views: Any, **options: Any) -> CACRParts:
    """Attraction and repulsion of `cacr` apart, and the mean entropies of their weights; arguments as there."""
    return cacr(*views, **options, with_stats=True)[1].parts


@eager
def cacr_momentum(
    queries: Tensor | Sequence[Tensor],
    keys: Tensor | Sequence[Tensor],
    *,
    temperature: float = 1.0,
    cost: str = "rbf",
    detach_weights: bool = True,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """CACR between the queries of an encoder and the keys of its momentum copy, for large data (as MoCo v3).

    For every key view k and the other query views q, with p_i = softmax_q(|q_i - k_i|^2 / t):

        rbf        L_k = sum_q mean_i 2 t p_i [ log sum_j exp(q_i . k_j / t) - q_i . k_i / t ]
        euclidean  L_k = sum_q mean_i p_i [ c_ii - sum_{j != i} w_ij c_ij ],  c = 1 - q . k,  w = softmax_j(-c / t)

    and L the mean of L_k over key views.

    Args:
        queries: views [V, B, D] of encoder and predictor.
        keys: views [W, B, D] of the momentum encoder, W <= V; key view w is of the same picture as query view w, which
            it does not meet. Pass them without gradient.
        temperature: t > 0.
        cost: "rbf" or "euclidean".
        detach_weights: p and w carry no gradient, as in the authors' code.
        gathered: keys [W, N, D] of all processes.
        offset: where this process's samples begin among the N gathered.
        tile: see `contrast`; anchors of a strip with "euclidean".
        with_stats: also return Stats, whose number is that of the local samples.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: fewer than two query views, more keys than queries, a temperature that is not positive.

    Notes:
        The authors' code sums "euclidean" over the batch and averages "rbf"; both are means here.

    Relations:
        With two views each and one picture a key, rbf is 2 t times `info_nce` between the views, p being 1.

    Source: as `cacr`.
    """
    expect_choice("cost", cost, ("rbf", "euclidean"))
    expect_positive("temperature", temperature)
    q, num_queries = stack("queries", queries)
    k, num_keys = stack("keys", keys, least=1)
    expect(num_keys <= num_queries, "keys", f"{num_queries} views or fewer, as queries", num_keys)
    num = len(q) // num_queries
    expect(q.shape[1:] == k.shape[1:] and len(k) == num_keys * num, "keys", f"views of shape {(num, q.shape[1])}",
           (len(k) // num_keys, k.shape[1]))  # fmt: skip
    expect(q.is_floating_point() and k.is_floating_point(), "queries, keys", "floating point", (q.dtype, k.dtype),
           TypeError)  # fmt: skip
    kind = accumulation(q, k)
    every = k if gathered is None else gather_views(gathered, num_keys)
    num_all = len(every) // num_keys
    expect(num_all > 1, "keys", "2 or more samples, since one has no negatives", num_all)
    Place(num_keys, num, num_all, offset, q.device)  # checks that the local rows are among the gathered
    own = torch.arange(num, device=q.device) + offset
    with no_autocast(q.device):
        q_VBD, k_WBD = (normalize(x.to(kind)).unflatten(0, (-1, num)) for x in (q, k))
        k_WND = normalize(every.to(kind)).unflatten(0, (num_keys, -1))
        losses = []
        for w in range(num_keys):
            q_QBD = q_VBD[[v for v in range(num_queries) if v != w]]
            squared_QB = (q_QBD - k_WBD[w]).square().sum(2)
            p_QB = torch.softmax((squared_QB.detach() if detach_weights else squared_QB) / temperature, 0)
            terms = []
            for q_BD, squared_B in zip(q_QBD, squared_QB, strict=True):
                if cost == "rbf":
                    cross_B = contrast(
                        q_BD, k_WND[w], targets=own, temperature=temperature, reduction="none", tile=tile
                    )
                    terms.append(2 * temperature * cross_B)
                else:  # c is half of the squared distance
                    near_B, _ = _softmax_cost(q_BD, k_WND[w], own, 0.5 / temperature, None, detach_weights, tile)
                    terms.append((squared_B - near_B) / 2)
            losses.append((p_QB * torch.stack(terms)).sum(0).mean())
        loss = torch.stack(losses).mean()
    return (loss, Stats(num, 0, None)) if with_stats else loss


class CACR(nn.Module):
    """`cacr` as a Module; see there.

    Args:
        t_pos: sharpness of the weights of positives.
        t_neg: sharpness of the weights of negatives.
        alpha: weight of the attraction.
        beta: weight of the repulsion.
        cost: "euclidean" or "rbf".
        t: sharpness of the rbf.
        class_prior: share of negatives that are secretly positive.
        symmetric: both views of a pair take their turn as the query of the repulsion.
        detach_weights: weights carry no gradient.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self, t_pos: float = 1.0, t_neg: float = 0.9, alpha: float = 1.0, beta: float = 1.0, *, cost: str = "euclidean",
        t: float = 2.0, class_prior: float = 0.0, symmetric: bool = False, detach_weights: bool = False,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_choice("cost", cost, ("euclidean", "rbf"))
        self.symmetric = symmetric
        self.options: dict[str, Any] = {
            "t_pos": t_pos, "t_neg": t_neg, "alpha": alpha, "beta": beta, "cost": cost, "t": t,
            "class_prior": class_prior, "detach_weights": detach_weights, "tile": tile,
        }  # fmt: skip

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two or more views; further options as `cacr`."""
        return cacr(*views, symmetric=self.symmetric, **self.options, **options)


class CACRMomentum(nn.Module):
    """`cacr_momentum` as a Module; see there.

    Args:
        temperature: t.
        cost: "rbf" or "euclidean".
        detach_weights: weights carry no gradient.
        tile: see `cacr_momentum`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self, temperature: float = 1.0, *, cost: str = "rbf", detach_weights: bool = True, tile: int | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        expect_positive("temperature", temperature)
        expect_choice("cost", cost, ("rbf", "euclidean"))
        self.temperature, self.cost, self.detach_weights, self.tile = temperature, cost, detach_weights, tile

    def forward(self, queries: Any, keys: Any, **options: Any) -> Any:
        """The loss of query and key views; further options as `cacr_momentum`."""
        return cacr_momentum(
            queries, keys, temperature=self.temperature, cost=self.cost, detach_weights=self.detach_weights,
            tile=self.tile, **options,
        )  # fmt: skip
