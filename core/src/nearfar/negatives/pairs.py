"""The hardest positive and the hardest negative of every row of a labelled batch.

Legend: N rows, D embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar._tiles import no_autocast
from nearfar.checks import expect
from nearfar.negatives.choose import wide


class HardPairs(NamedTuple):
    """Rows of the batch, int64 [N] each.

    Args:
        positive: the least similar row of the same class; the row itself where it is alone.
        negative: the most similar row of another class; the row itself where there is no other class.
    """

    positive: Tensor
    negative: Tensor


@torch.no_grad()
def hard_pairs(z: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> HardPairs:
    """The hardest positive and negative of every row, by cosine.

    p(i) = argmin_{j != i, y_j = y_i} cos(z_i, z_j),  n(i) = argmax_{y_j != y_i} cos(z_i, z_j)

    Args:
        z: [N, D].
        labels: class of every row.

    Raises:
        ValueError: a number of labels that is not that of the rows.

    Notes: 2 N^2 D FLOP; one N x N matrix. Of equally hard rows the first is taken.

    Source: Zhang, Hooi, Hu, Liang, Feng, "Unleashing the Power of Contrastive Self-Supervised Visual Models via
        Contrast-Regularized Fine-Tuning", NeurIPS 2021.
    """
    expect(len(labels) == len(z), "labels", f"shape [{len(z)}]", tuple(labels.shape))
    unit = F.normalize(wide(z), dim=1)
    with no_autocast(z.device):
        cosine = unit @ unit.t()
    same = labels[:, None] == labels
    other = ~same
    rows = torch.arange(len(z), device=z.device)
    same[rows, rows] = False
    positive = torch.where(same.any(1), cosine.masked_fill(~same, torch.inf).argmin(1), rows)
    negative = torch.where(other.any(1), cosine.masked_fill(~other, -torch.inf).argmax(1), rows)
    return HardPairs(positive, negative)
