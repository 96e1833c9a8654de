"""The reference contrast: every logit is there to look at. Any form; memory O(B N).

Legend: B anchors, N candidates, K further negatives, P own candidates of an anchor, M all a denominator may hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearfar._forms import Form
from nearfar._pool import indexed_product
from nearfar._similarity import log_sum_exp, normalize

MINUS_INF = float("-inf")


class Part(NamedTuple):
    """One direction of a contrast: a loss per anchor (0 where it does not count), who counts, who found a positive."""

    loss: Tensor
    counted: Tensor
    hit: Tensor | None


def row_part(form: Form) -> Part:
    """The loss of every anchor from its row of logits; functions of anchors are to be evaluated before."""
    sim_BN = _similarity(form)
    valid_BN = _valid(form)
    positive_BN = _positive(form) & valid_BN
    log_weight = 0.0 if form.log_weight is None else form.log_weight.to(sim_BN.dtype)  # type: ignore[union-attr]
    mask = form.denominator
    if form.own_positive is not None:  # more columns, in which every anchor has positives of its own
        own_BQ = own_similarity(form, form.own_positive)
        more = torch.ones_like(own_BQ, dtype=torch.bool)
        sim_BN = torch.cat([sim_BN, own_BQ], 1)
        valid_BN, positive_BN = torch.cat([valid_BN, more], 1), torch.cat([positive_BN, more], 1)
        if isinstance(log_weight, Tensor):
            log_weight = torch.cat([log_weight.expand(len(sim_BN), -1), torch.zeros_like(own_BQ)], 1)
        if isinstance(mask, Tensor):
            mask = torch.cat([mask, more], 1)
    logits_BN = sim_BN * _column(form.scale)
    positive_logits_BN = (sim_BN - form.margin) * _column(form.positive_scale) if form.shifted else logits_BN
    further_BM = _further(form)

    negative_BN = valid_BN & ~positive_BN
    kept_BN = valid_BN & mask if isinstance(mask, Tensor) else valid_BN if mask == "all" else negative_BN
    entry_BN = torch.where(positive_BN, positive_logits_BN, logits_BN) + log_weight

    def denominator_B(kept: Tensor) -> Tensor:
        return log_sum_exp(torch.cat([entry_BN.masked_fill(~kept, MINUS_INF), further_BM], 1), 1)

    has_positive_B = positive_BN.any(1)
    if form.positives == "soft":
        weight_BN = torch.where(positive_BN, form.weight.to(logits_BN.dtype), 0.0)  # type: ignore[union-attr]
        total_B = denominator_B(kept_BN)
        counted_B = has_positive_B & (total_B != MINUS_INF)
        finite_B = total_B.masked_fill(~counted_B, 0.0)
        loss_B = weight_BN.sum(1) * finite_B - (weight_BN * logits_BN).sum(1)
    elif form.positives == "each":
        rest_B1 = denominator_B(kept_BN & ~positive_BN).unsqueeze(1)
        joined_BN = rest_B1 if form.denominator == "negatives" else _join(
            rest_B1, entry_BN.masked_fill(~(kept_BN & positive_BN), MINUS_INF)
        )  # fmt: skip
        term_BN = joined_BN - positive_logits_BN
        counted_B = has_positive_B & ((term_BN != MINUS_INF) | ~positive_BN).all(1)
        loss_B = _mean(term_BN, positive_BN & counted_B.unsqueeze(1))
    else:
        total_B = denominator_B(kept_BN)
        counted_B = has_positive_B & (total_B != MINUS_INF)
        if form.positives == "mean":
            found_B = _mean(positive_logits_BN, positive_BN)
        else:
            found_B = log_sum_exp(positive_logits_BN.masked_fill(~positive_BN, MINUS_INF), 1)
        loss_B = total_B.masked_fill(~counted_B, 0.0) - found_B.masked_fill(~counted_B, 0.0)
    return Part(torch.where(counted_B, loss_B, 0.0), counted_B, _hit(logits_BN, positive_BN, negative_BN, further_BM))


def _column(x: float | Tensor) -> float | Tensor:
    return x.unsqueeze(1) if isinstance(x, Tensor) and x.ndim == 1 else x


def _similarity(form: Form) -> Tensor:
    if form.logits is not None:
        return form.logits
    if form.similarity is not None:
        return form.similarity.tile(form.anchor, form.candidate)  # type: ignore[arg-type]
    return form.anchor @ form.candidate.t()  # type: ignore[union-attr, operator]


def _valid(form: Form) -> Tensor:
    """Pairs that exist at all: of one group, and not an anchor with itself."""
    shape = (form.num_rows, form.num_columns)
    valid = torch.ones(shape, dtype=torch.bool, device=form.like.device)
    if form.group is not None:
        valid &= form.group[0][:, None] == form.group[1][None, :]
    for x, y in form.ignore:
        equal = x[:, None] == y[None, :]
        valid &= ~(equal & ~_positive(form) if form.spare else equal)
    if form.own is not None:
        valid &= form.own[:, None] != torch.arange(shape[1], device=valid.device)
    return valid


def _positive(form: Form) -> Tensor:
    if form.targets is not None:
        return form.targets[:, None] == torch.arange(form.num_columns, device=form.targets.device)
    if form.labels is not None:
        x, y = form.labels
        return x[:, None] == y[None, :]
    return form.positive if form.positive is not None else form.weight > 0  # type: ignore[operator, return-value]


def _further(form: Form) -> Tensor:
    """Logits [B, M] of negatives that are no candidates: further sets, and each anchor's own."""
    parts = [form.like.new_empty(form.num_rows, 0)]
    for extra, ids in zip(form.extra, form.extra_ids, strict=True):
        e = extra.to(form.like.dtype)
        e = normalize(e) if form.normalize_extra else e
        anchor = form.anchor
        sim = anchor @ e.t() if form.similarity is None else form.similarity.tile(anchor, e)  # type: ignore[union-attr, operator, arg-type]
        sim = sim * _column(form.scale)
        parts.append(sim if ids is None else sim.masked_fill(form.ignore[0][0][:, None] == ids[None], MINUS_INF))
    if form.per_anchor is not None:
        parts.append(own_logits(form))
    return torch.cat(parts, 1)


