"""Triplet loss: an anchor's positives nearer than its negatives, by a margin.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats
from nearfar.objectives._pairs import pairs

MINING = ("all", "semi_hard", "hard")
DISTANCES = ("euclidean", "squared", "cosine")


@torch.compiler.disable()
def triplet(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    margin: float | None = 0.2,
    mining: str = "all",
    distance: str = "euclidean",
    normalize: bool = True,
    average: str = "active",
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    keys: tuple[Tensor, Tensor] | None = None,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Hinge of the distances from an anchor to a positive and to a negative.

    L = mean over triplets (i, p, n) of max(0, d_ip - d_in + m)

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; all other embeddings of a class are positives.
        margin: m, 0 or above; None: log(1 + exp(d_ip - d_in)) in place of the hinge, not for mining="all".
        mining: triplets of an anchor: "all"; "semi_hard", with every positive the nearest negative beyond it; "hard",
            the farthest positive with the nearest negative.
        distance: "euclidean", "squared" (Euclidean) or "cosine", 1 - cos.
        normalize: scale embeddings to unit length first.
        average: over "active" triplets, whose hinge is above 0, or over "all" that were chosen.
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        keys: (vectors [K, D], labels [K]) that anchors meet instead of one another: a teacher's, a queue's.
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats, whose anchors are the triplets of the mean: what weighs parts of a batch.

    Returns:
        The loss, or (loss, Stats); 0 where no triplet is active.

    Raises:
        ValueError: one class alone, or no class with two embeddings; an option that is none.

    Notes:
        All triplets without listing them: sorted distances of positives tell how many negatives each reaches, and the
        loss is linear in the distances with those counts as factors. O(B N (D + log N)) in place of B N^2, memory
        O(B D + strip). Equal points get no gradient from "euclidean".

    Relations:
        On unit vectors "squared" with margin m is the hinge of cosines 2 (s_n - s_p) + m.

    Example:
        >>> import torch
        >>> from nearfar.objectives import triplet
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])  # squared distances 2, 0.8 and 0.4
        >>> round(float(triplet(z, torch.tensor([0, 0, 1]), distance="squared")), 4)  # mean of 1.4 and 1.8
        1.6

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015; Hermans, Beyer, Leibe, "In Defense of the Triplet Loss
    for Person Re-Identification", 2017.
    """
    _check(margin, mining, distance, average)
    with no_autocast((z if isinstance(z, Tensor) else z[0]).device):
        pair = pairs(z, labels, gathered, offset, unit=normalize, keys=keys)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            d = pair.distance(rows, distance)
            positive, negative = pair.masks(rows)
            if mining == "all":
                return all_hinges(d, positive, negative, float(margin or 0.0))
            return _mined(d, positive, negative, margin, mining == "hard")

        num = len(pair.anchor)
        total, active, chosen = (
            x.sum() for x in in_strips(strip, num, len(pair.candidate), tile, pair.anchor.device)
        )  # fmt: skip
    count = int(active if average == "active" else chosen)
    loss = total / max(1, count)
    return (loss, Stats(count, 0, None)) if with_stats else loss


def _check(margin: float | None, mining: str, distance: str, average: str) -> None:
    expect_choice("mining", mining, MINING)
    expect_choice("distance", distance, DISTANCES)
    expect_choice("average", average, ("active", "all"))
    expect(margin is not None or mining != "all", "margin", "a number with mining='all'", margin)
    expect(margin is None or (margin >= 0 and math.isfinite(margin)), "margin", "a finite number of 0 or more", margin)


def all_hinges(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the hinges of all triplets of each anchor, how many are above 0, and how many there are."""
    with torch.no_grad():
        count = positive.sum(1)
        most = int(count.max())
        bars, where = (d + margin).masked_fill(~positive, math.inf).topk(most, largest=False)
        below = torch.searchsorted(bars, d, right=True)  # positives whose bar a candidate does not undercut
        reaching = (count[:, None] - below).masked_fill(~negative, 0)
        # a positive reaches the negatives that lie below its bar: those with as many bars below them, or fewer
        tally = below.new_zeros(len(d), most + 1).scatter_add_(1, below, negative.to(below.dtype))
        reached = tally.cumsum(1)[:, :most].masked_fill(bars == math.inf, 0)
        factor = (-reaching).scatter_add_(1, where, reached).to(d.dtype)
        active = reached.sum(1)
    # a left-out entry may be anything finite: its factor is 0
    return (factor * d).sum(1) + margin * active, active, count * negative.sum(1)


def _mined(
    d: Tensor, positive: Tensor, negative: Tensor, margin: float | None, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if hard:
        chosen = (positive.any(1) & negative.any(1)).unsqueeze(1)
        near = d.masked_fill(~negative, math.inf).amin(1, keepdim=True)
        far = d.masked_fill(~positive, -math.inf).amax(1, keepdim=True)
    else:
        beyond = d.masked_fill(~negative, math.inf).sort(1).values
        place = torch.searchsorted(beyond.detach(), d.detach(), right=True)
        chosen = positive & (place < negative.sum(1, keepdim=True))
        near, far = beyond.gather(1, place.clamp_max(d.shape[1] - 1)), d
    gap = torch.where(chosen, far, 0.0) - torch.where(chosen, near, 0.0)
    loss = softplus(gap) if margin is None else torch.relu(gap + margin)
    loss = torch.where(chosen, loss, 0.0)
    return loss.sum(1), (loss > 0).sum(1), chosen.sum(1)


def triplet_count(z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> tuple[int, int]:
    """Active and chosen triplets of a batch, for monitoring; options as `triplet`."""
    with torch.no_grad():
        counts = [triplet(z, labels, **options, average=kind, with_stats=True)[1] for kind in ("active", "all")]
    return counts[0].num_anchors, counts[1].num_anchors


class Triplet(nn.Module):
    """`triplet` as a Module; see there.

    Args:
        margin: m, or None for the soft form.
        mining: "all", "semi_hard" or "hard".
        distance: "euclidean", "squared" or "cosine".
        normalize: scale embeddings to unit length first.
        average: over "active" or "all" triplets.
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        margin: float | None = 0.2,
        *,
        mining: str = "all",
        distance: str = "euclidean",
        normalize: bool = True,
        average: str = "active",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        _check(margin, mining, distance, average)
        self.options: dict[str, Any] = {
            "margin": margin, "mining": mining, "distance": distance, "normalize": normalize, "average": average,
            "tile": tile,
        }  # fmt: skip

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `triplet`."""
        return triplet(z, labels, **self.options, **options)
