"""CLIP: aligned rows of two sets find each other, in both directions.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Temperature


def clip(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    scale: float | Tensor | None = None,
    weight: Tensor | None = None,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Symmetric cross-entropy between two sets whose rows belong together, for instance images and their captions.

    L = 1/(2B) sum_i w_i [ -log softmax_j(cos(a_i, b_j) / t)_i - log softmax_j(cos(b_i, a_j) / t)_i ]

    Args:
        a, b: [B, D] each; row i of one belongs to row i of the other.
        temperature: t; a number, or a tensor [] that gets a gradient.
        scale: 1 / t, given instead of the temperature.
        weight: w [B], non-negative, without gradient; None: 1.
        ids: what a pair stands for (a caption's text, an item's number), [B], or ([B], [N]) with gathered; two pairs of
            equal ids are no negatives of each other. None: every other pair is.
        gathered: (a, b) [N, D] each of all processes; pass the results of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean" (of the two directions' means), "sum" (half of the two sums) or "none" ([2 B], a then b).
        tile: see `contrast`.
        with_stats: also return Stats, whose anchors are those of both directions.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; a temperature or scale that is not positive.

    Notes:
        Computed in float32. In one process both directions read one matrix: 8 B^2 D FLOP forward and backward,
        memory O(B D + tile); with gathered candidates 12 B N D. Below a temperature of 1/60 an
        exact running maximum is kept.

    Relations:
        `info_nce` with in-batch negatives is one direction of it.

    Example:
        >>> import torch
        >>> from nearfar.objectives import clip
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(clip(a, a, temperature=0.5)), 4)  # log(1 + exp(-1/0.5))
        0.1269

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
    """
    expect(a.ndim == 2 and a.shape == b.shape, "b", f"the shape of a, {tuple(a.shape)}", tuple(b.shape))
    if scale is not None:
        expect_positive("scale", float(scale.detach() if isinstance(scale, Tensor) else scale))
        temperature = 1.0 / scale
    rows = torch.arange(a.shape[0], device=a.device)
    shared: dict[str, Any] = {"temperature": temperature, "reduction": reduction, "tile": tile}
    shared |= {"anchor_weight": weight, "ignore": ids}
    if gathered is None:
        expect(offset == 0, "offset", "0 without gathered", offset)
        return contrast(a, b, targets=rows, directions="both", **shared, with_stats=with_stats)
    both_a, both_b = gathered
    shared["with_stats"] = with_stats or "counts"
    first, stats_a = contrast(a, both_b, targets=rows + offset, **shared)
    second, stats_b = contrast(b, both_a, targets=rows + offset, **shared)
    loss = torch.cat([first, second]) if reduction == "none" else (first + second) / 2
    stats = Stats(
        stats_a.num_anchors + stats_b.num_anchors, stats_a.num_empty + stats_b.num_empty,
        None if stats_a.accuracy is None or stats_b.accuracy is None else (stats_a.accuracy + stats_b.accuracy) / 2,
    )  # fmt: skip
    return (loss, stats) if with_stats else loss


class CLIP(nn.Module):
    """`clip` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it; a learnt temperature stays at 0.01 or above (a scale of at most 100).
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, temperature: float = 0.07, *, learnable_temperature: bool = False, tile: int | None = None
    ) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.tile = tile

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        weight: Tensor | None = None,
        ids: Tensor | tuple[Tensor, Tensor] | None = None,
        gathered: tuple[Tensor, Tensor] | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return clip(
            a, b, temperature=self.tau(), weight=weight, ids=ids, gathered=gathered, offset=offset, tile=self.tile,
            with_stats=with_stats,
        )  # fmt: skip
