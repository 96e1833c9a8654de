"""VICReg: views agree, every feature varies, and no two features vary together.

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


class VICRegTerms(NamedTuple):
    """The three terms of `vicreg`, before their weights: each is 0 at best.

    Args:
        invariance: mean squared difference of two views' entries.
        variance: mean shortfall of the standard deviations below gamma; gamma - sqrt(eps) where all has collapsed.
        covariance: squared covariances of different features, over D.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(*views: Any, gamma: float = 1.0, eps: float = 1e-4) -> VICRegTerms:
    """The three terms of `vicreg`; arguments as there."""
    expect_positive("gamma", gamma)
    expect_positive("eps", eps)
    z = whole_views(views)
    with no_autocast(z.device):
        num_views, num, dim = z.shape
        # sum over pairs of |a - b|^2 = V times the sum of squares about the views' mean
        apart = (z - z.mean(0)).square().sum()
        invariance = 2 * apart / ((num_views - 1) * num * dim)
        z = centred(z)
        square_VD = z.square().sum(1)
        variance = (gamma - (square_VD / (num - 1) + eps).sqrt()).relu().mean()
        squares = [off_diagonal_norm(view, view, square) for view, square in zip(z, square_VD, strict=True)]
        covariance = 2 * torch.stack(squares).mean() / ((num - 1) ** 2 * dim)
        return VICRegTerms(invariance, variance, covariance)


def vicreg(
    *views: Any,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Embeddings of views are near, while a hinge keeps features spread and a penalty keeps them apart.

    With C_v the (unbiased) covariance of view v over the batch:

    L = w_i mean_{v < w} mean_nd (z_vnd - z_wnd)^2 + w_v mean_vd max(0, g - sqrt(C_vdd + eps))
        + w_c 2 mean_v 1/D sum_{d != e} C_vde^2

    Args:
        *views: z0 [N, D], z1 [N, D], ...; or one tensor [V, N, D]. Over several processes the rows of all of them, from
            a differentiable gather: covariances are of the whole batch.
        invariance, variance, covariance: the weights w_i, w_v, w_c >= 0.
        gamma: g > 0, the standard deviation that a feature must have.
        eps: added to variances.

    Returns:
        The loss, float32 (float64 for float64 input).

    Raises:
        ValueError: one view or one sample alone, a negative weight, gamma or eps not above zero.

    Notes:
        Embeddings are not normalised. For two views these are the numbers of the authors' code, which averages the
        hinge over both and adds both covariances (the paper's formula adds both hinges too). The smaller of 2 N D^2
        and 2 N^2 D FLOP a view forward, memory O(N D + min(N, D)^2). Every process computes the whole loss: give its
        term the same count everywhere.

    Relations:
        `vicreg_terms` gives the three terms; `barlow` joins them in one matrix between views.

    Example:
        >>> import torch
        >>> from nearfar.objectives import vicreg, vicreg_terms
        >>> z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
        >>> float(vicreg(z, z))
        0.0
        >>> [round(float(term), 2) for term in vicreg_terms(z, torch.zeros(4, 2))]  # one view collapsed
        [4.0, 0.5, 0.0]

    Source: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    ICLR 2022.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, weight in weights.items():
        expect(weight >= 0 and math.isfinite(weight), name, "a finite number of 0 or more", weight)
    terms = vicreg_terms(*views, gamma=gamma, eps=eps)
    return invariance * terms.invariance + variance * terms.variance + covariance * terms.covariance


class VICReg(nn.Module):
    """`vicreg` as a Module; see there.

    Args:
        invariance, variance, covariance: the weights.
        gamma: standard deviation that a feature must have.
        eps: added to variances.
    """

    needs_negatives = False
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, *, gamma: float = 1.0,
        eps: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_positive("gamma", gamma)
        self.options = {
            "invariance": invariance, "variance": variance, "covariance": covariance, "gamma": gamma, "eps": eps
        }  # fmt: skip

    def forward(self, *views: Any) -> Tensor:
        return vicreg(*views, **self.options)
