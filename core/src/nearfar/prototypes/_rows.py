"""What all parts that read rows of features share: checks that every process passes or fails alike, and sums by label.

Legend: N rows of this process, D features, K clusters or classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect
from nearfar.distributed import gather, offset, rank, reduce_sum

TILE = 1 << 22
"""entries of one block of similarities (16 MB in fp32)"""


class Rows(NamedTuple):
    """Checked rows.

    Args:
        x: [N, D] in fp32 or fp64, without gradient.
        total: rows of all processes.
        first: rows of the processes before this one.
    """

    x: Tensor
    total: int
    first: int


def checked(name: str, x: Tensor, *, normalize: bool, distributed: bool) -> Rows:
    """Finite rows, of unit length if asked; complaints reach every process where `distributed`."""
    expect(x.ndim == 2 and x.shape[1] >= 1, name, "shape [N, D], D of 1 or more", tuple(x.shape))
    expect(x.is_floating_point(), name, "floating point", x.dtype, TypeError)
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    bad = (~x.isfinite()).any(1)
    zero = (x == 0).all(1) if normalize else torch.zeros_like(bad)
    mine = torch.stack([torch.tensor(len(x), device=x.device), bad.sum(), zero.sum(),
                        torch.tensor(x.shape[1], device=x.device)])[None]  # fmt: skip
    every = (gather(mine, grad=False) if distributed else mine).sum(0).tolist()
    total = int(every[0])
    expect(total >= 1, name, "one row or more", 0)
    first = f", first {int(bad.nonzero()[0])}" if bool(bad.any()) else ""
    expect(every[1] == 0, name, "finite features", f"{every[1]} rows with nan or inf{first}")
    first = f", first {int(zero.nonzero()[0])}" if bool(zero.any()) else ""
    expect(every[2] == 0, name, "rows that are not zero, which have no direction", f"{every[2]} zero rows{first}")
    return Rows(F.normalize(x, dim=1) if normalize else x, total, offset(len(x)) if distributed else 0)


def add_rows_(total_KD: Tensor, label_N: Tensor, x_ND: Tensor) -> Tensor:
    """Adds every row to the row of its label, in one order whatever the device does at once."""
    if total_KD.is_cuda:  # index_add_ adds there in the order in which threads arrive; this one sorts
        return total_KD.index_put_((label_N,), x_ND, accumulate=True)
    return total_KD.index_add_(0, label_N, x_ND)


def nearest(x: Tensor, centroid_KD: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest centroid, squared distance) of every row; blocks of rows, so that N x K distances never exist."""
    origin_D = centroid_KD.mean(0)  # squares of numbers far from zero would leave no digits for their differences
    centroid_KD = centroid_KD - origin_D
    half_K = 0.5 * centroid_KD.square().sum(1)
    label = torch.empty(len(x), dtype=torch.long, device=x.device)
    distance = torch.empty(len(x), dtype=x.dtype, device=x.device)
    size = max(1, TILE // max(centroid_KD.shape))
    for start in range(0, len(x), size):
        rows = x[start : start + size] - origin_D
        best = torch.addmm(half_K, rows, centroid_KD.T, beta=-1).max(1)  # x.c - |c|^2 / 2 is larger the nearer c is
        label[start : start + size] = best.indices
        distance[start : start + size] = (rows.square().sum(1) - 2 * best.values).clamp_(min=0)
    return label, distance


def from_first(x: Tensor, distributed: bool) -> Tensor:
    """What process 0 computed, on all of them: equal to the last bit even where their machines round differently."""
    return reduce_sum(x if rank() == 0 else torch.zeros_like(x)) if distributed else x
