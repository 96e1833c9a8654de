"""Focal contrast: a positive counts less the surer it is already.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import accumulation, log_sum_exp, normalize
from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats
from nearfar.objectives._shared import Place, Temperature, as_views, gather_views, stack


def focal(loss: Tensor, gamma: float = 1.0, *, detach: bool = False) -> Tensor:
    """Focal weight of losses -log p with one positive each: (1 - p)^gamma times the loss.

    Args:
        loss: -log p, any shape; for instance of `info_nce`, `clip` or `nt_xent` with reduction="none".
        gamma: 0 or above; 0 changes nothing.
        detach: no gradient through the weight.

    Returns:
        The weighted losses, between 0 and `loss`.

    Raises:
        ValueError: a negative gamma.

    Notes:
        1 - p = -expm1(-loss), exact where p is near 1; held above 1e-12 so that no power has an infinite derivative.

    Example:
        >>> import math, torch
        >>> from nearfar.objectives import focal
        >>> round(float(focal(torch.tensor(math.log(4.0)), 2.0)), 4)  # (3/4)^2 log 4
        0.7798

    Source: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    expect(gamma >= 0 and math.isfinite(gamma), "gamma", "a finite number of 0 or more", gamma)
    if gamma == 0:
        return loss
    weight = (-torch.expm1(-(loss.detach() if detach else loss))).clamp_min(1e-12) ** gamma
    return weight * loss


@eager
def focal_supcon(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    gamma: float = 1.0,
    temperature: float | Tensor = 0.07,
    detach: bool = False,
    average: str = "positives",
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Supervised contrast whose every positive is weighted by (1 - p)^gamma.

    L_i = -1/|P_i| sum_{j in P_i} (1 - p_ij)^gamma log p_ij,  p_ij = exp(s_ij) / sum_{k != i} exp(s_ik),  s = cos / t

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        labels: class of each sample [B]; P_i are all other embeddings of the class.
        gamma: 0 or above.
        temperature: t; a number, or a tensor [] that gets a gradient.
        detach: no gradient through the focal weight.
        average: over "positives" (above), or "candidates", the authors' code: the same sum over all V N columns.
        gathered: (z, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over anchors with a positive, "sum" or "none" ([V B], 0 for an anchor without).
        tile: anchors of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats). A part of a gathered batch without positives gives 0 and num_anchors 0.

    Raises:
        ValueError: no anchor of the whole batch has a positive; lengths that differ.

    Notes:
        Never above `supcon`. In strips of anchors that the backward computes again: 8 B N D FLOP, memory
        O(B D + strip).

    Relations:
        `supcon` with gamma 0. `focal` weighs any loss with one positive an anchor without the matrix.

    Example:
        >>> import torch
        >>> from nearfar.objectives import focal_supcon
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(focal_supcon(z, torch.tensor([0, 0, 1, 1]), temperature=0.5)), 4)
        0.051

    Source: Zhang, Hooi, Hu, Liang, Feng, "Unleashing the Power of Contrastive Self-Supervised Visual Models via
    Contrast-Regularized Fine-Tuning", NeurIPS 2021.
    """
    expect_choice("average", average, ("positives", "candidates"))
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    flat, num_views = stack("z", as_views(z), least=1)
    candidate, other = (flat, labels) if gathered is None else (
        gather_views(as_views(gathered[0]), num_views), gathered[1]
    )  # fmt: skip
    num, num_all = len(flat) // num_views, len(candidate) // num_views
    place = Place(num_views, num, num_all, offset, flat.device)
    for name, y, rows in (("labels", labels, num), ("gathered", other, num_all)):
        expect(tuple(y.shape) == (rows,), name, f"labels of shape [{rows}]", tuple(y.shape))
    sizes = torch.unique(other, return_counts=True)[1]
    expect(num_views > 1 or bool((sizes > 1).any()), "positives", "at least one anchor with a positive", "none")
    own, y, y_all = place.own(), labels.repeat(num_views), other.repeat(num_views)
    with no_autocast(flat.device):
        kind = accumulation(flat, candidate)
        a, c = normalize(flat.to(kind)), normalize(candidate.to(kind))
        columns = torch.arange(len(c), device=c.device)

        def strip(rows: Tensor) -> tuple[Tensor, Tensor]:
            s = (a[rows] @ c.t()) / temperature
            self_BN = own[rows, None] == columns
            positive_BN = (y[rows, None] == y_all) & ~self_BN
            loss_BN = log_sum_exp(s.masked_fill(self_BN, -math.inf), 1)[:, None] - s
            total = torch.where(positive_BN, focal(torch.where(positive_BN, loss_BN, 0.0), gamma, detach=detach), 0.0)
            return total.sum(1), positive_BN.sum(1)

        total_B, count_B = in_strips(strip, len(a), len(c), tile, a.device)
        loss_B = total_B / (count_B.clamp_min(1) if average == "positives" else len(c))
    counted = int((count_B > 0).sum())
    loss = loss_B if reduction == "none" else loss_B.sum() / (max(1, counted) if reduction == "mean" else 1)
    return (loss, Stats(counted, len(loss_B) - counted, None)) if with_stats else loss


class FocalSupCon(nn.Module):
    """`focal_supcon` as a Module; see there.

    Args:
        gamma: of the focal weight.
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        detach: no gradient through the focal weight.
        average: over "positives" or "candidates".
        tile: anchors of a strip.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        gamma: float = 1.0,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        detach: bool = False,
        average: str = "positives",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect(gamma >= 0 and math.isfinite(gamma), "gamma", "a finite number of 0 or more", gamma)
        expect_choice("average", average, ("positives", "candidates"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {"gamma": gamma, "detach": detach, "average": average, "tile": tile}

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, z: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `focal_supcon`."""
        return focal_supcon(z, labels, temperature=self.tau(), **self.options, **options)
