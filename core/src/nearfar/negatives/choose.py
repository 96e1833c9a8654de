"""The hardest candidates, bands of hardness, and draws by hardness.

Legend: B anchors, N candidates, D embedding, P chosen negatives of an anchor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect

CHUNK = 1 << 24
"""similarities that are held at a time"""


class Hardest(NamedTuple):
    """Chosen candidates of every anchor, the most similar first.

    Args:
        index: int64 [B, P], rows of the candidates.
        similarity: [B, P], their cosines.
    """

    index: Tensor
    similarity: Tensor


@torch.no_grad()
def hardest(
    anchor: Float[Tensor, "B D"],
    candidate: Float[Tensor, "N D"],
    num: int,
    *,
    allowed: Bool[Tensor, "B N"] | None = None,
    skip: int = 0,
) -> Hardest:
    """The `num` candidates most similar to every anchor, after the `skip` most similar ones.

    Args:
        anchor: [B, D].
        candidate: [N, D], e.g. `queue.view("key")`; read, not copied (but for half precision, converted).
        num: P, candidates an anchor.
        allowed: which candidates an anchor may take; None: all.
        skip: most similar candidates left out as suspected false negatives.

    Returns:
        Hardest of P candidates each.

    Raises:
        ValueError: an anchor with fewer than num + skip allowed candidates.

    Notes: 2 B N D FLOP; similarities exist for 2^24 pairs at a time, in float32 (float64 for float64 input).

    Source: Hoang et al., "Momentum contrastive learning with enhanced negative sampling and hard negative filtering",
        2025, for `num` and `skip`.
    """
    expect(num >= 1, "num", "1 or more", num)
    expect(skip >= 0, "skip", "0 or more", skip)
    anchor = F.normalize(wide(anchor), dim=1)
    least = len(candidate) if allowed is None else int(allowed.sum(1).min())
    expect(num + skip <= least, "num + skip", f"at most the {least} candidates that every anchor may take", num + skip)
    length = torch.linalg.vector_norm(candidate, dim=1, dtype=anchor.dtype).clamp_(min=1e-12)
    parts = []
    for rows in torch.arange(len(anchor), device=anchor.device).split(max(CHUNK // len(candidate), 1)):
        with no_autocast(anchor.device):
            similarity = (anchor[rows] @ candidate.to(anchor.dtype).T).div_(length)
        if allowed is not None:
            similarity.masked_fill_(~allowed[rows], -torch.inf)
        parts.append(similarity.topk(num + skip, dim=1))
    return Hardest(
        torch.cat([part.indices for part in parts])[:, skip:], torch.cat([part.values for part in parts])[:, skip:]
    )


@torch.no_grad()
def between(similarity: Float[Tensor, "B N"], low: float = -math.inf, high: float = math.inf) -> Bool[Tensor, "B N"]:
    """Candidates whose similarity is at least `low` and below `high`.

    Args:
        similarity: [B, N].
        low, high: bounds in units of the similarity.
    """
    expect(low < high, "low, high", "low < high", (low, high))
    return (similarity >= low) & (similarity < high)


@torch.no_grad()
def quantile_band(
    similarity: Float[Tensor, "B N"],
    low: float = 0.0,
    high: float = 1.0,
    *,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Bool[Tensor, "B N"]:
    """Every anchor's allowed candidates between two quantiles of their similarity.

    Of n allowed candidates in ascending order stay those with numbers round(low n) to round(high n) - 1; high = 0.95
    leaves out the hardest twentieth as suspected false negatives.

    Args:
        similarity: [B, N].
        low, high: shares, 0 <= low < high <= 1.
        allowed: candidates that count; None: all.

    Notes: equal similarities stand in the order of the candidates. O(B N log N).
    """
    expect(0 <= low < high <= 1, "low, high", "shares, 0 <= low < high <= 1", (low, high))
    if allowed is not None:
        similarity = similarity.masked_fill(~allowed, torch.inf)
    rank = torch.empty(similarity.shape, dtype=torch.long, device=similarity.device)
    order = similarity.argsort(dim=1, stable=True)
    rank.scatter_(1, order, torch.arange(similarity.shape[1], device=rank.device).expand_as(rank))
    if allowed is None:
        n = torch.full((len(similarity), 1), similarity.shape[1], device=rank.device)
        allowed = torch.ones_like(rank, dtype=torch.bool)
    else:
        n = allowed.sum(1, keepdim=True)
    return allowed & (rank >= (low * n.double()).round()) & (rank < (high * n.double()).round())


@torch.no_grad()
def semi_hard(similarity: Float[Tensor, "B N"], positive: Float[Tensor, " B"], margin: float) -> Bool[Tensor, "B N"]:
    """Candidates less similar than the positive, by less than a margin.

    s_positive - margin < s < s_positive

    Args:
        similarity: [B, N].
        positive: similarity of each anchor's positive [B].
        margin: above 0, in units of the similarity.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015.
    """
    expect(margin > 0, "margin", "a number > 0", margin)
    return (similarity < positive[:, None]) & (similarity > positive[:, None] - margin)


@torch.no_grad()
def distance_weights(
    similarity: Float[Tensor, "B N"], dim: int, *, nearest: float = 0.5, farthest: float = 1.4
) -> Float[Tensor, "B N"]:
    """Logarithms of weights that make drawn negatives equally frequent at every distance.

    log w = (2 - D) log d - (D - 3)/2 log(1 - d^2/4),  d = sqrt(2 - 2 s) and at least `nearest`

    the inverse density of distances between points uniform on the sphere.

    Args:
        similarity: cosines [B, N].
        dim: D, width of the embedding, 2 or more.
        nearest: distances below count as this one, against draws of high variance.
        farthest: candidates from this distance on get weight 0; at most 2.

    Returns:
        [B, N], -inf for weight 0; for `draw`.

    Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017.
    """
    expect(dim >= 2, "dim", "2 or more", dim)
    expect(0 < nearest < farthest <= 2, "nearest, farthest", "0 < nearest < farthest <= 2", (nearest, farthest))
    distance = (2 - 2 * wide(similarity)).clamp(min=0).sqrt()
    d = distance.clamp(nearest, farthest * (1 - 1e-6))
    weights = (2 - dim) * d.log() - (dim - 3) / 2 * torch.log1p(-(d**2) / 4)
    return weights.masked_fill(distance >= farthest, -torch.inf)


@torch.no_grad()
def draw(log_weight: Float[Tensor, "B N"], num: int, *, generator: torch.Generator | None = None) -> Int[Tensor, "B P"]:
    """`num` different candidates of every anchor, each in proportion to the weights of those that are left.

    Args:
        log_weight: [B, N] logarithms, -inf for candidates never drawn; need not sum to one. `similarity / temperature`
            draws hard ones more often, `mask.log()` of a 0/1 float mask draws uniformly.
        num: P, candidates an anchor.
        generator: of the draws, on the device of the weights.

    Returns:
        int64 [B, P], in the order they were drawn.

    Raises:
        ValueError: an anchor with fewer than `num` candidates of weight above 0.

    Source: Kool, van Hoof, Welling, "Stochastic beams and where to find them", ICML 2019 (the largest of perturbed
        logarithms are a draw without replacement).
    """
    expect(not bool(log_weight.isnan().any()), "log_weight", "no NaN", "NaN")
    least = int((log_weight > -torch.inf).sum(1).min())
    expect(1 <= num <= least, "num", f"a number from 1 to {least}, what every anchor may draw from", num)
    uniform = torch.rand(log_weight.shape, generator=generator, device=log_weight.device, dtype=torch.float64)
    uniform.clamp_(min=1e-300)  # a zero would look like weight 0
    return (log_weight.double() - (-uniform.log()).log()).topk(num, dim=1).indices


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is that."""
    return x.to(accumulation(x))
