"""The public functions of the analysis `curl_theory`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.analysis._curl_tasks import Tasks, tasks
from nearfar.analysis._curl_theory import COLLISION, LOSSES, _spread, contrastive, world
from nearfar.analysis.curl_theory import Contrastive, CurlReport
from nearfar.checks import expect, expect_choice

LIMIT, DRAWS, FITTED = 10_000_000, 100_000, 200


def contrastive_loss(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    prior: Float[Tensor, " C"] | None = None,
    *,
    loss: str = "logistic",
    num_negatives: int = 1,
    block: int = 1,
    limit: int = LIMIT,
    draws: int = DRAWS,
    seed: int = 0,
) -> Contrastive:
    """Loss of contrast over latent classes, exactly or by draws, and the bound that it gives.

    L = E[ l( { f(x) . ( mean_p f(x+_p) - mean_p f(x-_ip) ) }_i ) ],  c+, c-_i ~ rho;  x, x+_p ~ D_c+;  x-_ip ~ D_c-_i

    with l(v) = log2(1 + sum_i exp(-v_i)) (logistic) or max(0, 1 + max_i(-v_i)) (hinge). The given points are all that
    the classes have; x and x+ may be the same point, since the theory draws them independently.

    Args:
        features: f [N, D], neither normalised nor divided by anything.
        labels: class ids [N].
        prior: rho [C] in the order of the sorted ids; None: the shares of the points.
        loss: "logistic" or "hinge".
        num_negatives: k.
        block: points of a block.
        limit: visit every combination where there are at most so many.
        draws: else draw so many with a collision and so many without.
        seed: of the draws.

    Raises:
        ValueError: one class alone, for which tau would be 1; features or a prior that do not fit.

    Notes:
        Combinations: sum_c n_c^(1 + b) times (sum_c n_c^b)^k. A hundred thousand draws take
        O(draws (1 + b + b k) D). InfoNCE of unit vectors z at temperature t in nats is the logistic loss of
        f = z / sqrt(t) times log 2.

    Source: Arora, Khandeparkar, Khodak, Plevrakis, Saunshi, "A Theoretical Analysis of Contrastive Unsupervised
    Representation Learning", ICML 2019.
    """
    return contrastive(
        world(features, labels, prior), loss, num_negatives, block, limit=limit, draws=draws,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def supervised_loss(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    prior: Float[Tensor, " C"] | None = None,
    *,
    loss: str = "logistic",
    num_fitted: int = FITTED,
    seed: int = 0,
) -> Tasks:
    """Losses of the mean classifier and of the best linear one, over tasks of two classes.

    L_sup_mu = E_{c != d} E_{x ~ D_c} l( f(x) . (mu_c - mu_d) ),  L_sup the same with the best W of each task

    Args:
        features, labels, prior, loss: as `contrastive_loss`.
        num_fitted: tasks at most whose best classifier is sought; where there are more, they are drawn.
        seed: of the draws.

    Returns:
        `best` comes from L-BFGS without penalty or offset, and so lies a little above L_sup: where a task can be told
        apart its infimum 0 is not attained, and the hinge is softened by 0.001.
    """
    expect_choice("loss", loss, LOSSES)
    expect(num_fitted >= 1, "num_fitted", "1 or more", num_fitted)
    generator = torch.Generator().manual_seed(seed)
    return tasks(world(features, labels, prior), loss, num_fitted=num_fitted, generator=generator)


def curl_theory(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    prior: Float[Tensor, " C"] | None = None,
    *,
    loss: str = "logistic",
    num_negatives: Sequence[int] = (1, 4, 10),
    blocks: Sequence[int] = (1, 5),
    limit: int = LIMIT,
    draws: int = DRAWS,
    num_fitted: int = FITTED,
    seed: int = 0,
) -> CurlReport:
    """The whole report on an encoder: losses of contrast, losses of classifiers, and the bounds between them.

    Args:
        features, labels, prior, loss, limit, draws, seed: as `contrastive_loss`.
        num_negatives: numbers of negatives, with blocks of one point; 1 is always among them.
        blocks: points of a block, with one negative; 1 is always among them.
        num_fitted: as `supervised_loss`.

    Raises:
        ValueError: as `contrastive_loss`.
    """
    w = world(features, labels, prior)
    found = supervised_loss(features, labels, prior, loss=loss, num_fitted=num_fitted, seed=seed)
    kinds = [(1, 1), *((k, 1) for k in num_negatives), *((1, b) for b in blocks)]
    generator = torch.Generator().manual_seed(seed)
    rows = [contrastive(w, loss, k, b, limit=limit, draws=draws, generator=generator) for k, b in dict.fromkeys(kinds)]
    # the tasks of one negative are those of two classes, whose loss is known exactly
    rows = [replace(row, mean_classifier=found.mean_classifier) if row.num_negatives == 1 else row for row in rows]
    first, deviation = rows[0], _spread(w)
    return CurlReport(
        loss=loss,
        num_points=len(w.feature),
        num_classes=len(w.prior),
        tau=first.tau,
        spread=deviation,
        sup_mu=found.mean_classifier,
        sup=found.best,
        accuracy=found.accuracy,
        num_fitted=found.num_fitted,
        num_tasks=found.num,
        bound_a=min(row.bound for row in rows if row.num_negatives == 1),
        bound_b=first.apart + COLLISION[loss] * first.tau / (1 - first.tau) * deviation,
        contrastive=tuple(rows),
    )