def own_logits(form: Form) -> Tensor:
    """Logits [B, P] of each anchor with its own negatives."""
    index, weight = form.per_anchor_index, form.per_anchor_log_weight
    assert form.per_anchor is not None  # for the type checker
    if index is None:
        sim = own_similarity(form, form.per_anchor)
    elif form.similarity is None:
        pool = form.per_anchor.to(form.like.dtype)
        sim = indexed_product(form.anchor, normalize(pool) if form.normalize_extra else pool, index.clamp_min(0))  # type: ignore[arg-type]
    else:
        sim = own_similarity(form, form.per_anchor[index.clamp_min(0)])
    logits = sim * _column(form.scale)
    if weight is not None:
        logits = logits + weight.to(logits.dtype)
    return logits if index is None else logits.masked_fill(index < 0, MINUS_INF)


def own_similarity(form: Form, own: Tensor) -> Tensor:
    """Similarities [B, P] of each anchor with vectors [B, P, D] of its own."""
    own = own.to(form.like.dtype)
    own = normalize(own) if form.normalize_extra else own
    if form.similarity is None:
        return torch.einsum("bd,bpd->bp", form.anchor, own)
    tile = form.similarity.tile
    return torch.cat([tile(a[None], o) for a, o in zip(form.anchor, own, strict=True)])  # type: ignore[arg-type]


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum(1) / mask.sum(1).clamp_min(1)


def _join(x: Tensor, y: Tensor) -> Tensor:
    return log_sum_exp(torch.stack(torch.broadcast_tensors(x, y)), 0)


def _hit(logits: Tensor, positive: Tensor, negative: Tensor, further: Tensor) -> Tensor:
    """Whether an anchor's best candidate is a positive; a tie is none."""
    values = logits.detach()
    best = values.masked_fill(~positive, MINUS_INF).amax(1)
    rival = torch.cat([values.masked_fill(~negative, MINUS_INF), further.detach()], 1).amax(1)
    return best > rival
