"""A contrast's arguments, checked and resolved into one record that both implementations read.

Legend: B anchors, N candidates, D embedding, K further negatives, P own candidates of an anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nearfar._similarity import Lorentz, Similarity, accumulation, normalize
from nearfar.checks import expect, expect_choice, expect_positive

Pair = tuple[Tensor, Tensor]
Rows = Callable[[Tensor], Tensor]
"""gives the rows [r, N] of a B x N matrix for the numbers [r] of r anchors"""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One direction of a contrast: rows are anchors. Vectors are of the accumulation type."""

    anchor: Tensor | None
    candidate: Tensor | None
    logits: Tensor | None
    unit: tuple[bool, bool]
    """whether anchors and candidates are still to be divided by their norm; see `prepared`"""
    similarity: Similarity | None
    scale: float | Tensor
    positive_scale: float | Tensor
    margin: float
    bound: float
    """largest |logit|, infinite where unknown"""
    targets: Tensor | None
    labels: Pair | None
    positive: Tensor | Rows | None
    weight: Tensor | Rows | None
    positives: str
    denominator: str | Tensor | Rows
    group: Pair | None
    ignore: tuple[Pair, ...]
    spare: bool
    """positives are explicit targets, which `ignore` does not touch"""
    own: Tensor | None
    own_positive: Tensor | None
    per_anchor: Tensor | None
    """[B, P, D], or the pool [M, D] beside per_anchor_index"""
    per_anchor_index: Tensor | None
    per_anchor_log_weight: Tensor | None
    log_weight: Tensor | Rows | None
    extra: tuple[Tensor, ...]
    extra_ids: tuple[Tensor | None, ...]
    normalize_extra: bool
    directions: str

    @property
    def num_rows(self) -> int:
        return (self.logits if self.anchor is None else self.anchor).shape[0]  # type: ignore[union-attr]

    @property
    def num_columns(self) -> int:
        return self.logits.shape[1] if self.candidate is None else self.candidate.shape[0]  # type: ignore[union-attr]

    @property
    def like(self) -> Tensor:
        return self.logits if self.anchor is None else self.anchor  # type: ignore[return-value]

    @property
    def shifted(self) -> bool:
        """Whether a positive's logit differs from what the same pair had as a negative."""
        return self.margin != 0.0 or self.positive_scale is not self.scale

    def prepared(self) -> Form:
        """The form with vectors of unit length where they are to be."""
        a, c, (unit_a, unit_c) = self.anchor, self.candidate, self.unit
        if a is None or c is None or not (unit_a or unit_c):
            return self
        shared = c is a and unit_a == unit_c
        u = normalize(a) if unit_a else a
        return replace(
            self, anchor=u, candidate=u if shared else normalize(c) if unit_c else c, unit=(False, False)
        )  # fmt: skip

    def rows(self, start: int, end: int) -> Form:
        """The form of the anchors from `start` to `end`, with functions of anchors evaluated for them."""
        part = slice(start, end)
        shape = (end - start, self.num_columns)
        numbers = torch.arange(start, end, device=self.like.device)

        def cut(x: Any, name: str = "", dtype: torch.dtype | None = None) -> Any:
            if x is None or isinstance(x, str | float):
                return x
            return x[part] if isinstance(x, Tensor) else _dense(f"{name}(rows)", x(numbers), shape, dtype)

        def side(x: float | Tensor) -> float | Tensor:
            return x[part] if isinstance(x, Tensor) and x.ndim == 1 else x

        def ids(x: Pair | None) -> Pair | None:
            return None if x is None else (x[0][part], x[1])

        weight = self.log_weight
        scale = side(self.scale)
        pooled = self.per_anchor_index is not None
        return replace(
            self, anchor=cut(self.anchor), logits=cut(self.logits), scale=scale,
            positive_scale=scale if self.positive_scale is self.scale else side(self.positive_scale),
            targets=cut(self.targets), labels=ids(self.labels), group=ids(self.group), own=cut(self.own),
            ignore=tuple((x[part], y) for x, y in self.ignore), own_positive=cut(self.own_positive),
            positive=cut(self.positive, "positive", torch.bool), weight=cut(self.weight, "weight"),
            denominator=cut(self.denominator, "denominator", torch.bool),
            per_anchor=self.per_anchor if pooled else cut(self.per_anchor),
            per_anchor_index=cut(self.per_anchor_index), per_anchor_log_weight=cut(self.per_anchor_log_weight),
            log_weight=weight if isinstance(weight, Tensor) and weight.ndim == 1 else cut(weight, "log_weight"),
        )  # fmt: skip

    def transposed(self) -> Form:
        """The same pairs with columns as anchors."""
        labels, own = self.labels, self.own
        if self.targets is not None:
            labels = (torch.arange(self.num_columns, device=self.like.device), self.targets)
        elif labels is not None:
            labels = (labels[1], labels[0])
        if own is not None:
            rows = torch.arange(self.num_rows, device=own.device)
            inverse = torch.full((self.num_columns,), -1, dtype=torch.long, device=own.device)
            own = inverse.index_put_((own[own >= 0],), rows[own >= 0])
        return replace(
            self, anchor=self.candidate, candidate=self.anchor, unit=self.unit[::-1], targets=None, labels=labels,
            own=own, logits=_t(self.logits), positive=_t(self.positive), weight=_t(self.weight),
            log_weight=_t(self.log_weight),
            denominator=self.denominator if isinstance(self.denominator, str) else _t(self.denominator),
            group=None if self.group is None else (self.group[1], self.group[0]),
            ignore=tuple((y, x) for x, y in self.ignore),
            similarity=None if self.similarity is None else _Swapped(self.similarity),
        )  # fmt: skip


