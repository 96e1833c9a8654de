"""Barlow Twins: the cross-correlation of two views' features goes to the identity.

Legend: V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_positive
from nearfar.objectives._moments import centred, off_diagonal_norm, whole_views


class BarlowTerms(NamedTuple):
    """The two sums of `barlow`, before their weight: each is 0 at best.

    Args:
        invariance: how far correlations of a feature with itself in the other view are from 1.
        redundancy: squared correlations of different features.
    """

    invariance: Tensor
    redundancy: Tensor


def barlow_terms(*views: Any, eps: float = 1e-5) -> BarlowTerms:
    """Both terms of `barlow`; arguments as there."""
    expect_positive("eps", eps)
    z = whole_views(views)
    with no_autocast(z.device):
        z = centred(z)
        z = z * (z.square().mean(1, keepdim=True) + eps).rsqrt()
        num, pairs = z.shape[1], [(v, w) for w in range(len(z)) for v in range(w)]
        invariance, redundancy = [], []
        for v, w in pairs:
            own_D = (z[v] * z[w]).sum(0)
            invariance.append((1 - own_D / num).square().sum())
            redundancy.append(off_diagonal_norm(z[v], z[w], own_D) / num**2)
        return BarlowTerms(torch.stack(invariance).mean(), torch.stack(redundancy).mean())


def barlow(*views: Any, off_diagonal: float = 0.0051, scale: float = 1.0, eps: float = 1e-5) -> Tensor:
    """Features agree between views and are uncorrelated with each other.

    With c = 1/N sum_i a_i b_i' of embeddings standardised over the batch (mean 0, variance 1, each view by itself):

    L = s [ sum_d (1 - c_dd)^2 + l sum_{d != e} c_de^2 ]

    Args:
        *views: z0 [N, D], z1 [N, D], ...; or one tensor [V, N, D]. Over several processes the rows of all of them, from
            a differentiable gather: statistics and c are of the whole batch.
        off_diagonal: l >= 0; the paper rounds it to 5e-3.
        scale: s; the sum grows with D, and 1/D gives a mean over features instead.
        eps: added to variances.

    Returns:
        The loss, float32 (float64 for float64 input), the mean over pairs of views.

    Raises:
        ValueError: one view or one sample alone, a negative weight, a scale or eps not above zero.

    Notes:
        The smaller of 2 N D^2 and 4 N^2 D FLOP a pair forward, memory O(N D + min(N, D)^2): with fewer samples than
        features the D x D matrix is never made. A feature that is the same in all samples counts as uncorrelated with
        itself: collapse costs D. Every process computes the whole loss: give its term the same count everywhere.

    Relations:
        `vicreg` asks for the same of the covariance of each view by itself; `spectral` of second moments.

    Example:
        >>> import torch
        >>> from nearfar.objectives import barlow
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # two features, uncorrelated
        >>> round(float(barlow(z, z)), 4), round(float(barlow(z, -z)), 4)  # 0, and twice (1 - -1)^2
        (0.0, 7.9999)

    Source: Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML
    2021.
    """
    expect(off_diagonal >= 0 and math.isfinite(off_diagonal), "off_diagonal", "a finite number of 0 or more",
           off_diagonal)  # fmt: skip
    expect_positive("scale", scale)
    invariance, redundancy = barlow_terms(*views, eps=eps)
    return scale * (invariance + off_diagonal * redundancy)


class Barlow(nn.Module):
    """`barlow` as a Module; see there.

    Args:
        off_diagonal: weight of the correlations between different features.
        scale: multiplies the loss.
        eps: added to variances.
    """

    needs_negatives = False
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, off_diagonal: float = 0.0051, scale: float = 1.0, *, eps: float = 1e-5) -> None:
        super().__init__()
        expect_positive("scale", scale)
        self.off_diagonal, self.scale, self.eps = off_diagonal, scale, eps

    def forward(self, *views: Any) -> Tensor:
        return barlow(*views, off_diagonal=self.off_diagonal, scale=self.scale, eps=self.eps)
