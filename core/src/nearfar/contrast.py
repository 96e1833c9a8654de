"""The one general contrast: the softmax family of losses as choices of positives, denominator and pairs.

Legend: B anchors, N candidates, D embedding, K further negatives, P own candidates of an anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearfar import _composed, _fused, _plain, _strips
from nearfar._compile import eager
from nearfar._forms import Form, Rows, resolve
from nearfar._plain import Part
from nearfar._similarity import Lorentz, Similarity
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice

__all__ = ["Lorentz", "Similarity", "Stats", "contrast"]

PLAIN = 1 << 16
"""entries of the logits up to which they are stored when `tile` is None: there both ways take equally long"""
PLAIN_WITH_STATS = 1 << 20
"""the same where stats are asked for, since stored logits give the accuracy"""


class Stats(NamedTuple):
    """What a contrast saw.

    Args:
        num_anchors: anchors that counted in the mean, over all directions; weighs parts of a batch against each other.
        num_empty: anchors without a positive, or with nothing in the denominator.
        accuracy: share of the anchors with a positive whose best candidate is one; None where it would cost a pass.
    """

    num_anchors: int
    num_empty: int
    accuracy: Tensor | None


@eager
def contrast(
    anchor: Tensor | None,
    candidate: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    similarity: str | Similarity = "cosine",
    targets: Tensor | None = None,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    positive: Tensor | Rows | None = None,
    weight: Tensor | Rows | None = None,
    positives: str = "mean",
    denominator: str | Tensor | Rows = "all",
    group: Tensor | tuple[Tensor, Tensor] | None = None,
    ignore: Tensor | tuple[Tensor, Tensor] | Sequence[Tensor | tuple[Tensor, Tensor]] | None = None,
    own: Tensor | None = None,
    own_positive: Tensor | None = None,
    per_anchor: Tensor | tuple[Tensor, Tensor] | None = None,
    per_anchor_log_weight: Tensor | None = None,
    log_weight: Tensor | Rows | None = None,
    extra: Sequence[Tensor] = (),
    extra_ids: Sequence[Tensor | None] = (),
    temperature: float | Tensor = 0.1,
    positive_temperature: float | Tensor | None = None,
    margin: float = 0.0,
    normalize: Sequence[str] = ("anchor", "candidate"),
    directions: str = "row",
    anchor_weight: Tensor | None = None,
    reduction: str = "mean",
    empty: str = "skip",
    tile: int | None = None,
    with_stats: bool | str = False,
) -> Any:
    """Contrasts every anchor's positives with what stands in its denominator.

    With s_ij = similarity / temperature, P_i the positives of anchor i and A_i its denominator:

        mean   l_i = log sum_{a in A_i} exp(s_ia) - mean_{p in P_i} s_ip
        sum    l_i = log sum_{a in A_i} exp(s_ia) - log sum_{p in P_i} exp(s_ip)
        each   l_i = mean_{p in P_i} [ log(exp(s_ip) + sum_{a in A_i \\ P_i} exp(s_ia)) - s_ip ]
        soft   l_i = sum_j w_ij [ log sum_{a in A_i} exp(s_ia) - s_ij ]

    Args:
        anchor: [B, D], or None beside logits.
        candidate: [N, D]; None for directions="self".
        logits: [B, N] instead of vectors; taken as they are, no temperature is applied.
        similarity: "cosine", "dot", "lorentz" (minus the distance at curvature 1) or an object with `.tile(a, c)`.
        targets: [B], the candidate that is the anchor's positive; -1: none.
        labels: class ids, one tensor where anchors and candidates share them, or ([B], [N]); equal is positive.
        positive: bool [B, N], or a function from the numbers [r] of r anchors to their rows [r, N].
        weight: non-negative [B, N], or such a function, with positives="soft". Exactly one of these four is given.
        positives: "mean", "sum", "each" or "soft", see above.
        denominator: "all" candidates, "negatives" (decoupled: without the positives), or a bool mask [B, N] or a
            function of anchors that gives its rows.
        group: ids as for labels; only pairs of one group exist.
        ignore: ids as for labels, or several of them; pairs of equal ids are neither positive nor negative and leave
            everything, except an explicit target: the same caption, item or query in another row of the batch.
        own: [B], the candidate that is the anchor itself, which is left out of everything; -1: none.
        own_positive: [B, Q, D], further positives of each anchor alone, no other anchor's candidates. Alone, without
            the four above, candidates are negatives (None: there are none, for instance beside a queue in `extra`).
        per_anchor: [B, P, D], further negatives of each anchor alone; or (pool [M, D], numbers [B, P] of its rows),
            which never copies them all; -1: none.
        per_anchor_log_weight: [B, P], added to their logits; may be learnt.
        log_weight: [N] or [B, N], or a function of anchors that gives its rows; added to the logits in the
            denominator, -inf leaves a candidate out; may be learnt.
        extra: sets [K, D] of further negatives for all anchors, for instance queues.
        extra_ids: for each set its ids [K] or None; a row with the id that an anchor has in (the first) `ignore` is no
            negative of it.
        temperature: divides similarities; a number, a tensor [] (gets a gradient) or [B].
        positive_temperature: the positives' own, in numerator and denominator.
        margin: subtracted from positive similarities, in numerator and denominator.
        normalize: sides whose vectors are divided by their norm, for the cosine; extra and per_anchor go with
            "candidate".
        directions: "row"; "column" (candidates are the anchors); "both" (half of the two losses' sum, from one matrix);
            "self" (anchors against each other, without themselves).
        anchor_weight: [B], non-negative, without gradient; multiplies an anchor's loss in every reduction, while the
            mean still divides by the number of anchors. With "both" it weighs pair i in both directions.
        reduction: "mean", "sum" or "none" ([B]; with "both" rows then columns, not halved, [B + N]).
        empty: anchors without a positive (or with an empty denominator) leave the mean ("skip"), count as zero
            ("zero") or are refused ("raise").
        tile: None chooses; 0 stores all logits; n works in tiles of side n, or strips of n anchors.
        with_stats: also return Stats; "counts" leaves the accuracy out, and so never decides how logits are computed.

    Returns:
        The loss, float32 (float64 for float64 input), or (loss, Stats).

    Raises:
        ValueError: arguments that do not fit each other; no anchor has a positive, unless empty="zero".
        TypeError: wrong dtypes.

    Notes:
        Sums run in float32 whatever the input's type or the surrounding autocast; vectors shorter than 1e-12 get no
        gradient. Without a bound on the logits (|cosine| / temperature <= 60) an exact running maximum is kept.
        Tiled above 2^16 logits (2^20 with stats, since stored logits give the accuracy): memory O(operands + tile).
        Products with pairs told by ids are fused with their sums: "self" computes half of the matrix (4 B^2 D FLOP
        forward and backward together), "row" 6 B N D, "both" 8 B N D; class labels cost O((B + N) D) beside, because
        the positive term is linear in the logits; first derivatives only. Everything else (logits; positive, weight,
        a denominator mask and log_weight [B, N] or functions; other similarities; positives="each" with labels or both
        directions) is computed in strips of anchors that the backward computes again: 8 B N D, "both" twice, and some
        ten passes over the logits beside. Functions of anchors save the B x N matrix too.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect_choice("empty", empty, ("skip", "zero", "raise"))
    expect(with_stats in (True, False, "counts"), "with_stats", "True, False or 'counts'", with_stats)
    expect(tile is None or tile >= 0, "tile", "None or 0 or more", tile)
    some = logits if logits is not None else anchor
    expect(isinstance(some, Tensor), "anchor", "a tensor [B, D] (or logits)", type(some).__name__, TypeError)
    with no_autocast(some.device):  # type: ignore[union-attr]
        form = resolve(
            anchor, candidate, logits=logits, similarity=similarity, targets=targets, labels=labels, positive=positive,
            weight=weight, positives=positives, denominator=denominator, group=group, ignore=ignore, own=own,
            own_positive=own_positive, per_anchor=per_anchor, per_anchor_log_weight=per_anchor_log_weight,
            log_weight=log_weight, extra=extra, extra_ids=extra_ids, temperature=temperature,
            positive_temperature=positive_temperature, margin=margin, normalize_sides=normalize, directions=directions,
        )  # fmt: skip
        if anchor_weight is not None:
            _check_weight(anchor_weight, form)
        width = form.num_columns + sum(x.shape[0] for x in form.extra)
        small = form.num_rows * width <= (PLAIN_WITH_STATS if with_stats is True else PLAIN)
        stored = tile == 0 or (tile is None and small)
        if not stored and _fused.suits(form):
            parts = _fused.parts(form, tile, anchor_weight)
        else:
            form = form.prepared()
            if stored:
                parts = [_plain.row_part(form.rows(0, form.num_rows))]
                if directions == "both":
                    parts.append(_plain.row_part(form.transposed()))
            elif _composed.fused(form):
                parts = _composed.parts(form, tile, anchor_weight)
            else:
                parts = _strips.parts(form, tile)
        if anchor_weight is not None:
            parts = [part._replace(loss=part.loss * anchor_weight) for part in parts]
        loss, stats = _reduce(parts, reduction, empty, with_stats is True)
    return (loss, stats) if with_stats else loss


def _check_weight(weight: Tensor, form: Form) -> None:
    rows = form.num_rows
    expect(tuple(weight.shape) == (rows,), "anchor_weight", f"shape [{rows}]", tuple(weight.shape))
    expect(not weight.requires_grad, "anchor_weight", "no gradient", "a tensor that needs one")
    expect(form.directions != "both" or rows == form.num_columns, "anchor_weight", "as many candidates as anchors with "
           "directions='both'", form.num_columns)  # fmt: skip


def _reduce(parts: list[Part], reduction: str, empty: str, accurate: bool) -> tuple[Tensor, Stats]:
    counted = [int(part.counted.sum()) for part in parts]
    sizes = [part.counted.shape[0] for part in parts]
    num_empty = sum(sizes) - sum(counted)
    expect(empty != "raise" or num_empty == 0, "empty", "a positive for every anchor", f"{num_empty} anchors without")
    expect(
        empty == "zero" or all(counted), "positives",
        "at least one anchor with a positive and something in its denominator (or empty='zero')", "none",
    )  # fmt: skip
    numbers = sizes if empty == "zero" else counted
    if reduction == "none":
        loss = torch.cat([part.loss for part in parts])
    else:
        sums = [part.loss.sum() / (n if reduction == "mean" else 1) for part, n in zip(parts, numbers, strict=True)]
        loss = torch.stack(sums).sum() / len(parts) if len(parts) > 1 else sums[0]
    accuracy = None
    if accurate and all(part.hit is not None for part in parts) and sum(counted):
        hits = torch.stack([(part.hit & part.counted).sum() for part in parts]).sum()  # type: ignore[operator]
        accuracy = hits / sum(counted)
    return loss, Stats(sum(numbers), num_empty, accuracy)