@dataclass(frozen=True)
class _Swapped:
    inner: Similarity

    def tile(self, a: Tensor, c: Tensor) -> Tensor:
        return self.inner.tile(c, a).t()


def _t(x: Any) -> Any:
    return None if x is None else x.t()


def resolve(
    anchor: Tensor | None, candidate: Tensor | None, *, logits: Tensor | None, similarity: str | Similarity,
    targets: Tensor | None, labels: Tensor | Pair | None, positive: Tensor | Rows | None, weight: Tensor | Rows | None,
    positives: str, denominator: str | Tensor | Rows, group: Tensor | Pair | None,
    ignore: Tensor | Pair | Sequence[Tensor | Pair] | None, own: Tensor | None, own_positive: Tensor | None,
    per_anchor: Tensor | Pair | None, per_anchor_log_weight: Tensor | None, log_weight: Tensor | Rows | None,
    extra: Sequence[Tensor], extra_ids: Sequence[Tensor | None],
    temperature: float | Tensor, positive_temperature: float | Tensor | None, margin: float,
    normalize_sides: Sequence[str], directions: str,
) -> Form:  # fmt: skip
    """The record of a contrast, or a complaint that names the argument."""
    expect_choice("positives", positives, ("mean", "sum", "each", "soft"))
    expect_choice("directions", directions, ("row", "column", "both", "self"))
    if isinstance(denominator, str):
        expect_choice("denominator", denominator, ("all", "negatives"))
    if isinstance(similarity, str):
        expect_choice("similarity", similarity, ("cosine", "dot", "lorentz"))
    for side in normalize_sides:
        expect_choice("normalize", side, ("anchor", "candidate"))
    given = [name for name, value in (("targets", targets), ("labels", labels), ("positive", positive),
             ("weight", weight)) if value is not None]  # fmt: skip
    alone = own_positive is not None and not given
    expect(len(given) == 1 or alone, "targets, labels, positive, weight", "exactly one of them", given or "none")
    expect((weight is None) == (positives != "soft"), "weight", "soft weights exactly with positives='soft'", positives)
    expect(
        positives != "soft" or (margin == 0.0 and positive_temperature is None),
        "margin, positive_temperature", "none with positives='soft'", (margin, positive_temperature),
    )  # fmt: skip
    a, c, unit, swapped = _vectors(
        anchor, candidate, logits, similarity, normalize_sides, directions, own_positive is not None
    )
    own_scores = logits if logits is not None else None
    num_rows, num_columns = own_scores.shape if own_scores is not None else (a.shape[0], c.shape[0])  # type: ignore[union-attr]
    like = own_scores if own_scores is not None else a
    scale, largest = (1.0, 1.0) if logits is not None else _scale("temperature", temperature, num_rows, like)
    positive_scale: float | Tensor = scale
    if positive_temperature is not None:
        expect(logits is None, "positive_temperature", "none beside logits", positive_temperature)
        positive_scale, top = _scale("positive_temperature", positive_temperature, num_rows, like)
        largest = max(largest, top)
    if logits is not None:
        logits = logits.to(_accumulated(logits))
    single = directions == "self"
    if single:
        expect(own is None, "own", "none with directions='self', which sets it", "a tensor")
        own = torch.arange(num_rows, device=like.device)  # type: ignore[union-attr]
    if directions in ("column", "both"):
        dense = not isinstance(log_weight, Tensor) or log_weight.ndim == 2
        plain = not isinstance(scale, Tensor) or scale.ndim == 0
        expect(
            not extra and per_anchor is None and own_positive is None and dense and plain,
            "extra, per_anchor, own_positive, log_weight [N], temperature [B]",
            f"none of them with directions={directions!r}", "at least one",
        )  # fmt: skip
        named = {"positive": positive, "weight": weight, "denominator": denominator, "log_weight": log_weight}
        for name, value in named.items():
            expect(value is None or isinstance(value, str | Tensor), name, f"a tensor with directions={directions!r}, "
                   "whose columns a function of anchors cannot give", "a function")  # fmt: skip
    if alone:
        targets = torch.full((num_rows,), -1, device=like.device)  # type: ignore[union-attr]
    pool, index = per_anchor if isinstance(per_anchor, tuple) else (per_anchor, None)
    form = Form(
        anchor=a, candidate=c, logits=logits, unit=unit, similarity=swapped, scale=scale, positive_scale=positive_scale,
        margin=float(margin), bound=largest if all(unit) else float("inf"),
        targets=_ids("targets", targets, num_rows), labels=_pair("labels", labels, num_rows, num_columns),
        positive=_dense("positive", positive, (num_rows, num_columns), torch.bool),
        weight=_dense("weight", weight, (num_rows, num_columns), None), positives=positives,
        denominator=denominator if isinstance(denominator, str)
        else _dense("denominator", denominator, (num_rows, num_columns), torch.bool),  # type: ignore[arg-type]
        group=_pair("group", group, num_rows, num_columns), ignore=_pairs(ignore, num_rows, num_columns),
        spare=targets is not None,
        own=_ids("own", own, num_rows), own_positive=own_positive, per_anchor=pool, per_anchor_index=index,
        per_anchor_log_weight=per_anchor_log_weight, log_weight=log_weight, extra=tuple(extra),
        extra_ids=tuple(extra_ids) or (None,) * len(extra),
        normalize_extra=similarity == "cosine" and "candidate" in normalize_sides, directions=directions,
    )  # fmt: skip
    _check_rest(form)
    return form.transposed() if directions == "column" else form


