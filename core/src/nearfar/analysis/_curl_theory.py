"""Losses of contrast over latent classes, exactly or by draws, and the losses of classifiers that they bound.

Legend: N points, D features, C classes, B combinations or draws, K negatives, P points of a block, M blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.analysis import _tables
from nearfar.analysis.curl_theory import Contrastive
from nearfar.checks import expect, expect_choice
from nearfar.evaluate import inputs
from nearfar.objectives import block_contrast

LOSSES = ("logistic", "hinge")
# How far one collision can cost more than nothing at all, per unit of intraclass deviation; see `bound_b` on the page.
COLLISION = {"hinge": 1 / math.sqrt(2), "logistic": 1 / (math.sqrt(2) * math.log(2))}


@dataclass(frozen=True)
class World:
    """Points of latent classes, sorted by class; within a class all are equally likely.

    Args:
        feature: f [N, D], float64.
        label: class of each point, [N].
        prior: probability of each class, [C].
        start: the first point of each class, [C].
        count: points of each class, [C].
        mean: of each class's features, [C, D].
    """

    feature: Tensor
    label: Tensor
    prior: Tensor
    start: Tensor
    count: Tensor
    mean: Tensor

    def rows(self, c: int) -> Tensor:
        """Features of one class."""
        return self.feature[int(self.start[c]) : int(self.start[c] + self.count[c])]


def world(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], prior: Float[Tensor, " C"] | None) -> World:
    """The world of checked features and labels; the prior is the share of points by default.

    Raises:
        ValueError: features that are not finite, one class alone (tau would be 1), a prior that does not fit.
    """
    f = inputs.features("features", features).cpu().double()
    ids, index = inputs.classes("labels", inputs.labels("labels", labels, len(f)).cpu())
    count = index.bincount()
    if prior is None:
        rho = count.double() / len(f)
    else:
        expect(prior.shape == (len(ids),), "prior", f"shape ({len(ids)},), one a class", tuple(prior.shape))
        rho = _tables.law("prior", prior)
        expect(float(rho.max()) < 1, "prior", "two classes or more of positive probability", rho.tolist())
    order = index.argsort(stable=True)
    f, index = f[order], index[order]
    mean = torch.zeros(len(ids), f.shape[1], dtype=torch.float64).index_add_(0, index, f) / count[:, None]
    return World(f, index, rho, count.cumsum(0) - count, count, mean)


def collision(prior: Float[Tensor, " C"], num_negatives: int = 1) -> float:
    """tau_k = sum_c rho_c (1 - (1 - rho_c)^k), the chance that one of k negatives is of the anchor's class.

    Args:
        prior: rho, [C].
        num_negatives: k.
    """
    expect(num_negatives >= 1, "num_negatives", "1 or more", num_negatives)
    rho = _tables.law("prior", prior)
    # expm1 and log1p, since 1 - (1 - rho)^k loses what is small when classes are many
    return float((rho * -torch.expm1(num_negatives * torch.log1p(-rho))).sum())


def spread(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], prior: Float[Tensor, " C"] | None = None
) -> float:
    """Intraclass deviation s(f), weighed by how often a class collides with itself.

    s(f) = E_{c ~ nu} [ sqrt(|| Cov_c(f) ||_2) E_{x ~ D_c} || f(x) || ],  nu_c proportional to rho_c^2

    Args:
        features: f [N, D].
        labels: class ids [N].
        prior: rho [C] in the order of the sorted ids; None: the shares of the points.

    Returns:
        0 exactly where f is constant within classes; it scales as f squared.
    """
    return _spread(world(features, labels, prior))


def _spread(w: World) -> float:
    weight = w.prior.square() / w.prior.square().sum()
    total = 0.0
    for c in range(len(w.prior)):
        rows = w.rows(c)
        # the largest singular value of the centred rows over sqrt(n) is the root of the covariance's largest eigenvalue
        deviation = torch.linalg.matrix_norm(rows - w.mean[c], ord=2) / math.sqrt(len(rows))
        total += float(weight[c] * deviation * rows.norm(dim=1).mean())
    return total


def floor(prior: Tensor, num_negatives: int, loss: str) -> float:
    """E[ l_t(0) ] given a collision, t of k negatives being of the anchor's class: 1 (hinge) or E log2(1 + t)."""
    if loss == "hinge":
        return 1.0
    t = torch.arange(1, num_negatives + 1, dtype=torch.float64)
    weight = prior[:, None] * torch.exp(_log_binomial(prior, num_negatives))
    return float((weight * torch.log2(1 + t)).sum() / weight.sum())


def _log_binomial(p: Tensor, k: int) -> Tensor:
    """Logarithms of the binomial probabilities of t = 1 .. k hits among k, [C, k]."""
    t = torch.arange(1, k + 1, dtype=torch.float64)
    choose = math.lgamma(k + 1) - torch.lgamma(t + 1) - torch.lgamma(k - t + 1)
    return choose + t * torch.log(p)[:, None] + (k - t) * torch.log1p(-p)[:, None]


def margin_loss(v_BK: Tensor, loss: str) -> Tensor:
    """l(v) [B] of margins: max(0, 1 + max_i(-v_i)) or log2(1 + sum_i exp(-v_i))."""
    one, zero = torch.ones_like(v_BK[:, :1]), torch.zeros_like(v_BK[:, :1])
    return block_contrast(one, zero, -v_BK.unsqueeze(2), loss=loss, bits=loss == "logistic", reduction="none")


