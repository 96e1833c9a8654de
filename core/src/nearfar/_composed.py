"""A contrast put together from log sums that the tiled engine makes; memory O((B + N) D + tile).

The positive term is linear in the logits, so it needs no matrix: one product per anchor for indices, and the sum of
each class's candidates for class ids. A positive whose logit is shifted (margin, own temperature) leaves the big sum
and joins it again with its own logit.

Legend: B anchors, N candidates, D embedding, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearfar._forms import Form
from nearfar._plain import MINUS_INF, Part, own_logits, own_similarity
from nearfar._similarity import log_sum_exp, normalize
from nearfar._tiles import BOUND
from nearfar.tiled import Mask, frozen_log_sum_exp, self_log_sum_exp
from nearfar.tiled import log_sum_exp as product_log_sum_exp


def fused(form: Form) -> bool:
    """Whether a form is put together here: products, with pairs told by ids instead of matrices and functions."""
    dense = (form.positive, form.weight, None if isinstance(form.denominator, str) else form.denominator)
    return (
        form.logits is None
        and form.similarity is None
        and all(x is None for x in dense)
        and (form.log_weight is None or (isinstance(form.log_weight, Tensor) and form.log_weight.ndim == 1))
        and not (form.positives == "each" and (form.labels is not None or form.directions == "both"))
        and not (form.positives == "each" and form.own_positive is not None)
        and not (form.ignore and form.labels is not None)
    )


class _Operands(NamedTuple):
    """Anchors with 1/temperature multiplied in, and candidates; one tensor for both where the form is symmetric."""

    a: Tensor
    c: Tensor
    symmetric: bool


def parts(form: Form, tile: int | None, anchor_weight: Tensor | None = None) -> list[Part]:
    """Row losses, and column losses for directions='both'; `anchor_weight` [B] tells what gradient to expect."""
    operands = _operands(form)
    pairs = pairs_mask(form)
    both = form.directions == "both"
    apart = _apart(form)
    mask = without_positives(form, pairs) if apart else pairs
    found, counts = _found(form, operands, pairs, both, tile)
    again: list[Tensor] = []
    if apart and form.denominator == "all":
        again = _positives_again(form, operands, pairs, both, tile, found, counts)
    own = _own_positives(form)
    if own is not None:
        found[0], counts[0] = _with_own(form, found[0], counts[0], own)

    weight = None
    if not (form.extra or form.per_anchor is not None or own is not None or again):
        weight = (counts[0] > 0).to(form.like.dtype)
        weight = weight if anchor_weight is None else weight * anchor_weight
    totals = _log_sums(form, operands, mask, both, weight, tile)
    if again:
        totals = [_join(total, more) for total, more in zip(totals, again, strict=True)]
    if own is not None and form.denominator == "all":
        totals[0] = _join(totals[0], log_sum_exp(own, 1))
    for more in _further(form, operands, tile):
        totals[0] = _join(totals[0], more)
    return [part(total, f, count > 0) for total, f, count in zip(totals, found, counts, strict=True)]


def _apart(form: Form) -> bool:
    """Whether positives leave the big sum: for good, or because their logits differ, or because ids would hide them."""
    return form.denominator == "negatives" or form.shifted or bool(form.ignore)


def _own_positives(form: Form) -> Tensor | None:
    """Logits [B, Q] of positives that are no candidates."""
    if form.own_positive is None:
        return None
    scale = form.positive_scale
    column = isinstance(scale, Tensor) and scale.ndim == 1
    return (own_similarity(form, form.own_positive) - form.margin) * (scale.unsqueeze(1) if column else scale)  # type: ignore[union-attr]


def _with_own(form: Form, found: Tensor, count: Tensor, own_BQ: Tensor) -> tuple[Tensor, Tensor]:
    total = count + own_BQ.shape[1]
    if form.positives == "sum":
        return _join(found.masked_fill(count == 0, MINUS_INF), log_sum_exp(own_BQ, 1)), total
    return (torch.where(count > 0, found * count, 0.0) + own_BQ.sum(1)) / total, total


def part(total: Tensor, found: Tensor, has: Tensor) -> Part:
    counted = has & (total != MINUS_INF)
    loss = total.masked_fill(~counted, 0.0) - found.masked_fill(~counted, 0.0)
    return Part(loss, counted, None)


def _join(x: Tensor, y: Tensor) -> Tensor:
    return log_sum_exp(torch.stack([x, y]), 0)


def _operands(form: Form) -> _Operands:
    a, c, scale = form.anchor, form.candidate, form.scale
    plain = not isinstance(scale, Tensor) or scale.ndim == 0
    if form.directions == "self" and a is c and plain and form.log_weight is None and mutual(form):
        z = a * scale**0.5  # type: ignore[operator]
        return _Operands(z, z, True)
    return _Operands(a * (scale if plain else scale.unsqueeze(1)), c, False)  # type: ignore[operator, union-attr, arg-type]


def mutual(form: Form) -> bool:
    """Whether leaving positives out keeps the form symmetric."""
    ids = (*form.ignore, *(() if form.group is None else (form.group,)))
    if not all(x is y or torch.equal(x, y) for x, y in ids):
        return False
    if form.targets is None or not _apart(form):
        return True
    index = form.targets
    rows = torch.arange(form.num_rows, device=index.device)
    return bool((index >= 0).all()) and torch.equal(index[index], rows)


def pairs_mask(form: Form) -> Mask:
    """Pairs that do not exist: of two groups, or an anchor with itself."""
    return Mask(
        exclude=() if form.own is None else (form.own,), same=() if form.group is None else (form.group,)
    )  # fmt: skip


def without_positives(form: Form, pairs: Mask) -> Mask:
    if form.targets is not None:
        return Mask(exclude=(*pairs.exclude, form.targets), same=pairs.same, differ=form.ignore)
    return Mask(exclude=pairs.exclude, same=pairs.same, differ=(form.labels,))  # type: ignore[arg-type]


def _label_pair(form: Form) -> tuple[Tensor, Tensor]:
    if form.labels is not None:
        return form.labels
    return form.targets, torch.arange(form.num_columns, device=form.like.device)  # type: ignore[return-value]


def _log_sums(
    form: Form, operands: _Operands, mask: Mask, both: bool, weight: Tensor | None, tile: int | None
) -> list[Tensor]:
    """The denominator's log sums, with log-weights as one more dimension of the product."""
    a, c = operands.a, operands.c
    if form.log_weight is not None:
        extra = form.log_weight.to(c.dtype).unsqueeze(1)
        a, c = torch.cat([a, torch.ones_like(a[:, :1])], 1), torch.cat([c, extra], 1)
    bounded = form.bound <= BOUND and form.log_weight is None
    if operands.symmetric:
        return [self_log_sum_exp(a, mask, bounded=bounded, tile=tile)]
    rows, columns = product_log_sum_exp(a, c, mask, both=both, bounded=bounded, weight_B=weight, tile=tile)
    return [rows] if columns is None else [rows, columns]


