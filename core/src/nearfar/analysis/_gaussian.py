"""What a linear encoder keeps of a noisy Gaussian view, in closed form.

Legend: d coordinates, p width of the encoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.analysis.sufficient_statistics import GaussianSufficiency
from nearfar.checks import expect, expect_positive


def gaussian_sufficiency(
    variance: Float[Tensor, " d"], noise: float, encoder: Float[Tensor, "p d"]
) -> GaussianSufficiency:
    """What a linear encoder loses of the mutual information of two noisy views of a Gaussian, in closed form.

    I(z1; z2) = -1/2 sum_i log(1 - rho_i^2),  I(W z1; z2) = -1/2 log det( 1 - U diag(rho)^2 U' )

    for x ~ N(0, diag(lambda)), z_i = x + sigma e_i, rho_i = lambda_i / (lambda_i + sigma^2), and orthonormal rows U
    that span W diag(lambda + sigma^2)^(1/2).

    Args:
        variance: lambda [d], 0 or more.
        noise: sigma > 0.
        encoder: W [p, d]; rows may depend on each other. W z1 is the code.

    Raises:
        ValueError: shapes that do not fit, a variance below 0, an encoder of zeros.
    """
    expect(variance.ndim == 1 and len(variance) > 0, "variance", "shape [d]", tuple(variance.shape))
    lam, w = variance.detach().cpu().double(), encoder.detach().cpu().double()
    fits = bool(lam.isfinite().all()) and bool((lam >= 0).all())
    expect(fits, "variance", "finite numbers of 0 or more", lam.tolist())
    expect_positive("noise", noise)
    expect(w.ndim == 2 and w.shape[1] == len(lam), "encoder", f"shape [p, {len(lam)}]", tuple(w.shape))
    expect(bool(w.isfinite().all()), "encoder", "finite numbers", "nan or inf")
    rho = lam / (lam + noise**2)
    whole = float(-torch.log1p(-rho.square()).sum() / 2)
    _, size, right = torch.linalg.svd(w * (lam + noise**2).sqrt(), full_matrices=False)
    rank = int((size > 1e-12 * size.max()).sum())
    expect(rank > 0, "encoder", "a row that is not zero", "zeros")
    u, eye = right[:rank], torch.eye(len(rho), dtype=torch.float64)
    kept = float(-torch.linalg.slogdet(eye[:rank, :rank] - (u * rho.square()) @ u.t())[1] / 2)
    # From the other side: the covariance of z2 that is left given the code, against that given z1.
    left = eye - (rho[:, None] * u.t()) @ (u * rho)
    conditional = float(torch.linalg.slogdet(left)[1] - torch.log1p(-rho.square()).sum()) / 2
    return GaussianSufficiency(information=whole, kept=kept, gap=whole - kept, conditional=conditional)


def augmentation_error(variance: Float[Tensor, " d"], noise: float, target: Float[Tensor, " d"]) -> float:
    """eps_aug of a linear target h(x) = v . x in the Gaussian world: what the noise of a view took from it.

    E[ (h(x) - E[h(x) | z])^2 ] = sum_i v_i^2 lambda_i sigma^2 / (lambda_i + sigma^2)

    Args:
        variance, noise: as `gaussian_sufficiency`.
        target: v [d].
    """
    expect(target.shape == variance.shape, "target", f"shape {tuple(variance.shape)}", tuple(target.shape))
    expect_positive("noise", noise)
    lam, v = variance.detach().cpu().double(), target.detach().cpu().double()
    return float((v.square() * lam * noise**2 / (lam + noise**2)).sum())