def contrastive(
    w: World, loss: str, num_negatives: int, block: int, *, limit: int, draws: int, generator: torch.Generator
) -> Contrastive:
    """L_un (or L_block) of a world with its parts, and the mean classifier's loss on the same tasks.

    Blocks of `block` points; every combination is visited where there are at most `limit`, else `draws` are drawn.
    """
    expect_choice("loss", loss, LOSSES)
    expect(num_negatives >= 1, "num_negatives", "1 or more", num_negatives)
    expect(block >= 1, "block", "1 or more points", block)
    expect(draws >= 2, "draws", "2 or more", draws)
    tau = collision(w.prior, num_negatives)
    parts = {
        size: split(w, loss, num_negatives, size, limit=limit, draws=draws, generator=generator) for size in (block, 0)
    }
    apart, collided = parts[block]
    least = floor(w.prior, num_negatives, loss)
    total = (1 - tau) * apart.value + tau * collided.value
    return Contrastive(
        num_negatives=num_negatives,
        block=block,
        tau=tau,
        loss=total,
        error=math.hypot((1 - tau) * apart.error, tau * collided.error),
        apart=apart.value,
        collided=collided.value,
        floor=least,
        bound=(total - tau * least) / (1 - tau),
        mean_classifier=parts[0][0].value,
        exact=apart.exact and parts[0][0].exact,
    )


def split(
    w: World, loss: str, num_negatives: int, block: int, *, limit: int, draws: int, generator: torch.Generator
) -> tuple[_tables.Estimate, _tables.Estimate]:
    """(E[l | no negative of the anchor's class], E[l | one or more]); a block of 0 points is the mean of its class."""
    sizes = torch.ones_like(w.count) if block == 0 else w.count**block
    num = int((w.count * sizes).sum()) * int(sizes.sum()) ** num_negatives
    if num <= limit:
        return _enumerated(w, loss, num_negatives, block)
    return tuple(  # type: ignore[return-value]
        _tables.mean_of(_drawn(w, loss, num_negatives, block, draws, hit, generator)) for hit in (False, True)
    )


def _enumerated(w: World, loss: str, k: int, block: int) -> tuple[_tables.Estimate, _tables.Estimate]:
    """By every pair of an anchor with a block of its class, and every k blocks of any classes."""
    means = [_block_means(w, c, block) for c in range(len(w.prior))]
    num = torch.tensor([len(part) for part in means])
    owner_M = torch.arange(len(num)).repeat_interleave(num)
    product_NM = w.feature @ torch.cat(means).t()
    row_A, block_A = (w.label[:, None] == owner_M).nonzero(as_tuple=True)
    own_A, class_A = product_NM[row_A, block_A].unsqueeze(1), w.label[row_A]
    law_M = (w.prior / num)[owner_M]
    law_A = law_M[block_A] / w.count[class_A]

    def value(pair: Tensor, *negatives: Tensor) -> Tensor:
        negative = torch.stack(negatives, 1)
        found = margin_loss(own_A[pair] - product_NM[row_A[pair].unsqueeze(1), negative], loss)
        hit = (owner_M[negative] == class_A[pair].unsqueeze(1)).any(1)
        return torch.stack([found.masked_fill(hit, 0.0), found.masked_fill(~hit, 0.0)], 1)

    apart, collided = _tables.expectation(value, [law_A, *[law_M] * k]).tolist()
    tau = collision(w.prior, k)
    return _tables.Estimate(apart / (1 - tau), 0.0, True), _tables.Estimate(collided / tau, 0.0, True)


def _block_means(w: World, c: int, block: int) -> Tensor:
    """Means of every block of a class, draws with replacement in order, [n^P, D]; for P = 0 the mean of all."""
    rows = w.rows(c)
    if block == 0:
        return w.mean[c : c + 1]
    index = torch.cartesian_prod(*[torch.arange(len(rows))] * block).view(-1, block)
    return rows[index].mean(1)


def _drawn(w: World, loss: str, k: int, block: int, draws: int, hit: bool, generator: torch.Generator) -> Tensor:
    """Losses [draws] given that a negative is of the anchor's class, or that none is."""
    rho, found = w.prior, []
    size = max(1, min(draws, 20_000_000 // ((1 + max(block, 1) * (1 + k)) * w.feature.shape[1])))
    misses = torch.exp(k * torch.log1p(-rho))
    counts = torch.exp(_log_binomial(rho, k))
    for start in range(0, draws, size):
        num = min(size, draws - start)
        c_B = torch.multinomial(rho * (1 - misses if hit else misses), num, replacement=True, generator=generator)
        # a class other than c: a uniform number on what the prior leaves without c, moved past c's own part
        u = torch.rand(num, k, generator=generator, dtype=torch.float64) * (1 - rho[c_B, None])
        rise = rho.cumsum(0)
        u = torch.where(u >= (rise - rho)[c_B, None], u + rho[c_B, None], u)
        n_BK = torch.searchsorted(rise, u, right=True).clamp_max(len(rho) - 1)
        if hit:
            t = 1 + torch.multinomial(counts[c_B], 1, generator=generator)
            n_BK = torch.where(torch.arange(k) < t, c_B[:, None], n_BK)  # the loss does not see their order
        anchor = w.feature[_points(w, c_B, generator)]
        if block == 0:
            positive, negative = w.mean[c_B], w.mean[n_BK]
        else:
            positive = w.feature[_points(w, c_B[:, None].expand(num, block), generator)]
            negative = w.feature[_points(w, n_BK[..., None].expand(num, k, block), generator)]
        bits = loss == "logistic"
        found.append(block_contrast(anchor, positive, negative, loss=loss, bits=bits, reduction="none"))
    return torch.cat(found)


def _points(w: World, c: Tensor, generator: torch.Generator) -> Tensor:
    """A random point of each class named."""
    u = torch.rand(c.shape, generator=generator, dtype=torch.float64)
    return w.start[c] + (u * w.count[c]).long()
