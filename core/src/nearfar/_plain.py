"""The reference contrast: every logit is there to look at. Any form; memory O(B N).

Legend: B anchors, N candidates, K further negatives, P own candidates of an anchor, M all a denominator may hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearfar._forms import Form
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
    logits_BN = sim_BN * _column(form.scale)
    positive_logits_BN = (sim_BN - form.margin) * _column(form.positive_scale) if form.shifted else logits_BN
    further_BM = _further(form)

    negative_BN = valid_BN & ~positive_BN
    kept_BN = valid_BN if form.denominator == "all" else negative_BN
    if isinstance(form.denominator, Tensor):
        kept_BN = valid_BN & form.denominator
    log_weight = 0.0 if form.log_weight is None else form.log_weight.to(logits_BN.dtype)
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
    for extra in form.extra:
        e = extra.to(form.like.dtype)
        e = normalize(e) if form.normalize_extra else e
        anchor = form.anchor
        sim = anchor @ e.t() if form.similarity is None else form.similarity.tile(anchor, e)  # type: ignore[union-attr, operator, arg-type]
        parts.append(sim * _column(form.scale))
    if form.per_anchor is not None:
        parts.append(own_logits(form))
    return torch.cat(parts, 1)


def own_logits(form: Form) -> Tensor:
    """Logits [B, P] of each anchor with its own candidates."""
    own = form.per_anchor.to(form.like.dtype)  # type: ignore[union-attr]
    own = normalize(own) if form.normalize_extra else own
    if form.similarity is None:
        sim = torch.einsum("bd,bpd->bp", form.anchor, own)
    else:
        tile = form.similarity.tile
        sim = torch.cat([tile(a[None], o) for a, o in zip(form.anchor, own, strict=True)])  # type: ignore[arg-type]
    return sim * _column(form.scale)


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
