"""MACL: a temperature that follows how well positives are aligned, and anchors whose gradient does not fade.

Legend: B batch, N gathered batch, D embedding, K queue.
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
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import contrast
from nearfar.objectives._shared import Place, gather_views, reduced, stack

LEAST_TEMPERATURE = 1e-3


class MACLStats(NamedTuple):
    """What MACL saw; without gradient.

    Args:
        num_anchors, num_empty, accuracy: as in `nearfar.contrast.Stats`; the last is None.
        alignment: A.
        temperature: t.
        positive: mean P_i.
        clamped: share of anchors whose weight is at its bound.
    """

    num_anchors: int
    num_empty: int
    accuracy: None
    alignment: float
    temperature: float
    positive: Tensor
    clamped: Tensor


@eager
def macl(
    *views: Any,
    temperature: float = 0.1,
    alpha: float = 0.5,
    alignment_origin: float = 0.0,
    alignment: float | Tensor | None = None,
    max_weight: float = 1e4,
    queue: Tensor | None = None,
    gathered: Any = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """NT-Xent of two views with an adaptive temperature, each anchor weighted by the inverse of what it still learns.

    With A the mean positive cosine of the batch and d_i = log sum over negatives exp(cos / t) - cos(z_i, z_p) / t:

    t = t_0 (1 + alpha (A - A_0))
    P_i = 1 / (1 + exp(d_i))
    L = mean_i -log(P_i) / (1 - P_i) = mean_i (1 + exp(-d_i)) softplus(d_i)

    where neither t nor the weight 1 / (1 - P_i) carries gradient.

    Args:
        *views: two views [B, D], or one tensor [2, B, D].
        temperature: t_0 > 0.
        alpha: >= 0, how far the temperature follows the alignment; 0: it stays t_0.
        alignment_origin: A_0 in [-1, 1], the alignment at which the temperature is t_0.
        alignment: A where it is known, for instance as the mean over all processes; None: that of `gathered`, or of
            the batch.
        max_weight: the weight's bound, which holds where P_i > 1 - 1 / max_weight; 1 leaves anchors unweighted.
        queue: [K, D]; the first view alone is then the anchor and the queue its only negatives.
        gathered: both views [2, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean", "sum" or "none" ([2 B], view after view; [B] with a queue).
        tile: see `contrast`.
        with_stats: also return MACLStats.

    Returns:
        The loss, or (loss, MACLStats). Its value tells little, since weight and temperature move: watch the stats.

    Raises:
        ValueError: alpha below zero, max_weight below one, fewer than two samples without a queue, queue beside
            gathered.

    Notes:
        Costs what `nt_xent` costs. Within the bound the gradient is that of `dcl` at temperature t, anchor by anchor:
        the weight takes out the share 1 - P_i by which NT-Xent's gradient fades. The temperature is held at 1e-3 or
        above. The published code divides by 1 - P_i + 1e-8; here the weight is exact up to its bound. Without
        `gathered`, A is the mean of this process alone: average it and pass `alignment`, so that one temperature holds.

    Relations:
        `nt_xent` with alpha 0 and max_weight 1.

    Example:
        >>> import torch
        >>> from nearfar.objectives import macl
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(macl(z, z, temperature=0.5, alpha=0.0)), 4)  # d = log 2 - 2
        1.1245

    Source: Huang, Chen, Wen, Zhang, Li, Wang, Chen, "Model-Aware Contrastive Learning: Towards Escaping the Dilemmas",
    ICML 2023.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(max_weight >= 1, "max_weight", "1 or more", max_weight)
    d_B, mean, t = _decoupled(views, temperature, alpha, alignment_origin, alignment, queue, gathered, offset, tile)
    weight_B = 1 + torch.exp(-d_B.detach())
    loss = reduced(weight_B.clamp_max(max_weight) * softplus(d_B), reduction)
    if not with_stats:
        return loss
    positive, clamped = (x.float().mean() for x in (torch.sigmoid(-d_B.detach()), weight_B > max_weight))
    return loss, MACLStats(len(d_B), 0, None, mean, t, positive, clamped)


