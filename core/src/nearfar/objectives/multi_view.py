"""MV-InfoNCE and MV-DHEL: one term a sample that holds all its views; and what they are compared with.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._tiles import Mask, no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Place, Temperature, reduced
from nearfar.objectives._views import Views, leave_one_out, log_sums, prepare


@eager
def mv_infonce(
    *views: Any,
    temperature: float | Tensor = 0.5,
    same_view_negatives: bool = True,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """InfoNCE of many views in one term a sample: all pairs of its views over all pairs with anything.

    With e(a, b) = exp(cos(a, b) / t) and z_il view l of sample i:

    P_i = sum_{l != m} e(z_il, z_im)
    D_i = sum_l sum_{(j, m) != (i, l)} e(z_il, z_jm)
    L = -1/B sum_i log(P_i / D_i)

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2: crops of an image, or its modalities.
        temperature: t; a number, or a tensor [] that gets a gradient.
        same_view_negatives: whether D_i holds pairs of one view, as the authors' code does; else those of different
            views alone, as their formula reads.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over the samples, "sum" or "none" ([B]).
        tile: side of a tile; None chooses.
        with_stats: also return Stats, whose number is that of the samples.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: fewer than two views, unequal shapes, a temperature that is not positive.

    Notes:
        In log space, in float32; 4 (V B)^2 D FLOP forward and backward together, memory O(V B (D + V) + tile). First
        derivatives only.

    Relations:
        With two views at least `nt_xent`, and equal to it where both views' denominators agree.

    Example:
        >>> import torch
        >>> from nearfar.objectives import mv_infonce
        >>> round(float(mv_infonce(torch.ones(3, 4, 2))), 4)  # log((4 * 3 - 1) / (3 - 1))
        1.7047

    Source: Koromilas, Georgiou, Bouritsas, Giannakopoulos, Nicolaou, Panagakis, "A Principled Framework for Multi-View
    Contrastive Learning", arXiv 2507.06979, 2025.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    rows = prepare(views, temperature, gathered, offset)
    with no_autocast(rows.unit.device):
        if same_view_negatives:
            mask = Mask(exclude=(rows.place.own(),))
        else:
            mask = Mask(differ=(rows.numbers(),))
        log_sum_VB = log_sums(rows.unit, rows.every, mask, rows.temperature, tile).unflatten(
            0, (rows.place.num_views, -1)
        )
        loss_B = torch.logsumexp(log_sum_VB, 0) - _positive_B(rows) - math.log(2)
    loss = reduced(loss_B, reduction)
    return (loss, Stats(len(loss_B), 0, None)) if with_stats else loss


