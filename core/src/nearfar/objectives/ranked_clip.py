"""Graded relevance: a pair of CLIP's contrast weighs as much as its score says.

Legend: B batch, D embedding, F fields of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice
from nearfar.objectives._shared import Temperature
from nearfar.objectives.clip import clip

WEIGHTS = ("constant", "linear", "inverse", "inverse_sqrt", "piecewise")


def relevance_weight(
    score: Tensor,
    kind: str | Callable[[Tensor], Tensor] = "inverse",
    *,
    best_rank: int = 10,
    high: float = 1.0,
    low: float = 0.1,
) -> Tensor:
    """Weight of a pair from its relevance score s of 1 (the last rank kept) to 100 (rank r = 101 - s = 1).

    constant 1, linear s / 100, inverse 1 / r, inverse_sqrt 1 / sqrt(r), piecewise `high` for r <= best_rank, else `low`

    Args:
        score: [B].
        kind: one of the five, or a function of the scores.
        best_rank, high, low: of "piecewise".

    Returns:
        [B], without gradient.

    Raises:
        ValueError: a score that is no number, or outside [1, 100] where the kind ranks; weights that are negative.

    Notes:
        The published data carry linear and reciprocal weights; the other forms and their constants are recalled from
        the paper, whose training code is not public.
    """
    if isinstance(kind, str):
        expect_choice("kind", kind, WEIGHTS)
        expect(bool(torch.isfinite(score).all()), "score", "finite numbers", score)
        in_range = bool(((score >= 1) & (score <= 100)).all()) if len(score) else True
        expect(kind == "constant" or in_range, "score", "numbers from 1 to 100", score)
    s = score.detach().float() if not score.is_floating_point() else score.detach()
    rank = 101 - s
    if callable(kind):
        weight = kind(s).detach()
        expect(weight.shape == score.shape, "kind", f"weights of shape {tuple(score.shape)}", tuple(weight.shape))
    else:
        weight = {
            "constant": torch.ones_like(s), "linear": s / 100, "inverse": 1 / rank, "inverse_sqrt": rank.rsqrt(),
            "piecewise": torch.where(rank <= best_rank, high, low).to(s.dtype),
        }[kind]  # fmt: skip
    expect(bool((weight >= 0).all()), "weight", "numbers of 0 or more", weight)
    return weight


def ranked_clip(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    normalise: str = "batch",
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """`clip` whose pairs weigh w_i, for instance by graded relevance (`relevance_weight`).

    L = 1/(2 Z) sum_i w_i [ -log softmax_j(cos(a_i, b_j) / t)_i - log softmax_j(cos(b_i, a_j) / t)_i ],
    Z = B ("batch") or sum_i w_i ("sum")

    Args:
        a, b: [B, D] each, for instance queries and documents.
        weight: w [B], non-negative, without gradient; multiplies the whole term of a pair, not its logits.
        temperature: t; a number, or a tensor [] that gets a gradient.
        normalise: "batch" or "sum"; with "sum" a common factor of the weights changes nothing.
        ids: of the queries, [B], or ([B], [N]) with gathered; several documents of one query are then no negatives of
            each other. None (the plain formula): they are.
        gathered, offset, tile, with_stats: see `clip`. Over processes weigh a loss of normalise="sum" by its sum of
            weights.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: as `clip`; negative weights, or all of them 0 with "sum".

    Notes:
        Costs what `clip` costs. Where the paper's text leaves a choice (Z, the joining of fields), both are options.

    Relations:
        `clip` where every weight is 1.

    Example:
        >>> import torch
        >>> from nearfar.objectives import ranked_clip
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(ranked_clip(a, a, torch.tensor([1.0, 0.0]), temperature=0.5)), 4)  # half of clip's 0.1269
        0.0635

    Source: Zhu, Jung, Clark, "Generalized Contrastive Learning for Multi-Modal Retrieval and Ranking", 2024.
    """
    expect_choice("normalise", normalise, ("batch", "sum"))
    expect(tuple(weight.shape) == (len(a),), "weight", f"shape [{len(a)}]", tuple(weight.shape))
    expect(bool((weight >= 0).all()), "weight", "numbers of 0 or more", weight)
    total = float(weight.sum())
    expect(normalise == "batch" or total > 0, "weight", "a positive sum with normalise='sum'", total)
    loss, stats = clip(
        a, b, temperature=temperature, weight=weight, ids=ids, gathered=gathered, offset=offset, tile=tile,
        with_stats=True,
    )  # fmt: skip
    loss = loss * (len(a) / total) if normalise == "sum" else loss
    return (loss, stats) if with_stats else loss


def fuse_fields(fields: Sequence[Tensor], weights: Sequence[float], present: Sequence[Tensor] | None = None) -> Tensor:
    """One unit vector of an item with several fields: normalise(sum_f w_f normalise(x_f)).

    Args:
        fields: F tensors [B, D], for instance of an image and a title.
        weights: F numbers of 0 or more; 0 leaves a field out, with its gradient.
        present: F masks [B]; an item's missing fields count for nothing.

    Returns:
        [B, D], of unit length.

    Raises:
        ValueError: as many weights as fields are needed, none negative, and something present of every item.
    """
    expect(len(fields) == len(weights) > 0, "weights", f"{len(fields)} numbers, one a field", list(weights))
    some_weight = all(w >= 0 for w in weights) and sum(weights) > 0
    expect(some_weight, "weights", "numbers of 0 or more, not all 0", list(weights))
    masks = [torch.ones(len(x), device=x.device) for x in fields] if present is None else list(present)
    expect(len(masks) == len(fields), "present", f"{len(fields)} masks, one a field", len(masks))
    some = sum(w * m.float() for w, m in zip(weights, masks, strict=True))
    expect(bool((some > 0).all()), "present", "a weighted field of every item", some)  # type: ignore[union-attr]
    unit = nn.functional.normalize
    total = sum(
        (w * m.to(x.dtype)).unsqueeze(1) * unit(x, dim=1)
        for x, w, m in zip(fields, weights, masks, strict=True)
        if w > 0
    )
    return unit(total, dim=1)  # type: ignore[arg-type]


class RankedCLIP(nn.Module):
    """`ranked_clip` of scores as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it; it stays at 0.01 or above.
        kind: how scores become weights, see `relevance_weight`.
        normalise: "batch" or "sum".
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        kind: str = "inverse",
        normalise: str = "batch",
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect_choice("kind", kind, WEIGHTS)
        expect_choice("normalise", normalise, ("batch", "sum"))
        self.tau = Temperature(temperature, learnable_temperature)
        self.kind, self.normalise, self.tile = kind, normalise, tile

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, a: Tensor, b: Tensor, score: Tensor, **options: Any) -> Any:
        """The loss of pairs with relevance scores [B]; further options as `ranked_clip`."""
        weight = relevance_weight(score, self.kind).to(a.device)
        return ranked_clip(
            a, b, weight, temperature=self.tau(), normalise=self.normalise, tile=self.tile, **options
        )  # fmt: skip