def _vectors(
    anchor: Tensor | None, candidate: Tensor | None, logits: Tensor | None, similarity: str | Similarity,
    sides: Sequence[str], directions: str, may_be_none: bool,
) -> tuple[Tensor | None, Tensor | None, tuple[bool, bool], Similarity | None]:  # fmt: skip
    """Anchors and candidates, which of them are to be normalised, and a similarity that is no product."""
    if logits is not None:
        expect(anchor is None and candidate is None, "logits", "no anchor and candidate beside them", "both")
        expect(logits.ndim == 2 and logits.numel() > 0, "logits", "shape [B, N], not empty", tuple(logits.shape))
        expect(directions != "self" or logits.shape[0] == logits.shape[1], "logits", "a square for directions='self'",
               tuple(logits.shape))  # fmt: skip
        return None, None, (False, False), None
    expect(anchor is not None, "anchor", "a tensor [B, D] (or logits)", anchor)
    assert anchor is not None  # for the type checker
    expect(anchor.ndim == 2 and anchor.shape[0] > 0, "anchor", "shape [B, D], B >= 1", tuple(anchor.shape))
    if directions == "self":
        expect(candidate is None, "candidate", "none with directions='self'", "a tensor")
    else:
        if candidate is None and may_be_none and directions == "row":
            candidate = anchor.new_zeros(0, anchor.shape[1])
        expect(candidate is not None, "candidate", f"a tensor [N, D] with directions={directions!r}", candidate)
        assert candidate is not None
        expect(
            candidate.ndim == 2 and candidate.shape[1] == anchor.shape[1] and (may_be_none or candidate.shape[0] > 0),
            "candidate", f"shape [N, {anchor.shape[1]}], N >= 1", tuple(candidate.shape),
        )  # fmt: skip
    kind = _accumulated(anchor, candidate)
    a = anchor.to(kind)
    c = a if candidate is None or candidate is anchor else candidate.to(kind)
    if similarity == "cosine":
        return a, c, ("anchor" in sides, "candidate" in sides), None
    if similarity == "dot":
        return a, c, (False, False), None
    return a, c, (False, False), Lorentz() if similarity == "lorentz" else similarity  # type: ignore[return-value]


