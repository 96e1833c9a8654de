"""Clusters that became too small give up their rows, and the largest ones are split in their place.

Legend: N rows of this process, M members of one cluster on all processes, D features, K clusters.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar._tiles import no_autocast
from nearfar.checks import expect
from nearfar.distributed import gather, offset, reduce_sum
from nearfar.prototypes._rows import add_rows_, checked, from_first, nearest

SAMPLE, TURNS = 4096, 10
"""members that decide where a cluster is cut, and iterations of 2-means on them"""


@torch.no_grad()
def repair_clusters(
    x: Float[Tensor, "N D"],
    label: Int[Tensor, " N"],
    centroid: Float[Tensor, "K D"],
    *,
    min_size: int = 1,
    distributed: bool = False,
) -> tuple[Int[Tensor, " N"], Float[Tensor, "K D"]]:
    """Empties clusters below `min_size` and refills each by splitting the largest cluster in two.

    Rows of a small cluster go to the nearest centroid of the others. Then, for every empty cluster, the cluster that is
    the largest by now is cut by 2-means; a part that would be too small takes the rows next to the cut, and rows that
    are all equal are cut in half.

    Args:
        x: rows [N, D].
        label: the cluster of every row, from 0 to K - 1.
        centroid: [K, D].
        min_size: least rows of a cluster, over all processes; at most rows over clusters.
        distributed: clusters are those of all processes. A collective.

    Returns:
        (labels [N], centroids [K, D]); centroids of clusters that changed are the means of their rows, not rescaled.

    Raises:
        ValueError: labels outside the clusters, unequal widths, min_size too large, rows that are not finite.

    Notes:
        No cluster ends below min_size except halves of one that held fewer than twice as many. Costs nothing beside
        counting where no cluster is small, else one pass over the small clusters' rows and one over the members of each
        cluster that is split (cut by a sample of 4096 of them).

    Source: Xie et al., "Delving into Inter-Image Invariance for Unsupervised Visual Representations", IJCV 2022; Zhan
        et al., "Online Deep Clustering", CVPR 2020.
    """
    with no_autocast(x.device):
        rows = checked("x", x, normalize=False, distributed=distributed)
        num = len(centroid)
        expect(centroid.ndim == 2 and num >= 1 and centroid.shape[1] == x.shape[1], "centroid",
               f"shape [K, {x.shape[1]}]", tuple(centroid.shape))  # fmt: skip
        expect(tuple(label.shape) == (len(x),), "label", f"shape {(len(x),)}", tuple(label.shape))
        expect(bool(((label >= 0) & (label < num)).all()), "label", f"clusters from 0 to {num - 1}", "others")
        most = rows.total // num
        expect(1 <= min_size <= most, "min_size", f"a number from 1 to {most}, rows over clusters", min_size)
        new = mend(rows.x, label, centroid.to(rows.x), min_size, distributed)
        changed = torch.bincount(torch.cat([label[new != label], new[new != label]]), minlength=num)
        total = add_rows_(rows.x.new_zeros(num, x.shape[1]), new, rows.x)
        count = torch.bincount(new, minlength=num)
        if distributed:
            changed, total, count = reduce_sum(changed), reduce_sum(total), reduce_sum(count)
        mean = (total / count.clamp(min=1)[:, None]).to(centroid.dtype)
        return new, torch.where((changed > 0)[:, None], mean, centroid)


def mend(x: Tensor, label: Tensor, centroid: Tensor, min_size: int, far: bool) -> Tensor:
    """New labels; see `repair_clusters`."""
    label = label.clone()
    size = _sizes(label, len(centroid), far)
    small = size < min_size
    if not bool(small.any()):
        return label
    moving = small[label].nonzero().flatten()
    kept = (~small).nonzero().flatten()
    label[moving] = kept[nearest(x[moving], centroid[kept])[0]]
    size = _sizes(label, len(centroid), far)
    for empty in small.nonzero().flatten().tolist():
        largest = int(size.argmax())
        member = (label == largest).nonzero().flatten()
        leaves = _cut(x[member], min_size, far)
        label[member[leaves]] = empty
        moved = leaves.sum()
        moved = reduce_sum(moved) if far else moved
        size[empty] = moved
        size[largest] -= moved
    return label


def _sizes(label: Tensor, num: int, far: bool) -> Tensor:
    size = torch.bincount(label, minlength=num)
    return reduce_sum(size) if far else size


def _cut(x: Tensor, min_size: int, far: bool) -> Tensor:
    """Which of this process's members of a cluster leave it."""
    sample = gather(x[:SAMPLE], grad=False)[:SAMPLE] if far else x[:SAMPLE]
    between_D, along_D = from_first(_axis(sample), far)
    mine = (x - between_D) @ along_D
    side_M = gather(mine, grad=False) if far else mine
    num = len(side_M)
    least = min(min_size, num // 2)
    leaving = int((side_M > 0).sum())
    leaving = num // 2 if bool((side_M == side_M[0]).all()) else min(max(leaving, least), num - least)
    leaves = torch.zeros(num, dtype=torch.bool, device=x.device)
    leaves[side_M.argsort(descending=True, stable=True)[:leaving]] = True
    start = offset(len(x)) if far else 0
    return leaves[start : start + len(x)]


def _axis(x: Tensor) -> Tensor:
    """The point between the centres of 2-means, and the direction from one to the other [2, D]."""
    first = x[(x - x.mean(0)).square().sum(1).argmax()]
    centre_2D = torch.stack([first, x[(x - first).square().sum(1).argmax()]])
    for _ in range(TURNS):
        label, _ = nearest(x, centre_2D)
        second = label.bool()
        if bool(second.all()) or not bool(second.any()):
            break
        centre_2D = torch.stack([x[~second].mean(0), x[second].mean(0)])
    return torch.stack([centre_2D.mean(0), centre_2D[1] - centre_2D[0]])
