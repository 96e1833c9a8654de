"""InfoNCE between queries and keys, with negatives from a queue, from the batch, or from both (MoCo).

Legend: B batch, N gathered batch, K queue, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.contrast import contrast
from nearfar.objectives._shared import Temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.2,
    in_batch: bool = False,
    gathered: Tensor | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Each query finds its key among negatives.

    L = 1/B sum_i -log [ exp(q_i . k_i / t) / ( exp(q_i . k_i / t) + sum_n exp(q_i . n / t) ) ],  cosines throughout

    Args:
        query: [B, D].
        key: [B, D], row i the positive of query i.
        queue: negatives [K, D] for every query; read, never copied as a whole.
        temperature: t; a number, or a tensor [] that gets a gradient.
        in_batch: the other keys of the batch are negatives too.
        gathered: keys [N, D] of all processes, with in_batch.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean", "sum" or "none" ([B]).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; no negatives at all; gathered without in_batch.

    Notes:
        Computed in float32. Whether keys carry gradient is the caller's choice: pass a teacher's without. A queue
        without gradient costs 4 B K D FLOP forward, none backward.

    Relations:
        With in_batch and without queue, one direction of `clip`.

    Example:
        >>> import torch
        >>> from nearfar.objectives import info_nce
        >>> q = torch.tensor([[1.0, 0.0]])
        >>> queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> round(float(info_nce(q, q, queue, temperature=0.5)), 4)  # log(1 + exp(-1/0.5) + exp(-2/0.5))
        0.1429

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018; He, Fan, Wu,
    Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.
    """
    expect(query.shape == key.shape, "key", f"the shape of query, {tuple(query.shape)}", tuple(key.shape))
    expect(queue is not None or in_batch, "queue", "a tensor [K, D] (or in_batch=True)", queue)
    expect(gathered is None or in_batch, "gathered", "none without in_batch", "a tensor")
    expect(gathered is not None or offset == 0, "offset", "0 without gathered", offset)
    options: dict[str, Any] = {"temperature": temperature, "reduction": reduction, "tile": tile}
    options |= {"extra": () if queue is None else (queue,), "with_stats": with_stats}
    if not in_batch:
        return contrast(query, own_positive=key.unsqueeze(1), **options)
    rows = torch.arange(query.shape[0], device=query.device)
    return contrast(query, key if gathered is None else gathered, targets=rows + offset, **options)


class InfoNCE(nn.Module):
    """`info_nce` as a Module; see there. It holds no queue: pass one.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        in_batch: the other keys of the batch are negatives too.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        learnable_temperature: bool = False,
        in_batch: bool = False,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)
        self.in_batch, self.tile = in_batch, tile

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor | None = None,
        *,
        in_batch: bool | None = None,
        gathered: Tensor | None = None,
        offset: int = 0,
        with_stats: bool = False,
    ) -> Any:
        return info_nce(
            query, key, queue, temperature=self.tau(), in_batch=self.in_batch if in_batch is None else in_batch,
            gathered=gathered, offset=offset, tile=self.tile, with_stats=with_stats,
        )  # fmt: skip
