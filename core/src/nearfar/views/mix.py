"""Views mixed with other samples of their batch: mixup and CutMix, with a partner, a share and a box by counter.

Shapes: B samples, C channels, H and W of the view.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.batch import View
from nearfar.checks import expect, expect_positive
from nearfar.rng import Rng


class Mixed(NamedTuple):
    """A view of which every sample holds something of another.

    `view` has the pixels [B, C, H, W] and keeps the geometry of each sample's own part; `partner` [B] is the row that
    sample b is mixed with; `share` [B] is how much of it is its own, so that a target is share y_b + (1 - share)
    y_partner[b].
    """

    view: View
    partner: Tensor
    share: Tensor


@torch.no_grad()
def mixup(view: View, index: Int[Tensor, " B"], rng: Rng, alpha: float = 1.0) -> Mixed:
    """Every sample blended with its partner: l x_b + (1 - l) x_partner[b], l from Beta(alpha, alpha).

    Args:
        view: float [B, C, H, W].
        index: [B] stable numbers of the samples.
        rng: of the draws; take that of the view, `rng.at(view=v)`.
        alpha: above 0; 1 draws l uniformly, less prefers samples that are nearly whole, more halves.

    Returns:
        A new view, partners and shares.

    Raises:
        ValueError: an alpha that is not positive, or an index of another length.

    Notes: shares depend on a sample alone, partners on which samples stand together and not on their order. Alone in
    its batch a sample is its own partner. Each process mixes its own rows.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    _check(view, index)
    share, partner = symmetric_beta(index, rng, alpha), partners(index, rng)
    data = torch.lerp(view.data[partner], view.data, share.to(view.data.dtype)[:, None, None, None])
    return Mixed(replace(view, data=data), partner, share)


@torch.no_grad()
def cutmix(view: View, index: Int[Tensor, " B"], rng: Rng, alpha: float = 1.0) -> Mixed:
    """Every sample with a box of its partner's pixels, of area 1 - l with l from Beta(alpha, alpha).

    The box has the view's own ratio of sides, its centre is uniform, and what lies outside the view is cut off; `share`
    says how many pixels stayed. Arguments, returns and notes as for `mixup`.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019.
    """
    _check(view, index)
    height, width = view.data.shape[2:]
    partner = partners(index, rng)
    side = (1 - symmetric_beta(index, rng, alpha)).sqrt()
    centre = rng.uniform(index, "mix.box", 2)

    def inside(place: Tensor, length: int) -> Tensor:
        half, middle = (side * length / 2).round(), (place * length).floor()
        pixel = torch.arange(length, device=place.device)
        return (pixel >= (middle - half)[:, None]) & (pixel < (middle + half)[:, None])

    box = inside(centre[:, 0], height)[:, :, None] & inside(centre[:, 1], width)[:, None]
    data = torch.where(box[:, None], view.data[partner], view.data)
    return Mixed(replace(view, data=data), partner, 1 - box.float().mean(dim=(1, 2)))


def partners(index: Int[Tensor, " B"], rng: Rng) -> Int[Tensor, " B"]:
    """For every row another row of the batch, each once: the next one in a random circle through all of them."""
    order = rng.uniform(index, "mix.partner")[:, 0].argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


def symmetric_beta(index: Int[Tensor, " B"], rng: Rng, alpha: float, name: str = "mix.share") -> Float[Tensor, " B"]:
    """Draws from Beta(alpha, alpha), each of its sample alone; draws of another name are independent.

    (1 + c / sqrt(c^2 + w / (1 - w))) / 2 with w = u^(1 / alpha), c = cos(2 pi v): Student's t with 2 alpha degrees of
    freedom in polar form, mapped to the unit interval.

    Source: Bailey, "Polar Generation of Random Variates with the t-Distribution", Mathematics of Computation 1994;
    Devroye, "Random Variate Generation in One Line of Code", 1996.
    """
    expect_positive("alpha", alpha)
    u, v = rng.uniform(index, name, 2).double().unbind(1)
    log_w = torch.log1p(-u) / alpha
    cos = torch.cos(2 * math.pi * v)
    odds = log_w.exp() / -torch.expm1(log_w)  # w / (1 - w); infinite for u = 0, where the draw is one half
    return ((1 + cos / (cos.square() + odds).sqrt()) / 2).float()


def _check(view: View, index: Tensor) -> None:
    data = view.data
    expect(data.ndim == 4 and data.is_floating_point(), "view", "float data [B, C, H, W]",
           f"{data.dtype} {tuple(data.shape)}")  # fmt: skip
    expect(index.shape == (len(data),), "index", f"shape [{len(data)}]", tuple(index.shape))
