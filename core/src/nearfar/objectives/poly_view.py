"""Poly-view contrast: one view tells of all the others (geometric and arithmetic PVC, sufficient statistics).

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._compile import eager
from nearfar._similarity import normalize
from nearfar._tiles import Mask, no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats
from nearfar.objectives._shared import Temperature, reduced
from nearfar.objectives._views import Views, leave_one_out, log_sums, prepare

FORMS = ("geometric", "arithmetic", "sufficient")


@eager
def poly_view(
    *views: Any,
    form: str = "geometric",
    temperature: float | Tensor = 0.1,
    normalize_average: bool = False,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Contrast of every view with each other view of its sample, or with their mean, against all other samples.

    With s_iab = cos(z_ia, z_ib) / t of views a, b of sample i and n_ia = log sum_{j != i, g} exp(cos(z_ia, z_jg) / t):

        p_iab = exp(s_iab) / (exp(s_iab) + exp(n_ia))
        geometric   L_ia = -mean_{b != a} log p_iab
        arithmetic  L_ia = -log mean_{b != a} p_iab
        sufficient  L_ia = -log p_ia with the mean of the other views, mean_{b != a} z_ib, in place of z_ib, and the
                    same means of other samples in place of z_jg

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2.
        form: "geometric", "arithmetic" or "sufficient".
        temperature: t; a number, or a tensor [] that gets a gradient.
        normalize_average: divide the mean of unit vectors by its norm; the paper leaves that open, and by default its
            length counts.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over all V B anchors, "sum" or "none" ([V B], view after view).
        tile: side of a tile; None chooses.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: fewer than two views or samples, an unknown form, a temperature that is not positive.

    Notes:
        In log space, log p = -softplus(n - s), with n computed once an anchor: 4 (V B)^2 D FLOP forward and backward
        together, 8 for sufficient statistics; memory O(V B (D + V) + tile). First derivatives only. A circulating
        implementation of the arithmetic form averages logarithms over samples first; here it is as the paper defines
        it.

    Relations:
        With two views every form is `nt_xent`. Arithmetic is never above geometric. The geometric form is `contrast`
        with labels and positives="each".

    Example:
        >>> import torch
        >>> from nearfar.objectives import poly_view
        >>> round(float(poly_view(torch.ones(3, 4, 2))), 4)  # log(1 + 3 * (4 - 1))
        2.3026

    Source: Shidani, Hjelm, Ramapuram, Webb, Dhekane, Busbridge, "Poly-View Contrastive Learning", ICLR 2024.
    """
    expect_choice("form", form, FORMS)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    rows = prepare(views, temperature, gathered, offset)
    place = rows.place
    expect(place.num_all > 1, "views", "2 or more samples, since one has no negatives", place.num_all)
    mask = Mask(differ=((place.sample(), place.samples()),))
    with no_autocast(rows.unit.device):
        if form == "sufficient":
            loss_A = _sufficient(rows, mask, normalize_average, tile)
        else:
            negative_A = log_sums(rows.unit, rows.every, mask, rows.temperature, tile)
            gap_BVV = negative_A.unflatten(0, (place.num_views, -1)).t().unsqueeze(2) - rows.within()
            itself = torch.eye(place.num_views, dtype=torch.bool, device=negative_A.device)
            cost_BVV = softplus(gap_BVV)
            if form == "geometric":
                loss_BV = cost_BVV.masked_fill(itself, 0.0).sum(2) / (place.num_views - 1)
            else:
                others = torch.logsumexp(-cost_BVV.masked_fill(itself, math.inf), 2)
                loss_BV = math.log(place.num_views - 1) - others
            loss_A = loss_BV.t().flatten()
    loss = reduced(loss_A, reduction)
    return (loss, Stats(len(loss_A), 0, None)) if with_stats else loss


def _sufficient(rows: Views, mask: Mask, normalize_average: bool, tile: int | None) -> Tensor:
    def averages(flat: Tensor) -> Tensor:
        average = leave_one_out(flat.unflatten(0, (rows.place.num_views, -1))).flatten(0, 1)
        return normalize(average) if normalize_average else average

    local = averages(rows.unit)
    every = local if rows.every is rows.unit else averages(rows.every)
    negative = log_sums(rows.unit, every, mask, rows.temperature, tile)
    return softplus(negative - (rows.unit * local).sum(1) / rows.temperature)


def information_bound(loss: float | Tensor, num_samples: int, num_views: int) -> float:
    """Lower bound log(1 + V (B - 1)) - loss, in nats, of what one view tells about the others; for monitoring.

    Args:
        loss: a poly-view loss, or the mean of some.
        num_samples: B, of all processes.
        num_views: V.

    Raises:
        ValueError: fewer than two samples or views.
    """
    expect(num_samples > 1, "num_samples", "2 or more", num_samples)
    expect(num_views > 1, "num_views", "2 or more", num_views)
    return math.log(1 + num_views * (num_samples - 1)) - float(loss.detach() if isinstance(loss, Tensor) else loss)


class PolyView(nn.Module):
    """`poly_view` as a Module; see there.

    Args:
        form: "geometric", "arithmetic" or "sufficient".
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        normalize_average: divide the mean of the other views by its norm.
        tile: see `poly_view`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, form: str = "geometric", temperature: float = 0.1, *, learnable_temperature: bool = False,
        normalize_average: bool = False, tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_choice("form", form, FORMS)
        self.tau = Temperature(temperature, learnable_temperature)
        self.form, self.normalize_average, self.tile = form, normalize_average, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two or more views; further options as `poly_view`."""
        return poly_view(
            *views, form=self.form, temperature=self.tau(), normalize_average=self.normalize_average, tile=self.tile,
            **options,
        )  # fmt: skip
