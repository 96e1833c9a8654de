"""CLIP with label smoothing: a share of every target is spread over all candidates.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.objectives._shared import Temperature
from nearfar.objectives.clip import clip


@eager
def smoothed_clip(
    a: Tensor,
    b: Tensor,
    *,
    smoothing: float = 0.1,
    temperature: float | Tensor = 0.07,
    directions: str = "mean",
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Symmetric cross-entropy between two sets whose targets are 1 - e for the pair and e / N for each candidate.

    L = L_clip + e/(2B) sum_i [ 2 s_ii - mean_j s_ij - mean_j s_ji ],  s = cos(a_i, b_j) / t

    Args:
        a, b: [B, D] each; row i of one belongs to row i of the other.
        smoothing: e in [0, 1), over all N candidates, the pair included.
        temperature: t; a number, or a tensor [] that gets a gradient.
        directions: "mean" of the two, or their "sum", as ALIGN.
        gathered: (a, b) [N, D] each of all processes; pass the results of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean", "sum" or "none" ([2 B], a then b, of each direction's own), see `clip`.
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: as `clip`; smoothing outside [0, 1).

    Notes:
        Costs what `clip` costs: the smoothed part is linear in the logits, one product with the mean candidate. Its
        least value is not 0. Equal embeddings give log N a direction whatever e.

    Relations:
        `clip` with smoothing 0.

    Example:
        >>> import torch
        >>> from nearfar.objectives import smoothed_clip
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(smoothed_clip(a, a, temperature=0.5)), 4)  # log(1 + exp(-1/0.5)) + 0.1 (1 - 1/2) / 0.5
        0.2269

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR
    2016; in contrast: Jia et al., "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
    Supervision", ICML 2021.
    """
    expect(0 <= smoothing < 1, "smoothing", "a number in [0, 1)", smoothing)
    expect_choice("directions", directions, ("mean", "sum"))
    found = clip(
        a, b, temperature=temperature, gathered=gathered, offset=offset, reduction=reduction, tile=tile,
        with_stats=with_stats,
    )  # fmt: skip
    loss, stats = found if with_stats else (found, None)
    with no_autocast(a.device):
        u, v = (normalize(x.to(loss.dtype)) for x in (a, b))
        all_u, all_v = (u, v) if gathered is None else (normalize(x.to(loss.dtype)) for x in gathered)
        pair_B = (u * v).sum(1)
        gap_2B = torch.cat([pair_B - u @ all_v.mean(0), pair_B - v @ all_u.mean(0)]) * (smoothing / temperature)
        if reduction == "none":
            loss = loss + gap_2B
        else:
            loss = loss + (gap_2B.mean() if reduction == "mean" else gap_2B.sum() / 2)
            loss = loss * 2 if directions == "sum" else loss
    return (loss, stats) if with_stats else loss


class SmoothedCLIP(nn.Module):
    """`smoothed_clip` as a Module; see there.

    Args:
        smoothing: e, share of the target that all candidates get.
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it; it stays at 0.01 or above.
        directions: "mean" or "sum" of both.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        smoothing: float = 0.1,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        directions: str = "mean",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect(0 <= smoothing < 1, "smoothing", "a number in [0, 1)", smoothing)
        expect_choice("directions", directions, ("mean", "sum"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.options: dict[str, Any] = {"smoothing": smoothing, "directions": directions, "tile": tile}

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, a: Tensor, b: Tensor, **options: Any) -> Any:
        """The loss; further options as `smoothed_clip`."""
        return smoothed_clip(a, b, temperature=self.tau(), **self.options, **options)
