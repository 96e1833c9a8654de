"""Block contrast: an anchor against the mean of a block of positives and means of blocks of negatives.

Legend: B batch, D embedding, P positives of a block, K blocks of negatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._similarity import accumulation, log_sum_exp
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats
from nearfar.objectives._shared import reduced


def block_contrast(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    loss: str = "logistic",
    bits: bool = False,
    reduction: str = "mean",
    with_stats: bool = False,
) -> Any:
    """Margin loss of an anchor's products with block means, the loss that bounds mean classifiers on latent classes.

    v_k = f_i . ( mean_p f_ip - mean_p f_ikp )
    L_i = log(1 + sum_k exp(-v_k))  (logistic)  or  max(0, max_k (1 - v_k))  (hinge)

    Args:
        anchor: f [B, D].
        positive: [B, D], or a block [B, P, D] of samples of the anchor's class.
        negative: [B, K, D], or blocks [B, K, P, D], each of samples of one class.
        loss: "logistic" or "hinge".
        bits: logarithms to the base 2, with which the theory's bounds are stated: l(0) = 1 for K = 1.
        reduction: "mean", "sum" or "none" ([B]).
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: shapes that do not fit; bits with "hinge".

    Notes:
        O(B K P D). Products, not cosines: keep norms bounded. A block mean lowers the loss, by convexity, and with it
        the bound (L - tau) / (1 - tau) on the supervised loss, tau the chance that two classes collide; more negatives
        raise that chance.

    Relations:
        "logistic" without blocks is `info_nce` of products at temperature 1 with given negatives.

    Example:
        >>> import torch
        >>> from nearfar.objectives import block_contrast
        >>> f, p, n = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 0.0]]])
        >>> float(block_contrast(f, p, n, loss="hinge"))  # 1 - 1/2
        0.5

    Source: Arora, Khandeparkar, Khodak, Plevrakis, Saunshi, "A Theoretical Analysis of Contrastive Unsupervised
    Representation Learning", ICML 2019.
    """
    _check(loss, bits)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(anchor.ndim == 2 and len(anchor) > 0, "anchor", "shape [B, D], B >= 1", tuple(anchor.shape))
    num, dim = anchor.shape
    fits = positive.ndim in (2, 3) and (positive.shape[0], positive.shape[-1]) == (num, dim) and positive.numel() > 0
    expect(fits, "positive", f"shape [{num}, {dim}] or [{num}, P, {dim}]", tuple(positive.shape))
    fits = negative.ndim in (3, 4) and (negative.shape[0], negative.shape[-1]) == (num, dim) and negative.numel() > 0
    expect(fits, "negative", f"shape [{num}, K, {dim}] or [{num}, K, P, {dim}]", tuple(negative.shape))
    with no_autocast(anchor.device):
        kind = accumulation(anchor, positive, negative)
        f, p, n = anchor.to(kind), positive.to(kind), negative.to(kind)
        p = p.mean(1) if p.ndim == 3 else p
        n = n.mean(2) if n.ndim == 4 else n
        v_BK = (f * p).sum(1, keepdim=True) - torch.einsum("bd,bkd->bk", f, n)
        if loss == "hinge":
            loss_B = torch.relu(1 - v_BK).amax(1)
        else:
            loss_B = log_sum_exp(torch.cat([torch.zeros_like(v_BK[:, :1]), -v_BK], 1), 1)
            loss_B = loss_B / math.log(2) if bits else loss_B
    total = reduced(loss_B, reduction)
    return (total, Stats(num, 0, None)) if with_stats else total


def _check(loss: str, bits: bool) -> None:
    expect_choice("loss", loss, ("logistic", "hinge"))
    expect(not bits or loss == "logistic", "bits", "False with loss='hinge'", bits)


class BlockContrast(nn.Module):
    """`block_contrast` as a Module; see there.

    Args:
        loss: "logistic" or "hinge".
        bits: logarithms to the base 2.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(self, loss: str = "logistic", *, bits: bool = False) -> None:
        super().__init__()
        _check(loss, bits)
        self.loss, self.bits = loss, bits

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor, **options: Any) -> Any:
        """The loss; further options as `block_contrast`."""
        return block_contrast(anchor, positive, negative, loss=self.loss, bits=self.bits, **options)