def _accumulated(*tensors: Tensor | None) -> torch.dtype:
    for x in tensors:
        if x is not None:
            expect(x.is_floating_point(), "anchor, candidate, logits", "floating point", x.dtype, TypeError)
    return accumulation(*tensors)


def _scale(name: str, value: float | Tensor, num_rows: int, like: Tensor | None) -> tuple[float | Tensor, float]:
    """One over a temperature, and its largest value."""
    if not isinstance(value, Tensor):
        expect_positive(name, value)
        return 1.0 / value, 1.0 / value
    expect(value.shape in ((), (num_rows,)), name, f"a number, or shape [] or [{num_rows}]", tuple(value.shape))
    low = float(value.detach().min())
    expect_positive(name, low)
    return value.to(like.dtype).reciprocal(), 1.0 / low  # type: ignore[union-attr]


def _ids(name: str, value: Tensor | None, num: int) -> Tensor | None:
    if value is None:
        return None
    expect(tuple(value.shape) == (num,), name, f"shape [{num}]", tuple(value.shape))
    expect(not value.is_floating_point() and not value.is_complex(), name, "integers", value.dtype, TypeError)
    return value.long()


def _pair(name: str, value: Tensor | Pair | None, num_rows: int, num_columns: int) -> Pair | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        expect(num_rows == num_columns, name, f"({num_rows} anchor ids, {num_columns} candidate ids)", "one tensor")
        value = (value, value)
    first = _ids(name, value[0], num_rows)
    return first, first if value[1] is value[0] else _ids(name, value[1], num_columns)  # type: ignore[return-value]


def _pairs(value: Any, num_rows: int, num_columns: int) -> tuple[Pair, ...]:
    """One or several pairs of ids."""
    if value is None:
        return ()
    several = isinstance(value, Sequence) and not (isinstance(value, tuple) and isinstance(value[0], Tensor))
    found = [_pair("ignore", x, num_rows, num_columns) for x in (value if several else [value])]
    return tuple(x for x in found if x is not None)


