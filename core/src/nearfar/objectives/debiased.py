"""Debiased contrast: negatives corrected for those that are secretly positive, and weighted by hardness.

Legend: B batch, N gathered batch, D embedding, M positives that estimate the share of false negatives.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._compile import eager
from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import contrast
from nearfar.objectives._shared import Place, Temperature, gather_views, reduced, stack


class DebiasedStats(NamedTuple):
    """What a debiased contrast saw.

    Args:
        num_anchors, num_empty, accuracy: as in `nearfar.contrast.Stats`; the last is None.
        at_floor: share of anchors whose corrected sum is at its floor.
    """

    num_anchors: int
    num_empty: int
    accuracy: None
    at_floor: Tensor


@eager
def debiased(
    *views: Any,
    class_prior: float = 0.1,
    hardness: float = 0.0,
    more_positives: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    gathered: Any = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """NT-Xent of two views whose sum over negatives estimates that over true negatives, without labels.

    With n = 2N - 2 negatives k of an anchor, s = cos / t, its positive s_p and the prior P of a class:

    R = n sum_k exp((1 + h) s_k) / sum_k exp(h s_k)          (h = 0: the plain sum)
    G = max( (R - P n mean_m exp(s_m)) / (1 - P), n exp(-1/t) )
    L = -log( exp(s_p) / (exp(s_p) + G) ), mean over the 2B anchors

    Args:
        *views: two views [B, D], or one tensor [2, B, D].
        class_prior: P in [0, 1), the share of negatives that are of the anchor's class; about 1 / classes.
        hardness: h >= 0; negatives weigh exp(h s), so near ones count more.
        more_positives: further views of every sample [B, M - 1, D], for the mean over m; None: the positive alone, as
            the reference code.
        temperature: t; a number, or a tensor [] that gets a gradient.
        gathered: both views [2, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean", "sum" or "none" ([2 B], view after view).
        tile: see `contrast`.
        with_stats: also return DebiasedStats.

    Returns:
        The loss, or (loss, DebiasedStats).

    Raises:
        ValueError: class_prior outside [0, 1), fewer than two samples, other than two views.

    Notes:
        In log space, so that no temperature overflows. Costs what `nt_xent` in rows costs, with hardness twice.
        Where the floor n exp(-1/t) holds, negatives get no gradient; with a large prior that is so for most anchors,
        and only attraction is learnt. The stats tell the share. Paper and code agree up to n in place of N; the
        floor is optional in the code and always kept here, since without it the logarithm of a negative number appears.

    Relations:
        `nt_xent` with class_prior 0 and hardness 0.

    Example:
        >>> import torch
        >>> from nearfar.objectives import debiased
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(debiased(z, z, class_prior=0.0, temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Chuang, Robinson, Lin, Torralba, Jegelka, "Debiased Contrastive Learning", NeurIPS 2020; Robinson, Chuang,
    Sra, Jegelka, "Contrastive Learning with Hard Negative Samples", ICLR 2021.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    log_ratio_B, at_floor_B = _log_ratio(
        views, class_prior, hardness, more_positives, temperature, gathered, offset, tile
    )
    loss = reduced(softplus(log_ratio_B), reduction)
    if not with_stats:
        return loss
    return loss, DebiasedStats(len(log_ratio_B), 0, None, at_floor_B.detach().float().mean())


@torch.no_grad()
def debiased_floor(*views: Any, **options: Any) -> Tensor:
    """Share of anchors whose corrected sum is at its floor, where negatives teach nothing; arguments as `debiased`."""
    return debiased(*views, **options, with_stats=True)[1].at_floor


def _log_ratio(
    views: Any, prior: float, hardness: float, more: Tensor | None, temperature: float | Tensor, gathered: Any,
    offset: int, tile: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log(G / exp(s_p)) of every anchor, and whether G is at its floor."""
    expect(0 <= prior < 1, "class_prior", "a number in [0, 1)", prior)
    expect(hardness >= 0 and math.isfinite(hardness), "hardness", "a finite number of 0 or more", hardness)
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(num_views == 2, "views", "2", num_views)
    candidate = z if gathered is None else gather_views(gathered, 2)
    num, num_all = len(z) // 2, len(candidate) // 2
    expect(num_all > 1, "views", "2 or more samples, since one has no negatives", num_all)
    place = Place(2, num, num_all, offset, z.device)
    negatives = 2 * num_all - 2
    with no_autocast(z.device):
        unit = normalize(z.to(accumulation(z)))
        cosine = (unit * normalize(candidate.index_select(0, place.partner()).to(unit.dtype))).sum(1)
        s = cosine / temperature

        def log_sum(power: float) -> Tensor:
            """log sum over negatives of exp(power s)."""
            if power == 0:
                return s.new_full(s.shape, math.log(negatives))
            form = {"directions": "self"} if gathered is None else {"own": place.own()}
            decoupled = contrast(
                z, None if gathered is None else candidate, targets=place.partner(), denominator="negatives",
                temperature=temperature / power, reduction="none", tile=tile, **form,  # type: ignore[arg-type]
            )  # fmt: skip
            return decoupled + power * s

        log_sum_R = log_sum(1 + hardness) - log_sum(hardness) + math.log(negatives)
        share = s
        if more is not None:
            shape = (num, more.shape[1] if more.ndim == 3 else -1, z.shape[1])
            expect(tuple(more.shape) == shape, "more_positives", f"shape [{num}, M - 1, {z.shape[1]}]",
                   tuple(more.shape))  # fmt: skip
            others = torch.einsum("bd,bmd->bm", unit, normalize(more.to(unit.dtype)).repeat(2, 1, 1)) / temperature
            every = torch.cat([s.unsqueeze(1), others], 1)
            share = torch.logsumexp(every, 1) - math.log(every.shape[1])
        floor = math.log(negatives) - 1 / temperature * torch.ones_like(s)
        # log(exp(x) - exp(y)) where x > y; elsewhere the floor holds, and neither value nor gradient may be NaN
        false = share + (math.log(prior * negatives) if prior > 0 else -math.inf)
        above = log_sum_R > false
        gap = torch.where(above, false - log_sum_R, -1.0)
        estimate = log_sum_R + torch.log1p(-torch.exp(gap)) - math.log1p(-prior)
        at_floor = ~above | (estimate < floor)
        return torch.where(at_floor, floor, estimate) - s, at_floor


class Debiased(nn.Module):
    """`debiased` as a Module; see there.

    Args:
        class_prior: share of negatives of the anchor's class.
        hardness: weight of near negatives.
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        class_prior: float = 0.1,
        hardness: float = 0.0,
        temperature: float = 0.5,
        *,
        learnable_temperature: bool = False,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect(0 <= class_prior < 1, "class_prior", "a number in [0, 1)", class_prior)
        self.class_prior, self.hardness, self.tile = class_prior, hardness, tile
        self.tau = Temperature(temperature, learnable_temperature)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two views; further options as `debiased`."""
        return debiased(
            *views, class_prior=self.class_prior, hardness=self.hardness, temperature=self.tau(), tile=self.tile,
            **options,
        )  # fmt: skip