@eager
def mv_dhel(
    *views: Any,
    temperature: float | Tensor = 0.5,
    include_self: bool = False,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Decoupled contrast of many views: pairs of a sample's views attract, and each view is spread by itself alone.

    With e(a, b) = exp(cos(a, b) / t) and z_il view l of sample i:

    P_i = sum_{l < m} e(z_il, z_im)
    E_il = sum_{j != i} e(z_il, z_jl)
    L = 1/B sum_i [ sum_l log E_il - log P_i ]

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2.
        temperature: t; a number, or a tensor [] that gets a gradient.
        include_self: whether E_il holds j = i, as the authors' formula reads; it bounds E_il from below by exp(1/t).
            Their code leaves it out.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over the samples, "sum" or "none" ([B]).
        tile: side of a tile; None chooses.
        with_stats: also return Stats, whose number is that of the samples.

    Returns:
        The loss, which may be negative, or (loss, Stats).

    Raises:
        ValueError: one sample alone (nothing in E_il), fewer than two views, a temperature that is not positive.

    Notes:
        In log space: the code's product over views overflows for many views or low temperatures. The authors' formula
        counts ordered pairs in P_i, which is log 2 less and the same gradient. 4 V B^2 D FLOP forward and backward
        together, a V-th of `mv_infonce`. First derivatives only.

    Example:
        >>> import torch
        >>> from nearfar.objectives import mv_dhel
        >>> round(float(mv_dhel(torch.ones(2, 4, 3))), 4)  # -log 1 + 2 log 3 + 1/0.5
        4.1972

    Source: as `mv_infonce`.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    rows = prepare(views, temperature, gathered, offset)
    expect(include_self or rows.place.num_all > 1, "views", "2 or more samples, since one has no negatives",
           rows.place.num_all)  # fmt: skip
    with no_autocast(rows.unit.device):
        loss_B = _same_view(rows, include_self, tile).sum(0) - _positive_B(rows)
    loss = reduced(loss_B, reduction)
    return (loss, Stats(len(loss_B), 0, None)) if with_stats else loss


@eager
def multi_view_baseline(
    *views: Any,
    combine: str = "pairs",
    base: str = "nt_xent",
    temperature: float | Tensor = 0.5,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """A loss of two views made into one of many, by pairs of views or by each view and the mean of the others.

    L = mean over pairs l < m of base(z_l, z_m), or mean over l of base(z_l, mean_{m != l} z_m)

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2.
        combine: "pairs", or "average": the mean of unit vectors, itself not of unit length (in the authors' code it
            is divided by its norm for DHEL).
        base: "nt_xent", or "dhel", which is `mv_dhel` of two views.
        temperature: t; a number, or a tensor [] that gets a gradient.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        tile: side of a tile; None chooses.
        with_stats: also return Stats, whose number is that of the samples.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unknown combine or base, one sample alone with dhel.

    Notes:
        Pairs of NT-Xent cost V (V - 1) / 2 times that of two views; DHEL computes each view's spread once.

    Relations:
        `poly_view` with its geometric form is the third way of making NT-Xent one of many views.

    Source: as `mv_infonce`, where they are what it is compared with.
    """
    expect_choice("combine", combine, ("pairs", "average"))
    expect_choice("base", base, ("nt_xent", "dhel"))
    rows = prepare(views, temperature, gathered, offset)
    num_views = rows.place.num_views
    expect(base == "nt_xent" or rows.place.num_all > 1, "views", "2 or more samples, since one has no negatives",
           rows.place.num_all)  # fmt: skip
    with no_autocast(rows.unit.device):
        if combine == "pairs" and base == "dhel":
            upper = torch.triu_indices(num_views, num_views, 1, device=rows.unit.device)
            loss = 2 * _same_view(rows, False, tile).mean() - rows.within()[:, upper[0], upper[1]].mean()
        else:
            local, every = _of_views(rows.unit, num_views), _of_views(rows.every, num_views)
            if combine == "pairs":
                chosen = list(itertools.combinations(range(num_views), 2))
                first, second = ([pair[side] for pair in chosen] for side in (0, 1))
                pairs = zip(local[first], local[second], every[first], every[second], strict=True)
            else:
                pairs = zip(local, leave_one_out(local), every, leave_one_out(every), strict=True)
            two = _nt_xent_of_two if base == "nt_xent" else _dhel_of_two
            loss = torch.stack([two((a, b), (c, d), rows, tile) for a, b, c, d in pairs]).mean()
    return (loss, Stats(rows.place.num_local, 0, None)) if with_stats else loss


def _of_views(flat: Tensor, num_views: int) -> Tensor:
    return flat.unflatten(0, (num_views, -1))


def _nt_xent_of_two(
    local: tuple[Tensor, Tensor], every: tuple[Tensor, Tensor], rows: Views, tile: int | None
) -> Tensor:  # fmt: skip
    place = Place(2, rows.place.num_local, rows.place.num_all, rows.place.offset, rows.unit.device)
    alone = rows.every is rows.unit
    form: dict[str, Any] = {"directions": "self"} if alone else {"own": place.own()}
    return contrast(
        torch.cat(local), None if alone else torch.cat(every), targets=place.partner(), similarity="dot",
        temperature=rows.temperature, tile=tile, **form,
    )  # fmt: skip


def _dhel_of_two(
    local: tuple[Tensor, Tensor], every: tuple[Tensor, Tensor], rows: Views, tile: int | None
) -> Tensor:  # fmt: skip
    mask = Mask(exclude=(torch.arange(rows.place.num_local, device=rows.unit.device) + rows.place.offset,))
    spread = sum(
        log_sums(a, a if rows.every is rows.unit else c, mask, rows.temperature, tile).mean()
        for a, c in zip(local, every, strict=True)
    )
    return spread - (local[0] * local[1]).sum(1).mean() / rows.temperature


def _same_view(rows: Views, include_self: bool, tile: int | None) -> Tensor:
    """log E_il of every view and sample [V, B]."""
    found = []
    for v in range(rows.place.num_views):
        anchor, candidate, own = rows.view(v)
        mask = Mask() if include_self else Mask(exclude=(own,))
        found.append(log_sums(anchor, candidate, mask, rows.temperature, tile))
    return torch.stack(found)


def _positive_B(rows: Views) -> Tensor:
    """log sum_{l < m} e(z_il, z_im)."""
    num = rows.place.num_views
    upper = torch.triu_indices(num, num, 1, device=rows.unit.device)
    return torch.logsumexp(rows.within()[:, upper[0], upper[1]], 1)


class MVInfoNCE(nn.Module):
    """`mv_infonce` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        same_view_negatives: whether pairs of one view repel.
        tile: see `mv_infonce`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, temperature: float = 0.5, *, learnable_temperature: bool = False, same_view_negatives: bool = True,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.same_view_negatives, self.tile = same_view_negatives, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two or more views; further options as `mv_infonce`."""
        return mv_infonce(
            *views, temperature=self.tau(), same_view_negatives=self.same_view_negatives, tile=self.tile, **options
        )  # fmt: skip


class MVDHEL(nn.Module):
    """`mv_dhel` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        include_self: whether a row stands in its own sum.
        tile: see `mv_dhel`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, temperature: float = 0.5, *, learnable_temperature: bool = False, include_self: bool = False,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.include_self, self.tile = include_self, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two or more views; further options as `mv_dhel`."""
        return mv_dhel(
            *views, temperature=self.tau(), include_self=self.include_self, tile=self.tile, **options
        )  # fmt: skip


class MultiViewBaseline(nn.Module):
    """`multi_view_baseline` as a Module; see there.

    Args:
        combine: "pairs" or "average".
        base: "nt_xent" or "dhel".
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        tile: see `multi_view_baseline`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, combine: str = "pairs", base: str = "nt_xent", temperature: float = 0.5, *,
        learnable_temperature: bool = False, tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.combine, self.base, self.tile = combine, base, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two or more views; further options as `multi_view_baseline`."""
        return multi_view_baseline(
            *views, combine=self.combine, base=self.base, temperature=self.tau(), tile=self.tile, **options
        )  # fmt: skip
