"""Losses of two networks that play against each other, by single sides so that either side keeps its own mean.

Legend: B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect


def least_squares(scores: Tensor, target: float) -> Tensor:
    r"""The mean squared distance of a discriminator's scores from a target, as least-squares GANs have it.

    :math:`L = \frac1n \sum_i (s_i - t)^2`. A discriminator pays half of it for real samples with t = 1 plus half of it
    for made ones with t = 0; what makes them pays it with t = 1.

    Args:
        scores: s of any shape, for instance a map of patches [B, 1, h, w].
        target: t.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        ValueError: no scores.

    Relations: `objectives.discriminator(form="lsgan")` is the sum of both sides without the halves.

    Source: Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017.
    """
    expect(scores.numel() > 0, "scores", "one or more", tuple(scores.shape))
    return (scores.to(accumulation(scores)) - target).square().mean()


def r1(discriminator: torch.nn.Module, real: Tensor) -> Tensor:
    r"""Half of the squared gradient of a discriminator at real samples, which keeps it flat where the data are.

    :math:`R = \frac{1}{2B} \sum_b \| \nabla_x \sum D(x_b) \|^2`, without autocast.

    Args:
        discriminator: D, whose scores of a sample do not depend on other samples.
        real: x [B, ...], float.

    Returns:
        A scalar with a graph to D's parameters.

    Raises:
        ValueError: no samples.

    Notes: costs a second backward through D.

    Source: Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018.
    """
    expect(len(real) > 0, "real", "one or more samples", tuple(real.shape))
    with torch.enable_grad(), no_autocast(real.device):
        x = real.detach().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return 0.5 * slope.square().sum() / len(real)
