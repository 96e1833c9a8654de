"""Contrast of feature maps: positions are compared with the same positions, and every sample has its own references.

Legend: B batch, P positives and N negatives of a sample, C channels, h w positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar._similarity import accumulation, normalize
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import contrast
from nearfar.objectives._shared import reduced

FORMS = ("info_nce", "cosine")


def map_cosine(first: Float[Tensor, "*A C h w"], second: Float[Tensor, "*Z C h w"]) -> Tensor:
    """The cosine of two maps' channel vectors, averaged over positions.

    sim(u, v) = mean_xy < u_xy / max(|u_xy|, 1e-12), v_xy / max(|v_xy|, 1e-12) >

    Args:
        first, second: maps whose leading dimensions broadcast.

    Returns:
        Similarities of the leading dimensions, float32 (float64 for float64 input). A vector shorter than 1e-12 is
        similar to nothing and gets no gradient.

    Raises:
        ValueError: another number of channels or positions.
    """
    expect(first.ndim >= 3 and first.shape[-3:] == second.shape[-3:], "second", f"maps of {tuple(first.shape[-3:])}",
           tuple(second.shape[-3:]))  # fmt: skip
    kind = accumulation(first, second)
    u, v = (normalize(x.to(kind).movedim(-3, -1)) for x in (first, second))
    return (u * v).sum(-1).mean((-2, -1))


def map_contrast(
    anchor: Float[Tensor, "B C h w"],
    positive: Float[Tensor, "B P C h w"],
    negative: Float[Tensor, "B N C h w"],
    *,
    form: Literal["info_nce", "cosine"] = "info_nce",
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Draws a map to its own positives and away from its own negatives, with channel cosines averaged over positions.

    With s_p, s_n the `map_cosine` of anchor and reference, t the temperature:

        info_nce   l = mean_p [ log( exp(s_p / t) + sum_n exp(s_n / t) ) - s_p / t ]
        cosine     l = mean_n s_n - mean_p s_p

    Args:
        anchor: [B, C, h, w].
        positive: [B, P, C, h, w], P >= 1; usually without gradient.
        negative: [B, N, C, h, w], N >= 1; usually without gradient.
        form: one of the two above.
        temperature: t of info_nce.
        reduction: "mean", "sum" or "none" ([B]).

    Returns:
        The loss, float32 (float64 for float64 input).

    Raises:
        ValueError: shapes that do not fit, no positive or no negative.

    Notes:
        Unlike `patch_nce`, positions are no candidates of each other; the references are whole images. Cost
        O(B (P + N) C h w), no matrix over the batch.

    Source: Wu, Jiang, Liu, "A Practical Contrastive Learning Framework for Single-Image Super-Resolution", IEEE TNNLS
        2023.
    """
    expect_choice("form", form, FORMS)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect_positive("temperature", temperature)
    expect(anchor.ndim == 4, "anchor", "shape [B, C, h, w]", tuple(anchor.shape))
    for name, maps in (("positive", positive), ("negative", negative)):
        fits = maps.ndim == 5 and maps.shape[0] == len(anchor) and maps.shape[2:] == anchor.shape[1:]
        shape = f"[{len(anchor)}, K, {', '.join(map(str, anchor.shape[1:]))}]"
        expect(fits and maps.shape[1] >= 1, name, f"shape {shape}, K >= 1", tuple(maps.shape))
    s_BP, s_BN = (map_cosine(anchor[:, None], maps) for maps in (positive, negative))
    if form == "cosine":
        return reduced(s_BN.mean(1) - s_BP.mean(1), reduction)
    num, count = s_BP.shape
    rows = torch.cat([s_BP.reshape(-1, 1), s_BN.repeat_interleave(count, 0)], 1) / temperature
    first = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    loss = contrast(None, logits=rows, targets=first, reduction="none")
    return reduced(loss.view(num, count).mean(1), reduction)