def _ratio(form: Form) -> float | Tensor:
    """What turns a product with the temperature inside into one with the positives' temperature."""
    if form.positive_scale is form.scale:
        return 1.0
    return form.positive_scale / form.scale


def _found(
    form: Form, operands: _Operands, pairs: Mask, both: bool, tile: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The positive term of every anchor, and how many positives it has."""
    if form.targets is not None:
        found, has = _target_term(form, operands)
        if not both:
            return [found], [has.long()]
        columns, counts = to_columns(found, has, form, form.positives == "sum")
        return [found, columns], [has.long(), counts]
    (x, y), (sums_x, sums_y) = _joint_ids(form), (None, None)
    num = int(torch.maximum(x.max(), y.max())) + 1
    counts = [_count(x, y, form, num)] + ([_count(y, x, form.transposed(), num)] if both else [])
    if form.positives == "sum":
        return _positive_log_sums(form, operands, pairs, both, tile), counts
    sums_y = operands.c.new_zeros(num, operands.c.shape[1]).index_add(0, y, operands.c)
    found = [_class_term(form, operands.a, operands.c, sums_y, x, y, counts[0], form.own)]
    if both:
        sums_x = operands.a.new_zeros(num, operands.a.shape[1]).index_add(0, x, operands.a)
        own = form.transposed().own
        found.append(_class_term(form, operands.c, operands.a, sums_x, y, x, counts[1], own))
    return found, counts


def reachable(form: Form) -> tuple[Tensor, Tensor]:
    """Every anchor's target, 0 where it has none, and whether it has one that exists as a pair."""
    assert form.targets is not None  # for the type checker
    has, index = form.targets >= 0, form.targets.clamp_min(0)
    if form.own is not None:
        has = has & (index != form.own)
    if form.group is not None and form.num_columns:
        has = has & (form.group[0] == form.group[1][index])
    return index, has


def _target_term(form: Form, operands: _Operands) -> tuple[Tensor, Tensor]:
    index, has = reachable(form)
    if operands.c.shape[0] == 0:
        return operands.a.new_zeros(len(has)), has
    product = (operands.a * operands.c.index_select(0, index)).sum(1)
    return product * _ratio(form) - form.margin * form.positive_scale, has


def to_columns(found: Tensor, has: Tensor, form: Form, summed: bool) -> tuple[Tensor, Tensor]:
    """The positive term of every column from those of the rows that point at it: their mean, or log sum exp."""
    index = form.targets.clamp_min(0)  # type: ignore[union-attr]
    zeros = found.new_zeros(form.num_columns)
    counts = zeros.index_add(0, index, has.to(found.dtype))
    if not summed:
        return zeros.index_add(0, index, torch.where(has, found, 0.0)) / counts.clamp_min(1), counts
    masked = found.detach().masked_fill(~has, MINUS_INF)
    peak = torch.full_like(zeros, MINUS_INF).scatter_reduce(0, index, masked, "amax")
    peak = peak.masked_fill(counts == 0, 0.0)
    total = zeros.index_add(0, index, torch.where(has, torch.exp(found - peak[index]), 0.0))
    return torch.where(counts > 0, total.masked_fill(counts == 0, 1.0).log() + peak, MINUS_INF), counts


def _joint_ids(form: Form) -> tuple[Tensor, Tensor]:
    """Ids from 0 on, equal for pairs of one class (and of one group)."""
    x, y = form.labels  # type: ignore[misc]
    joined = torch.cat([x, y])
    if form.group is not None:
        joined = torch.stack([joined, torch.cat(form.group)], 1)
        ids = torch.unique(joined, dim=0, return_inverse=True)[1]
    else:
        ids = torch.unique(joined, return_inverse=True)[1]
    return ids[: x.shape[0]], ids[x.shape[0] :]


def _own_match(x: Tensor, y: Tensor, own: Tensor) -> Tensor:
    return (own >= 0) & (y[own.clamp_min(0)] == x)


def _count(x: Tensor, y: Tensor, form: Form, num: int) -> Tensor:
    count = torch.bincount(y, minlength=num)[x]
    return count if form.own is None else count - _own_match(x, y, form.own).long()


def _class_term(
    form: Form, a: Tensor, c: Tensor, sums: Tensor, x: Tensor, y: Tensor, count: Tensor, own: Tensor | None
) -> Tensor:
    """Mean product with the candidates of one's class, oneself left out."""
    product = (a * sums.index_select(0, x)).sum(1)
    if own is not None:
        itself = (a * c.index_select(0, own.clamp_min(0))).sum(1)
        product = product - torch.where(_own_match(x, y, own), itself, 0.0)
    return product / count.clamp_min(1) * _ratio(form) - form.margin * form.positive_scale


def _positive_log_sums(
    form: Form, operands: _Operands, pairs: Mask, both: bool, tile: int | None, log_weight: Tensor | None = None
) -> list[Tensor]:
    """log sum exp over positives only, with their own temperature and margin."""
    mask = Mask(exclude=pairs.exclude, same=(*pairs.same, _label_pair(form)))
    ratio = _ratio(form)
    a, c = operands.a, operands.c
    bounded = form.bound <= BOUND and log_weight is None
    column_ratio = isinstance(ratio, Tensor) and ratio.ndim == 1
    if operands.symmetric and not column_ratio and log_weight is None:
        z = a if not form.shifted else a * ratio**0.5
        sums = [self_log_sum_exp(z, mask, bounded=bounded, tile=tile)]
    else:
        a = a * (ratio.unsqueeze(1) if column_ratio else ratio) if form.shifted else a  # type: ignore[union-attr]
        if log_weight is not None:
            a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
            c = torch.cat([c, log_weight.to(c.dtype).unsqueeze(1)], 1)
        rows, columns = product_log_sum_exp(a, c, mask, both=both, bounded=bounded, tile=tile)
        sums = [rows] if columns is None else [rows, columns]
    return [s - form.margin * form.positive_scale for s in sums]


def _positives_again(
    form: Form, operands: _Operands, pairs: Mask, both: bool, tile: int | None, found: list[Tensor],
    counts: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """The positives' own log sums, which the denominator takes back in."""
    if form.targets is None:
        return _positive_log_sums(form, operands, pairs, both, tile, form.log_weight)  # type: ignore[arg-type]
    has, lone = counts[0] > 0, found[0]
    if isinstance(form.log_weight, Tensor) and form.num_columns:
        lone = lone + form.log_weight.to(lone.dtype)[form.targets.clamp_min(0)]
    rows = lone.masked_fill(~has, MINUS_INF)
    return [rows, to_columns(lone, has, form, True)[0]] if both else [rows]


def _further(form: Form, operands: _Operands, tile: int | None) -> list[Tensor]:
    """Log sums over negatives that are no candidates."""
    found: list[Tensor] = []
    if not form.extra and form.per_anchor is None:
        return found
    scale = form.scale
    column = isinstance(scale, Tensor) and scale.ndim == 1
    a = form.anchor * (scale.unsqueeze(1) if column else scale)  # type: ignore[operator, union-attr]
    bounded = form.bound <= BOUND
    for extra, ids in zip(form.extra, form.extra_ids, strict=True):
        if extra.shape[0] == 0:
            continue
        mask = Mask() if ids is None else Mask(differ=((form.ignore[0][0], ids),))
        if extra.requires_grad:
            e = extra.to(a.dtype)
            e = normalize(e) if form.normalize_extra else e
            found.append(product_log_sum_exp(a, e, mask, bounded=bounded, tile=tile)[0])
        else:
            found.append(frozen_log_sum_exp(a, extra, mask, normalize=form.normalize_extra, bounded=bounded, tile=tile))
    if form.per_anchor is not None:
        found.append(log_sum_exp(own_logits(form), 1))
    return found