def _dense(
    name: str, value: Tensor | Rows | None, shape: tuple[int, int], dtype: torch.dtype | None
) -> Tensor | Rows | None:
    if value is None or (callable(value) and not isinstance(value, Tensor)):
        return value
    expect(tuple(value.shape) == shape, name, f"shape {list(shape)}", tuple(value.shape))
    if dtype is not None:
        expect(value.dtype == dtype, name, f"dtype {dtype}", value.dtype, TypeError)
    return value


def _check_rest(form: Form) -> None:
    if form.targets is not None or form.own is not None:
        for name, index in (("targets", form.targets), ("own", form.own if form.directions != "self" else None)):
            if index is not None:
                low, high = (int(v) for v in torch.aminmax(index))
                expect(low >= -1 and high < form.num_columns, name, f"values from -1 to {form.num_columns - 1}",
                       f"{low} to {high}")  # fmt: skip
    if isinstance(form.log_weight, Tensor):
        shapes: Any = ((form.num_columns,), (form.num_rows, form.num_columns))
        expect(tuple(form.log_weight.shape) in shapes, "log_weight", f"shape {shapes[0]} or {shapes[1]}",
               tuple(form.log_weight.shape))  # fmt: skip
    further = (form.per_anchor, form.per_anchor_index, form.per_anchor_log_weight, form.own_positive)
    if not form.extra and all(x is None for x in further):
        return
    expect(form.anchor is not None, "extra, per_anchor, own_positive", "none beside logits", "at least one")
    dim, rows = form.anchor.shape[1], form.num_rows  # type: ignore[union-attr]
    for x in form.extra:
        expect(x.ndim == 2 and x.shape[1] == dim, "extra", f"shape [K, {dim}]", tuple(x.shape))
    sizes = [len(x) for x in form.extra]
    given = [None if x is None else tuple(x.shape) for x in form.extra_ids]
    expect(
        len(given) == len(sizes) and all(x is None or x == (k,) for x, k in zip(given, sizes, strict=True)),
        "extra_ids", f"ids or None for every set of extra, of sizes {sizes}", given,
    )  # fmt: skip
    expect(bool(form.ignore) or all(x is None for x in form.extra_ids), "extra_ids",
           "none without ignore, whose anchor ids they are compared with", "at least one")  # fmt: skip
    own, index, weight = form.per_anchor, form.per_anchor_index, form.per_anchor_log_weight
    if index is not None:
        expect(own is not None and own.ndim == 2 and own.shape[1] == dim, "per_anchor", f"a pool [M, {dim}]",
               None if own is None else tuple(own.shape))  # fmt: skip
        expect(index.ndim == 2 and len(index) == rows and not index.is_floating_point(), "per_anchor",
               f"integers [{rows}, P] into the pool", tuple(index.shape))  # fmt: skip
        low, high = (int(v) for v in torch.aminmax(index)) if index.numel() else (-1, -1)
        expect(low >= -1 and high < len(own), "per_anchor", f"indices from -1 to {len(own) - 1}", (low, high))  # type: ignore[arg-type]
    elif own is not None:
        expect(own.ndim == 3 and (own.shape[0], own.shape[2]) == (rows, dim), "per_anchor",
               f"shape [{rows}, P, {dim}]", tuple(own.shape))  # fmt: skip
    if weight is not None:
        expect(own is not None, "per_anchor_log_weight", "none without per_anchor", "a tensor")
        shape = tuple(index.shape) if index is not None else tuple(own.shape[:2])  # type: ignore[union-attr]
        expect(tuple(weight.shape) == shape, "per_anchor_log_weight", f"shape {list(shape)}", tuple(weight.shape))
    if form.own_positive is not None:
        shape = tuple(form.own_positive.shape)
        expect(len(shape) == 3 and (shape[0], shape[2]) == (rows, dim) and shape[1] > 0, "own_positive",
               f"shape [{rows}, Q, {dim}], Q >= 1", shape)  # fmt: skip
        expect(form.weight is None, "own_positive", "none beside weight", "a tensor")
