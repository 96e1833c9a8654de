"""NT-Xent: each view finds the other views of its sample among all views of the batch (SimCLR).

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nearfar.contrast import contrast
from nearfar.objectives._shared import Place, Temperature, gather_views, stack


def nt_xent(
    *views: Tensor,
    temperature: float | Tensor = 0.1,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Normalised temperature-scaled cross-entropy between the views of a sample.

    L = 1/(V B) sum_i [ log sum_{k != i} exp(cos(z_i, z_k) / t) - mean_{p in other views of i} cos(z_i, z_p) / t ]

    Args:
        views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D], V >= 2.
        temperature: t; a number, or a tensor [] that gets a gradient.
        gathered: views [V, N, D] of all processes (or V tensors), the candidates of the local anchors; pass the result
            of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean" over all V B anchors, "sum", or "none" ([V B], view after view).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: fewer than two views, unequal shapes, a temperature that is not positive.

    Notes:
        Computed in float32. The authors' code sums two means over B, twice this value; under SGD that is a factor of
        the learning rate. One sample alone has no negatives: with two views its loss is 0, and a warning says so.
        4 (V B)^2 D FLOP forward and backward together, memory O(V B D + tile).

    Relations:
        `supcon` with each sample its own class; softplus of `dcl`, anchor by anchor.

    Example:
        >>> import torch
        >>> from nearfar.objectives import nt_xent
        >>> z0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(nt_xent(z0, z0, temperature=0.5)), 4)  # log(1 + 2 exp(-1/0.5))
        0.2395

    Source: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.
    """
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    candidate = None if gathered is None else gather_views(gathered, num_views)
    num_local = z.shape[0] // num_views
    num_all = num_local if candidate is None else candidate.shape[0] // num_views
    if num_all == 1:
        warnings.warn("nt_xent: one sample has no negatives, so that nothing is learnt from it", stacklevel=2)
    place = Place(num_views, num_local, num_all, offset, z.device)
    positives = place.positives()
    form: dict[str, Any] = {"directions": "self"} if candidate is None else {"own": place.own()}
    return contrast(
        z,
        candidate,
        **positives,
        **form,
        temperature=temperature,
        reduction=reduction,
        tile=tile,
        with_stats=with_stats,
    )


class NTXent(nn.Module):
    """`nt_xent` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, temperature: float = 0.1, *, learnable_temperature: bool = False, tile: int | None = None
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
        *views: Tensor,
        gathered: Tensor | Sequence[Tensor] | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return nt_xent(
            *views, temperature=self.tau(), gathered=gathered, offset=offset, tile=self.tile, with_stats=with_stats
        )
