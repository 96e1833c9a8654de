"""Mutual information of many pairs of Gaussian variables, each from its correlation.

Legend: R pairs of variables, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect


def correlation_information(u: Tensor, v: Tensor, mask: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Mutual information of row r of `u` and row r of `v` if both were Gaussian, from Pearson's correlation.

    I_r = -1/2 log max(1 - rho_r^2, eps)

    Args:
        u: [R, N].
        v: [R, N]; column n of a row belongs to column n of the same row of `u`.
        mask: bool [R, N], False where a sample does not count; what stands there may be anything, infinities too.
        eps: what 1 - rho^2 is held above, so that equal rows have 1/2 log(1 / eps) and no gradient.

    Returns:
        Nats [R], 0 or above, float32 (float64 for float64 input); 0 where a row is constant or has one sample.

    Raises:
        ValueError: unequal shapes; an eps outside (0, 1).

    Notes:
        O(R N). The sign of a correlation is lost. No change when a row is multiplied by a number other than 0, or
        shifted. Of independent rows it is about 1 / (2 N) on average, not 0. A row that varies by less than some
        roundings of its size counts as constant.

    Relations:
        `gaussian_information` is that of two sets of vectors, with their whole covariance.

    Example:
        >>> import torch
        >>> from nearfar.objectives import correlation_information
        >>> u, v = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[2.0, 0.0, 0.0, -2.0]])
        >>> round(float(correlation_information(u, v)), 4)  # -1/2 log(1 - 1/2)
        0.3466

    Source: Klein, Nabi, "miCSE: Mutual Information Contrastive Learning for Low-shot Sentence Embeddings", ACL 2023.
    """
    expect(u.ndim == 2, "u", "shape [R, N]", tuple(u.shape))
    expect(v.shape == u.shape, "v", f"the shape of u, {tuple(u.shape)}", tuple(v.shape))
    expect(
        mask is None or mask.shape == u.shape, "mask", f"the shape of u, {tuple(u.shape)}",
        None if mask is None else tuple(mask.shape),
    )  # fmt: skip
    expect(0 < eps < 1, "eps", "a number in (0, 1)", eps)
    with no_autocast(u.device):
        kind = accumulation(u, v)
        kept = torch.ones_like(u, dtype=torch.bool) if mask is None else mask
        count = kept.sum(1, keepdim=True).clamp_min(1)
        rho = (_unit(u.to(kind), kept, count) * _unit(v.to(kind), kept, count)).sum(1)
        return -0.5 * (1 - rho.square()).clamp_min(eps).log()


def _unit(x_RN: Tensor, kept_RN: Tensor, count_R1: Tensor) -> Tensor:
    """Rows centred and scaled to unit length, with zeros where nothing is kept; a constant row stays zero."""
    x_RN = torch.where(kept_RN, x_RN, 0.0)
    centred = torch.where(kept_RN, x_RN - x_RN.sum(1, keepdim=True) / count_R1, 0.0)
    limits = torch.finfo(x_RN.dtype)
    rounding = (16 * limits.eps) ** 2 * x_RN.detach().square().sum(1, keepdim=True)
    size = centred.square().sum(1, keepdim=True)
    # what is left of a constant row is rounding, whose correlation with anything would mean nothing
    return torch.where(size > rounding, centred * size.clamp_min(limits.tiny).rsqrt(), 0.0)