def macl_temperature(
    alignment: float | Tensor, *, temperature: float = 0.1, alpha: float = 0.5, alignment_origin: float = 0.0
) -> float:
    """The temperature t_0 (1 + alpha (A - A_0)) at an alignment A, held at 1e-3 or above; arguments as `macl`."""
    expect_positive("temperature", temperature)
    expect(alpha >= 0 and math.isfinite(alpha), "alpha", "a finite number of 0 or more", alpha)
    expect(-1 <= alignment_origin <= 1, "alignment_origin", "a number in [-1, 1]", alignment_origin)
    mean = float(alignment.detach() if isinstance(alignment, Tensor) else alignment)
    return max(LEAST_TEMPERATURE, temperature * (1 + alpha * (mean - alignment_origin)))


@torch.no_grad()
def macl_state(*views: Any, **options: Any) -> dict[str, float]:
    """What to watch beside the loss: "alignment" A, "temperature" t, "positive" mean P_i, "clamped" share of weights.

    Args:
        *views: as `macl`.
        **options: as `macl`.
    """
    stats = macl(*views, **options, with_stats=True)[1]
    return {name: float(getattr(stats, name)) for name in ("alignment", "temperature", "positive", "clamped")}


def _decoupled(
    views: Any, temperature: Any, alpha: Any, origin: Any, alignment: Any, queue: Tensor | None, gathered: Any,
    offset: Any, tile: int | None,
) -> tuple[Tensor, float, float]:  # fmt: skip
    """d_i of every anchor at the adapted temperature, the alignment that it was adapted to, and that temperature."""
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(num_views == 2, "views", "2", num_views)
    expect(gathered is None or queue is None, "queue", "none beside gathered", "a tensor")
    every = z if gathered is None else gather_views(gathered, 2)
    num, num_all = len(z) // 2, len(every) // 2
    expect(num_all > 1 or queue is not None, "views", "2 or more samples, since one has no negatives", num_all)
    place = Place(2, num, num_all, offset, z.device)
    with no_autocast(z.device):
        if alignment is None:
            unit = normalize(every.detach().to(accumulation(z)))
            alignment = float((unit[:num_all] * unit[num_all:]).sum(1).mean())
        mean = float(alignment.detach() if isinstance(alignment, Tensor) else alignment)
        t = macl_temperature(mean, temperature=temperature, alpha=alpha, alignment_origin=origin)
        options: dict[str, Any] = {"denominator": "negatives", "temperature": t, "reduction": "none", "tile": tile}
        if queue is not None:
            d_B = contrast(z[:num], own_positive=z[num:].unsqueeze(1), extra=(queue,), **options)
        elif gathered is None:
            d_B = contrast(z, targets=place.partner(), directions="self", **options)
        else:
            d_B = contrast(z, every, targets=place.partner(), own=place.own(), **options)
    return d_B, mean, t


class MACL(nn.Module):
    """`macl` as a Module; see there.

    Args:
        temperature: t_0.
        alpha: how far the temperature follows the alignment.
        alignment_origin: A_0, the alignment at which the temperature is t_0.
        max_weight: bound of an anchor's weight.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, temperature: float = 0.1, alpha: float = 0.5, alignment_origin: float = 0.0, *, max_weight: float = 1e4,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        macl_temperature(0.0, temperature=temperature, alpha=alpha, alignment_origin=alignment_origin)  # checks them
        expect(max_weight >= 1, "max_weight", "1 or more", max_weight)
        self.temperature, self.alpha, self.alignment_origin = temperature, alpha, alignment_origin
        self.max_weight, self.tile = max_weight, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two views; further options as `macl`."""
        return macl(
            *views, temperature=self.temperature, alpha=self.alpha, alignment_origin=self.alignment_origin,
            max_weight=self.max_weight, tile=self.tile, **options,
        )  # fmt: skip
